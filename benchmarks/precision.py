"""How do 16-bit matrix products affect learning? Stores benchmarks/results/precision.json.

    python benchmarks/precision.py          # train (takes a few minutes on two cores)
    python benchmarks/precision.py table    # write docs/performance.md's table from the stored results

The same seeds are trained with `--precision float32` and with `bfloat16`, using the environment's preset. A CPU rounds
the same operands as an accelerator, so it shows the effect on learning, but only an accelerator shows the effect on
speed. Each seed yields two numbers: the mean return of its last 100 training episodes, and the mean return of all its
training episodes, which indicates how fast it learned. The two runs of a seed share only their initial networks, since
runs that round differently soon act differently.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pages import fill

import upslope
from upslope.analysis.statistics import mean_of

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "precision.json"
PAGE = HERE.parent / "docs" / "performance.md"
SEEDS = 20
ENVIRONMENTS = ("jax:CartPole-v1", "jax:Pendulum-v1")
PRECISIONS = ("float32", "bfloat16")


def measure(environment: str, precision: str) -> dict[str, list[float]]:
    """Train all seeds, and return the two numbers for each."""
    with tempfile.TemporaryDirectory() as folder:
        run = upslope.train(environment, folder=folder, seeds=SEEDS, precision=precision, quiet=True)
        episodes = run.episodes()
    throughout = [float(np.mean(episodes["return"][episodes["seed"] == seed])) for seed in run.seeds]
    return {"at the end": run.returns.tolist(), "throughout": throughout}


def table(stored: dict[str, Any]) -> str:
    """Format the means over seeds as a Markdown table."""
    lines = [
        "| mean return over 20 seeds, with 95 % intervals | float32 | bfloat16 | difference |",
        "|---|---:|---:|---:|",
    ]
    for environment, found in stored["cases"].items():
        for name in ("at the end", "throughout"):
            full, half = (np.asarray(found[precision][name]) for precision in PRECISIONS)
            lines.append(
                f"| {environment}, {name} | {' | '.join(mean_of(x).words() for x in (full, half, half - full))} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:] != ["table"]:
        cases: dict[str, Any] = {}
        for environment in ENVIRONMENTS:
            cases[environment] = {precision: measure(environment, precision) for precision in PRECISIONS}
            print(environment, json.dumps(cases[environment]), flush=True)
        RESULTS.write_text(json.dumps({"seeds": SEEDS, "cases": cases}, indent=1) + "\n", "utf-8")
    fill(PAGE, "precision", table(json.loads(RESULTS.read_text("utf-8"))))
