"""What survives SIGKILL? Stores benchmarks/results/stress.json, and writes the figures into docs/reliability.md.

    python benchmarks/stress.py kills               # 100 kills, compiled and host (about 13 minutes on two cores)
    python benchmarks/stress.py kills --count 12    # fewer; a case that is stored is not done again
    python benchmarks/stress.py malformed           # thousands of malformed files, by tests/test_loaders.py
    python benchmarks/stress.py table               # the page's table from the stored results

A run is trained by the command line in a process group of its own, which is killed at a moment drawn from a seed: any
moment of its life, or the moment at which a checkpoint is half written. It is resumed and killed again, and at last
left to end; then every array, row and setting is compared with those of a run that nobody stopped. Checkpoints are
written every few tenths of a second instead of every ten seconds, so that short runs have many.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "stress.json", HERE.parent / "docs" / "reliability.md"
TESTS = HERE.parent / "tests" / "test_loaders.py"
MARKS = ("<!-- figures: begin -->\n", "<!-- figures: end -->")
COMMAND = "from upslope import loop; loop.CHECKPOINT_SECONDS = 0.2; from upslope.cli import main; main()"
SMALL = "--no-preset --num-envs 4 --rollout-steps 32 --hidden-sizes 16"
CASES = {
    "compiled, segments": f"jax:CartPole-v1 {SMALL} --seeds 2 --steps 400000 --normalize-observations",
    "compiled, whole episodes": "jax:CartPole-v1 --algorithm reinforce_baseline --no-preset --seeds 2 --steps 60000",
    "host, one process": f"CartPole-v1 {SMALL} --seeds 1 --steps 60000 --workers 1 --normalize-rewards",
    "host, a process a seed": f"CartPole-v1 {SMALL} --seeds 2 --steps 40000 --workers 2",
    "host, slices": f"CartPole-v1 {SMALL} --seeds 1 --steps 12000 --workers 2",
}
COUNTED = (
    "kills", "while a checkpoint was written", "before the first checkpoint", "at any other moment", "runs",
    "identical ends", "rows on disk", "lost rows", "corrupt files", "left-over temporary files",
)  # fmt: skip
"""What the table says."""
KILLS_OF_A_RUN = 4
MOMENTS = ("any", "writing", "any", "starting", "writing")
"""Which moments are drawn, in turn."""
LONGEST = 900.0
"""Seconds after which a process that has not ended is a failure."""


@dataclass
class Case:
    """A training command, and how long the run that nobody stopped took."""

    name: str
    arguments: list[str]
    folder: Path
    began: float = 0.0
    """Seconds until the run directory was there."""
    took: float = 0.0


@dataclass
class Tally:
    """What happened in a case."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """The command line in a process group of its own."""
    with log.open("ab") as output:
        command = [sys.executable, "-c", COMMAND, *arguments]
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)


def kill(process: subprocess.Popen[bytes]) -> bool:
    """SIGKILL for the whole group; whether it was still alive."""
    is_alive = process.poll() is None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        is_alive = False
    process.wait()
    return is_alive


def wait_until(process: subprocess.Popen[bytes], is_so: Any, seconds: float = LONGEST) -> bool:
    """Look every half millisecond; False if the process ended or the time is over before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if is_so():
            return True
        time.sleep(0.0005)
    return False


def listing(folder: Path) -> list[str]:
    """The names in a folder; none where it is not there."""
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def stamps(run: Path) -> set[tuple[str, int]]:
    """The files among the checkpoints, and when each was last written to."""
    found = set()
    for name in listing(run / "checkpoints"):
        with contextlib.suppress(OSError):  # it has been moved meanwhile
            found.add((name, (run / "checkpoints" / name).stat().st_mtime_ns))
    return found


class Growth:
    """Whether a file has grown: a resumed run first cuts its rows, and has not trained before it appends some."""

    def __init__(self, path: Path):
        self.path = path
        self.least = self.size()

    def size(self) -> int:
        """Bytes; 0 where there is no file."""
        return self.path.stat().st_size if self.path.exists() else 0

    def __call__(self) -> bool:
        now = self.size()
        self.least = min(self.least, now)
        return now > self.least


def kill_at(moment: str, process: subprocess.Popen[bytes], case: Case, run: Path, draw: np.random.Generator) -> str:
    """Kill at such a moment; what it was, in fact: `ended` where the process was quicker."""
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
    """Every whole row on disk, metrics and episodes, without what the clock says."""
    found = []
    for name in ("metrics.jsonl", "episodes.csv"):
        path = run / name
        lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
        found += [re.sub(r', "time/[a-z_]+": [^,}]+', "", line) for line in lines]
    return found


def faults_of(run: Path) -> Iterator[str]:
    """Files that somebody else's reader cannot read: a checkpoint is a zip with checksums, config.json is JSON."""
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
    """How far the last checkpoint reached; −1 where there is none, or a damaged one, which `faults_of` tells."""
    try:
        with np.load(run / "checkpoints" / "last.npz") as archive:
            return max(json.loads(str(archive["meta"][()]))["steps"])
    except Exception:
        return -1


