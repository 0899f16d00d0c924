"""A car whose engine is too weak to climb the hill directly, with a continuous force or with three actions."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float, PRNGKeyArray

from upslope.core.types import Action, Transition
from upslope.environments.base import CompiledEnvironment

MAX_FORCE = 1.0
POWER = 0.0015
SLOPE = 0.0025
MIN_POSITION, MAX_POSITION = -1.2, 0.6
MAX_SPEED = 0.07
GOAL_POSITION = 0.45
STEP_FORCE, STEP_GOAL_POSITION = 0.001, 0.5
"""Force and goal position of the car with three actions."""

State = Float[Array, "2"]


def _observation_space() -> spaces.Box:
    low = np.array([MIN_POSITION, -MAX_SPEED], dtype=np.float32)
    high = np.array([MAX_POSITION, MAX_SPEED], dtype=np.float32)
    return spaces.Box(low=low, high=high, dtype=np.float32)


def _action_space() -> spaces.Box:
    return spaces.Box(low=-MAX_FORCE, high=MAX_FORCE, shape=(1,), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class MountainCarContinuous(CompiledEnvironment):
    """Gymnasium's `MountainCarContinuous-v0`: reach the hilltop with little force, in at most 999 steps.

    State and observation [2]: position x in [−1.2, 0.6], velocity v in [−0.07, 0.07]. Action [1]: force u,
    clipped to ±1 before it moves the car.

        v ← clip(v + 0.0015 clip(u, ±1) − 0.0025 cos 3x, ±0.07),    x ← clip(x + v, −1.2, 0.6)
        r = 100 · terminated − 0.1 u²

    The left wall stops the car. The episode terminates when x ≥ 0.45 and v ≥ `goal_velocity`. Doing nothing
    yields a return of 0, a local optimum; a good policy reaches about 95.
    Source: Moore (1990); Gymnasium's continuous_mountain_car.py.
    """

    goal_velocity: float = 0.0
    max_episode_steps: int | None = 999
    observation_space: spaces.Space[Any] = field(init=False, default_factory=_observation_space)
    action_space: spaces.Space[Any] = field(init=False, default_factory=_action_space)

    def reset(self, key: PRNGKeyArray) -> tuple[State, State]:
        """x_0 ~ U(−0.6, −0.4), v_0 = 0."""
        position = jax.random.uniform(key, (), jnp.float32, minval=-0.6, maxval=-0.4)
        state = jnp.stack([position, jnp.zeros_like(position)])
        return state, state

    def step(self, key: PRNGKeyArray, state: State, action: Action) -> tuple[State, Transition]:
        """One step; deterministic. The cost uses the requested force, before clipping."""
        position, velocity = state
        force = jnp.clip(action[0], -MAX_FORCE, MAX_FORCE)
        position, velocity = moved(position, velocity, force * POWER)
        terminated = (position >= GOAL_POSITION) & (velocity >= self.goal_velocity)
        reward = 100.0 * terminated.astype(jnp.float32) - 0.1 * action[0] ** 2
        state = jnp.stack([position, velocity])
        return state, Transition(state, reward, terminated, jnp.zeros((), bool))


@dataclass(frozen=True, eq=False)
class MountainCar(CompiledEnvironment):
    """Gymnasium's `MountainCar-v0`: reach the hilltop; −1 per step, at most 200 steps.

    State and observation [2]: position x in [−1.2, 0.6], velocity v in [−0.07, 0.07]. Action a: push to the left, not
    at all, or to the right.

        v ← clip(v + 0.001 (a − 1) − 0.0025 cos 3x, ±0.07),    x ← clip(x + v, −1.2, 0.6),    r = −1

    The left wall stops the car. The episode terminates when x ≥ 0.5 and v ≥ `goal_velocity`. A random policy hardly
    ever gets there; a good one takes about 105 steps. Source: Moore (1990); Gymnasium's mountain_car.py.
    """

    goal_velocity: float = 0.0
    max_episode_steps: int | None = 200
    observation_space: spaces.Space[Any] = field(init=False, default_factory=_observation_space)
    action_space: spaces.Space[Any] = field(init=False, default_factory=lambda: spaces.Discrete(3))

    def reset(self, key: PRNGKeyArray) -> tuple[State, State]:
        """x_0 ~ U(−0.6, −0.4), v_0 = 0."""
        return MountainCarContinuous().reset(key)

    def step(self, key: PRNGKeyArray, state: State, action: Action) -> tuple[State, Transition]:
        """One step; deterministic."""
        position, velocity = moved(state[0], state[1], (action - 1) * STEP_FORCE)
        terminated = (position >= STEP_GOAL_POSITION) & (velocity >= self.goal_velocity)
        state = jnp.stack([position, velocity])
        return state, Transition(state, jnp.float32(-1.0), terminated, jnp.zeros((), bool))


def moved(
    position: Float[Array, ""], velocity: Float[Array, ""], push: Float[Array, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Position and velocity after a step in which the car's engine changes the velocity by `push`."""
    velocity = velocity + push - SLOPE * jnp.cos(3 * position)
    velocity = jnp.clip(velocity, -MAX_SPEED, MAX_SPEED)
    position = jnp.clip(position + velocity, MIN_POSITION, MAX_POSITION)
    return position, jnp.where((position <= MIN_POSITION) & (velocity < 0), 0.0, velocity)
