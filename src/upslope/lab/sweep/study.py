"""Optuna, which suggests the settings of trials and keeps their results; a sweep uses it only through this module.

It is imported inside functions, since it is an extra.
"""

import inspect
import json
import math
import os
import platform
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from upslope.core.messages import unknown
from upslope.core.reading import brief
from upslope.errors import UpslopeError
from upslope.lab.sweep.space import Choices, Parameter, Space

REPORTS = 20
"""How many times per trial its recent return is told to the pruner."""
WARM_UP = 5
"""Reports before the median pruner may stop a trial: the first quarter of the budget."""
BUSY_SECONDS = 60
"""Seconds for which a process waits for another one that writes to the same SQLite file."""
BEGIN_SECONDS, AGAIN_SECONDS = 30.0, 0.5
"""Seconds for which a process waits for another one that makes the tables or begins the study, and between checks."""
PULSE_SECONDS, LOST_SECONDS = 60.0, 600.0
"""Seconds between two signs of life of a trial, and without one until its process on another machine counts as gone."""
OPTIONS: Mapping[str, Any] = {
    "multivariate": True,
    "n_warmup_steps": WARM_UP,
    "max_resource": REPORTS,
    "warn_independent_sampling": False,
    "warn_asynchronous_seeding": False,
}
"""Arguments of samplers and pruners that take them; all others keep Optuna's defaults."""
NONE, DIVERGED = "none", "diverged"


def require_optuna() -> Any:
    """Import Optuna.

    Raises:
        UpslopeError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UpslopeError('A sweep needs Optuna, which is not installed: pip install "upslope[sweep]"') from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@cache
def samplers() -> dict[str, type]:
    """Optuna's samplers by name: `TPESampler` is tpe."""
    return parts_of(require_optuna().samplers, "Sampler")


@cache
def pruners() -> dict[str, type]:
    """Optuna's pruners by name; its `NopPruner` is none."""
    found = parts_of(require_optuna().pruners, "Pruner")
    return {NONE if name == "nop" else name: kind for name, kind in found.items()}


def parts_of(module: Any, ending: str) -> dict[str, type]:
    """The classes of a module that can be made without arguments, by lower-case name without the ending."""
    kinds = {name: getattr(module, name) for name in module.__all__ if name.endswith(ending)}
    return {
        name.removesuffix(ending).lower(): kind
        for name, kind in kinds.items()
        if not inspect.isabstract(kind) and not required_arguments(kind)
    }


def required_arguments(kind: type) -> list[str]:
    """The arguments without which a class cannot be made."""
    parameters = list(inspect.signature(kind).parameters.values())
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]


def named(role: str, name: str, known: Mapping[str, type]) -> type:
    """Look up a sampler or a pruner."""
    if name not in known:
        raise UpslopeError(unknown(role, name, known, "upslope sweep --help"))
    return known[name]


def made(role: str, name: str, known: Mapping[str, type], **more: Any) -> Any:
    """Make a sampler or a pruner with the options that it takes."""
    kind = named(role, name, known)
    options = {**OPTIONS, **more}
    try:
        with without_warnings():
            return kind(**{key: options[key] for key in inspect.signature(kind).parameters if key in options})
    except ImportError as error:
        raise needs_package(role, name, error) from error


