"""The engine for Gymnasium environments, which advances one iteration, or a few short ones, at a time."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import chain
from typing import Any, NamedTuple

import jax
import numpy as np

from upslope.core.arrays import where_seeds
from upslope.core.estimators import ends as episode_ends
from upslope.core.types import Credit, Metrics, Rollout, Successors
from upslope.engines.base import Chunk, EpisodeRow, chunk_length, clock, finite_seeds, fit_to_act, never
from upslope.engines.batched import BatchedColumns, columns_for
from upslope.engines.collect import AHEAD, Act, EpisodeEnds, acts_here, collect_host, collect_host_episodes, fitted
from upslope.engines.columns import TOO_LONG, HostColumns
from upslope.engines.flat import Flat, Layout, Packed, on_flat, unpacked
from upslope.engines.mujoco_timer import stop_stopwatch
from upslope.engines.notices import Notices
from upslope.engines.processes import HangMonitor
from upslope.engines.slices import SlicedColumns
from upslope.learning.intrinsic import Stream
from upslope.learning.iteration import (
    QUICK,
    Task,
    TrainState,
    initialise_all,
    keys_ahead,
    learn,
    move,
    over_seeds,
    weigh,
)
from upslope.models.agent import Agent
from upslope.models.model import Memory

CHUNKS, CHUNK_STEPS = 100, 512
"""Short iterations are joined into chunks. A run has at least the first number of chunks, and each chunk has at most
the second number of steps per seed."""


class HostEngine:
    """Acts in Gymnasium environments. Only acting is batched over seeds; each seed learns separately."""

    def __init__(
        self,
        task: Task,
        seeds: Sequence[int],
        columns: HostColumns | BatchedColumns | SlicedColumns,
        say: Callable[[str], None] | None = None,
    ):
        """If `say` is given, it is called with a message when an environment of this process hangs."""
        self.task, self.seeds, self.columns = task, seeds, columns
        here = columns.here if isinstance(columns, SlicedColumns) else columns
        self.hang_monitor = None if say is None or here is None else HangMonitor(here, say)
        self.start_stopwatch = stop_stopwatch()
        self.phases: dict[str, float] = {}
        self.act = Act()
        self.is_complete = True
        """Whether the last `advance` completed."""
        self.afresh: list[int] = []
        """Columns in which a new episode has begun because the old one could not be restored."""
        self.iterations = 1 if task.estimator.whole_episodes else chunk_length(task, CHUNKS, CHUNK_STEPS)
        self.keys, self.split, self.stack = keys_of(self.iterations), split_into(len(seeds)), jax.jit(stack)
        self.layout: Layout | None = None
        self.learn: Callable[[Flat, Rollout, Any], tuple[Flat, Packed]] | None = None
        """The layout of the state, known once there is a state, and the program that trains one seed. Seeds are trained
        one by one, so that results do not depend on their number."""

    def learning(self, layout: Layout) -> Callable[[Flat, Rollout, Any], tuple[Flat, Packed]]:
        """Return the program that learns from one seed's rollout, given a state's arrays and a key. The program first
        weighs, then moves."""
        both = partial(learn, partial(weigh_apart, self.task), partial(move_with, self.task))
        return jax.jit(on_flat(both, layout), compiler_options=QUICK)

    @property
    def hangs(self) -> bool:
        return self.hang_monitor is not None and self.hang_monitor.hangs

    def start(self) -> TrainState:
        return initialise_all(self.task, self.seeds)

    def advance(
        self, state: TrainState, may_continue: Callable[[], bool] = never, surely: Callable[[], bool] = never
    ) -> tuple[TrainState, Chunk]:
        before = np.asarray(state.steps, np.int64)
        if not (before < self.task.steps).any():
            self.mark()
            unchanged = np.repeat(before[:, None], self.iterations, axis=1)
            return state, Chunk({}, unchanged, unchanged, [[] for _ in self.seeds])
        state = begun_afresh(self.task, state, self.afresh)
        keys = np.asarray(self.keys(state.key, state.iteration))
        if self.layout is None:
            self.layout = Layout(state)
            self.learn = self.learning(self.layout)
        layout = self.layout
        each, memory = self.split(layout.flat(state)), state.memory
        self.mark()
        self.is_complete = False
        passed: list[Iteration] = []
        noise = self.noise_ahead(state, keys[:, :, 0])
        for i in range(self.iterations):
            each, memory, iteration = self.iterate(layout, each, memory, keys[:, i], noise[i])
            passed.append(iteration)
        after = layout.whole(self.stack(each))
        self.is_complete, self.afresh = True, []
        return after, in_one(passed)

    def iterate(
        self, layout: Layout, each: list[Flat], memory: Memory, keys: np.ndarray, noise: np.ndarray | None
    ) -> tuple[list[Flat], Memory, "Iteration"]:
        """Advance the seeds' states by one iteration, given the memory of every column [S, N, …], the data of the keys
        [S, 2, W] and, if it has already been drawn, the action noise."""
        before = layout.steps_of(each)
        active = before < self.task.steps
        metrics: list[Packed | None] = [None for _ in each]
        if not active.any():
            return each, memory, Iteration(metrics, before, before, [[] for _ in each])
        agents, each, after = layout.agents_on_host(each), list(each), memory
        is_finite, rows = finite_seeds(agents), [[] for _ in each]
        # In seeds that have diverged, steps are counted, but no actions are taken.
        for s in np.flatnonzero(active & ~is_finite).tolist():
            each[s] = layout.after_steps(each[s], self.task.num_envs * self.task.rollout_steps)
        active &= is_finite
        if not active.any():
            return each, memory, Iteration(metrics, layout.steps_of(each), before, rows)
        rollout, ends, after = self.collect(fit_to_act(agents, is_finite), memory, keys[:, 0], active, noise)
        assert self.learn is not None
        for s in np.flatnonzero(active).tolist():
            facts = self.rollout_of(rollout, s)
            with clock(self.phases, "learn"):
                each[s], metrics[s] = jax.block_until_ready(self.learn(each[s], facts, keys[s, 1]))
        if after is not memory:
            memories = self.split(jax.tree.leaves(after))
            each = [layout.with_memory(flat, one) for flat, one in zip(each, memories, strict=True)]
        steps = layout.steps_of(each)
        return each, after, Iteration(metrics, steps, before, self.rows(rollout, ends, before, active))

    def noise_ahead(self, state: TrainState, keys: np.ndarray) -> Sequence[np.ndarray | None]:
        """If the iterations of a chunk are short enough, draw the action noise for all of them at once. `keys` contains
        the data of their keys [S, I, W]."""
        steps, agents = self.task.rollout_steps, state.learner.agent
        if self.iterations == 1 or steps > AHEAD or not acts_here(agents, state.memory):
            return [None] * self.iterations
        with clock(self.phases, "act"):
            return list(self.act.draw_all(agents, keys.swapaxes(0, 1), self.columns.observation, steps))

    def collect(
        self, agents: Agent, memory: Memory, keys: np.ndarray, active: np.ndarray, noise: np.ndarray | None = None
    ) -> tuple[Rollout, EpisodeEnds, Memory]:
        """Act for one iteration with the agents [S]. Return the rollout [S, T, N], the finished episodes, and the
        memory afterwards."""
        whole = self.task.estimator.whole_episodes
        ahead = AHEAD if whole else min(AHEAD, self.task.rollout_steps)
        choose = self.act.bind(agents, keys, memory, ahead, noise)
        if whole:
            return *collect_host_episodes(self.columns, choose, active, self.phases, compact=True), memory
        if not self.columns.has_begun:
            self.columns.begin(range(len(self.columns.episodes)))
        # A vector environment steps all of its columns and resets itself.
        idle = None if active.all() or self.task.environment.batch is not None else ~active
        rollout, ends = collect_host(self.columns, choose, self.task.rollout_steps, self.phases, idle, compact=True)
        after = choose.memory
        return rollout, ends, after if active.all() or after is memory else where_seeds(active, after, memory)

    def rollout_of(self, rollout: Rollout, s: int) -> Rollout:
        """Select one seed's rollout [T, N].

        Whole episodes are padded to one of a few lengths, so that few programs are compiled. The padding does not
        depend on the other seeds."""
        one = jax.tree.map(lambda x: x[s], rollout)
        stored = one.next_observation
        if isinstance(stored, Successors):
            one = one._replace(next_observation=None)
        if self.task.estimator.whole_episodes:
            longest = int(one.valid.any(axis=1).sum())
            length = max(self.task.update.minibatches, padded_length(longest, self.task.max_episode_steps))
            one = jax.tree.map(lambda x: pad_or_cut(np.asarray(x), length), one)
        if isinstance(stored, Successors):
            one = one._replace(next_observation=fitted(stored, one.reward.size))
        return one

    def rows(
        self, rollout: Rollout, ends: EpisodeEnds, before: np.ndarray, active: np.ndarray
    ) -> list[list[EpisodeRow]]:
        """Return each active seed's finished episodes, with the step at which they ended."""
        rows: list[list[EpisodeRow]] = [[] for _ in self.seeds]
        if not len(ends.t):
            return rows
        taken = np.cumsum(np.asarray(rollout.valid).sum(axis=2), axis=1)
        for s, t, _, episode_return, length, info in zip(*(x.tolist() for x in ends), strict=True):
            if active[s]:
                rows[s].append((int(before[s] + taken[s, t]), s, episode_return, length, tuple(info)))
        return rows

    def call(self, name: str, arguments: list[Any]) -> None:
        self.columns.call(name, arguments)

    def mark(self) -> None:
        """Mark this point between two iterations for `snapshot`."""
        self.columns.mark(between_episodes=self.task.estimator.whole_episodes or not self.columns.has_begun)

    def snapshot(self) -> dict[str, np.ndarray]:
        if self.is_complete:
            self.mark()
        found = self.columns.snapshot()
        if self.afresh:  # no update has followed, so the next process must also begin new episodes in these columns
            found["length"][self.afresh] = TOO_LONG
        return found

    def restore(self, snapshot: dict[str, np.ndarray], say: Callable[[str], None]) -> None:
        self.afresh = self.columns.restore(snapshot, say)

    def close(self) -> None:
        if self.hang_monitor is not None:
            self.hang_monitor.close()
        self.columns.close()
        self.start_stopwatch()


