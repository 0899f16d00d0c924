"""The trials of a sweep, which Optuna suggests and stores. Code that trains trials uses Optuna only through this
module."""

import json
import math
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from upslope.errors import UpslopeError
from upslope.lab.sweep.pulse import Pulse, is_gone, this_process, was_put_back
from upslope.lab.sweep.samplers import (
    distribution_of,
    made,
    needs_package,
    pruners,
    require_optuna,
    sampler_of,
    without_warnings,
)
from upslope.lab.sweep.space import Space
from upslope.lab.sweep.storages import AGAIN_SECONDS, BEGIN_SECONDS, storage_errors, storage_of

DIVERGED = "diverged"


@dataclass(frozen=True)
class Told:
    """A trial of a sweep, as it is stored."""

    number: int
    state: str
    """complete, pruned, diverged, failed or running."""
    drawn: dict[str, Any]
    score: float
    """The mean over seeds of the last 100 training returns; nan unless the trial is complete."""
    reports: dict[int, float]
    """Maps the number of each report, from 1 to `REPORTS`, to the recent return that it contains."""
    reason: str
    seconds: float


@dataclass(frozen=True)
class Access:
    """The settings with which a process accesses a study."""

    storage: str
    """URL of the database."""
    name: str
    total: int
    """Total number of trials in the sweep."""
    sampler: str
    pruner: str
    seed: int


