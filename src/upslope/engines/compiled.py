"""Engines that compile a whole iteration: one for compiled environments and one for recorded data."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from threading import Event
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from upslope.core.types import Metrics, Rollout
from upslope.engines.base import Chunk, EpisodeRow, chunk_length, clock, never
from upslope.engines.border import nothing_allowed
from upslope.engines.stored_programs import StoredPrograms
from upslope.environments.registry import name_of
from upslope.errors import UpslopeError
from upslope.learning.collect import Finished
from upslope.learning.devices import (
    SEEDS,
    assign_seeds,
    full_precision,
    has_accelerator,
    has_two_devices,
    is_cpu_mesh,
    is_split,
    is_vmapped,
)
from upslope.learning.health import unpack_health
from upslope.learning.iteration import (
    QUICK,
    Task,
    TrainState,
    axes_of,
    initialise_all,
    iterate_many,
    iteration_keys,
    learn,
    move,
    repeat,
    spread_seeds,
    weigh,
)
from upslope.models.products import operands_in

CHUNKS = 100
"""Training in a compiled environment runs in about this many chunks; rows are written between them."""
MAX_CHUNK_STEPS = 1 << 21
"""Maximum number of environment steps per seed in a chunk, which keeps memory from growing with the budget."""
ACCELERATOR_ITERATIONS, ACCELERATOR_CHUNKS = 8, 10
"""On an accelerator, an iteration may take less time than the host needs between two chunks, so a chunk there has at
least the first number of iterations. The exception is a run that would then have fewer chunks than the second
number."""
NO_TIMEOUT: dict[str, str | bool] = {
    "xla_cpu_collective_call_warn_stuck_seconds": "1000000",
    "xla_cpu_collective_call_terminate_timeout_seconds": "1000000",
}
"""By default, XLA aborts a process whose devices have waited 40 seconds for each other, but a large network may take
longer."""

WORTH_TWO_DEVICES = 1024
"""Minimum number of samples per iteration, over all epochs, at which separate devices for policy and critic pay off.
With a single epoch they never do, since most of the work is acting, which both devices repeat."""


class Program:
    """The compiled program for a subset of the seeds on a subset of the devices."""

    def __init__(self, one_seed: Callable[[Any, Any], Any], mesh: Mesh, stored: StoredPrograms | None = None):
        self.run, self.mesh, self.stored = one_seed, mesh, stored
        self.seed_sharding, self.replicated = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((SEEDS,), ()))
        self.compiled: Any = None
        self.data: Rollout | None = None
        """The recorded data from which all seeds learn, replicated on every device."""

    def compile(self, data: Rollout | None, state: Any) -> None:
        """Compile the program for this data."""
        self.data = jax.device_put(data, self.replicated)
        placed = self.placed(state)
        arguments, structure = jax.tree.flatten((self.data, placed))
        by_seed = self.seed_sharding
        shardings = ([x.sharding for x in jax.tree.leaves(placed)], *[by_seed] * 3) if is_split(self.mesh) else by_seed
        plain = partial(self.in_plain_containers, structure)
        with full_precision(not is_cpu_mesh(self.mesh)):  # needed here too: `computing` does not affect other threads
            if self.stored is None:
                jitted = jax.jit(plain, out_shardings=shardings)
            else:
                jitted = self.stored.jitted("iterate", plain, arguments, out_shardings=shardings)
            lowered = jitted.lower(*arguments)
        timeout = NO_TIMEOUT if has_two_devices(self.mesh) or is_split(self.mesh) else {}
        self.compiled = lowered.compile(QUICK | timeout if is_cpu_mesh(self.mesh) else None)

    def placed(self, state: Any) -> Any:
        """Move each seed of a state to its devices."""
        axes = axes_of(state, self.mesh)
        return jax.device_put(state, jax.tree.map(lambda names: NamedSharding(self.mesh, names), axes))

    def in_plain_containers(self, structure: Any, *arguments: Any) -> Any:
        """Wrap the program so that its inputs and outputs are plain lists, tuples and dictionaries of arrays, as in
        stored programs."""
        state, (metrics, finished, *steps) = spread_seeds(self.run, self.mesh)(
            *jax.tree.unflatten(structure, arguments)
        )
        return jax.tree.leaves(state), metrics, None if finished is None else finished._asdict(), steps

    def __call__(self, state: Any) -> Any:
        """Dispatch the program asynchronously."""
        leaves, metrics, finished, steps = self.compiled(*jax.tree.leaves((self.data, self.placed(state))))
        after = jax.tree.unflatten(jax.tree.structure(state), leaves)
        return after, (metrics, None if finished is None else Finished(**finished), *steps)


class Ahead(NamedTuple):
    """A chunk that is computed in the background."""

    state: Any
    """The state from which the chunk continues."""
    result: Future[tuple[Any, Any]]
    """The state after the chunk, and the other results of each program."""


class ProgramEngine:
    """An engine that compiles a whole iteration. Subclasses act in an environment or read recorded data.

    A state is a `TrainState`, or a subclass's wrapper around it, with its `steps`.
    """

    hangs = False

    def __init__(
        self,
        task: Task,
        seeds: Sequence[int],
        iterations: int,
        data: Rollout | None = None,
        stored: StoredPrograms | None = None,
    ):
        self.task, self.seeds, self.iterations, self.data = task, seeds, iterations, data
        self.phases: dict[str, float] = {}
        self.shares, meshes = zip(
            *assign_seeds(len(seeds), is_worth_two_devices(task, data), task.devices_per_seed), strict=True
        )
        self.programs = [Program(partial(self.traced, task_on_mesh(task, mesh)), mesh, stored) for mesh in meshes]
        self.is_compiled = False
        self.ahead: Ahead | None = None
        self.closing = Event()
        self.background = ThreadPoolExecutor(1, "chunks")
        """Dispatches chunks one after another. Launching the kernels of a program on an accelerator may occupy a thread
        for as long as the accelerator computes. Meanwhile, the main thread builds and writes the rows of the previous
        chunk."""
        self.split_state, self.join_state = jax.jit(self.parts_of), jax.jit(join_states)

    def start(self) -> TrainState:
        return initialise_all(self.task, self.seeds)

    def traced(self, task: Task, data: Rollout | None, state: Any) -> Any:
        """Trace one seed's program in the task's precision."""
        with operands_in(task.precision):
            return self.one_seed(task, data, state)

    def one_seed(self, task: Task, data: Rollout | None, state: Any) -> Any:
        """Run one seed's program: state → (state, (metrics, finished, steps before, steps after))."""
        return iterate_many(task, state, self.iterations)

    def parts_of(self, state: Any) -> list[Any]:
        """Split the state into each program's seeds."""
        return [jax.tree.map(lambda x, share=share: x[share], state) for share in self.shares]

    def advance(
        self, state: Any, may_continue: Callable[[], bool] = never, surely: Callable[[], bool] = never
    ) -> tuple[Any, Chunk]:
        ahead, self.ahead = self.ahead, None
        if not self.is_compiled:
            with clock(self.phases, "compile"), ThreadPoolExecutor() as threads:
                parts = self.split(state)
                list(threads.map(lambda program, part: program.compile(self.data, part), self.programs, parts))
            self.is_compiled = True
        with clock(self.phases, "compiled"):
            if ahead is None or ahead.state is not state:
                ahead = self.begin_chunk(state)
            after, facts = ahead.result.result()
        if may_continue() and (np.asarray(after.steps, np.int64) < self.task.steps).any():
            # Compute the next chunk while this one's results are copied and written.
            self.ahead = self.begin_chunk(after)
        metrics, finished, before, steps = jax.tree.map(lambda *x: np.concatenate(x), *facts)
        before, steps = before.astype(np.int64), steps.astype(np.int64)
        if finished is not None:
            self.refuse_stuck(finished)
        episodes = [[] for _ in self.seeds] if finished is None else self.rows(finished, before)
        return after, Chunk(unpack_health(metrics), steps, before, episodes)

    def begin_chunk(self, state: Any) -> Ahead:
        """Compute the chunk after a state in the background."""
        return Ahead(state, self.background.submit(self.run_chunk, state))

    def run_chunk(self, state: Any) -> tuple[Any, Any]:
        """Compute the chunk after a state. Return the state after the chunk, and the other results of each program."""
        # Run one after another: programs that share devices would slow each other down.
        parts = zip(self.programs, self.split(state), strict=True)
        done: list[Any] = []
        for program, part in parts:
            if self.closing.is_set():
                raise CancelledError
            done.append(jax.block_until_ready(program(part)))
        states, facts = zip(*done, strict=True)
        is_single = len(states) == 1
        return states[0] if is_single else self.join_state(jax.device_put(states, jax.local_devices()[0])), facts

    def split(self, state: Any) -> list[Any]:
        """Split a state into the parts of the programs."""
        return [state] if len(self.programs) == 1 else self.split_state(state)

    def rows(self, finished: Finished, before: np.ndarray) -> list[list[EpisodeRow]]:
        """Convert arrays [S, I, T, N] to each seed's finished episodes with the step at which they ended."""
        done, returns, lengths = finished.done, finished.episode_return, finished.length
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
            infos = [()] * len(t) if finished.info is None else map(tuple, finished.info[s, i, t, n].tolist())
            rows.append([(step, s, r, length, info) for step, r, length, info in zip(*values, infos, strict=True)])
        return rows

    def refuse_stuck(self, finished: Finished) -> None:
        """Raise an error if the environment forbade every choice when an action was required."""
        if finished.stuck is not None and np.any(finished.stuck):
            s, i, t, n = np.argwhere(finished.stuck)[0].tolist()
            step = int(finished.length[s, i, t, n]) - 1
            place = f"environment {n} of seed {self.seeds[s]}, step {step} of an episode"
            raise UpslopeError(nothing_allowed(name_of(self.task.environment), place))

    def call(self, name: str, arguments: list[Any]) -> None:
        """Raise an error, since nothing in a compiled program can change."""
        if self.data is not None:
            raise UpslopeError(f"This run learns from recorded data, so it has no environment to call {name} on.")
        raise UpslopeError(
            f"{name_of(self.task.environment)} is compiled into the training program, so {name} cannot be "
            "called while it runs. Store what changes in the environment's state, or train in stages, each "
            "with different env_kwargs and starting from the previous one: upslope.train(…, start_from=…)."
        )

    def snapshot(self) -> dict[str, np.ndarray]:
        return {}

    def restore(self, snapshot: dict[str, np.ndarray], say: Callable[[str], None]) -> None:
        """Do nothing: a compiled environment's state is part of the `TrainState`."""

    def close(self) -> None:
        """Start no further programs, and wait for the running one.

        A running program cannot be stopped, and the next run of this process may use the same devices."""
        self.closing.set()
        self.ahead = None
        self.background.shutdown(wait=True, cancel_futures=True)


