"""Three ways to gather experience, one way to learn: each engine advances a stacked `TrainState` [S].

`CompiledEngine` runs many iterations of act, weigh and move in one program; `HostEngine` acts in Gymnasium
environments, one iteration at a time; `RecordedEngine` replays a dataset. All share `weigh` and `move`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from upslope.collect_host import Act, EpisodeEnds, collect_host, collect_host_episodes
from upslope.devices import mesh_of, sharding_of
from upslope.diagnostics import spell_out
from upslope.environments.base import CompiledEnvironment
from upslope.environments.make import HostWorld
from upslope.host import HostColumns
from upslope.iteration import (
    Task,
    TrainState,
    initialise_all,
    iterate_many,
    iteration_keys,
    move,
    over_seeds,
    repeat,
    spent,
    spread_seeds,
    stack,
    weigh,
)
from upslope.rollout import Finished
from upslope.types import Metrics, Rollout, host_rollout

EpisodeRow = tuple[int, int, float, int]
"""(step, seed index, return, length) of a finished training episode."""


@dataclass
class Chunk:
    """What one `advance` did: I iterations of S seeds."""

    metrics: dict[str, np.ndarray]
    """Name → [S, I]."""
    steps: np.ndarray
    """Environment steps after each iteration [S, I]; equal to the one before where a seed stood still."""
    before: np.ndarray
    """Environment steps before each iteration [S, I]."""
    episodes: list[list[EpisodeRow]] = field(default_factory=list)
    """For each seed, its finished episodes in order."""


class Ended:
    """A seed's finished episodes of a chunk, in order of their step; sums by prefix, since a chunk may hold many."""

    def __init__(self, rows: list[EpisodeRow]):
        self.steps = np.asarray([row[0] for row in rows])
        self.returns = np.cumsum([0.0, *(row[2] for row in rows)])
        self.lengths = np.cumsum([0, *(row[3] for row in rows)])

    def between(self, before: int, after: int) -> dict[str, Any]:
        """Number, mean return and mean length of the episodes that ended in (before, after]."""
        first, last = np.searchsorted(self.steps, [before, after], side="right")
        count = int(last - first)
        mean_return = (self.returns[last] - self.returns[first]) / count if count else None
        mean_length = (self.lengths[last] - self.lengths[first]) / count if count else None
        return {"episode/count": count, "episode/return": mean_return, "episode/length": mean_length}


@runtime_checkable
class Engine(Protocol):
    """Advances all seeds by one chunk."""

    phases: dict[str, float]
    """Seconds by phase so far."""

    def start(self) -> TrainState:
        """The state before training, [S]."""
        ...

    def advance(self, state: TrainState) -> tuple[TrainState, Chunk]:
        """Go on by one chunk. If it raises, `state` is still usable."""
        ...

    def snapshot(self) -> dict[str, np.ndarray]:
        """What the world needs, besides the state, to go on from the end of the last whole `advance`."""
        ...

    def restore(self, snapshot: dict[str, np.ndarray], say: Callable[[str], None]) -> None:
        """Put the world back to where a snapshot was taken; say so where that cannot be done."""

    def close(self) -> None:
        """Let go of the world."""


