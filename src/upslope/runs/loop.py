"""The outer training loop: advance, write, display and save, and stop cleanly on a signal or an error.

Apart from the time columns, everything written here depends only on the config and the seeds, so the files of a resumed
run are identical to those of an uninterrupted one.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from upslope.config.config import Config
from upslope.config.trust import own_parts
from upslope.core.arrays import where_seeds
from upslope.core.broken_facts import broken_facts, fault_in_words, largest_observation, scaling_remedy, too_large
from upslope.core.messages import shell
from upslope.core.numbers import number
from upslope.engines.base import Chunk, Engine, clock, finite_seeds, lost_after, not_finite
from upslope.errors import UpslopeError
from upslope.learning.iteration import TrainState
from upslope.models.agent import Agent
from upslope.runs.checkpoints import save_checkpoint
from upslope.runs.directory import RunDirectory
from upslope.runs.display import Display, Snapshot
from upslope.runs.following import Following
from upslope.runs.metric_rows import finite, last_finite, metric_rows
from upslope.runs.signals import Interrupted, stop_on_signal, unless_closed
from upslope.runs.tracking.process import Tracking

CHECKPOINT_SECONDS = 10.0
"""Minimum number of seconds between writes of `last`; it is also written whenever training stops."""
MIN_DURATION = 1e-6
"""Lower bound on durations in seconds, in case the clock stops or goes backwards."""
WINDOW = 100
"""Number of a seed's most recent finished training episodes over which its return is averaged."""
BEST_AFTER = 20
"""Minimum number of episodes in the window before the window may count as the best."""
RECENT, MIN_RECENT = 20, 3
"""Maximum and minimum number of chunks over which the current rate is computed."""
BEST_CHECKS = 100
"""Number of times per run that the window's mean return is compared with the best so far."""


@runtime_checkable
class Watch(Protocol):
    """Diagnoses a run during training."""

    def look(self) -> str:
        """Return the most certain finding in one line, or an empty string if there is none."""
        ...


class Stopped(BaseException):
    """Raised when training was asked to stop and everything has been saved."""


@dataclass
class Progress:
    """The state of the loop itself, stored in the checkpoint together with the engine's state."""

    windows: list[deque[tuple[float, int]]]
    best: Agent
    """Each seed's agent at its best window [S]."""
    best_return: np.ndarray
    best_step: np.ndarray
    checks: np.ndarray
    """The number of hundredths of its budget that each seed had spent at the last check."""
    stopped_at: np.ndarray
    """The step at which each seed reached --stop-at-return; 0 if it has not reached it."""
    elapsed: float = 0.0
    iteration: int = 0
    latest: dict[str, list[float]] = field(default_factory=dict)
    broken: set[int] = field(default_factory=set)
    lines: list[str] = field(default_factory=list)
    """The newest rows of metrics.jsonl."""
    is_stopped: bool = False
    """Whether the user's function asked to stop."""


def begin_progress(state: TrainState, seeds: list[int]) -> Progress:
    """Return the initial progress of a run."""
    return Progress(
        windows=[deque(maxlen=WINDOW) for _ in seeds],
        best=state.learner.agent,
        best_return=np.full(len(seeds), -np.inf),
        best_step=np.zeros(len(seeds), np.int64),
        checks=np.zeros(len(seeds), np.int64),
        stopped_at=np.zeros(len(seeds), np.int64),
    )


class SpeedMeter:
    """Measures environment steps per second over all seeds, excluding the first chunk, which includes compilation."""

    def __init__(self) -> None:
        self.started, self.ended, self.steps = perf_counter(), 0.0, 0
        self.first_ended = 0.0
        self.recent: deque[float] = deque(maxlen=RECENT)

    def rate(self, steps: int) -> float:
        """Return the mean rate after a chunk of `steps` steps. After the first chunk, this is the rate of that chunk,
        which includes compilation."""
        before, self.ended = self.ended, perf_counter()
        if not self.first_ended:
            self.first_ended = self.ended
            return steps / max(self.ended - self.started, MIN_DURATION)
        self.steps += steps
        self.recent.append(steps / max(self.ended - before, MIN_DURATION))
        return self.steps / max(self.ended - self.first_ended, MIN_DURATION)

    @property
    def recent_rate(self) -> float:
        """The median rate of the most recent chunks, so that a chunk that recompiles has little effect; nan if there
        are too few chunks."""
        return median(self.recent) if len(self.recent) >= MIN_RECENT else math.nan


