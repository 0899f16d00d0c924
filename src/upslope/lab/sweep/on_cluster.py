"""Trials on a cluster. Each worker trains one trial after another, reusing its programs if the environment is compiled.

Only the main process uses the study and writes files. A trial on the host is a run in a temporary folder, whose files
the worker sends back. A trial whose worker is lost is retrained by another worker with the same settings and seeds, so
its result is the same.
"""

import json
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from upslope.core.storage import write_atomically
from upslope.engines.base import Placement, Resources
from upslope.engines.notices import Notices
from upslope.engines.selection import is_transferable
from upslope.engines.transport import MAX_LOSSES, StartWorker, Worker, WorkerLostError
from upslope.engines.workers import InProgram
from upslope.errors import UpslopeError
from upslope.lab.sweep.folder import trial_folder
from upslope.lab.sweep.programs import Programs
from upslope.lab.sweep.setup import Setup
from upslope.lab.sweep.study import DIVERGED, Study
from upslope.lab.sweep.trial import PrunedError, TrialDisplay
from upslope.runs.directory import RunDirectory
from upslope.runs.train import Session, begin

LOOK_SECONDS = 0.5
"""Seconds between two checks of whether Ctrl-C was pressed and whether there is room for more workers."""
WAITING_SECONDS = 60.0
"""Seconds without any worker after which a message is shown."""


def train_on_cluster(
    setup: Setup,
    study: Study,
    folder: Path,
    placement: Placement,
    workers: int | None,
    ended: Callable[[int], None],
    say: Callable[[str], None],
) -> None:
    """Train trials in workers on a cluster until all have ended.

    Raises:
        UpslopeError: the environment or a part of it cannot be sent to the cluster, or a node has different versions.
        KeyboardInterrupt: Ctrl-C was pressed; trials in progress are put back.
    """
    from upslope.engines.cluster import connect

    task = setup.task(setup.default)
    if not is_transferable(task):
        raise UpslopeError("The environment or a part of it cannot be sent to a cluster. Refer to it as module:Name.")
    cluster = connect(placement)
    cluster.require(task, task.environment)
    capacity = cluster.capacity()
    count = min(workers or capacity, capacity, max(study.left(), 1))
    say(cluster.words(count))
    trials = Trials(setup, study, folder, cluster.start_worker, ended, say, is_mixed=placement.mixed)
    try:
        trials.run(count, workers or math.inf, lambda: cluster.room(task, task.environment, say))
    finally:
        cluster.release()


