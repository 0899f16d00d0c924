"""Measure a whole command, from its start in the shell to its end; print a JSON line.

    python measure_shell.py cold|warm SCORE upslope jax:CartPole-v1 …        # `upslope train` with these arguments
    python measure_shell.py cold|warm SCORE solve_sb3.py CartPole-v1 475     # a script in the same folder

cold: the cache folder is empty. warm: the same command has run once before with the same folder. SCORE is the mean
return that the last 20 training episodes must reach, or "any". The last line that a script prints must be a JSON object
with the number of environment steps ("steps"), the number of updates ("updates"), and that mean return ("return").
"""

import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from measure import peak_memory

HERE = Path(__file__).parent
UPSLOPE = "from upslope.cli.main import main; main()"
LAST = 20
"""How many training episodes, counted from the end, are averaged and compared with the score."""


def told_by(run: Path) -> dict[str, Any]:
    """Read the steps, updates and final return from a run directory."""
    row = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    with (run / "episodes.csv").open(encoding="utf-8") as file:
        returns = [float(episode["return"]) for episode in csv.DictReader(file)][-LAST:]
    return {"steps": row["step"], "updates": row["iteration"] + 1, "return": sum(returns) / len(returns)}


def once(program: str, arguments: list[str], caches: Path) -> dict[str, Any]:
    """Run the command, and return its results and its duration in seconds."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(caches)
    with tempfile.TemporaryDirectory() as folder:
        if program == "upslope":
            options = ["--folder", folder, "--name", "run", "--quiet"]
            command = [sys.executable, "-c", UPSLOPE, "train", *arguments, *options]
        else:
            command = [sys.executable, str(HERE / program), *arguments]
        started = perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        seconds = perf_counter() - started
        if done.returncode:
            raise SystemExit(f"{program} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
        told = told_by(Path(folder) / "run") if program == "upslope" else json.loads(done.stdout.splitlines()[-1])
    return told | {"seconds": seconds}


if __name__ == "__main__":
    cache, score, program, *arguments = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2 if cache == "warm" else 1):
            answer = once(program, arguments, Path(folder))
    if score != "any" and answer["return"] < float(score):
        raise SystemExit(
            f"{program} reached a mean return of {answer['return']:.0f} over its last {LAST} episodes, below the "
            f"required {score}."
        )
    answer["steps_per_second"] = answer["steps"] / answer["seconds"]
    print(json.dumps(answer | {"peak_memory_mb": peak_memory()}))
