"""Is a sweep worth it? Measures trials per hour in one program, and whether 64 trials beat the defaults on fresh seeds.

    python benchmarks/sweep.py throughput    # one program, and one process per trial with one core each; minutes
    python benchmarks/sweep.py cartpole      # 64 trials on jax:CartPole-v1, 50,000 steps each; minutes
    python benchmarks/sweep.py halfcheetah   # 64 trials on HalfCheetah-v5, 200,000 steps each; hours on two cores

The defaults are those for the action space, as in an environment without tuned settings. Cases whose names end in
_preset compare the sweep with the environment's tuned settings. Each result replaces its entry in results/sweep.json.
Running the same command again continues an interrupted sweep, whose runs are kept in --folder. --dry runs a small
version of a case and stores nothing.
"""

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import upslope
from upslope.core.storage import plain
from upslope.lab.sweep.words import counts, verdict_words
from upslope.learning.devices import num_cores
from upslope.runs.directory import versions

RESULTS = Path(__file__).parent / "results" / "sweep.json"
CASES: dict[str, dict[str, Any]] = {
    "cartpole": {"environment": "jax:CartPole-v1", "steps": 50_000, "preset": False},
    "cartpole_preset": {"environment": "jax:CartPole-v1", "steps": 50_000, "preset": True},
    "halfcheetah": {"environment": "HalfCheetah-v5", "steps": 200_000, "preset": False},
    "halfcheetah_preset": {"environment": "HalfCheetah-v5", "steps": 200_000, "preset": True},
}
TRIALS, SEEDS, FRESH = 64, 3, 10
SMALL = {"trials": 4, "seeds": 2, "fresh_seeds": 2, "steps": 4096}
"""Settings for a small version of a case, which only checks that it works."""
ALONE = 8
"""Number of trials that are trained in separate processes. Their rate does not depend on this number."""
STEPS = 50_000


def main() -> None:
    """Measure one case and store it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=["throughput", *CASES])
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--dry", action="store_true")
    flags = parser.parse_args()
    if flags.case == "throughput" and flags.dry:
        parser.error("--dry is for sweeps")
    found = throughput() if flags.case == "throughput" else worth(flags.case, flags.folder, SMALL if flags.dry else {})
    print(json.dumps(plain(found), indent=1))
    if flags.dry:
        return
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    stored[flags.case] = found | {"versions": versions(), "cores": num_cores()}
    RESULTS.write_text(json.dumps(plain(stored), indent=1, allow_nan=False) + "\n")


def worth(case: str, folder: Path, small: Mapping[str, int]) -> dict[str, Any]:
    """Run a sweep, and return how its winner performs on fresh seeds. `small` overrides the case's settings."""
    started = time.perf_counter()
    name = f"sweep-of-{case}" + ("-dry" if small else "")
    is_whole = not (folder / name).exists()
    options = {**CASES[case], "trials": TRIALS, "seeds": SEEDS, "fresh_seeds": FRESH, **small}
    found = upslope.sweep(**options, name=name, folder=folder)
    confirmation = found.confirmation
    return {
        **{key: options[key] for key in CASES[case]},
        "seconds": round(time.perf_counter() - started, 1) if is_whole else None,  # None if it was interrupted
        "seconds of trials": round(sum(t.seconds for t in found.trials if math.isfinite(t.seconds)), 1),
        "trials": counts(found.trials),
        "winner": None if found.winner is None else {"score": found.winner.score, **found.winner.drawn},
        "verdict": None if confirmation is None else confirmation.verdict,
        "words": verdict_words(found),
        "fresh seeds": options["fresh_seeds"],
        "score": None if confirmation is None else confirmation.comparison.score,
        "winner's scores": None if confirmation is None else confirmation.winner.scores,
        "default's scores": None if confirmation is None else confirmation.default.scores,
        "probability": None if confirmation is None else confirmation.probability,
        "difference": None if confirmation is None else confirmation.difference,
    }


def throughput() -> dict[str, Any]:
    """Compare the throughput of trials in one program with that of trials in separate processes. Everything is
    included: starting Python, compiling, training and writing. Nothing is pruned, and the caches of compiled programs
    start empty."""
    with tempfile.TemporaryDirectory() as folder:
        together = sweep_seconds(Path(folder), TRIALS)
        alone = process_seconds(Path(folder), ALONE)
    hourly = {"one program": 3600 * TRIALS / together, "a process per trial": 3600 * ALONE / alone}
    return {
        "environment": "jax:CartPole-v1",
        "steps": STEPS,
        "seeds": SEEDS,
        "trials": {"one program": TRIALS, "a process per trial": ALONE},
        "seconds": {"one program": round(together, 1), "a process per trial": round(alone, 1)},
        "trials an hour": {name: round(rate) for name, rate in hourly.items()},
        "times as many": round(hourly["one program"] / hourly["a process per trial"], 1),
    }


def sweep_seconds(folder: Path, trials: int) -> float:
    """Time one `upslope sweep` without pruning and without fresh seeds, in seconds."""
    words = ["sweep", "jax:CartPole-v1", "--trials", trials, "--steps", STEPS, "--seeds", SEEDS, "--fresh-seeds", 0]
    words += ["--sampler", "random", "--pruner", "none", "--folder", folder, "--quiet"]
    started = time.perf_counter()
    command(list(map(str, words)), folder / "cache-together")
    return time.perf_counter() - started


def process_seconds(folder: Path, trials: int) -> float:
    """Time this number of `upslope train` commands in seconds. Each has different numeric settings, and one runs on
    each core at a time."""
    generator, cores = random.Random(0), Queue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)

    def train(trial: int) -> None:
        core = cores.get()
        words = ["train", "jax:CartPole-v1", "--steps", STEPS, "--seeds", SEEDS, "--name", f"trial-{trial}"]
        words += ["--folder", folder, "--quiet", "--learning-rate", 10 ** generator.uniform(-4, -2)]
        words += ["--lambda", generator.uniform(0.8, 1.0), "--epsilon", generator.uniform(0.1, 0.4)]
        words += ["--entropy-coefficient", 10 ** generator.uniform(-4, -1)]
        command(list(map(str, words)), folder / "cache-alone", core)
        cores.put(core)

    started = time.perf_counter()
    with ThreadPoolExecutor(cores.qsize()) as threads:
        list(threads.map(train, range(trials)))
    return time.perf_counter() - started


def command(words: list[str], cache: Path, core: int | None = None) -> None:
    """Run an upslope command with this compilation cache, optionally on one core."""
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    call = [*pinned, sys.executable, "-c", "from upslope.cli.main import main; main()", *words]
    subprocess.run(call, check=True, env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)})


if __name__ == "__main__":
    main()
