"""What an engine is: it advances a stacked `TrainState` [S] by a chunk of iterations.

`programs.py` has those whose whole iteration is compiled, `host_engine.py` the one that acts in Gymnasium environments,
`workers.py` the one that shares seeds out among processes. All share `weigh` and `move`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol, runtime_checkable

import numpy as np

from upslope.learning.iteration import TrainState


@dataclass(frozen=True)
class Resources:
    """What training may use of the machine. Nothing of it changes a number."""

    workers: int | None = None
    """Processes that share the seeds of a Gymnasium environment, or step slices of slow ones; None: as many as pay."""


EVERYTHING = Resources()
"""Whatever pays on this machine."""
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


def never() -> bool:
    """No."""
    return False


@runtime_checkable
class Engine(Protocol):
    """Advances all seeds by one chunk."""

    phases: dict[str, float]
    """Seconds by phase so far."""

    @property
    def hangs(self) -> bool:
        """Whether `advance` waits for an environment of this process, so that an interrupt may end it at once."""
        ...

    def start(self) -> TrainState:
        """The state before training, [S]."""
        ...

    def advance(self, state: TrainState, may_go_on: Callable[[], bool] = never) -> tuple[TrainState, Chunk]:
        """Go on by one chunk. If it raises, `state` is still usable.

        Where `may_go_on` says so at the end, the next chunk may be begun, in the hope that it is asked for.
        """
        ...

    def snapshot(self) -> dict[str, np.ndarray]:
        """What the world needs, besides the state, to go on from the end of the last whole `advance`."""
        ...

    def restore(self, snapshot: dict[str, np.ndarray], say: Callable[[str], None]) -> None:
        """Put the world back to where a snapshot was taken; say so where that cannot be done."""
        ...

    def close(self) -> None:
        """Let go of the world."""
        ...


@contextmanager
def clock(phases: dict[str, float], phase: str) -> Iterator[None]:
    """Add the seconds of the block to a phase."""
    started = perf_counter()
    yield
    phases[phase] = phases.get(phase, 0.0) + perf_counter() - started