def needs_package(role: str, name: str, error: ImportError) -> UpslopeError:
    """The error for a sampler or pruner whose package is missing."""
    return UpslopeError(f"The {role} {name} needs another package: {brief(error)}.")


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence Optuna's notes on experimental parts, which are no news to a user who chose them by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def sampler_of(name: str, seed: int) -> Any:
    """A sampler whose suggestion for a trial depends on the seed, the trial's number and the results before it.

    Hence a sweep that was stopped continues as it would have, and processes that share a storage draw different trials.
    """
    optuna = require_optuna()
    has_seed = "seed" in inspect.signature(named("sampler", name, samplers())).parameters and name != "qmc"

    class PerTrial(optuna.samplers.BaseSampler):
        """A new sampler of the kind for each trial, if it takes a seed."""

        def __init__(self) -> None:
            self.number, self.inner = -1, made("sampler", name, samplers(), seed=seed)
            self.is_exhausted = False
            self.announce: Callable[[Any], None] = lambda trial: None
            """Called with a trial that has begun, before anything is drawn for it."""

        def of(self, trial: Any) -> Any:
            if has_seed and trial.number != self.number:
                mixed = (seed * 1_000_003 + trial.number) % 2**32
                self.number, self.inner = trial.number, made("sampler", name, samplers(), seed=mixed)
            return self.inner

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self.of(trial).infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self.of(trial).sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            return self.of(trial).sample_independent(study, trial, param_name, param_distribution)

        def before_trial(self, study: Any, trial: Any) -> None:
            self.announce(trial)
            self.of(trial).before_trial(study, trial)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
            try:
                self.of(trial).after_trial(study, trial, state, values)
            except RuntimeError:  # it wanted to stop a study that does not run its own loop: nothing is left to try
                self.is_exhausted = True

    return PerTrial()


def distribution_of(parameter: Parameter) -> Any:
    """Optuna's distribution for a range or choices."""
    kinds = require_optuna().distributions
    if isinstance(parameter, Choices):
        return kinds.CategoricalDistribution(parameter.words)
    if parameter.is_whole:
        step = 1 if parameter.step is None else int(parameter.step)
        return kinds.IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log, step=step)
    return kinds.FloatDistribution(parameter.low, parameter.high, log=parameter.log, step=parameter.step)


@dataclass(frozen=True)
class Told:
    """A trial of a sweep, as it is stored."""

    number: int
    state: str
    """complete, pruned, diverged, failed or running."""
    drawn: dict[str, Any]
    score: float
    """The mean over seeds of the last training returns; nan unless complete."""
    reports: dict[int, float]
    """Report, from 1 to `REPORTS` → the recent return."""
    reason: str
    seconds: float


