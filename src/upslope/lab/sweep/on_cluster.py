"""Trials on a cluster: a worker trains one at a time, as a run in a temporary folder, and sends its files back.

The main process alone asks the study and writes. A trial whose worker is lost is trained again by another one, with the
same settings and seeds, so its result is the same.
"""

import json
import math
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from upslope.core.storage import write_atomically
from upslope.engines.base import Placement, Resources
from upslope.engines.notices import Notices
from upslope.engines.selection import is_transferable
from upslope.engines.transport import StartWorker, Worker, WorkerLostError
from upslope.engines.workers import InProgram
from upslope.errors import UpslopeError
from upslope.lab.sweep.setup import Setup
from upslope.lab.sweep.study import Study
from upslope.lab.sweep.trial import PrunedError, TrialDisplay
from upslope.runs.directory import RunDirectory
from upslope.runs.train import Session, begin

MAX_LOSSES = 3
"""Lost workers after which a trial counts as failed."""
JOIN_SECONDS = 0.5
"""Seconds between two looks whether Ctrl-C was pressed."""


def train_on_cluster(
    setup: Setup,
    study: Study,
    folder: Path,
    placement: Placement,
    workers: int | None,
    ended: Callable[[int], None],
    say: Callable[[str], None],
) -> None:
    """Train trials in workers on a cluster until all have begun and ended.

    Raises:
        UpslopeError: the environment or a part cannot be sent to the cluster, or a node differs.
        KeyboardInterrupt: Ctrl-C was pressed; trials in progress are put back.
    """
    from upslope.engines.cluster import connect

    task = setup.task(setup.default)
    if not is_transferable(task):
        raise UpslopeError("The environment or a part of it cannot be sent to a cluster. Name it as module:Name.")
    cluster = connect(placement)
    cluster.require(task, task.environment)
    count = min(workers or cluster.capacity(), max(study.left(), 1))
    say(cluster.words(count))
    Trials(setup, study, folder, cluster.start_worker, ended, say).run(count)


class Trials:
    """The trials of a study that is trained by the workers of a cluster; a thread waits for each worker."""

    def __init__(
        self,
        setup: Setup,
        study: Study,
        folder: Path,
        start_worker: StartWorker,
        ended: Callable[[int], None],
        say: Callable[[str], None],
    ):
        self.setup, self.study, self.folder, self.start_worker = setup, study, folder, start_worker
        self.ended, self.say = ended, say
        self.lock = threading.Lock()
        """Held while the study is asked or told."""
        self.is_stopped = False
        self.workers: dict[int, Worker] = {}
        self.losses: dict[str, int] = {}
        self.errors: list[BaseException] = []

    def run(self, count: int) -> None:
        """Train with this number of workers until no trial is left."""
        threads = [threading.Thread(target=self.work, args=(i,), daemon=True) for i in range(count)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(JOIN_SECONDS)
        except BaseException:
            self.is_stopped = True
            for worker in list(self.workers.values()):
                worker.channel.kill()
            for thread in threads:
                thread.join()
            raise
        if self.errors:
            raise self.errors[0]

    def work(self, index: int) -> None:
        """Train one trial after another in a worker."""
        try:
            while not self.is_stopped:
                with self.lock:
                    trial = self.study.ask()
                if trial is None:
                    return
                self.train(index, trial)
        except BaseException as error:
            self.errors.append(error)
            self.is_stopped = True
        finally:
            if index in self.workers:
                self.workers.pop(index).close()

    def train(self, index: int, trial: Any) -> None:
        """Train a trial and tell its result; put it back if its worker is lost."""
        try:
            worker = self.worker(index)
            worker.notices = self.report(trial)
            worker.ask("train", self.setup, trial.number, trial.params)
            state, reason, score, files = worker.answer(self.say)
        except PrunedError:
            self.workers.pop(index).channel.kill()
            with self.lock:
                self.study.prune(trial)
        except WorkerLostError as error:
            self.workers.pop(index, None)
            self.lost(trial, str(error))
            return
        except UpslopeError as error:
            with self.lock:
                self.study.fail(trial, str(error))
        else:
            write_files(self.folder / f"{trial.number:04d}", files)
            with self.lock:
                self.tell(trial, state, reason, score)
        with self.lock:
            self.ended(trial.number)

    def worker(self, index: int) -> Worker:
        """The worker of this number; a new one if it has none."""
        if index not in self.workers:
            silent = Notices(lambda kind, words: None)
            self.workers[index] = self.start_worker("upslope.lab.sweep.on_cluster", index, "a trial", silent)
        return self.workers[index]

    def report(self, trial: Any) -> Notices:
        """Notices that tell a trial's recent return to the study.

        Raises:
            PrunedError: on a notice after which the trial is pruned.
        """

        def show(kind: str, words: str) -> None:
            if kind.startswith(REPORT):
                part, value = json.loads(words)
                with self.lock:
                    is_pruned = self.study.report(trial, part, value)
                if is_pruned:
                    raise PrunedError

        return Notices(show)

    def lost(self, trial: Any, words: str) -> None:
        """Put the trial of a lost worker back, unless its workers are lost again and again."""
        settings = json.dumps(trial.params, sort_keys=True, default=str)
        self.losses[settings] = self.losses.get(settings, 0) + 1
        with self.lock:
            if self.is_stopped or self.losses[settings] <= MAX_LOSSES:
                self.study.put_back(trial)
            else:
                self.study.fail(trial, words)
        if not self.is_stopped:
            self.say(f"{words} Its trial is trained again.")

    def tell(self, trial: Any, state: str, reason: str, score: float) -> None:
        """Tell the result of a trial."""
        if state == "complete":
            self.study.complete(trial, score)
        elif state == "diverged":
            self.study.prune(trial, state)
        else:
            self.study.fail(trial, reason)


REPORT = "report "
"""How the kind of a notice begins that tells a trial's recent return."""
Outcome = tuple[str, str, float, dict[str, bytes]]
"""A trial's state, the reason for it, its score, and the files of its run."""


class Server:
    """The worker's side: trains a trial."""

    notices: Notices | None = None
    columns = InProgram()

    def train(self, setup: Setup, number: int, drawn: dict[str, Any]) -> Outcome:
        """Train a trial as a run of its own."""

        def report(part: int, value: float) -> bool:
            if self.notices is not None:
                self.notices(f"{REPORT}{number} {part}", json.dumps([part, value]))
            return False

        with TemporaryDirectory(prefix="upslope-trial-") as folder:
            path = Path(folder) / "run"
            try:
                config = setup.config(drawn)
                session = Session(TrialDisplay(report), Resources(1))
                run = begin(config, setup.task(config), RunDirectory(path), session)
            except UpslopeError as error:
                state = "diverged" if "no longer finite" in str(error) else "failed"
                return state, str(error), math.nan, files_of(path)
            return "complete", "", fmean(run.returns.tolist()), files_of(path)

    def close(self) -> None:
        """Do nothing."""


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their relative paths."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write a run that a worker sent."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