def columns_of(task: Task, seeds: Sequence[int], notices: Notices | None = None) -> HostColumns | BatchedColumns:
    """Create a task's environments in this process."""
    model, sizes = task.model, (task.num_envs, task.max_episode_steps)
    options = notices, task.log_info, task.group_size
    return columns_for(task.environment, model.encoder, model.head, seeds, *sizes, *options)


def weigh_apart(task: Task, state: TrainState, rollout: Rollout) -> Any:
    """Do the same as `weigh`, but make XLA compute the results before the move, so that the numbers are the same as
    with two separate programs."""
    return jax.lax.optimization_barrier(weigh(task, state, rollout))


def move_with(task: Task, state: TrainState, rollout: Rollout, credit: Credit, key: Any) -> tuple[TrainState, Metrics]:
    """Do the same as `move`, given the data of a key, and then mark in the memory the columns in which the next rollout
    begins a new episode. If the policy itself has a memory, the caller replaces this memory with the policy's."""
    state, metrics = move(task, state, rollout, credit, jax.random.wrap_key_data(key))
    if not task.estimator.whole_episodes:
        state = state._replace(memory=state.memory._replace(fresh=episode_ends(rollout)[-1]))
    return state, metrics


class Iteration(NamedTuple):
    """The results of one iteration of S seeds."""

    metrics: list[Packed | None]
    """The metrics of each seed; None if the seed was idle."""
    steps: np.ndarray
    before: np.ndarray
    """Steps after and before the iteration, each [S]."""
    episodes: list[list[EpisodeRow]]


