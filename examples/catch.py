"""Catch, a compiled environment of your own: a ball falls, and the paddle must be under it when it lands."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

import upslope


class State(NamedTuple):
    """Three integers; a state can be any pytree of arrays."""

    ball: jax.Array
    height: jax.Array
    paddle: jax.Array


@dataclass(frozen=True, eq=False)
class Catch(upslope.CompiledEnvironment):
    """Observation: column of the ball, column of the paddle and height of the ball, each scaled to the range 0 to 1.
    Actions: left, stay, right."""

    columns: int = 5
    rows: int = 10
    observation_space = spaces.Box(0, 1, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, key):
        ball = jax.random.randint(key, (), 0, self.columns)
        state = State(ball, jnp.int32(self.rows), jnp.int32(self.columns // 2))
        return state, self.observe(state)

    def step(self, key, state, action):
        paddle = jnp.clip(state.paddle + action - 1, 0, self.columns - 1)
        state = State(state.ball, state.height - 1, paddle)
        landed = state.height == 0
        reward = jnp.where(landed, jnp.where(state.ball == paddle, 1.0, -1.0), 0.0)
        return state, upslope.Transition(self.observe(state), reward, terminated=landed, truncated=jnp.bool_(False))

    def observe(self, state):
        width = self.columns - 1
        return jnp.stack([state.ball / width, state.paddle / width, state.height / self.rows])
