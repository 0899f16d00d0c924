"""Axis 2: the loss that the policy minimises, which may also limit how far one update moves the policy.

An objective maps a batch of weighted actions to one loss per sample. It may have state, like the adaptive β. To write
your own, subclass `Objective` and define `loss`.

There are two old policies: the ratio is π_θ over the *recorded* behaviour policy μ, whereas the KL divergence is from
the learner's own policy at the start of the update. On policy, the two coincide.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from upslope.core.fields import require_field_types
from upslope.core.inputs import with_checked_sample
from upslope.errors import UpslopeError

ObjectiveState = Float[Array, "..."]
"""β for `KLPenalty`; zero for all other objectives."""


class Sample(NamedTuple):
    """The inputs of an objective, for each of B actions."""

    log_prob: Float[Array, "B"]
    """log π_θ(a|s); only this field and `kl` carry a gradient."""
    behaviour_log_prob: Float[Array, "B"]
    """log μ(a|s), as recorded."""
    weight: Float[Array, "B"]
    """Ψ, the weight of the action."""
    kl: Float[Array, "B"]
    """KL(π_old(·|s) ‖ π_θ(·|s)) in nats."""


class Objective(ABC):
    """Base class of objectives. Subclasses are frozen dataclasses whose fields are the hyperparameters."""

    needs_behaviour: ClassVar[bool] = True
    """Whether the objective reads `behaviour_log_prob`; if so, recorded data without it are rejected."""

    state_name: ClassVar[str | None] = None
    """Name of the state among the metrics `objective/…`; None if there is no state."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "loss" in vars(cls):
            cls.loss = with_checked_sample(cls.loss)

    def __post_init__(self) -> None:
        require_field_types(self)

    def init(self) -> ObjectiveState:
        """The state at the start of training."""
        return jnp.float32(0.0)

    @abstractmethod
    def loss(self, state: ObjectiveState, sample: Sample) -> Float[Array, "B"]:
        """The loss of each sample; gradient descent minimises its mean."""

    def adapt(self, state: ObjectiveState, kl: Float[Array, ""]) -> ObjectiveState:
        """The state for the next iteration, given the mean KL divergence of this update."""
        return state

    def is_outside(self, ratio: Float[Array, "..."]) -> Bool[Array, "..."]:
        """Mask of the ratios that count as clipped in the clip fraction: those outside [0.8, 1.2], unless the objective
        clips."""
        return jnp.abs(ratio - 1) > 0.2


@dataclass(frozen=True)
class PolicyGradient(Objective):
    """L = −Ψ log π_θ(a|s): make actions with positive weight more probable."""

    needs_behaviour: ClassVar[bool] = False

    def loss(self, state: ObjectiveState, sample: Sample) -> Float[Array, "B"]:
        return -sample.weight * sample.log_prob


@dataclass(frozen=True)
class ImportanceSampled(Objective):
    """L = −Ψ π_θ(a|s)/μ(a|s): correct for actions taken by another policy (Schulman et al. 2017, eq. 6)."""

    def loss(self, state: ObjectiveState, sample: Sample) -> Float[Array, "B"]:
        return -sample.weight * importance_ratio(sample)


