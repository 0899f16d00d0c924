"""An exploration test: a grid in which only one of 2^N action sequences finds the treasure."""

from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Int32, PRNGKeyArray

from upslope.core.types import Action, Transition
from upslope.environments.base import CompiledEnvironment
from upslope.errors import UpslopeError

Cell = Int32[Array, ""]
MAX_SIZE = 1000


@dataclass(frozen=True, eq=False)
class DeepSea(CompiledEnvironment):
    """A diver sinks one row per step through `size` × `size` cells; a treasure lies in the lower right cell.

    Each step moves the diver one column to the right or the left, and one row down; the left wall stops the diver.
    Which of the two actions leads right is drawn at random for each cell, using `seed`. If `randomize_actions` is
    false, it is action 1 everywhere. A move to the right costs `move_cost` / size, and moving right in the last cell
    earns 1:

        r = 1[right at the lower right cell] − 1[right] · move_cost / size

    The episode terminates after `size` steps. The treasure is found only by always going right, with a return of
    1 − `move_cost`; always going left earns 0. A random policy finds it once in 2^size episodes. The observation is
    the cell, row · size + column, and size² after the last step. Source: Osband et al. (2020), Behaviour Suite for
    Reinforcement Learning, https://arxiv.org/abs/1908.03568, section 2.3, in its deterministic version.
    """

    size: int = 10
    seed: int = 42
    randomize_actions: bool = True
    move_cost: float = 0.01
    max_episode_steps: int | None = None
    leads_right: Bool[np.ndarray, "N N"] = field(init=False)
    """Whether action 1 leads to the right in each cell; otherwise action 0 does."""
    observation_space: spaces.Space[Any] = field(init=False)
    action_space: spaces.Space[Any] = field(init=False, default_factory=lambda: spaces.Discrete(2))

    def __post_init__(self) -> None:
        if type(self.size) is not int or not 2 <= self.size <= MAX_SIZE:
            raise UpslopeError(f"DeepSea needs a size from 2 to {MAX_SIZE}, not {self.size!r}.")
        if type(self.seed) is not int or self.seed < 0:
            raise UpslopeError(f"DeepSea's seed must be an integer ≥ 0, not {self.seed!r}.")
        drawn = np.random.default_rng(self.seed).integers(0, 2, (self.size, self.size)) == 1
        object.__setattr__(self, "leads_right", drawn if self.randomize_actions else np.ones_like(drawn))
        object.__setattr__(self, "observation_space", spaces.Discrete(self.size**2 + 1))
        object.__setattr__(self, "max_episode_steps", self.max_episode_steps or self.size)

    def reset(self, key: PRNGKeyArray) -> tuple[Cell, Cell]:
        """Begin in the upper left cell."""
        return jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)

    def step(self, key: PRNGKeyArray, state: Cell, action: Action) -> tuple[Cell, Transition]:
        """Sink by one row; deterministic."""
        row, column = state // self.size, state % self.size
        is_right = (action == 1) == jnp.asarray(self.leads_right)[row, column]
        is_found = is_right & (state == self.size**2 - 1)
        reward = is_found.astype(jnp.float32) - is_right * (self.move_cost / self.size)
        column = jnp.clip(column + jnp.where(is_right, 1, -1), 0, self.size - 1)
        terminated = row + 1 == self.size
        state = jnp.where(terminated, self.size**2, (row + 1) * self.size + column).astype(jnp.int32)
        return state, Transition(state, reward.astype(jnp.float32), terminated, jnp.zeros((), bool))
