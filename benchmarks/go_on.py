"""Imitate, then improve: does an agent that has imitated a mediocre teacher learn faster than one that begins anew?

    python benchmarks/go_on.py

Each of ten seeds imitates the recorded episodes of a teacher of its own, which was trained for a few thousand steps,
and goes on with ppo; beside it, ppo begins anew with the same budget. All are scored by fresh episodes of their last
checkpoint, and all settings are the defaults and the preset of jax:CartPole-v1.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import upslope
from upslope.analysis.statistics import mean_of, probability_of_improvement
from upslope.runs.directory import versions

RESULTS = Path(__file__).parent / "results" / "go_on.json"
ENVIRONMENT = "jax:CartPole-v1"
SEEDS, FIRST = 10, 2000
TEACHER_STEPS, BUDGETS = 10_000, (5_000, 10_000, 20_000)
RECORDED, EPISODES = 100, 50


def main() -> None:
    """Measure all seeds, and store and print the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scores = {"teacher": [], "imitator": []} | {f"{kind} {n}": [] for n in BUDGETS for kind in ("improved", "anew")}
        for seed in range(FIRST, FIRST + SEEDS):
            for kind, score in of_one_seed(folder, seed).items():
                scores[kind].append(score)
    found = {kind: describe(np.asarray(x)) for kind, x in scores.items()}
    for budget in BUDGETS:
        pair = (np.asarray(scores[f"{kind} {budget}"]) for kind in ("improved", "anew"))
        found[f"improved {budget}"]["beats_anew"] = probability_of_improvement(*pair).words(0.5)
    content = {"seeds": SEEDS, "teacher_steps": TEACHER_STEPS, "recorded_episodes": RECORDED, "versions": versions()}
    RESULTS.write_text(json.dumps(content | {"scores": found}, indent=1) + "\n", "utf-8")
    print(json.dumps(found, indent=1))


def of_one_seed(folder: Path, seed: int) -> dict[str, float]:
    """The scores of one seed's teacher, imitator, and learners."""
    options: dict[str, Any] = {"folder": folder, "seed": seed, "quiet": True}
    teacher = upslope.train(ENVIRONMENT, name=f"teacher {seed}", steps=TEACHER_STEPS, **options).path
    data = upslope.record(teacher, episodes=RECORDED)
    imitator = upslope.train(ENVIRONMENT, "clone", name=f"imitator {seed}", data=str(data), **options).path
    scores = {"teacher": score_of(teacher), "imitator": score_of(imitator)}
    for n in BUDGETS:
        beginnings = {"improved": {"start_from": imitator}, "anew": {}}
        for kind, beginning in beginnings.items():
            name = f"{kind} {n} {seed}"
            run = upslope.train(ENVIRONMENT, "ppo", name=name, steps=n, **beginning, **options)
            scores[f"{kind} {n}"] = score_of(run.path)
    return scores


def score_of(run: Path) -> float:
    """The mean return of fresh episodes with sampled actions."""
    return float(upslope.evaluate(run, episodes=EPISODES)["stochastic"].seed_means()[0])


def describe(scores: np.ndarray) -> dict[str, Any]:
    """The mean over seeds with its interval, and every seed's score."""
    return {"mean": mean_of(scores).words(), "seeds": np.round(scores, 1).tolist()}


if __name__ == "__main__":
    main()
