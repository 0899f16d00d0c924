"""Step slow Gymnasium environments in worker processes, each of which steps a slice of every seed's environments.

If a step takes a millisecond, passing observations between processes costs little in comparison, and even a single seed
uses every core. If a step takes less, the main process steps the first slice itself, so it never has to be woken up.
Acting and learning stay in the main process, and every episode has its own reset seed, so a run is bitwise identical
for any number of slices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import jax
import numpy as np

from upslope.core.arrays import copied, in_seeds, over_parts
from upslope.core.their_folder import TheirFolder
from upslope.engines.border import Border, assign, mask_reader, raised, reset_answer, step_answer
from upslope.engines.columns import HostColumns, join_snapshots, one_by_one, part_of
from upslope.engines.notices import Notices, notices_to
from upslope.engines.processes import LocalChannel, reduce_overhead, start_process
from upslope.engines.shared_steps import Shapes, SharedSteps, StepServer, is_possible
from upslope.engines.transport import Heartbeat, StartWorker, Worker, answers_of, close_workers
from upslope.environments.closing import close_all
from upslope.environments.registry import HostEnvironment
from upslope.errors import STOPS, UpslopeError
from upslope.learning.devices import num_cores
from upslope.learning.iteration import Task
from upslope.models.heads import head_of

STEP_OVERHEAD, CALL_OVERHEAD, JOINED_OVERHEAD = 0.3e-3, 0.5e-3, 0.08e-3
"""Overhead per step, in seconds: for all slices together if each has its own process, for each slice on a cluster, and
for all slices together if the main process steps the first slice."""
JOINED_BELOW = 1e-3
"""Seconds per step of an environment below which the main process steps a slice."""
TRIAL_SECONDS = 0.25
"""Duration of an environment's timing trial, in seconds."""
STRETCHES = 10
"""Number of segments of steps in a trial."""
MIN_SECONDS_SAVED = 3.0
"""Minimum expected saving, in seconds, that justifies starting processes."""
MIN_TRIAL_STEPS = 5_000
"""Number of environment steps, summed over all seeds, below which the trial is skipped."""


OUTCOME, OUTCOME_TYPES = ("reward", "terminated", "truncated"), (np.float32, bool, bool)
"""The values that a step returns for each environment, in addition to its observation."""


def nothing_ended(num: int, num_info: int) -> dict[str, np.ndarray]:
    """Return placeholders for the return, length and numbers from info of environments whose episodes have not
    ended."""
    return {"return": np.zeros(num), "length": np.zeros(num, np.int64), "info": np.zeros((num, num_info))}


@dataclass
class EpisodeStatus:
    """The main process's copy of a worker's current episode."""

    episode: int = -1
    episode_return: float = 0.0
    length: int = 0
    info: tuple[float, ...] = ()


class Slicing(NamedTuple):
    """The distribution of a seed's environments over processes."""

    slices: int = 1
    """The number of slices; 1 means that the environments are not distributed."""
    is_joined: bool = False
    """Whether the main process steps the first slice."""