class Loop:
    """Trains until every seed has spent its budget."""

    def __init__(
        self,
        engine: Engine,
        directory: RunDirectory,
        config: Config,
        display: Display,
        watch: Watch | None = None,
        tracking: Tracking | None = None,
        on_iteration: Callable[[Following], Any] | None = None,
    ):
        self.on_iteration = on_iteration
        self.engine, self.directory, self.config, self.seeds = engine, directory, config, config.seed_list()
        self.display, self.watch, self.tracking = display, watch, tracking
        self.say = unless_closed(display.message)
        self.largest = np.zeros(len(self.seeds))
        """The largest number in each seed's observations [S], as far as it was measured."""

    @cached_property
    def spaces(self) -> dict[str, Any]:
        """The spaces that config.json describes."""
        return self.directory.read()["spaces"]

    def run(self, state: TrainState, progress: Progress) -> tuple[TrainState, Progress]:
        """Train to the end. On a signal, save and raise `Stopped`; on an error, save and re-raise the error."""
        started, saved, speed = perf_counter() - progress.elapsed, perf_counter(), SpeedMeter()

        def save_is_due() -> bool:
            return not 0 <= perf_counter() - saved <= CHECKPOINT_SECONDS

        def surely() -> bool:
            """Whether neither this loop nor the user's function may change what the next chunk continues from, and no
            checkpoint comes before it."""
            return not save_is_due() and self.config.stop_at_return is None and self.on_iteration is None

        with stop_on_signal(lambda: self.engine.hangs, self.display.stopping) as stop:
            if progress.iteration == 0:
                self.save(state, progress)
            while (np.asarray(state.steps, np.int64) < self.config.steps).any():
                if stop.is_set():
                    self.save(state, progress)
                    raise Stopped
                try:
                    state, chunk = self.engine.advance(state, lambda: not stop.is_set(), surely)
                except Interrupted:
                    self.save(state, progress)
                    raise Stopped from None
                except Exception as error:
                    kept = self.save_after_error(state, progress)
                    if not isinstance(error, UpslopeError):
                        raise
                    words = f"{error} {kept}; resume with: {shell('upslope', 'resume', self.directory.path)}"
                    raise type(error)(words) from error
                chunk = with_true_steps(chunk, progress)
                progress.elapsed = max(progress.elapsed, perf_counter() - started)
                rate = speed.rate(int((chunk.steps[:, -1] - chunk.before[:, 0]).sum()))
                with clock(self.engine.phases, "write"):
                    stopping = self.write(chunk, progress, rate)
                    self.keep_best(state, chunk, progress, stopping)
                state = self.stop_seeds(state, progress, stopping)
                if self.on_iteration is not None:
                    progress.is_stopped = self.follow(state, chunk, progress)
                if save_is_due():
                    with clock(self.engine.phases, "write"):
                        self.save(state, progress)
                    saved = perf_counter()
                try:
                    self.display.update(self.snapshot(chunk, progress, speed.recent_rate))
                    if self.tracking is not None:
                        self.tracking.tell()
                except BrokenPipeError:  # the reader of the output has exited
                    stop.set()
                self.check_finite(chunk, progress)
                if progress.is_stopped:
                    break
            self.save(state, progress)
        return state, progress

    def follow(self, state: TrainState, chunk: Chunk, progress: Progress) -> bool:
        """Call the user's function and return whether it asked to stop. If it raises an exception, save the run first.

        The function is called before a checkpoint is written, so the checkpoint includes its effects.
        """
        assert self.on_iteration is not None
        steps, returns = chunk.steps[:, -1].copy(), np.asarray(mean_of(progress, 0))
        place = self.seeds, progress.iteration, steps, self.config.steps, returns
        following = Following(*place, progress.lines, self.engine.call)
        try:
            self.on_iteration(following)
        except BaseException as error:
            kept = self.save_after_error(state, progress)
            error.add_note(f"{kept}; resume with: upslope.resume({str(self.directory.path)!r}, on_iteration=…)")
            raise
        return following.is_stopped

    def write(self, chunk: Chunk, progress: Progress, rate: float) -> np.ndarray:
        """Append the rows of a chunk to the run's files, and return which seeds have just reached --stop-at-return
        [S]."""
        for rows in chunk.episodes:
            for _, s, episode_return, length, _ in rows:
                progress.windows[s].append((episode_return, length))
        rows = [row for seed_rows in chunk.episodes for row in seed_rows]
        cells = [(step, self.seeds[s], r, length, *info) for step, s, r, length, info in rows]
        text = "".join(",".join(map(repr, row)) + "\n" for row in cells)
        self.directory.append(self.directory.episodes_path, text)
        clocks = {"time/elapsed": round(progress.elapsed, 3), "time/steps_per_second": round(rate, 1)}
        stopping = self.reached(chunk, progress)
        returns = {s: mean_of(progress, 0)[s] for s in np.flatnonzero(stopping).tolist()}
        lines = metric_rows(chunk, self.seeds, progress.iteration, clocks, self.config.log_info, returns)
        progress.lines = list(lines)
        self.directory.append(self.directory.metrics_path, "".join(progress.lines))
        progress.iteration += chunk.steps.shape[1]
        progress.latest = {name: last_finite(x) for name, x in chunk.metrics.items()}
        return stopping

    def reached(self, chunk: Chunk, progress: Progress) -> np.ndarray:
        """Return, for each seed [S], whether its window is full and has just reached --stop-at-return for the first
        time."""
        limit, moved = self.config.stop_at_return, chunk.steps[:, -1] > chunk.before[:, 0]
        if limit is None:
            return np.zeros(len(self.seeds), bool)
        is_full = [len(window) == WINDOW for window in progress.windows]
        reached = moved & np.asarray(is_full) & (np.asarray(mean_of(progress, 0)) >= limit)
        progress.stopped_at = np.where(reached, chunk.steps[:, -1], progress.stopped_at)
        return reached

    def stop_seeds(self, state: TrainState, progress: Progress, stopping: np.ndarray) -> TrainState:
        """Return a state in which the stopping seeds [S] have no budget left, so no engine changes them any more."""
        if not stopping.any():
            return state
        for s in np.flatnonzero(stopping).tolist():
            self.say(
                f"seed {self.seeds[s]}: stopped at step {progress.stopped_at[s]:,}, since its last {WINDOW} episodes "
                f"have a mean return of {number(mean_of(progress, 0)[s])}"
            )
        steps = np.asarray(state.steps)
        return state._replace(steps=jax.device_put(np.where(stopping, np.maximum(steps, self.config.steps), steps)))

    def keep_best(self, state: TrainState, chunk: Chunk, progress: Progress, stopping: np.ndarray) -> None:
        """Keep each seed's agent if its window is the best so far. Check this a hundred times per run and when a seed
        stops."""
        checks = chunk.steps[:, -1] * BEST_CHECKS // self.config.steps
        is_due, progress.checks = (checks > progress.checks) | stopping, checks
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
        """Write `best`, then `last`, which records the sizes and hashes of the growing files."""
        has_no_best = ~np.isfinite(progress.best_return) & finite_seeds(state.learner.agent)
        best = where_seeds(has_no_best, state.learner.agent, progress.best)
        steps = true_steps(np.asarray(state.steps, np.int64), progress)
        scores = {
            "best_return": [finite(x) for x in progress.best_return.tolist()],
            "best_step": np.where(has_no_best, steps, progress.best_step).tolist(),
        }
        trained_with = {"settings": self.config.to_json(), "spaces": self.spaces}
        self.write_checkpoint(self.directory.best, best, {}, scores | trained_with)
        sizes = self.directory.sizes()
        meta = (
            scores
            | trained_with
            | {
                "elapsed": progress.elapsed,
                "iteration": progress.iteration,
                "checks": progress.checks.tolist(),
                "sizes": sizes,
                "digests": self.directory.digests(sizes),
                "windows": [[(finite(r), n) for r, n in window] for window in progress.windows],
                "steps": steps.tolist(),
                "stopped_at": progress.stopped_at.tolist(),
                "is_followed": self.on_iteration is not None,
            }
        )
        try:
            snapshot = self.engine.snapshot()
        except UpslopeError as error:  # a worker was lost, or hung and was killed
            words = f"{error} The last checkpoint is intact; resume with: "
            raise type(error)(words + shell("upslope", "resume", self.directory.path)) from error
        self.write_checkpoint(self.directory.last, state, snapshot, meta)

    def write_checkpoint(self, path: Path, tree: Any, snapshot: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Write a checkpoint. If that fails, the error explains how to resume."""
        try:
            save_checkpoint(path, tree, snapshot, meta)
        except UpslopeError as error:
            raise UpslopeError(f"{error} Resume with: {shell('upslope', 'resume', self.directory.path)}") from error

    def save_after_error(self, state: TrainState, progress: Progress) -> str:
        """Save after an error, and describe what was saved. If the environments are lost, only the last checkpoint
        remains."""
        try:
            self.save(state, progress)
        except UpslopeError:
            return "The last checkpoint is intact"
        return f"Everything up to step {int(np.asarray(state.steps, np.int64).max()):,} is saved"

    def snapshot(self, chunk: Chunk, progress: Progress, rate: float) -> Snapshot:
        """Return the state of the run, for the display."""
        return Snapshot(
            iteration=progress.iteration,
            steps=chunk.steps[:, -1].tolist(),
            total_steps=self.config.steps,
            episode_return=mean_of(progress, 0),
            episode_length=mean_of(progress, 1),
            metrics=progress.latest,
            phases=dict(self.engine.phases),
            elapsed=progress.elapsed,
            stopped=(progress.stopped_at > 0).tolist(),
            steps_per_second=rate,
            is_recorded=self.config.data is not None,
            finding="" if self.watch is None else self.watch.look(),
        )

    def check_finite(self, chunk: Chunk, progress: Progress) -> None:
        """Report, once per seed, that its parameters are no longer finite, and stop when all seeds are affected."""
        self.largest = np.maximum(self.largest, largest_observation(chunk.metrics))
        for s in np.flatnonzero(not_finite(chunk)).tolist():
            if s not in progress.broken:
                progress.broken.add(s)
                self.say(
                    f"seed {self.seeds[s]}: the agent's parameters are no longer finite at step "
                    f"{chunk.steps[s, -1]:,}, so this seed is lost. {self.remedy(chunk, s)}"
                )
        if len(progress.broken) == len(self.seeds):
            raise UpslopeError(
                f"The agent's parameters are no longer finite in any seed, so training stopped at step "
                f"{chunk.steps[:, -1].max():,}. {self.directory.best} holds the best agents of the previous "
                f"checkpoint. {self.remedy(chunk, int(np.argmax(not_finite(chunk))))}"
            )

    def remedy(self, chunk: Chunk, s: int) -> str:
        """Return what may have made a seed's parameters infinite or not a number, and what to do about it."""
        check = shell("upslope", "check", self.config.environment)
        if found := broken_facts(lost_after(chunk)[s], {name: x[s] for name, x in chunk.metrics.items()}):
            words = fault_in_words(found, is_normalised=self.config.normalize_observations)
            return f"{words} Correct it; `{check}` shows where."
        if words := too_large(self.largest[s]):
            return f"{words} {scaling_remedy(is_normalised=False)}"
        remedy = "Lower --learning-rate, or use --normalize-rewards and --normalize-observations."
        if own := own_parts(vars(self.config)):
            remedy = f"First make sure that such numbers do not come from your own {' or '.join(own)}. {remedy}"
        return remedy if self.config.data else f"{remedy} If the environment may be at fault, try `{check}`."


def true_steps(steps: np.ndarray, progress: Progress) -> np.ndarray:
    """Return the steps [S, …] that seeds have actually taken. In the state, a stopped seed counts as having spent its
    budget."""
    stopped = progress.stopped_at.reshape(-1, *(1,) * (steps.ndim - 1))
    return np.where(stopped > 0, stopped, steps)


def with_true_steps(chunk: Chunk, progress: Progress) -> Chunk:
    """Return the chunk with the steps that seeds have actually taken."""
    if not progress.stopped_at.any():
        return chunk
    return replace(chunk, steps=true_steps(chunk.steps, progress), before=true_steps(chunk.before, progress))


def mean_of(progress: Progress, part: int) -> list[float]:
    """Return each seed's mean return (0) or length (1) over its window, or nan if no episode has ended."""
    return [float(np.mean([x[part] for x in w])) if w else math.nan for w in progress.windows]
