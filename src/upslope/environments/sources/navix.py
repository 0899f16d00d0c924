"""NAVIX: MiniGrid's worlds (Pignatelli et al. 2024, https://github.com/epignatelli/navix).

A step's `step_type` is 1 at the limit `max_steps`, which is upslope's `max_episode_steps`, and 2 at a true end.
"""

from collections.abc import Iterable
from typing import Any

from gymnasium import spaces

from upslope.environments.base import CompiledEnvironment
from upslope.environments.sources.wrapping import arrays, box, fitted, module, raw, source_of, stepped

TERMINATED = 2
"""`StepType.TERMINATION`."""


class Navix(CompiledEnvironment):
    """A grid world. Its state is the library's time step."""

    def __init__(self, inner: Any):
        self.inner, self.max_episode_steps = inner, int(inner.max_steps)
        self.observation_space = box(0, 255, inner.observation_space.shape, "uint8")
        self.action_space = spaces.Discrete(int(inner.action_space.maximum) + 1)

    def reset(self, key: Any) -> tuple[Any, Any]:
        now = self.inner.reset(raw(key))
        return arrays(now), fitted(self.observation_space, now.observation)

    def step(self, key: Any, state: Any, action: Any) -> tuple[Any, Any]:
        # The library's `step` resets automatically; `_step` does not.
        now = self.inner._step(state, action)
        return arrays(now), stepped(self.observation_space, now.observation, now.reward, now.step_type == TERMINATED)


def ids() -> Iterable[str]:
    """The registered ids."""
    return module("navix").registry()


def create(name: str, env_kwargs: dict[str, Any]) -> Navix:
    """Create a grid world; the arguments are those of its constructor. `observation_fn` is the name of a function in
    navix.observations, for example rgb_first_person."""
    navix = module("navix")
    if "observation_fn" in env_kwargs:
        env_kwargs["observation_fn"] = getattr(navix.observations, env_kwargs["observation_fn"])
    return Navix(navix.make(name, **env_kwargs))


SOURCE = source_of("navix", ids, create)