class SlicedColumns:
    """The counterpart of `HostColumns` for environments in worker processes."""

    def __init__(
        self,
        task: Task,
        seeds: Sequence[int],
        slicing: Slicing,
        say: Callable[[str], None],
        start_worker: StartWorker = start_process,
    ):
        self.say = say
        self.shape = (len(seeds), task.num_envs)
        self.slices = np.array_split(np.arange(task.num_envs), slicing.slices)
        all_rows = np.arange(len(seeds) * task.num_envs).reshape(self.shape)
        self.rows = [all_rows[:, part].ravel() for part in self.slices]
        self.owner, self.place = np.zeros((2, all_rows.size), int)
        for number, rows in enumerate(self.rows):
            self.owner[rows], self.place[rows] = number, np.arange(len(rows))
        self.episodes = [EpisodeStatus() for _ in self.owner]
        names = [f"environments {part[0]} to {part[-1]} of each seed" for part in self.slices]
        notices = notices_to(say)
        self.local = Server(is_local=True) if slicing.is_joined else None
        self.own_folder = TheirFolder()
        self.workers: list[Worker] = []
        try:
            for i, name in enumerate(names):
                if self.local is not None and i == 0:  # comes first, so that it steps while the others do
                    self.local.notices = notices
                    self.workers.append(Worker(LocalChannel(self.local), i, name, notices))
                else:
                    self.workers.append(start_worker("upslope.engines.slices", i, name, notices))
            self.call_all("open", [(task, list(seeds), part.tolist()) for part in self.slices])
        except BaseException:
            self.close()
            raise
        environment = task.environment
        self.flat = Border(environment.name, environment.observation_space, task.model.encoder).empty(all_rows.size)
        choices = task.model.head.num_choices
        self.mask = np.ones((all_rows.size, choices), bool) if environment.gives_masks else None
        """See `HostColumns.mask`."""
        self.all_rows = np.arange(all_rows.size)
        self.num_info = len(task.log_info)
        self.shared: list[SharedSteps | None] | None = None if slicing.is_joined else [None for _ in self.workers]
        """The shared memory of each worker that has one. None until the first step, which shows how much memory is
        needed."""
        self.begins = not task.estimator.whole_episodes
        """Whether a new episode begins whenever one ends, without a request to the worker."""
        self.begun: dict[int, tuple[Any, Any]] = {}
        """Row → the first observation and mask of an episode that has begun in its worker but not yet in this
        process."""

    @property
    def here(self) -> HostColumns | None:
        """The columns that are stepped in this process."""
        return None if self.local is None else self.local.columns

    @property
    def folder(self) -> TheirFolder:
        """The current folder of the environments in this process."""
        return self.own_folder if self.here is None else self.here.folder

    def call_all(self, what: str, arguments: Sequence[tuple[Any, ...]] | None = None) -> list[Any]:
        """Call a method on every worker, each with its own arguments, and return all answers."""
        for worker, mine in zip(self.workers, arguments or [()] * len(self.workers), strict=True):
            worker.ask(what, *mine)
        return answers_of(self.workers, self.say)

    def call_owners(self, what: str, rows: np.ndarray, *arguments: np.ndarray) -> list[tuple[np.ndarray, Any]]:
        """Call a method on the workers that own the rows, each with its own arguments, and return (rows, answer)
        pairs."""
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
        return self.all_rows

    def begin(self, rows: Sequence[int], *, afresh: bool = False) -> None:
        """See `HostColumns.begin`."""
        for row in rows:
            self.episodes[row] = EpisodeStatus(self.episodes[row].episode + 1)
        to_begin = [row for row in rows if row not in self.begun]
        for row, (observation, mask) in self.begun.items():
            assign(self.flat, row, observation)
            self.allow(row, mask)
        self.begun.clear()
        if to_begin:
            for mine, (observation, mask) in self.call_owners("begin", np.asarray(to_begin)):
                assign(self.flat, mine, observation)
                self.allow(mine, mask)

    def step(self, action: np.ndarray, rows: np.ndarray, next_observation: Any) -> tuple[np.ndarray, ...]:
        """Step the given rows with the policy's actions [S·N, …], and write the true successors into
        `next_observation`.

        Returns reward, terminated, truncated, each [S·N], zero in the other rows.
        """
        if self.shared is None:
            self.shared = self.share(action, next_observation)
        is_whole = len(rows) == len(self.all_rows)
        outcome = np.zeros(len(self.owner), np.float32), *np.zeros((2, len(self.owner)), bool)
        named = [*zip(OUTCOME, outcome, strict=True)]
        named += [(f"observation {i}", x) for i, x in enumerate(jax.tree.leaves(next_observation))]
        for mine, found in (
            self.step_shared(action, self.shared) if is_whole else self.call_owners("step", rows, action)
        ):
            for name, x in named:
                x[mine] = found[name]
            self.allow(mine, found.get("mask"))
            for i in np.flatnonzero(found["terminated"] | found["truncated"]).tolist():
                self.take_end(int(mine[i]), i, found, has_begun=is_whole and self.begins)
        if is_whole:
            assign(self.flat, slice(None), next_observation)
        else:
            assign(self.flat, rows, over_parts(lambda x: x[rows], next_observation))
        return outcome

    def take_end(self, row: int, i: int, found: dict[str, np.ndarray], *, has_begun: bool) -> None:
        """Record the episode that ended in a row, which is the i-th row of a worker's answer, and the next episode if
        it `has_begun` in the worker."""
        shown = self.episodes[row]
        shown.episode_return, shown.length = float(found["return"][i]), int(found["length"][i])
        shown.info = tuple(found["info"][i].tolist())
        if has_begun:
            structure = jax.tree.structure(self.flat)
            first = [found[f"first {k}"][i].copy() for k in range(structure.num_leaves)]
            mask = None if self.mask is None else found["first mask"][i].copy()
            self.begun[row] = structure.unflatten(first), mask

    def step_shared(
        self, action: np.ndarray, memories: list[SharedSteps | None]
    ) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Step every environment, through shared memory if available, and return (rows, outcome) pairs."""
        for worker, rows, shared in zip(self.workers, self.rows, memories, strict=True):
            if shared is None:
                worker.ask("step", list(range(len(rows))), action[rows], self.begins)
            else:
                shared.ask(action[rows])
        answers = answers_of([s or w for w, s in zip(self.workers, memories, strict=True)], self.say)
        return [*zip(self.rows, answers, strict=True)]

    def share(self, action: np.ndarray, next_observation: Any) -> list[SharedSteps | None]:
        """Share memory with the worker processes if this machine supports it. Workers that use their channel instead
        have None in the list."""
        memories: list[SharedSteps | None] = [None for _ in self.workers]
        for number, (worker, rows) in enumerate(zip(self.workers, self.rows, strict=True)):
            if number == 0 or not is_possible():  # the first slice is stepped in this process
                continue
            like = {"action": action[rows], **nothing_ended(len(rows), self.num_info)}
            like |= {name: np.zeros(len(rows), kind) for name, kind in zip(OUTCOME, OUTCOME_TYPES, strict=True)}
            for what in ("observation", "first"):
                like |= {f"{what} {i}": x[rows] for i, x in enumerate(jax.tree.leaves(next_observation))}
            if self.mask is not None:
                like |= {"mask": self.mask[rows], "first mask": self.mask[rows]}
            try:
                memories[number] = SharedSteps(worker, like, self.begins, self.say)
            except OSError:  # not enough space; the pipes are slower but always available
                break
        return memories

    def call(self, name: str, arguments: list[Any]) -> None:
        """See `HostColumns.call`."""
        self.call_all("call", [(name, arguments)] * len(self.workers))

    def allow(self, rows: np.ndarray | int, mask: np.ndarray | None) -> None:
        """Store the currently allowed choices of the given rows."""
        if self.mask is not None:
            self.mask[rows] = mask

    def mark(self, *, between_episodes: bool) -> None:
        """Mark this point for `snapshot`."""
        self.call_all("mark", [(between_episodes,)] * len(self.workers))

    def snapshot(self) -> dict[str, np.ndarray]:
        """See `HostColumns.snapshot`."""
        return join_snapshots(self.call_all("snapshot"), self.rows, self.shape)

    def restore(self, snapshot: dict[str, np.ndarray], say: Callable[[str], None]) -> list[int]:
        """See `HostColumns.restore`; each environment is restored in its worker."""
        afresh: list[int] = []
        parts = [(part_of(snapshot, rows.reshape(self.shape[0], -1)),) for rows in self.rows]
        for rows, (observation, mask, episodes, words, begun) in zip(
            self.rows, self.call_all("restore", parts), strict=True
        ):
            afresh += rows[begun].tolist()
            assign(self.flat, rows, observation)
            self.allow(rows, mask)
            for row, episode in zip(rows.tolist(), episodes, strict=True):
                self.episodes[row] = EpisodeStatus(episode)
            for line in words:
                say(line)
        return afresh

    def close(self) -> None:
        """Shut down the worker processes."""
        close_workers(self.workers)


def slicing_of(task: Task, num_seeds: int, requested: int | None, on_cluster: int | None = None) -> Slicing:
    """Decide into how many slices to divide a seed's environments.

    This is the requested number if it exceeds the number of seeds. Otherwise, a timing trial determines how many are
    worthwhile. `on_cluster` is the number of workers that fit on a cluster; without it, the number of this machine's
    cores is used."""
    if task.environment.batch is not None:
        return Slicing()
    cores = on_cluster or num_cores()
    slices = min(requested or cores, task.num_envs)
    if slices <= num_seeds or requested is not None:
        return Slicing(slices if slices > num_seeds else 1)
    if task.steps * num_seeds < MIN_TRIAL_STEPS:
        return Slicing()
    # Seconds per step of all environments, with one process per seed and with a slice of every seed per process.
    seconds, largest = step_seconds(task.environment), -(-task.num_envs // slices)
    by_seeds, sliced = task.num_envs * seconds, num_seeds * largest * seconds
    is_joined = on_cluster is None and seconds < JOINED_BELOW
    overhead = JOINED_OVERHEAD if is_joined else STEP_OVERHEAD if on_cluster is None else CALL_OVERHEAD * slices
    saved = (by_seeds - sliced - overhead) * task.steps / task.num_envs
    pays = sliced + overhead < 0.8 * by_seeds and saved > MIN_SECONDS_SAVED
    return Slicing(slices, is_joined) if pays else Slicing()


class TrialPlace:
    """The current step of an environment in its timing trial."""

    seen = length = 0

    def describe(self) -> str:
        """Describe the step for a message."""
        return f"in its timing trial, step {self.length}"


def step_seconds(environment: HostEnvironment) -> float:
    """Measure the seconds per step of one environment with random actions, including resets.

    The result is the median over short segments, so other work on the core during a few of them does not matter."""
    with TheirFolder():
        instance, place, where = environment.create(), TrialPlace(), "reset"
        at: list[float] = []
        try:
            head, generator = head_of(environment.action_space, environment.name), np.random.default_rng(0)
            read_mask = mask_reader(head, environment.name)
            answer = instance.reset(seed=0)
            reset_answer(answer, environment.name, place)
            at.append(perf_counter())
            while len(at) == 1 or (at[-1] - at[0] < TRIAL_SECONDS and place.length < 1000):
                where, place.length = "step", place.length + 1
                mask = read_mask(answer[-1], place) if environment.gives_masks else None
                (action,) = one_by_one(head.to_environment(head.random(generator, mask)[None]))
                answer = instance.step(action)
                _, _, terminated, truncated = step_answer(answer, environment.name, place)
                if terminated or truncated:
                    where = "reset"
                    answer = instance.reset()
                at.append(perf_counter())
        except UpslopeError:
            raise
        except STOPS:
            raise
        except BaseException as error:
            raise UpslopeError(raised(environment.name, where, place.describe(), error)) from error
        finally:
            close_all(environment.name, [instance])
        marks = np.unique(np.linspace(0, len(at) - 1, STRETCHES + 1).astype(int))
        return float(np.median(np.diff(np.asarray(at)[marks]) / np.diff(marks)))


class Server:
    """Runs in the worker and holds the `HostColumns` of a slice."""

    notices: Notices | None = None
    columns: Any = None
    """The slice's `HostColumns`, set by `open`."""

    def __init__(self, is_local: bool = False):
        """`is_local` is true in the main process."""
        self.is_local = is_local
        self.steps: StepServer | None = None

    def open(self, task: Task, seeds: list[int], indices: list[int]) -> None:
        """Create the environments."""
        model, sizes = task.model, (len(indices), task.max_episode_steps, indices)
        self.columns = HostColumns(
            task.environment, model.encoder, model.head, seeds, *sizes, self.notices, task.log_info, task.group_size
        )
        self.num_info = len(task.log_info)
        self.nothing = [nothing_ended(num, self.num_info) for num in range(len(self.columns.episodes) + 1)]
        if not self.is_local:
            reduce_overhead()

    def call(self, name: str, arguments: list[Any]) -> None:
        """Have every environment of the slice call a method before its next reset."""
        self.columns.call(name, arguments)

    def begin(self, rows: list[int]) -> Any:
        """Begin episodes, and return their first observations and allowed choices."""
        self.columns.begin(rows)
        return jax.tree.map(lambda x: x[rows], (self.columns.flat, self.columns.mask))

    def step(self, rows: list[int], action: np.ndarray, begins: bool = False) -> dict[str, np.ndarray]:
        """Step the given rows, and return reward, terminated, truncated, successors, allowed choices, and the return,
        length and numbers from info of the episodes that ended.

        With `begins`, the next episodes begin, and their first observations and allowed choices are returned too."""
        columns, is_whole = self.columns, len(rows) == len(self.columns.episodes)
        actions, chosen = action, slice(None) if is_whole else rows
        if not is_whole:
            actions = np.zeros((len(columns.episodes), *action.shape[1:]), action.dtype)
            actions[rows] = action
        successor = copied(columns.flat)
        outcome = columns.step(actions, np.asarray(rows), successor)
        found = {name: x[chosen] for name, x in zip(OUTCOME, outcome, strict=True)}
        found |= {f"observation {i}": x[chosen] for i, x in enumerate(jax.tree.leaves(successor))}
        if columns.mask is not None:
            found["mask"] = columns.mask[chosen].copy()  # beginning an episode overwrites it
        ended = np.flatnonzero(found["terminated"] | found["truncated"]).tolist()
        if not ended:
            return found | self.nothing[len(rows)]
        ends = nothing_ended(len(rows), self.num_info)
        for i in ended:
            episode = columns.episodes[rows[i]]
            ends["return"][i], ends["length"][i], ends["info"][i] = episode.episode_return, episode.length, episode.info
        if begins:
            columns.begin([rows[i] for i in ended])
            ends |= {f"first {i}": x[chosen] for i, x in enumerate(jax.tree.leaves(columns.flat))}
            ends |= {} if columns.mask is None else {"first mask": columns.mask[chosen]}
        return found | ends

    def share(self, path: str, shapes: Shapes, begins: bool) -> None:
        """Share memory with the main process."""
        every_row = list(range(len(self.columns.episodes)))
        self.steps = StepServer(path, shapes, lambda action: self.step(every_row, action, begins))

    def between_requests(self, heartbeat: Heartbeat, has_request: Callable[[], bool]) -> None:
        """Answer steps through shared memory if it is in use."""
        if self.steps is not None:
            self.steps.serve(heartbeat, has_request)

    def wake(self) -> None:
        """Take a step that was requested while this process was asleep."""
        if self.steps is not None:
            self.steps.answer()

    def tell_failure(self) -> None:
        """Raise the error of the last step."""
        if self.steps is not None:
            raise self.steps.error

    def mark(self, between_episodes: bool) -> None:
        """Mark this point for `snapshot`."""
        self.columns.mark(between_episodes=between_episodes)

    def snapshot(self) -> dict[str, np.ndarray]:
        """Return the snapshot at the mark."""
        return self.columns.snapshot()

    def restore(self, snapshot: dict[str, np.ndarray]) -> tuple[Any, Any, list[int], list[str], list[int]]:
        """Restore the environments. Return observations, allowed choices, episode numbers, messages to show, and the
        rows in which a new episode began."""
        words: list[str] = []
        afresh = self.columns.restore(snapshot, words.append)
        return self.columns.flat, self.columns.mask, [e.episode for e in self.columns.episodes], words, afresh

    def close(self) -> None:
        """Close the environments."""
        if self.columns is not None:
            self.columns.close()
