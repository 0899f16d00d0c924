"""Does every seed learn CartPole? Trains a hundred seeds with the preset, and evaluates the last checkpoint of each.

    python benchmarks/cartpole_seeds.py                        # Gymnasium's CartPole-v1, seeds 1000 to 1099
    python benchmarks/cartpole_seeds.py jax:CartPole-v1        # upslope's compiled version
    python benchmarks/cartpole_seeds.py CartPole-v1 --first 0  # the seeds on which the preset was tuned

Seeds are trained in blocks, and each finished block is stored, so an interrupted measurement can be continued. The
preset was tuned on seeds 0 to 99 and evaluated once on seeds 1000 to 1099.
"""

import argparse
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import upslope
from upslope.runs.directory import versions

RESULTS = Path(__file__).parent / "results" / "cartpole_seeds.json"
SOLVED = 475.0
EPISODES = 100
BLOCK = 10


def main() -> None:
    """Measure the missing blocks, and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", nargs="?", default="CartPole-v1")
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=100)
    flags = parser.parse_args()
    python = ".".join(platform.python_version_tuple()[:2])
    name = f"{flags.environment}, seeds {flags.first} to {flags.first + flags.seeds - 1}, Python {python}"
    blocks = read().get(name, {}).get("blocks", [])
    settings = settings_of(flags.environment)
    if any(block["settings"] != settings for block in blocks):
        blocks = []
    done = {seed for block in blocks for seed in block["seeds"]}
    for first in range(flags.first, flags.first + flags.seeds, BLOCK):
        if first not in done:
            blocks.append(measure(flags.environment, first, min(BLOCK, flags.first + flags.seeds - first)))
            store(name, blocks)
    print(f"{name}: {json.dumps(read()[name]['summary'])}")


def settings_of(environment: str) -> dict[str, Any]:
    """Return the settings of the environment's preset."""
    config = upslope.config.config.configure(environment, is_continuous=False)
    kept = {key: value for key, value in config.to_json().items() if key not in ("seed", "seeds")}
    return json.loads(json.dumps(kept))  # converted to the types that JSON stores


def measure(environment: str, first: int, seeds: int) -> dict[str, Any]:
    """Train a block of seeds, and evaluate each."""
    with tempfile.TemporaryDirectory() as folder:
        run = upslope.train(environment, seed=first, seeds=seeds, folder=folder, name="run", quiet=True)
        evaluation = upslope.evaluate(run.path, episodes=EPISODES, checkpoint="last")
        return {
            "seeds": list(run.seeds),
            "training_return": np.round(run.returns, 2).tolist(),
            **{mode: np.round(found.seed_means(), 2).tolist() for mode, found in evaluation.items()},
            "seconds": run.metrics()[-1]["time/elapsed"],
            "settings": settings_of(environment),
            "versions": versions(),
        }


def store(name: str, blocks: list[dict[str, Any]]) -> None:
    """Store the blocks with their summary."""
    found = read() | {name: {"summary": summary(blocks), "blocks": blocks}}
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read() -> dict[str, Any]:
    """Read the stored blocks."""
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}


def summary(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise each mode: the number of seeds that reach 475, the lowest score, and the seeds below 475."""
    found: dict[str, Any] = {"seconds_a_seed": round(sum(b["seconds"] for b in blocks) / total(blocks), 2)}
    for mode in ("stochastic", "deterministic"):
        scores = {seed: x for block in blocks for seed, x in zip(block["seeds"], block[mode], strict=True)}
        found[mode] = {
            "solved": sum(x >= SOLVED for x in scores.values()),
            "of": len(scores),
            "mean": round(float(np.mean(list(scores.values()))), 2),
            "lowest": min(scores.values()),
            "below": {seed: x for seed, x in scores.items() if x < SOLVED},
        }
    return found


def total(blocks: list[dict[str, Any]]) -> int:
    """Count the seeds in all blocks."""
    return sum(len(block["seeds"]) for block in blocks)


if __name__ == "__main__":
    main()
