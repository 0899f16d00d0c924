"""The data types that upslope's packages exchange.

Axis letters, always time-major: S seeds, T time, N environments (columns), B samples (T·N, shuffled).
Facts (`Rollout`) are separate from estimates (`Values`, `Credit`): a rollout holds only what happened, so any recorded
file can be turned into one.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from upslope.core.arrays import pytree

Action = Shaped[Array, "..."]
"""An action as the policy samples it, in the environment's own units. A Box action is stored before it is clipped to
its bounds or squashed by tanh. Several parts form one vector of 32-bit floats."""
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


@pytree
class Successors:
    """The true successors of T·N steps, stored only where s_{t+1} is not the next row's observation, i.e. where an
    episode ends and in the last row. Storing all of them would store every image twice.
    """

    observation: Any
    """[K, …]"""
    place: Any
    """[K]: the index t·N + n of each successor, in a rollout of N columns; T·N or more for padding."""

    def after(self, now: Any, ended: Any) -> Any:
        """The values at s_{t+1}, [T, N, …] for each array: the next row of `now` [T, N, …], or `ended` [K, …] for the
        successors stored here. Both arguments hold observations, or quantities computed from them, such as V(s)."""

        def one(x: Any, other: Any) -> Array:
            following = jnp.concatenate([x[1:], x[-1:]]).reshape(-1, *x.shape[2:])
            return following.at[self.place].set(other, mode="drop").reshape(x.shape)

        return jax.tree.map(one, now, ended)

    def first_columns(self, shape: tuple[int, ...], count: int) -> "Successors":
        """The successors in the first columns of a rollout [T, N]."""
        t, n = self.place // shape[1], self.place % shape[1]
        return Successors(self.observation, jnp.where(n < count, t * count + n, shape[0] * count))


class Rollout(NamedTuple):
    """The facts of T steps in each of N columns, taken by the behaviour policy μ.

    `next_observation` is the true successor s_{t+1}, even at the end of an episode, never the first observation of the
    next episode. For large observations on the host, it is a `Successors` (see `successor_of`). `behaviour_log_prob` is
    log μ(a_t|s_t) as computed when the action was taken. `valid` marks the steps that happened; the others are padding
    and have no effect. `action_mask` marks the choices allowed in s_t, in the order of the action head; it is None if
    the environment does not mask actions.
    """

    observation: Shaped[Array, "T N ..."]
    action: Shaped[Array, "T N ..."]
    reward: Float[Array, "T N"]
    terminated: Bool[Array, "T N"]
    truncated: Bool[Array, "T N"]
    next_observation: Shaped[Array, "T N ..."] | Successors
    behaviour_log_prob: Float[Array, "T N"]
    valid: Bool[Array, "T N"]
    action_mask: Bool[Array, "T N M"] | None = None


def successor_of(rollout: Rollout) -> Any:
    """The true successor of every step in full, [T, N, …] for each array of the observation."""
    stored = rollout.next_observation
    return stored.after(rollout.observation, stored.observation) if isinstance(stored, Successors) else stored


def first_columns_of(rollout: Rollout, count: int) -> Rollout:
    """The first columns of a rollout."""
    stored = rollout.next_observation
    if not isinstance(stored, Successors):
        return jax.tree.map(lambda x: x[:, :count], rollout)
    kept = jax.tree.map(lambda x: x[:, :count], rollout._replace(next_observation=None))
    return kept._replace(next_observation=stored.first_columns(rollout.reward.shape, count))


class Values(NamedTuple):
    """The learner's estimates for a rollout: V(s_t) and V(s_{t+1}), both from true observations."""

    value: Float[Array, "T N"]
    next_value: Float[Array, "T N"]
    log_prob: Float[Array, "T N"] | None = None
    """log π(a_t|s_t) of the learner before the update; set only for an estimator that `corrects`."""


class Credit(NamedTuple):
    """An estimator's output: Ψ_t, the weight on ∇log π(a_t|s_t), and the critic's target."""

    weight: Float[Array, "T N"]
    target: Float[Array, "T N"]


def host_rollout(fields: Mapping[str, Any]) -> Rollout:
    """Build a rollout from NumPy arrays, keyed by field name. JAX accepts them unchanged."""
    return Rollout(**cast(dict[str, Any], fields))
