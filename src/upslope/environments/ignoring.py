"""Leave out parts of observations by key: those that no network can read, or that an agent is not supposed to see.

A key of a nested Dict is `outer/inner`; parts of a Tuple and components of a vector are counted from 0.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import PRNGKeyArray

from upslope.core.keys import key_of, same_key
from upslope.core.messages import listed
from upslope.core.space_parts import parts_of
from upslope.core.types import Transition
from upslope.environments.base import CompiledEnvironment
from upslope.environments.masks import KEY as MASK
from upslope.errors import UpslopeError

Keep = Callable[[Any], Any]
"""Maps an observation to the same observation without its ignored parts."""


def ignoring(environment: Any, keys: tuple[str, ...], name: str) -> Any:
    """Remove the parts under these keys from the observations of a compiled or host environment.

    Raises:
        UpslopeError: there is no such key, or nothing would be left.
    """
    if not keys:
        return environment
    space = environment.observation_space
    paths = list(paths_in(space))
    known = dict.fromkeys(map(key_of, paths))
    for key in keys:
        if len(named := [path for path in paths if key_of(path) == key]) > 1:
            raise UpslopeError(f"--ignore-observation {shlex.quote(key)}: {same_key(key, named)}")
        if key not in known:
            of_mask = " Networks never read a mask; --no-masks allows forbidden actions." if key == MASK else ""
            has = f"they have the keys {listed(known)}" if known else f"{type(space).__name__} has no parts"
            raise UpslopeError(
                f"The observations of {name} have no `{key}`: {has}. Correct "
                f"--ignore-observation {shlex.quote(key)}.{of_mask}"
            )
    left = kept_space(space, frozenset(keys))
    if left is None:
        raise UpslopeError(
            f"Without {', '.join(keys)}, nothing is left of the observations of {name}. Keep at least one part."
        )
    keep = keeper_of(space, frozenset(keys))
    if isinstance(environment, CompiledEnvironment):
        return CompiledWithout(environment, left, keep)
    return HostWithout(environment, left, keep)


def paths_in(space: gymnasium.Space, outer: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys and indices that lead to every part of a Dict or Tuple at any depth, and to every component."""
    for index, part in parts_of(space):
        yield (*outer, index)
        yield from paths_in(part, (*outer, index))
    for index in range(num_components(space)):
        yield (*outer, index)


def num_components(space: gymnasium.Space) -> int:
    """The length of a vector, whose components can be left out individually; 0 for all other spaces."""
    return space.shape[0] if isinstance(space, spaces.Box) and len(space.shape) == 1 else 0


def kept_components(space: gymnasium.Space, keys: frozenset[str], prefix: str) -> list[int]:
    """The indices of a vector that are not left out."""
    return [index for index in range(num_components(space)) if f"{prefix}{index}" not in keys]


def kept_space(space: gymnasium.Space, keys: frozenset[str], prefix: str = "") -> gymnasium.Space | None:
    """The space without the parts under these keys; None if nothing is left."""
    parts = list(parts_of(space))
    if not parts:
        kept = kept_components(space, keys, prefix)
        if len(kept) == num_components(space):
            return space
        assert isinstance(space, spaces.Box)
        return spaces.Box(space.low[kept], space.high[kept], dtype=space.dtype.type) if kept else None
    left = [
        (index, kept)
        for index, part in parts
        if f"{prefix}{index}" not in keys and (kept := kept_space(part, keys, f"{prefix}{index}/")) is not None
    ]
    if not left:
        return None
    return spaces.Dict(dict(left)) if isinstance(space, spaces.Dict) else spaces.Tuple([part for _, part in left])


def keeper_of(space: gymnasium.Space, keys: frozenset[str], prefix: str = "") -> Keep:
    """A function that removes the parts under these keys from an observation of the space. A malformed observation is
    returned unchanged, so that the error message shows its original form."""
    left = [
        (index, keeper_of(part, keys, f"{prefix}{index}/"))
        for index, part in parts_of(space)
        if f"{prefix}{index}" not in keys and kept_space(part, keys, f"{prefix}{index}/") is not None
    ]
    if isinstance(space, spaces.Dict):
        return lambda x: {i: keep(x[i]) for i, keep in left if i in x} if isinstance(x, Mapping) else x
    if isinstance(space, spaces.Tuple):
        size = len(space.spaces)
        return lambda x: tuple(keep(x[i]) for i, keep in left) if is_tuple(x, size) else x
    kept, length = kept_components(space, keys, prefix), num_components(space)
    if len(kept) == length:
        return lambda x: x
    indices = np.asarray(kept)
    return lambda x: (x if hasattr(x, "at") else np.asarray(x))[indices] if np.shape(x) == (length,) else x


def is_tuple(x: Any, size: int) -> bool:
    """Whether an observation has the form of a Tuple of this size."""
    return isinstance(x, tuple | list) and len(x) == size


class HostWithout(gymnasium.Wrapper):
    """A Gymnasium environment without some parts of its observations."""

    def __init__(self, env: gymnasium.Env, space: gymnasium.Space, keep: Keep):
        super().__init__(env)
        self.observation_space, self.keep = space, keep

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Reset, and remove the ignored parts from the observation."""
        more = {} if options is None else {"options": options}  # not every environment accepts this argument
        return self.answer(self.env.reset(seed=seed, **more), 2)

    def step(self, action: Any) -> Any:
        """Step, and remove the ignored parts from the observation."""
        return self.answer(self.env.step(action), 5)

    def answer(self, answer: Any, size: int) -> Any:
        """Filter the observation in a return value. A malformed value is returned unchanged, so that the error message
        shows its original form."""
        return (self.keep(answer[0]), *answer[1:]) if is_tuple(answer, size) else answer


class CompiledWithout(CompiledEnvironment):
    """A compiled environment without some parts of its observations."""

    def __init__(self, environment: CompiledEnvironment, space: gymnasium.Space, keep: Keep):
        self.environment, self.keep = environment, keep
        self.observation_space, self.action_space = space, environment.action_space
        self.max_episode_steps = environment.max_episode_steps
        self.costly_reset = environment.costly_reset

    def reset(self, key: PRNGKeyArray) -> tuple[Any, Any]:
        """Reset, and remove the ignored parts from the observation."""
        state, observation = self.environment.reset(key)
        return state, self.keep(observation)

    def step(self, key: PRNGKeyArray, state: Any, action: Any) -> tuple[Any, Transition]:
        """Step, and remove the ignored parts from the observation."""
        state, transition = self.environment.step(key, state, action)
        return state, transition._replace(observation=self.keep(transition.observation))

    @property
    def ignores_masks(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.environment.ignores_masks

    def action_mask(self, state: Any) -> Any:
        return self.environment.action_mask(state)

    def episode_info(self, state: Any) -> dict[str, Any]:
        return self.environment.episode_info(state)
