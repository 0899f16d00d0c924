"""Send the contents of a run directory to a tracker, and record in the directory what was sent, so that nothing is sent
twice."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from upslope.core.files import MAX_SETTINGS, AnyPath, plain_file, safe_path
from upslope.core.messages import counted, told
from upslope.core.reading import damaged, parse_json
from upslope.core.storage import write_atomically
from upslope.errors import UpslopeError
from upslope.runs.directory import INFO, RunDirectory, fcntl, run_path
from upslope.runs.growing import GrowingTable, is_last, parsed_rows
from upslope.runs.tracking.tracker import (
    Tracker,
    keep_private,
    metric_row,
    named_tracker,
    require_trackers,
    tracked_run,
)

BATCH = 200
"""Maximum number of rows passed to a tracker in one call. Progress is recorded after each call."""
LAST_EPISODES = 100
"""Number of a seed's most recent training episodes over which its result is averaged."""


class Memory:
    """A record of what was sent to a tracker, stored as `tracking/NAME.json` in the run directory."""

    def __init__(self, directory: RunDirectory, name: str, project: str | None):
        self.name = name
        self.folder = directory.path / "tracking"
        self.stem = "".join(c if c.isalnum() or c in "-_." else "-" for c in name)
        self.path = self.folder / f"{self.stem}.json"
        self.root = directory.path
        self.rows = 0
        """Number of rows of metrics.jsonl that have been sent, starting with the first."""
        self.known: dict[str, Any] = {}
        """Data that the tracker needs to continue its runs."""
        self.summary: dict[str, dict[str, float]] = {}
        self.is_finished = False
        self.project = project

    def read(self) -> None:
        """Read the file, and raise an error if the project has changed."""
        plain_file(self.path, MAX_SETTINGS)
        try:
            stored = parse_json(self.path.read_text("utf-8"))
            self.rows, self.known, self.summary = stored["rows"], stored["known"], stored["summary"]
            self.is_finished, before = stored["is_finished"], stored["project"]
            if not (type(self.rows) is int and self.rows >= 0 and isinstance(self.known, dict)):
                raise TypeError("rows must be a whole number and known an object")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(self.path, error) from error
        if self.project not in (None, before):
            raise UpslopeError(
                f"{self.root} was sent to {self.name} in the project {before or 'of its configuration'}, "
                f"not in {self.project}. Omit --track-project, or delete {self.path} to send everything again."
            )
        self.project = before

    def write(self) -> None:
        """Write the file."""
        safe_path(self.root, self.folder, is_folder=True).mkdir(exist_ok=True)
        stored = {
            "project": self.project,
            "rows": self.rows,
            "known": self.known,
            "summary": self.summary,
            "is_finished": self.is_finished,
        }
        text = json.dumps(stored, indent=1, allow_nan=False)
        write_atomically(safe_path(self.root, self.path), text.encode())

    @contextmanager
    def locked(self, wait: Callable[[], bool]) -> Iterator[None]:
        """Lock the file and read it. If another process holds the lock, `wait` returns whether to try again."""
        safe_path(self.root, self.folder, is_folder=True).mkdir(exist_ok=True)
        with safe_path(self.root, self.folder / f".{self.stem}.lock").open("a") as file:
            while fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if not wait():
                        raise UpslopeError(
                            f"Another process is sending {self.root} to {self.name}. Wait until it has finished."
                        ) from error
                except OSError:
                    break  # a file system without locks
            if self.path.exists():
                self.read()
            yield


class Sender:
    """Sends one run to one tracker."""

    def __init__(self, run: AnyPath, name: str, project: str | None = None):
        self.directory, self.name = RunDirectory(run), name
        self.config = self.directory.config()
        self.memory = Memory(self.directory, name, project)
        self.table = GrowingTable(self.directory.metrics_path)
        self.steps = dict.fromkeys(self.config.seed_list(), 0)
        self.over: set[int] = set()
        self.tracker: Tracker | None = None

    @property
    def is_finished(self) -> bool:
        """Whether every seed has spent its budget or stopped earlier, according to the rows read so far."""
        return self.over == set(self.steps)

    def open(self) -> Tracker:
        """Return the tracker, with its runs open."""
        if self.tracker is not None:
            return self.tracker
        tracker = named_tracker(self.name)()
        self.memory.known = tracker.begin(tracked_run(self.directory, self.memory.project), self.memory.known)
        self.memory.is_finished = False
        self.memory.write()
        self.tracker = tracker
        return tracker

    def send(self, progress: Callable[[int], None] = lambda rows: None) -> int:
        """Send the rows added since the last call, and return their number."""
        lines = self.table.read()
        first = self.table.count - len(lines)
        rows = parsed_rows(self.table.path, lines, self.steps)
        self.steps |= {row["seed"]: row["step"] for row in rows}
        self.over |= {row["seed"] for row in rows if is_last(row, self.config.steps)}
        new = rows[max(self.memory.rows - first, 0) :]
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            self.open().log([metric_row(row) for row in batch])
            self.memory.rows += len(batch)
            self.memory.write()
            progress(len(batch))
        return len(new)

    def close(self) -> bool:
        """Send the results if they changed, and close the runs. Return whether anything was sent."""
        summary = {str(seed): values for seed, values in summary_of(self.directory, list(self.steps)).items() if values}
        is_new = summary != self.memory.summary or self.is_finished != self.memory.is_finished
        if self.tracker is None and not (is_new and self.memory.rows):
            return False
        tracker = self.open()
        if summary != self.memory.summary:
            tracker.summarise({int(seed): x for seed, x in summary.items()}, max(self.steps.values()))
        tracker.end(self.is_finished)
        self.memory.summary, self.memory.is_finished = summary, self.is_finished
        self.memory.write()
        return True


