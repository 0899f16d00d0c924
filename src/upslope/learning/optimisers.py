"""Optimisers, which compute an update direction from a gradient, and schedules over the budget.

A direction is an Optax transformation without the learning rate, which `descend` applies. A user's Optax chain is
complete, so its updates are added unchanged, and the learning rate is not used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from upslope.core.messages import unknown
from upslope.errors import UpslopeError

Progress = Float[Array, ""]
"""The fraction of the budget spent, from 0 to 1."""
Schedule = Callable[[Progress], Float[Array, ""]]
"""Progress → a factor, 1 at the start."""


def linear(progress: Progress) -> Float[Array, ""]:
    """A factor that falls linearly from 1 to 0."""
    return jnp.maximum(1 - progress, 0.0)


def cosine(progress: Progress) -> Float[Array, ""]:
    """A factor that falls from 1 to 0 along half a cosine."""
    return 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))


# Schedules are module-level functions, because the tasks sent to worker processes contain them and must be picklable.
SCHEDULES: dict[str, Schedule | None] = {"constant": None, "linear": linear, "cosine": cosine}
"""Name → schedule; None means constant."""
DIRECTIONS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adam": lambda: optax.scale_by_adam(eps=1e-5),
    "adamw": lambda: optax.scale_by_adam(eps=1e-5),
    "rmsprop": lambda: optax.scale_by_rms(decay=0.99, eps=1e-5),
    "sgd": optax.identity,
}
"""Name → update direction. All directions are elementwise, so the parameters may form a single vector."""


def schedule_of(name: str | Schedule) -> Schedule | None:
    """Look up a schedule by name. A user's own schedule is returned unchanged."""
    if not isinstance(name, str):
        return name
    if name not in SCHEDULES:
        raise UpslopeError(unknown("schedule", name, SCHEDULES))
    return SCHEDULES[name]


def scheduled(value: float, schedule: Schedule | None, progress: Progress) -> Any:
    """The value of a setting at this point in the budget."""
    return value if schedule is None else value * schedule(progress)


@dataclass(frozen=True)
class Schedules:
    """Schedules of settings over the budget; None means constant."""

    learning_rate: Schedule | None = None
    epsilon: Schedule | None = None
    entropy_coefficient: Schedule | None = None


CONSTANT = Schedules()


@dataclass(frozen=True)
class Optimiser:
    """An optimiser: gradient clipping followed by a named direction, or a user's complete Optax chain."""

    name: str = "adam"
    max_grad_norm: float = 0.5
    weight_decay: float = 0.0
    """For adamw: each step subtracts the product of this, the learning rate and the parameter."""
    own: optax.GradientTransformation | None = None
    """A complete Optax chain that replaces the named one."""

    @property
    def is_complete(self) -> bool:
        """Whether updates are added unchanged, without a learning rate."""
        return self.own is not None

    def transformation(self) -> optax.GradientTransformation:
        """The Optax chain: clip the global norm, then apply the direction."""
        if self.own is not None:
            return self.own
        if self.name not in DIRECTIONS:
            raise UpslopeError(unknown("optimiser", self.name, DIRECTIONS))
        parts = [optax.clip_by_global_norm(self.max_grad_norm), DIRECTIONS[self.name]()]
        if self.name == "adamw":
            # Optax tests whether a float is 0, which it cannot do for an input of the program (`learning/varied.py`).
            decay = self.weight_decay if type(self.weight_decay) is float else jnp.float32(self.weight_decay)
            parts.append(optax.add_decayed_weights(decay))
        return optax.chain(*parts)
