"""The data types that packages exchange.

Axis letters, time-major always: S seeds, T time, N environments (columns), B samples (T·N, shuffled).
Facts (`Rollout`) are separate from estimates (`Values`, `Credit`): a rollout holds only what happened, so any
recorded file can be one.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from jaxtyping import Array, Bool, Float, Shaped

Observation = Shaped[Array, "..."]
"""An observation in its space's own shape and dtype."""
Action = Shaped[Array, "..."]
"""An action as the policy samples it: in the environment's own units, a Box before it is clipped to its bounds, or
before tanh squashes it; several parts are one vector of 32-bit floats."""
Metrics = dict[str, Float[Array, "..."]]
"""Name → value, e.g. `policy/kl`."""


class Transition(NamedTuple):
    """The result of one environment step: the successor observation, the reward, and why the episode ended.

    `terminated`: a terminal state was reached (V(s_{t+1}) = 0). `truncated`: the episode was cut off, e.g. by a time
    limit, and V(s_{t+1}) still counts.
    """

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any


class Rollout(NamedTuple):
    """The facts of T steps in each of N columns, taken by the behaviour policy μ.

    `next_observation` is the true successor s_{t+1}, also at the end of an episode, never the first observation
    of the next one. `behaviour_log_prob` is log μ(a_t|s_t) as computed when the action was taken. `valid` marks
    the steps that happened; the others are padding and have no effect. `action_mask` marks the choices allowed in s_t,
    in the order of the action head; None if the environment does not mask actions.
    """

    observation: Shaped[Array, "T N ..."]
    action: Shaped[Array, "T N ..."]
    reward: Float[Array, "T N"]
    terminated: Bool[Array, "T N"]
    truncated: Bool[Array, "T N"]
    next_observation: Shaped[Array, "T N ..."]
    behaviour_log_prob: Float[Array, "T N"]
    valid: Bool[Array, "T N"]
    action_mask: Bool[Array, "T N M"] | None = None


class Values(NamedTuple):
    """The critic's estimates for a rollout: V(s_t) and V(s_{t+1}), both from true observations."""

    value: Float[Array, "T N"]
    next_value: Float[Array, "T N"]


class Credit(NamedTuple):
    """An estimator's output: Ψ_t, the weight on ∇log π(a_t|s_t), and the critic's target."""

    weight: Float[Array, "T N"]
    target: Float[Array, "T N"]


def host_rollout(fields: Mapping[str, Any]) -> Rollout:
    """Build a rollout from NumPy arrays by field name; JAX accepts them unchanged."""
    return Rollout(**cast(dict[str, Any], fields))
