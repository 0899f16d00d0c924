"""Does a critic that sees the velocities help a policy that does not? Tested on CartPole with recurrent networks.

    python benchmarks/asymmetric.py            # 20 seeds
    python benchmarks/asymmetric.py --seeds 4

Both runs use CartPole's preset `no_velocity` and the same seeds. In `blind`, neither network reads the velocities; in
`seeing`, the critic does. A seed's result is the first step at which the mean return of its 20 most recent training
episodes reaches 475, or the whole budget if it never does. Results are compared seed by seed. The interval of the mean
difference is a Student-t interval over seeds.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import upslope
from upslope.runs.directory import versions

RESULTS = Path(__file__).parent / "results" / "asymmetric.json"
ENVIRONMENT, SOLVED, WINDOW = "jax:CartPole-v1", 475.0, 20
CRITICS: dict[str, dict[str, Any]] = {
    "blind": {},
    # The velocities stay in the observation, but only the critic reads them.
    "seeing": {"ignore_observation": (), "policy_reads": ("0", "2")},
}


def main() -> None:
    """Train both variants, and store the number of steps that every seed needed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    seeds = parser.parse_args().seeds
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in CRITICS.items():
            run = upslope.train(
                ENVIRONMENT, "ppo", preset="no_velocity", seeds=seeds, folder=folder, name=name, quiet=True, **settings
            )
            steps = [steps_to(run, seed) for seed in run.seeds]
            found[name] = {
                "steps": steps,
                "median": float(np.median(steps)),
                "unsolved": sum(step == run.config.steps for step in steps),
                "final_return": np.round(run.returns, 1).tolist(),
            }
            print(name, found[name], flush=True)
    differences = np.subtract(found["seeing"]["steps"], found["blind"]["steps"])
    half = stats.t.ppf(0.975, seeds - 1) * differences.std(ddof=1) / np.sqrt(seeds)
    found["seeing − blind"] = {"mean": float(differences.mean()), "half_interval": float(half)}
    print(found["seeing − blind"])
    found |= {"budget": run.config.steps, "environment": ENVIRONMENT, "preset": run.config.preset}
    RESULTS.write_text(json.dumps(found | {"versions": versions()}, indent=1, ensure_ascii=False) + "\n", "utf-8")


def steps_to(run: upslope.Run, seed: int) -> int:
    """Return the step at which a seed's mean return over `WINDOW` episodes first reaches `SOLVED`, or else the
    budget."""
    episodes = run.episodes()
    mine = episodes["seed"] == seed
    steps, returns = episodes["step"][mine], episodes["return"][mine]
    if len(returns) < WINDOW:
        return run.config.steps
    means = np.convolve(returns, np.ones(WINDOW) / WINDOW, mode="valid")
    solved = np.flatnonzero(means >= SOLVED)
    return int(steps[solved[0] + WINDOW - 1]) if len(solved) else run.config.steps


if __name__ == "__main__":
    main()
