"""gymnax: classic control, MinAtar, bsuite and small mazes (Lange 2022, https://github.com/RobertTLange/gymnax).

Since version 1, `step_env` reports only termination, and `is_truncated` compares the state's time with
`params.max_steps_in_episode`. That limit is upslope's `max_episode_steps`.
"""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from gymnasium import spaces

from upslope.environments.base import CompiledEnvironment
from upslope.environments.sources.wrapping import arrays, box, fitted, module, raw, source_of, stepped
from upslope.errors import UpslopeError


class Gymnax(CompiledEnvironment):
    """A gymnax environment with its parameters."""

    def __init__(self, inner: Any, params: Any):
        self.inner, self.params = inner, params
        self.observation_space = space_of(inner.observation_space(params))
        self.action_space = space_of(inner.action_space(params))
        self.max_episode_steps = int(params.max_steps_in_episode)

    def reset(self, key: Any) -> tuple[Any, Any]:
        observation, state = self.inner.reset_env(raw(key), self.params)
        return arrays(state), fitted(self.observation_space, observation)

    def step(self, key: Any, state: Any, action: Any) -> tuple[Any, Any]:
        observation, state, reward, terminated, _ = self.inner.step_env(raw(key), state, action, self.params)
        return arrays(state), stepped(self.observation_space, observation, reward, terminated)


def space_of(space: Any) -> spaces.Space:
    """Convert a gymnax space to a Gymnasium space. Boards of zeros and ones, as in MinAtar, become bytes."""
    if hasattr(space, "spaces"):
        parts = space.spaces
        if isinstance(parts, dict):
            return spaces.Dict({name: space_of(part) for name, part in parts.items()})
        return spaces.Tuple([space_of(part) for part in parts])
    if hasattr(space, "n"):
        return spaces.Discrete(int(space.n))
    made = box(space.low, space.high, space.shape, space.dtype)
    is_board = len(made.shape) == 3 and made.low.min() >= 0 and made.high.max() <= 1
    return box(0, 1, made.shape, "uint8") if is_board else made


def ids() -> Iterable[str]:
    """The registered ids."""
    return module("gymnax.registration").registered_envs


def create(name: str, env_kwargs: dict[str, Any]) -> Gymnax:
    """Create an environment. Arguments that name its parameters set those; all others go to its constructor."""
    gymnax = module("gymnax")
    if not hasattr(gymnax.environments.environment.Environment, "is_truncated"):
        raise UpslopeError(
            'This gymnax merges termination with the time limit: pip install "upslope[gymnax]" installs 1.0 or newer.'
        )
    named = {field.name for field in fields(type(gymnax.make(name)[1]))}
    inner, params = gymnax.make(name, **{key: value for key, value in env_kwargs.items() if key not in named})
    own = {key: value for key, value in env_kwargs.items() if key in named}
    # An integer in place of a float default would change the dtypes that a step computes.
    own = {key: float(value) if isinstance(getattr(params, key), float) else value for key, value in own.items()}
    return Gymnax(inner, params.replace(**own))


SOURCE = source_of("gymnax", ids, create)
