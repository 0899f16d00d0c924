"""Do exploration bonuses help? Trains in DeepSea and other environments with rare rewards, with and without a bonus.

    python benchmarks/exploration.py                        # every case that is not stored yet
    python benchmarks/exploration.py --only deep_sea_20     # measure one world again
    python benchmarks/exploration.py --print                # the stored numbers as a table, also in docs/exploration.md

Settings come from the environment's preset, which was tuned on seeds 100 to 102; the evaluation uses seeds 0 to 4, or
0 to 19 in MountainCar. A seed solves a case if the mean return of its last 100 training episodes reaches the world's
threshold.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pages import fill

import upslope
from upslope.runs.directory import versions

RESULTS = Path(__file__).parent / "results" / "exploration.json"
PAGE = Path(__file__).parents[1] / "docs" / "exploration.md"
SEEDS = 5
WINDOW = 100


@dataclass(frozen=True)
class World:
    """An environment, its budget in steps per seed, and the mean return over the last 100 episodes at which it counts
    as solved."""

    environment: str
    steps: int
    solved: float
    bonuses: dict[str, dict[str, Any]]
    """Name of a case → its settings."""
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: int = SEEDS


def deep_sea(size: int, episodes: int, bonuses: tuple[str, ...] = ("none", "count")) -> World:
    """Return a deep sea, whose budget is given in episodes of `size` steps."""
    cases = {name: {"bonus": name} for name in bonuses}
    return World("jax:DeepSea-v0", size * episodes, 0.9, cases, {"env_kwargs": {"size": size}})


def until_solved(
    environment: str,
    steps: int,
    solved: float,
    bonus: dict[str, Any],
    tuned: tuple[dict[str, Any], dict[str, Any]] = ({}, {}),
    seeds: int = SEEDS,
    **settings: Any,
) -> World:
    """Return a world in which each seed trains only until it has solved the world, to measure how soon that happens.
    `tuned` holds the settings of the learner and of the bonus that a search with the bonus found; a case with these
    settings but without the bonus separates the two effects. `settings` holds the settings that all cases share."""
    cases = {"none": {}, bonus["bonus"]: bonus}
    learner, of_bonus = tuned
    if learner:
        cases |= {"none, tuned": learner, f"{bonus['bonus']}, tuned": learner | bonus | of_bonus}
    return World(environment, steps, solved, cases, {"stop_at_return": solved} | settings, seeds)


SWEPT = (
    {"learning_rate": 0.00089, "gamma": 0.99, "lambda_": 0.98, "epochs": 15},
    {
        **{"bonus_coefficient": 0.085, "bonus_gamma": 0.95, "bonus_kwargs": {"bits": 128}},
    },
)
"""Settings of the learner and of the bonus: the best of 23 random draws around earlier results, each trained for 70,000
steps on seeds 100 to 107, and then again the best of the three best on seeds 200 to 211."""


GRID: dict[str, Any] = {
    **{"num_envs": 16, "rollout_steps": 128, "epochs": 4, "minibatches": 8, "learning_rate": 7e-4},
    **{"encoder": ["perceptron"], "hidden_sizes": (128, 128)},
}
"""Settings for MiniGrid's rooms. Batches are larger than in the preset, which is meant for small rooms. The settings
were tried on seeds 100 and 101."""
COMPILED_GRID: dict[str, Any] = GRID | {"num_envs": 32, "normalize_rewards": True}
"""Settings for XLand-MiniGrid's rooms."""
WORLDS = {
    "deep_sea_10": deep_sea(10, 10_000),
    "deep_sea_20": deep_sea(20, 10_000, ("none", "count", "rnd")),
    "deep_sea_30": deep_sea(30, 50_000),
    "deep_sea_50": deep_sea(50, 50_000),
    "mountain_car": until_solved(
        "jax:MountainCar-v0",
        1_000_000,
        -130.0,
        {"bonus": "count", "bonus_coefficient": 0.2, "bonus_gamma": 0.9},
        SWEPT,
        seeds=20,
    ),
    "taxi": until_solved("Taxi-v4", 500_000, 7.0, {"bonus": "count", "bonus_coefficient": 0.1}),
    "multi_room": until_solved(
        "MiniGrid-MultiRoom-N4-S5-v0", 600_000, 0.5, {"bonus": "count", "bonus_kwargs": {"scope": "both"}}, **GRID
    ),
    "key_corridor": until_solved(
        "MiniGrid-KeyCorridorS3R3-v0", 600_000, 0.5, {"bonus": "count", "bonus_kwargs": {"scope": "both"}}, **GRID
    ),
    "locked_room": until_solved(
        "xminigrid:MiniGrid-LockedRoom",
        1_000_000,
        0.5,
        {"bonus": "count", "bonus_kwargs": {"scope": "both"}},
        **COMPILED_GRID,
    ),
    "cliff_walking": until_solved("CliffWalking-v1", 500_000, -15.0, {"bonus": "count", "bonus_coefficient": 0.1}),
}


