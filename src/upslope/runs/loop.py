"""The outer loop: advance, write, show, and save; stop cleanly on a signal or an error.

Everything that is written here depends on the config and the seeds alone, besides the clock's columns, so a resumed
run's files equal an uninterrupted one's.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from upslope.config.config import Config
from upslope.engines.base import Chunk, Engine, clock
from upslope.errors import UpslopeError
from upslope.learning.iteration import TrainState
from upslope.models.agent import Agent
from upslope.runs.checkpoints import save_checkpoint
from upslope.runs.directory import RunDirectory
from upslope.runs.display import Display, Snapshot
from upslope.runs.metric_rows import finite, last_finite, metric_rows
from upslope.runs.signals import Interrupted, stop_on_signal
from upslope.runs.tensorboard import TensorboardWriter

CHECKPOINT_SECONDS = 10.0
"""`last` is written at most so often, and whenever training stops."""
TICK = 1e-6
"""No time is shorter: a clock that stands still or goes back gives no rate."""
WINDOW = 100
"""The return of a seed is the mean over so many of its last finished training episodes."""
BEST_AFTER = 20
"""Episodes in the window before it may count as the best."""
RECENT, FEWEST_RECENT = 20, 3
"""The present rate is that of so many chunks, at most and at least."""
BEST_CHECKS = 100
"""So many times in a run the window is held against the best so far."""


@runtime_checkable
class Watch(Protocol):
    """Diagnoses a run while it trains."""

    def look(self) -> str:
        """The surest finding in one line; empty while there is none."""
        ...


class Stopped(BaseException):
    """Training was asked to stop, and everything is saved."""


@dataclass
class Progress:
    """What the loop knows besides the state; kept in the checkpoint."""

    windows: list[deque[tuple[float, int]]]
    best: Agent
    """[S]: each seed's agent at its best window."""
    best_return: np.ndarray
    best_step: np.ndarray
    checks: np.ndarray
    """How many hundredths of its budget each seed had spent at the last check."""
    elapsed: float = 0.0
    iteration: int = 0
    latest: dict[str, list[float]] = field(default_factory=dict)
    broken: set[int] = field(default_factory=set)


def begin_progress(state: TrainState, seeds: list[int]) -> Progress:
    """Nothing done yet."""
    return Progress(
        windows=[deque(maxlen=WINDOW) for _ in seeds],
        best=state.learner.agent,
        best_return=np.full(len(seeds), -np.inf),
        best_step=np.zeros(len(seeds), np.int64),
        checks=np.zeros(len(seeds), np.int64),
    )


class Pace:
    """Environment steps per second of all seeds together, without the first chunk, which is spent on compiling."""

    def __init__(self) -> None:
        self.started, self.ended, self.steps = perf_counter(), 0.0, 0
        self.first_ended = 0.0
        self.recent: deque[float] = deque(maxlen=RECENT)

    def rate(self, steps: int) -> float:
        """The mean rate after a chunk of so many steps; of the first chunk, which is all there is, with compiling."""
        before, self.ended = self.ended, perf_counter()
        if not self.first_ended:
            self.first_ended = self.ended
            return steps / max(self.ended - self.started, TICK)
        self.steps += steps
        self.recent.append(steps / max(self.ended - before, TICK))
        return self.steps / max(self.ended - self.first_ended, TICK)

    @property
    def present(self) -> float:
        """The median rate of the last chunks, since a later one may compile again; nan while they are too few."""
        return median(self.recent) if len(self.recent) >= FEWEST_RECENT else math.nan


