"""How well does PPO learn Gymnasium's tabular environments? Computes the exact return of each seed's last policy.

    python benchmarks/tabular.py                     # every environment, seeds 1000 to 1004
    python benchmarks/tabular.py Taxi-v4             # only these environments
    python benchmarks/tabular.py --first 0           # the seeds on which the presets were tuned
    python benchmarks/tabular.py --no-preset         # with the default settings
    python benchmarks/tabular.py --folder DIR        # keep the runs there, and resume those that were stopped

Observations are integers, so every policy is a table, and `env.unwrapped.P` contains all transitions. Without a
discount or a time limit, the expected return is therefore the solution of a linear system, or −∞ if an episode may
never end. With the environment's own time limit, it is computed by backward induction.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from scipy.special import softmax

import upslope
from upslope.environments.tabular import Tabular
from upslope.runs.directory import versions

RESULTS = Path(__file__).parent / "results" / "tabular.json"
STEPS = 500_000
WORLDS = {"Taxi-v4": "≥ 7.0", "CliffWalking-v1": "≥ −15", "FrozenLake-v1": "no worse than the defaults"}


def main() -> None:
    """Measure the named environments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="*", default=list(WORLDS))
    parser.add_argument("--first", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--no-preset", action="store_true")
    parser.add_argument("--folder", type=Path)
    flags = parser.parse_args()
    for name in flags.worlds:
        found = measure(name, flags.first, flags.seeds, not flags.no_preset, flags.folder)
        how = "defaults" if found["preset"] is None else "preset"
        results = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        results[f"{name}, {how}, seeds {flags.first} to {flags.first + flags.seeds - 1}"] = found
        RESULTS.write_text(json.dumps(dict(sorted(results.items())), indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(name, how, {mode: found[mode] for mode in ("stochastic", "deterministic")}, flush=True)


def measure(name: str, first: int, seeds: int, preset: bool, kept: Path | None) -> dict[str, Any]:
    """Train, and compute the expected returns of the last policies."""
    world = world_of(name)
    observations, allowed = np.arange(len(world.observation_of)), masks_of(name)
    modes: dict[str, list[dict[str, Any]]] = {"stochastic": [], "deterministic": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder, run_name = kept or Path(temporary), f"{name}-{first}-{'preset' if preset else 'defaults'}"
        if (folder / run_name).exists():
            run = upslope.resume(folder / run_name, quiet=True)
        else:
            run = upslope.train(
                name, seed=first, seeds=seeds, steps=STEPS, preset=preset, folder=folder, name=run_name, quiet=True
            )
        for seed in run.seeds:
            loaded = run.load(seed=seed, checkpoint="last")
            is_masked = loaded.needs_mask
            policy: Any = loaded.agent.policy(observations, allowed if is_masked else None)
            table = softmax(np.asarray(policy.logits, np.float64), axis=-1)
            greedy = np.eye(table.shape[-1])[table.argmax(axis=-1)]
            for mode, probability in (("stochastic", table), ("deterministic", greedy)):
                modes[mode].append(returns_of(world, probability))
        settings = run.config.to_json()
        seconds = run.metrics()[-1]["time/elapsed"]
    return {
        "asked_for": WORLDS.get(name, ""),
        "optimum": returns_of(world, optimum_of(world)),
        **modes,
        "training_return": np.round(run.returns, 3).tolist(),
        "preset": run.config.preset,
        "masks": is_masked,
        "seconds": seconds,
        "config": settings,
        "versions": versions(),
    }


def world_of(name: str) -> Tabular:
    """Convert Gymnasium's transition table `P` to arrays."""
    with gymnasium.make(name) as env:
        inner: Any = env.unwrapped
        limit = env.spec.max_episode_steps if env.spec else None
        states, actions = len(inner.P), len(inner.P[0])
        transition, reward = np.zeros((states, actions, states)), np.zeros((states, actions, states))
        terminal = np.zeros(states, bool)
        for state, row in inner.P.items():
            for action, outcomes in row.items():
                for probability, successor, gain, ends in outcomes:
                    transition[state, action, successor] += probability
                    reward[state, action, successor] = gain
                    terminal[successor] |= bool(ends)
        start = np.asarray(inner.initial_state_distrib, np.float64)
    return Tabular(transition, reward, start, terminal, np.arange(states), limit)


def masks_of(name: str) -> np.ndarray | None:
    """Return the actions allowed in each state [states, actions], or None if the environment has no masks."""
    with gymnasium.make(name) as env:
        inner: Any = env.unwrapped
        if not hasattr(inner, "action_mask"):
            return None
        return np.stack([inner.action_mask(state) for state in range(len(inner.P))]).astype(bool)


def returns_of(world: Tabular, policy: np.ndarray) -> dict[str, float | None]:
    """Return the expected return without a time limit (None for −∞), and within the environment's own limit."""
    value = endless(world, policy)
    limit = world.max_episode_steps
    return {
        "endless": round(value, 4) if math.isfinite(value) else None,
        "limited": None if limit is None else round(world.expected_return(policy, 1.0, horizon=limit), 4),
    }


def endless(world: Tabular, policy: np.ndarray) -> float:
    """Return the expected return without a time limit, from (I − P_π)⁻¹ r_π over the reachable states, or −∞ if an
    episode that reaches one of them may never end."""
    chain = np.einsum("sa,sat->st", policy, world.transition)
    reward = np.einsum("sa,sat,sat->s", policy, world.transition, world.reward)
    reached = world.start > 0
    while True:
        further = reached | (chain[reached & ~world.terminal] > 0).any(axis=0)
        if (further == reached).all():
            break
        reached = further
    live, ends = np.flatnonzero(reached & ~world.terminal), np.flatnonzero(world.terminal)
    leaving = np.eye(len(live)) - chain[np.ix_(live, live)]
    try:
        solved = np.linalg.solve(leaving, np.stack([reward[live], chain[np.ix_(live, ends)].sum(axis=1)], axis=1))
    except np.linalg.LinAlgError:
        return -math.inf
    # The second column is the probability that the episode ever ends. A probability hidden by rounding counts as 0.
    return float(world.start[live] @ solved[:, 0]) if np.allclose(solved[:, 1], 1, atol=1e-6) else -math.inf


def optimum_of(world: Tabular) -> np.ndarray:
    """Return an optimal policy without a time limit, found by value iteration with a discount so close to 1 that it
    does not change the policy."""
    gain = np.einsum("sat,sat->sa", world.transition, world.reward)
    going_on = world.transition * ~world.terminal
    value, change = np.zeros(len(world.start)), 1.0
    while change > 1e-9:
        action_value = gain + 0.99999 * going_on @ value
        before, value = value, action_value.max(axis=-1)
        change = np.abs(value - before).max()
    return np.eye(action_value.shape[-1])[action_value.argmax(axis=-1)]


if __name__ == "__main__":
    main()
