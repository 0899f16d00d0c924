"""Columns of slow Gymnasium environments: each worker process steps a slice of every seed's environments.

If a step takes a millisecond, passing observations between processes costs little in comparison, and even one seed uses
every core. Acting and learning stay in the main process, and every episode has its own reset seed, so a run is bitwise
identical for any number of slices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import jax
import numpy as np

from upslope.core.arrays import copied, in_seeds
from upslope.engines.border import Border, assign, raised, read_mask, reset_answer, step_answer
from upslope.engines.columns import HostColumns, join_snapshots, one_by_one, part_of
from upslope.engines.notices import Notices, notices_to
from upslope.engines.processes import Worker, answers_of, close_workers, settle_down
from upslope.environments.closing import close_all
from upslope.environments.registry import HostEnvironment
from upslope.errors import UpslopeError
from upslope.learning.devices import num_cores
from upslope.learning.iteration import Task
from upslope.models.heads import head_of

HANDING_OVER = 0.3e-3
"""Overhead of a step of all slices, in seconds, besides the environments' own time."""
TRIAL = 0.25
"""Seconds of the timing trial of an environment."""
WORTH_STARTING = 5.0
"""Seconds that must be saved to justify starting processes."""
WORTH_TRYING = 5_000
"""Environment steps of all seeds below which the trial is skipped."""


@dataclass
class Shown:
    """What the main process knows of a worker's episode."""

    episode: int = -1
    episode_return: float = 0.0
    length: int = 0


