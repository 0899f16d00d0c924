"""Craftax: an open world that combines ideas from Crafter and NetHack (Matthews et al. 2024,
https://github.com/MichaelTMatthews/Craftax).

`is_terminal` merges death and victory with the limit `params.max_timesteps`. The environment therefore gets parameters
without that limit, which becomes upslope's `max_episode_steps`. Nothing else in the library reads it.
"""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from gymnasium import spaces

from upslope.environments.base import CompiledEnvironment
from upslope.environments.sources.wrapping import NO_LIMIT, arrays, box, fitted, module, raw, source_of, stepped


class Craftax(CompiledEnvironment):
    """A world with its parameters."""

    costly_reset = True

    def __init__(self, inner: Any, params: Any):
        self.inner, self.max_episode_steps = inner, int(params.max_timesteps)
        self.params = params.replace(max_timesteps=NO_LIMIT)
        space = inner.observation_space(params)
        self.observation_space = box(space.low, space.high, space.shape)
        self.action_space = spaces.Discrete(inner.num_actions)

    def reset(self, key: Any) -> tuple[Any, Any]:
        observation, state = self.inner.reset_env(raw(key), self.params)
        return arrays(state), fitted(self.observation_space, observation)

    def step(self, key: Any, state: Any, action: Any) -> tuple[Any, Any]:
        observation, state, reward, terminated, _ = self.inner.step_env(raw(key), state, action, self.params)
        return arrays(state), stepped(self.observation_space, observation, reward, terminated)


def ids() -> Iterable[str]:
    """The ids of the two games, each observed as symbols or as pixels."""
    return ("Craftax-Symbolic-v1", "Craftax-Pixels-v1", "Craftax-Classic-Symbolic-v1", "Craftax-Classic-Pixels-v1")


def create(name: str, env_kwargs: dict[str, Any]) -> Craftax:
    """Create a world. Arguments that name static parameters, such as the map's size, set those; all others set ordinary
    parameters."""
    inner = module("craftax.craftax_env").make_craftax_env_from_name(name, auto_reset=False)
    static = inner.static_env_params
    named = {field.name for field in fields(type(static))}
    fixed = {key: tuple(x) if isinstance(x, list) else x for key, x in env_kwargs.items() if key in named}
    if fixed:
        inner = type(inner)(static.replace(**fixed))
    return Craftax(inner, inner.default_params.replace(**{k: x for k, x in env_kwargs.items() if k not in named}))


SOURCE = source_of("craftax", ids, create)
