"""Jumanji: puzzles, packing and routing (Bonnet et al. 2023, https://github.com/instadeepai/jumanji).

The last step of an episode looks the same at a true end and at the environment's `time_limit`. Each step is therefore
also taken by a copy without that limit: an end there is `terminated`, and the limit is upslope's `max_episode_steps`.
The compiler merges the computations that both share. The `action_mask` of an observation becomes the mask. If it covers
combinations of components, as in Minesweeper, the action is one choice among all combinations.
"""

import copy
from collections.abc import Iterable
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from upslope.environments.base import CompiledEnvironment
from upslope.environments.masks import KEY
from upslope.environments.sources.wrapping import (
    NO_LIMIT,
    arrays,
    box,
    fitted,
    is_board,
    module,
    raw,
    source_of,
    stepped,
)
from upslope.errors import UpslopeError

MOST_KINDS = 64
"""The largest number of values that are encoded one-hot; counters with more values are treated as numbers."""


class Jumanji(CompiledEnvironment):
    """An environment for one player. Its state is the library's, which includes a key, plus the mask of legal
    actions."""

    def __init__(self, inner: Any):
        self.inner, self.max_episode_steps = inner, getattr(inner, "time_limit", None)
        self.limitless = copy.copy(inner)
        if self.max_episode_steps is not None:
            self.limitless.time_limit = NO_LIMIT
        self.observation_space = space_of(inner.observation_spec)
        self.combined, self.action_space = actions_of(inner)
        masks = parts_of(inner.observation_spec).get(KEY)
        self.has_mask = masks is not None and prod(masks.shape) == num_choices(self.action_space)

    def reset(self, key: Any) -> tuple[Any, Any]:
        state, now = self.inner.reset(raw(key))
        return (arrays(state), self.mask_of(now.observation)), self.observed(now.observation)

    def step(self, key: Any, state: Any, action: Any) -> tuple[Any, Any]:
        if self.combined:
            action = jnp.stack(jnp.unravel_index(action, self.combined)).astype(jnp.int32)
        after, now = self.inner.step(state[0], action)
        _, unlimited = self.limitless.step(state[0], action)
        transition = stepped(spaces.Dict(), {}, now.reward, unlimited.last())
        mask = self.mask_of(now.observation)
        return (arrays(after), mask), transition._replace(observation=self.observed(now.observation))

    def action_mask(self, state: Any) -> Any:
        return state[1]

    def mask_of(self, observation: Any) -> Any:
        """The legal choices as one array; None if the library provides no mask that fits the actions."""
        return jnp.ravel(observation.action_mask) if self.has_mask else None

    def observed(self, observation: Any) -> Any:
        """An observation as an element of its space."""
        return fitted(self.observation_space, as_dict(self.inner.observation_spec, observation))


def as_dict(spec: Any, observation: Any) -> Any:
    """An observation as dictionaries instead of the library's tuples."""
    parts = parts_of(spec)
    return {name: as_dict(part, getattr(observation, name)) for name, part in parts.items()} if parts else observation


def parts_of(spec: Any) -> dict[str, Any]:
    """The parts of a nested specification; empty for an array."""
    specs = module("jumanji.specs")
    if isinstance(spec, specs.Array):
        return {}
    return {name: part for name, part in vars(spec).items() if isinstance(part, specs.Spec)}


def space_of(spec: Any) -> spaces.Space:
    """The space of a specification: boards of integers become bytes, choices among a few values become Discrete, and
    everything else becomes numbers."""
    specs = module("jumanji.specs")
    if parts := parts_of(spec):
        return spaces.Dict({name: space_of(part) for name, part in parts.items() if name != KEY})
    shape, dtype = tuple(spec.shape), np.dtype(spec.dtype)
    # The library's step counter can equal the limit, which is one more than its specification allows.
    if isinstance(spec, specs.DiscreteArray) and spec.num_values <= MOST_KINDS and spec.name != "step_count":
        return spaces.Discrete(int(spec.num_values))
    bounds = (spec.minimum, spec.maximum) if isinstance(spec, specs.BoundedArray) else (-np.inf, np.inf)
    low, high = (np.asarray(x, np.float64) for x in bounds)
    is_counted = dtype.kind in "biu" and np.isfinite([low.min(), high.max()]).all()
    if is_counted and low.min() >= 0 and high.max() <= 255 and len(shape) == 2 and is_board(shape):
        return box(0, high.max(), shape, np.uint8)
    if dtype.kind == "b":
        return spaces.MultiBinary(shape)
    return box(low, high, shape, np.int32 if is_counted else np.float32)


def actions_of(inner: Any) -> tuple[tuple[int, ...], spaces.Space]:
    """The number of values of each component if they are combined into one choice, otherwise (); and the action
    space."""
    specs = module("jumanji.specs")
    spec, masks = inner.action_spec, parts_of(inner.observation_spec).get(KEY)
    if isinstance(spec, specs.DiscreteArray):
        return (), spaces.Discrete(int(spec.num_values))
    if not isinstance(spec, specs.MultiDiscreteArray):
        low, high = (np.broadcast_to(np.asarray(x), spec.shape) for x in (spec.minimum, spec.maximum))
        is_counted = np.dtype(spec.dtype).kind in "iu"
        return (), spaces.MultiDiscrete(high - low + 1, start=low) if is_counted else box(low, high, spec.shape)
    sizes = tuple(np.ravel(spec.num_values).tolist())
    if masks is not None and tuple(masks.shape) == sizes:
        return sizes, spaces.Discrete(prod(sizes))
    return (), spaces.MultiDiscrete(np.asarray(spec.num_values))


def num_choices(space: spaces.Space) -> int:
    """The number of choices that a mask allows or forbids."""
    return int(space.n) if isinstance(space, spaces.Discrete) else int(np.sum(getattr(space, "nvec", 0)))


def ids() -> Iterable[str]:
    """The registered ids."""
    return module("jumanji").registered_environments()


def create(name: str, env_kwargs: dict[str, Any]) -> Jumanji:
    """Create an environment; the arguments are those of its constructor."""
    inner = module("jumanji").make(name, **env_kwargs)
    if inner.reward_spec.shape != ():
        raise UpslopeError(f"jumanji:{name} rewards each of several agents, but upslope trains one.")
    return Jumanji(inner)


SOURCE = source_of("jumanji", ids, create)
