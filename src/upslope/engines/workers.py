"""Train in several workers, each with a share of the seeds.

Seeds are independent, so each worker has a complete engine, and the main process joins their states, rows and
snapshots. The alternative, splitting the environments of a seed (`slices.py`), passes every observation between
processes. For fast environments, that takes longer than the step itself.
"""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import jax
import numpy as np

from upslope.core.arrays import raw, typed
from upslope.core.messages import counted
from upslope.engines.base import Chunk, never
from upslope.engines.batched import BatchedColumns
from upslope.engines.columns import HostColumns, join_snapshots, rows_of, split_snapshot
from upslope.engines.compiled import CompiledEngine
from upslope.engines.host import HostEngine, columns_of
from upslope.engines.notices import Notices, notices_to
from upslope.engines.processes import reduce_overhead, start_process
from upslope.engines.transport import (
    ClusterGrownError,
    StartWorker,
    Stragglers,
    Worker,
    WorkerLostError,
    answers_of,
    close_workers,
)
from upslope.errors import UpslopeError
from upslope.learning.devices import num_cores
from upslope.learning.iteration import Task, TrainState, initialise_all

MIN_PARALLEL_STEPS = 50_000
"""Number of environment steps, summed over all seeds, below which starting processes costs more time than it saves."""

AHEAD_BELOW = 1.0
"""The workers begin the next chunk early only if a chunk takes less than this many seconds. With longer chunks, little
would be saved, and stopping would take longer."""
LOOK_SECONDS = 30.0
"""Number of seconds between checks of whether the cluster has grown."""


def num_workers(task: Task, num_seeds: int, requested: int | None) -> int:
    """Return the number of processes in which this run trains: one per seed, but at most one per core."""
    if requested is None and task.steps * num_seeds < MIN_PARALLEL_STEPS:
        return 1
    return min(num_seeds, requested or num_cores())


