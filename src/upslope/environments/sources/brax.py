"""Brax: robots (Freeman et al. 2021, https://github.com/google/brax).

An environment's `done` means termination. The time limit comes from the library's wrapper, `EpisodeWrapper`, with
1,000 steps by default; here it is upslope's `max_episode_steps`.
"""

from collections.abc import Iterable
from typing import Any

import jax

from upslope.environments.base import CompiledEnvironment
from upslope.environments.sources.wrapping import arrays, box, fitted, module, raw, source_of, space_like, stepped

EPISODE_LENGTH = 1000
"""The default of `brax.envs.create`."""


class Brax(CompiledEnvironment):
    """A robot from Brax, or from MuJoCo Playground, which has the same protocol."""

    def __init__(self, inner: Any, max_episode_steps: int, action_repeat: int = 1):
        self.inner, self.max_episode_steps, self.action_repeat = inner, max_episode_steps, action_repeat
        self.observation_space = space_like(lambda key: inner.reset(key).obs)
        self.action_space = box(-1, 1, (inner.action_size,))

    def reset(self, key: Any) -> tuple[Any, Any]:
        state = self.inner.reset(raw(key))
        return arrays(state), fitted(self.observation_space, state.obs)

    def step(self, key: Any, state: Any, action: Any) -> tuple[Any, Any]:
        def once(state: Any, _: None) -> tuple[Any, Any]:
            state = self.inner.step(state, action)
            return state, state.reward

        state, rewards = jax.lax.scan(once, state, None, self.action_repeat)
        return arrays(state), stepped(self.observation_space, state.obs, rewards.sum(), state.done)


def ids() -> Iterable[str]:
    """The registered names."""
    return module("brax.envs")._envs


def create(name: str, env_kwargs: dict[str, Any]) -> Brax:
    """Create a robot; the arguments are those of its constructor."""
    return Brax(module("brax.envs").get_environment(name, **env_kwargs), EPISODE_LENGTH)


SOURCE = source_of("brax", ids, create)
