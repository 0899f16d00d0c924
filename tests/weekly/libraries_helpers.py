"""The libraries' own steps, each as `start(key)` and `move(key, state, action)`, and how the libraries report ends.

Nothing here uses upslope, since these functions are the oracles of `test_libraries_themselves.py`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LONG = 10
"""The factor by which a time limit is multiplied so that no episode here reaches it."""


class Facts(NamedTuple):
    """What a library reports about one step."""

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any


class Oracle(NamedTuple):
    """A library's environment, as two functions: (key) → (state, observation), and (key, state, action) → (state,
    facts)."""

    start: Callable[[Any], tuple[Any, Any]]
    move: Callable[[Any, Any, Any], tuple[Any, Facts]]
    key_of: Callable[[Any], Any] = lambda key: key
    """Returns the key with which upslope's step draws the same random numbers."""


def of_gymnax(name: str, limit: int) -> Oracle:
    import gymnax

    env, params = gymnax.make(name)
    params = params.replace(max_steps_in_episode=limit)

    def start(key: Any) -> tuple[Any, Any]:
        observation, state = env.reset(key, params)
        return state, observation

    def move(key: Any, state: Any, action: Any) -> tuple[Any, Facts]:
        _, state, reward, terminated, truncated, info = env.step(key, state, action, params)
        return state, Facts(info["final_observation"], reward, terminated, truncated & ~terminated)

    return Oracle(start, move, lambda key: jax.random.split(key)[0])


def of_xminigrid(name: str, limit: int) -> Oracle:
    import xminigrid

    env, params = xminigrid.make(name, max_steps=limit)

    def start(key: Any) -> tuple[Any, Any]:
        now = env.reset(params, key)
        return now, now.observation

    def move(key: Any, state: Any, action: Any) -> tuple[Any, Facts]:
        now = env.step(params, state, action)
        terminated = now.last() & (now.discount == 0)
        return now, Facts(now.observation, now.reward, terminated, now.last() & ~terminated)

    return Oracle(jax.jit(start), jax.jit(move))


def of_jumanji(name: str, limit: int | None, combined: tuple[int, ...] = ()) -> Oracle:
    import jumanji

    env = jumanji.make(name, **({} if limit is None else {"time_limit": limit}))
    # The library merges its limit with true ends. A true end also occurs when the limit is far away.
    longer = env if limit is None else jumanji.make(name, time_limit=LONG * limit)
    reset, step, far_step = jax.jit(env.reset), jax.jit(env.step), jax.jit(longer.step)

    def start(key: Any) -> tuple[Any, Any]:
        state, now = reset(key)
        return state, now.observation

    def move(key: Any, state: Any, action: Any) -> tuple[Any, Facts]:
        choice = jnp.asarray(np.unravel_index(int(action), combined)) if combined else action
        after, now = step(state, choice)
        terminated = far_step(state, choice)[1].last()
        return after, Facts(now.observation, now.reward, terminated, now.last() & ~terminated)

    return Oracle(start, move)


def of_pgx(name: str, limit: None) -> Oracle:
    import pgx

    env: Any = pgx.make(name)

    def start(key: Any) -> tuple[Any, Any]:
        state = env.init(key)
        return state, state.observation

    def move(key: Any, state: Any, action: Any) -> tuple[Any, Facts]:
        state = env.step(state, action, key)
        return state, Facts(state.observation, state.rewards[0], state.terminated, state.truncated)

    return Oracle(jax.jit(start), jax.jit(move))


def of_navix(name: str, limit: int) -> Oracle:
    import navix

    env = navix.make(name, max_steps=limit)

    def start(key: Any) -> tuple[Any, Any]:
        now = env.reset(key)
        return now, now.observation

    def move(key: Any, state: Any, action: Any) -> tuple[Any, Facts]:
        now = env.step(state, action)
        return now, Facts(now.observation, now.reward, now.is_termination(), now.is_truncation())

    return Oracle(jax.jit(start), jax.jit(move))


def of_craftax(name: str, limit: int) -> Oracle:
    from craftax.craftax_env import make_craftax_env_from_name

    env = make_craftax_env_from_name(name, auto_reset=False)
    params = env.default_params.replace(max_timesteps=limit)

    def start(key: Any) -> tuple[Any, Any]:
        observation, state = env.reset(key, params)
        return state, observation

    def move(key: Any, state: Any, action: Any) -> tuple[Any, Facts]:
        observation, state, reward, done, _ = env.step(key, state, action, params)
        # The library merges its limit with true ends. A true end also occurs when the limit is far away.
        terminated = env.is_terminal(state, params.replace(max_timesteps=LONG * limit))
        return state, Facts(observation, reward, terminated, done & ~terminated)

    return Oracle(start, jax.jit(move))


def of_brax(name: str, limit: int) -> Oracle:
    from brax import envs

    return wrapped(envs.create(name, episode_length=limit, auto_reset=False))


def of_playground(name: str, limit: int) -> Oracle:
    from brax.envs.wrappers.training import EpisodeWrapper
    from mujoco_playground import registry

    env: Any = registry.load(name, config_overrides={"impl": "jax"})
    return wrapped(EpisodeWrapper(env, limit, 1))


def wrapped(env: Any) -> Oracle:
    """Return the oracle of an environment that is already in Brax's own wrapper, which counts steps."""

    def start(key: Any) -> tuple[Any, Any]:
        state = env.reset(key)
        return state, state.obs

    def move(key: Any, state: Any, action: Any) -> tuple[Any, Facts]:
        state = env.step(state, action)
        truncated = state.info["truncation"] > 0
        return state, Facts(state.obs, state.reward, (state.done > 0) & ~truncated, truncated)

    return Oracle(jax.jit(start), jax.jit(move))