class Loop:
    """Trains until every seed's budget is spent."""

    def __init__(
        self,
        engine: Engine,
        directory: RunDirectory,
        config: Config,
        display: Display,
        tensorboard: TensorboardWriter | None,
        watch: Watch | None = None,
    ):
        self.engine, self.directory, self.config, self.seeds = engine, directory, config, config.seed_list()
        self.display, self.tensorboard, self.watch = display, tensorboard, watch

    def run(self, state: TrainState, progress: Progress) -> tuple[TrainState, Progress]:
        """Train to the end. On a signal: save, then raise `Stopped`. On an error: save, then raise it."""
        started, saved, pace = perf_counter() - progress.elapsed, perf_counter(), Pace()
        with stop_on_signal(lambda: self.engine.hangs) as stop:
            if progress.iteration == 0:
                self.save(state, progress)
            while (np.asarray(state.steps, np.int64) < self.config.steps).any():
                if stop.is_set():
                    self.save(state, progress)
                    raise Stopped
                try:
                    state, chunk = self.engine.advance(state, lambda: not stop.is_set())
                except Interrupted:
                    self.save(state, progress)
                    raise Stopped from None
                except Exception as error:
                    kept = self.save_or_say(state, progress)
                    if not isinstance(error, UpslopeError):
                        raise
                    raise UpslopeError(f"{error} {kept}; go on with: upslope resume {self.directory.path}") from error
                progress.elapsed = max(progress.elapsed, perf_counter() - started)
                rate = pace.rate(int((chunk.steps[:, -1] - chunk.before[:, 0]).sum()))
                with clock(self.engine.phases, "write"):
                    self.write(chunk, progress, rate)
                    self.keep_best(state, chunk, progress)
                if not 0 <= perf_counter() - saved <= CHECKPOINT_SECONDS:
                    with clock(self.engine.phases, "write"):
                        self.save(state, progress)
                    saved = perf_counter()
                try:
                    self.display.update(self.snapshot(chunk, progress, pace.present))
                except BrokenPipeError:  # whoever read the output has gone
                    stop.set()
                self.check_alive(chunk, progress)
            self.save(state, progress)
        return state, progress

    def write(self, chunk: Chunk, progress: Progress, rate: float) -> None:
        """Append the rows of a chunk to the run's files."""
        for rows in chunk.episodes:
            for _, s, episode_return, length in rows:
                progress.windows[s].append((episode_return, length))
        rows = [row for seed_rows in chunk.episodes for row in seed_rows]
        text = "".join(f"{step},{self.seeds[s]},{r!r},{length}\n" for step, s, r, length in rows)
        self.directory.append(self.directory.episodes_path, text)
        clocks = {"time/elapsed": round(progress.elapsed, 3), "time/steps_per_second": round(rate, 1)}
        self.directory.append(
            self.directory.metrics_path, "".join(metric_rows(chunk, self.seeds, progress.iteration, clocks))
        )
        progress.iteration += chunk.steps.shape[1]
        progress.latest = {name: last_finite(x) for name, x in chunk.metrics.items()}
        if self.tensorboard is not None:
            returns = {"episode/return": mean_of(progress, 0), "episode/length": mean_of(progress, 1)}
            self.tensorboard.write(chunk.steps[:, -1].tolist(), progress.latest | returns)

    def keep_best(self, state: TrainState, chunk: Chunk, progress: Progress) -> None:
        """A hundred times a run, keep each seed's agent if its window of returns is the best so far."""
        checks = chunk.steps[:, -1] * BEST_CHECKS // self.config.steps
        is_due, progress.checks = checks > progress.checks, checks
        if not is_due.any():
            return
        enough = [len(window) >= BEST_AFTER for window in progress.windows]
        better = is_due & np.asarray(enough) & (np.asarray(mean_of(progress, 0)) > progress.best_return)
        better &= finite_seeds(state.learner.agent)
        if better.any():
            progress.best = where_seeds(better, state.learner.agent, progress.best)
            progress.best_return = np.where(better, mean_of(progress, 0), progress.best_return)
            progress.best_step = np.where(better, chunk.steps[:, -1], progress.best_step)

    def save(self, state: TrainState, progress: Progress) -> None:
        """Write `best`, then `last`, which records how far the growing files reach."""
        never = ~np.isfinite(progress.best_return) & finite_seeds(state.learner.agent)
        best = where_seeds(never, state.learner.agent, progress.best)
        scores = {
            "best_return": [finite(x) for x in progress.best_return.tolist()],
            "best_step": np.where(never, np.asarray(state.steps), progress.best_step).tolist(),
        }
        self.keep(self.directory.best, best, {}, scores)
        meta = scores | {
            "elapsed": progress.elapsed,
            "iteration": progress.iteration,
            "checks": progress.checks.tolist(),
            "sizes": self.directory.sizes(),
            "windows": [list(w) for w in progress.windows],
            "steps": np.asarray(state.steps).tolist(),
            "settings": self.config.to_json(),
        }
        self.keep(self.directory.last, state, self.engine.snapshot(), meta)

    def keep(self, path: Path, tree: Any, world: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Write a checkpoint; where that cannot be, say how to go on."""
        try:
            save_checkpoint(path, tree, world, meta)
        except UpslopeError as error:
            raise UpslopeError(f"{error} Go on with: upslope resume {self.directory.path}") from error

    def save_or_say(self, state: TrainState, progress: Progress) -> str:
        """Save after an error, and say how far; where the world is lost too, the last checkpoint stands."""
        try:
            self.save(state, progress)
        except UpslopeError:
            return "The last checkpoint is intact"
        return f"All up to step {int(np.asarray(state.steps, np.int64).max()):,} is saved"

    def snapshot(self, chunk: Chunk, progress: Progress, rate: float) -> Snapshot:
        """Where the run stands, for the display."""
        return Snapshot(
            iteration=progress.iteration,
            steps=chunk.steps[:, -1].tolist(),
            total_steps=self.config.steps,
            episode_return=mean_of(progress, 0),
            episode_length=mean_of(progress, 1),
            metrics=progress.latest,
            phases=dict(self.engine.phases),
            elapsed=progress.elapsed,
            steps_per_second=rate,
            is_recorded=self.config.data is not None,
            finding="" if self.watch is None else self.watch.look(),
        )

    def check_alive(self, chunk: Chunk, progress: Progress) -> None:
        """Say once of each seed that its numbers are no longer finite; stop when that is so of all."""
        moved = chunk.steps[:, -1] > chunk.before[:, -1]
        # The KL is taken after the update, with the new parameters.
        after = chunk.metrics["policy/loss"][:, -1] + chunk.metrics["policy/kl"][:, -1]
        for s in np.flatnonzero(moved & ~np.isfinite(after)).tolist():
            if s not in progress.broken:
                progress.broken.add(s)
                self.display.message(
                    f"seed {self.seeds[s]}: the agent's parameters are no longer numbers at step "
                    f"{chunk.steps[s, -1]:,}, so this seed is lost. Lower --learning-rate, or normalise its inputs."
                )
        if len(progress.broken) == len(self.seeds):
            raise UpslopeError(
                f"The agent's parameters are no longer numbers in any seed, so training stopped at step "
                f"{chunk.steps[:, -1].max():,}. {self.directory.best} holds the best agents of the checkpoint "
                "before. Lower --learning-rate, or use --normalize-rewards and --normalize-observations."
            )


def finite_seeds(agents: Agent) -> np.ndarray:
    """Of which seeds all parameters are numbers [S]."""
    leaves = jax.tree.leaves(agents.model)
    return np.all([np.isfinite(np.asarray(x)).reshape(x.shape[0], -1).all(axis=1) for x in leaves], axis=0)


def where_seeds(mask: np.ndarray, chosen: Any, otherwise: Any) -> Any:
    """Seed by seed, `chosen` where the mask [S] is true; in NumPy, so that nothing has to be compiled for it."""

    def pick(a: Any, b: Any) -> np.ndarray:
        return np.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), np.asarray(a), np.asarray(b))

    return jax.tree.map(pick, chosen, otherwise)


def mean_of(progress: Progress, part: int) -> list[float]:
    """Each seed's mean return (0) or length (1) over its window; nan where no episode has ended."""
    return [float(np.mean([x[part] for x in w])) if w else math.nan for w in progress.windows]
