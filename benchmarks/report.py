"""How long does a report of ten runs with ten seeds each take, and how large is it?

Stores benchmarks/results/report.json.

    python benchmarks/report.py          # train the runs first (a few minutes)
    python benchmarks/report.py FOLDER   # keep the runs there, and reuse those that exist

The runs are the rungs of the ladder on the compiled CartPole with 50,000 steps per seed, and `ppo` again with λ = 0.8.
The report contains 20 evaluation episodes per seed in both modes, and the credit view of one episode. Timings of the
whole command alternate with timings of only writing the page, in a process that has already imported everything.
"""

import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import upslope
from upslope.analysis.records import read_record
from upslope.learning.devices import num_cores
from upslope.report.page import add_credit, write_report
from upslope.runs.directory import versions

RESULTS = Path(__file__).parent / "results" / "report.json"
WORLD, STEPS, SEEDS, EPISODES = "jax:CartPole-v1", 50_000, 10, 20
TIMES = 3
UPSLOPE = [sys.executable, "-c", "from upslope.cli.main import main; main()"]


def train(folder: Path) -> list[Path]:
    """Train and evaluate ten runs with ten seeds each, and add a credit view to one of them."""
    race = upslope.ladder(WORLD, seeds=SEEDS, steps=STEPS, folder=folder, name="race", resume=True, quiet=True).path
    if not (race / "ppo_short_credit").exists():
        upslope.train(
            WORLD, "ppo", lambda_=0.8, seeds=SEEDS, steps=STEPS, folder=race, name="ppo_short_credit", quiet=True
        )
    runs = sorted(path.parent for path in race.glob("*/config.json"))
    for run in runs:
        if not len(read_record(run).evaluations):
            upslope.evaluate(run, episodes=EPISODES)
    add_credit([race / "ppo"])
    return runs


def timed(runs: Sequence[Path], page: Path) -> dict[str, float]:
    """Measure the seconds for the whole command, and for only writing the page."""
    started = perf_counter()
    subprocess.run([*UPSLOPE, "report", *map(str, runs), "-o", str(page)], check=True, stdout=subprocess.DEVNULL)
    command = perf_counter() - started
    started = perf_counter()
    write_report(runs, page)
    return {"command": round(command, 2), "writing": round(perf_counter() - started, 2)}


def measure(folder: Path) -> dict[str, Any]:
    """Take all measurements."""
    runs, page = train(folder), folder / "report.html"
    seconds = [timed(runs, page) for _ in range(TIMES)]
    return {
        "runs": [run.name for run in runs],
        "seeds": SEEDS,
        "rows of metrics": sum(len((run / "metrics.jsonl").read_bytes().splitlines()) for run in runs),
        "seconds": seconds,
        "megabytes": round(page.stat().st_size / 1e6, 2),
        "charts": page.read_text("utf-8").count('class="chart"'),
        "machine": {"processor": platform.processor() or platform.machine(), "cores": num_cores()},
        "versions": versions(),
    }


def main(folder: str | None) -> None:
    """Take all measurements, and store and print them."""
    with tempfile.TemporaryDirectory() as temporary:
        found = measure(Path(folder or temporary))
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(json.dumps(found, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else None)
