"""What do start-up, the live display and logging cost, and does memory grow? Stores benchmarks/results/costs.json.

    python benchmarks/costs.py start        # about a minute
    python benchmarks/costs.py display      # about 8 minutes
    python benchmarks/costs.py memory       # about 4 minutes
    python benchmarks/costs.py long         # a million iterations: about 15 minutes

start: the time that the shell command takes to train eight seeds on the compiled CartPole with its preset, first with
an empty cache of compiled programs and then with a filled one, and the time that `upslope --help` takes. display: the
same command in a pseudo-terminal with its live display, alternating with --quiet; each ratio is between two consecutive
runs. memory: the peak resident memory of runs that differ in one setting. long: the resident memory over a run of a
million iterations.
"""

import json
import os
import pty
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from time import perf_counter, sleep
from typing import Any

from pages import fill

RESULTS = Path(__file__).parent / "results" / "costs.json"
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
TURNS, STARTS = 5, 5
UPSLOPE = [sys.executable, "-c", "from upslope.cli.main import main; main()"]
DISPLAYED = {
    "jax:CartPole-v1, 8 seeds": ["jax:CartPole-v1", "--seeds", "8", "--num-envs", "64", "--steps", "2400000"],
    "CartPole-v1, 8 seeds": ["CartPole-v1", "--seeds", "8", "--steps", "400000"],
}
SMALL = ["jax:CartPole-v1", "--num-envs", "64", "--rollout-steps", "128", "--no-preset"]
MEMORY: dict[str, list[str]] = {
    f"{seeds} seeds, {envs} environments, {steps:,} steps": [
        *SMALL, "--seeds", str(seeds), "--num-envs", str(envs), "--steps", str(steps)
    ]
    for seeds, envs, steps in (
        (1, 64, 1_000_000), (8, 64, 1_000_000), (32, 64, 1_000_000),
        (8, 256, 1_000_000), (8, 1024, 2_000_000), (8, 64, 4_000_000),
    )
}  # fmt: skip
LONG = ["jax:CartPole-v1", "--algorithm", "a2c", "--num-envs", "1", "--steps", "5000000", "--no-preset"]
"""A2C's rollout has 5 steps per environment, so this is a million iterations."""


def train(arguments: list[str], folder: str, quiet: bool = True) -> subprocess.Popen[bytes]:
    """Run the command in a pseudo-terminal, as a user would, unless `quiet` is set."""
    command = [*UPSLOPE, "train", *arguments, "--folder", folder, "--name", "run"]
    if quiet:
        return subprocess.Popen([*command, "--quiet"], stdout=subprocess.DEVNULL)
    main, terminal = pty.openpty()
    os.set_inheritable(terminal, True)
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    Thread(target=drain, args=(main,), daemon=True).start()
    return process


def drain(terminal: int) -> None:
    """Read and discard the output, as a terminal does."""
    try:
        while os.read(terminal, 1 << 16):
            pass
    except OSError:
        os.close(terminal)


def rate(arguments: list[str], quiet: bool) -> float:
    """Measure the steps per second after the first chunk."""
    with tempfile.TemporaryDirectory() as folder:
        if train(arguments, folder, quiet).wait():
            raise SystemExit(f"training failed: {arguments}")
        last = (Path(folder) / "run" / "metrics.jsonl").read_text("utf-8").splitlines()[-1]
        return json.loads(last)["time/steps_per_second"]


def start() -> dict[str, Any]:
    """Measure the seconds that the shell command takes. Each round has its own cache (on Linux, through
    XDG_CACHE_HOME)."""
    found: dict[str, list[float]] = {"--help": [], "first time": [], "second time": []}
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"XDG_CACHE_HOME": f"{folder}/cache"}
            trained = ["train", "jax:CartPole-v1", "--seeds", "8", "--folder", folder]
            for name, words in {"--help": ["--help"], "first time": trained, "second time": trained}.items():
                started = perf_counter()
                subprocess.run([*UPSLOPE, *words], env=environment, stdout=subprocess.DEVNULL, check=True)
                found[name].append(round(perf_counter() - started, 2))
    print(found, flush=True)
    return found


def display() -> dict[str, Any]:
    """Compare the rate with the live display to the rate without it."""
    found = {}
    for name, arguments in DISPLAYED.items():
        ratios = []
        for turn in range(TURNS):
            order = (True, False) if turn % 2 else (False, True)
            rates = {quiet: rate(arguments, quiet) for quiet in order}
            ratios.append(round(rates[False] / rates[True], 4))
        found[name] = {"with over without": ratios}
        print(name, found[name], flush=True)
    return found


def memory() -> dict[str, Any]:
    """Measure the peak resident memory of each run, in MB."""
    found = {}
    for name, arguments in MEMORY.items():
        with tempfile.TemporaryDirectory() as folder:
            process = train(arguments, folder)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise SystemExit(f"training failed: {arguments}")
        found[name] = round(usage.ru_maxrss / 1024)
        print(name, found[name], "MB", flush=True)
    return found


def long() -> dict[str, Any]:
    """Measure the resident memory in MB at several iterations of a long run."""
    found: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        process = train(LONG, folder)
        metrics = Path(folder) / "run" / "metrics.jsonl"
        while process.poll() is None:
            sleep(15)
            iterations = last_iteration(metrics)
            status = Path(f"/proc/{process.pid}/status")
            resident = re.search(r"VmRSS:\s+(\d+)", status.read_text()) if status.exists() else None
            if iterations and resident:
                found[f"{iterations:,}"] = int(resident.group(1)) // 1024
                print(f"{iterations:,}", found[f"{iterations:,}"], "MB", flush=True)
    return found


def last_iteration(path: Path) -> int:
    """Return the number of iterations that a run has written so far."""
    if not path.exists() or path.stat().st_size < 10_000:
        return 0
    with path.open("rb") as file:
        file.seek(-9_000, os.SEEK_END)
        lines = file.read().splitlines()
    return json.loads(lines[-2])["iteration"] + 1


def page(results: dict[str, Any]) -> str:
    """Format the stored results as tables for the documentation."""
    lines = ["| what | measured |", "|---|---|"]
    for name, seconds in results.get("start", {}).items():
        middle = f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} – {max(seconds):.2f})"
        what = "`upslope --help`" if name == "--help" else f"from the shell to trained, {name}"
        lines.append(f"| {what} | {middle} |")
    for name, cost in results.get("display", {}).items():
        costs = [100 * (1 - ratio) for ratio in cost["with over without"]]
        spread = f"{statistics.median(costs):.1f} % of the rate ({min(costs):.1f} – {max(costs):.1f})"
        lines.append(f"| the live display, {name} | {spread} |")
    for name, megabytes in results.get("memory", {}).items():
        lines.append(f"| largest resident memory, {name} | {megabytes} MB |")
    if "long" in results:
        reached = ", ".join(f"{megabytes} at {iterations}" for iterations, megabytes in results["long"].items())
        lines.append(f"| resident memory, MB at iteration | {reached} |")
    return "\n".join(lines)


if __name__ == "__main__":
    modes: dict[str, Callable[[], dict[str, Any]]] = {
        "start": start,
        "display": display,
        "memory": memory,
        "long": long,
    }
    if len(sys.argv) != 2 or sys.argv[1] not in modes:
        sys.exit(__doc__)
    results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    results[sys.argv[1]] = modes[sys.argv[1]]()
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
    fill(PAGE, "costs", page(results))