class ProgramEngine:
    """An engine whose whole iteration is one compiled program: compiled worlds and recorded data."""

    def __init__(self, task: Task, seeds: Sequence[int], iterations: int, world: CompiledEnvironment | None):
        self.task, self.seeds, self.iterations, self.world = task, seeds, iterations, world
        self.data: Rollout | None = None
        self.phases: dict[str, float] = {}
        self.compiled: Callable[..., Any] | None = None
        self.mesh = mesh_of(len(seeds))
        self.sharding = sharding_of(self.mesh, len(seeds))

    def start(self) -> TrainState:
        return initialise_all(self.task, self.seeds, self.world)

    def one_seed(self, data: Rollout | None, state: TrainState) -> Any:
        """One seed's program: state → (state, (metrics, finished, steps before, steps after))."""
        assert self.world is not None
        return iterate_many(self.task, self.world, state, self.iterations)

    def all_seeds(self, data: Rollout | None, state: TrainState) -> Any:
        """The same for every seed, on the same data, spread over the devices."""
        return spread_seeds(self.one_seed, self.mesh, partial(spent, self.task))(data, state)

    def advance(self, state: TrainState) -> tuple[TrainState, Chunk]:
        state = jax.device_put(state, self.sharding)
        if self.compiled is None:
            with clock(self.phases, "compile"):
                spread = jax.jit(self.all_seeds, out_shardings=self.sharding)
                self.compiled = spread.lower(self.data, state).compile()
        compiled: Any = self.compiled
        with clock(self.phases, "compiled"):
            after, (metrics, finished, before, steps) = jax.block_until_ready(compiled(self.data, state))
        before, steps = np.asarray(before, np.int64), np.asarray(steps, np.int64)
        episodes = [[] for _ in self.seeds] if finished is None else self.rows(finished, before)
        return after, Chunk(spell_out({name: np.asarray(x) for name, x in metrics.items()}), steps, before, episodes)

    def rows(self, finished: Finished, before: np.ndarray) -> list[list[EpisodeRow]]:
        """[S, I, T, N] → each seed's finished episodes with the step at which they ended."""
        done, returns, lengths = (np.asarray(x) for x in finished)
        rows: list[list[EpisodeRow]] = []
        for s in range(len(self.seeds)):
            i, t, n = np.nonzero(done[s])
            if self.task.estimator.whole_episodes:
                stopped = np.cumsum(done[s].sum(axis=-1), axis=-1)
                running = done.shape[-1] - np.concatenate([np.zeros_like(stopped[:, :1]), stopped[:, :-1]], axis=1)
                steps = before[s, i] + np.cumsum(running, axis=1)[i, t]
            else:
                steps = before[s, i] + (t + 1) * done.shape[-1]
            values = (steps.tolist(), returns[s, i, t, n].tolist(), lengths[s, i, t, n].tolist())
            rows.append([(step, s, r, length) for step, r, length in zip(*values, strict=True)])
        return rows

    def snapshot(self) -> dict[str, np.ndarray]:
        return {}

    def restore(self, snapshot: dict[str, np.ndarray], say: Callable[[str], None]) -> None:
        """Nothing to do: a compiled world's state is part of the `TrainState`."""

    def close(self) -> None:
        """Nothing to do."""


class CompiledEngine(ProgramEngine):
    """Acts in a compiled world."""


class RecordedEngine(ProgramEngine):
    """Learns from a recorded rollout; an iteration reads all of it."""

    def __init__(self, task: Task, seeds: Sequence[int], rollout: Rollout):
        super().__init__(task, seeds, 1, None)
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        self.data = jax.tree.map(lambda x: jax.device_put(x, everywhere), rollout)

    def one_seed(self, data: Rollout | None, state: TrainState) -> Any:
        assert data is not None

        def read(state: TrainState) -> tuple[TrainState, Metrics, None]:
            state, scaled, credit, assessed = weigh(self.task, state, data)
            state, metrics = move(self.task, state, scaled, credit, iteration_keys(state)[1])
            return state, metrics | assessed, None

        return repeat(self.task, read, state, self.iterations)