def main() -> None:
    """Measure the missing cases, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=WORLDS, nargs="*", default=[])
    parser.add_argument("--print", action="store_true", dest="is_printed")
    flags = parser.parse_args()
    if not flags.is_printed:
        for name in flags.only or WORLDS:
            for case in WORLDS[name].bonuses:
                if flags.only or case not in read().get(name, {}):
                    store(name, case, measure(WORLDS[name], case))
    print(table(read()))
    fill(PAGE, "steps until solved", table_of_steps(read()))


def measure(world: World, case: str) -> dict[str, Any]:
    """Train all seeds, and determine when each of them solved the world."""
    settings: dict[str, Any] = world.settings | {"steps": world.steps} | world.bonuses[case]
    with tempfile.TemporaryDirectory() as folder:
        run = upslope.train(world.environment, seeds=world.seeds, folder=folder, name="run", quiet=True, **settings)
        episodes = run.episodes()
        found = [of_seed(episodes[episodes["seed"] == seed], world) for seed in run.seeds]
        rows = [row for row in run.metrics() if row["seed"] == 0]
        paid = [row["bonus/mean"] for row in rows if "bonus/mean" in row]
        return {
            "settings": settings,
            "seeds": found,
            "states_visited": rows[-1].get("bonus/states_visited"),
            "bonus_of_a_step": [float(np.mean(part)) for part in np.array_split(paid, 10)] if len(paid) >= 10 else [],
            "seconds": rows[-1]["time/elapsed"],
            "config": run.config.to_json(),
            "versions": versions(world.environment),
        }


def of_seed(episodes: Any, world: World) -> dict[str, Any]:
    """Return a seed's mean return over its last 100 episodes, and the episode and step at which the mean over 100
    episodes first reached the threshold."""
    returns, steps = episodes["return"].astype(float), episodes["step"]
    sums = np.concatenate([[0.0], np.cumsum(returns)])
    means = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW
    solved = np.flatnonzero(means >= world.solved)
    at = int(solved[0]) + WINDOW - 1 if len(solved) else None
    return {
        "last_100": round(float(returns[-WINDOW:].mean()), 4),
        "episodes": len(returns),
        "solved_at_episode": None if at is None else at + 1,
        "solved_at_step": None if at is None else int(steps[at]),
    }


def store(name: str, case: str, found: dict[str, Any]) -> None:
    """Store the numbers of a case."""
    every = read()
    every.setdefault(name, {})[case] = found
    RESULTS.write_text(json.dumps(every, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read() -> dict[str, Any]:
    """Read the stored numbers."""
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def steps_until_solved(name: str, found: dict[str, Any]) -> list[int]:
    """Return the number of steps that each seed needed, or the budget if it did not solve the world."""
    return [seed["solved_at_step"] or WORLDS[name].steps for seed in found["seeds"]]


def table_of_steps(stored: dict[str, Any]) -> str:
    """Format a table of how soon each world was solved, for the worlds in which a seed stops once it has solved the
    world."""
    lines = [
        "| world | required mean return | bonus | solved | steps until solved: median | each seed |",
        "|---|---|---|---|---|---|",
    ]
    for name, cases in stored.items():
        world = WORLDS[name]
        for case, found in cases.items() if "stop_at_return" in world.settings else ():
            steps = steps_until_solved(name, found)
            solved = sum(seed["solved_at_step"] is not None for seed in found["seeds"])
            each = ", ".join(f"{x:,}" for x in sorted(steps))
            lines.append(
                f"| `{world.environment}` | {world.solved:g} | `{case}` | {solved} of {len(steps)} | "
                f"{np.median(steps):,.0f} | {each} |"
            )
    return "\n".join(lines)


def table(stored: dict[str, Any]) -> str:
    """Format the stored numbers as Markdown."""
    lines = [
        "| world | bonus | solved at the end | last 100 episodes, mean over seeds | first solved at episode, median |"
    ]
    lines.append("|---|---|---|---|---|")
    for name, cases in stored.items():
        for case, found in cases.items() if "stop_at_return" not in WORLDS[name].settings else ():
            last = [seed["last_100"] for seed in found["seeds"]]
            at = [seed["solved_at_episode"] or np.inf for seed in found["seeds"]]
            solved = sum(x >= WORLDS[name].solved for x in last)
            median = f"{np.median(at):,.0f}" if np.isfinite(np.median(at)) else "never"
            lines.append(f"| {name} | {case} | {solved} of {len(last)} seeds | {np.mean(last):.3f} | {median} |")
    return "\n".join([*lines, "", table_of_steps(stored)])


if __name__ == "__main__":
    main()
