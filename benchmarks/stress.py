"""Do runs survive SIGKILL? Stores benchmarks/results/stress.json, and writes the figures into docs/reliability.md.

    python benchmarks/stress.py kills               # 100 kills, compiled and host (about 13 minutes on two cores)
    python benchmarks/stress.py kills --count 12    # fewer; stored cases are not repeated
    python benchmarks/stress.py malformed           # thousands of malformed files, with tests/runs/test_loaders.py
    python benchmarks/stress.py table               # write the page's table from the stored results

A run is trained through the command line in its own process group, which is killed at a random moment (from a seeded
generator), sometimes deliberately while a checkpoint is half written. The run is resumed and killed several more times,
and finally left to finish. Every array, row and setting is then compared with those of an uninterrupted run.
Checkpoints are written every few tenths of a second instead of every ten seconds, so that even short runs have many of
them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from pages import fill
from stress_kills import Case, Tally, train_through_kills, train_uninterrupted

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "stress.json", HERE.parent / "docs" / "reliability.md"
TESTS = HERE.parent / "tests" / "runs" / "test_loaders.py"
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
"""The columns of the table."""
KILLS_OF_A_RUN = 4


def kills(count: int, seed: int, folder: Path, only: str | None) -> None:
    """Distribute the kills evenly over the cases. A finished case is stored and not repeated."""
    for k, name in enumerate(CASES):
        share, done = (count + k) // len(CASES), stored().get("kills", {}).get(name, {})
        if (only is not None and only not in name) or done.get("kills", 0) >= share:
            continue
        place, tally, draw = folder / name.replace(" ", "-"), Tally(), np.random.default_rng([seed, k])
        place.mkdir(parents=True)
        began, number = time.monotonic(), 0
        case = Case(name, ["train", *CASES[name].split(), "--folder", str(place)], place)
        train_uninterrupted(case)
        while tally.counts["kills"] < share and len(tally.faults) < 10:
            train_through_kills(case, number, min(KILLS_OF_A_RUN, share - tally.counts["kills"]), draw, tally)
            number += 1
        result = {name: tally.counts.get(name, 0) for name in COUNTED} | {"faults": tally.faults}
        result["minutes"] = round((time.monotonic() - began) / 60, 1)
        store(machine=machine(), kills=stored().get("kills", {}) | {name: result})
        print(name, result, flush=True)


def machine() -> dict[str, Any]:
    """Describe the machine."""
    from upslope.runs.directory import versions

    return {"cores": len(os.sched_getaffinity(0)), "system": platform.system(), **versions()}


def stored() -> dict[str, Any]:
    """Read the stored results."""
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def store(**parts: Any) -> None:
    """Replace parts of the stored results."""
    RESULTS.write_text(json.dumps(stored() | parts, indent=1, ensure_ascii=False) + "\n", "utf-8")


def malformed(examples: int) -> None:
    """Give each loader this number of malformed files."""
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
    """Write the figures into the page."""
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
        sys.exit("The stored results contain faults; correct them first.")
    fill(PAGE, "figures", "\n".join(rows))


def main() -> None:
    """Parse the arguments and run the command."""
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