class HostEngine:
    """Acts in Gymnasium environments. Only acting is batched over seeds; each seed learns by itself."""

    def __init__(self, task: Task, seeds: Sequence[int], world: HostWorld):
        self.task, self.seeds = task, seeds
        self.columns = HostColumns(world, task.coding, task.head, seeds, task.num_envs, task.max_episode_steps)
        self.phases: dict[str, float] = {}
        self.act = Act()
        self.is_whole = True
        """Whether the last `advance` came to its end."""
        self.keys = jax.jit(over_seeds(iteration_keys))
        # Programs of one seed alone, so that they do not depend on how many others there are.
        self.weigh = jax.jit(partial(weigh, task))
        self.move = jax.jit(partial(move, task))
        self.take, self.stack = jax.jit(take), jax.jit(stack)

    def start(self) -> TrainState:
        return initialise_all(self.task, self.seeds)

    def advance(self, state: TrainState) -> tuple[TrainState, Chunk]:
        before = np.asarray(state.steps, np.int64)
        active = before < self.task.steps
        if not active.any():
            return state, Chunk({}, before[:, None], before[:, None], [[] for _ in self.seeds])
        act_keys, move_keys = self.keys(state)
        self.mark()
        self.is_whole = False
        rollout, ends = self.collect(state, act_keys, active)
        metrics: list[Metrics | None] = []
        ones = [self.take(state, s) for s in range(len(self.seeds))]
        for s in range(len(self.seeds)):
            if not active[s]:
                metrics.append(None)
                continue
            with clock(self.phases, "weigh"):
                facts = self.rollout_of(rollout, s)
                ones[s], scaled, credit, assessed = jax.block_until_ready(self.weigh(ones[s], facts))
            with clock(self.phases, "move"):
                ones[s], measured = jax.block_until_ready(self.move(ones[s], scaled, credit, move_keys[s]))
            metrics.append(measured | assessed)
        state = self.stack(ones)
        self.is_whole = True
        steps = np.asarray(state.steps, np.int64)
        return state, Chunk(by_name(metrics), steps[:, None], before[:, None], self.rows(rollout, ends, before))

    def collect(self, state: TrainState, keys: jax.Array, active: np.ndarray) -> tuple[Rollout, EpisodeEnds]:
        """Act for an iteration: facts [S, T, N]."""
        choose = self.act.bind(state.learner.agent, keys)
        if self.task.estimator.whole_episodes:
            return collect_host_episodes(self.columns, choose, active, self.phases)
        if not self.columns.has_begun:
            self.columns.begin(range(len(self.columns.episodes)))
        return collect_host(self.columns, choose, self.task.rollout_steps, self.phases)

    def rollout_of(self, rollout: Rollout, s: int) -> Rollout:
        """One seed's facts [T, N]. Whole episodes are padded to a power of two, so that few programs are compiled
        and a seed's padding does not depend on the other seeds."""
        one = Rollout(*(x[s] for x in rollout))
        if not self.task.estimator.whole_episodes:
            return one
        longest = int(one.valid.any(axis=1).sum())
        length = max(32, self.task.update.minibatches, 1 << (longest - 1).bit_length())
        return host_rollout({name: fit(np.asarray(x), length) for name, x in one._asdict().items()})

    def rows(self, rollout: Rollout, ends: EpisodeEnds, before: np.ndarray) -> list[list[EpisodeRow]]:
        """Each seed's finished episodes with the step at which they ended."""
        taken = np.cumsum(np.asarray(rollout.valid).sum(axis=2), axis=1)
        rows: list[list[EpisodeRow]] = [[] for _ in self.seeds]
        for s, t, episode_return, length in zip(*(x.tolist() for x in ends), strict=True):
            rows[s].append((int(before[s] + taken[s, t]), s, episode_return, length))
        return rows

    def mark(self) -> None:
        """Remember the moment between two iterations, to which a run can be taken back."""
        self.columns.mark(between_episodes=self.task.estimator.whole_episodes or not self.columns.has_begun)

    def snapshot(self) -> dict[str, np.ndarray]:
        if self.is_whole:
            self.mark()
        return self.columns.snapshot()

    def restore(self, snapshot: dict[str, np.ndarray], say: Callable[[str], None]) -> None:
        self.columns.restore(snapshot, say)

    def close(self) -> None:
        self.columns.close()


def take(tree: Any, s: Any) -> Any:
    """Seed s of a stacked pytree."""
    return jax.tree.map(lambda x: x[s], tree)


def fit(x: np.ndarray, length: int) -> np.ndarray:
    """Cut or pad with zeros to `length` along the first axis."""
    if x.shape[0] >= length:
        return x[:length]
    return np.concatenate([x, np.zeros((length - x.shape[0], *x.shape[1:]), x.dtype)])


def by_name(metrics: list[Metrics | None]) -> dict[str, np.ndarray]:
    """One dictionary a seed → name → [S, 1]; nan for a seed that stood still."""
    fetched = jax.device_get(metrics)
    some = next(m for m in fetched if m is not None)
    rows = {n: [np.full_like(some[n], np.nan) if m is None else m[n] for m in fetched] for n in some}
    return spell_out({n: np.stack(x)[:, None] for n, x in rows.items()})


@contextmanager
def clock(phases: dict[str, float], phase: str) -> Iterator[None]:
    """Add the seconds of the block to a phase."""
    started = perf_counter()
    yield
    phases[phase] = phases.get(phase, 0.0) + perf_counter() - started
