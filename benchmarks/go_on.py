"""Do agents that have imitated a mediocre teacher learn faster than agents that start from scratch?

    python benchmarks/go_on.py

Ten seeds imitate the recorded episodes of one teacher, which was trained for a few thousand steps, and then continue
with ppo. For comparison, ppo starts from scratch with the same seeds and the same budget. All agents are scored on
fresh episodes with their last checkpoint. Settings are the defaults and jax:CartPole-v1's preset.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import upslope
from upslope.analysis.statistics import HUNDREDTHS, mean_of, probability_of_improvement
from upslope.runs.directory import versions

RESULTS = Path(__file__).parent / "results" / "go_on.json"
ENVIRONMENT = "jax:CartPole-v1"
SEEDS, FIRST = 10, 2000
TEACHER_STEPS, BUDGETS = 10_000, (5_000, 20_000)
RECORDED, EPISODES = 100, 50


def main() -> None:
    """Train all agents, and store and print their scores."""
    with tempfile.TemporaryDirectory() as name:
        scores = scores_in(Path(name))
    found = {kind: {"mean": mean_of(x).words(), "seeds": np.round(x, 1).tolist()} for kind, x in scores.items()}
    for budget in BUDGETS:
        improved, anew = (scores[f"{kind} {budget}"] for kind in ("improved", "anew"))
        found[f"improved {budget}"]["P(improved > anew)"] = probability_of_improvement(improved, anew).words(HUNDREDTHS)
    content = {"seeds": SEEDS, "teacher_steps": TEACHER_STEPS, "recorded_episodes": RECORDED, "versions": versions()}
    RESULTS.write_text(json.dumps(content | {"scores": found}, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(json.dumps(found, indent=1, ensure_ascii=False))


def scores_in(folder: Path) -> dict[str, np.ndarray]:
    """Train everything, and return the scores of the teacher [1], of the imitators [S], and of the learners with each
    budget [S]."""
    one: dict[str, Any] = {"folder": folder, "seed": FIRST, "quiet": True}
    several: dict[str, Any] = one | {"seeds": SEEDS}
    teacher = upslope.train(ENVIRONMENT, name="teacher", steps=TEACHER_STEPS, **one).path
    data = upslope.record(teacher, episodes=RECORDED)
    imitators = upslope.train(ENVIRONMENT, "clone", name="imitators", data=str(data), **several).path
    scores = {"teacher": score_of(teacher), "imitators": score_of(imitators)}
    for n in BUDGETS:
        improved = upslope.train(name=f"improved {n}", start_from=imitators, algorithm="ppo", steps=n, **several)
        anew = upslope.train(ENVIRONMENT, "ppo", name=f"anew {n}", steps=n, **several)
        scores |= {f"improved {n}": score_of(improved.path), f"anew {n}": score_of(anew.path)}
    return scores


def score_of(run: Path) -> np.ndarray:
    """Return each seed's mean return over fresh episodes with sampled actions [S]."""
    return upslope.evaluate(run, episodes=EPISODES)["stochastic"].seed_means()


if __name__ == "__main__":
    main()
