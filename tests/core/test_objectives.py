"""Objectives (axis 2) checked against hand-computed tables, RLax, exact sums over actions, and a law that all obey."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from gymnasium.spaces import Box
from helpers import DISTRIBUTIONS, LAWS, SEEDS, quick_jit, random_policy, rollout_of, values_of
from hypothesis import given
from scipy.special import roots_hermitenorm
from scipy.stats import kstest, norm, uniform

from upslope.core.distributions import Categorical, DiagonalGaussian
from upslope.core.estimators import Baseline, RewardToGo, TotalReturn
from upslope.core.objectives import (
    SPO,
    Clip,
    DualClip,
    ImportanceSampled,
    KLPenalty,
    PolicyGradient,
    Sample,
    importance_ratio,
)
from upslope.errors import UpslopeError
from upslope.learning.batch import Batch
from upslope.learning.update import critic_loss, plain_update, policy_metrics, sample_from, with_shifts
from upslope.models.heads import head_of

# Each row is (Ψ, ρ, clipped surrogate, slope in ρ or None at a kink) for ε = 0.2.
CLIP_TABLE = [
    (1.0, 0.5, 0.5, 1.0),
    (1.0, 0.8, 0.8, None),
    (1.0, 1.0, 1.0, 1.0),
    (1.0, 1.2, 1.2, None),
    (1.0, 1.5, 1.2, 0.0),
    (-1.0, 0.5, -0.8, 0.0),
    (-1.0, 0.8, -0.8, None),
    (-1.0, 1.0, -1.0, -1.0),
    (-1.0, 1.2, -1.2, None),
    (-1.0, 1.5, -1.5, -1.0),
]
OBJECTIVES = (PolicyGradient(), ImportanceSampled(), KLPenalty(beta=3.0), Clip(0.2), DualClip(0.2), SPO(0.2))


def sample_at(ratio, weight, kl=0.0):
    """Return a sample of actions, each with `ratio` times its probability under μ."""
    column = lambda x: jnp.asarray(x, jnp.float32).reshape(-1)  # noqa: E731
    log_ratio, weight = jnp.log(column(ratio)), column(weight)
    behaviour = jnp.full_like(log_ratio, -1.3)
    return Sample(log_ratio + behaviour, behaviour, weight, jnp.full_like(log_ratio, kl))


def bandit(probability):
    """Return the policy of a bandit, repeated once for each action."""
    return Categorical(jnp.tile(jnp.log(jnp.asarray(probability, jnp.float32)), (len(probability), 1)))


def gradient(objective, policy, action, weight, behaviour=None):
    """Return the gradient of −Σ loss with respect to the policy's parameters, one row per sample."""
    behaviour = policy if behaviour is None else behaviour

    def gain(current):
        sample = Sample(current.log_prob(action), behaviour.log_prob(action), weight, policy.kl(current))
        return -jnp.sum(objective.loss(objective.init(), sample))

    return jax.grad(gain)(policy)


@quick_jit
def gradients_and_score(policy, key, weight):
    """Return the gradient that each objective ascends, and the plain Ψ∇log π."""
    action = policy.sample(key)
    score = jax.grad(lambda current: jnp.sum(weight * current.log_prob(action)))(policy)
    return [gradient(objective, policy, action, weight) for objective in OBJECTIVES], score


@pytest.mark.parametrize(("weight", "ratio", "surrogate", "slope"), CLIP_TABLE)
def test_the_clipped_surrogate_by_hand(weight, ratio, surrogate, slope):
    loss = lambda log_prob: Clip(0.2).loss(jnp.float32(0), sample._replace(log_prob=log_prob))[0]  # noqa: E731
    sample = sample_at(ratio, weight)
    assert -loss(sample.log_prob) == pytest.approx(surrogate, rel=1e-5)
    if slope is not None:
        # dL/dlog π = ρ dL/dρ.
        assert -jax.grad(loss)(sample.log_prob)[0] == pytest.approx(slope * ratio, rel=1e-5)


