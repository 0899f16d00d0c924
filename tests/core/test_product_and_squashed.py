"""Product policies checked against sums over all actions, and squashed Gaussians checked by numerical integration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from helpers import random_policy

from upslope.core.distributions import Product, SquashedGaussian

BATCH = 5


def choices(seed: int) -> Product:
    """Return a product of all discrete kinds of policy, two of them in a nested product."""
    inner = Product((random_policy("multi_categorical", seed), random_policy("bernoulli", seed + 10)))
    return Product((random_policy("categorical", seed), inner))


def table(policy: Product) -> tuple[np.ndarray, np.ndarray]:
    """Return all actions [A, 6] and their probabilities in every state [A, B], computed independently."""
    one, inner = policy.parts
    several, switches = inner.parts
    heads = [scipy.special.softmax(np.asarray(x.logits, np.float64), axis=-1) for x in (one, *several.heads)]
    on = scipy.special.expit(np.asarray(switches.logits, np.float64))
    heads += [np.stack([1 - on[:, k], on[:, k]], axis=-1) for k in range(3)]
    actions = np.array(list(itertools.product(*(range(head.shape[1]) for head in heads))))
    return actions, np.prod([head[:, actions[:, k]] for k, head in enumerate(heads)], axis=0).T


def test_a_product_equals_a_sum_over_all_actions():
    policy, other = choices(0), choices(1)
    actions, probability = table(policy)
    assert len(actions) == 4 * 2 * 3 * 8
    vectors = jnp.broadcast_to(jnp.asarray(actions, jnp.float32)[:, None], (len(actions), BATCH, 6))
    found = jax.vmap(policy.log_prob)(vectors)
    np.testing.assert_allclose(np.exp(found).sum(axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(found, np.log(probability), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(policy.entropy(), scipy.stats.entropy(probability), rtol=1e-5)
    np.testing.assert_allclose(policy.kl(other), scipy.stats.entropy(probability, table(other)[1]), rtol=1e-4)
    np.testing.assert_array_equal(policy.mode(), actions[probability.argmax(axis=0)])
    assert policy.mode().dtype == jnp.float32 and policy.widths == (4 + 5 + 3, 6) and policy.num_choices == 4 + 5 + 6


def test_a_masked_product_is_the_conditional_probability():
    policy, (actions, probability) = choices(0), table(choices(0))
    # The mask forbids action 2 in the first part, choice 1 in the third component, and 0 for the last switch.
    mask = np.array([1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1], bool)
    allowed = (actions[:, 0] != 2) & (actions[:, 2] != 1) & (actions[:, 5] == 1)
    conditional = np.where(allowed[:, None], probability, 0)
    conditional /= conditional.sum(axis=0)
    masked = policy.masked(jnp.broadcast_to(mask, (BATCH, 15)))
    found = jax.vmap(masked.log_prob)(
        jnp.broadcast_to(jnp.asarray(actions, jnp.float32)[:, None], (len(actions), BATCH, 6))
    )
    np.testing.assert_allclose(np.exp(found), conditional, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(masked.entropy(), scipy.stats.entropy(conditional), rtol=1e-4)
    np.testing.assert_allclose(policy.masked(jnp.ones((BATCH, 15), bool)).kl(policy), 0, atol=1e-6)
    np.testing.assert_allclose(masked.kl(policy), scipy.stats.entropy(conditional, probability), rtol=1e-4)


def test_a_mixture_is_the_sum_of_its_parts_in_numpy_and_jax():
    one, two, three = random_policy("categorical", 0), random_policy("gaussian", 1), random_policy("bernoulli", 2)
    policy = Product((one, two, three))
    noise = policy.noise(jax.random.key(0))
    action = policy.choose(noise)
    assert action.shape == (BATCH, 6) and action.dtype == jnp.float32
    parts = action[:, 0].astype(jnp.int32), action[:, 1:3], action[:, 3:].astype(jnp.int8)
    np.testing.assert_allclose(
        policy.log_prob(action), one.log_prob(parts[0]) + two.log_prob(parts[1]) + three.log_prob(parts[2]), rtol=1e-6
    )
    # Each part gives the same sample as on its own with the same key.
    keys = jax.random.split(jax.random.key(0), 3)
    for mine, alone, key in zip(parts, (one, two, three), keys, strict=True):
        np.testing.assert_array_equal(mine, alone.sample(key))
    here = jax.tree.map(np.asarray, policy)
    np.testing.assert_allclose(here.choose(np.asarray(noise)), action, rtol=1e-6)
    np.testing.assert_allclose(here.log_prob(np.asarray(action)), policy.log_prob(action), rtol=1e-5)
    # The mask has entries only for the 4 choices and the 3 switches, not for the Box.
    mask = jnp.ones((BATCH, 10), bool).at[:, 0].set(False).at[:, 5].set(False)
    masked = policy.masked(mask)
    np.testing.assert_array_equal(masked.parts[1].mean, two.mean)
    assert (masked.parts[0].log_prob(jnp.zeros(BATCH, jnp.int32)) == -jnp.inf).all()
    assert (masked.choose(noise)[:, 3] == 0).all()


MEANS, LOG_STDS = (0.0, 0.7, -2.0), (-2.0, 0.0, 1.0)
LOW, HIGH = -1.0, 5.0


def squashed(mean: float, log_std: float) -> SquashedGaussian:
    return SquashedGaussian(jnp.asarray([[mean]]), jnp.asarray([[log_std]]), ((HIGH - LOW) / 2,))


def integral(function, mean: float, log_std: float) -> float:
    """Return ∫ f(u) du over 10 standard deviations of a normal distribution on either side of its mean."""
    u = mean + np.exp(log_std) * np.linspace(-10, 10, 4001)
    return scipy.integrate.trapezoid(function(u), u)


@pytest.mark.parametrize(("mean", "log_std"), list(itertools.product(MEANS, LOG_STDS)))
def test_a_squashed_density_is_one_of_the_environments_action(mean: float, log_std: float):
    policy, std = squashed(mean, log_std), np.exp(log_std)
    density = lambda u: np.exp(np.asarray(policy.log_prob(jnp.asarray(u, jnp.float32)[:, None]), np.float64))  # noqa: E731
    half, centre = (HIGH - LOW) / 2, (HIGH + LOW) / 2
    # Integrate over the interval of a, with a = centre + half tanh(u) and da = half / cosh²(u) du.
    total = integral(lambda u: density(u) * half / np.cosh(u) ** 2, mean, log_std)
    assert total == pytest.approx(1, rel=1e-4)
    # Change variables by hand at some points a in the interval.
    for a in (-0.5, 1.0, 4.5):
        u = np.arctanh((a - centre) / half)
        slope = 1 / (half * (1 - ((a - centre) / half) ** 2))  # du/da
        by_hand = scipy.stats.norm(mean, std).logpdf(u) + np.log(slope)
        assert float(policy.log_prob(jnp.asarray([[u]]))[0]) == pytest.approx(by_hand, rel=1e-4, abs=1e-4)

    def log_density(u: float) -> float:
        return scipy.stats.norm(mean, std).logpdf(u) - np.log(half) + 2 * np.logaddexp(u, -u) - 2 * np.log(2)

    entropy = integral(lambda u: -scipy.stats.norm(mean, std).pdf(u) * log_density(u), mean, log_std)
    assert float(policy.entropy()[0]) == pytest.approx(entropy, abs=2e-3)
    other_mean, other_std = 0.3, 1.7
    other = squashed(other_mean, np.log(other_std))

    def gap(u: float) -> float:  # log p(a) − log q(a), in which the Jacobian cancels out
        return scipy.stats.norm(mean, std).logpdf(u) - scipy.stats.norm(other_mean, other_std).logpdf(u)

    kl = integral(lambda u: scipy.stats.norm(mean, std).pdf(u) * gap(u), mean, log_std)
    assert float(policy.kl(other)[0]) == pytest.approx(kl, rel=1e-4)


def test_the_entropys_slope_is_that_of_the_integral():
    def exact(mean: float, log_std: float) -> float:
        normal = scipy.stats.norm(mean, np.exp(log_std))
        slope = lambda u: normal.pdf(u) * (2 * np.log(2) - 2 * np.logaddexp(u, -u))  # noqa: E731
        return normal.entropy() + integral(slope, mean, log_std)

    def ours(mean: float, log_std: float) -> float:
        return squashed(mean, log_std).entropy()[0]

    step = 1e-3
    for mean, log_std in ((0.4, 0.0), (1.5, -1.0), (-0.5, 0.7)):
        slopes = jax.grad(ours, (0, 1))(mean, log_std)
        by_mean = (exact(mean + step, log_std) - exact(mean - step, log_std)) / (2 * step)
        by_std = (exact(mean, log_std + step) - exact(mean, log_std - step)) / (2 * step)
        np.testing.assert_allclose(slopes, (by_mean, by_std), atol=2e-3)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 2.0), (60.0, 2.0), (-60.0, -5.0), (1e4, -5.0), (0.0, -5.0)])
def test_a_squashed_policy_stays_finite_at_extremes(mean: float, log_std: float):
    def quantities(mean, log_std, u):
        policy = SquashedGaussian(mean, log_std, (2.0,))
        return jnp.stack([policy.log_prob(u)[0], policy.entropy()[0], policy.kl(squashed(0.0, 0.0))[0]])

    given = jnp.asarray([[mean]]), jnp.asarray([[log_std]])
    for sigmas in (0.0, 8.0, -8.0):
        u = given[0] + sigmas * jnp.exp(given[1])
        assert np.isfinite(quantities(*given, u)).all()
        assert all(np.isfinite(x).all() for x in jax.jacrev(quantities, (0, 1, 2))(*given, u))


def test_far_out_the_log_density_grows_by_two_a_unit():
    # log(1 − tanh² u) → 2 log 2 − 2|u|, although 1 − tanh² u rounds to 0 in 32 bits.
    flat = SquashedGaussian(jnp.zeros((1, 1)), jnp.zeros((1, 1)), (1.0,))
    for u in (-40.0, 40.0):
        jacobian = float(flat.normal.log_prob(jnp.asarray([[u]]))[0] - flat.log_prob(jnp.asarray([[u]]))[0])
        assert jacobian == pytest.approx(2 * np.log(2) - 80, rel=1e-5)
    np.testing.assert_array_equal(flat.mode(), flat.mean)
