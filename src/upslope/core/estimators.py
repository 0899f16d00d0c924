"""Axis 1: the weight Ψ_t of ∇log π(a_t|s_t).

An estimator maps facts and estimates to credit, `(rollout, values, gamma) → Credit`: the weight Ψ_t of each action
(Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage Estimation", eq. 1) and the
critic's regression target. To write your own, subclass `Estimator` and define `__call__`.

In all estimators, only `terminated` cuts the bootstrap, whereas `truncated` ends the sum but still bootstraps from the
true final observation. Nothing is carried across the end of an episode or of the collected segment.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from upslope.core.fields import require_field_types
from upslope.core.inputs import with_checked_facts
from upslope.core.types import Credit, Rollout, Values
from upslope.errors import UpslopeError

UNROLL = 8
"""Unroll factor of scans with very cheap steps, for which loop overhead dominates on accelerators."""


class Estimator(ABC):
    """Base class of estimators. Subclasses are frozen dataclasses whose fields are the hyperparameters."""

    needs_critic: ClassVar[bool]
    """Whether the estimator reads `values`. If so, a critic is trained."""
    whole_episodes: ClassVar[bool]
    """Whether the estimator needs complete returns. If so, each column collects one whole episode rather than a fixed
    segment."""
    is_advantage: ClassVar[bool] = True
    """Whether the weights may be centred and scaled over a batch (False for constant weights)."""
    corrects: ClassVar[bool] = False
    """Whether the weights already correct for another policy's actions. If so, `values.log_prob` is set for this
    purpose."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__call__" in vars(cls):
            cls.__call__ = with_checked_facts(cls.__call__)

    def __post_init__(self) -> None:
        require_field_types(self)

    @abstractmethod
    def __call__(self, rollout: Rollout, values: Values, gamma: float) -> Credit:
        """Return Ψ_t and the critic's target, [T, N], zero where `rollout.valid` is false."""


@dataclass(frozen=True)
class TotalReturn(Estimator):
    """Ψ_t = R(τ) = Σ_t' γ^t' r_t': every action is weighted by the episode's return (Williams 1992, REINFORCE)."""

    needs_critic: ClassVar[bool] = False
    whole_episodes: ClassVar[bool] = True

    def __call__(self, rollout: Rollout, values: Values, gamma: float) -> Credit:
        total = reward_to_go(rollout, gamma)[0]
        weight = jnp.where(rollout.valid, total, 0.0)
        return Credit(weight=weight, target=weight)


@dataclass(frozen=True)
class RewardToGo(Estimator):
    """Ψ_t = R_t = Σ_{t'≥t} γ^(t'−t) r_t': an action is credited only with the rewards that follow it."""

    needs_critic: ClassVar[bool] = False
    whole_episodes: ClassVar[bool] = True

    def __call__(self, rollout: Rollout, values: Values, gamma: float) -> Credit:
        weight = reward_to_go(rollout, gamma)
        return Credit(weight=weight, target=weight)


@dataclass(frozen=True)
class Baseline(Estimator):
    """Ψ_t = R_t − B(s_t), with the critic's V(s_t) as B (Williams 1992; Sutton & Barto 2018, section 13.4).

    An action is credited with the amount by which the return exceeds the critic's prediction. R_t sums only the rewards
    actually collected, so a truncated episode's return is not bootstrapped.
    """

    needs_critic: ClassVar[bool] = True
    whole_episodes: ClassVar[bool] = True

    def __call__(self, rollout: Rollout, values: Values, gamma: float) -> Credit:
        target = reward_to_go(rollout, gamma)
        return Credit(weight=jnp.where(rollout.valid, target - values.value, 0.0), target=target)


