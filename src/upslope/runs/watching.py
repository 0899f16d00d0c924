"""Display a run that is being trained by another process, using only the rows in its directory."""

import math
import reprlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeGuard

from upslope.core.files import AnyPath
from upslope.core.messages import PREFIX, shell
from upslope.core.reading import damaged
from upslope.runs.directory import RunDirectory, run_path
from upslope.runs.display import Display, Snapshot, clock, closing_words, curve_place, mean, title_of
from upslope.runs.growing import GrowingTable, episode_of, is_last, parsed_rows

PAUSE = 1.0
"""Seconds between checks of the directory."""
WINDOW = 100
"""Number of a seed's most recent finished training episodes over which its return is averaged, as in training."""
SILENT_SECONDS, LONGER = 60.0, 10.0
"""A run is assumed to have stopped if no row has appeared for this many seconds and for this many times its longest
pause so far."""
MOMENT = 5.0
"""Maximum number of seconds between the last row of a run and the end of its process."""
FIRST_SECONDS = 600.0
"""Maximum number of seconds until the first rows appear, including compilation."""
NOT_SHOWN = (PREFIX, "time/", "episode/")
"""Prefixes of metrics that the display does not show or obtains in another way."""
MAX_COUNT = 2**53
"""The largest number of steps, iterations or seconds that is accepted. No real run comes near it."""
LOCKS = Path("/proc/locks")
"""The file in which Linux lists all locks held by processes on this machine."""


class History:
    """The state of a run, according to its rows so far."""

    def __init__(self, directory: RunDirectory):
        self.directory, self.config = directory, directory.config()
        self.seeds = self.config.seed_list()
        self.restart()

    def restart(self) -> None:
        """Discard everything, because a resumed run has truncated its tables."""
        self.metrics, self.episodes = (
            GrowingTable(self.directory.metrics_path),
            GrowingTable(self.directory.episodes_path),
        )
        self.steps = dict.fromkeys(self.seeds, 0)
        self.over: set[int] = set()
        self.waiting: dict[int, deque[tuple[int, float, int]]] = {seed: deque() for seed in self.seeds}
        self.windows: dict[int, deque[tuple[float, int]]] = {seed: deque(maxlen=WINDOW) for seed in self.seeds}
        self.values: dict[str, dict[int, float]] = {}
        self.iteration, self.elapsed, self.rate, self.longest_pause = 0, 0.0, math.nan, 0.0

    @property
    def is_finished(self) -> bool:
        """Whether every seed has spent its budget or stopped earlier."""
        return self.over == set(self.seeds)

    def read(self) -> list[Snapshot]:
        """Return the states that the run has reached since the last call: the latest one, and enough earlier ones to
        draw a curve."""
        lines = self.metrics.read()
        if self.metrics.has_restarted:
            self.restart()
            return self.read()
        rows = parsed_rows(self.metrics.path, lines, self.steps)
        if absurd := [row["step"] for row in rows if not 0 <= row["step"] <= MAX_COUNT]:
            raise damaged(self.metrics.path, ValueError(f"a row is at step {reprlib.repr(absurd[0])}"))
        self.read_episodes()  # must come after the rows, since training writes episodes first
        found: list[Snapshot] = []
        for _, chunk in groupby(rows, key=lambda row: row.get("time/elapsed")):
            self.add(list(chunk))
            state = self.snapshot()
            if found and curve_place(found[-1]) == curve_place(state):
                found.pop()
            found.append(state)
        return found

    def read_episodes(self) -> None:
        """Read the new episodes, and keep them until the rows reach their steps."""
        for line in self.episodes.read():
            found = episode_of(line)
            if found is not None and found[1] in self.waiting and max(found[0], found[3]) <= MAX_COUNT:
                step, seed, episode_return, length = found
                self.waiting[seed].append((step, episode_return, length))

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Advance the state by the rows of a chunk. A seed without a row keeps its last values."""
        for seed in {row["seed"] for row in rows}:
            for values in self.values.values():
                values[seed] = math.nan
        for row in rows:
            self.steps[row["seed"]] = row["step"]
            self.over |= {row["seed"]} if is_last(row, self.config.steps) else set()
            for name, value in row.items():
                if isinstance(value, float) and not name.startswith(NOT_SHOWN):
                    self.values.setdefault(name, {})[row["seed"]] = value
        for seed, waiting in self.waiting.items():
            while waiting and waiting[0][0] <= self.steps[seed]:
                _, episode_return, length = waiting.popleft()
                self.windows[seed].append((episode_return, length))
        self.add_times(rows[-1])

    def snapshot(self) -> Snapshot:
        """Return the state for the display. The time of each phase is not stored, so it is not shown."""
        return Snapshot(
            iteration=self.iteration,
            steps=list(self.steps.values()),
            total_steps=self.config.steps,
            episode_return=self.means(0),
            episode_length=self.means(1),
            metrics={name: [of.get(seed, math.nan) for seed in self.seeds] for name, of in self.values.items()},
            phases={},
            elapsed=self.elapsed,
            steps_per_second=self.rate,
            is_recorded=self.config.data is not None,
            stopped=[seed in self.over and step < self.config.steps for seed, step in self.steps.items()],
        )

    def add_times(self, row: dict[str, Any]) -> None:
        """Record the times of a chunk if they are numbers that can be displayed."""
        elapsed, rate, iteration = (row.get(n) for n in ("time/elapsed", "time/steps_per_second", "iteration"))
        if is_shown(elapsed):
            if self.elapsed:
                self.longest_pause = max(self.longest_pause, elapsed - self.elapsed)
            self.elapsed = float(elapsed)
        self.rate = float(rate) if is_shown(rate) else math.nan
        self.iteration = iteration + 1 if isinstance(iteration, int) and 0 <= iteration <= MAX_COUNT else self.iteration

    def closing_line(self) -> str:
        """Return the summary of the finished run."""
        returns = None if self.config.data is not None else self.means(0)
        return closing_words(self.elapsed, self.seeds, returns)

    def means(self, part: int) -> list[float]:
        """Return each seed's mean return (0) or length (1) over its last episodes."""
        return [mean([float(episode[part]) for episode in window]) for window in self.windows.values()]