class SlicedColumns:
    """`HostColumns` whose environments live in worker processes."""

    def __init__(self, task: Task, seeds: Sequence[int], workers: int, say: Callable[[str], None]):
        self.say = say
        self.shape = (len(seeds), task.num_envs)
        self.slices = np.array_split(np.arange(task.num_envs), workers)
        every = np.arange(len(seeds) * task.num_envs).reshape(self.shape)
        self.rows = [every[:, part].ravel() for part in self.slices]
        self.owner, self.place = np.zeros((2, every.size), int)
        for number, rows in enumerate(self.rows):
            self.owner[rows], self.place[rows] = number, np.arange(len(rows))
        self.episodes = [Shown() for _ in self.owner]
        names = [f"environments {part[0]} to {part[-1]} of each seed" for part in self.slices]
        notices = notices_to(say)
        self.workers: list[Worker] = []
        try:
            for i, name in enumerate(names):
                self.workers.append(Worker("upslope.engines.slices", i, name, notices))
            self.all("open", [(task, list(seeds), part.tolist()) for part in self.slices])
        except BaseException:
            self.close()
            raise
        environment = task.environment
        self.flat = Border(environment.name, environment.observation_space, task.model.encoder).empty(every.size)
        choices = task.model.head.num_choices
        self.mask = np.ones((every.size, choices), bool) if environment.gives_masks else None
        """See `HostColumns.mask`."""

    def all(self, what: str, arguments: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """Call a method on every worker, each with its own arguments, and wait for all."""
        for worker, mine in zip(self.workers, arguments or [()] * len(self.workers), strict=True):
            worker.ask(what, *mine)
        return answers_of(self.workers, self.say)

    def some(self, what: str, rows: np.ndarray, *arguments: np.ndarray) -> list[tuple[np.ndarray, Any]]:
        """Call a method on the workers that own the rows, each with its arguments; return (rows, answer) pairs."""
        parts = [(worker, rows[self.owner[rows] == number]) for number, worker in enumerate(self.workers)]
        parts = [(worker, mine) for worker, mine in parts if len(mine)]
        for worker, mine in parts:
            worker.ask(what, self.place[mine].tolist(), *(x[mine] for x in arguments))
        answers = answers_of([worker for worker, _ in parts], self.say)
        return [(mine, answer) for (_, mine), answer in zip(parts, answers, strict=True)]

    @property
    def observation(self) -> Any:
        """The current observation of every environment, [S, N, …]."""
        return in_seeds(self.flat, self.shape)

    @property
    def has_begun(self) -> bool:
        """Whether every environment is in an episode."""
        return all(episode.episode >= 0 for episode in self.episodes)

    @property
    def acting(self) -> np.ndarray:
        """See `HostColumns.acting`."""
        return np.arange(len(self.owner))

    def begin(self, rows: Sequence[int], *, afresh: bool = False) -> None:
        """See `HostColumns.begin`."""
        if len(rows):
            for mine, (observation, mask) in self.some("begin", np.asarray(rows)):
                assign(self.flat, mine, observation)
                self.allow(mine, mask)
                for row in mine.tolist():
                    self.episodes[row] = Shown(self.episodes[row].episode + 1)

    def step(self, action: np.ndarray, rows: np.ndarray, next_observation: Any) -> tuple[np.ndarray, ...]:
        """Step the given rows with the policy's actions [S·N, …]; write the true successors.

        Returns reward, terminated, truncated, each [S·N], zero in the other rows.
        """
        found = np.zeros(len(self.owner), np.float32), *np.zeros((2, len(self.owner)), bool)
        for mine, (successor, mask, ends, *three) in self.some("step", rows, action):
            assign(next_observation, mine, successor)
            self.allow(mine, mask)
            for whole, part in zip(found, three, strict=True):
                whole[mine] = part
            for index, episode_return, length in ends:
                shown = self.episodes[mine[index]]
                shown.episode_return, shown.length = episode_return, length
        assign(self.flat, rows, jax.tree.map(lambda x: x[rows], next_observation))
        return found

    def allow(self, rows: np.ndarray, mask: np.ndarray | None) -> None:
        """Record the currently allowed choices of these rows."""
        if self.mask is not None:
            self.mask[rows] = mask

    def mark(self, *, between_episodes: bool) -> None:
        """Mark this point for `snapshot`."""
        self.all("mark", [(between_episodes,)] * len(self.workers))

    def snapshot(self) -> dict[str, np.ndarray]:
        """See `HostColumns.snapshot`."""
        return join_snapshots(self.all("snapshot"), self.rows, self.shape)

    def restore(self, snapshot: dict[str, np.ndarray], say: Callable[[str], None]) -> list[int]:
        """See `HostColumns.restore`; each environment is restored in its worker."""
        afresh: list[int] = []
        parts = [(part_of(snapshot, rows.reshape(self.shape[0], -1)),) for rows in self.rows]
        for rows, (observation, mask, episodes, words, begun) in zip(
            self.rows, self.all("restore", parts), strict=True
        ):
            afresh += rows[begun].tolist()
            assign(self.flat, rows, observation)
            self.allow(rows, mask)
            for row, episode in zip(rows.tolist(), episodes, strict=True):
                self.episodes[row] = Shown(episode)
            for line in words:
                say(line)
        return afresh

    def close(self) -> None:
        """Shut the worker processes down."""
        close_workers(self.workers)


def num_slices(task: Task, num_seeds: int, asked: int | None) -> int:
    """The number of processes that step a seed's environments; 1 means none. If the user requested more than there are
    seeds, that number; otherwise as many as pay off according to a timing trial."""
    if task.environment.batch is not None:
        return 1
    cores = num_cores()
    slices = min(asked or cores, task.num_envs)
    if slices <= num_seeds or asked is not None:
        return slices if slices > num_seeds else 1
    if task.steps * num_seeds < WORTH_TRYING:
        return 1
    # Seconds for a step of all environments: with one process per seed, or a slice of every seed in each process.
    seconds, largest = step_seconds(task.environment), -(-task.num_envs // slices)
    by_seeds, sliced = task.num_envs * seconds, num_seeds * largest * seconds
    saved = (by_seeds - sliced - HANDING_OVER) * task.steps / task.num_envs
    return slices if sliced + HANDING_OVER < 0.8 * by_seeds and saved > WORTH_STARTING else 1


class Tried:
    """The place of an environment in its timing trial."""

    seen = length = 0

    def describe(self) -> str:
        """Describe the place for a message."""
        return f"when it was tried out, step {self.length}"


def step_seconds(world: HostEnvironment) -> float:
    """Measure the seconds per step of one environment under random actions."""
    environment, place, where = world.create(), Tried(), "reset"
    try:
        head, generator = head_of(world.action_space, world.name), np.random.default_rng(0)
        answer = environment.reset(seed=0)
        reset_answer(answer, world.name, place)
        started = perf_counter()
        while perf_counter() - started < TRIAL and place.length < 1000:
            where, place.length = "step", place.length + 1
            mask = read_mask(answer[-1], head, world.name, place) if world.gives_masks else None
            (action,) = one_by_one(head.to_environment(head.random(generator, mask)[None]))
            answer = environment.step(action)
            _, _, terminated, truncated = step_answer(answer, world.name, place)
            if terminated or truncated:
                where = "reset"
                answer = environment.reset()
        return (perf_counter() - started) / max(place.length, 1)
    except UpslopeError:
        raise
    except Exception as error:
        raise UpslopeError(raised(world.name, where, place.describe(), error)) from error
    finally:
        close_all(world.name, [environment])


class Server:
    """The worker's side: the `HostColumns` of a slice."""

    notices: Notices | None = None
    columns: Any = None
    """The slice's `HostColumns`, after `open`."""

    def open(self, task: Task, seeds: list[int], indices: list[int]) -> None:
        """Create the environments."""
        limit = task.max_episode_steps
        self.columns = HostColumns(
            task.environment, task.model.encoder, task.model.head, seeds, len(indices), limit, indices, self.notices
        )
        settle_down()

    def begin(self, rows: list[int]) -> Any:
        """Start episodes; return their first observations and allowed choices."""
        self.columns.begin(rows)
        return jax.tree.map(lambda x: x[rows], (self.columns.flat, self.columns.mask))

    def step(self, rows: list[int], action: np.ndarray) -> tuple[Any, ...]:
        """Step these rows; return successors, allowed choices, ended episodes, reward, terminated, truncated."""
        columns = self.columns
        whole = np.zeros((len(columns.episodes), *action.shape[1:]), action.dtype)
        whole[rows] = action
        successor = copied(columns.flat)
        reward, terminated, truncated = (x[rows] for x in columns.step(whole, np.asarray(rows), successor))
        ended = [(i, columns.episodes[rows[i]]) for i in np.flatnonzero(terminated | truncated).tolist()]
        shown = jax.tree.map(lambda x: x[rows], (successor, columns.mask))
        return *shown, [(i, e.episode_return, e.length) for i, e in ended], reward, terminated, truncated

    def mark(self, between_episodes: bool) -> None:
        """Mark this point for `snapshot`."""
        self.columns.mark(between_episodes=between_episodes)

    def snapshot(self) -> dict[str, np.ndarray]:
        """The snapshot at the mark."""
        return self.columns.snapshot()

    def restore(self, snapshot: dict[str, np.ndarray]) -> tuple[Any, Any, list[int], list[str], list[int]]:
        """Restore the environments; return observations, allowed choices, episode numbers, messages to show, and the
        rows where a new episode began."""
        words: list[str] = []
        afresh = self.columns.restore(snapshot, words.append)
        return self.columns.flat, self.columns.mask, [e.episode for e in self.columns.episodes], words, afresh

    def close(self) -> None:
        """Close the environments."""
        if self.columns is not None:
            self.columns.close()