class Trials:
    """The trials of a study, trained by the workers of a cluster. One thread waits for each worker."""

    def __init__(
        self,
        setup: Setup,
        study: Study,
        folder: Path,
        start_worker: StartWorker,
        ended: Callable[[int], None],
        say: Callable[[str], None],
        *,
        is_mixed: bool = False,
    ):
        self.setup, self.study, self.folder, self.start_worker = setup, study, folder, start_worker
        self.ended, self.say, self.is_mixed = ended, say, is_mixed
        self.lock = threading.Lock()
        """Held while the study is being used."""
        self.is_stopped = False
        self.started = 0
        self.threads: list[threading.Thread] = []
        self.workers: dict[int, Worker] = {}
        self.starting: set[int] = set()
        """The indices of workers that have not answered yet, whose resources the cluster may still count as free."""
        self.pruned: set[int] = set()
        self.losses: dict[str, int] = {}
        self.errors: list[BaseException] = []

    def run(self, count: int, most: float, has_room: Callable[[], int]) -> None:
        """Train until no trial is left. Start with this number of workers, and add more whenever there is room, up to
        `most`."""
        for _ in range(count):
            self.start_thread()
        waited = 0.0
        try:
            while not self.is_stopped and self.go_on(most, has_room):
                time.sleep(LOOK_SECONDS)
                waited = 0.0 if self.alive() else waited + LOOK_SECONDS
                if waited >= WAITING_SECONDS:
                    waited = 0.0
                    self.say("no node of the cluster has room for a worker: waiting")
        except BaseException:
            self.is_stopped = True
            raise
        finally:
            for worker in list(self.workers.values()) if self.is_stopped else []:
                worker.channel.kill()
            for thread in self.threads:
                thread.join()
        if self.errors:
            raise self.errors[0]

    def go_on(self, most: float, has_room: Callable[[], int]) -> bool:
        """Start workers where there is room; return whether any worker is running or any trial is left."""
        alive = self.alive()
        with self.lock:
            left = self.study.left()
        if left and alive < most:
            for _ in range(min(has_room() - len(self.starting), left, int(min(most - alive, left)))):
                self.start_thread()
        return bool(alive or left)

    def alive(self) -> int:
        """The number of threads that are waiting for a worker."""
        self.threads = [thread for thread in self.threads if thread.is_alive()]
        return len(self.threads)

    def start_thread(self) -> None:
        """Start a worker and the thread that waits for it."""
        index, self.started = self.started, self.started + 1
        self.starting.add(index)
        self.threads.append(threading.Thread(target=self.work, args=(index,), daemon=True))
        self.threads[-1].start()

    def work(self, index: int) -> None:
        """Train one trial after another in a worker, until none is left or the worker is lost."""
        try:
            silent = Notices(lambda kind, words: None)
            self.workers[index] = self.start_worker("upslope.lab.sweep.on_cluster", index, "a trial", silent)
            while index in self.workers and not self.is_stopped:
                with self.lock:
                    trial = self.study.ask()
                if trial is None:
                    return
                self.train(index, trial)
                self.starting.discard(index)
        except BaseException as error:
            self.errors.append(error)
            self.is_stopped = True
        finally:
            self.starting.discard(index)
            if index in self.workers:
                self.workers.pop(index).close()

    def train(self, index: int, trial: Any) -> None:
        """Train a trial and report its result; put it back if its worker is lost."""
        worker = self.workers[index]
        worker.notices = self.report(worker, trial)
        try:
            worker.ask("train", self.setup, trial.number, trial.params, self.is_mixed)
            outcome = worker.answer(self.say)
        except WorkerLostError as error:
            self.workers.pop(index)
            if trial.number not in self.pruned:
                self.lost(trial, str(error))
                return
            outcome = Outcome(state="pruned")
        except UpslopeError as error:
            self.workers.pop(index).close()
            outcome = Outcome(state="failed", reason=str(error))
        if outcome.files:
            self.keep(trial.number, outcome.files)
        with self.lock:
            self.tell(trial, outcome)
            self.ended(trial.number)

    def keep(self, number: int, files: dict[str, bytes]) -> None:
        """Write the run that a worker sent, unless its folder contains something else. The score counts in any case."""
        try:
            path = trial_folder(self.folder, number)
        except UpslopeError as error:
            self.say(f"the run of trial {number} is not kept: {error}")
        else:
            write_files(path, files)

    def report(self, worker: Worker, trial: Any) -> Notices:
        """Handle a worker's notices: report a trial's recent return to the study, and stop the trial if it is
        pruned."""

        def show(kind: str, words: str) -> None:
            if not kind.startswith(REPORT) or trial.number in self.pruned:
                return
            part, value = json.loads(words)
            with self.lock:
                is_pruned = self.study.report(trial, part, value)
            if is_pruned:
                self.pruned.add(trial.number)
                worker.channel.interrupt()

        return Notices(show)

    def lost(self, trial: Any, words: str) -> None:
        """Put the trial of a lost worker back, unless too many of its workers have been lost."""
        settings = json.dumps(trial.params, sort_keys=True, default=str)
        self.losses[settings] = self.losses.get(settings, 0) + 1
        with self.lock:
            if self.is_stopped or self.losses[settings] <= MAX_LOSSES:
                self.study.put_back(trial)
            else:
                self.study.fail(trial, words)
        if not self.is_stopped:
            self.say(f"{words} Its trial is trained again.")

    def tell(self, trial: Any, outcome: "Outcome") -> None:
        """Report the result of a trial to the study."""
        if trial.number in self.pruned:
            self.study.prune(trial)
        elif outcome.state == "complete":
            self.study.complete(trial, outcome.score)
        elif outcome.state == "pruned":
            self.study.prune(trial, outcome.reason)
        else:
            self.study.fail(trial, outcome.reason)


