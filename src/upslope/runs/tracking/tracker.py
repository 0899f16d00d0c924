"""The interface to experiment trackers: the data that a tracker receives, and the list of trackers."""

import importlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from upslope.core.messages import unknown
from upslope.core.user_modules import reach
from upslope.errors import UpslopeError
from upslope.runs.directory import RunDirectory

NOT_VALUES = ("iteration", "seed", "step")
"""Columns of metrics.jsonl that identify a row."""
NOT_PARAMETERS = ("format", "spaces")
"""Entries of config.json that are not sent as parameters."""
TRACKERS: dict[str, tuple[str, str, str]] = {
    "tensorboard": ("TensorboardTracker", "tensorboardX", "TensorBoard event files in the run directory"),
    "wandb": ("WandbTracker", "wandb", "Weights & Biases"),
    "trackio": ("TrackioTracker", "trackio", "Trackio"),
    "mlflow": ("MlflowTracker", "mlflow", "MLflow"),
}
"""The name of each tracker (also the name of its module in this package and of the extra) → its class, the package that
it needs, and a description."""
PRIVATE = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""Environment variables that turn off trackers' usage reporting. Those that the user has already set are kept."""


@dataclass(frozen=True)
class TrackedRun:
    """Information about a run that a tracker receives before the first row."""

    path: Path
    name: str
    project: str | None
    """The project or experiment that the user named; None leaves it to the tracker's own configuration."""
    seeds: tuple[int, ...]
    created: float
    """Start of training, in seconds since 1970."""
    parameters: dict[str, Any]
    """Every setting by its name, and the other entries of config.json (versions, …) by their paths."""


@dataclass(frozen=True)
class MetricRow:
    """A row of metrics.jsonl."""

    seed: int
    step: int
    """Environment steps of this seed after the iteration, used as the x axis."""
    elapsed: float
    """Seconds of training up to the end of the iteration."""
    values: dict[str, float]
    """Metric → value, for finite values."""


@runtime_checkable
class Tracker(Protocol):
    """Sends one training run to one tracker, with a tracker run per seed.

    The methods are called in the order in which they are listed. They may block or raise exceptions, since they are
    called in a separate process, not in the one that trains."""

    def begin(self, run: TrackedRun, known: dict[str, Any]) -> dict[str, Any]:
        """Open a tracker's run for each seed.

        The result is stored as JSON and passed as `known` when sending continues later. On the first call, `known` is
        empty. An entry `where` is shown to the user.
        """
        ...

    def log(self, rows: Sequence[MetricRow]) -> None:
        """Send rows, ordered by step within each seed."""
        ...

    def summarise(self, summary: Mapping[int, Mapping[str, float]], step: int) -> None:
        """Send each seed's results, i.e. its training return and its evaluation. Called at the end if the results have
        changed."""
        ...

    def end(self, is_finished: bool) -> None:
        """Close the runs; `is_finished` is true if the run has spent its budget."""
        ...


def named_tracker(name: str) -> Any:
    """Return the class of a tracker by its name, or of a custom tracker by `module:Name`."""
    module, _, attribute = name.rpartition(":")
    if not module:
        module, attribute = f"{__package__}.{name}", TRACKERS[name][0]
    reach(module)
    return getattr(importlib.import_module(module), attribute)


def require_trackers(names: Sequence[str], flag: str = "--track") -> None:
    """Check that each tracker exists and that its package is installed, without importing the package.

    Raises:
        UpslopeError: a tracker is unknown, named twice or not installed.
    """
    for name in names:
        if names.count(name) > 1:
            raise UpslopeError(f"{flag} names {name} twice. Name each tracker once.")
        if ":" in name:
            require_own(name, flag)
        elif name not in TRACKERS:
            own = f"For a custom tracker, write {flag} module:Name."
            raise UpslopeError(f"{unknown('tracker', name, TRACKERS, 'upslope train --help')} {own}")
        elif not is_installed(TRACKERS[name][1]):
            raise UpslopeError(
                f'{flag} {name} needs the package {TRACKERS[name][1]}: pip install "upslope[{name}]", or omit it.'
            )


def is_installed(package: str) -> bool:
    """Return whether a package can be imported."""
    try:
        return find_spec(package) is not None
    except ValueError:  # its import is blocked in `sys.modules`
        return False


def require_own(name: str, flag: str) -> None:
    """Check that a custom tracker can be imported and has the methods of a `Tracker`."""
    try:
        kind = named_tracker(name)
    except Exception as error:
        raise UpslopeError(
            f"{flag} {name} cannot be imported: {error}. Pass module:Name of a class with the methods of "
            "upslope.Tracker, in a module on Python's import path."
        ) from error
    missing = [method for method in ("begin", "log", "summarise", "end") if not callable(getattr(kind, method, None))]
    if missing:
        raise UpslopeError(f"{flag} {name} has no method {', '.join(missing)}. See upslope.Tracker.")


def keep_private() -> None:
    """Turn off the trackers' usage reporting, unless the user has set it explicitly."""
    for name, value in PRIVATE.items():
        os.environ.setdefault(name, value)


def imported(name: str) -> Any:
    """Import the package of the tracker of this name.

    Raises:
        UpslopeError: it is not installed.
    """
    package = TRACKERS[name][1]
    if package in sys.modules and sys.modules[package] is None:
        require_trackers([name])
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UpslopeError(f'Tracking with {name} needs {error.name}: pip install "upslope[{name}]".') from error


def tracked_run(directory: RunDirectory, project: str | None) -> TrackedRun:
    """Return the information about a run that a tracker receives before the first row."""
    description, config = directory.read(), directory.config()
    created = datetime.fromisoformat(str(description.get("created", "1970-01-01T00:00:00+00:00"))).timestamp()
    rest = {name: x for name, x in description.items() if name not in ("config", *NOT_PARAMETERS)}
    path = directory.path.resolve()
    return TrackedRun(
        directory.path, path.name, project, tuple(config.seed_list()), created, config.to_json() | flat(rest)
    )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to a single one whose keys are paths."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def words(value: Any) -> str:
    """Return a parameter as text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def metric_row(row: Mapping[str, Any]) -> MetricRow:
    """Convert a row of metrics.jsonl to the form that trackers receive."""
    values = {
        name: float(x)
        for name, x in row.items()
        if name not in NOT_VALUES and isinstance(x, int | float) and math.isfinite(x)
    }
    return MetricRow(int(row["seed"]), int(row["step"]), float(row.get("time/elapsed") or 0.0), values)
