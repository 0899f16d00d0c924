"""Represent a training state as a flat list of arrays, and compile one seed's learning into a program that operates on
such lists.

Walking through a model's nested parts in Python can take longer than a short update of a small network. Between the
iterations of a chunk, a state is therefore kept as a list of its arrays, and its parts are looked up by position.
"""

from collections.abc import Callable, Sequence
from dataclasses import field
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from upslope.core.arrays import STATIC, pytree, raw, typed
from upslope.core.types import Metrics
from upslope.errors import UpslopeError
from upslope.learning.health import unpack_health
from upslope.learning.iteration import TrainState
from upslope.models.agent import Agent

Flat = list[Any]
"""The arrays of a `TrainState` in the order of its leaves. Random keys are represented by their data."""


class Layout:
    """The position of each array of a `TrainState` in a flat list."""

    def __init__(self, state: TrainState):
        leaves, self.structure = jax.tree.flatten(state)
        self.like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in leaves]
        places = self.structure.unflatten(range(len(self.like)))
        self.steps: int = places.steps
        self.agent, self.agent_structure = jax.tree.flatten(places.learner.agent)
        self.memory = jax.tree.leaves(places.memory)

    def flat(self, state: TrainState) -> Flat:
        """Return the arrays of a state of this structure."""
        leaves, structure = jax.tree.flatten(state)
        if structure != self.structure:
            raise UpslopeError(
                "An update changed the structure of the learner's state, so no further update is "
                "possible. A custom optimiser, "
                "bonus or model must return a state with the same structure as the one that it was given."
            )
        return [raw(x) for x in leaves]

    def whole(self, flat: Sequence[Any]) -> TrainState:
        """Return the state that a flat list represents: the inverse of `flat`."""
        return self.structure.unflatten([typed(x, like) for x, like in zip(flat, self.like, strict=True)])

    def agents_on_host(self, seeds: Sequence[Flat]) -> Agent:
        """Return the agents [S] of several seeds' states as NumPy arrays."""
        return self.agent_structure.unflatten([np.array([flat[i] for flat in seeds]) for i in self.agent])

    def steps_of(self, seeds: Sequence[Flat]) -> np.ndarray:
        """Return the step counters [S] of several seeds' states."""
        return np.array([int(flat[self.steps]) for flat in seeds], np.int64)

    def after_steps(self, flat: Flat, count: int) -> Flat:
        """Return the list with its step counter advanced by `count` and everything else unchanged."""
        steps = np.asarray(flat[self.steps])
        return [steps + steps.dtype.type(count) if i == self.steps else x for i, x in enumerate(flat)]

    def with_memory(self, flat: Flat, memory: Sequence[Any]) -> Flat:
        """Return the list with the memory's arrays replaced."""
        changed = dict(zip(self.memory, memory, strict=True))
        return [changed.get(i, x) for i, x in enumerate(flat)]


@pytree
class Packed:
    """Metrics packed into one vector, since fetching each number separately takes longer than computing it."""

    values: Any
    """The concatenated numbers of all metrics [K]."""
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = field(metadata=STATIC)
    """The name and the shape of each metric."""


def packed(metrics: Metrics) -> Packed:
    """Pack the metrics, which are 32-bit floats, into one vector."""
    named = sorted(metrics.items())
    values = [jnp.ravel(x).astype(jnp.float32) for _, x in named]
    return Packed(jnp.concatenate([jnp.zeros(0), *values]), tuple((name, jnp.shape(x)) for name, x in named))


def unpacked(rows: Sequence[Sequence[Packed | None]]) -> dict[str, np.ndarray]:
    """Unpack the metrics of I iterations of S seeds into arrays [S, I] by name, with nan where a seed was idle."""
    some = next((one for row in rows for one in row if one is not None), None)
    if some is None:
        return {}
    idle = np.full(some.values.shape, np.nan, np.float32)
    values = np.array([[idle if one is None else one.values for one in row] for row in rows]).swapaxes(0, 1)
    metrics, start = {}, 0
    for name, shape in some.shapes:
        end = start + prod(shape)
        metrics[name] = values[..., start:end].reshape(*values.shape[:2], *shape)
        start = end
    return unpack_health(metrics)


def on_flat(learn: Callable[..., tuple[TrainState, Metrics]], layout: Layout) -> Callable[..., tuple[Flat, Packed]]:
    """Convert `learn(state, …)` to a function of a state's arrays, which can be compiled."""

    def run(flat: Flat, *arguments: Any) -> tuple[Flat, Packed]:
        state, metrics = learn(layout.whole(flat), *arguments)
        return layout.flat(state), packed(metrics)

    return run
