"""How fast is PPO on an accelerator? Measures upslope and rejax side by side on compiled CartPole.

    python benchmarks/accelerator.py --rejax PYTHON   # an interpreter that has rejax and JAX for this accelerator
    python benchmarks/accelerator.py --table          # write docs/performance.md's table from the stored results

The interpreter that runs this script needs JAX for the accelerator too. In each of three rounds, both libraries run
every case one after the other, each in its own process, and both cache their compiled programs. A rate counts the
environment steps of all seeds and excludes compilation. upslope's rate covers a whole call of `upslope.train`,
including the files it writes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pages import fill
from speed import SAME, spread

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "accelerator.json"
PAGE = HERE.parent / "docs" / "performance.md"
ROUNDS, ROLLOUT = 3, 128
CASES = ((8, 64, 8_000_000, 1_000_000), (128, 64, 2_000_000, 500_000), (8, 1024, 30_000_000, 8_000_000))
"""Seeds, environments per seed, and steps per seed for upslope and for rejax: enough to run for several seconds."""
DEVICE = "import jax; print(jax.__version__, jax.devices()[0].device_kind, jax.default_backend(), sep='|')"


def run(command: list[Any]) -> dict[str, float]:
    """Run one library once on one case, and return its measurement."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(rejax: Path, output: Path) -> None:
    """Measure all rounds, and store the results after each."""
    asked = subprocess.run([sys.executable, "-c", DEVICE], check=True, capture_output=True, text=True)
    version, device, backend = asked.stdout.strip().split("|")
    if backend == "cpu":
        raise SystemExit("JAX finds no accelerator here, only the CPU.")
    cases: dict[str, list[dict[str, dict[str, float]]]] = {f"{s} × {n}": [] for s, n, *_ in CASES}
    for _ in range(ROUNDS):
        for (seeds, num_envs, steps, steps_there), rounds in zip(CASES, cases.values(), strict=True):
            settings = SAME | {"num_envs": num_envs, "rollout_steps": ROLLOUT}
            here = [sys.executable, HERE / "peers" / "measure_upslope.py", "jax:CartPole-v1"]
            there = [rejax, HERE / "peers" / "measure_rejax.py", seeds, steps_there, num_envs]
            rounds.append({"upslope": run([*here, seeds, steps, json.dumps(settings)]), "rejax": run(there)})
            print(f"{seeds} × {num_envs}", {n: round(r["steps_per_second"]) for n, r in rounds[-1].items()}, flush=True)
        found = {"device": device, "jax": version, "cores": os.cpu_count(), "rounds": cases}
        output.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def table() -> str:
    """Format both rates and their ratio as a Markdown table."""
    stored = json.loads(RESULTS.read_text("utf-8"))
    lines = [
        f"| {stored['device']}, JAX {stored['jax']}: seeds × environments | upslope, million steps/s | rejax | ratio |",
        "|---|---|---|---|",
    ]
    for case, rounds in stored["rounds"].items():
        here, there = ([r[who]["steps_per_second"] / 1e6 for r in rounds] for who in ("upslope", "rejax"))
        ratios = [a / b for a, b in zip(here, there, strict=True)]
        lines.append(f"| {case} | {spread(here, 1)} | {spread(there, 1)} | {spread(ratios, 2)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rejax", type=Path)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table:
        fill(PAGE, "accelerator", table())
    elif options.rejax is None:
        parser.error("give the interpreter that has rejax: --rejax PYTHON")
    else:
        with tempfile.TemporaryDirectory() as cache:
            os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", cache)
            measure(options.rejax, options.output)