def is_shown(value: Any) -> TypeGuard[int | float]:
    """Return whether the value is a non-negative number that can be displayed."""
    return isinstance(value, int | float) and 0 <= value <= MAX_COUNT


class Silence:
    """Estimates from outside whether a run is still training.

    At first, the last row is assumed to be as old as the file, which is wrong if a network share's clock is wrong.
    Later, its age is the time since a new row was last seen. If training runs on this machine under Linux, its lock
    shows whether its process is alive.
    """

    def __init__(self, history: History, now: Callable[[], float]):
        self.history, self.now = history, now
        self.was_alive = False
        tables = history.directory.metrics_path, history.directory.path / "config.json"
        self.last = min(now(), next((t.stat().st_mtime for t in tables if t.exists() and t.stat().st_size), now()))

    def reset(self) -> None:
        """Record that a new row was seen."""
        self.last = self.now()

    @property
    def seconds(self) -> float:
        """Seconds since the last row."""
        return max(self.now() - self.last, 0.0)

    @property
    def limit(self) -> float:
        """Seconds without a row after which the silence is unusual for this run."""
        pause = self.history.longest_pause
        return max(SILENT_SECONDS, LONGER * pause) if pause else FIRST_SECONDS

    def words(self) -> str:
        """Return the notice about the silence, or an empty string if nothing is wrong."""
        run, is_alive = self.history.directory.path, is_locked(self.history.directory.path / "config.json")
        self.was_alive |= is_alive
        if self.was_alive and not is_alive and self.seconds > MOMENT:
            return f"its process ended before the budget was spent. Resume it: {shell('upslope', 'resume', run)}"
        if self.seconds <= self.limit:
            return ""
        pause = self.history.longest_pause
        usual = f", and the longest pause before that was {clock(pause)}" if pause else ""
        told = f"no new row for more than {clock(self.limit)}{usual}"
        if is_alive:
            return f"{told}. Its process is still running: an environment may be hanging"
        return f"{told}: it seems to have stopped. If it has: {shell('upslope', 'resume', run)}"


def is_locked(path: Path) -> bool:
    """Return whether a process on this machine holds a run's lock, according to Linux's list of locks.

    Trying to take the lock instead would interfere with training."""
    try:
        node = path.stat().st_ino
        lines = LOCKS.read_text("ascii").splitlines()
    except (OSError, UnicodeError):
        return False
    return any("FLOCK" in line and "WRITE" in line and f":{node} " in line for line in lines)


def watch(
    run: AnyPath,
    display: Display,
    look: Callable[[], str] = lambda: "",
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.time,
) -> None:
    """Show a run until it has spent its budget. Nothing in its directory is written or locked.

    `look` returns the doctor's finding. Tests can replace `sleep` and `now`, which provide the clock.

    Raises:
        UpslopeError: `run` is not a run directory, or it is damaged.
    """
    history = History(RunDirectory(run))
    silence, state = Silence(history, now), history.snapshot()
    has_rows = False
    with display:
        display.start(title_of(history.config), [f"watching {run_path(run)}; Ctrl-C stops watching, not the run"])
        while True:
            new = history.read()
            if new:
                display.recall(new[:-1])
                state = new[-1]
            if history.is_finished:
                break
            if new and has_rows:
                silence.reset()
            has_rows |= bool(new)
            notice = silence.words()
            if has_rows or notice:
                finding = look() if has_rows else ""
                display.update(replace(state, finding=finding, notice=notice, age=silence.seconds))
            sleep(PAUSE)
        display.finish(state, [history.closing_line(), f"evaluate it:  {shell('upslope', 'evaluate', run_path(run))}"])