def everything(run: Path) -> dict[str, Any]:
    """All that is promised to be equal: every array, what the checkpoints say besides, all rows, the config."""
    found: dict[str, Any] = {"rows": rows_of(run)}
    for name in ("last", "best"):
        with np.load(run / "checkpoints" / f"{name}.npz") as archive:
            arrays = {key: archive[key] for key in archive.files}
        meta = json.loads(str(arrays.pop("meta")[()]))
        found |= {f"{name}{key}": (x.dtype.str, x.shape, x.tobytes()) for key, x in arrays.items()}
        # The sizes of the files count the digits of the clock's columns.
        found[f"{name} meta"] = {k: v for k, v in meta.items() if k not in ("elapsed", "sizes")}
    description = json.loads((run / "config.json").read_text("utf-8"))
    return found | {k: v for k, v in description.items() if k != "created"}


def straight(case: Case, names: Sequence[str] = ("warm", "straight")) -> None:
    """The run that nobody stops; first once, to fill the cache of compiled programs."""
    for name in names:
        run, begun = case.folder / name, time.monotonic()
        process = start([*case.arguments, "--name", name], case.folder / f"{name}.log")
        wait_until(process, lambda run=run: (run / "config.json").exists())
        case.began = time.monotonic() - begun
        assert process.wait(LONGEST) == 0, (case.folder / f"{name}.log").read_text()
        case.took = time.monotonic() - begun


def torment(case: Case, number: int, kills: int, draw: np.random.Generator, tally: Tally) -> None:
    """Train one run to its end through some kills, and compare it with the one that nobody stopped."""
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
    """What a kill left behind."""
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


def kills(count: int, seed: int, folder: Path, only: str | None) -> None:
    """The same number of kills in every case; each is stored when it is done, and not done again."""
    for k, name in enumerate(CASES):
        share, done = (count + k) // len(CASES), stored().get("kills", {}).get(name, {})
        if (only is not None and only not in name) or done.get("kills", 0) >= share:
            continue
        place, tally, draw = folder / name.replace(" ", "-"), Tally(), np.random.default_rng([seed, k])
        place.mkdir(parents=True)
        began, number = time.monotonic(), 0
        case = Case(name, ["train", *CASES[name].split(), "--folder", str(place)], place)
        straight(case)
        while tally.counts["kills"] < share and len(tally.faults) < 10:
            torment(case, number, min(KILLS_OF_A_RUN, share - tally.counts["kills"]), draw, tally)
            number += 1
        result = {name: tally.counts.get(name, 0) for name in COUNTED} | {"faults": tally.faults}
        result["minutes"] = round((time.monotonic() - began) / 60, 1)
        store(machine=machine(), kills=stored().get("kills", {}) | {name: result})
        print(name, result, flush=True)


def machine() -> dict[str, Any]:
    """Where this was measured."""
    from upslope.runs import versions

    return {"cores": len(os.sched_getaffinity(0)), "system": platform.system(), **versions()}


def stored() -> dict[str, Any]:
    """The results so far."""
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def store(**parts: Any) -> None:
    """Replace parts of the stored results."""
    RESULTS.write_text(json.dumps(stored() | parts, indent=1, ensure_ascii=False) + "\n", "utf-8")


def malformed(examples: int) -> None:
    """So many malformed files for each loader."""
    with tempfile.TemporaryDirectory() as folder:
        counts = Path(folder) / "counts.json"
        chosen = {"UPSLOPE_EXAMPLES": str(examples), "UPSLOPE_COUNTS": str(counts)}
        command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "--timeout", "0", str(TESTS)]
        done = subprocess.run(command, cwd=HERE.parent, env=os.environ | chosen)
        found: dict[str, dict[str, int]] = {}
        for name, count in json.loads(counts.read_text("utf-8")).items():
            loader, what = name.split(": ")
            found.setdefault(loader, {"files": 0, "refused": 0})[what] = count
        store(malformed=found, malformed_failed=done.returncode != 0)


def write_page() -> None:
    """Put the figures into the page."""
    found = stored()
    cases, files = found["kills"], found["malformed"]
    rows = ["| " + " | ".join(["SIGKILL", *cases, "all"]) + " |", "|---|" + "---:|" * (len(cases) + 1)]
    for name in COUNTED:
        numbers = [case[name] for case in cases.values()]
        rows.append(f"| {name} | " + " | ".join(f"{n:,}" for n in [*numbers, sum(numbers)]) + " |")
    rows += ["", "| malformed file for the loader of | drawn | refused in one message | loaded |"]
    rows += ["|---|---:|---:|---:|"]
    files = files | {"all": {what: sum(x[what] for x in files.values()) for what in ("files", "refused")}}
    for name, x in files.items():
        rows.append(f"| {name} | {x['files']:,} | {x['refused']:,} | {x['files'] - x['refused']:,} |")
    rows += ["", "Measured with " + ", ".join(f"{name} {value}" for name, value in found["machine"].items()) + "."]
    if found["malformed_failed"] or any(case["faults"] for case in cases.values()):
        sys.exit("There are faults in the stored results; mend them first.")
    before, _, rest = PAGE.read_text("utf-8").partition(MARKS[0])
    PAGE.write_text(before + MARKS[0] + "\n".join(rows) + "\n" + MARKS[1] + rest.partition(MARKS[1])[2], "utf-8")


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("kills", "malformed", "table"))
    parser.add_argument("--count", type=int, default=100, help="kills")
    parser.add_argument("--examples", type=int, default=2000, help="malformed files for each loader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="part of a case's name")
    flags = parser.parse_args()
    if flags.what == "kills":
        with tempfile.TemporaryDirectory() as folder:
            kills(flags.count, flags.seed, Path(folder), flags.only)
    elif flags.what == "malformed":
        malformed(flags.examples)
    else:
        write_page()


if __name__ == "__main__":
    main()
