"""The trials of a sweep, which Optuna suggests and stores. Code that trains trials uses Optuna only through this
module."""

import json
import math
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from upslope.errors import UpslopeError
from upslope.lab.sweep.combinations import Combinations
from upslope.lab.sweep.pulse import Pulse, is_gone, this_process, was_put_back
from upslope.lab.sweep.samplers import (
    distribution_of,
    made,
    needs_package,
    pruners,
    require_optuna,
    sampler_of,
    tries_all,
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
        self.combinations = Combinations(space) if tries_all(access.sampler) else None
        """The combinations, each of which is tried once; None if the sampler draws settings instead."""
        self.salt = ""
        """Makes this process draw other combinations than those that began the same one."""
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

    def continued_with(self) -> str:
        """Record the sampler and the pruner of this call, and say which of them differ from those of the last call that
        recorded them; empty if none does."""
        now = {"sampler": self.access.sampler, "pruner": self.access.pruner}
        before = self.study.user_attrs.get("drawn_by", now)
        if before != now or "drawn_by" not in self.study.user_attrs:
            self.study.set_user_attr("drawn_by", now)
        changed = [
            f"the {role} was {before[role]} and is now {name}" for role, name in now.items() if before[role] != name
        ]
        return f"{', and '.join(changed)}, for the trials that have not begun" if changed else ""

    def left(self) -> int:
        """The number of trials that have not begun. If each combination is tried once, there are no more of them than
        combinations without a trial."""
        begun = self.trials()
        left = max(self.total - len(begun), 0)
        return left if self.combinations is None else min(left, self.combinations.size - len(self.numbers(begun)))

    def numbers(self, trials: Iterable[Any]) -> set[int]:
        """The numbers of the combinations that these trials have."""
        assert self.combinations is not None
        return self.combinations.numbers(map(values_of, trials))

    def ask(self) -> Any:
        """The next trial; None if all have begun."""
        if not self.left():
            return None
        self.begun = None
        try:
            with without_warnings():
                trial = self.study.ask(self.distributions) if self.combinations is None else self.ask_for_missing()
        except BaseException as error:
            if self.begun is not None:
                self.put_back(self.storage.get_trial(self.begun))
            if isinstance(error, ImportError):
                raise needs_package("sampler", self.access.sampler, error) from error
            raise
        if trial is None:
            return None
        if sum(other.number < trial.number for other in self.trials()) >= self.total:  # another process was faster
            self.put_back(trial, again=False)
            return None
        return trial

    def ask_for_missing(self) -> Any:
        """Begin a trial of a combination that no other trial has; None if none is left.

        A trial is stored together with its settings. If several processes begin trials of one combination at the same
        moment, all but the one with the lowest number give theirs up.
        """
        assert self.combinations is not None
        while self.left():
            trial = self.begin_waiting() or self.begin_missing()
            if trial is None:
                time.sleep(AGAIN_SECONDS)  # another process is just beginning the last ones
                continue
            mine = self.combinations.number(trial.params)
            others = [t for t in self.study.get_trials(deepcopy=False) if t.number < trial.number]
            if not any(self.combinations.number(values_of(t)) == mine for t in others if not was_put_back(t)):
                return trial
            self.put_back(trial, again=False)
            self.salt = f" {trial.number}"  # processes that began the same combination draw different ones now
        return None

    def begin_waiting(self) -> Any:
        """Begin a trial that was put back, or the first trial; None if none is waiting. Trials of combinations that
        another trial has are left waiting, as are those whose settings had not been drawn."""
        assert self.combinations is not None
        for waiting in self.study.get_trials(deepcopy=False, states=(self.states.WAITING,)):
            number = self.combinations.number(values_of(waiting))
            if number is None or number in self.numbers(self.trials()):
                continue
            with self.unless_ended() as still:
                is_mine = self.storage.set_trial_state_values(waiting._trial_id, self.states.RUNNING)
                if still and is_mine:
                    self.announce(waiting)
                    for name, value in self.combinations.at(number).items():
                        kind = self.distributions[name]
                        self.storage.set_trial_param(waiting._trial_id, name, kind.to_internal_repr(value), kind)
                    return require_optuna().trial.Trial(self.study, waiting._trial_id)
        return None

    def begin_missing(self) -> Any:
        """Begin a trial of a combination without a trial, chosen at random; None if there is none."""
        assert self.combinations is not None
        kept = [t for t in self.study.get_trials(deepcopy=False) if not was_put_back(t)]
        number = self.combinations.missing(self.numbers(kept), f"{self.access.seed} {len(kept)}{self.salt}")
        if number is None:
            return None
        made = require_optuna().trial.create_trial(
            state=self.states.RUNNING,
            params=self.combinations.at(number),
            distributions=self.distributions,
            user_attrs={"process": this_process(), "alive": time.time()},
        )
        return require_optuna().trial.Trial(self.study, self.storage.create_new_trial(self.study._study_id, made))

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
            self.study.enqueue_trial(values_of(kept))
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


def values_of(trial: Any) -> dict[str, Any]:
    """The values that a trial has or, if it has not begun, will have."""
    return trial.system_attrs.get("fixed_params", {}) | trial.params


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
