"""collect on the host: the same rollout as in a compiled world, from Gymnasium environments."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from upslope.core.types import Rollout, host_rollout
from upslope.models.spaces import Coding

AHEAD = 64
"""Steps for which chance is asked at once."""
Choose = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""(observation [S, N, …], t) → action [S, N, …], log μ(a|s) [S, N]."""


@runtime_checkable
class Steppable(Protocol):
    """What collecting needs of S × N environments: `HostColumns`, or `SlicedColumns` in other processes."""

    shape: tuple[int, int]
    coding: Coding
    dtype: np.dtype
    observation: np.ndarray

    @property
    def episodes(self) -> Sequence[Any]:
        """[S·N], each with `episode_return` and `length`."""
        ...

    def begin(self, rows: Sequence[int]) -> None:
        """Begin a new episode in each of the rows."""
        ...

    def step(self, action: np.ndarray, rows: np.ndarray, next_observation: np.ndarray) -> tuple[np.ndarray, ...]:
        """Step the rows; reward, terminated, truncated."""
        ...


class EpisodeEnds(NamedTuple):
    """The finished episodes of a rollout: seed index, step within the rollout, return, length; each [E]."""

    seed_index: np.ndarray
    t: np.ndarray
    episode_return: np.ndarray
    length: np.ndarray


class HostRollout:
    """A rollout in NumPy while it grows: a list of each fact [S·N, …], step by step."""

    def __init__(self, columns: Steppable):
        self.shape = columns.shape
        self.facts: dict[str, list[np.ndarray]] = {name: [] for name in Rollout._fields}

    def write(self, **facts: np.ndarray) -> None:
        """Add a step."""
        for name, value in facts.items():
            self.facts[name].append(value)

    def rollout(self) -> Rollout:
        """All steps, [S, T, N, …]."""

        def stacked(steps: list[np.ndarray]) -> np.ndarray:
            return np.moveaxis(np.array(steps).reshape(len(steps), *self.shape, *steps[0].shape[1:]), 0, 1)

        return host_rollout({name: stacked(steps) for name, steps in self.facts.items()})


class Act:
    """a_t ~ π(·|s_t) for every seed and environment, and log π(a_t|s_t): in NumPy, but for what chance decides."""

    def __init__(self) -> None:
        self.draw = jax.jit(draw_noise)

    def bind(self, agents: Any, keys: jax.Array) -> Choose:
        """How these agents [S] act with these keys [S]."""
        # A parameter of a seed has to meet all environments of that seed; a matrix does so by itself.
        here = jax.tree.map(lambda x: np.asarray(x)[:, None] if x.ndim == 2 else np.asarray(x), agents)
        noise = np.zeros(0)

        def choose(observation: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray]:
            nonlocal noise
            if t % AHEAD == 0:
                noise = np.asarray(self.draw(agents, keys, observation, t))
            policy = here.policy(observation)
            action = policy.choose(noise[t % AHEAD])
            return action, policy.log_prob(action)

        return choose


def draw_noise(agents: Any, keys: jax.Array, observation: jax.Array, t: Any) -> jax.Array:
    """What chance decides of the actions at t, t + 1 …: [AHEAD, S, N, …]."""

    def one_seed(agent: Any, key: jax.Array, observation: jax.Array, t: Any) -> jax.Array:
        return agent.policy(observation).noise(jax.random.fold_in(key, t))

    one_step = jax.vmap(one_seed, (0, 0, 0, None))
    return jax.vmap(one_step, (None, None, None, 0))(agents, keys, observation, t + jax.numpy.arange(AHEAD))


def collect_host(
    columns: Steppable, choose: Choose, num_steps: int, phases: dict[str, float]
) -> tuple[Rollout, EpisodeEnds]:
    """`num_steps` steps of every environment, going on from where it is; a new episode begins when one ends."""
    every_row = np.arange(len(columns.episodes))
    grown, finished = HostRollout(columns), []
    for t in range(num_steps):
        done = step_all(columns, choose, t, every_row, grown, phases)
        started = perf_counter()
        finished += ended(columns, t, done)
        columns.begin(done.tolist())
        phases["environment"] = phases.get("environment", 0.0) + perf_counter() - started
    return grown.rollout(), ends_of(finished)


def collect_host_episodes(
    columns: Steppable,
    choose: Choose,
    active: np.ndarray,
    phases: dict[str, float],
) -> tuple[Rollout, EpisodeEnds]:
    """One whole episode in every column of the active seeds [S]; steps after an end are not valid."""
    rows = np.flatnonzero(np.repeat(active, columns.shape[1]))
    columns.begin(rows.tolist())
    grown, finished, t = HostRollout(columns), [], 0
    while rows.size:
        done = step_all(columns, choose, t, rows, grown, phases)
        finished += ended(columns, t, done)
        rows = np.setdiff1d(rows, done, assume_unique=True)
        t += 1
    return grown.rollout(), ends_of(finished)


def step_all(
    columns: Steppable,
    choose: Choose,
    t: int,
    rows: np.ndarray,
    grown: HostRollout,
    phases: dict[str, float],
) -> np.ndarray:
    """Act once in the given rows and write down what happened; return the rows whose episode ended."""
    before = perf_counter()
    observation = columns.observation.copy()
    action, log_prob = choose(observation, t)
    acted = perf_counter()
    observation, action = observation.reshape(-1, *columns.coding.shape), action.reshape(-1, *action.shape[2:])
    successor = observation.copy()
    reward, terminated, truncated = columns.step(action, rows, successor)
    valid = np.zeros(len(reward), bool)
    valid[rows] = True
    grown.write(
        observation=observation,
        action=action,
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        next_observation=successor,
        behaviour_log_prob=log_prob.ravel(),
        valid=valid,
    )
    stepped = perf_counter()
    phases["act"] = phases.get("act", 0.0) + acted - before
    phases["environment"] = phases.get("environment", 0.0) + stepped - acted
    return np.flatnonzero(terminated | truncated)


def ended(columns: Steppable, t: int, rows: np.ndarray) -> list[tuple[int, int, float, int]]:
    """The episodes that end in these rows."""
    episodes = [(row, columns.episodes[row]) for row in rows.tolist()]
    return [(row // columns.shape[1], t, e.episode_return, e.length) for row, e in episodes]


def ends_of(finished: list[tuple[int, int, float, int]]) -> EpisodeEnds:
    """A list of ends as arrays."""
    seed_index, t, episode_return, length = zip(*finished, strict=True) if finished else ((), (), (), ())
    return EpisodeEnds(
        np.asarray(seed_index, int),
        np.asarray(t, int),
        np.asarray(episode_return, float),
        np.asarray(length, int),
    )