@dataclass(frozen=True)
class KLPenalty(Objective):
    """L = −Ψ π_θ/μ + β KL(π_old‖π_θ)  (Schulman et al. 2017, eq. 8).

    With a `target`, β adapts after every update: it is halved if the mean KL is below target/1.5, and doubled
    if it is above 1.5·target. With `target=None` it is fixed. Usual: β 0.3 to 10, target 0.003 to 0.03 nats.
    """

    beta: float = 1.0
    target: float | None = 0.01
    state_name: ClassVar[str | None] = "beta"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta >= 0:
            raise UpslopeError(f"KLPenalty needs β ≥ 0, not {self.beta}: a negative penalty rewards divergence.")
        if self.target is not None and not self.target > 0:
            raise UpslopeError(f"KLPenalty needs a target KL > 0, not {self.target}. Use None for a fixed β.")
        if self.target is not None and self.beta == 0:
            raise UpslopeError("KLPenalty cannot adapt β from 0: doubling 0 gives 0. Start with β > 0.")

    def init(self) -> ObjectiveState:
        return jnp.float32(self.beta)

    def loss(self, state: ObjectiveState, sample: Sample) -> Float[Array, "B"]:
        return -sample.weight * importance_ratio(sample) + state * sample.kl

    def adapt(self, state: ObjectiveState, kl: Float[Array, ""]) -> ObjectiveState:
        if self.target is None:
            return state
        halve, double = kl < self.target / 1.5, kl > self.target * 1.5
        adapted = jnp.where(halve, state / 2, jnp.where(double, state * 2, state))
        # At 0 or infinity, β could never recover.
        return jnp.clip(adapted, 1e-6, 1e6)


@dataclass(frozen=True)
class Clip(Objective):
    """L = −min(Ψ ρ, Ψ clip(ρ, 1−ε, 1+ε)), ρ = π_θ/μ  (Schulman et al. 2017, eq. 7).

    With `epsilon_high` the upper bound is 1 + ε_high, so that improbable actions can gain more (Yu et al. 2025, DAPO,
    section 3.1: 0.2 and 0.28). Usual: ε 0.1 to 0.3.
    """

    epsilon: float = 0.2
    epsilon_high: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.epsilon < 1:
            raise UpslopeError(f"Clip needs 0 < ε < 1, not {self.epsilon}: the ratio is clipped to [1−ε, 1+ε].")
        if self.epsilon_high is not None and not self.epsilon_high > 0:
            raise UpslopeError(f"Clip needs ε high > 0, not {self.epsilon_high}: the upper bound is 1 + ε high.")

    def is_outside(self, ratio: Float[Array, "..."]) -> Bool[Array, "..."]:
        """Mask of the ratios that are clipped for one of the two signs of the weight."""
        if self.epsilon_high is None:
            return jnp.abs(ratio - 1) > self.epsilon
        return (ratio < 1 - self.epsilon) | (ratio > 1 + self.epsilon_high)

    def loss(self, state: ObjectiveState, sample: Sample) -> Float[Array, "B"]:
        ratio = importance_ratio(sample)
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        clipped = jnp.clip(ratio, 1 - self.epsilon, 1 + high)
        return -jnp.minimum(ratio * sample.weight, clipped * sample.weight)


@dataclass(frozen=True)
class DualClip(Clip):
    """`Clip` with its loss capped at −c Ψ for Ψ < 0: L = −max(min(Ψ ρ, Ψ clip(ρ, 1−ε, 1+ε)), c Ψ).

    Otherwise, a ratio far above 1 with a negative weight gives an unbounded loss, e.g. if another policy chose the
    action (Ye et al. 2020, "Mastering Complex Control in MOBA Games with Deep Reinforcement Learning"). Usual: c = 3.
    """

    c: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.c > 1 + self.epsilon:
            raise UpslopeError(f"DualClip needs c > 1 + ε = {1 + self.epsilon:g}, not {self.c}: Clip acts below that.")

    def loss(self, state: ObjectiveState, sample: Sample) -> Float[Array, "B"]:
        clipped = super().loss(state, sample)
        return jnp.where(sample.weight < 0, jnp.minimum(clipped, -self.c * sample.weight), clipped)


