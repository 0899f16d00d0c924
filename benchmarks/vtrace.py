"""Compare V-trace with importance sampling on the recorded episodes of a mediocre agent.

    python benchmarks/vtrace.py              # store benchmarks/results/vtrace.json
    python benchmarks/vtrace.py --steps N    # only these numbers of recorded steps; other stored results are kept

Both learners are trained on the same 200 episodes of CartPole with the same seeds. Importance sampling uses the
settings of `off_policy`; V-trace adds `--estimator vtrace --objective policy_gradient`. Each seed's last policy is
evaluated in 100 fresh episodes with sampled actions. The difference is reported with Welch's 95 % interval.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from scipy.stats import ttest_ind

import upslope
from upslope.runs.directory import versions

RESULT = Path(__file__).parent / "results" / "vtrace.json"
LEARNERS = {"off_policy": {}, "vtrace": {"estimator": "vtrace", "objective": "policy_gradient", "lambda_": 1.0}}


def measure(steps: int, seeds: int) -> dict[str, object]:
    """Train both learners, and return each learner's mean return per seed, and their difference with its interval."""
    with tempfile.TemporaryDirectory() as folder:
        teacher = upslope.train("jax:CartPole-v1", steps=20_000, folder=folder, name="teacher", preset=False)
        data = str(upslope.record(teacher.path, episodes=200))
        taught = float(upslope.evaluate(teacher.path, episodes=100)["stochastic"].returns.mean())
        scores = {}
        for name, settings in LEARNERS.items():
            options = {"data": data, "seeds": seeds, "steps": steps, "folder": folder, "name": name} | settings
            run = upslope.train("jax:CartPole-v1", "off_policy", **options)
            scores[name] = upslope.evaluate(run.path, episodes=100)["stochastic"].seed_means()
    test = ttest_ind(scores["vtrace"], scores["off_policy"], equal_var=False)
    return {
        "teacher": taught,
        "returns": {name: [round(float(x), 2) for x in mine] for name, mine in scores.items()},
        "vtrace_minus_off_policy": float(np.mean(scores["vtrace"]) - np.mean(scores["off_policy"])),
        "interval": [float(x) for x in test.confidence_interval(0.95)],
        "versions": versions(),
    }


def main() -> None:
    """Measure with each number of steps, and store the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="*", default=[300_000, 3_000_000])
    parser.add_argument("--seeds", type=int, default=5)
    flags = parser.parse_args()
    for steps in flags.steps:
        stored = json.loads(RESULT.read_text("utf-8")) if RESULT.exists() else {}
        stored[str(steps)] = measure(steps, flags.seeds)
        RESULT.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(json.dumps(stored[str(steps)], indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
