"""collect on the host: the same rollout as in a compiled world, from Gymnasium environments."""

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from upslope.spaces import Coding
from upslope.types import Rollout, host_rollout

Choose = Callable[[np.ndarray, Any], tuple[Any, Any]]
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

    def step(self, action: np.ndarray, rows: Sequence[int], next_observation: np.ndarray) -> tuple[np.ndarray, ...]:
        """Step the rows; reward, terminated, truncated."""
        ...


class EpisodeEnds(NamedTuple):
    """The finished episodes of a rollout: seed index, step within the rollout, return, length; each [E]."""

    seed_index: np.ndarray
    t: np.ndarray
    episode_return: np.ndarray
    length: np.ndarray


class HostRollout:
    """A rollout [S, T, N, …] in NumPy while it grows."""

    def __init__(self, columns: Steppable, num_steps: int):
        s, n = columns.shape
        lead = (s, num_steps, n)
        self.rows: dict[str, np.ndarray] = {
            "observation": np.zeros((*lead, *columns.coding.shape), columns.dtype),
            "next_observation": np.zeros((*lead, *columns.coding.shape), columns.dtype),
            "reward": np.zeros(lead, np.float32),
            "terminated": np.zeros(lead, bool),
            "truncated": np.zeros(lead, bool),
            "behaviour_log_prob": np.zeros(lead, np.float32),
            "valid": np.zeros(lead, bool),
        }

    def write(self, t: int, **values: np.ndarray) -> None:
        """Write step t; the arrays are made at the first write of a name, and doubled when they are full."""
        for name, value in values.items():
            if name not in self.rows:
                length = self.rows["valid"].shape[1]
                self.rows[name] = np.zeros((value.shape[0], length, *value.shape[1:]), value.dtype)
            if t >= self.rows[name].shape[1]:
                grown = np.zeros_like(self.rows[name])
                self.rows[name] = np.concatenate([self.rows[name], grown], axis=1)
            self.rows[name][:, t] = value

    def rollout(self, num_steps: int) -> Rollout:
        """The first `num_steps` steps, all of which were written."""
        return host_rollout({name: x[:, :num_steps] for name, x in self.rows.items()})


class Act:
    """a_t ~ π(·|s_t) for every seed and environment, and log π(a_t|s_t), in one compiled call for all seeds.

    A call passes plain arrays alone: to unpack modules and typed keys at every step takes longer than to act.
    """

    def __init__(self) -> None:
        self.programs: dict[Any, Any] = {}

    def bind(self, agents: Any, keys: jax.Array) -> Choose:
        """How these agents [S] act with these keys [S]."""
        leaves, structure = jax.tree.flatten(agents)
        if structure not in self.programs:
            self.programs[structure] = jax.jit(partial(act, structure))
        program, integers = self.programs[structure], jax.random.key_data(keys)
        return lambda observation, t: program(leaves, integers, observation, t)


def act(structure: Any, leaves: Any, keys: jax.Array, observation: jax.Array, t: Any) -> tuple[jax.Array, jax.Array]:
    """Act with the agents that these leaves make up."""

    def one_seed(agent: Any, observation: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        policy = agent.policy(observation)
        action = policy.sample(jax.random.fold_in(key, t))
        return action, policy.log_prob(action)

    agents = jax.tree.unflatten(structure, leaves)
    return jax.vmap(one_seed)(agents, observation, jax.random.wrap_key_data(keys))


def collect_host(
    columns: Steppable, choose: Choose, num_steps: int, phases: dict[str, float]
) -> tuple[Rollout, EpisodeEnds]:
    """`num_steps` steps of every environment, going on from where it is; a new episode begins when one ends."""
    every_row = np.arange(len(columns.episodes))
    grown, finished = HostRollout(columns, num_steps), []
    for t in range(num_steps):
        done = step_all(columns, choose, t, every_row, grown, phases)
        started = perf_counter()
        finished += ended(columns, t, done)
        columns.begin(done.tolist())
        phases["environment"] = phases.get("environment", 0.0) + perf_counter() - started
    return grown.rollout(num_steps), ends_of(finished)


def collect_host_episodes(
    columns: Steppable,
    choose: Choose,
    active: np.ndarray,
    phases: dict[str, float],
) -> tuple[Rollout, EpisodeEnds]:
    """One whole episode in every column of the active seeds [S]; steps after an end are not valid."""
    rows = np.flatnonzero(np.repeat(active, columns.shape[1]))
    columns.begin(rows.tolist())
    grown, finished, t = HostRollout(columns, 64), [], 0
    while rows.size:
        done = step_all(columns, choose, t, rows, grown, phases)
        finished += ended(columns, t, done)
        rows = np.setdiff1d(rows, done, assume_unique=True)
        t += 1
    return grown.rollout(t), ends_of(finished)


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
    action, log_prob = (np.asarray(x) for x in choose(observation, np.int32(t)))
    acted = perf_counter()
    s, n = columns.shape
    successor = observation.reshape(s * n, *columns.coding.shape).copy()
    flat_action = action.reshape(s * n, *action.shape[2:])
    reward, terminated, truncated = columns.step(flat_action, rows.tolist(), successor)
    valid = np.zeros(s * n, bool)
    valid[rows] = True
    grown.write(
        t,
        observation=observation,
        action=action,
        reward=reward.reshape(s, n),
        terminated=terminated.reshape(s, n),
        truncated=truncated.reshape(s, n),
        next_observation=successor.reshape(observation.shape),
        behaviour_log_prob=log_prob,
        valid=valid.reshape(s, n),
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