@dataclass(frozen=True)
class Access:
    """How a process accesses a study."""

    storage: str
    """URL of the database."""
    name: str
    total: int
    """How many trials the sweep has."""
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
        """`description` says what must be the same in all processes and calls; `first` are the settings of a new
        study's first trial.

        Raises:
            UpslopeError: the storage cannot be used, or holds a sweep of this name with another description.
        """
        optuna = require_optuna()
        self.space, self.access, self.total, self.states = space, access, access.total, optuna.trial.TrialState
        self.distributions = {name: distribution_of(p) for name, p in space.searched.items()}
        sampler, pruner = sampler_of(access.sampler, access.seed), made("pruner", access.pruner, pruners())
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
        """The trial that Optuna is beginning."""
        self.first_seen: dict[int, float] = {}
        """Trial of another process → when this process first saw it running."""

    def announce(self, trial: Any) -> None:
        """Record whose trial it is before its settings are drawn, which may fail or be interrupted."""
        self.begun = trial._trial_id
        self.storage.set_trial_user_attr(trial._trial_id, "process", this_process())
        self.pulse.add(trial._trial_id)

    def trials(self) -> list[Any]:
        """All trials that count: those put back are not among them."""
        found = self.study.get_trials(deepcopy=False)
        return [t for t in found if t.state != self.states.WAITING and not was_put_back(t)]

    def begin(self, description: str, first: Mapping[str, Any] | None, until: float) -> str:
        """Write what a study is and its first trial, and return what it is. Of several processes only the one that
        created it writes; another one does if nothing has been written by then."""
        while (kept := self.study.user_attrs.get("sweep")) is None and time.monotonic() < until:
            time.sleep(AGAIN_SECONDS)
        if kept is None:
            if first is not None and not self.study.get_trials(deepcopy=False):
                self.study.enqueue_trial(dict(first))
            self.study.set_user_attr("sweep", kept := description)
        return kept

    def left(self) -> int:
        """How many trials have not begun; 0 if the sampler has tried everything."""
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
        """Tell the recent return after a part of the budget, 1 to `REPORTS`; return whether to give the trial up."""
        if not math.isfinite(value):
            return False
        with self.unless_ended() as still:
            trial.report(value, part)
        if not still:
            return True
        with without_warnings():
            return trial.should_prune()

    def complete(self, trial: Any, score: float) -> None:
        """Tell the score of a finished trial. Without one, no episode has ended, and it is told as pruned."""
        if math.isfinite(score):
            with self.unless_ended():
                self.study.tell(trial, score, skip_if_finished=True)
        else:
            self.prune(trial, "no episode ended")

    def prune(self, trial: Any, reason: str = "") -> None:
        """Tell that a trial was given up. Samplers then avoid its surroundings, as those of a bad one."""
        self.end(trial, self.states.PRUNED, reason)

    def fail(self, trial: Any, reason: str) -> None:
        """Tell that a trial could not be trained."""
        self.end(trial, self.states.FAIL, brief_text(reason))

    def end(self, trial: Any, state: Any, reason: str) -> None:
        """Tell that a trial has ended without a score, and why."""
        with self.unless_ended():
            self.storage.set_trial_user_attr(trial._trial_id, "reason", reason)
            self.study.tell(trial.number, state=state, skip_if_finished=True)

    @contextmanager
    def unless_ended(self) -> Iterator[list[bool]]:
        """Do nothing to a trial that has ended, e.g. because another process took this one for gone and put it back.
        The list that is yielded is then empty."""
        still = [True]
        try:
            yield still
        except require_optuna().exceptions.UpdateFinishedTrialError:
            still.clear()

    def put_back(self, trial: Any, *, again: bool = True) -> bool:
        """Return a stopped trial to the study; with `again`, the next process that asks trains it. Of several processes
        that do so at once, one puts it back; return whether it was this one."""
        kept = self.storage.get_trial(trial._trial_id)
        with self.unless_ended() as still:
            self.storage.set_trial_user_attr(trial._trial_id, "put_back", True)
            self.storage.set_trial_state_values(trial._trial_id, self.states.FAIL)
        if still and again:
            # Settings that were given but not drawn yet, like those of the defaults, are not among the parameters.
            self.study.enqueue_trial(kept.system_attrs.get("fixed_params", {}) | kept.params)
        return bool(still)

    def running(self) -> list[Any]:
        """The trials on which a process is at work."""
        return [t for t in self.trials() if t.state == self.states.RUNNING]

    def put_back_lost(self) -> int:
        """Put back the trials of processes that no longer exist; return their number."""
        running = self.running()
        for trial in running:
            self.first_seen.setdefault(trial._trial_id, time.time())
        gone = [t for t in running if is_gone(t.user_attrs, self.first_seen[t._trial_id])]
        return sum(self.put_back(trial) for trial in gone)

    def fail_of(self, pid: int | None, reason: str) -> int:
        """Tell that the trials of a process on this machine have failed; return their number."""
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
        """How much each setting decides whether a trial is among the best; empty if there are too few trials.

        PED-ANOVA (Watanabe et al. 2023), as Optuna computes it, normalised to a sum of 1.
        """
        optuna = require_optuna()
        try:
            with without_warnings():
                evaluator = optuna.importance.PedAnovaImportanceEvaluator()
                return optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        except (ValueError, RuntimeError, ZeroDivisionError):
            return {}


def storage_of(storage: str) -> Any:
    """The storage at a URL. SQLite waits while another process writes; one that makes the same tables is waited for."""
    optuna = require_optuna()
    arguments = {"connect_args": {"timeout": BUSY_SECONDS}} if storage.startswith("sqlite") else {"pool_pre_ping": True}
    until = time.monotonic() + BEGIN_SECONDS
    with without_warnings():
        while True:
            try:
                found = optuna.storages.RDBStorage(storage, engine_kwargs=arguments)
                if storage.startswith("sqlite"):
                    lock_at_once(found.engine)
                return found
            except Exception as error:  # each database driver has its own kinds
                if not is_made_twice(error) or time.monotonic() > until:
                    raise
            time.sleep(AGAIN_SECONDS)


