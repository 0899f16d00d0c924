"""Does every rung solve the probe worlds that it can in theory solve?

    python benchmarks/probes.py            # all
    python benchmarks/probes.py ppo gae …  # some, beside what is stored

Five seeds each. A probe is solved when the evaluated deterministic return of every seed is within 5 % of the best
possible one, and, for a rung with a critic, its values are within 10 % of the exact ones. The result is stored.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import upslope
from upslope.algorithms import ALGORITHMS
from upslope.environments.compiled import COMPILED
from upslope.tasks import ESTIMATOR_TYPES

RESULTS = Path(__file__).parent / "results" / "probes.json"
PROBES = [name for name in COMPILED if name.startswith("probe/")]
RUNGS = [name for name, rung in ALGORITHMS.items() if rung.source == "own"]
OBSERVATIONS_OF = 64


def main(only: list[str]) -> None:
    """Every rung on every probe."""
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text("utf-8")) if only and RESULTS.exists() else {}
    for rung in only or RUNGS:
        results[rung] = {}
        for probe in PROBES:
            found = solve(rung, probe)
            results[rung][probe] = found
            print(f"{rung:20s} {probe:22s} {'solved' if found['solved'] else 'NOT SOLVED'}  {found}", flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    solved = [found["solved"] for row in results.values() for found in row.values()]
    print(f"{sum(solved)} of {len(solved)} solved")


def solve(rung: str, probe: str) -> dict[str, Any]:
    """Train a rung on a probe and compare with the exact answer."""
    world: Any = COMPILED[probe]()
    with tempfile.TemporaryDirectory() as folder:
        run = upslope.train(
            f"jax:{probe}", rung, steps=STEPS, seeds=5, folder=folder, quiet=True, gamma=GAMMA, normalize_rewards=False,
            normalize_observations=False, learning_rate=learning_rate(rung), num_envs=16,
            **({} if rung == "a2c" or has_whole_episodes(rung) else {"rollout_steps": 8}),
            **({"minibatches": 4} if ALGORITHMS[rung].objective != "policy_gradient" else {}),
        )  # fmt: skip
        deterministic = upslope.evaluate(run.path, episodes=OBSERVATIONS_OF)["deterministic"]
        best = best_return(probe, world)
        gap = float(np.max(best - deterministic.seed_means()))
        error = value_error(run, world) if needs_critic(rung) and (rung, probe) not in EXCEPTIONS else None
    solved = gap < 0.05 * max(1.0, abs(best)) and (error is None or error < 0.1 * max(1.0, value_scale(world)))
    return {"return_gap": round(gap, 4), "value_error": None if error is None else round(error, 4), "solved": solved}


def best_return(probe: str, world: Any) -> float:
    """The best mean undiscounted return: the exact value at γ = 1, or +1 a step where the world never ends."""
    if probe == "probe/truncation":
        return float(world.max_episode_steps)
    observations = first_observations(world)
    return float(np.mean([float(world.exact_value(o, 1.0)) for o in observations]))


def first_observations(world: Any) -> list[np.ndarray]:
    """What the world shows first, for many keys."""
    import jax

    keys = jax.random.split(jax.random.key(7), OBSERVATIONS_OF)
    return [np.asarray(world.reset(key)[1]) for key in keys]


def value_error(run: upslope.Run, world: Any) -> float:
    """The largest |V(s_0) − exact| over first observations and seeds."""
    errors = []
    for seed in run.seeds:
        policy = run.load(seed=seed, checkpoint="last")
        errors += [abs(float(policy.value(o)) - float(world.exact_value(o, GAMMA))) for o in first_observations(world)]
    return max(errors)


def value_scale(world: Any) -> float:
    """How large values are."""
    return max(abs(float(world.exact_value(o, GAMMA))) for o in first_observations(world))


def needs_critic(rung: str) -> bool:
    """Whether a rung trains a critic."""
    return ESTIMATOR_TYPES[ALGORITHMS[rung].estimator].needs_critic


def learning_rate(rung: str) -> float:
    """One usual value for each kind of rung; both kinds fail a probe with the other's, and neither is a fault.

    3e-3 for one step a batch on a critic's word; 1e-3 where weights are whole returns, or where a batch is reused for
    sixteen steps. With 3e-3, raw returns lock one bit of `probe/multibinary` in before it is known, and Clip leaves
    `probe/continuous` in two of five seeds once it has solved it: as σ shrinks to 0.003, a step of Adam moves the
    mean by many σ (KL 448 nats in one update), and outside the clip range no gradient leads back. With 1e-3, one step a
    batch does not reach the mean of `probe/continuous` in this budget.
    """
    is_one_step = ALGORITHMS[rung].objective == "policy_gradient"
    return 3e-3 if is_one_step and not has_whole_episodes(rung) else 1e-3


def has_whole_episodes(rung: str) -> bool:
    """Whether a rung collects whole episodes."""
    return ESTIMATOR_TYPES[ALGORITHMS[rung].estimator].whole_episodes


GAMMA = 0.9
EXCEPTIONS = {("reinforce_baseline", "probe/truncation")}
"""R_t is what was collected before the time limit, so this rung's critic is right not to believe in more."""
STEPS = 100_000

if __name__ == "__main__":
    main(sys.argv[1:])
