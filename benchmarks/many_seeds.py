"""How much time, memory and disk space do a hundred or a thousand seeds in one run need?

Stores benchmarks/results/many_seeds.json, and fills in its table in docs/scale.md.

    python benchmarks/many_seeds.py            # 10, 100 and 1,000 seeds (a few minutes)
    python benchmarks/many_seeds.py --table    # only the table, from the stored results

For each number of seeds, a PPO run and an A2C run on the compiled CartPole are trained, reported on one page and
compared. Each of these commands runs in its own process. The memory is that process's peak, as reported by the system.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from pages import fill

RESULTS = Path(__file__).parent / "results" / "many_seeds.json"
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
UPSLOPE = [sys.executable, "-c", "from upslope.cli.main import main; main()"]
NUMBERS = (10, 100, 1000)
STEPS = 20_000


MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
"""Code that starts a command through a small intermediate process, because Linux counts the parent's memory in the peak
memory of its child."""
ABOUT = """
import json
from upslope.learning.devices import num_cores
from upslope.runs.directory import versions
print(json.dumps({"cores": num_cores(), "versions": versions()}))
"""


def command(folder: Path, *words: str) -> dict[str, float]:
    """Run an upslope command, and return its duration in seconds and its peak memory in MB."""
    started = perf_counter()
    line = [sys.executable, "-S", "-c", MEASURED, *UPSLOPE, *words]
    done = subprocess.run(line, cwd=folder, check=True, capture_output=True, text=True)
    unit = 1024**2 if sys.platform == "darwin" else 1024
    return {"seconds": round(perf_counter() - started, 1), "megabytes": round(int(done.stdout) / unit)}


def measure(seeds: int) -> dict[str, Any]:
    """Train, report and compare two runs with this number of seeds."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        given = ["--seeds", str(seeds), "--steps", str(STEPS), "--folder", ".", "--quiet"]
        trained = [
            command(folder, "train", "jax:CartPole-v1", "--algorithm", name, "--name", name, *given)
            for name in ("ppo", "a2c")
        ]
        return {
            "train": trained[0],
            "report": command(folder, "report", "ppo", "a2c", "-o", "page.html"),
            "compare": command(folder, "compare", "ppo", "a2c"),
            "files": sum(path.is_file() for path in (folder / "ppo").rglob("*")),
            "run_megabytes": round(sum(p.stat().st_size for p in (folder / "ppo").rglob("*") if p.is_file()) / 1e6, 1),
            "page_megabytes": round((folder / "page.html").stat().st_size / 1e6, 1),
        }


def table(found: dict[str, dict[str, Any]]) -> str:
    """Format the results as a Markdown table for the page."""
    rows = [
        "| seeds | train one run | files | run on disk | report of both | page | compare both |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for seeds, one in found.items():
        took = {
            name: f"{one[name]['seconds']:g} s, {one[name]['megabytes']} MB" for name in ("train", "report", "compare")
        }
        sizes = f"{one['files']} | {one['run_megabytes']:g} MB"
        rows.append(
            f"| {int(seeds):,} | {took['train']} | {sizes} | {took['report']} | {one['page_megabytes']:g} MB "
            f"| {took['compare']} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measure runs with each number of seeds, store the results, and fill in the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    if not parser.parse_args().table:
        about = json.loads(subprocess.run([sys.executable, "-c", ABOUT], check=True, capture_output=True).stdout)
        found = {str(seeds): measure(seeds) for seeds in NUMBERS}
        stored = {"steps": STEPS, "seeds": found, "processor": platform.processor() or platform.machine(), **about}
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")
    stored = json.loads(RESULTS.read_text("utf-8"))
    print(table(stored["seeds"]))
    fill(PAGE, "many seeds", table(stored["seeds"]))


if __name__ == "__main__":
    main()