def lock_at_once(engine: Any) -> None:
    """Let transactions of SQLite take the lock where they begin, not where they first write: else two processes read
    that a trial waits, and both take it."""
    from sqlalchemy import event

    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver begins no transaction by itself

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    engine.dispose()  # connections that were made before


def is_made_twice(error: Exception) -> bool:
    """Whether a table or row could not be made since another process has just made it."""
    return type(error).__name__ == "IntegrityError" or "already exists" in str(error)


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file."""
    return f"sqlite:///{path.resolve()}"


@contextmanager
def storage_errors(storage: str) -> Iterator[None]:
    """Turn the errors of a database into one message, without the password that a URL may hold."""
    try:
        yield
    except UpslopeError:
        raise
    except Exception as error:  # each database driver has its own kinds
        scheme = storage.partition(":")[0] if "://" in storage else "?"
        words = brief(error).replace(storage, f"{scheme}://…")
        raise UpslopeError(
            f"The storage {scheme}://… cannot be used: {type(error).__name__}: {words}. Give --storage a URL like "
            "sqlite:///study.db or postgresql+psycopg://user@host/database, and install its driver (pip install "
            '"psycopg[binary]").'
        ) from error


def is_of_storage(error: Exception) -> bool:
    """Whether an error comes from the database, e.g. since its server is gone."""
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return "sqlalchemy" in modules or type(error).__name__ == "StorageInternalError"


def differing(name: str, kept: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say how a sweep of this name differs from the requested one."""
    differ = [key for key in now if kept.get(key) != now[key]]
    words = ", ".join(f"{key} was {json.dumps(kept.get(key))}, now {json.dumps(now[key])}" for key in differ)
    return (
        f"The sweep {name} has other settings ({words}), so its trials cannot be compared with new ones. Repeat its "
        "command to continue it, or choose another --name."
    )


def brief_text(text: str) -> str:
    """The first line of a text, short enough for a database."""
    return text.splitlines()[0][:400] if text else ""


def this_process() -> str:
    """The machine and the number of this process."""
    return f"{platform.node()}:{os.getpid()}"


class Pulse:
    """Records in the storage, once in a while, that the trials of this process are still in progress."""

    def __init__(self, storage: Any):
        self.storage, self.trials, self.lock = storage, set(), threading.Lock()
        self.thread: threading.Thread | None = None

    def add(self, trial: int) -> None:
        """Record it for this trial from now on."""
        self.write(trial)
        with self.lock:
            self.trials.add(trial)
            if self.thread is None:
                self.thread = threading.Thread(target=self.beat, daemon=True)
                self.thread.start()

    def beat(self) -> None:
        """Record it until the process ends."""
        while True:
            time.sleep(PULSE_SECONDS)
            with self.lock:
                trials = set(self.trials)
            for trial in trials:
                if not self.write(trial):
                    self.trials.discard(trial)

    def write(self, trial: int) -> bool:
        """Record it now, if the storage can be reached; False if the trial has ended."""
        try:
            self.storage.set_trial_user_attr(trial, "alive", time.time())
        except (require_optuna().exceptions.UpdateFinishedTrialError, KeyError):
            return False
        except Exception:  # each database driver has its own kinds; a server may be back the next time
            pass
        return True


def was_put_back(trial: Any) -> bool:
    """Whether a trial was returned to the study; one that ended differently in the meantime was not."""
    return bool(trial.user_attrs.get("put_back")) and trial.state.name == "FAIL"


def is_gone(attributes: Mapping[str, Any], first_seen: float = math.inf) -> bool:
    """Whether the process that trains a trial has ended: by its pulse, and on this machine by its number too, which
    another process may have by now. Without any sign of life it counts as gone some time after it was first seen."""
    if time.time() - float(attributes.get("alive", first_seen)) > LOST_SECONDS:
        return True
    machine, _, number = str(attributes.get("process", "")).rpartition(":")
    if machine != platform.node() or os.name != "posix" or not number.isdigit() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