class CompiledEngine(ProgramEngine):
    """Acts in a compiled environment."""

    def __init__(
        self, task: Task, seeds: Sequence[int], iterations: int | None = None, stored: StoredPrograms | None = None
    ):
        """`iterations` is the length of a chunk; by default it covers a hundredth of the budget, or more on an
        accelerator."""
        super().__init__(task, seeds, iterations or default_length(task), stored=stored)


def default_length(task: Task) -> int:
    """Return the number of iterations in a chunk.

    It is larger on an accelerator, so a run that is resumed on other hardware determines its best agent at different
    points."""
    length = chunk_length(task, CHUNKS, MAX_CHUNK_STEPS)
    if not has_accelerator():
        return length
    return max(length, min(ACCELERATOR_ITERATIONS, chunk_length(task, ACCELERATOR_CHUNKS, MAX_CHUNK_STEPS)))


class RecordedEngine(ProgramEngine):
    """Learns from a recorded rollout, all of which is read in each iteration."""

    def __init__(self, task: Task, seeds: Sequence[int], rollout: Rollout):
        super().__init__(dataclasses.replace(task, num_envs=rollout.valid.shape[1]), seeds, 1, rollout)

    def start(self) -> TrainState:
        return initialise_all(self.task, self.seeds, acts=False)

    def one_seed(self, task: Task, data: Rollout | None, state: TrainState) -> Any:
        assert data is not None

        def read(state: TrainState) -> tuple[TrainState, Metrics, None]:
            key = iteration_keys(state)[1]
            after, metrics = learn(partial(weigh, task), partial(move, task), state, data, key)
            return after._replace(reference=state.reference), metrics, None  # each pass starts new episodes

        return repeat(task, read, state, self.iterations)


def is_worth_two_devices(task: Task, data: Rollout | None) -> bool:
    """Return whether training policy and critic in parallel saves more time than exchanging their results takes."""
    length = task.max_episode_steps if task.estimator.whole_episodes else task.rollout_steps
    num_samples = data.reward.size if data is not None else task.num_envs * (length or 0)
    epochs = min(task.update.epochs, task.update.critic_epochs)
    return task.update.needs_critic and epochs > 1 and num_samples * epochs >= WORTH_TWO_DEVICES


def task_on_mesh(task: Task, mesh: Mesh) -> Task:
    """Return the task with the device settings of this mesh."""
    apart, vmapped = has_two_devices(mesh), is_vmapped(mesh)
    return dataclasses.replace(task, update=dataclasses.replace(task.update, apart=apart, vmapped=vmapped))


def join_states(states: Sequence[Any]) -> Any:
    """Join the seeds of several programs into one state [S, …]."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *states)
