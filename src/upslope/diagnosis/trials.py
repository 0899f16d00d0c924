"""Trials of an environment: the evidence for `upslope check`.

A `Player` steps one environment, compiled or on the host, as training does: with its reset seeds, and with actions
that have passed through the policy's head. `play` takes random actions for a while and records the results.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from upslope.core.arrays import raw
from upslope.engines.border import Border, flat_mask, nothing_allowed, reset_answer, step_answer
from upslope.engines.columns import one_by_one, reset_seed
from upslope.engines.infos import numbers_in
from upslope.engines.notices import Notices
from upslope.environments.base import CompiledEnvironment
from upslope.environments.masks import mask_in
from upslope.environments.registry import AnyEnvironment, HostEnvironment, name_of
from upslope.errors import UpslopeError
from upslope.models.encoders import encoder_of
from upslope.models.head import ActionHead
from upslope.models.heads import head_of

TIME_LIMIT = "TimeLimit.truncated"
"""The key in `info` by which environments of the former Gym say that a time limit ended the episode."""
Answer = tuple[Any, float, bool, bool]
"""The observation, the reward, terminated, truncated."""


@runtime_checkable
class Player(Protocol):
    """One environment that can be reset and stepped."""

    mask: np.ndarray | None
    """Mask of the currently allowed choices [M]; None if nothing is forbidden or the episode is over."""

    def numbers(self) -> dict[str, float]:
        """The numbers in `info` after the last step, by their keys."""
        ...

    def says_time_limit(self) -> bool:
        """Whether `info` after the last step says that a time limit ended the episode."""
        ...

    def reset(self, seed: int) -> Any:
        """Begin an episode; return its first observation."""
        ...

    def step(self, action: Any) -> Answer:
        """Take an action."""
        ...

    def close(self) -> None:
        """Close the environment."""


class HostPlayer:
    """A Gymnasium environment, truncated at the step limit if there is one."""

    def __init__(self, environment: HostEnvironment, limit: int | None):
        encoder = encoder_of(environment.observation_space, environment.name)
        self.border = Border(environment.name, environment.observation_space, encoder, Notices(lambda *_: None))
        self.head = head_of(environment.action_space, environment.name)
        self.env, self.limit, self.length = environment.create(), limit, 0
        self.environment, self.mask = environment, None
        self.info: Any = {}
        self.seen = 0
        """See `Place`."""

    def reset(self, seed: int) -> Any:
        self.length = 0
        answer = self.env.reset(seed=seed)
        observation = reset_answer(answer, self.environment.name, self)
        self.mask = self.allowed(answer[1], self.length)
        return self.copied(observation)

    def copied(self, observation: Any) -> Any:
        """Copy the observation, so that the environment cannot overwrite it."""
        self.border.require_fit(observation, self)
        return self.border.structure.unflatten(map(np.array, self.border.parts(observation)))

    def describe(self) -> str:
        """See `Place`."""
        return f"step {self.length} of a random episode"

    def step(self, action: Any) -> Answer:
        self.length += 1
        answer = self.env.step(action)
        observation, reward, terminated, truncated = step_answer(answer, self.environment.name, self)
        self.info = answer[4]
        truncated = truncated or (self.limit is not None and self.length >= self.limit)
        self.mask = None if terminated or truncated else self.allowed(self.info, self.length)
        return self.copied(observation), reward, terminated, truncated

    def numbers(self) -> dict[str, float]:
        return numbers_in(self.info)

    def says_time_limit(self) -> bool:
        said = self.info.get(TIME_LIMIT, False)
        return isinstance(said, bool | np.bool_ | int) and bool(said)

    def allowed(self, info: Any, step: int) -> np.ndarray | None:
        """The mask of allowed choices in `info`; None if the environment forbids nothing.

        Raises:
            UpslopeError: the mask is missing, does not fit, or allows nothing.
        """
        if not self.environment.gives_masks:
            return None
        return allowed_by(self.head, mask_in(info), self.environment.name, step)

    def close(self) -> None:
        self.env.close()


class CompiledPlayer:
    """A compiled environment; its keys are derived from the reset seed."""

    def __init__(self, environment: CompiledEnvironment, limit: int | None):
        self.limit, self.count, self.mask = limit, 0, None
        self.environment, self.name = environment, name_of(environment)
        self.head = head_of(environment.action_space, self.name)
        self.begin, self.go = programs(Same(environment))

    def reset(self, seed: int) -> Any:
        self.count, self.key = 0, jax.random.key(seed)
        self.state, observation = self.begin(self.key)
        self.note()
        return jax.tree.map(np.asarray, observation)

    def step(self, action: Any) -> Answer:
        self.count += 1
        self.state, transition = self.go(self.key, np.uint32(self.count), self.state, action)
        transition = jax.device_get(transition)
        truncated = bool(transition.truncated) or (self.limit is not None and self.count >= self.limit)
        terminated, self.mask = bool(transition.terminated), None
        if not (terminated or truncated):
            self.note()
        return transition.observation, float(transition.reward), terminated, truncated

    def numbers(self) -> dict[str, float]:
        return numbers_in(self.environment.episode_info(self.state))

    def says_time_limit(self) -> bool:
        return False

    def note(self) -> None:
        """Update the mask from the current state."""
        mask = jax.tree.map(np.asarray, self.environment.action_mask(self.state))
        if mask is not None:
            self.mask = allowed_by(self.head, mask, self.name, self.count)

    def close(self) -> None:
        """Do nothing."""


def allowed_by(head: ActionHead, mask: Any, name: str, step: int) -> Any:
    """The choices that a mask allows, at least one.

    Raises:
        UpslopeError: the mask is missing, does not fit, or allows no choice.
    """
    place = f"step {step} of an episode"
    flat = flat_mask(mask, head, name, lambda: place)
    if not head.allows_some(flat):
        raise UpslopeError(nothing_allowed(name, place))
    return np.asarray(flat)


class Same:
    """A cache key that wraps an environment: it equals only itself, and works even if the environment cannot be
    hashed."""

    def __init__(self, environment: Any):
        self.environment = environment

    def __hash__(self) -> int:
        return id(self.environment)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.environment is self.environment


@lru_cache(maxsize=1)
def programs(key: Same) -> tuple[Any, Any]:
    """The environment's reset and step, compiled once for all of its trials. A step's key is derived from that of its
    episode and the step's number."""
    environment = key.environment

    def step(key: Any, count: Any, state: Any, action: Any) -> Any:
        return environment.step(jax.random.fold_in(key, count), state, action)

    # JAX would trace the methods themselves only once, even after `programs.cache_clear()`.
    return jax.jit(lambda *x: environment.reset(*x)), jax.jit(step)