@dataclass(frozen=True)
class SPO(Objective):
    """L = −(Ψ ρ − |Ψ| (ρ − 1)² / 2ε), ρ = π_θ/μ: a parabola with its peak at ρ = 1 + ε for Ψ > 0, and at 1 − ε for Ψ <
    0.

    Where `Clip` has no gradient, outside [1−ε, 1+ε], this objective pulls the ratio back (Xie et al. 2024, "Simple
    Policy Optimization"). Usual: ε = 0.2.
    """

    epsilon: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.epsilon < 1:
            raise UpslopeError(f"SPO needs 0 < ε < 1, not {self.epsilon}: it pulls the ratio to 1 ± ε.")

    def is_outside(self, ratio: Float[Array, "..."]) -> Bool[Array, "..."]:
        """Mask of the ratios that are past the parabola's peak for one of the two signs of the weight."""
        return jnp.abs(ratio - 1) > self.epsilon

    def loss(self, state: ObjectiveState, sample: Sample) -> Float[Array, "B"]:
        ratio = importance_ratio(sample)
        return -(sample.weight * ratio - jnp.abs(sample.weight) * (ratio - 1) ** 2 / (2 * self.epsilon))


@dataclass(frozen=True)
class NaturalGradient(Objective):
    """L = −Ψ π_θ/μ, descended along F⁻¹∇L rather than ∇L: θ ← θ − αx, x = F⁻¹∇L, with α such that ½ (αx)ᵀF(αx) = δ.

    F = E[∇² KL(π_old‖π_θ)] + damping · I is the Fisher matrix of the policy, so a step has the same length in KL
    however the policy is parametrised. Each batch gives one step (Kakade 2001, "A Natural Policy Gradient"). The
    damping, and the conjugate gradients that solve Fx = ∇L, follow Schulman et al. 2015, appendix C. Usual: δ 0.001 to
    0.05 nats.
    """

    delta: float = 0.01
    damping: float = 0.1
    conjugate_gradient_iterations: int = 15

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.delta > 0:
            raise UpslopeError(f"{type(self).__name__} needs δ > 0, not {self.delta}: δ is the length of a step.")
        if not self.damping >= 0:
            raise UpslopeError(f"{type(self).__name__} needs a damping ≥ 0, not {self.damping}.")
        if self.conjugate_gradient_iterations < 1:
            raise UpslopeError(f"{type(self).__name__} needs at least 1 conjugate gradient iteration.")

    def loss(self, state: ObjectiveState, sample: Sample) -> Float[Array, "B"]:
        return -sample.weight * importance_ratio(sample)


@dataclass(frozen=True)
class TrustRegion(NaturalGradient):
    """The step of `NaturalGradient`, shortened until the loss falls and KL(π_old‖π_θ) ≤ δ (Schulman et al. 2015, TRPO).

    It tries up to `backtracks` lengths, 1, 0.8, 0.8², … times the step, and takes no step if none of them qualifies.
    """

    backtracks: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backtracks < 1:
            raise UpslopeError(f"TrustRegion needs at least 1 length to try, not {self.backtracks}.")


def importance_ratio(sample: Sample) -> Float[Array, "..."]:
    """ρ = π_θ(a|s) / μ(a|s)."""
    return jnp.exp(sample.log_prob - sample.behaviour_log_prob)


def kl_estimate(
    estimator: str, log_prob: Float[Array, "..."], reference_log_prob: Float[Array, "..."]
) -> Float[Array, "..."]:
    """An estimate of KL(π‖π_ref) from one action a ~ π, with x = log π_ref(a|s) − log π(a|s).

        k1 = −x             unbiased, with a large variance
        k2 = x²/2           biased, with a small variance
        k3 = e^x − 1 − x    unbiased, never negative

    These properties hold for the values but not for the gradients. As a term of a loss, k1 has the mean gradient
    E[∇log π] = 0, so it teaches nothing; k2 has ∇KL(π‖π_ref), and k3 has ∇KL(π_ref‖π). Source: Schulman 2020,
    "Approximating KL Divergence"; GRPO uses k3.
    """
    x = reference_log_prob - log_prob
    return {"k1": lambda: -x, "k2": lambda: x**2 / 2, "k3": lambda: jnp.expm1(x) - x}[estimator]()
