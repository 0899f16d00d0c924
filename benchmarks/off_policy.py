"""How often do the 95 % intervals of `upslope judge` cover the exact value? Simulates recordings of tabular worlds.

    python benchmarks/off_policy.py          # simulate and store (a few minutes)
    python benchmarks/off_policy.py --table  # write the tables in docs/judge.md from the stored results

The recording policy μ and the judged policy π are softmax tables. π's logits are those of μ plus `distance` times
normal noise. Each case draws 200 recordings of N episodes for each of 5 pairs of policies, and compares every estimator
with the exact V^π. The doubly robust estimators use a tabular Q that is fitted to the other half of the episodes, as in
`upslope judge`.
"""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pages import fill
from scipy.special import softmax

from upslope.analysis.judge import LEAST_EFFECTIVE
from upslope.analysis.judgement import LABELS
from upslope.core.off_policy import Estimated, by_trajectory, doubly_robust, log_weights, per_decision
from upslope.environments.tabular import Tabular, delayed_key, gridworld, short_corridor

RESULTS = Path(__file__).parent / "results" / "off_policy.json"
PAGE = Path(__file__).parents[1] / "docs" / "judge.md"
WORLDS: dict[str, tuple[Tabular, float, int]] = {
    "grid 4×4, slippery": (gridworld(slip=0.1, step_cost=0.05), 0.95, 30),
    "key, 8 steps": (delayed_key(8), 1.0, 8),
    "corridor": (short_corridor(), 0.95, 20),
}
"""Name → the world, γ, and the number of steps after which episodes are truncated."""
DISTANCES = (0.2, 0.5, 1.0)
EPISODES = (30, 100, 300)
PAIRS, SAMPLES = 5, 200
EDGES = (0, 5, 10, 20, 50, 100, 1e9)
"""Edges of the bins of the effective number of episodes."""
OFTEN = 1 / 3
"""The worst case is chosen among those in which at least this share of the recordings yields an estimate."""


def main() -> None:
    """Simulate and store every case."""
    rows = []
    for name, (world, gamma, limit) in WORLDS.items():
        for distance in DISTANCES:
            for episodes in EPISODES:
                for pair in range(PAIRS):
                    random = np.random.default_rng([len(rows), pair])
                    rows += one_pair(name, world, gamma, limit, distance, episodes, random)
            print(name, distance, flush=True)
    found = {"by effective number": binned(rows), "by case": by_case(rows)}
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


Row = tuple[str, float, int, str, float, bool, float, float]
"""One recording: (world, distance, episodes, estimator, effective number of episodes, covered, half width, error)."""


def one_pair(
    name: str, world: Tabular, gamma: float, limit: int, distance: float, episodes: int, random: np.random.Generator
) -> list[Row]:
    """Apply every estimator to 200 recordings, for one pair of a recording policy and a judged policy."""
    shape = (int(world.observation_of.max()) + 1, world.transition.shape[1])
    logits = random.normal(size=shape)
    behaviour = softmax(logits, axis=-1)
    target = softmax(logits + distance * random.normal(size=shape), axis=-1)
    truth = world.expected_return(target, gamma, limit)
    rows = []
    for _ in range(SAMPLES):
        state, action, reward, valid = play(world, behaviour, limit, episodes, random)
        seen = world.observation_of[state]
        ratio = np.where(valid, np.log(target / behaviour)[seen, action], 0.0)
        weights = log_weights(ratio, valid)
        delta, start = surprise(world, target, gamma, limit, seen, action, reward, valid, random)
        estimates: dict[str, Estimated] = {}
        for prefix, weighted in (("", False), ("w", True)):
            estimates[f"{prefix}is"] = by_trajectory(reward, weights, gamma, weighted=weighted)
            estimates[f"{prefix}pdis"] = per_decision(reward, weights, gamma, weighted=weighted)
            estimates[f"{prefix}dr"] = doubly_robust(delta, start, weights, gamma, weighted=weighted)
        for estimator, found in estimates.items():
            half, error = found.half_width(), abs(found.value - truth)
            rows.append((name, distance, episodes, estimator, found.effective, bool(error <= half + 1e-9), half, error))
    return rows


