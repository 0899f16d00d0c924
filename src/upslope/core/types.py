"""The data that flows between the rooms.

Axis letters, time-major always: S seeds, T time, N environments (columns), B samples (T·N, shuffled).
Facts (`Rollout`) are kept apart from estimates (`Values`, `Credit`): a rollout holds only what happened, so a
file recorded by anybody is one too.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from jaxtyping import Array, Bool, Float, Shaped

Observation = Shaped[Array, "..."]
"""An observation in its space's own shape and dtype."""
Action = Shaped[Array, "..."]
"""An action in the environment's own units; a Box action is stored before it is clipped to its bounds."""
Metrics = dict[str, Float[Array, "..."]]
"""Name → value, e.g. `policy/kl`."""


class Transition(NamedTuple):
    """What a world answers to one action: the successor observation, the reward, and why the episode ended.

    `terminated`: the world itself ended (V(s_{t+1}) = 0). `truncated`: somebody stopped watching (V goes on).
    """

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any


class Rollout(NamedTuple):
    """What happened: T steps in each of N columns, by the behaviour policy μ. Facts only.

    `next_observation` is the true successor s_{t+1}, also at the end of an episode, never the first observation
    of the next one. `behaviour_log_prob` is log μ(a_t|s_t) as it was when the action was taken. `valid` marks
    the steps that happened; the others are padding and change nothing.
    """

    observation: Shaped[Array, "T N ..."]
    action: Shaped[Array, "T N ..."]
    reward: Float[Array, "T N"]
    terminated: Bool[Array, "T N"]
    truncated: Bool[Array, "T N"]
    next_observation: Shaped[Array, "T N ..."]
    behaviour_log_prob: Float[Array, "T N"]
    valid: Bool[Array, "T N"]


class Values(NamedTuple):
    """The critic's estimates for a rollout: V(s_t) and V(s_{t+1}), both from true observations."""

    value: Float[Array, "T N"]
    next_value: Float[Array, "T N"]


class Credit(NamedTuple):
    """What an estimator says: Ψ_t, the weight on ∇log π(a_t|s_t), and the target the critic is to learn."""

    weight: Float[Array, "T N"]
    target: Float[Array, "T N"]


def host_rollout(fields: Mapping[str, Any]) -> Rollout:
    """A rollout of NumPy arrays, by the names of its fields; JAX takes them as they are."""
    return Rollout(**cast(dict[str, Any], fields))
