"""Pgx: games for one player, MinAtar and 2048 (Koyamada et al. 2023, https://github.com/sotetsuk/pgx).

Pgx has no time limits, and MinAtar's episodes may never end: set `--max-episode-steps`. In games with illegal moves,
the mask allows only the legal ones.
"""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from upslope.environments.base import CompiledEnvironment
from upslope.environments.sources.wrapping import arrays, box, fitted, module, raw, source_of, stepped
from upslope.errors import UpslopeError

ALWAYS_LEGAL = "minatar-"
"""Games in which every action is always legal."""


class Pgx(CompiledEnvironment):
    """A game for one player."""

    def __init__(self, inner: Any):
        self.inner, self.has_illegal_moves = inner, not inner.id.startswith(ALWAYS_LEGAL)
        self.observation_space = box(0, 1, inner.observation_shape, np.uint8)
        self.action_space = spaces.Discrete(inner.num_actions)

    def reset(self, key: Any) -> tuple[Any, Any]:
        state = self.inner.init(raw(key))
        return arrays(state), fitted(self.observation_space, state.observation)

    def step(self, key: Any, state: Any, action: Any) -> tuple[Any, Any]:
        state = self.inner.step(state, jnp.asarray(action, jnp.int32), raw(key))
        transition = stepped(self.observation_space, state.observation, state.rewards[0], state.terminated)
        return arrays(state), transition._replace(truncated=state.truncated)

    def action_mask(self, state: Any) -> Any:
        return state.legal_action_mask if self.has_illegal_moves else None


def ids() -> Iterable[str]:
    """The ids of all games, including those for several players."""
    return module("pgx").available_envs()


def create(name: str, env_kwargs: dict[str, Any]) -> Pgx:
    """Create a game; the arguments are those of its constructor."""
    game = module("pgx").make(name)
    if game.num_players != 1:
        raise UpslopeError(
            f"pgx:{name} is a game for {game.num_players} players, but upslope trains one. Games for one: 2048 and "
            "minatar-asterix, -breakout, -freeway, -seaquest, -space_invaders."
        )
    return Pgx(type(game)(**env_kwargs) if env_kwargs else game)


SOURCE = source_of("pgx", ids, create)
