"""A pendulum that must be swung up and balanced by a bounded torque."""

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

MAX_SPEED = 8.0  # rad/s
MAX_TORQUE = 2.0  # N m
TIME_STEP = 0.05  # s
MASS = 1.0  # kg
LENGTH = 1.0  # m

State = Float[Array, "2"]


def _observation_space() -> spaces.Box:
    high = np.array([1.0, 1.0, MAX_SPEED], dtype=np.float32)
    return spaces.Box(low=-high, high=high, dtype=np.float32)


def _action_space() -> spaces.Box:
    return spaces.Box(low=-MAX_TORQUE, high=MAX_TORQUE, shape=(1,), dtype=np.float32)


def _observe(state: State) -> Float[Array, "3"]:
    return jnp.stack([jnp.cos(state[0]), jnp.sin(state[0]), state[1]])


@dataclass(frozen=True, eq=False)
class Pendulum(CompiledEnvironment):
    """Gymnasium's `Pendulum-v1`: swing up and stay up for 200 steps; it never terminates.

    State [2]: angle θ (rad, 0 is upright, never wrapped), angular velocity θ̇ (at most 8 rad/s).
    Observation [3]: cos θ, sin θ, θ̇. Action [1]: torque u, clipped to ±2 N m.

        θ̇ ← clip(θ̇ + (3g/(2l) sin θ + 3/(m l²) u) Δt, ±8),    θ ← θ + θ̇ Δt,    Δt = 0.05 s
        r = −(wrap(θ)² + 0.1 θ̇² + 0.001 u²) of the state before the step: −16.3 … 0

    Returns range from about −1,600 (hanging) to −150 (good). `g` is gravity in m/s².
    Source: Gymnasium's pendulum.py.
    """

    g: float = 10.0
    max_episode_steps: int | None = 200
    observation_space: spaces.Space[Any] = field(init=False, default_factory=_observation_space)
    action_space: spaces.Space[Any] = field(init=False, default_factory=_action_space)

    def reset(self, key: PRNGKeyArray) -> tuple[State, Float[Array, "3"]]:
        """θ_0 ~ U(−π, π), θ̇_0 ~ U(−1, 1)."""
        state = jax.random.uniform(key, (2,), jnp.float32, minval=-1.0) * jnp.array([math.pi, 1.0], jnp.float32)
        return state, _observe(state)

    def step(self, key: PRNGKeyArray, state: State, action: Action) -> tuple[State, Transition]:
        """One step of 0.05 s; deterministic. A torque beyond ±2 N m is clipped, in the dynamics and in the cost."""
        angle, velocity = state
        torque = jnp.clip(action[0], -MAX_TORQUE, MAX_TORQUE)
        wrapped = (angle + math.pi) % (2 * math.pi) - math.pi
        reward = -(wrapped**2 + 0.1 * velocity**2 + 0.001 * torque**2)

        acceleration = 3 * self.g / (2 * LENGTH) * jnp.sin(angle) + 3.0 / (MASS * LENGTH**2) * torque
        velocity = jnp.clip(velocity + acceleration * TIME_STEP, -MAX_SPEED, MAX_SPEED)
        # The new velocity updates the angle: semi-implicit Euler, as in Gymnasium.
        state = jnp.stack([angle + velocity * TIME_STEP, velocity])
        never = jnp.zeros((), bool)
        return state, Transition(_observe(state), reward, never, never)
