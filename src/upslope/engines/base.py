"""The engine protocol: advance a stacked `TrainState` [S] by a chunk of iterations.

`compiled.py` contains the engines that compile a whole iteration, `host.py` contains the engine for Gymnasium
environments, and `workers.py` contains the engine that distributes seeds over processes. All of them use `weigh` and
`move`.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from upslope.core.arrays import all_finite, where_seeds
from upslope.errors import UpslopeError
from upslope.learning.iteration import Task, TrainState


@dataclass(frozen=True)
class Placement:
    """A cluster of machines, and the resources of each worker."""

    address: str
    """The address of a Ray cluster; `auto` uses the cluster running on this machine or, if there is none, this machine
    alone."""
    worker_cpus: float | int = 1.0
    worker_gpus: float | int = 0.0
    modules: tuple[Path, ...] = ()
    """Folders and files of the user's modules that are sent to every node."""
    mixed: bool = False
    """Whether nodes may have different processors, which round differently."""

    @property
    def worker_devices(self) -> int:
        """The number of accelerators a worker has, or of processors if it has no accelerator."""
        return math.ceil(self.worker_gpus) or max(1, int(self.worker_cpus))

    def __post_init__(self) -> None:
        if not self.address or not isinstance(self.address, str):
            raise UpslopeError(f"cluster must be auto or the address of a Ray cluster, not {self.address!r}.")
        if not (0 < self.worker_cpus < math.inf):
            raise UpslopeError(f"worker_cpus must be more than 0, not {self.worker_cpus}.")
        if not (0 <= self.worker_gpus < math.inf):
            raise UpslopeError(f"worker_gpus must be 0 or more, not {self.worker_gpus}.")


@dataclass(frozen=True)
class Resources:
    """The machine resources that training may use. They never change results."""

    workers: int | None = None
    """Number of processes that share the seeds of a Gymnasium environment, or that each step a slice of a slow
    environment. If None, the number is chosen automatically."""
    cluster: Placement | None = None
    """Where workers run; if None, on this machine."""
    is_one_of_mixed: bool = False
    """Whether this is one of several runs that train on nodes with different processors."""

    @property
    def is_mixed(self) -> bool:
        """Whether the run may train on different processors, which round differently."""
        return self.is_one_of_mixed or (self.cluster is not None and self.cluster.mixed)


def resources_of(workers: int | None, cluster: str | Placement | None = None) -> Resources:
    """Return the resources that the arguments describe; a cluster may be given by its address."""
    return Resources(workers, Placement(cluster) if isinstance(cluster, str) else cluster)


EVERYTHING = Resources()
"""The default resources: as many processes on this machine as are worthwhile."""
EpisodeRow = tuple[int, int, float, int, tuple[float, ...]]
"""A finished training episode: (step, seed index, return, length, numbers from info)."""


@dataclass
class Chunk:
    """The result of one `advance`: I iterations of S seeds."""

    metrics: dict[str, np.ndarray]
    """Name → [S, I]."""
    steps: np.ndarray
    """Environment steps after each iteration [S, I]; unchanged if a seed was idle."""
    before: np.ndarray
    """Environment steps before each iteration [S, I]."""
    episodes: list[list[EpisodeRow]] = field(default_factory=list)
    """Each seed's finished episodes, in order."""


def chunk_length(task: Task, chunks: int, most_steps: float | int = math.inf) -> int:
    """Return the number of iterations in a chunk. A run then has about `chunks` chunks, each of at most `most_steps`
    steps per seed.

    The number depends only on the task, since the best agent is determined between chunks."""
    length = (task.max_episode_steps or 1) if task.estimator.whole_episodes else task.rollout_steps
    return max(1, int(min(task.steps // chunks, most_steps)) // (task.num_envs * length))


def never() -> bool:
    """Return False, so that the next chunk does not start early."""
    return False


@runtime_checkable
class Engine(Protocol):
    """Advances all seeds by one chunk."""

    phases: dict[str, float]
    """Seconds by phase so far."""

    @property
    def hangs(self) -> bool:
        """Whether `advance` is stuck in an environment of this process. If so, an interrupt may abort it
        immediately."""
        ...

    def start(self) -> TrainState:
        """Return the state before training, [S]."""
        ...

    def advance(
        self, state: TrainState, may_continue: Callable[[], bool] = never, surely: Callable[[], bool] = never
    ) -> tuple[TrainState, Chunk]:
        """Advance by one chunk. If this raises an error, `state` is still usable.

        If `may_continue` returns true at the end, the engine may start the next chunk speculatively. If `surely`
        returns true, the next chunk will continue from the returned state and nothing comes before it unless the run
        stops, so even an engine that cannot discard a chunk may start it.
        """
        ...

    def call(self, name: str, arguments: list[Any]) -> None:
        """Have every environment call one of its methods before its next reset.

        Raises:
            UpslopeError: the environment has no such method, or its methods cannot be called during training.
        """
        ...

    def snapshot(self) -> dict[str, np.ndarray]:
        """Return the data that are needed, in addition to the state, to continue from the end of the last complete
        `advance`."""
        ...

    def restore(self, snapshot: dict[str, np.ndarray], say: Callable[[str], None]) -> None:
        """Restore the environments to a snapshot, and report those for which this is impossible through `say`."""
        ...

    def close(self) -> None:
        """Release the environments."""
        ...


@contextmanager
def clock(phases: dict[str, float], phase: str) -> Iterator[None]:
    """Add the duration of the block to a phase, in seconds."""
    started = perf_counter()
    yield
    phases[phase] = phases.get(phase, 0.0) + perf_counter() - started


def not_finite(chunk: Chunk) -> np.ndarray:
    """Return the rows [S] whose agent has non-finite numbers after the last iteration in which it was updated."""
    moved = chunk.steps > chunk.before
    last = moved.shape[1] - 1 - np.argmax(moved[:, ::-1], axis=1)
    return np.asarray(moved.any(axis=1) & lost_after(chunk)[np.arange(len(last)), last])


def lost_after(chunk: Chunk) -> np.ndarray:
    """Return after which iterations [S, I] a row's agent has non-finite numbers."""
    moved = np.asarray(chunk.steps > chunk.before)
    if not chunk.metrics:
        return moved  # no update followed the steps
    # The KL is computed with the new parameters.
    return moved & ~np.isfinite(chunk.metrics["policy/loss"] + chunk.metrics["policy/kl"])


def finite_seeds(agents: Any) -> np.ndarray:
    """Return whether all parameters of each seed's agent are finite [S]."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(agents.model)]
    if all_finite(leaves):
        return np.ones(len(leaves[0]), bool)
    return np.logical_and.reduce([np.isfinite(x).reshape(len(x), -1).all(axis=1) for x in leaves])


def fit_to_act(agents: Any, is_finite: np.ndarray) -> Any:
    """Return the agents, with all numbers set to 0 in seeds that are not finite [S], since their actions could break an
    environment."""
    return agents if is_finite.all() else where_seeds(is_finite, agents, jax.tree.map(np.zeros_like, agents))
