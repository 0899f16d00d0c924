"""Is this tree as fast as an older one? Used by `speed.py --against COMMIT`; measures only upslope, in pairs.

In a pair, both trees train the same case once, each in its own process, one directly after the other. The order
alternates between pairs, so that other load on the machine affects both trees equally. Each pair yields one ratio of
steady rates, new / old. The reported result is the median ratio, with an interval whose ends are two of the ratios and
that covers the true median with a probability of at least 95 %. It is based on order statistics and holds for any
distribution. With nine pairs, the interval extends from the second smallest to the second largest ratio, so a single
disturbed pair does not widen it.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scipy.stats import binom

HERE = Path(__file__).parent
TREE = HERE.parent
RESULTS = HERE / "results" / "speed_against.json"
PAIRS = 9
FEWEST_PAIRS = 6
"""With fewer pairs than this, no two ratios bound the median with a probability of 95 %."""
ALLOWED = 0.97
"""A case counts as slower if its interval lies entirely below this ratio."""
PLAIN = {"normalize_rewards": False, "normalize_observations": False}


@dataclass(frozen=True)
class Pairing:
    """A case whose training takes several seconds on two cores, not counting compilation."""

    environment: str
    algorithm: str
    steps: int
    settings: dict[str, Any] = field(default_factory=dict)
    needs: str | None = None
    """A package that the case needs. If it is not installed, the case is skipped."""


PAIRINGS = {
    "compiled": Pairing("jax:CartPole-v1", "ppo", 4_000_000, PLAIN | {"num_envs": 64, "rollout_steps": 128}),
    "compiled_small": Pairing("jax:CartPole-v1", "ppo", 1_500_000, PLAIN | {"num_envs": 8, "rollout_steps": 128}),
    "pendulum": Pairing("jax:Pendulum-v1", "ppo", 1_500_000, {"num_envs": 8, "rollout_steps": 128}),
    "a2c": Pairing("jax:CartPole-v1", "a2c", 1_500_000, PLAIN | {"num_envs": 16, "rollout_steps": 5}),
    "wide": Pairing(
        "jax:CartPole-v1", "ppo", 400_000, PLAIN | {"num_envs": 64, "rollout_steps": 128, "hidden_sizes": [256, 256]}
    ),
    "host_cartpole": Pairing("CartPole-v1", "ppo", 400_000, PLAIN | {"num_envs": 8, "rollout_steps": 128}),
    "host_wide": Pairing(
        "CartPole-v1",
        "ppo",
        60_000,
        PLAIN | {"num_envs": 8, "rollout_steps": 128, "hidden_sizes": [256, 256], "seeds": 4},
    ),
    "host_halfcheetah": Pairing(
        "HalfCheetah-v5", "ppo", 150_000, PLAIN | {"num_envs": 8, "rollout_steps": 256}, needs="mujoco"
    ),
    "host_reinforce": Pairing("CartPole-v1", "reinforce", 400_000, PLAIN | {"num_envs": 8}),
}


def git(*words: str) -> str:
    """Run Git in this tree, and return its output."""
    done = subprocess.run(["git", "-C", str(TREE), *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A context in which the tree of a commit is checked out in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "older"
        git("worktree", "add", "--detach", str(place), commit)
        try:
            yield place
        finally:
            git("worktree", "remove", "--force", str(place))


def rate_of(tree: Path, case: Pairing) -> float:
    """Measure a tree's steady rate, in steps per second."""
    arguments = (case.environment, case.algorithm, str(case.steps), json.dumps(case.settings))
    done = subprocess.run(
        [sys.executable, HERE / "peers" / "measure_steady.py", *arguments],
        capture_output=True, text=True, timeout=1200, env=os.environ | {"PYTHONPATH": str(tree / "src")},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{case.algorithm} in {case.environment} failed in {tree}:\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    if Path(answer["source"]) != (tree / "src").resolve():
        raise SystemExit(f"upslope was imported from {answer['source']}, not from {tree / 'src'}.")
    return answer["steps_per_second"]


def median_interval(ratios: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return two of the values between which the true median lies with at least this probability."""
    ordered, n = sorted(ratios), len(ratios)
    # Drop as many values at each end as the allowed error probability permits.
    cut = max((k for k in range(n // 2) if 2 * binom.cdf(k, n, 0.5) <= 1 - level), default=0)
    return ordered[cut], ordered[n - 1 - cut]


def summary(rates: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Summarise the pairs of a case."""
    ratios = [pair["new"] / pair["old"] for pair in rates]
    low, high = median_interval(ratios)
    slower = len(ratios) >= FEWEST_PAIRS and high < ALLOWED
    return {"ratio": statistics.median(ratios), "interval": [low, high], "slower": slower, "pairs": list(rates)}


def measure_against(commit: str, names: Sequence[str], pairs: int, processor: str) -> bool:
    """Measure, print and store the cases of the two trees; return True if no case is slower."""
    if pairs < FEWEST_PAIRS:
        print(f"{pairs} pairs are too few to bound the median: the interval shown is their range, without a verdict.")
    with checked_out(commit) as older:
        new = git("rev-parse", "HEAD") + ("-edited" if git("status", "--porcelain", "--", "src") else "")
        result: dict[str, Any] = {
            "old": git("rev-parse", commit),
            "machine": {"processor": processor, "cores": os.cpu_count(), "system": platform.system()},
            "interval": "of the median of new / old, by order statistics, 95 %",
        }
        stored = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        is_same = all(stored.get(name) == value for name, value in result.items())
        result["cases"] = stored["cases"] if is_same else {}
        for name in names:
            case = PAIRINGS[name]
            if case.needs and find_spec(case.needs) is None:
                print(f"{name}: left out, since {case.needs} is not installed", flush=True)
                continue
            rates = []
            for number in range(pairs):
                order = {"old": older, "new": TREE} if number % 2 else {"new": TREE, "old": older}
                rates.append({who: rate_of(tree, case) for who, tree in order.items()})
                print(f"{name} {number + 1}/{pairs}: {rates[-1]['new'] / rates[-1]['old']:.3f}", flush=True)
            found = summary(rates)
            result["cases"][name] = {"new": new, "steps": case.steps, "settings": case.settings, **found}
            RESULTS.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
            low, high = found["interval"]
            verdict = ": SLOWER" if found["slower"] else ""
            print(f"{name}: new / old {found['ratio']:.3f} [{low:.3f}, {high:.3f}]{verdict}", flush=True)
    return not any(found["slower"] for name, found in result["cases"].items() if name in names)