class WorkersEngine:
    """Advances all seeds by having each worker train a share of them."""

    hangs = False

    def __init__(
        self,
        task: Task,
        seeds: Sequence[int],
        workers: int,
        say: Callable[[str], None],
        start_worker: StartWorker = start_process,
        has_room: Callable[[], int] | None = None,
    ):
        """`has_room` returns the number of additional workers for which a cluster has room; without it, the number of
        workers is fixed."""
        self.task, self.seeds, self.say = task, seeds, say
        self.stragglers = Stragglers()
        self.has_room = has_room
        self.phases: dict[str, float] = {}
        self.looked = perf_counter()
        shares = np.array_split(np.asarray(self.seeds), workers)
        names = [f"seeds {', '.join(map(str, share))}" for share in shares]
        self.counts = [len(share) for share in shares]
        self.state: TrainState | None = None
        """The state that the workers hold; None if they may hold another state."""
        self.is_complete = True
        self.is_ahead = False
        """Whether the workers have been asked for the chunk after `state`."""
        self.outcome: list[Any] | UpslopeError | None = None
        """The answers to that request, or the error, if `snapshot` had to wait for them."""
        notices = notices_to(say)
        self.workers: list[Worker] = []
        try:
            for i, name in enumerate(names):
                self.workers.append(start_worker("upslope.engines.workers", i, name, notices))
            for worker, share in zip(self.workers, shares, strict=True):
                worker.ask("begin", task, share.tolist())
            self.wait_for_all()
        except BaseException:
            self.close()
            raise

    def wait_for_all(self) -> list[Any]:
        """Wait for the answers of all workers."""
        return answers_of(self.workers, self.say)

    def start(self) -> TrainState:
        return initialise_all(self.task, self.seeds)

    def advance(
        self, state: TrainState, may_continue: Callable[[], bool] = never, surely: Callable[[], bool] = never
    ) -> tuple[TrainState, Chunk]:
        if not self.is_ahead:
            self.look_for_room()
            self.ask_all(None if state is self.state else leaves_of(state))
        assert not self.is_ahead or state is self.state, "a chunk that was surely wanted is not wanted any more"
        self.is_complete, self.is_ahead, self.state = False, False, None
        changes, chunks, times, seconds = zip(*self.answers(), strict=True)
        names = {name for phases in times for name in phases}
        self.phases |= {n: float(np.mean([phases.get(n, 0.0) for phases in times])) for n in names}
        per_seed = [taken / count for taken, count in zip(seconds, self.counts, strict=True)]
        self.stragglers.look(per_seed, self.workers, self.say)
        self.is_complete = True
        parts = [np.concatenate(xs) for xs in zip(*changes, strict=True)]
        self.state = state_of(parts, state)
        has_budget = (np.asarray(self.state.steps, np.int64) < self.task.steps).any()
        if has_budget and max(seconds) < AHEAD_BELOW and not self.must_look() and may_continue() and surely():
            # The workers compute the next chunk while the main process writes the rows of this one.
            self.ask_all(None)
            self.is_ahead = True
        return self.state, join(list(chunks))

    def ask_all(self, leaves: list[np.ndarray] | None) -> None:
        """Ask every worker for a chunk that continues from this state, or from the state that it holds."""
        first = 0
        for worker, count in zip(self.workers, self.counts, strict=True):
            last = first + count
            worker.ask("advance", None if leaves is None else [x[first:last] for x in leaves])
            first = last

    def answers(self) -> list[Any]:
        """Return the workers' answers to the last `ask_all`."""
        outcome, self.outcome = self.outcome, None
        if isinstance(outcome, UpslopeError):
            raise outcome
        return self.wait_for_all() if outcome is None else outcome

    def must_look(self) -> bool:
        """Whether it is time to check whether the cluster has grown."""
        return self.has_room is not None and perf_counter() - self.looked >= LOOK_SECONDS

    def look_for_room(self) -> None:
        """Stop if the cluster has grown enough for additional workers to reduce the load of the slowest one."""
        if self.has_room is None or not self.is_complete or not self.must_look():
            return
        self.looked = perf_counter()
        more = min(self.has_room(), len(self.seeds) - len(self.workers))
        # The slowest worker has the most seeds.
        if more > 0 and -(-len(self.seeds) // (len(self.workers) + more)) < max(self.counts):
            raise ClusterGrownError(f"The cluster has room for {counted(more, 'more worker')} of this run.")

    def call(self, name: str, arguments: list[Any]) -> None:
        for worker in self.workers:
            worker.ask("call", name, arguments)
        self.wait_for_all()

    def snapshot(self) -> dict[str, np.ndarray]:
        if self.task.environment.is_compiled:
            return {}  # the state of its environments is part of the `TrainState`
        if self.is_ahead and self.outcome is None:
            try:
                self.outcome = self.wait_for_all()
            except WorkerLostError:
                raise
            except UpslopeError as error:  # the next `advance` raises it
                self.outcome = error
        for worker in self.workers:
            worker.ask("snapshot", self.is_complete and not self.is_ahead)
        shape = (len(self.seeds), self.task.num_envs)
        try:
            parts = self.wait_for_all()
        except UpslopeError as error:
            if isinstance(self.outcome, UpslopeError):  # for example, a worker was killed because it hung
                raise self.outcome from error
            raise
        return join_snapshots(parts, rows_of(self.counts, shape[1]), shape)

    def restore(self, snapshot: dict[str, np.ndarray], say: Callable[[str], None]) -> None:
        parts = split_snapshot(snapshot, self.counts)
        for worker, part in zip(self.workers, parts, strict=True):
            worker.ask("restore", part)
        for words in self.wait_for_all():
            for line in words:
                say(line)

    def close(self) -> None:
        close_workers(self.workers)


def join(chunks: list[Chunk]) -> Chunk:
    """Join the chunks of all workers, each of which numbers its own seeds from 0."""
    episodes, count = [], 0
    for chunk in chunks:
        episodes += [[(step, count + s, *rest) for step, s, *rest in rows] for rows in chunk.episodes]
        count += len(chunk.episodes)
    shapes = [chunk.steps.shape for chunk in chunks]
    names = next((list(chunk.metrics) for chunk in chunks if chunk.metrics), [])
    metrics = {
        name: np.concatenate(
            [c.metrics.get(name, np.full(shape, np.nan)) for c, shape in zip(chunks, shapes, strict=True)]
        )
        for name in names
    }
    steps, before = (np.concatenate([getattr(c, name) for c in chunks]) for name in ("steps", "before"))
    return Chunk(metrics, steps, before, episodes)


def leaves_of(state: TrainState) -> list[np.ndarray]:
    """Return the arrays of a state, with random keys as integers."""
    return [np.asarray(raw(leaf)) for leaf in jax.tree.leaves(state)]


def state_of(leaves: Sequence[Any], like: TrainState) -> TrainState:
    """Invert `leaves_of`, given a state of the same structure."""
    pairs = zip(leaves, jax.tree.leaves(like), strict=True)
    return jax.tree.unflatten(jax.tree.structure(like), [typed(x, old) for x, old in pairs])


class InProgram:
    """Stands in for the columns of a compiled environment. `row` is always None, since Python never calls it."""

    row = None

    def close(self) -> None:
        """Do nothing."""


class Server:
    """Runs in the worker and holds an engine and the state of its seeds."""

    notices: Notices | None = None
    columns: "HostColumns | BatchedColumns | InProgram | None" = None
    engine: Any = None
    """The `HostEngine` or `CompiledEngine`, set by `begin`."""

    def begin(self, task: Task, seeds: list[int]) -> None:
        """Create the environments."""
        if task.environment.is_compiled:
            self.columns, self.engine = InProgram(), CompiledEngine(task, seeds)
        else:
            self.columns = columns_of(task, seeds, self.notices)
            self.engine = HostEngine(task, seeds, self.columns)
        self.state = self.engine.start()
        reduce_overhead()

    def advance(self, leaves: list[np.ndarray] | None) -> tuple[list[np.ndarray], Chunk, dict[str, float], float]:
        """Advance by one chunk, from the given state if there is one. Return the new state, the chunk, the seconds per
        phase, and the seconds that this chunk took."""
        started = perf_counter()
        if leaves is not None:
            self.state = state_of(leaves, self.state)
        self.state, chunk = self.engine.advance(self.state)
        return leaves_of(self.state), chunk, self.engine.phases, perf_counter() - started

    def call(self, name: str, arguments: list[Any]) -> None:
        """Have every environment call a method before its next reset."""
        self.engine.call(name, arguments)

    def snapshot(self, is_complete: bool) -> dict[str, np.ndarray]:
        """Return the snapshot at the end of the last chunk, or at its beginning unless it `is_complete`."""
        assert isinstance(self.engine, HostEngine)
        own = self.engine.is_complete
        self.engine.is_complete = own and is_complete
        try:
            return self.engine.snapshot()
        finally:
            self.engine.is_complete = own

    def restore(self, snapshot: dict[str, np.ndarray]) -> list[str]:
        """Restore the environments, and return the messages to show."""
        words: list[str] = []
        self.engine.restore(snapshot, words.append)
        return words

    def close(self) -> None:
        """Close the environments."""
        if self.engine is not None:
            self.engine.close()
        elif self.columns is not None:
            self.columns.close()
