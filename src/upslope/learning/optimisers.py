"""The third axis, a small one: which direction a gradient gives, and how numbers change over the budget.

A direction is an Optax transformation before the learning rate, which `descend` applies. An own Optax chain is
complete: its updates are added as they are, and the learning rate is not read.
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
"""The share of the budget that is spent, from 0 to 1."""
Schedule = Callable[[Progress], Float[Array, ""]]
"""Progress → a factor, 1 at the start."""


def linear(progress: Progress) -> Float[Array, ""]:
    """From 1 to 0 in a straight line."""
    return jnp.maximum(1 - progress, 0.0)


def cosine(progress: Progress) -> Float[Array, ""]:
    """From 1 to 0 along half a cosine."""
    return 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))


# Functions of the module, since a task that is handed to a worker process holds them.
SCHEDULES: dict[str, Schedule | None] = {"constant": None, "linear": linear, "cosine": cosine}
"""Name → schedule; None changes nothing."""
DIRECTIONS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adam": lambda: optax.scale_by_adam(eps=1e-5),
    "adamw": lambda: optax.scale_by_adam(eps=1e-5),
    "rmsprop": lambda: optax.scale_by_rms(decay=0.99, eps=1e-5),
    "sgd": optax.identity,
}
"""Name → the direction of a gradient. All treat every number alike, so parameters may be one vector."""


def schedule_of(name: str | Schedule) -> Schedule | None:
    """A schedule by its name, or the user's own."""
    if not isinstance(name, str):
        return name
    if name not in SCHEDULES:
        raise UpslopeError(unknown("schedule", name, SCHEDULES))
    return SCHEDULES[name]


def scheduled(value: float, schedule: Schedule | None, progress: Progress) -> Any:
    """The value at this share of the budget."""
    return value if schedule is None else value * schedule(progress)


@dataclass(frozen=True)
class Schedules:
    """How numbers change over the budget; None: not at all."""

    learning_rate: Schedule | None = None
    epsilon: Schedule | None = None
    entropy_coefficient: Schedule | None = None


CONSTANT = Schedules()


@dataclass(frozen=True)
class Optimiser:
    """How parameters follow a gradient."""

    name: str = "adam"
    max_grad_norm: float = 0.5
    weight_decay: float = 0.0
    """Of adamw: the share of a parameter, times the learning rate, that a step takes away."""
    own: optax.GradientTransformation | None = None
    """A complete Optax chain instead of the named one."""

    @property
    def is_complete(self) -> bool:
        """Whether its updates are added as they are, without a learning rate."""
        return self.own is not None

    def transformation(self) -> optax.GradientTransformation:
        """The chain: clip the global norm, then the direction."""
        if self.own is not None:
            return self.own
        if self.name not in DIRECTIONS:
            raise UpslopeError(unknown("optimiser", self.name, DIRECTIONS))
        parts = [optax.clip_by_global_norm(self.max_grad_norm), DIRECTIONS[self.name]()]
        if self.name == "adamw":
            parts.append(optax.add_decayed_weights(self.weight_decay))
        return optax.chain(*parts)