def is_traced_alike(environment: Any) -> bool:
    """Whether JAX traces the same program every time. It does not if `reset` or `step` draws random numbers or reads
    the time itself, instead of using its key: the value of the first trace then becomes a part of the program."""

    def traced() -> tuple[str, list[bytes]]:
        # New functions, since JAX would remember the programs of those that it has already traced.
        def reset(key: Any) -> Any:
            return environment.reset(key)

        def step(key: Any, state: Any, action: Any) -> Any:
            return environment.step(key, state, action)

        key = jax.random.key(0)
        state, _ = jax.eval_shape(reset, key)
        programs = [jax.jit(reset).trace(key), jax.jit(step).trace(key, state, actions_of(environment, 0)(None))]
        constants = [np.asarray(raw(x)).tobytes() for program in programs for x in program.jaxpr.consts]
        return "".join(program.lower().as_text() for program in programs), constants

    try:
        return traced() == traced()
    except Exception:  # its trials have already shown that it works, so what JAX cannot do here says nothing about it
        return True


@dataclass
class Trial:
    """Consecutive episodes of one player."""

    observations: list[Any] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    """The actions, in the form that the environment takes."""
    rewards: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    """Returns of the finished episodes; the last episode may be unfinished."""
    terminated: list[bool] = field(default_factory=list)
    """Whether each finished episode terminated; otherwise it was truncated."""
    info: list[dict[str, float]] = field(default_factory=list)
    """The numbers in `info` at the end of each finished episode."""
    time_limits: list[bool] = field(default_factory=list)
    """Whether `info` at the end of each finished episode says that a time limit ended it."""
    unfinished: int = 0
    """Number of steps of the unfinished episode at the end."""
    reset_seconds: float = 0.0
    step_seconds: float = 0.0
    resets: int = 0

    @property
    def steps(self) -> int:
        return len(self.rewards)


def player_of(environment: Any, limit: int | None) -> Player:
    """A player for a fresh environment."""
    return CompiledPlayer(environment, limit) if environment.is_compiled else HostPlayer(environment, limit)


def actions_of(environment: AnyEnvironment, seed: int) -> Callable[[np.ndarray | None], Any]:
    """Return a function that draws random actions, determined by the seed, among those that a mask allows, in the form
    in which training passes them to the environment.

    Box actions extend slightly beyond the bounds, as a policy's actions do, so that some are clipped. For a Box without
    bounds, actions lie within ±1.
    """
    generator, head = np.random.default_rng(seed), head_of(environment.action_space, "the environment")
    to_compiled = jax.jit(lambda action: head.to_compiled(action))

    def next_action(mask: np.ndarray | None) -> Any:
        sampled = head.random(generator, mask)[None]
        if environment.is_compiled:
            return jax.tree.map(lambda x: np.asarray(x)[0], to_compiled(sampled))
        return one_by_one(head.to_environment(sampled))[0]

    return next_action


def play(
    player: Player, next_action: Callable[[np.ndarray | None], Any], max_steps: int, seconds: float, seed: int = 0
) -> Trial:
    """Take random actions for a number of steps or seconds, using the reset seeds of environment 0 in a run with this
    seed."""
    trial, started = Trial(), perf_counter()
    while trial.steps < max_steps and perf_counter() - started < seconds:
        before = perf_counter()
        trial.observations.append(player.reset(reset_seed(seed, 0, trial.resets)))
        trial.reset_seconds += perf_counter() - before
        trial.resets, total, length, over = trial.resets + 1, 0.0, 0, False
        while not over and trial.steps < max_steps and perf_counter() - started < seconds:
            action = next_action(player.mask)
            trial.actions.append(jax.tree.map(np.array, action))  # a copy, since step may write into the action
            before = perf_counter()
            observation, reward, terminated, truncated = player.step(action)
            trial.step_seconds += perf_counter() - before
            trial.observations.append(observation)
            trial.rewards.append(reward)
            total, length, over = total + reward, length + 1, terminated or truncated
            if over:
                trial.lengths.append(length)
                trial.returns.append(total)
                trial.terminated.append(terminated)
                trial.info.append(player.numbers())
                trial.time_limits.append(player.says_time_limit())
        trial.unfinished = 0 if over else length
    return trial


def same(one: Trial, other: Trial) -> bool:
    """Whether two trials agree up to the end of the shorter one."""
    n, m = min(len(one.observations), len(other.observations)), min(one.steps, other.steps)
    observations = zip(*(jax.tree.leaves(x.observations[:n]) for x in (one, other)), strict=True)
    if not np.array_equal(one.rewards[:m], other.rewards[:m], equal_nan=True):
        return False
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in observations)
