"""Trials on the host. Each trial is a run, and several processes train one trial each."""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from upslope.core.child_processes import current_folder_ignored
from upslope.engines.selection import is_transferable
from upslope.errors import UpslopeError
from upslope.lab.sweep.setup import Setup
from upslope.lab.sweep.study import Access, Study
from upslope.lab.sweep.trial import train_trial
from upslope.learning.devices import num_cores

LOOK_SECONDS = 0.5
"""Seconds between two checks of which trials the processes have finished."""
NO_TRIAL = (
    "No process began a trial: the last one {}; its error is above. In your own "
    'script, call `upslope.sweep` below `if __name__ == "__main__":`, since each process imports the script. With '
    "--workers 1, the trials are trained in this process."
)
PATIENCE = 30.0
"""Seconds that a process is given to put its trial back after Ctrl-C."""


def train_on_host(
    setup: Setup, study: Study, folder: Path, workers: int | None, ended: Callable[[int], None], say: Callable[..., Any]
) -> None:
    """Train trials, one process per core, until all have ended.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; trials in progress are put back.
    """
    count = min(workers or num_cores(), max(study.left(), 1))
    if count > 1 and not is_transferable(setup.task(setup.default)):
        say("training one trial after another, since the environment or a part cannot be sent to another process")
        count = 1
    if count == 1:
        train_here(setup, study, folder, workers, ended)
    else:
        train_in_processes(setup, study, folder, count, ended, say)


def train_here(setup: Setup, study: Study, folder: Path, workers: int | None, ended: Callable[[int], None]) -> None:
    """Train one trial after another in this process."""
    while (trial := study.ask()) is not None:
        train_trial(setup, study, trial, folder, workers)
        ended(trial.number)


def train_in_processes(
    setup: Setup, study: Study, folder: Path, count: int, ended: Callable[[int], None], say: Callable[..., Any]
) -> None:
    """Train trials in separate processes, and report each trial that ends. A process that dies is replaced, and its
    trial counts as failed."""
    context = multiprocessing.get_context("spawn")
    known = {trial.number for trial in study.told() if trial.state != "running"}

    def start() -> BaseProcess:
        process = context.Process(target=work, args=(setup, study.access, folder), daemon=True)
        with current_folder_ignored():
            process.start()
        return process

    processes = [start() for _ in range(count)]
    num_barren = 0
    try:
        while processes:
            time.sleep(LOOK_SECONDS)
            for process in [p for p in processes if p.exitcode is not None]:
                processes.remove(process)
                if process.exitcode:
                    how = f"ended with exit status {process.exitcode}"
                    if study.fail_of(process.pid, f"its process {how}"):
                        say(f"a process {how}; its trial counts as failed")
                    else:
                        num_barren += 1
                        say(f"a process {how} before it began a trial")
                    if num_barren > count:
                        raise UpslopeError(NO_TRIAL.format(how))
                    if study.left():
                        processes.append(start())
            for trial in study.told():
                if trial.state != "running" and trial.number not in known:
                    known.add(trial.number)
                    ended(trial.number)
    finally:
        until = time.monotonic() + PATIENCE
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(max(0.0, until - time.monotonic()))
        study.put_back_lost()


def work(setup: Setup, access: Access, folder: Path) -> None:
    """The main function of a process that trains trials."""
    try:
        study = Study(setup.space, access, setup.described())
        while (trial := study.ask()) is not None:
            train_trial(setup, study, trial, folder, 1)
    except KeyboardInterrupt:
        pass
    except UpslopeError as error:
        raise SystemExit(f"upslope: {error}") from None