REPORT = "report "
"""Prefix of the kind of notice that reports a trial's recent return."""


@dataclass
class Outcome:
    """The outcome of a trial."""

    state: str
    """`complete`, `pruned` or `failed`."""
    reason: str = ""
    score: float = math.nan
    files: dict[str, bytes] | None = None
    """The files of the trial's run; None if it was not trained as a run."""


class Server:
    """The worker's side, which trains the trials."""

    notices: Notices | None = None
    columns = InProgram()
    is_interrupted = False
    programs: Programs | None = None
    """The programs of a compiled environment's trials."""

    def train(self, setup: Setup, number: int, drawn: dict[str, Any], is_mixed: bool) -> Outcome:
        """Train a trial."""
        self.is_interrupted = False
        if setup.environment.is_compiled:
            return self.train_in_program(setup, number, drawn)
        return self.train_as_run(setup, number, drawn, is_mixed)

    def interrupt(self) -> None:
        """Make the trial stop at its next report."""
        self.is_interrupted = True

    def report(self, number: int, part: int, value: float) -> bool:
        """Report a trial's recent return; return whether it should stop."""
        if self.notices is not None:
            self.notices(f"{REPORT}{number} {part}", json.dumps([part, value]))
        return self.is_interrupted

    def train_in_program(self, setup: Setup, number: int, drawn: dict[str, Any]) -> Outcome:
        """Train a trial of a compiled environment, if possible with a program that was compiled for earlier trials."""
        trial = OneTrial(number, drawn, self.report)
        if self.programs is None:
            self.programs = Programs(setup, trial, 1, lambda _: None)
        self.programs.study = trial
        self.programs.run()
        return trial.outcome

    def train_as_run(self, setup: Setup, number: int, drawn: dict[str, Any], is_mixed: bool) -> Outcome:
        """Train a trial as a separate run."""
        display = TrialDisplay(lambda part, value: self.report(number, part, value))
        with TemporaryDirectory(prefix="upslope-trial-") as folder:
            path = Path(folder) / "run"
            try:
                config = setup.config(drawn)
                session = Session(display, Resources(1, is_one_of_mixed=is_mixed))
                run = begin(config, setup.task(config), RunDirectory(path), session)
            except PrunedError:
                return Outcome("pruned", files=files_of(path))
            except UpslopeError as error:
                if "no longer finite" in str(error):
                    return Outcome("pruned", DIVERGED, files=files_of(path))
                return Outcome("failed", str(error), files=files_of(path))
            return Outcome("complete", score=fmean(run.returns.tolist()), files=files_of(path))

    def close(self) -> None:
        """Release the programs."""
        if self.programs is not None:
            self.programs.close()


class OneTrial:
    """A study of one trial, which records its outcome."""

    total = 1

    def __init__(self, number: int, params: dict[str, Any], tell_report: Callable[[int, int, float], bool]):
        self.number, self.params, self.tell_report = number, params, tell_report
        self.is_asked = False
        self.outcome = Outcome("failed", "it was not trained")

    def ask(self) -> "OneTrial | None":
        """Return the trial on the first call, and None afterwards."""
        self.is_asked, was = True, self.is_asked
        return None if was else self

    def report(self, trial: Any, part: int, value: float) -> bool:
        """Report a recent return; return whether the trial should stop."""
        return self.tell_report(self.number, part, value)

    def complete(self, trial: Any, score: float) -> None:
        """Record the score."""
        self.outcome = Outcome("complete", score=score)

    def prune(self, trial: Any, reason: str = "") -> None:
        """Record that the trial was stopped early."""
        self.outcome = Outcome("pruned", reason)

    def fail(self, trial: Any, reason: str) -> None:
        """Record why the trial failed."""
        self.outcome = Outcome("failed", reason)

    def put_back(self, trial: Any) -> None:
        """Do nothing: the worker is ending."""


def files_of(folder: Path) -> dict[str, bytes]:
    """The contents of a folder's files, keyed by relative path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write a run that a worker sent."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