@dataclass(frozen=True)
class NStep(Estimator):
    """Ψ_t = A^n_t = Σ_{b<n} γ^b δ_{t+b} = r_t + … + γ^(n−1) r_{t+n−1} + γ^n V(s_{t+n}) − V(s_t).

    n = 1 is the TD error (low variance, high bias); n = ∞ is Monte Carlo (the reverse). Near the end of a segment
    the sum has fewer terms. Usual: 1 to 20. Source: Mnih et al. 2016 (A3C), section 4.
    """

    n: int = 5
    needs_critic: ClassVar[bool] = True
    whole_episodes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 1:
            raise UpslopeError(f"NStep needs n ≥ 1 steps, not {self.n}: A^n is a sum of n TD errors.")

    def __call__(self, rollout: Rollout, values: Values, gamma: float) -> Credit:
        delta, continues = td_error(rollout, values, gamma), ~ends(rollout)

        def add_term(_, advantage: Float[Array, "T N"]) -> Float[Array, "T N"]:
            following = jnp.concatenate([advantage[1:], jnp.zeros_like(advantage[:1])])
            return delta + gamma * continues * following

        steps = min(self.n, delta.shape[0])
        advantage = jax.lax.fori_loop(0, steps, add_term, jnp.zeros_like(delta))
        return advantage_credit(advantage, rollout, values)


@dataclass(frozen=True)
class GAE(Estimator):
    """Ψ_t = Σ_b (γλ)^b δ_{t+b} = (1−λ)(A^1 + λA^2 + λ²A^3 + …)  (Schulman et al. 2016, eq. 16).

    λ = 0 is the TD error, λ = 1 is Monte Carlo minus V. Usual: 0.9 to 0.98.
    """

    lambda_: float = 0.95
    needs_critic: ClassVar[bool] = True
    whole_episodes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.lambda_ <= 1:
            raise UpslopeError(f"GAE needs λ in [0, 1], not {self.lambda_}: λ interpolates between A¹ and A^∞.")

    def __call__(self, rollout: Rollout, values: Values, gamma: float) -> Credit:
        delta = td_error(rollout, values, gamma)
        advantage = discounted_sum(delta, ends(rollout), gamma * self.lambda_)
        return advantage_credit(advantage, rollout, values)


LengthDivision = Literal["none", "episode", "batch"]
"""The divisor of an episode's summed weights; see `over_steps`."""


@dataclass(frozen=True)
class LeaveOneOut(Estimator):
    """Ψ_i = R_i − (1/(G−1)) Σ_{j≠i} R_j: the return of episode i minus the mean return of the G−1 others in its group.

    The episodes of a group share their start, so the mean of the others estimates V(s_0) without a critic. It does not
    depend on the actions being weighted, so it adds no bias. Sources: Kool et al. 2019, "Buy 4 REINFORCE samples, get
    a baseline for free!"; Ahmadian et al. 2024, "Back to Basics" (RLOO).
    """

    group_size: int = 4
    divide_by_length: LengthDivision = "none"
    needs_critic: ClassVar[bool] = False
    whole_episodes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_group(self)

    def __call__(self, rollout: Rollout, values: Values, gamma: float) -> Credit:
        returns = returns_in_groups(rollout, gamma, self.group_size)
        others = (returns.sum(axis=1, keepdims=True) - returns) / (self.group_size - 1)
        return over_steps(returns - others, rollout, self.divide_by_length)


@dataclass(frozen=True)
class GroupMean(Estimator):
    """Ψ_i = R_i − mean(R_1 … R_G), optionally divided by their standard deviation.

    With `divide_by_deviation` and 1/|τ_i|, this is GRPO (Shao et al. 2024, "DeepSeekMath", section 4.1). With neither,
    it is Dr. GRPO, which equals (G−1)/G times `LeaveOneOut` (Liu et al. 2025, "Understanding R1-Zero-Like Training",
    section 3). With the deviation and the batch's length, and without the groups whose returns are all equal, it is
    DAPO (Yu et al. 2025, section 3).
    """

    group_size: int = 8
    divide_by_deviation: bool = False
    divide_by_length: LengthDivision = "none"
    skip_equal_groups: bool = False
    needs_critic: ClassVar[bool] = False
    whole_episodes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_group(self)

    def __call__(self, rollout: Rollout, values: Values, gamma: float) -> Credit:
        returns = returns_in_groups(rollout, gamma, self.group_size)
        differs = returns_differ(returns)[:, None]
        weight = jnp.where(differs, returns - returns.mean(axis=1, keepdims=True), 0.0)
        if self.divide_by_deviation:
            weight = weight / jnp.where(differs, returns.std(axis=1, keepdims=True), 1.0)
        counted = differs if self.skip_equal_groups else jnp.ones_like(differs)
        return over_steps(weight, rollout, self.divide_by_length, counted)


