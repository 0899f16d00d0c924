"""What an environment does when it is tried out: the evidence of `upslope check`.

A `Player` steps one environment, compiled or on the host, the same way. `play` follows random actions for a while and
keeps all that was seen.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from upslope.environments.base import CompiledEnvironment
from upslope.environments.registry import AnyEnvironment, HostEnvironment

Answer = tuple[np.ndarray, float, bool, bool]
"""The observation, the reward, terminated, truncated."""


@runtime_checkable
class Player(Protocol):
    """One environment that can be reset and stepped."""

    def reset(self, seed: int) -> Any:
        """Begin an episode; return its first observation."""
        ...

    def step(self, action: Any) -> Answer:
        """Take an action."""
        ...

    def close(self) -> None:
        """Let go of it."""


class HostPlayer:
    """A Gymnasium environment, with a step limit of its own where it has one."""

    def __init__(self, create: Callable[[], gymnasium.Env], limit: int | None):
        self.env, self.limit, self.count = create(), limit, 0

    def reset(self, seed: int) -> Any:
        self.count = 0
        return self.env.reset(seed=seed)[0]

    def step(self, action: Any) -> Answer:
        self.count += 1
        observation, reward, terminated, truncated, _ = self.env.step(action)
        truncated = bool(truncated) or (self.limit is not None and self.count >= self.limit)
        return np.array(observation), float(reward), bool(terminated), truncated

    def close(self) -> None:
        self.env.close()


class CompiledPlayer:
    """A compiled world; its keys follow from the reset seed."""

    def __init__(self, world: CompiledEnvironment, limit: int | None):
        self.world, self.limit, self.count = world, limit, 0
        self.begin, self.go = jax.jit(world.reset), jax.jit(world.step)

    def reset(self, seed: int) -> Any:
        self.count, self.key = 0, jax.random.key(seed)
        self.state, observation = self.begin(self.key)
        return np.asarray(observation)

    def step(self, action: Any) -> Answer:
        self.count += 1
        key = jax.random.fold_in(self.key, self.count)
        self.state, transition = self.go(key, self.state, action)
        truncated = bool(transition.truncated) or (self.limit is not None and self.count >= self.limit)
        return np.asarray(transition.observation), float(transition.reward), bool(transition.terminated), truncated

    def close(self) -> None:
        """Nothing to do."""


@dataclass
class Trial:
    """Episodes of one player, one after another."""

    observations: list[np.ndarray] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    """Of the episodes that ended; the last may be under way."""
    terminated: list[bool] = field(default_factory=list)
    """Of the episodes that ended: by themselves, or cut off."""
    unfinished: int = 0
    """Steps of the episode under way at the end."""
    reset_seconds: float = 0.0
    step_seconds: float = 0.0
    resets: int = 0

    @property
    def steps(self) -> int:
        return len(self.rewards)


def player_of(world: AnyEnvironment, limit: int | None) -> Player:
    """A fresh environment of a world."""
    return HostPlayer(world.create, limit) if isinstance(world, HostEnvironment) else CompiledPlayer(world, limit)


def actions_of(world: AnyEnvironment, seed: int) -> Callable[[], Any]:
    """Random actions of a world, always the same for a seed. A Box without bounds is tried within ±1."""
    generator, space = np.random.default_rng(seed), world.action_space
    if isinstance(space, spaces.Discrete):
        start = 0 if isinstance(world, CompiledEnvironment) else int(space.start)
        return lambda: start + int(generator.integers(space.n))
    if isinstance(space, spaces.Box):
        low, high = np.where(np.isfinite(space.low), space.low, -1), np.where(np.isfinite(space.high), space.high, 1)
        return lambda: generator.uniform(low, np.maximum(low, high)).astype(space.dtype or np.float32)
    space.seed(seed)
    return space.sample


def play(player: Player, next_action: Callable[[], Any], max_steps: int, seconds: float, first_seed: int = 0) -> Trial:
    """Follow random actions, episode after episode with reset seeds of their own, for so many steps or seconds."""
    trial, started, seed = Trial(), perf_counter(), first_seed
    while trial.steps < max_steps and perf_counter() - started < seconds:
        before = perf_counter()
        trial.observations.append(np.asarray(player.reset(seed)))
        trial.reset_seconds += perf_counter() - before
        trial.resets, seed, total, length, over = trial.resets + 1, seed + 1, 0.0, 0, False
        while not over and trial.steps < max_steps and perf_counter() - started < seconds:
            action, before = next_action(), perf_counter()
            observation, reward, terminated, truncated = player.step(action)
            trial.step_seconds += perf_counter() - before
            trial.observations.append(observation)
            trial.rewards.append(reward)
            total, length, over = total + reward, length + 1, terminated or truncated
            if over:
                trial.lengths.append(length)
                trial.returns.append(total)
                trial.terminated.append(terminated)
        trial.unfinished = 0 if over else length
    return trial


def same(one: Trial, other: Trial) -> bool:
    """Whether two trials saw the same, as far as both went."""
    n, m = min(len(one.observations), len(other.observations)), min(one.steps, other.steps)
    observations = zip(one.observations[:n], other.observations[:n], strict=True)
    return one.rewards[:m] == other.rewards[:m] and all(np.array_equal(a, b, equal_nan=True) for a, b in observations)