def in_one(iterations: Sequence[Iteration]) -> Chunk:
    """Join successive iterations into a chunk."""
    steps, before = (np.stack([getattr(each, name) for each in iterations], axis=1) for name in ("steps", "before"))
    episodes = [list(chain.from_iterable(rows)) for rows in zip(*(x.episodes for x in iterations), strict=True)]
    return Chunk(unpacked([each.metrics for each in iterations]), steps, before, episodes)


def begun_afresh(task: Task, state: TrainState, rows: Sequence[int]) -> TrainState:
    """Return the state after new episodes have begun in the given rows of the S·N columns, with the memory and returns
    of these columns cleared."""
    if not rows:
        return state

    def at_rows(x: Any, value: float | bool) -> jax.Array:
        x = np.array(x)
        x.ravel()[rows] = value
        return jax.numpy.asarray(x)

    begun, reference, stream = at_rows(state.memory.fresh, True), state.reference, state.stream
    if isinstance(stream, Stream) and task.intrinsic is not None and task.intrinsic.is_episodic:
        stream = stream._replace(discounted_return=at_rows(stream.discounted_return, 0.0))
    if reference is not None:
        reference = reference._replace(memory=reference.memory._replace(fresh=begun))
    return state._replace(
        memory=state.memory._replace(fresh=begun),
        discounted_return=at_rows(state.discounted_return, 0.0),
        reference=reference,
        stream=stream,
    )


@cache
def keys_of(iterations: int) -> Callable[..., Any]:
    """Return the program that computes the keys for the given number of iterations. All runs in a process share it."""
    return jax.jit(over_seeds(partial(keys_ahead, count=iterations)))


@cache
def split_into(num_seeds: int) -> Callable[[Flat], list[Flat]]:
    """Return the program that splits the arrays of the given number of seeds. All runs in a process share it."""
    return jax.jit(partial(split, num_seeds))


def split(num_seeds: int, leaves: Flat) -> list[Flat]:
    """Split arrays with a leading axis S into separate arrays for each of the S seeds."""
    return [[x[s] for x in leaves] for s in range(num_seeds)]


def stack(each: list[Flat]) -> Flat:
    """Stack the arrays of each seed along a leading axis S: the inverse of `split`."""
    return [jax.numpy.stack(x) for x in zip(*each, strict=True)]


SHORT, MIDDLE = 64, 512
"""Padded lengths of episodes of up to `MIDDLE` steps. Longer episodes are padded to powers of two."""


def padded_length(longest: int, limit: int | None) -> int:
    """Return the length to which episodes of at most `longest` steps are padded; `limit` is the environment's step
    limit.

    Many lengths share a padded length, since compiling a program for each would take longer than computing with
    padding."""
    length = SHORT if longest <= SHORT else max(MIDDLE, 1 << (longest - 1).bit_length())
    return length if limit is None else min(length, 1 << (limit - 1).bit_length())


def pad_or_cut(x: np.ndarray, length: int) -> np.ndarray:
    """Cut or zero-pad to `length` along the first axis."""
    if x.shape[0] >= length:
        return x[:length]
    return np.concatenate([x, np.zeros((length - x.shape[0], *x.shape[1:]), x.dtype)])