def returns_differ(returns: Float[Array, "G K"]) -> Bool[Array, "G"]:
    """Whether the returns of each group differ by more than rounding error."""
    return jnp.ptp(returns, axis=1) > 1e-5 * jnp.max(jnp.abs(returns), axis=1)


@dataclass(frozen=True)
class VTrace(Estimator):
    """Ψ_t = ρ_t (r_t + γ v_{t+1} − V_t), the critic's target v_t = V_t + Σ_b γ^b c_t ⋯ c_{t+b−1} ρ_{t+b} δ_{t+b}.

    ρ = min(ρ̄, π/μ) and c = λ min(c̄, π/μ), for the learner's π and the behaviour policy μ. ρ̄ determines which policy's
    values are learned: those of a policy between μ and π (π itself for ρ̄ = ∞). c̄ and λ determine how fast they are
    learned. On policy and with λ = 1, this is A^n up to the segment's end.
    Source: Espeholt et al. 2018 (IMPALA), section 4.1 and remark 2.
    """

    rho_bar: float = 1.0
    c_bar: float = 1.0
    lambda_: float = 1.0
    needs_critic: ClassVar[bool] = True
    whole_episodes: ClassVar[bool] = False
    corrects: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.rho_bar > 0 and self.c_bar > 0):
            raise UpslopeError(f"VTrace needs ρ̄ > 0 and c̄ > 0, not {self.rho_bar} and {self.c_bar}: they cap π/μ.")
        if not 0 <= self.lambda_ <= 1:
            raise UpslopeError(f"VTrace needs λ in [0, 1], not {self.lambda_}.")

    def __call__(self, rollout: Rollout, values: Values, gamma: float) -> Credit:
        if values.log_prob is None:
            raise UpslopeError(
                "VTrace compares the learner's policy with the one that acted, but values.log_prob is None. Set it to "
                "log π(a_t|s_t) of the learner, [T, N]; on policy, that is rollout.behaviour_log_prob."
            )
        ratio = jnp.where(rollout.valid, jnp.exp(values.log_prob - rollout.behaviour_log_prob), 0.0)
        rho, trace = jnp.minimum(ratio, self.rho_bar), self.lambda_ * jnp.minimum(ratio, self.c_bar)
        delta = td_error(rollout, values, gamma)
        correction = discounted_sum(rho * delta, ends(rollout), gamma * trace)
        following = jnp.concatenate([correction[1:], jnp.zeros_like(correction[:1])])
        weight = rho * (delta + jnp.where(ends(rollout), 0.0, gamma * following))
        return Credit(weight=weight, target=jnp.where(rollout.valid, correction + values.value, 0.0))


@dataclass(frozen=True)
class UnitWeight(Estimator):
    """Ψ_t = 1. With `PolicyGradient` this is maximum likelihood, i.e. imitation of the behaviour policy."""

    needs_critic: ClassVar[bool] = False
    whole_episodes: ClassVar[bool] = False
    is_advantage: ClassVar[bool] = False

    def __call__(self, rollout: Rollout, values: Values, gamma: float) -> Credit:
        weight = rollout.valid.astype(jnp.float32)
        return Credit(weight=weight, target=weight)


def ends(rollout: Rollout) -> Bool[Array, "T N"]:
    """Mask of the steps at which an episode ends. Nothing is carried back to them from the next step."""
    return rollout.terminated | rollout.truncated | ~rollout.valid


def reward_to_go(rollout: Rollout, gamma: float) -> Float[Array, "T N"]:
    """R_t = Σ_{t'≥t} γ^(t'−t) r_t', over the rest of the episode."""
    return discounted_sum(jnp.where(rollout.valid, rollout.reward, 0.0), ends(rollout), gamma)


