"""The policy gradient estimated from trajectories is unbiased, and better weights make it less noisy."""

import math
from functools import cache

import numpy as np
from jaxtyping import Float
from scipy.special import softmax

from upslope.core.estimators import Baseline, Estimator, RewardToGo, TotalReturn
from upslope.core.types import Rollout
from upslope.environments.tabular import Tabular, gridworld
from upslope.lab.finding import (
    BELOW_ZERO,
    Estimate,
    Finding,
    Line,
    Outcome,
    Panel,
    against_theory,
    around,
    mean_of,
    power_law,
    ratio_of,
    root_mean_square,
    with_intervals,
)
from upslope.lab.play import credits_of, episode_gradients, play, size_of, table_agent
from upslope.models.agent import Agent

STEPS = 20
"""The time limit, which is part of the environment here: the exact gradient is the gradient of the return within it."""
GROUPS = 20


@cache
def maze() -> Tabular:
    """Six cells: −0.2 per step, +1 at the goal, and four out of ten moves slip."""
    return gridworld(2, 3, step_cost=0.2, slip=0.4, max_episode_steps=STEPS)


def some_logits() -> Float[np.ndarray, "O A"]:
    """Logits of a policy that is far from uniform."""
    return 0.5 * np.random.default_rng(0).normal(size=size_of(maze()))


def exact_gradient(gamma: float = 1.0) -> Float[np.ndarray, "K"]:
    """∇J of the policy `some_logits`, computed by the policy gradient theorem over all states."""
    return maze().policy_gradient(some_logits(), gamma, STEPS).ravel()


def play_policy(seed: int, episodes: int) -> tuple[Agent, Rollout]:
    """Play episodes with the policy and the exact V as its critic; return the agent and its episodes."""
    value = maze().state_values(softmax(some_logits(), axis=-1), 1.0, STEPS)
    agent = table_agent(some_logits(), value)
    return agent, play(maze(), agent, seed, episodes)


def gradient(
    seed: int = 0, repetitions: int = 64, largest: int = 1024, estimator: Estimator | None = None, gamma: float = 1.0
) -> Outcome:
    """The mean of Σ_t R(τ) ∇log π over N trajectories tends to ∇E[R(τ)]."""
    agent, rollout = play_policy(seed, repetitions * largest)
    (credit,) = credits_of([estimator or TotalReturn()], agent, rollout, gamma)
    each = episode_gradients(agent, rollout, credit.weight)
    exact = exact_gradient()
    running = np.cumsum(each.reshape(repetitions, largest, -1), axis=1)
    sizes = [2**k for k in range(4, largest.bit_length())]
    errors = np.stack([np.linalg.norm(running[:, n - 1] / n - exact, axis=-1) for n in sizes], axis=1)
    errors /= np.linalg.norm(exact)
    mean = each.mean(axis=0)
    estimated = Line("components", list(exact), mean)
    ends = [float(min(exact)), float(max(exact))]
    rms = root_mean_square(errors)
    theory = rms[0] * np.sqrt(sizes[0] / np.array(sizes))
    return Outcome(
        findings=(
            Finding("along", along(each, exact), around(1.0, 0.05)),
            Finding("rate", power_law(sizes, errors), around(-0.5, 0.05)),
        ),
        panels=(
            Panel("components", (estimated, Line("equal", ends, ends, is_reference=True)), is_points=True),
            against_theory("errors", Line("measured", sizes, rms), theory, log_x=True, log_y=True),
        ),
        numbers={"episodes": len(each), "largest": largest, "repetitions": repetitions, "components": len(exact)},
    )


def along(each: Float[np.ndarray, "N K"], exact: Float[np.ndarray, "K"]) -> Estimate:
    """ĝ·∇J/|∇J|²: 1 if the estimate agrees with the exact gradient along its direction."""
    return mean_of(each @ exact / (exact @ exact))


def spread(each: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "G"]:
    """The variance of one episode's gradient, summed over its components, in each of G groups of episodes."""
    return np.array([group.var(axis=0, ddof=1).sum() for group in np.array_split(each, GROUPS)])


def variance(seed: int = 0, episodes: int = 40_000, gamma: float = 0.8) -> Outcome:
    """Reward-to-go, discounting and a baseline each make the gradient less noisy; only discounting biases it."""
    agent, rollout = play_policy(seed, episodes)
    total, to_go, baseline = credits_of([TotalReturn(), RewardToGo(), Baseline()], agent, rollout, 1.0)
    (discounted,) = credits_of([RewardToGo()], agent, rollout, gamma)
    credit = {"total": total, "to_go": to_go, "discounted": discounted, "baseline": baseline}
    found = {name: episode_gradients(agent, rollout, c.weight) for name, c in credit.items()}
    noise = {name: spread(each) for name, each in found.items()}
    exact = exact_gradient()
    bias = {name: along(each, exact) for name, each in found.items()}
    cuts = {
        name: mean_of(np.log(noise[name] / noise[other]))
        for name, other in (("to_go", "total"), ("discounted", "to_go"), ("baseline", "to_go"))
    }
    names = list(found)
    return Outcome(
        findings=(
            *(Finding(f"{name}_cuts", ratio_of(cut), (-math.inf, 1.0)) for name, cut in cuts.items()),
            *(Finding(f"{name}_bias", bias[name], around(1.0, 0.1)) for name in ("total", "to_go", "baseline")),
            Finding("discounted_bias", shifted(bias["discounted"], -1.0), BELOW_ZERO),
        ),
        panels=(
            Panel("noise", (Line("variance", names, [noise[name].mean() for name in names]),), is_bars=True),
            Panel("bias", (with_intervals("along", names, list(bias.values())),), is_bars=True),
        ),
        numbers={"episodes": episodes, "gamma": gamma},
    )


def shifted(estimate: Estimate, by: float) -> Estimate:
    """The estimate plus a constant."""
    low, high = estimate.interval
    return Estimate(estimate.value + by, (low + by, high + by))