def summary_of(directory: RunDirectory, seeds: Sequence[int]) -> dict[int, dict[str, float]]:
    """Return each seed's results: means over its most recent training episodes, and over its evaluation episodes for
    each checkpoint and mode."""
    episodes, evaluations = directory.episodes(), directory.evaluations()
    found: dict[int, dict[str, float]] = {}
    for seed in seeds:
        own = episodes[episodes["seed"] == seed]
        last = own[np.argsort(own["step"], kind="stable")][-LAST_EPISODES:]
        found[seed] = means_of("training", last)
        rows = evaluations[evaluations["seed"] == seed]
        for checkpoint, mode in sorted({(str(r["checkpoint"]), str(r["mode"])) for r in rows}):
            some = rows[(rows["checkpoint"] == checkpoint) & (rows["mode"] == mode)]
            found[seed] |= means_of(f"evaluation/{checkpoint}/{mode}", some) | {
                f"evaluation/{checkpoint}/{mode}/episodes": float(len(some))
            }
    return found


def means_of(name: str, rows: np.ndarray) -> dict[str, float]:
    """Return the mean return and length of episodes, and the means of their numbers from `info`. The result is empty if
    there are no episodes."""
    columns = ["return", "length", *(column for column in rows.dtype.names or () if column.startswith(INFO))]
    known = {column: rows[column][np.isfinite(rows[column])] for column in columns}
    return {f"{name}/{column}": float(x.mean()) for column, x in known.items() if len(x)}


def track(run: AnyPath, to: str | Sequence[str], *, project: str | None = None) -> list[str]:
    """Send a run to experiment trackers: a run per seed, with all metric rows by environment step, the settings, and
    the results of training and evaluation.

    What was sent is recorded in the run directory, so a second call sends only what is new. If the run was tracked
    during training, the same tracker runs are continued. Returns a line for each tracker that states what was sent and
    where.

    Args:
        run: the run directory, or the result of `upslope.train`.
        to: `wandb`, `trackio`, `mlflow`, `tensorboard`, or your own `module:Name`; or several.
        project: the project (MLflow: experiment); by default the one in the tracker's own configuration, or otherwise
            `upslope`.

    Raises:
        UpslopeError: there is no such run or tracker, the tracker's package is missing, or it failed.
    """
    names = (to,) if isinstance(to, str) else tuple(to)
    require_trackers(names, "--to")
    return [send_run(run_path(run), name, project) for name in names]


def send_run(path: Path, name: str, project: str | None) -> str:
    """Send a run to one tracker now, and describe what was sent."""
    sender = Sender(path, name, project)
    if not os.access(path, os.W_OK):
        raise UpslopeError(
            f"{path} cannot be written, but what was sent must be recorded there, so that nothing is sent "
            "twice. Copy the run to a writable folder, and send the copy."
        )
    keep_private()
    with sender.memory.locked(lambda: False):
        try:
            count = sender.send()
            has_sent = sender.close()
        except UpslopeError:
            raise
        except Exception as error:
            raise UpslopeError(
                f"{name} failed: {told(error)}. {counted(sender.memory.rows, 'row')} of {path} were sent; the same "
                "command sends the rest."
            ) from error
    if not sender.memory.rows:
        return f"{path} has no rows yet, so nothing was sent."
    if not has_sent:
        return f"{path}: {name} already has everything; {place_of(sender.memory)}"
    sent = f"{counted(count, 'row')} and the results" if count else "the results, which are new,"
    return f"{path}: sent {sent} to {name}; {place_of(sender.memory)}"


def place_of(memory: Memory) -> str:
    """Return where the tracker shows the run."""
    return str(memory.known.get("where") or "see the tracker's own page")