def td_error(rollout: Rollout, values: Values, gamma: float) -> Float[Array, "T N"]:
    """δ_t = r_t + γ V(s_{t+1}) − V(s_t), where V(s_{t+1}) = 0 if the episode terminated there."""
    # For a constant γ, XLA moves the product inside `where`. It is written there so that the result rounds the same way
    # when γ is an input.
    discounted = jnp.where(rollout.terminated, 0.0, gamma * values.next_value)
    delta = rollout.reward + discounted - values.value
    return jnp.where(rollout.valid, delta, 0.0)


def discounted_sum(x: Float[Array, "T N"], end: Bool[Array, "T N"], discount: Any) -> Float[Array, "T N"]:
    """y_t = x_t + discount · y_{t+1}, with y_{t+1} = 0 at every end. The discount may differ by step, [T, N]."""
    per_step = discount if isinstance(discount, jax.Array) and discount.ndim else None

    def backwards(following: Float[Array, "N"], now: tuple[Array, Array, Array | None]) -> tuple[Array, Array]:
        x_t, end_t, discount_t = now
        y_t = x_t + jnp.where(end_t, 0.0, (discount if discount_t is None else discount_t) * following)
        return y_t, y_t

    return jax.lax.scan(backwards, jnp.zeros_like(x[0]), (x, end, per_step), reverse=True, unroll=UNROLL)[1]


def returns_in_groups(rollout: Rollout, gamma: float, group_size: int) -> Float[Array, "M G"]:
    """R(τ) = Σ_t γ^t r_t of each episode, with one row for each group of G neighbouring columns."""
    if rollout.reward.shape[1] % group_size:
        raise UpslopeError(
            f"{rollout.reward.shape[1]} columns cannot be divided into groups of {group_size}. The number of columns "
            "must be a multiple of group_size."
        )
    return reward_to_go(rollout, gamma)[0].reshape(-1, group_size)


def over_steps(
    weight: Float[Array, "M G"],
    rollout: Rollout,
    divide_by: LengthDivision,
    counted: Bool[Array, "M _"] | bool = True,
) -> Credit:
    """Give each step the weight of its episode. The scale is chosen so that the mean over the batch's steps, which
    gradient descent minimises, equals one of these means over the K `counted` episodes (by default all):

        none:     (1/K) Σ_i Ψ_i Σ_t log π(a_t|s_t), the policy gradient of whole episodes
        episode:  (1/K) Σ_i Ψ_i (1/|τ_i|) Σ_t log π(a_t|s_t)
        batch:    Σ_i Ψ_i Σ_t log π(a_t|s_t) / Σ_i |τ_i|
    """
    length = rollout.valid.sum(axis=0, dtype=jnp.float32)
    is_counted = jnp.broadcast_to(jnp.asarray(counted, jnp.float32), weight.shape).ravel()
    if divide_by == "batch":
        divisor = jnp.sum(length * is_counted)
    else:
        divisor = jnp.sum(is_counted) * (jnp.maximum(length, 1.0) if divide_by == "episode" else 1.0)
    scaled = weight.ravel() * length.sum() / jnp.maximum(divisor, 1.0)
    spread = jnp.where(rollout.valid, scaled, 0.0)
    return Credit(weight=spread, target=spread)


def check_group(estimator: LeaveOneOut | GroupMean) -> None:
    """Reject a group that is too small to be compared."""
    if estimator.group_size < 2:
        raise UpslopeError(
            f"{type(estimator).__name__} compares episodes that share their start, so a group needs at least 2 "
            f"episodes, not {estimator.group_size}. Set --group-size, e.g. to 8."
        )


def advantage_credit(advantage: Float[Array, "T N"], rollout: Rollout, values: Values) -> Credit:
    """Ψ = A; the critic's target is A + V, the estimator's estimate of the return."""
    return Credit(
        weight=jnp.where(rollout.valid, advantage, 0.0),
        target=jnp.where(rollout.valid, advantage + values.value, 0.0),
    )