class Study:
    """The trials of a sweep in their storage. Several processes may share it."""

    def __init__(
        self,
        space: Space,
        access: Access,
        description: Mapping[str, Any],
        first: Mapping[str, Any] | None = None,
    ):
        """`description` must be the same in all processes and calls; `first` gives the settings of a new study's first
        trial.

        Raises:
            UpslopeError: the storage cannot be used, or contains a sweep of this name with a different description.
        """
        optuna = require_optuna()
        self.space, self.access, self.total, self.states = space, access, access.total, optuna.trial.TrialState
        self.distributions = {name: distribution_of(p) for name, p in space.searched.items()}
        sampler, pruner = sampler_of(access.sampler, access.seed), made("pruner", access.pruner, pruners())
        self.is_new = False
        """Whether this process created the study."""
        with storage_errors(access.storage):
            self.storage = storage_of(access.storage)
            place: dict[str, Any] = {"storage": self.storage, "study_name": access.name}
            place |= {"sampler": sampler, "pruner": pruner}
            try:
                self.study = optuna.create_study(**place, direction="maximize")
                until = 0.0
            except optuna.exceptions.DuplicatedStudyError:
                self.study = optuna.load_study(**place)
                until = time.monotonic() + BEGIN_SECONDS
            now = json.dumps(description, sort_keys=True)
            kept = self.begin(now, first, until)
            if json.loads(kept) != json.loads(now):
                raise UpslopeError(differing(access.name, json.loads(kept), json.loads(now)))
        self.pulse = Pulse(self.storage)
        sampler.announce = self.announce
        self.begun: int | None = None
        """The trial that Optuna is currently starting."""
        self.first_seen: dict[int, float] = {}
        """Maps each trial of another process to the time at which this process first saw it running."""

    def announce(self, trial: Any) -> None:
        """Record which process owns the trial before its settings are drawn, since drawing may fail or be
        interrupted."""
        self.begun = trial._trial_id
        self.storage.set_trial_user_attr(trial._trial_id, "process", this_process())
        self.pulse.add(trial._trial_id)

    def trials(self) -> list[Any]:
        """All trials that count, i.e. all except those that were put back."""
        found = self.study.get_trials(deepcopy=False)
        return [t for t in found if t.state != self.states.WAITING and not was_put_back(t)]

    def begin(self, description: str, first: Mapping[str, Any] | None, until: float) -> str:
        """Write the study's description and its first trial, and return the stored description. If there are several
        processes, only the one that created the study writes. Another process writes only if nothing has been written
        by `until`."""
        while (kept := self.study.user_attrs.get("sweep")) is None and time.monotonic() < until:
            time.sleep(AGAIN_SECONDS)
        if kept is None:
            if first is not None and not self.study.get_trials(deepcopy=False):
                self.study.enqueue_trial(dict(first))
            self.is_new = True
            self.study.set_user_attr("id", token_hex(8))
            self.study.set_user_attr("sweep", kept := description)
        return kept

    def identity(self) -> str:
        """An identifier that distinguishes this study from all others, even those with the same name. A study created
        by an earlier version gets one now."""
        if "id" not in self.study.user_attrs:
            self.study.set_user_attr("id", token_hex(8))
        return self.study.user_attrs["id"]

    def left(self) -> int:
        """The number of trials that have not begun; 0 if the sampler has tried everything."""
        waiting = (self.states.WAITING,)
        if getattr(self.study.sampler, "is_exhausted", False) and not self.study.get_trials(False, waiting):
            return 0
        return max(self.total - len(self.trials()), 0)

    def ask(self) -> Any:
        """The next trial; None if all have begun."""
        if not self.left():
            return None
        self.begun = None
        try:
            with without_warnings():
                trial = self.study.ask(self.distributions)
        except BaseException as error:
            if self.begun is not None:
                self.put_back(self.storage.get_trial(self.begun))
            if isinstance(error, ImportError):
                raise needs_package("sampler", self.access.sampler, error) from error
            raise
        if sum(other.number < trial.number for other in self.trials()) >= self.total:  # another process was faster
            self.put_back(trial, again=False)
            return None
        return trial

    def report(self, trial: Any, part: int, value: float) -> bool:
        """Report the recent return of a trial after a part of its budget, numbered from 1 to `REPORTS`; return whether
        to prune the trial."""
        if not math.isfinite(value):
            return False
        with self.unless_ended() as still:
            trial.report(value, part)
        if not still:
            return True
        with without_warnings():
            return bool(trial.should_prune())  # some pruners return NumPy booleans

    def complete(self, trial: Any, score: float) -> None:
        """Report the score of a finished trial. If it has no score because no episode has ended, it is reported as
        pruned."""
        if math.isfinite(score):
            with self.unless_ended():
                self.study.tell(trial, score, skip_if_finished=True)
        else:
            self.prune(trial, "no episode ended")

    def prune(self, trial: Any, reason: str = "") -> None:
        """Report that a trial was stopped early. Samplers then avoid the region around it, as after a bad trial."""
        self.end(trial, self.states.PRUNED, reason)

    def fail(self, trial: Any, reason: str) -> None:
        """Report that a trial could not be trained."""
        self.end(trial, self.states.FAIL, brief_text(reason))

    def end(self, trial: Any, state: Any, reason: str) -> None:
        """Report that a trial has ended without a score, and why."""
        with self.unless_ended():
            self.storage.set_trial_user_attr(trial._trial_id, "reason", reason)
            self.study.tell(trial.number, state=state, skip_if_finished=True)

    @contextmanager
    def unless_ended(self) -> Iterator[list[bool]]:
        """Suppress the error that changing a trial raises if the trial has ended, e.g. because another process assumed
        that this process was dead and put the trial back. The yielded list is emptied in this case."""
        still = [True]
        try:
            yield still
        except require_optuna().exceptions.UpdateFinishedTrialError:
            still.clear()

    def put_back(self, trial: Any, *, again: bool = True) -> bool:
        """Return a stopped trial to the study. With `again`, the next process that asks for a trial trains it. If
        several processes do this simultaneously, only one puts the trial back; return whether it was this one."""
        kept = self.storage.get_trial(trial._trial_id)
        with self.unless_ended() as still:
            self.storage.set_trial_user_attr(trial._trial_id, "put_back", True)
            self.storage.set_trial_state_values(trial._trial_id, self.states.FAIL)
        if still and again:
            # Settings that were given but not yet drawn, such as the defaults, are not among the parameters.
            self.study.enqueue_trial(kept.system_attrs.get("fixed_params", {}) | kept.params)
        return bool(still)

    def running(self) -> list[Any]:
        """The trials on which a process is working."""
        return [t for t in self.trials() if t.state == self.states.RUNNING]

    def put_back_lost(self) -> int:
        """Put back the trials of processes that no longer exist; return their number."""
        running = self.running()
        for trial in running:
            self.first_seen.setdefault(trial._trial_id, time.time())
        gone = [t for t in running if is_gone(t.user_attrs, self.first_seen[t._trial_id])]
        return sum(self.put_back(trial) for trial in gone)

    def fail_of(self, pid: int | None, reason: str) -> int:
        """Report that the trials of a process on this machine have failed; return their number."""
        failed = [t for t in self.running() if t.user_attrs.get("process") == f"{platform.node()}:{pid}"]
        for trial in failed:
            self.fail(trial, reason)
        return len(failed)

    def told(self) -> list[Told]:
        """All trials in order."""
        return [self.told_of(trial) for trial in self.trials()]

    def told_of(self, trial: Any) -> Told:
        """One trial as it is stored."""
        reason, state = trial.user_attrs.get("reason", ""), trial.state.name.lower()
        state = {"fail": "failed"}.get(state, reason if reason == DIVERGED else state)
        has_score = trial.state == self.states.COMPLETE and trial.value is not None
        seconds = trial.duration.total_seconds() if trial.duration else math.nan
        score = float(trial.value or 0.0) if has_score else math.nan
        return Told(trial.number, state, dict(trial.params), score, dict(trial.intermediate_values), reason, seconds)

    def best(self) -> Told | None:
        """The trial with the highest score; None if no trial is complete."""
        complete = [t for t in self.told() if t.state == "complete"]
        return max(complete, key=lambda t: (t.score, -t.number), default=None)

    def importances(self) -> dict[str, float]:
        """How strongly each setting determines whether a trial is among the best; empty if there are too few trials.

        PED-ANOVA (Watanabe et al. 2023), as Optuna computes it, normalised to a sum of 1.
        """
        optuna = require_optuna()
        try:
            with without_warnings():
                evaluator = optuna.importance.PedAnovaImportanceEvaluator()
                return optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        except (ValueError, RuntimeError, ZeroDivisionError):
            return {}


def differing(name: str, kept: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The error message if a sweep of this name differs from the requested one."""
    differ = [key for key in now if kept.get(key) != now[key]]
    words = ", ".join(f"{key} was {json.dumps(kept.get(key))}, now {json.dumps(now[key])}" for key in differ)
    return (
        f"The sweep {name} has different settings ({words}), so its trials cannot be compared with new ones. Repeat "
        "its command to continue it, or choose another --name."
    )


def brief_text(text: str) -> str:
    """The first line of a text, shortened to fit in a database."""
    return text.splitlines()[0][:400] if text else ""