# Each row is (Ψ, ρ, surrogate, slope in ρ). The bound c = 3 takes effect only if Ψ < 0 and ρ > 3.
DUAL_TABLE = [(-1.0, 2.0, -2.0, -1.0), (-1.0, 4.0, -3.0, 0.0), (-2.0, 4.0, -6.0, 0.0), (-1.0, 0.5, -0.8, 0.0)]
DUAL_TABLE += [(1.0, 4.0, 1.2, 0.0), (1.0, 0.5, 0.5, 1.0)]
# For ε = 0.2, the slope Ψ − |Ψ| (ρ − 1)/ε is 0 at 1 ± ε on the side that Ψ favours, and changes its sign beyond it.
PARABOLA_TABLE = [(1.0, 1.0, 1.0, 1.0), (1.0, 1.2, 1.1, 0.0), (1.0, 1.4, 1.0, -1.0), (1.0, 0.8, 0.7, 2.0)]
PARABOLA_TABLE += [(-1.0, 1.0, -1.0, -1.0), (-1.0, 0.8, -0.9, 0.0), (-1.0, 0.6, -1.0, 1.0), (-2.0, 1.2, -2.6, -4.0)]


@pytest.mark.parametrize(
    ("objective", "weight", "ratio", "surrogate", "slope"),
    [(DualClip(0.2, c=3.0), *row) for row in DUAL_TABLE] + [(SPO(0.2), *row) for row in PARABOLA_TABLE],
)
def test_the_variants_of_clip_by_hand(objective, weight, ratio, surrogate, slope):
    sample = sample_at(ratio, weight)
    loss = lambda log_prob: objective.loss(jnp.float32(0), sample._replace(log_prob=log_prob))[0]  # noqa: E731
    assert -loss(sample.log_prob) == pytest.approx(surrogate, rel=1e-5)
    assert -jax.grad(loss)(sample.log_prob)[0] == pytest.approx(slope * ratio, rel=1e-4, abs=1e-5)


def batch_with(**fields):
    """Return a batch in which only these fields are set."""
    return Batch(**dict.fromkeys(Batch._fields) | fields)


# Each row is (V, target, loss, slope) for ε = 0.5 and V_old = 1. Outside the clip range, the larger error counts.
VALUE_TABLE = [
    (1.2, 3.0, 0.5 * 1.8**2, -1.8),  # inside the clip range: the plain error
    (2.0, 3.0, 0.5 * 1.5**2, 0.0),  # beyond 1.5, towards the target: no further gain
    (2.0, 1.0, 0.5, 1.0),  # beyond 1.5, away from the target: the plain error pulls it back
    (0.0, -1.0, 0.5 * 1.5**2, 0.0),
    (0.0, 2.0, 2.0, -2.0),
]


@pytest.mark.parametrize(("value", "target", "expected", "slope"), VALUE_TABLE)
def test_the_clipped_loss_of_the_critic_by_hand(value, target, expected, slope):
    batch = batch_with(target=jnp.float32(target), old_value=jnp.float32(1.0))
    found = jax.value_and_grad(lambda v: critic_loss(0.5, v, batch))(jnp.float32(value))
    np.testing.assert_allclose(found, (expected, slope), rtol=1e-5, atol=1e-6)
    assert critic_loss(None, jnp.float32(value), batch) == pytest.approx(0.5 * (value - target) ** 2)


def test_the_mean_is_shifted_in_the_ratio_and_nowhere_else():
    """log N(a; μ + z, σ) has slope (a − μ − z)/σ² in μ. KL and entropy are computed for the unshifted policy."""
    policy = DiagonalGaussian(jnp.asarray([[0.5]]), jnp.log(jnp.asarray([[2.0]])))
    batch = batch_with(
        action=jnp.asarray([[1.5]]), behaviour_log_prob=jnp.zeros(1), weight=jnp.ones(1), old_policy=policy,
        shift=jnp.asarray([[0.4]]),
    )  # fmt: skip
    sample, entropy = sample_from(policy, batch)
    assert sample.log_prob[0] == pytest.approx(norm.logpdf(1.5, 0.9, 2.0), rel=1e-5)
    assert sample.kl[0] == 0 and entropy[0] == policy.entropy()[0]
    slope = jax.grad(lambda mean: sample_from(replace(policy, mean=mean), batch)[0].log_prob[0])(policy.mean)
    assert float(slope[0, 0]) == pytest.approx((1.5 - 0.9) / 4, rel=1e-5)


def test_shifts_are_uniform_in_units_of_half_the_range():
    head = head_of(Box(np.float32([-1, 0]), np.float32([3, 1])), "world")
    batch = batch_with(action=jnp.zeros((4000, 2)))
    z = np.asarray(with_shifts(head, 0.5, batch, jax.random.key(0)).shift) / [2.0, 0.5]
    for column in z.T:
        assert kstest(column, uniform(-0.5, 1.0).cdf).pvalue > 1e-3


