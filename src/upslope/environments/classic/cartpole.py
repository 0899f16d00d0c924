"""A pole balanced on a cart that is pushed left or right."""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, PRNGKeyArray

from upslope.core.types import Action, Transition
from upslope.environments.base import CompiledEnvironment

GRAVITY = 9.8  # m/s²
MASS_POLE = 0.1  # kg
MASS_TOTAL = 1.1  # kg, pole and cart
HALF_LENGTH = 0.5  # m
FORCE = 10.0  # N
TIME_STEP = 0.02  # s
POSITION_LIMIT = 2.4  # m
ANGLE_LIMIT = 12 * 2 * math.pi / 360  # rad

State = Float[Array, "4"]


def _observation_space() -> spaces.Box:
    high = np.array([2 * POSITION_LIMIT, np.inf, 2 * ANGLE_LIMIT, np.inf], dtype=np.float32)
    return spaces.Box(-high, high, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class CartPole(CompiledEnvironment):
    """Gymnasium's `CartPole-v1`: keep the pole up; +1 per step, at most 500 steps.

    State and observation [4]: position x (m), velocity ẋ, angle θ (rad, 0 is upright), angular velocity θ̇.
    Action: 0 pushes left, 1 right, F = ±10 N. l is half the pole's length. A step is one explicit Euler step of 0.02 s:

        u = (F + m_p l θ̇² sin θ) / m
        θ̈ = (g sin θ − u cos θ) / (l (4/3 − m_p cos² θ / m))
        ẍ = u − m_p l θ̈ cos θ / m

    The episode terminates when |x| > 2.4 m or |θ| > 12°. With `sutton_barto_reward`, the reward is 0 per step and −1 at
    the end instead.
    Source: Barto, Sutton & Anderson (1983); Florian (2007), without friction; Gymnasium's cartpole.py.
    """

    sutton_barto_reward: bool = False
    max_episode_steps: int | None = 500
    observation_space: spaces.Space[Any] = field(init=False, default_factory=_observation_space)
    action_space: spaces.Space[Any] = field(init=False, default_factory=lambda: spaces.Discrete(2))

    def reset(self, key: PRNGKeyArray) -> tuple[State, State]:
        """s_0 ~ U(−0.05, 0.05) in each component."""
        state = jax.random.uniform(key, (4,), jnp.float32, minval=-0.05, maxval=0.05)
        return state, state

    def step(self, key: PRNGKeyArray, state: State, action: Action) -> tuple[State, Transition]:
        """One Euler step of 0.02 s; deterministic."""
        _, velocity, angle, angular_velocity = state
        cosine, sine = jnp.cos(angle), jnp.sin(angle)
        force = jnp.where(action == 1, FORCE, -FORCE)
        push = (force + MASS_POLE * HALF_LENGTH * angular_velocity**2 * sine) / MASS_TOTAL
        angular_acceleration = (GRAVITY * sine - cosine * push) / (
            HALF_LENGTH * (4.0 / 3.0 - MASS_POLE * cosine**2 / MASS_TOTAL)
        )
        acceleration = push - MASS_POLE * HALF_LENGTH * angular_acceleration * cosine / MASS_TOTAL
        # Every right-hand side uses the old state: Gymnasium's Euler step is explicit, not semi-implicit.
        rate = jnp.stack([velocity, acceleration, angular_velocity, angular_acceleration])
        state = state + TIME_STEP * rate

        terminated = (jnp.abs(state[0]) > POSITION_LIMIT) | (jnp.abs(state[2]) > ANGLE_LIMIT)
        # The step in which the pole falls also earns +1, as in Gymnasium.
        reward = -terminated.astype(jnp.float32) if self.sutton_barto_reward else jnp.ones((), jnp.float32)
        return state, Transition(state, reward, terminated, jnp.zeros((), bool))
