"""State-dependent noise checked against a sampled covariance and against formulas in NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import user_environments as own
from gymnasium import spaces

from upslope.core.distributions import DiagonalGaussian, Product, StateDependentNoise
from upslope.errors import UpslopeError
from upslope.learning.collect import EnvState, draw_randomness
from upslope.models.heads import head_of, with_policy, without_features

BOX = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 10.0]), dtype=np.float32)
CENTRE, HALF = np.array([0.0, 5.0]), np.array([2.0, 5.0])
H, K, EVERY = 3, 2, 4
DRAW = np.random.default_rng(0)
OUTPUTS, PHI = DRAW.normal(size=(5, K)), DRAW.normal(size=(5, H))
LOG_STD = DRAW.normal(size=(H, K)) - 1
# From Stable-Baselines3, StateDependentNoiseDistribution.proba_distribution: variance = mm(φ², σ²), √(variance + 1e-6).
STD = np.sqrt(np.einsum("bi,ik->bk", PHI**2, np.exp(LOG_STD) ** 2) + 1e-6)


def head_like(space: spaces.Space = BOX, every: int = EVERY) -> Any:
    return with_policy(head_of(space), "It", kind="gsde", hidden_sizes=(7, H), noise_every=every)


def policy_at(phi: Any = PHI, log_std: Any = LOG_STD) -> StateDependentNoise:
    as_float = lambda x: np.asarray(x, np.float32)  # noqa: E731
    return head_like().distribution(as_float(OUTPUTS), as_float(log_std).ravel(), as_float(phi))


def test_probability_entropy_and_kl_are_those_of_the_marginal_by_hand():
    policy = policy_at()
    action = CENTRE + HALF * DRAW.normal(size=(5, K))
    marginal = scipy.stats.norm(CENTRE + HALF * OUTPUTS, HALF * STD)
    np.testing.assert_allclose(policy.log_prob(action), marginal.logpdf(action).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(policy.entropy(), marginal.entropy().sum(axis=1), rtol=1e-5)
    wider = policy_at(log_std=LOG_STD + 0.5)
    by_hand = (np.log(np.e**0.5) + 0.5 / np.e - 0.5) * K
    np.testing.assert_allclose(policy.kl(wider), by_hand, rtol=1e-3)
    assert isinstance(policy.density(), DiagonalGaussian) and not hasattr(policy.density(), "spread")
    np.testing.assert_array_equal(policy.density().log_std, policy.log_std)


def test_samples_have_the_covariance_of_the_features_and_share_their_noise():
    policy = jax.tree.map(jnp.asarray, policy_at())
    drawn = np.asarray(jax.vmap(policy.sample)(jax.random.split(jax.random.key(0), 20_000)))
    np.testing.assert_allclose(drawn.mean(axis=0), CENTRE + HALF * OUTPUTS, atol=0.1)
    np.testing.assert_allclose(drawn.std(axis=0), HALF * STD, rtol=0.03)
    # If two states share one Θ, Cov(a_k(s), a_k(s')) = half² Σ_i φ_i(s) φ_i(s') σ_ik², and components are independent.
    noise = jax.random.normal(jax.random.key(1), (20_000, 1, H * K))
    together = np.asarray(jax.vmap(lambda x: policy.choose(jnp.broadcast_to(x, (5, H * K))))(noise))
    off = together - together.mean(axis=0)
    expected = HALF[0] ** 2 * (PHI[0] * PHI[1] * np.exp(2 * LOG_STD[:, 0])).sum()
    assert np.mean(off[:, 0, 0] * off[:, 1, 0]) == pytest.approx(expected, abs=0.03 * HALF[0] ** 2 * STD[:2, 0].prod())
    assert abs(np.corrcoef(off[:, 0, 0], off[:, 0, 1])[0, 1]) < 0.03


def test_equal_states_get_equal_actions_while_the_noise_is_held_and_steps_share_it_as_said():
    head = head_like()
    assert [head.held_since(t) for t in range(9)] == [0, 0, 0, 0, 4, 4, 4, 4, 8]
    assert [head_like(every=0).held_since(t) for t in (0, 5, 900)] == [0, 0, 0]
    policy, keys = policy_at(), jax.random.split(jax.random.key(0), 3)
    one, same, other = (
        policy.choose(np.asarray(policy.held_noise(keys[0], held))) for held in (keys[1], keys[1], keys[2])
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).all()


class Acts:
    head, model = head_like(), None

    def act(self, observation: Any, carry: Any, fresh: Any, mask: Any = None) -> Any:
        return policy_at(), carry


def test_a_compiled_rollout_draws_it_anew_every_few_steps():
    columns = EnvState((), jnp.zeros((5, 1)), (), jnp.zeros(5, jnp.int32), jnp.zeros(5))
    found = draw_randomness(Acts(), columns, jax.random.split(jax.random.key(0), 9))
    now, held = (np.asarray(jax.random.key_data(x)) for x in found.noise)
    np.testing.assert_array_equal(held, now[[0, 0, 0, 0, 4, 4, 4, 4, 8]])
    assert len(np.unique(now, axis=0)) == 9


def test_no_gradient_of_the_spread_reaches_the_features_but_the_mean_does():
    as_float = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731

    def log_prob(phi: Any, log_std: Any) -> Any:
        return head_like().distribution(as_float(OUTPUTS), log_std, phi).log_prob(jnp.ones((5, K))).sum()

    of_phi, of_std = jax.grad(log_prob, (0, 1))(as_float(PHI), as_float(LOG_STD).ravel())
    assert not np.asarray(of_phi).any()
    # ∂/∂log σ_ik of Σ log N(a; m, s²) = Σ ((a − m)²/s² − 1) φ_i² σ_ik² / s², in units of half the action range.
    off = ((1 - CENTRE - HALF * OUTPUTS) / HALF / STD) ** 2 - 1
    by_hand = np.einsum("bk,bi,ik->ik", off / STD**2, PHI**2, np.exp(2 * LOG_STD))
    np.testing.assert_allclose(of_std.reshape(H, K), by_hand, rtol=1e-3, atol=1e-4)


def test_features_of_zero_still_have_a_density():
    policy = policy_at(phi=np.zeros((5, H)))
    np.testing.assert_allclose(np.exp(policy.log_std), np.broadcast_to(1e-3 * HALF, (5, K)), rtol=1e-4)
    np.testing.assert_array_equal(policy.choose(np.ones((5, H * K), np.float32)), policy.mean)


def test_of_several_parts_only_the_real_valued_hold_their_noise():
    head = head_like(own.HYBRID)
    assert head.num_features == H and head.noise_every == EVERY and head.num_scales == H * 2
    policy = head.distribution(
        jnp.zeros((5, head.num_outputs)), jnp.zeros(head.num_scales), jnp.asarray(PHI, jnp.float32)
    )
    assert isinstance(policy, Product) and isinstance(policy.density(), Product)
    keys = jax.random.split(jax.random.key(0), 3)
    first, second = (policy.held_noise(key, keys[2]) for key in keys[:2])
    held = np.asarray(first == second).all(axis=0)
    assert held.tolist() == [True] * (H * 2) + [False] * (policy.widths[0] - H * 2)
    mask = np.ones((5, head.num_choices), bool)
    assert head.permits(mask, np.asarray(policy.mode())).all()
    assert without_features(head) == head_of(own.HYBRID)


def test_what_it_cannot_have_is_refused():
    with pytest.raises(UpslopeError, match="gsde derives its noise from the last hidden layer"):
        with_policy(head_of(BOX), "It", kind="gsde", hidden_sizes=())
    with pytest.raises(UpslopeError, match="σ follows from its last hidden"):
        with_policy(head_of(BOX), "It", kind="gsde", hidden_sizes=(4,), state_std=True)
    assert with_policy(head_of(spaces.Discrete(2)), "It", kind="gsde") == head_of(spaces.Discrete(2))