@LAWS
@given(SEEDS)
def test_clip_equals_rlax(seed):
    generator = np.random.default_rng(seed)
    sample = sample_at(np.exp(generator.normal(size=50) * 0.4), generator.normal(size=50))
    ours = lambda log_prob: jnp.mean(Clip(0.2).loss(jnp.float32(0), sample._replace(log_prob=log_prob)))  # noqa: E731

    def theirs(log_prob):
        ratio = jnp.exp(log_prob - sample.behaviour_log_prob)
        return rlax.clipped_surrogate_pg_loss(ratio, sample.weight, 0.2)

    for a, b in zip(*(jax.value_and_grad(f)(sample.log_prob) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_the_losses_by_hand():
    # Ψ = −2, ρ = 1.5, log π = log 1.5 − 1.3, KL = 0.25 nats, β = 3.
    sample = sample_at(1.5, -2.0, kl=0.25)
    loss = lambda objective: float(objective.loss(objective.init(), sample)[0])  # noqa: E731
    assert loss(PolicyGradient()) == pytest.approx(2 * (np.log(1.5) - 1.3), rel=1e-5)
    assert loss(ImportanceSampled()) == pytest.approx(3.0, rel=1e-5)
    assert loss(KLPenalty(beta=3.0)) == pytest.approx(3.0 + 3 * 0.25, rel=1e-5)
    assert loss(Clip(0.2)) == pytest.approx(3.0, rel=1e-5)


@LAWS
@given(SEEDS)
def test_where_no_policy_has_moved_every_objective_climbs_the_policy_gradient(seed):
    weight = np.random.default_rng(seed).normal(size=5).astype(np.float32)
    for kind in DISTRIBUTIONS:
        gradients, score = gradients_and_score(random_policy(kind, seed), jax.random.key(seed), weight)
        for ours in gradients:
            for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(score), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("moved", "beta"),
    [(0.005, 0.5), (0.00666, 0.5), (0.00667, 1.0), (0.01, 1.0), (0.01499, 1.0), (0.01501, 2.0), (0.02, 2.0)],
)
def test_beta_halves_below_two_thirds_of_the_target_and_doubles_above_three_halves(moved, beta):
    objective = KLPenalty(beta=1.0, target=0.01)
    assert objective.adapt(objective.init(), jnp.float32(moved)) == beta
    fixed = KLPenalty(beta=1.0, target=None)
    assert fixed.adapt(fixed.init(), jnp.float32(moved)) == 1.0
    assert Clip().adapt(jnp.float32(0), jnp.float32(moved)) == 0.0


def test_the_penalty_uses_the_beta_of_its_state():
    sample = sample_at(1.0, 0.0, kl=0.5)
    assert KLPenalty(beta=1.0).loss(jnp.float32(4.0), sample)[0] == 2.0


def test_importance_sampling_under_another_policy_climbs_the_same_hill():
    # Σ_a μ(a) ∇[π(a)/μ(a) Ψ(a)] = Σ_a π(a) Ψ(a) ∇log π(a) holds exactly for any μ that gives no action probability 0.
    rewards = jnp.asarray([1.0, -2.0, 4.0])
    policy, behaviour = bandit([0.2, 0.3, 0.5]), bandit([0.6, 0.1, 0.3])
    actions = jnp.arange(3)
    under = lambda distribution: jnp.exp(distribution.log_prob(actions))  # noqa: E731
    own = gradient(PolicyGradient(), policy, actions, rewards * under(policy)).logits.sum(0)
    corrected = gradient(ImportanceSampled(), policy, actions, rewards * under(behaviour), behaviour).logits.sum(0)
    np.testing.assert_allclose(corrected, own, rtol=1e-5)


def test_one_step_of_importance_sampling_by_hand():
    # π = (0.9, 0.1), μ = (½, ½), r = (1, 0): ρ = (1.8, 0.2), E[ρr] = 0.9 = V_π, Var = 0.5·1.8² − 0.81 = 0.81,
    # E[ρ²] = 1.64, so the effective sample size is n/1.64 and χ² = 0.64.
    reward = jnp.asarray([1.0, 0.0])
    sample = Sample(jnp.log(jnp.asarray([0.9, 0.1])), jnp.log(jnp.asarray([0.5, 0.5])), reward, jnp.zeros(2))
    np.testing.assert_allclose(importance_ratio(sample), [1.8, 0.2], rtol=1e-6)
    gain = -ImportanceSampled().loss(jnp.float32(0), sample)
    assert jnp.mean(gain) == pytest.approx(0.9, rel=1e-6)
    assert jnp.var(gain) == pytest.approx(0.81, rel=1e-5)
    metrics = policy_metrics(plain_update().objective, sample, jnp.ones(2, bool))
    assert metrics["policy/effective_sample_size"] == pytest.approx(1 / 1.64, rel=1e-5)
    assert metrics["policy/clip_fraction"] == 1.0


# For a bandit with p = (1/6, 1/3, 1/2) and r = (1, 2, 4), J = 17/6 and ∇J = p (r − J). The variances below are traces
# of the covariance of (r − b)∇log π for b = 0, b = J, and the best b = E[r |∇log π|²] / E[|∇log π|²] = 155/66.
BANDIT = np.array([1 / 6, 1 / 3, 1 / 2])


@pytest.mark.parametrize(
    ("estimator", "baseline", "variance"),
    [
        (TotalReturn(), 0.0, 2423 / 648),
        (RewardToGo(), 0.0, 2423 / 648),
        (Baseline(), 17 / 6, 83 / 162),
        (Baseline(), 155 / 66, 73 / 198),
    ],
)
def test_a_baseline_leaves_a_bandits_gradient_and_lowers_its_variance(estimator, baseline, variance):
    rollout = rollout_of([[1.0, 2.0, 4.0]], terminated=np.ones((1, 3), bool))
    weight = estimator(rollout, values_of(np.full((1, 3), baseline)), 1.0).weight[0]
    policy = bandit(BANDIT)
    per_action = np.asarray(gradient(PolicyGradient(), policy, jnp.arange(3), weight).logits, np.float64)
    mean = BANDIT @ per_action
    np.testing.assert_allclose(mean, [-11 / 36, -5 / 18, 7 / 12], rtol=1e-5)
    assert BANDIT @ np.sum(per_action**2, axis=1) - mean @ mean == pytest.approx(variance, rel=1e-4)


@pytest.mark.parametrize(("estimator", "variance"), [(TotalReturn(), 87.0), (Baseline(), 42.0)])
def test_a_gaussian_policy_on_a_parabola(estimator, variance):
    # For a ~ N(0, 1) and r = −(a − 2)²: J = −5, ∂J/∂μ = 4, ∂J/∂log σ = −2, and Var[(r − b)∂log π/∂μ] is 87 if b = 0,
    # or 42 if b = J. Gauss–Hermite quadrature with 10 points is exact for polynomials up to degree 19; these have
    # degree 6.
    action, share = roots_hermitenorm(10)
    share = share / share.sum()
    rollout = rollout_of(-((action - 2) ** 2)[None], terminated=np.ones((1, 10), bool))
    weight = estimator(rollout, values_of(np.full((1, 10), -5.0)), 1.0).weight[0]
    policy = DiagonalGaussian(jnp.zeros((10, 1)), jnp.zeros((10, 1)))
    score = gradient(PolicyGradient(), policy, jnp.asarray(action, jnp.float32)[:, None], weight)
    by_mean, by_log_std = (np.asarray(x, np.float64)[:, 0] for x in (score.mean, score.log_std))
    assert share @ by_mean == pytest.approx(4.0, rel=1e-4)
    assert share @ by_log_std == pytest.approx(-2.0, rel=1e-4)
    assert share @ by_mean**2 - 16 == pytest.approx(variance, rel=1e-4)


@pytest.mark.parametrize(
    "refused",
    [
        lambda: Clip(0.0),
        lambda: Clip(1.0),
        lambda: Clip(-0.2),
        lambda: Clip(float("nan")),
        lambda: DualClip(0.2, c=1.1),
        lambda: SPO(0.0),
        lambda: KLPenalty(beta=-1.0),
        lambda: KLPenalty(beta=float("nan")),
        lambda: KLPenalty(target=0.0),
        lambda: KLPenalty(target=-0.01),
        lambda: KLPenalty(target=float("nan")),
    ],
)
def test_hyperparameters_without_a_meaning_are_refused(refused):
    with pytest.raises(UpslopeError, match="needs"):
        refused()
