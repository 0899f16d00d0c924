"""Two links hanging from a pivot, driven by a torque between them."""

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
MASS_1, MASS_2 = 1.0, 1.0  # kg
LENGTH_1 = 1.0  # m
CENTRE_1, CENTRE_2 = 0.5, 0.5  # m, from a link's joint to its centre of mass
INERTIA = 1.0  # kg m², of each link
MAX_VELOCITY_1, MAX_VELOCITY_2 = 4 * math.pi, 9 * math.pi  # rad/s
TIME_STEP = 0.2  # s

State = Float[Array, "4"]


def _observation_space() -> spaces.Box:
    high = np.array([1.0, 1.0, 1.0, 1.0, MAX_VELOCITY_1, MAX_VELOCITY_2], dtype=np.float32)
    return spaces.Box(low=-high, high=high, dtype=np.float32)


def _observe(state: State) -> Float[Array, "6"]:
    cosine, sine = jnp.cos(state[:2]), jnp.sin(state[:2])
    return jnp.stack([cosine[0], sine[0], cosine[1], sine[1], state[2], state[3]])


def _wrap(angle: Float[Array, ""]) -> Float[Array, ""]:
    """Wrap an angle into [−π, π)."""
    return angle - 2 * math.pi * jnp.floor((angle + math.pi) / (2 * math.pi))


def _derivative(state: State, torque: Float[Array, ""]) -> State:
    """(θ̇₁, θ̇₂, θ̈₁, θ̈₂) from the equations in Sutton & Barto's book, not those in the NIPS paper."""
    angle_1, angle_2, velocity_1, velocity_2 = state
    cosine_2, sine_2 = jnp.cos(angle_2), jnp.sin(angle_2)
    coupling = MASS_2 * LENGTH_1 * CENTRE_2
    d1 = MASS_1 * CENTRE_1**2 + MASS_2 * (LENGTH_1**2 + CENTRE_2**2 + 2 * LENGTH_1 * CENTRE_2 * cosine_2) + 2 * INERTIA
    d2 = MASS_2 * (CENTRE_2**2 + LENGTH_1 * CENTRE_2 * cosine_2) + INERTIA
    # Gymnasium writes cos(x − π/2); sin x is equal and keeps its precision in float32.
    phi2 = MASS_2 * CENTRE_2 * GRAVITY * jnp.sin(angle_1 + angle_2)
    phi1 = (
        -coupling * velocity_2 * (velocity_2 + 2 * velocity_1) * sine_2
        + (MASS_1 * CENTRE_1 + MASS_2 * LENGTH_1) * GRAVITY * jnp.sin(angle_1)
        + phi2
    )
    ratio = d2 / d1
    acceleration_2 = (torque + ratio * phi1 - coupling * velocity_1**2 * sine_2 - phi2) / (
        MASS_2 * CENTRE_2**2 + INERTIA - d2 * ratio
    )
    acceleration_1 = -(d2 * acceleration_2 + phi1) / d1
    return jnp.stack([velocity_1, velocity_2, acceleration_1, acceleration_2])


@dataclass(frozen=True, eq=False)
class Acrobot(CompiledEnvironment):
    """Gymnasium's `Acrobot-v1`: swing the tip above the line; −1 per step, 0 on the last; at most 500 steps.

    State [4]: angle θ₁ of the first link (rad, 0 hangs down), angle θ₂ of the second relative to the first,
    θ̇₁ (at most 4π rad/s), θ̇₂ (at most 9π rad/s). Observation [6]: cos θ₁, sin θ₁, cos θ₂, sin θ₂, θ̇₁,
    θ̇₂. Action: 0, 1, 2 for a torque of −1, 0, +1 N m on the middle joint. Each step is one fourth-order
    Runge–Kutta step of 0.2 s.

        terminated when −cos θ₁ − cos(θ₁ + θ₂) > 1

    Source: Sutton (1996); Sutton & Barto's book equations as in Gymnasium's acrobot.py.
    """

    max_episode_steps: int | None = 500
    observation_space: spaces.Space[Any] = field(init=False, default_factory=_observation_space)
    action_space: spaces.Space[Any] = field(init=False, default_factory=lambda: spaces.Discrete(3))

    def reset(self, key: PRNGKeyArray) -> tuple[State, Float[Array, "6"]]:
        """s_0 ~ U(−0.1, 0.1) in each component: almost at rest, hanging down."""
        state = jax.random.uniform(key, (4,), jnp.float32, minval=-0.1, maxval=0.1)
        return state, _observe(state)

    def step(self, key: PRNGKeyArray, state: State, action: Action) -> tuple[State, Transition]:
        """One Runge–Kutta step of 0.2 s; deterministic. The bounds are applied after the integration."""
        torque = jnp.asarray(action, jnp.float32) - 1.0
        slope_1 = _derivative(state, torque)
        slope_2 = _derivative(state + TIME_STEP / 2 * slope_1, torque)
        slope_3 = _derivative(state + TIME_STEP / 2 * slope_2, torque)
        slope_4 = _derivative(state + TIME_STEP * slope_3, torque)
        moved = state + TIME_STEP / 6 * (slope_1 + 2 * slope_2 + 2 * slope_3 + slope_4)

        state = jnp.stack(
            [
                _wrap(moved[0]),
                _wrap(moved[1]),
                jnp.clip(moved[2], -MAX_VELOCITY_1, MAX_VELOCITY_1),
                jnp.clip(moved[3], -MAX_VELOCITY_2, MAX_VELOCITY_2),
            ]
        )
        terminated = -jnp.cos(state[0]) - jnp.cos(state[0] + state[1]) > 1.0
        reward = terminated.astype(jnp.float32) - 1.0
        return state, Transition(_observe(state), reward, terminated, jnp.zeros((), bool))
