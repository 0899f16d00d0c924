"""Table 1 of the PPO paper (Schulman et al. 2017) in full: eleven surrogate objectives on seven MuJoCo tasks.

    python benchmarks/table1.py                    # hours: 77 settings × 3 seeds × 10⁶ steps, one process per core
    python benchmarks/table1.py HalfCheetah-v5     # only these tasks
    python benchmarks/table1.py --table            # print the stored results as tables, and write docs/lab.md

Each task has a file in `benchmarks/results/table1/`. Objectives whose results are stored are not trained again, so the
script can be stopped and restarted at any time. The settings are the defaults for continuous actions, which are those
in Table 3 of the paper (horizon 2048, 10 epochs, minibatches of 64, γ 0.99, λ 0.95), with normalised observations and
rewards. The paper used version -v1 of the tasks and a different MuJoCo version.
"""

import argparse
import itertools
import json
import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import gymnasium
import mujoco  # noqa: F401  imported so that MuJoCo's stopwatch can be stopped before the first environment is created
import numpy as np
from cores import stay_on_next_core
from pages import fill

import upslope
from upslope.analysis.across_environments import stratified_mean
from upslope.analysis.statistics import Estimate, mean_of
from upslope.engines.mujoco_timer import stop_stopwatch
from upslope.lab.table1 import SURROGATES, slopes
from upslope.learning.devices import num_cores
from upslope.runs.directory import versions

TASKS = (
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "Swimmer-v5",
    "Reacher-v5",
    "Hopper-v5",
    "HalfCheetah-v5",
    "Walker2d-v5",
)
FOLDER = Path(__file__).parent / "results" / "table1"
PAGE = Path(__file__).parents[1] / "docs" / "lab.md"
EPISODES_OF_CHANCE = 100


def chance(task: str) -> float:
    """Return the mean return of uniformly random actions, which corresponds to a score of 0 in the paper."""
    environment = gymnasium.make(task)
    environment.action_space.seed(0)
    returns = []
    for episode in range(EPISODES_OF_CHANCE):
        environment.reset(seed=episode)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = environment.step(environment.action_space.sample())
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    environment.close()
    return float(np.mean(returns))


def measure(tasks: Sequence[str], steps: int, seeds: int, folder: Path) -> None:
    """Train the objectives whose results are not stored yet, task by task and one on each core. Store each when it
    finishes."""
    for task in tasks:
        begin(task, steps, seeds, folder)
    jobs = itertools.product(tasks, SURROGATES)
    missing = [(task, name) for task, name in jobs if name not in read(folder / f"{task}.json")["scores"]]
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    for number in range(num_cores()):
        numbers.put(number)
    with ProcessPoolExecutor(num_cores(), context, stay_on_next_core, (numbers,)) as pool:
        running = {pool.submit(train, task, name, steps, seeds): (task, name) for task, name in missing}
        try:
            for done in as_completed(running):
                task, name = running[done]
                store(folder / f"{task}.json", name, done.result())
        except BaseException:
            # Otherwise, the pool would wait for the running jobs and start the next ones in its queue.
            for process in multiprocessing.active_children():
                process.kill()
            raise


def store(path: Path, name: str, scores: list[float]) -> None:
    """Add an objective's scores to its task's file."""
    stored = read(path)
    stored["scores"][name] = scores
    write(path, stored)
    print(f"{stored['task']}: {name}:", shown(mean_of(np.asarray(scores)), 0), flush=True)


def begin(task: str, steps: int, seeds: int, folder: Path) -> None:
    """Create a task's file if it does not exist."""
    path, asked = folder / f"{task}.json", {"task": task, "steps": steps, "seeds": seeds}
    if not path.exists():
        write(path, asked | {"chance": chance(task), "versions": versions(), "scores": {}})
    stored = read(path)
    if any(stored[key] != value for key, value in asked.items()):
        raise SystemExit(f"{path} is for {stored['steps']:,} steps and {stored['seeds']} seeds: use another --folder.")


