"""Train a trial as a run: like `upslope train`, but it reports its recent return and may be pruned."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from upslope.engines.base import Resources
from upslope.errors import UpslopeError
from upslope.lab.sweep.folder import trial_folder
from upslope.lab.sweep.samplers import REPORTS
from upslope.lab.sweep.setup import Setup
from upslope.lab.sweep.study import DIVERGED, Study
from upslope.runs.directory import RunDirectory
from upslope.runs.display import Display, Snapshot
from upslope.runs.train import Session, begin


class PrunedError(Exception):
    """The pruner has stopped a trial."""


class TrialDisplay(Display):
    """Reports a trial's recent return to the study, and shows nothing on the screen."""

    is_quiet = True

    def __init__(self, report: Callable[[int, float], bool]) -> None:
        self.report, self.told = report, 0

    def start(self, title: str, lines: Sequence[str]) -> None:
        """Show nothing."""

    def message(self, text: str) -> None:
        """Show nothing: a trial's warnings are stored with its run."""

    def finish(self, snapshot: Snapshot | None, lines: Sequence[str]) -> None:
        """Show nothing."""

    def update(self, snapshot: Snapshot) -> None:
        part = min(math.floor(snapshot.fraction * REPORTS), REPORTS)
        if self.told < part < REPORTS:
            self.told = part
            if self.report(part, fmean(snapshot.episode_return)):
                raise PrunedError


def train_trial(setup: Setup, study: Study, trial: Any, folder: Path, workers: int | None) -> None:
    """Train a trial as a run in `folder`, and report its result. A trial that fails or diverges does not end the sweep.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the trial is put back.
    """
    display = TrialDisplay(lambda part, value: study.report(trial, part, value))
    try:
        path = trial_folder(folder, trial.number)
        config = setup.config(trial.params)
        run = begin(config, setup.task(config), RunDirectory(path), Session(display, Resources(workers)))
    except PrunedError:
        study.prune(trial)
    except UpslopeError as error:
        diverged = "no longer finite" in str(error)
        (study.prune if diverged else study.fail)(trial, DIVERGED if diverged else str(error))
    except (KeyboardInterrupt, SystemExit):
        study.put_back(trial)
        raise
    else:
        study.complete(trial, fmean(run.returns.tolist()))
