"""Kill a training run repeatedly, and compare its result with that of an uninterrupted run.

`benchmarks/stress.py` does this for many kills, and the tests do it for a few.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

COMMAND = "from upslope.runs import loop; loop.CHECKPOINT_SECONDS = 0.2; from upslope.cli.main import main; main()"
MOMENTS = ("any", "writing", "any", "starting", "writing")
"""The kinds of moments at which a process is killed. One is drawn for each kill."""
LONGEST = 900.0
"""Seconds after which a process that is still running counts as a failure."""


@dataclass
class Case:
    """A training command, and the duration of its uninterrupted run."""

    name: str
    arguments: list[str]
    folder: Path
    began: float = 0.0
    """Seconds until the run's config was on disk."""
    took: float = 0.0


@dataclass
class Tally:
    """What happened in a case: counts of events, and descriptions of faults."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start the command line in its own process group."""
    with log.open("ab") as output:
        command = [sys.executable, "-c", COMMAND, *arguments]
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)


def kill(process: subprocess.Popen[bytes]) -> bool:
    """Send SIGKILL to the whole process group; return whether the process was still alive."""
    is_alive = process.poll() is None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        is_alive = False
    process.wait()
    return is_alive


def wait_until(process: subprocess.Popen[bytes], is_so: Any, seconds: float = LONGEST) -> bool:
    """Check a condition every half millisecond; return False if the process ends or the time runs out first."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if is_so():
            return True
        time.sleep(0.0005)
    return False


def listing(folder: Path) -> list[str]:
    """Return the names of the files in a folder, or an empty list if it does not exist."""
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def stamps(run: Path) -> set[tuple[str, int]]:
    """Return the files in the checkpoint folder, and when each was last modified."""
    found = set()
    for name in listing(run / "checkpoints"):
        with contextlib.suppress(OSError):  # the file may have been moved in the meantime
            found.add((name, (run / "checkpoints" / name).stat().st_mtime_ns))
    return found


class Growth:
    """Detects whether a file has grown. A resumed run first removes some rows, and appends new ones only after
    training."""

    def __init__(self, path: Path):
        self.path = path
        self.least = self.size()

    def size(self) -> int:
        """Return the size in bytes, or 0 if the file does not exist."""
        return self.path.stat().st_size if self.path.exists() else 0

    def __call__(self) -> bool:
        now = self.size()
        self.least = min(self.least, now)
        return now > self.least


def kill_at(moment: str, process: subprocess.Popen[bytes], case: Case, run: Path, draw: np.random.Generator) -> str:
    """Kill a process at a moment of this kind, and return the kind of moment at which it was killed, or `ended` if the
    process finished first."""
    left_over = set(listing(run / "checkpoints"))
    if moment == "starting":
        time.sleep(draw.uniform(0, case.began * 1.5))
    else:
        wait_until(process, Growth(run / "metrics.jsonl"))
        time.sleep(draw.uniform(0, 0.6 * max(case.took - case.began, 0.5)))
    if moment == "writing":
        now = stamps(run)
        wait_until(process, lambda: stamps(run) != now)
        time.sleep(draw.choice([0.0, 0.0, 0.001, 0.003]))
    was_alive = kill(process)
    names = set(listing(run / "checkpoints")) - left_over
    if not was_alive:
        return "ended"
    return "writing" if any(name.endswith(".tmp") for name in names) else moment


def rows_of(run: Path) -> list[str]:
    """Return every complete row on disk, of metrics and episodes, without the timing columns."""
    found = []
    for name in ("metrics.jsonl", "episodes.csv"):
        path = run / name
        lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
        found += [re.sub(r', "time/[a-z_]+": [^,}]+', "", line) for line in lines]
    return found


def faults_of(run: Path) -> Iterator[str]:
    """Yield the files that standard readers reject: a checkpoint must be a zip file with valid checksums, and
    config.json must be valid JSON."""
    for path in run.rglob("*"):
        try:
            if path.suffix == ".npz":
                with zipfile.ZipFile(path) as archive:
                    assert archive.testzip() is None
            elif path.suffix == ".json":
                json.loads(path.read_text("utf-8"))
        except Exception as error:
            yield f"{path.name}: {type(error).__name__}: {error}"


def saved_step(run: Path) -> int:
    """Return the step of the last checkpoint, or −1 if there is none or it is damaged; `faults_of` reports the
    damage."""
    try:
        with np.load(run / "checkpoints" / "last.npz") as archive:
            return max(json.loads(str(archive["meta"][()]))["steps"])
    except Exception:
        return -1


def everything(run: Path) -> dict[str, Any]:
    """Return everything that must be equal: every array, the other contents of checkpoints, all rows, and the
    config."""
    found: dict[str, Any] = {"rows": rows_of(run)}
    for name in ("last", "best"):
        with np.load(run / "checkpoints" / f"{name}.npz") as archive:
            arrays = {key: archive[key] for key in archive.files}
        meta = json.loads(str(arrays.pop("meta")[()]))
        found |= {f"{name}{key}": (x.dtype.str, x.shape, x.tobytes()) for key, x in arrays.items()}
        # The sizes and hashes of files depend on the timing columns.
        found[f"{name} meta"] = {k: v for k, v in meta.items() if k not in ("elapsed", "sizes", "digests")}
    description = json.loads((run / "config.json").read_text("utf-8"))
    return found | {k: v for k, v in description.items() if k != "created"}


def train_uninterrupted(case: Case, names: Sequence[str] = ("warm", "straight")) -> None:
    """Train the uninterrupted run twice: the first time only fills the cache of compiled programs."""
    for name in names:
        run, begun = case.folder / name, time.monotonic()
        process = start([*case.arguments, "--name", name], case.folder / f"{name}.log")
        wait_until(process, lambda run=run: (run / "config.json").exists())
        case.began = time.monotonic() - begun
        assert process.wait(LONGEST) == 0, (case.folder / f"{name}.log").read_text()
        case.took = time.monotonic() - begun


def train_through_kills(case: Case, number: int, kills: int, draw: np.random.Generator, tally: Tally) -> None:
    """Train one run to its end despite several kills, and compare it with the uninterrupted run."""
    name = f"run{number}"
    run, log = case.folder / name, case.folder / f"{name}.log"
    on_disk: set[str] = set()
    done = 0
    while True:
        resume = (run / "config.json").exists()
        reached = saved_step(run) if resume else -1
        process = start(["resume", str(run)] if resume else [*case.arguments, "--name", name], log)
        if done == kills:
            break
        moment = kill_at(MOMENTS[draw.integers(len(MOMENTS))], process, case, run, draw)
        if moment == "ended" and process.returncode == 0:
            break
        if moment == "ended":
            tally.faults.append(f"{name}: {log.read_text()[-600:]}")
            return
        done += 1
        note(case, run, moment, reached, on_disk, tally)
    if process.wait(LONGEST) != 0:
        tally.faults.append(f"{name}: {log.read_text()[-600:]}")
        return
    tally.counts["runs"] += 1
    final, expected = everything(run), everything(case.folder / "straight")
    missing = on_disk - set(final["rows"])
    tally.counts["lost rows"] += len(missing)
    differ = [key for key in {*final, *expected} if final.get(key) != expected.get(key)]
    tally.counts["identical ends"] += not differ
    tally.counts["left-over temporary files"] += sum(p.name.endswith(".tmp") for p in run.rglob("*"))
    if differ or missing:
        tally.faults.append(f"{name}: differs in {differ}, {len(missing)} rows are lost")


def note(case: Case, run: Path, moment: str, reached: int, on_disk: set[str], tally: Tally) -> None:
    """Record what a kill left behind."""
    tally.counts["kills"] += 1
    other = "before the first checkpoint" if saved_step(run) < 0 else "at any other moment"
    tally.counts["while a checkpoint was written" if moment == "writing" else other] += 1
    tally.counts["rows on disk"] += len(set(rows_of(run)) - on_disk)
    on_disk |= set(rows_of(run))
    damaged = list(faults_of(run))
    tally.counts["corrupt files"] += len(damaged)
    if saved_step(run) < reached:
        damaged.append(f"the checkpoint fell back from step {reached} to {saved_step(run)}")
    tally.faults += damaged