def train(task: str, name: str, steps: int, seeds: int) -> list[float]:
    """Train all seeds, and return each seed's mean return over its last 100 training episodes, as in the paper.

    A single process trains all seeds and computes their actions together.
    """
    settings = dict(SURROGATES[name].settings)
    stop_stopwatch()
    with tempfile.TemporaryDirectory() as runs:
        run = upslope.train(
            task, folder=runs, name="run", steps=steps, seeds=seeds, preset=False, quiet=True, workers=1, **settings
        )
    return [float(score) for score in run.returns]


def write(path: Path, stored: dict[str, Any]) -> None:
    """Write a task's file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", "utf-8")
    part.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Read a task's file."""
    return json.loads(path.read_text("utf-8"))


def table(folder: Path) -> str:
    """Format two tables for the finished tasks: average normalised scores next to the paper's, and the mean return per
    task."""
    files = [read(folder / f"{task}.json") for task in TASKS if (folder / f"{task}.json").exists()]
    complete = [stored for stored in files if len(stored["scores"]) == len(SURROGATES)]
    if not complete:
        return "No task is complete yet."
    size = f"{complete[0]['steps']:,} steps, {complete[0]['seeds']} seeds, {len(complete)} of {len(TASKS)} tasks."
    return f"{size}\n\n{averages(complete)}\n\n{returns(complete)}"


def averages(complete: Sequence[dict[str, Any]]) -> str:
    """Format the average normalised scores, with intervals based on the seeds of each task."""
    by_task = [normalised(stored) for stored in complete]
    found = [stratified_mean([scores[place] for scores in by_task]) for place in range(len(SURROGATES))]
    rows = [
        [name, shown(score), shown(Estimate(row.paper, None))]
        for (name, row), score in zip(SURROGATES.items(), found, strict=True)
    ]
    slope = shown(stratified_mean([slopes(dict(zip(SURROGATES, scores, strict=True))) for scores in by_task]))
    return (
        markdown(["surrogate", "score [95 % interval]", "the paper"], rows)
        + f"\n\nWithout the first row, each additional point in the paper's score corresponds to {slope} here."
    )


def normalised(stored: dict[str, Any]) -> np.ndarray:
    """Return the normalised scores [objectives, seeds] of a task: random actions score 0, and the best run scores 1."""
    scores = np.array([stored["scores"][name] for name in SURROGATES])
    return (scores - stored["chance"]) / (scores.max() - stored["chance"])


def returns(complete: Sequence[dict[str, Any]]) -> str:
    """Format the mean return in each task, and the mean return of random actions."""
    digits = [1 if np.ptp([*stored["scores"].values()]) < 100 else 0 for stored in complete]
    chances = [Estimate(stored["chance"], None) for stored in complete]
    rows = [["random actions", *map(shown, chances, digits)]]
    for name in SURROGATES:
        scores = [mean_of(np.array(stored["scores"][name])) for stored in complete]
        rows.append([name, *map(shown, scores, digits)])
    return markdown(["mean return [95 % interval]", *(stored["task"] for stored in complete)], rows)


def shown(estimate: Estimate, digits: int = 2) -> str:
    """Format an estimate, for example as `0.82 [0.75, 0.89]`."""
    interval = estimate.interval
    ends = f" [{interval.low:.{digits}f}, {interval.high:.{digits}f}]" if interval else ""
    return f"{estimate.value:.{digits}f}{ends}".replace("-", "−")


def markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Train what is missing, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=TASKS, metavar="TASK")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--table", action="store_true")
    flags = parser.parse_args()
    if not flags.table:
        measure(flags.tasks, flags.steps, flags.seeds, flags.folder)
    found = table(flags.folder)
    print(found)
    if flags.folder == FOLDER:
        fill(PAGE, "table1", found)


if __name__ == "__main__":
    main()
