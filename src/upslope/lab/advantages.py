"""Bias and variance of advantage estimates from one step, from many steps, and with λ between the two."""

import math
from collections.abc import Sequence
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import softmax

from upslope.core.estimators import GAE, Baseline, NStep
from upslope.core.types import Rollout
from upslope.environments.tabular import Tabular, gridworld
from upslope.lab.finding import ABOVE_ZERO, BELOW_ZERO, Finding, Line, Outcome, Panel, exactly, mean_of
from upslope.lab.play import credits_of, play, size_of, table_agent
from upslope.models.agent import Agent

GAMMA = 0.95
LAMBDAS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0)
STEPS = (1, 2, 3, 5, 10, 20, 50, 200)
"""Values of n in A^n; the last is at least as long as any episode."""
SHORT = 10
ROUNDING = (-math.inf, 1e-3)
"""Range of differences that count as zero: the rounding error, in 32 bits, of sums of up to 200 terms of about 1."""
GROUPS = 20


@cache
def maze() -> Tabular:
    """Nine cells: −0.1 per step, +1 at the goal, and four out of ten moves slip. Episodes are rarely truncated."""
    return gridworld(3, 3, step_cost=0.1, slip=0.4, max_episode_steps=200)


def some_policy() -> Float[np.ndarray, "O A"]:
    """Logits of a policy that is far from uniform."""
    return 0.5 * np.random.default_rng(0).normal(size=size_of(maze()))


def imperfect_critic() -> Float[np.ndarray, "O"]:
    """The exact V plus a random error in each cell, like a critic that is still learning."""
    exact = maze().state_values(softmax(some_policy(), axis=-1), GAMMA)
    error = np.random.default_rng(1).normal(size=exact.shape) * exact.std()
    return np.where(maze().terminal, 0.0, exact + error)


def moments(value: Array, rollout: Rollout, columns: np.ndarray) -> Float[np.ndarray, "3 K"]:
    """The number of visits to each of K pairs (s, a) in these episodes, and the mean and variance of `value` there."""
    num_observations, num_actions = size_of(maze())
    valid = np.asarray(rollout.valid)[:, columns]
    pair = np.asarray(rollout.observation * num_actions + rollout.action)[:, columns][valid]
    visited = np.asarray(value, np.float64)[:, columns][valid]
    size = num_observations * num_actions
    count = np.bincount(pair, minlength=size)
    seen = np.maximum(count, 1)
    mean = np.bincount(pair, visited, size) / seen
    return np.array([count, mean, np.bincount(pair, visited**2, size) / seen - mean**2])


def error_parts(target: Array, rollout: Rollout) -> Float[np.ndarray, "G 2"]:
    """Squared bias and variance of Ψ + V(s) as an estimate of q_π(s, a), in each group of episodes.

    −V(s) is the same for all actions, so it is omitted: a baseline does not bias the gradient. Both parts are
    conditional on (s, a) and weighted by the visits to (s, a). The squared bias is the product of the errors of two
    independent halves, so it contains no variance.
    """
    exact = maze().action_values(softmax(some_policy(), axis=-1), GAMMA).ravel()
    parts = []
    for columns in np.array_split(np.arange(target.shape[1]), GROUPS):
        (n, mean, variance), (m, other, _) = (moments(target, rollout, half) for half in np.array_split(columns, 2))
        squared_bias = (mean - exact) * (other - exact)
        parts.append(np.average([squared_bias, variance], axis=1, weights=np.minimum(n, m)))
    return np.array(parts)


def advantages(seed: int = 0, episodes: int = 8_000) -> Outcome:
    """A¹ has low variance and high bias, Monte Carlo the reverse; λ interpolates between them."""
    agent = table_agent(some_policy(), imperfect_critic())
    rollout = play(maze(), agent, seed, episodes)
    by_lambda = credits_of([GAE(x) for x in LAMBDAS], agent, rollout, GAMMA)
    *by_step, monte_carlo = credits_of([*(NStep(n) for n in STEPS), Baseline()], agent, rollout, GAMMA)
    parts, steps = (np.array([error_parts(c.target, rollout) for c in each]) for each in (by_lambda, by_step))
    (bias_1, variance_1), (bias_t, variance_t) = steps[0].T, steps[-1].T
    # λ is chosen on one half of the episodes and evaluated on the other; using the same half would be optimistic.
    chosen, judged = parts.sum(axis=-1)[:, : GROUPS // 2], parts.sum(axis=-1)[:, GROUPS // 2 :]
    best = int(np.argmin(chosen.mean(axis=1)))
    ended = np.asarray((rollout.terminated & rollout.valid).any(axis=0))
    differences = {
        "lambda_0": float(jnp.abs(by_lambda[0].weight - by_step[0].weight).max()),
        "lambda_1": float(jnp.abs(by_lambda[-1].weight - monte_carlo.weight)[:, ended].max()),
        **sum_differences(agent, rollout, 0.9),
    }
    return Outcome(
        findings=(
            Finding("variance", mean_of(variance_1 - variance_t), BELOW_ZERO),
            Finding("bias", mean_of(bias_1 - bias_t), ABOVE_ZERO),
            *(Finding(name, exactly(x), ROUNDING) for name, x in differences.items()),
            Finding("middle", mean_of(np.minimum(judged[0], judged[-1]) - judged[best]), ABOVE_ZERO),
        ),
        panels=(
            Panel("lambdas", curves(LAMBDAS, parts)),
            Panel("steps", curves(STEPS, steps), log_x=True),
        ),
        numbers={"episodes": episodes, "gamma": GAMMA, "best": LAMBDAS[best]},
    )


def curves(x: Sequence[float | int], parts: Float[np.ndarray, "K G 2"]) -> tuple[Line, ...]:
    """Curves of the squared bias, the variance and their sum, the mean squared error."""
    squared_bias, variance = parts.mean(axis=1).T
    return (
        Line("squared_bias", x, np.maximum(squared_bias, 0.0)),
        Line("variance", x, variance),
        Line("squared_error", x, squared_bias + variance),
    )


def sum_differences(agent: Agent, rollout: Rollout, lambda_: float) -> dict[str, float]:
    """The largest differences between GAE and two sums of A¹ … A^T, over episodes of at most SHORT steps.

    For n ≥ T, all A^n are equal, so the last term carries the weight of the rest of the series: (1−λ)(λ^(T−1) + …) =
    λ^(T−1). `as_written` is the difference from the sum without weights.
    """
    is_short = np.asarray((rollout.terminated & rollout.valid)[:SHORT].any(axis=0))
    short = jax.tree.map(lambda x: x[:SHORT, is_short], rollout)
    *steps, mixed, end = (
        np.asarray(credit.weight, np.float64)
        for credit in credits_of(
            [*(NStep(n) for n in range(1, SHORT + 1)), GAE(lambda_), GAE(1.0)], agent, short, GAMMA
        )
    )
    share = [(1 - lambda_) * lambda_**n for n in range(SHORT - 1)] + [lambda_ ** (SHORT - 1)]
    return {
        "mixture": float(np.abs(mixed - np.tensordot(share, steps, axes=1)).max()),
        "as_written": float(np.abs(end - np.sum(steps, axis=0)).max()),
    }
