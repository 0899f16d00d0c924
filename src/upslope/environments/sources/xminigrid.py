"""XLand-MiniGrid: grid worlds (Nikulin et al. 2023, https://github.com/dunnolab/xland-minigrid).

An episode ends at a goal (`discount` 0) or at the limit `params.max_steps` (`discount` 1), which is upslope's
`max_episode_steps`. The observation is the agent's view [side, side, 2]: the type and colour of each tile.
"""

from collections.abc import Iterable
from typing import Any

from gymnasium import spaces

from upslope.environments.base import CompiledEnvironment
from upslope.environments.sources.wrapping import arrays, box, fitted, module, raw, source_of, stepped


class XMiniGrid(CompiledEnvironment):
    """A grid world with its parameters. Its state is the library's time step."""

    def __init__(self, inner: Any, params: Any):
        self.inner, self.params = inner, params
        self.observation_space = box(0, 255, inner.observation_shape(params), "uint8")
        self.action_space = spaces.Discrete(inner.num_actions(params))
        self.max_episode_steps = int(params.max_steps)

    def reset(self, key: Any) -> tuple[Any, Any]:
        now = self.inner.reset(self.params, raw(key))
        return arrays(now), fitted(self.observation_space, now.observation)

    def step(self, key: Any, state: Any, action: Any) -> tuple[Any, Any]:
        now = self.inner.step(self.params, state, action)
        return arrays(now), stepped(self.observation_space, now.observation, now.reward, now.discount == 0)


def ids() -> Iterable[str]:
    """The registered ids."""
    return module("xminigrid").registered_environments()


def create(name: str, env_kwargs: dict[str, Any]) -> XMiniGrid:
    """Create a grid world; the arguments are fields of its parameters."""
    return XMiniGrid(*module("xminigrid").make(name, **env_kwargs))


SOURCE = source_of("xminigrid", ids, create)
