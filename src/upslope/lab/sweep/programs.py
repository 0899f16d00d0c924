"""Trials in a compiled environment. Trials that differ only in numeric settings share one program, which trains several
of them simultaneously."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from statistics import fmean
from typing import Any, Protocol, runtime_checkable

import jax

from upslope.engines.base import chunk_length, not_finite
from upslope.engines.trials import TrialsEngine
from upslope.errors import UpslopeError
from upslope.lab.sweep.samplers import REPORTS
from upslope.lab.sweep.setup import Setup
from upslope.lab.sweep.study import DIVERGED
from upslope.learning.devices import computing
from upslope.learning.iteration import Task
from upslope.learning.varied import Family, Path, UndecidedError, flatten
from upslope.runs.loop import WINDOW
from upslope.runs.signals import stop_on_signal

AT_ONCE, AT_ONCE_ON_ACCELERATOR = 8, 64
"""Default number of trials trained simultaneously. More trials make better use of an accelerator; with fewer, the
sampler knows more results when it suggests a trial."""


@dataclass
class Active:
    """A trial in a slot of an engine."""

    trial: Any
    slot: int
    windows: list[deque[float]]
    """The most recent training returns of each seed."""
    told: int = 0

    def recent(self) -> float:
        """The mean over seeds of the most recent training returns; nan until each seed has finished an episode."""
        return fmean(fmean(window) if window else math.nan for window in self.windows)


@runtime_checkable
class Trials(Protocol):
    """The interface of a `Study` for programs: it provides trials and receives their results."""

    total: int

    def ask(self) -> Any:
        """See `Study.ask`."""
        ...

    def report(self, trial: Any, part: int, value: float) -> bool:
        """See `Study.report`."""
        ...

    def complete(self, trial: Any, score: float) -> None:
        """See `Study.complete`."""
        ...

    def prune(self, trial: Any, reason: str = "") -> None:
        """See `Study.prune`."""
        ...

    def fail(self, trial: Any, reason: str) -> None:
        """See `Study.fail`."""
        ...

    def put_back(self, trial: Any) -> Any:
        """See `Study.put_back`."""
        ...


class Programs:
    """Trains the trials of a study until all have ended."""

    def __init__(self, setup: Setup, study: Trials, at_once: int | None, say: Callable[[int], None]):
        """`say` is called with the number of each trial that has ended."""
        self.setup, self.study, self.say = setup, study, say
        self.at_once = at_once
        self.engines: list[tuple[TrialsEngine, list[Active]]] = []
        self.paths: tuple[Path, ...] | None = None
        self.num_alone = 0
        """Number of trials to train one by one, because a program that failed with several trials does not reveal which
        of them was at fault."""

    def run(self) -> None:
        """Train the trials. This may be called again, since programs are kept until `close`.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed; trials in progress are put back.
        """
        with computing(on_host=False), stop_on_signal(lambda: False) as stop:
            is_cpu = jax.default_backend() == "cpu"
            at_once = self.at_once or (max(AT_ONCE, jax.local_device_count()) if is_cpu else AT_ONCE_ON_ACCELERATOR)
            at_once = min(at_once, self.study.total)
            try:
                while self.fill(at_once):
                    for engine, active in list(self.engines):
                        if active and not stop.is_set():
                            self.advance(engine, active)
                    if stop.is_set():
                        raise KeyboardInterrupt
            finally:
                for engine, active in self.engines:
                    for one in active:
                        engine.stop(one.slot)
                        self.study.put_back(one.trial)
                    active.clear()

    def close(self) -> None:
        """Release the programs."""
        for engine, _ in self.engines:
            engine.close()
        self.engines = []

    def fill(self, at_once: int) -> bool:
        """Begin trials until `at_once` are in progress; return whether any are."""
        while sum(len(active) for _, active in self.engines) < (1 if self.num_alone else at_once):
            trial = self.study.ask()
            if trial is None:
                break
            self.num_alone = max(self.num_alone - 1, 0)
            try:
                self.begin(trial, self.setup.task(self.setup.config(trial.params)), at_once)
            except UpslopeError as error:
                self.study.fail(trial, str(error))
                self.say(trial.number)
            except BaseException:
                self.study.put_back(trial)
                raise
        return any(active for _, active in self.engines)

    def begin(self, trial: Any, task: Task, at_once: int) -> None:
        """Begin a trial in a free slot of its program."""
        if self.paths is None:
            self.paths = number_paths(self.setup)
        try:
            self.place(trial, task, at_once, self.paths)
        except UndecidedError:  # a user's own part branches on a number, so each trial needs its own program
            for engine, active in self.engines:
                if not active:
                    engine.close()
            self.engines = [(engine, active) for engine, active in self.engines if active]
            self.place(trial, task, at_once, ())

    def place(self, trial: Any, task: Task, at_once: int, paths: tuple[Path, ...]) -> None:
        """Begin a trial in the first engine of its family, or in a new one in which the numbers at `paths` may differ
        between trials."""
        fitting = [pair for pair in self.engines if pair[0].family.joined(task) is pair[0].family]
        found = next((pair for pair in fitting if len(pair[1]) < pair[0].slots), None)
        if found is None:
            parts = flatten(task)
            family = Family(task, tuple(path for path in paths if type(parts.get(path)) is float))
            slots = at_once if family.paths else 1
            seeds = self.setup.default.seed_list()
            found = TrialsEngine(family, seeds, slots, chunk_length(task, REPORTS)), []
        engine, active = found
        slot = min(set(range(engine.slots)) - {one.slot for one in active})
        engine.place(slot, task)
        if found not in self.engines:
            self.engines.append(found)
        windows = [deque(maxlen=WINDOW) for _ in self.setup.default.seed_list()]
        active.append(Active(trial, slot, windows))

    def advance(self, engine: TrialsEngine, active: list[Active]) -> None:
        """Train a program's trials for a part of their budget, and report the results."""
        try:
            chunk = engine.advance_all()
        except UpslopeError as error:
            self.lose(engine, active, str(error))
            return
        lost = not_finite(chunk)
        for one in list(active):
            rows = engine.places(one.slot)
            for window, row in zip(one.windows, rows, strict=True):
                window.extend(episode_return for _, _, episode_return, *_ in chunk.episodes[row])
            steps, value = int(chunk.steps[rows, -1].min()), one.recent()
            part = steps * REPORTS // self.setup.default.steps
            if lost[rows].any():
                engine.stop(one.slot)
                self.end(active, one, partial(self.study.prune, reason=DIVERGED))
            elif part >= REPORTS:
                self.end(active, one, partial(self.study.complete, score=value))
            elif part > one.told:
                one.told = part
                if self.study.report(one.trial, part, value):
                    engine.stop(one.slot)
                    self.end(active, one, self.study.prune)

    def lose(self, engine: TrialsEngine, active: list[Active], reason: str) -> None:
        """Handle a program that failed. If it had only one trial, mark that trial as failed; otherwise put all of them
        back to be trained one by one, to find out which one fails."""
        is_alone = len(active) == 1
        for one in list(active):
            engine.stop(one.slot)
            if is_alone:
                self.end(active, one, partial(self.study.fail, reason=reason))
            else:
                active.remove(one)
                self.study.put_back(one.trial)
                self.num_alone += 1

    def end(self, active: list[Active], one: Active, tell: Callable[[Any], None]) -> None:
        """Free a trial's slot and report its result."""
        active.remove(one)
        tell(one.trial)
        self.say(one.trial.number)


def number_paths(setup: Setup) -> tuple[Path, ...]:
    """The paths of the searched numbers in a task, found by comparing tasks that differ in one setting."""
    found: dict[Path, None] = {}
    for name, parameter in setup.space.searched.items():
        tasks = []
        for value in (getattr(setup.default, name), *parameter.ends()):
            try:
                tasks.append(setup.task(replace(setup.default, **{name: value})))
            except UpslopeError:  # this value requires a different value of another setting
                continue
        for first, second in combinations(tasks, 2):
            family = Family(first, ()).joined(second)
            found |= dict.fromkeys(family.paths if family else ())
    return tuple(found)