def play(
    world: Tabular, policy: np.ndarray, limit: int, episodes: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Play episodes of up to `limit` steps, and return their states, actions, rewards and validity flags [T, N]."""
    state = random.choice(len(world.start), episodes, p=world.start)
    shape = (limit, episodes)
    found = np.zeros(shape, int), np.zeros(shape, int), np.zeros(shape), np.zeros(shape, bool)
    goes_on = np.ones(episodes, bool)
    for t in range(limit):
        action = drawn(policy[world.observation_of[state]], random)
        successor = np.where(goes_on, drawn(world.transition[state, action], random), state)
        reward = np.where(goes_on, world.reward[state, action, successor], 0.0)
        for kept, x in zip(found, (state, action, reward, goes_on), strict=True):
            kept[t] = x
        state, goes_on = successor, goes_on & ~world.terminal[successor]
    return found


def drawn(probability: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draw one index for each row of probabilities."""
    return (random.random((len(probability), 1)) >= np.cumsum(probability, axis=-1)[:, :-1]).sum(axis=-1)


def surprise(
    world: Tabular,
    target: np.ndarray,
    gamma: float,
    limit: int,
    seen: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    valid: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return δ_t and V̂(s_0) of every episode, computed with a Q that was fitted to the other half of the episodes."""
    fold = random.permutation(seen.shape[1]) % 2
    delta, start = np.zeros(reward.shape), np.zeros(reward.shape[1])
    for half in range(2):
        mine, others = fold == half, fold != half
        q = fitted(target, gamma, limit, seen[:, others], action[:, others], reward[:, others], valid[:, others])
        v = np.einsum("oa,toa->to", target, q)
        time, ours = np.arange(limit)[:, None], valid[:, mine]
        now = np.where(ours, v[time, seen[:, mine]], 0.0)
        after = np.concatenate([now[1:], np.zeros_like(now[:1])])
        taken = q[time, seen[:, mine], action[:, mine]]
        delta[:, mine] = np.where(ours, reward[:, mine] + gamma * after - taken, 0.0)
        start[mine] = now[0]
    return delta, start


def fitted(
    target: np.ndarray,
    gamma: float,
    limit: int,
    seen: np.ndarray,
    action: np.ndarray,
    reward: np.ndarray,
    valid: np.ndarray,
) -> np.ndarray:
    """Run tabular fitted Q evaluation on the recorded steps, and return Q [T, O, A] for each time step. An action that
    was never recorded gets the mean value of all recorded steps."""
    shape = target.shape
    following = np.concatenate([seen[1:], seen[-1:]])
    goes_on = np.concatenate([valid[1:], np.zeros_like(valid[:1])])
    flat = (seen * shape[1] + action)[valid]
    count = np.bincount(flat, minlength=target.size)
    q, ahead = np.zeros((limit, *shape)), np.zeros(shape[0])
    for t in reversed(range(limit)):
        y = (reward + gamma * np.where(goes_on, ahead[following], 0.0))[valid]
        total = np.bincount(flat, weights=y, minlength=target.size)
        q[t] = np.where(count > 0, total / np.maximum(count, 1), y.mean()).reshape(shape)
        ahead = np.sum(target * q[t], axis=-1)
    return q


def binned(rows: list[Row]) -> dict[str, Any]:
    """Return each estimator's coverage and number of recordings, by effective number of episodes."""
    found: dict[str, Any] = {}
    for estimator in ("is", "wis", "pdis", "wpdis", "dr", "wdr"):
        mine = [row for row in rows if row[3] == estimator]
        effective, covered = np.array([row[4] for row in mine]), np.array([row[5] for row in mine])
        where = np.digitize(effective, EDGES) - 1
        found[estimator] = [
            {"from": EDGES[b], "recordings": int((where == b).sum()), "coverage": share(covered[where == b])}
            for b in range(len(EDGES) - 1)
        ]
    return found


def by_case(rows: list[Row]) -> list[dict[str, Any]]:
    """Return, for each case and estimator, the share of recordings with an estimate, the coverage of its intervals, and
    their median half width."""
    cases: dict[tuple[str, float, int, str], list[Row]] = {}
    for row in rows:
        cases.setdefault(row[:4], []).append(row)
    found = []
    for (world, distance, episodes, estimator), mine in cases.items():
        told = [row for row in mine if row[4] >= LEAST_EFFECTIVE]
        found.append(
            {
                "world": world,
                "distance": distance,
                "episodes": episodes,
                "estimator": estimator,
                "told": round(len(told) / len(mine), 3),
                "coverage": share(np.array([row[5] for row in told])),
                "half_width": round(float(np.median([row[6] for row in told])), 4) if told else None,
            }
        )
    return found


def share(x: np.ndarray) -> float | None:
    """Return the share of true flags, rounded to three decimals."""
    return round(float(x.mean()), 3) if len(x) else None


def percent(x: float | None) -> str:
    """Format a share in percent."""
    return "–" if x is None else f"{100 * x:.1f} %"


def tables(found: dict[str, Any]) -> str:
    """Format the table of coverage by effective number of episodes, and the worst case."""
    edges = [f"{low:g} to {high:g}" for low, high in pairwise(EDGES[:-1])] + [f"over {EDGES[-2]:g}"]
    lines = [f"| effective episodes | {' | '.join(edges)} |", f"|---|{'---|' * len(edges)}"]
    for estimator, cells in found["by effective number"].items():
        shown = [f"{percent(x['coverage'])} ({x['recordings']:,})" if x["recordings"] else "–" for x in cells]
        lines.append(f"| {LABELS[estimator]} | {' | '.join(shown)} |")
    cases = [x for x in found["by case"] if x["told"] >= OFTEN]
    worst = min(cases, key=lambda x: x["coverage"])
    last = f"The worst of the {len(cases)} cases with an answer in at least a third of the recordings: {words(worst)}."
    return "\n".join([*lines, "", last])


def words(case: dict[str, Any]) -> str:
    """Describe a case and its coverage."""
    where = f"{case['world']}, {case['episodes']} episodes, a distance of {case['distance']:g}"
    return f"{percent(case['coverage'])} ({LABELS[case['estimator']]}; {where})"


def write_page() -> None:
    """Write the table into the page."""
    fill(PAGE, "off-policy", tables(json.loads(RESULTS.read_text("utf-8"))))


if __name__ == "__main__":
    write_page() if sys.argv[1:] == ["--table"] else main()
