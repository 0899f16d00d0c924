"""Policies checked against SciPy, sums over all actions, exact quadrature, and sample frequencies."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from helpers import DISTRIBUTIONS, LAWS, SEEDS, quick_jit, random_policy
from hypothesis import given

from upslope.core.distributions import Bernoulli, Categorical, DiagonalGaussian, MultiCategorical

DISCRETE = ("categorical", "multi_categorical", "bernoulli")
NUM_SAMPLES = 40_000
BATCH = 5


def float64(x):
    return np.asarray(x, np.float64)


def joint_table(policy):
    """Return all actions [actions, …] and, computed with SciPy, their probabilities in each state [actions, B]."""
    if isinstance(policy, Categorical):
        probability = scipy.special.softmax(float64(policy.logits), axis=-1)
        return np.arange(probability.shape[-1]), probability.T
    if isinstance(policy, Bernoulli):
        on = scipy.special.expit(float64(policy.logits))
        heads = [np.stack([1 - on[:, k], on[:, k]], axis=-1) for k in range(on.shape[-1])]
    else:
        heads = [scipy.special.softmax(float64(head.logits), axis=-1) for head in policy.heads]
    actions = np.array(list(itertools.product(*(range(head.shape[-1]) for head in heads))))
    return actions, np.prod([head[:, actions[:, k]] for k, head in enumerate(heads)], axis=0).T


@pytest.mark.parametrize("kind", DISCRETE)
def test_discrete_policies_equal_a_sum_over_all_actions(kind):
    policy, other = random_policy(kind, 0), random_policy(kind, 1)
    actions, probability = joint_table(policy)
    np.testing.assert_allclose(probability.sum(axis=0), 1, rtol=1e-12)
    for action, expected in zip(actions, probability, strict=True):
        ours = policy.log_prob(jnp.broadcast_to(jnp.asarray(action), (BATCH, *np.shape(action))))
        np.testing.assert_allclose(ours, np.log(expected), rtol=1e-5, atol=1e-5)
    entropy = scipy.stats.entropy(probability)
    np.testing.assert_allclose(policy.entropy(), entropy, rtol=1e-5, atol=1e-6)
    kl = scipy.stats.entropy(probability, joint_table(other)[1])
    np.testing.assert_allclose(policy.kl(other), kl, rtol=1e-4)
    # Without this difference, the test would not notice swapped arguments of the divergence.
    assert np.all(np.abs(scipy.stats.entropy(joint_table(other)[1], probability) / kl - 1) > 0.01)
    np.testing.assert_array_equal(policy.mode(), actions[probability.argmax(axis=0)])


@pytest.mark.parametrize("kind", DISCRETE)
def test_discrete_samples_come_as_often_as_their_probability_says(kind):
    policy = random_policy(kind, 0)
    actions, probability = joint_table(policy)
    samples = jax.jit(jax.vmap(policy.sample))(jax.random.split(jax.random.key(0), NUM_SAMPLES))
    samples = np.asarray(samples).reshape(NUM_SAMPLES, BATCH, -1)
    assert samples.min() == 0
    is_action = (samples[:, :, None] == actions.reshape(len(actions), -1)).all(-1)
    assert is_action.any(-1).all(), "every sample is one of the actions"
    error = np.sqrt(probability.T * (1 - probability.T) / NUM_SAMPLES)
    np.testing.assert_array_less(np.abs(is_action.mean(axis=0) - probability.T), 5 * error)


def test_the_gaussian_equals_scipy():
    policy, other = random_policy("gaussian", 0), random_policy("gaussian", 1)
    action = np.random.default_rng(2).normal(size=(BATCH, 2)).astype(np.float32) * 3
    normal = scipy.stats.norm(float64(policy.mean), np.exp(float64(policy.log_std)))
    log_prob = normal.logpdf(action).sum(-1)
    np.testing.assert_allclose(policy.log_prob(jnp.asarray(action)), log_prob, rtol=1e-5)
    np.testing.assert_allclose(policy.entropy(), normal.entropy().sum(-1), rtol=1e-5)
    np.testing.assert_array_equal(policy.mode(), policy.mean)
    # log p − log q is quadratic in each component, so three-point Gauss–Hermite quadrature is exact.
    points, share = scipy.special.roots_hermitenorm(3)
    at = normal.mean() + normal.std() * points[:, None, None]
    theirs = scipy.stats.norm(float64(other.mean), np.exp(float64(other.log_std)))
    kl = np.einsum("p,pbk->b", share / share.sum(), normal.logpdf(at) - theirs.logpdf(at))
    np.testing.assert_allclose(policy.kl(other), kl, rtol=1e-4)


def test_gaussian_numbers_by_hand():
    # KL(N(0,1) ‖ N(1,2²)) = log 2 + (1 + 1)/8 − 1/2; the entropy of N(0,1) is ½ log 2πe.
    standard = DiagonalGaussian(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    other = DiagonalGaussian(jnp.ones((1, 1)), jnp.full((1, 1), np.log(2.0)))
    assert standard.kl(other)[0] == pytest.approx(0.4431471805599453, rel=1e-6)
    assert standard.entropy()[0] == pytest.approx(1.4189385332046727, rel=1e-6)


def test_gaussian_samples_have_its_mean_and_covariance():
    policy = random_policy("gaussian", 0)
    samples = jax.jit(jax.vmap(policy.sample))(jax.random.split(jax.random.key(0), NUM_SAMPLES))
    z = (float64(samples) - float64(policy.mean)) / np.exp(float64(policy.log_std))
    # For n standard normals, the standard errors of mean, variance and correlation are 1/√n, √(2/n) and 1/√n.
    np.testing.assert_array_less(np.abs(z.mean(axis=0)), 5 / np.sqrt(NUM_SAMPLES))
    np.testing.assert_array_less(np.abs(z.var(axis=0) - 1), 5 * np.sqrt(2 / NUM_SAMPLES))
    np.testing.assert_array_less(np.abs(np.mean(z[..., 0] * z[..., 1], axis=0)), 5 / np.sqrt(NUM_SAMPLES))
    assert scipy.stats.kstest(z[:, 0, 0], "norm").pvalue > 1e-4


def test_the_softmax_policys_entropy_and_its_slope_by_hand():
    # p = (1/6, 1/3, 1/2): H = −Σ p log p and ∂H/∂logit_i = −p_i (log p_i + H).
    logits = jnp.log(jnp.asarray([1 / 6, 1 / 3, 1 / 2]))
    entropy, slope = jax.value_and_grad(lambda logits: Categorical(logits).entropy())(logits)
    assert entropy == pytest.approx(1.0114042647073518, rel=1e-6)
    expected = [0.1300592007534505, 0.029069341320252663, -0.15912854207370325]
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_divergence_is_never_negative_and_zero_only_from_itself(kind):
    @quick_jit
    def divergences(policy, other):
        return policy.kl(other), policy.kl(policy), policy.entropy()

    @LAWS
    @given(SEEDS)
    def law(seed):
        apart, itself, entropy = divergences(random_policy(kind, seed), random_policy(kind, seed + 1))
        assert np.all(apart > 1e-3)
        np.testing.assert_allclose(itself, 0, atol=1e-6)
        assert kind == "gaussian" or np.all(entropy > 0)

    law()


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_no_action_is_more_probable_than_the_mode(kind):
    policy = random_policy(kind, 3)
    best = policy.log_prob(policy.mode())
    for key in jax.random.split(jax.random.key(0), 20):
        assert np.all(policy.log_prob(policy.sample(key)) <= best + 1e-6)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_a_row_of_a_batch_is_a_policy_by_itself(kind):
    policy, other = random_policy(kind, 0), random_policy(kind, 1)
    action = policy.sample(jax.random.key(0))
    row = jax.tree.map(lambda x: x[2], policy)
    np.testing.assert_allclose(row.log_prob(action[2]), policy.log_prob(action)[2], rtol=1e-6)
    np.testing.assert_allclose(row.entropy(), policy.entropy()[2], rtol=1e-6)
    np.testing.assert_allclose(row.kl(jax.tree.map(lambda x: x[2], other)), policy.kl(other)[2], rtol=1e-6)
    assert row.sample(jax.random.key(0)).shape == action[2].shape


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_a_policy_that_is_sure_stays_finite(scale):
    # During long training, logits drift far apart. Then 0 · log 0 must be 0 in both the value and the gradient.
    for policy in (Categorical(jnp.asarray([[scale, 0.0, -scale]])), Bernoulli(jnp.asarray([[scale, -scale]]))):
        uniform = jax.tree.map(jnp.zeros_like, policy)

        def quantities(p, uniform=uniform, action=policy.mode()):  # noqa: B008
            return jnp.stack([p.entropy(), p.kl(uniform), uniform.kl(p), p.log_prob(action)])

        assert np.isfinite(quantities(policy)).all()
        assert np.isfinite(jax.jacrev(quantities)(policy).logits).all()


INFINITE = [
    ([0.0, 1.0, -np.inf], [1.0, 2.0, 0.5]),
    ([0.0, 1.0, -np.inf], [0.0, 2.0, -np.inf]),
    ([0.0, -np.inf, -np.inf], [1.0, 0.0, -np.inf]),
    ([0.0, 1.0, 2.0], [0.0, 1.0, -np.inf]),
    ([0.0, 1.0, -np.inf], [-np.inf, 1.0, 2.0]),
]


def limits(p: np.ndarray, q: np.ndarray) -> tuple[float, float]:
    """Return entropy and divergence, computed in 64 bits as sums over the outcomes."""
    entropy = -sum(x * np.log(x) for x in p.ravel() if x > 0)
    pairs = zip(p.ravel(), q.ravel(), strict=True)
    return entropy, sum(x * (np.log(x) - np.log(y)) if y > 0 else np.inf for x, y in pairs if x > 0)


def assert_limits(make, p: np.ndarray, q: np.ndarray, mine: list[float], other: list[float], actions: list) -> None:
    one, two = jnp.asarray(mine), jnp.asarray(other)
    entropy, divergence = limits(p, q)
    np.testing.assert_allclose(float(make(one).entropy()), entropy, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(float(make(one).kl(make(two))), divergence, rtol=1e-5, atol=1e-6)
    gradients = [
        jax.grad(lambda x: make(x).entropy())(one),
        *jax.grad(lambda x, y: make(x).kl(make(y)), (0, 1))(one, two),
        *(jax.grad(lambda x, a=a: make(x).log_prob(jnp.asarray(a)))(one) for a in actions),
    ]
    assert all(np.isfinite(g).all() for g in gradients), gradients


@pytest.mark.parametrize(("mine", "other"), INFINITE)
def test_impossible_actions_have_their_limits(mine, other):
    with np.errstate(divide="ignore"):
        p, q = (np.exp(x) / np.exp(x).sum() for x in (np.asarray(mine), np.asarray(other)))
        expected = np.log(p)
    assert_limits(Categorical, p, q, mine, other, [0, 1, 2])
    found = [float(Categorical(jnp.asarray(mine)).log_prob(jnp.int32(a))) for a in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # The gradients are the limits of those for small probabilities.
    near = jax.grad(lambda x: Categorical(x).entropy())(jnp.maximum(jnp.asarray(mine), -30.0))
    np.testing.assert_allclose(jax.grad(lambda x: Categorical(x).entropy())(jnp.asarray(mine)), near, atol=1e-5)

    def several(logits):
        return MultiCategorical((Categorical(logits), Categorical(jnp.zeros(2))))

    half = np.full(2, 0.5)
    assert_limits(several, np.outer(p, half), np.outer(q, half), mine, other, [[0, 0], [2, 1]])


@pytest.mark.parametrize(
    ("mine", "other"),
    [
        ([0.5, np.inf, -np.inf], [1.0, np.inf, -np.inf]),
        ([0.5, np.inf, -np.inf], [1.0, 2.0, 3.0]),
        ([0.5, np.inf, -np.inf], [1.0, -np.inf, 0.0]),
        ([0.5, 1.0, 2.0], [0.0, np.inf, 1.0]),
        ([0.5, 1.0, 2.0], [0.0, -np.inf, 1.0]),
    ],
)
def test_switches_that_cannot_be_on_or_off_have_their_limits(mine, other):
    sides = [1 / (1 + np.exp(-np.asarray(x))) for x in (mine, other)]
    terms = [limits(np.array([p, 1 - p]), np.array([q, 1 - q])) for p, q in zip(*sides, strict=True)]
    entropy, divergence = (sum(x) for x in zip(*terms, strict=True))
    one, two = Bernoulli(jnp.asarray(mine)), Bernoulli(jnp.asarray(other))
    np.testing.assert_allclose([float(one.entropy()), float(one.kl(two))], [entropy, divergence], rtol=1e-5, atol=1e-6)
    gradients = (
        jax.grad(lambda x: Bernoulli(x).entropy())(one.logits),
        *jax.grad(lambda x, y: Bernoulli(x).kl(Bernoulli(y)), (0, 1))(one.logits, two.logits),
    )
    assert all(np.isfinite(g).all() for g in gradients)
    for action in ([1, 1, 0], [0, 0, 1]):
        found = float(one.log_prob(jnp.asarray(action)))
        expected = [
            np.log(s if a else 1 - s) if (s if a else 1 - s) > 0 else -np.inf
            for s, a in zip(sides[0], action, strict=True)
        ]
        np.testing.assert_allclose(found, sum(expected), rtol=1e-5)
        assert np.isfinite(jax.grad(lambda x, a=action: Bernoulli(x).log_prob(jnp.asarray(a)))(one.logits)).all()
