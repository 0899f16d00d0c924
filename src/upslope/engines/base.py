"""The engine protocol: advance a stacked `TrainState` [S] by a chunk of iterations.

`compiled.py` holds the engines whose whole iteration is compiled, `host.py` the one for Gymnasium environments, and
`workers.py` the one that distributes seeds over processes. All share `weigh` and `move`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import numpy as np

from upslope.learning.iteration import TrainState


@dataclass(frozen=True)
class Resources:
    """The machine resources that training may use. They never change results."""

    workers: int | None = None
    """Processes that share a Gymnasium environment's seeds, or step slices of a slow one; None: as many as pay off."""


EVERYTHING = Resources()
"""Use as many processes as pay off on this machine."""
EpisodeRow = tuple[int, int, float, int, tuple[float, ...]]
"""(step, seed index, return, length, numbers of info) of a finished training episode."""


@dataclass
class Chunk:
    """The result of one `advance`: I iterations of S seeds."""

    metrics: dict[str, np.ndarray]
    """Name → [S, I]."""
    steps: np.ndarray
    """Environment steps after each iteration [S, I]; unchanged where a seed was idle."""
    before: np.ndarray
    """Environment steps before each iteration [S, I]."""
    episodes: list[list[EpisodeRow]] = field(default_factory=list)
    """Each seed's finished episodes, in order."""


def never() -> bool:
    """Return False: do not start the next chunk early."""
    return False


@runtime_checkable
class Engine(Protocol):
    """Advances all seeds by one chunk."""

    phases: dict[str, float]
    """Seconds by phase so far."""

    @property
    def hangs(self) -> bool:
        """Whether `advance` is stuck in an environment of this process, so that an interrupt may abort it at once."""
        ...

    def start(self) -> TrainState:
        """The state before training, [S]."""
        ...

    def advance(self, state: TrainState, may_continue: Callable[[], bool] = never) -> tuple[TrainState, Chunk]:
        """Advance by one chunk. If it raises, `state` is still usable.

        If `may_continue` returns true at the end, the engine may start the next chunk speculatively.
        """
        ...

    def call(self, name: str, arguments: list[Any]) -> None:
        """Have every environment call one of its methods before its next reset.

        Raises:
            UpslopeError: it has no such method, or its methods cannot be called while it trains.
        """
        ...

    def snapshot(self) -> dict[str, np.ndarray]:
        """The data, besides the state, to continue from the end of the last complete `advance`."""
        ...

    def restore(self, snapshot: dict[str, np.ndarray], say: Callable[[str], None]) -> None:
        """Restore the environments to a snapshot; report through `say` where that is impossible."""
        ...

    def close(self) -> None:
        """Release the environments."""
        ...


@contextmanager
def clock(phases: dict[str, float], phase: str) -> Iterator[None]:
    """Add the duration of the block, in seconds, to a phase."""
    started = perf_counter()
    yield
    phases[phase] = phases.get(phase, 0.0) + perf_counter() - started
