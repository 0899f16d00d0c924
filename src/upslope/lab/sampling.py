"""Expectations estimated by sampling: exam scores, and importance sampling with two lakes of fish."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from upslope.core.distributions import DiagonalGaussian
from upslope.core.objectives import Sample, importance_ratio
from upslope.environments.tabular import Tabular
from upslope.lab.finding import (
    BELOW_ZERO,
    Finding,
    Line,
    Outcome,
    Panel,
    against_theory,
    around,
    mean_of,
    median,
    power_law,
    root_mean_square,
    share_of,
)
from upslope.lab.play import play, quick_jit, table_agent
from upslope.learning.update import effective_sample_size

LAKE_A = np.array([0.1, 0.4, 0.5])
LAKE_B = np.array([0.5, 0.1, 0.4])
"""Shares of carp, bass and other fish. The lecture gives only the first two."""
KILOGRAMS = np.array([1.0, 3.0, 2.0])
"""Weight of a carp, a bass and another fish, in kilograms. Lake B has mostly small fish."""


def exam() -> Tabular:
    """One step: 80 points with probability 0.2, 90 with 0.8."""
    return Tabular(
        transition=np.array([[[0.0, 0.2, 0.8]], [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]),
        reward=np.broadcast_to([0.0, 80.0, 90.0], (3, 1, 3)),
        start=np.eye(3)[0],
        terminal=np.array([False, True, True]),
        observation_of=np.arange(3),
        max_episode_steps=1,
    )


def lake() -> Tabular:
    """One catch: the action is the kind of fish, the reward its weight."""
    return Tabular(
        transition=np.eye(2)[np.ones((2, 3), np.int64)],
        reward=np.repeat(KILOGRAMS[None, :, None], 2, axis=0).repeat(2, axis=2),
        start=np.eye(2)[0],
        terminal=np.array([False, True]),
        observation_of=np.arange(2),
        max_episode_steps=1,
    )


def expectation(seed: int = 0, repetitions: int = 320, largest: int = 4096, believed: float = 88.0) -> Outcome:
    """The mean of n exams tends to Σ x p(x), with an error that falls like n^(−1/2)."""
    agent = table_agent(np.zeros((3, 1)))
    scores = np.asarray(play(exam(), agent, seed, repetitions * largest).reward[0], np.float64)
    scores = scores.reshape(repetitions, largest)
    sizes = [2**k for k in range(2, largest.bit_length())]
    running = np.cumsum(scores, axis=1) / np.arange(1, largest + 1)
    errors = np.abs(running[:, [n - 1 for n in sizes]] - exam().expected_return(np.ones((3, 1)), 1.0))
    series = running[:5, [n - 1 for n in sizes]]
    measured = Line("measured", sizes, root_mean_square(errors))
    return Outcome(
        findings=(
            Finding("mean", mean_of(scores.mean(axis=1)), around(believed, 0.1)),
            Finding("rate", power_law(sizes, errors), around(-0.5, 0.05)),
        ),
        panels=(
            Panel(
                "means",
                (
                    *(Line("one_series", sizes, y) for y in series),
                    Line("expected", sizes, [believed] * len(sizes), is_reference=True),
                ),
                log_x=True,
            ),
            against_theory("errors", measured, [4 / n**0.5 for n in sizes], log_x=True, log_y=True),
        ),
        numbers={"draws": scores.size, "repetitions": repetitions, "largest": largest},
    )


def ratios(behaviour: DiagonalGaussian, target: DiagonalGaussian, action: jax.Array) -> jax.Array:
    """The ratios ρ = p/q at samples from q."""
    samples = action.reshape(-1, action.shape[-1])
    log_p, log_q = target.log_prob(samples), behaviour.log_prob(samples)
    ratio = importance_ratio(Sample(log_p, log_q, jnp.zeros_like(log_p), jnp.zeros_like(log_p)))
    return ratio.reshape(action.shape[:-1])


def gaussian(mean: float, std: float) -> DiagonalGaussian:
    """N(mean, std²) for one action."""
    return DiagonalGaussian(jnp.array([mean], jnp.float32), jnp.log(jnp.array([std], jnp.float32)))


def catch_fish(seed: int, repetitions: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Catch fish in lake B; return their weights, and their weights × ρ, each [R, n]."""
    caught = play(lake(), table_agent(np.log(np.stack([LAKE_B, LAKE_B]))), seed, repetitions * largest)
    target = table_agent(np.log(np.stack([LAKE_A, LAKE_A]))).policy(caught.observation[0]).log_prob(caught.action[0])
    zeros = jnp.zeros_like(target)
    ratio = importance_ratio(Sample(target, caught.behaviour_log_prob[0], zeros, zeros))
    kilograms = np.asarray(caught.reward[0], np.float64).reshape(repetitions, largest)
    return kilograms, kilograms * np.asarray(ratio, np.float64).reshape(repetitions, largest)


def distant_policies(
    seed: int, distances: list[float], repetitions: int, largest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate E_p[x] = d, p = N(d, 1), from samples of q = N(0, 1): errors and effective shares, each [D, R]."""
    action = jax.random.normal(jax.random.key(seed), (repetitions, largest, 1))

    def estimate(distance: jax.Array) -> tuple[jax.Array, jax.Array]:
        target = DiagonalGaussian(distance[None], jnp.zeros(1))
        ratio = ratios(gaussian(0.0, 1.0), target, action)
        share = jax.vmap(effective_sample_size)(ratio, jnp.ones_like(ratio, bool))
        return jnp.mean(ratio * action[..., 0], axis=1) - distance, share

    errors, shares = quick_jit(jax.lax.map, static_argnums=0)(estimate, jnp.array(distances, jnp.float32))
    return np.asarray(errors, np.float64), np.asarray(shares, np.float64)


def tail_errors(seed: int, std: float, sizes: list[int], repetitions: int) -> Float[np.ndarray, "R K"]:
    """Errors of Σ ρ x²/n as an estimate of E_p[x²] = 1, p = N(0, 1), from samples of q = N(0, std²)."""
    action = std * jax.random.normal(jax.random.key(seed), (repetitions, sizes[-1], 1))
    ratio = np.asarray(ratios(gaussian(0.0, std), gaussian(0.0, 1.0), action), np.float64)
    running = np.cumsum(ratio * np.asarray(action[..., 0], np.float64) ** 2, axis=1) / np.arange(1, sizes[-1] + 1)
    return np.abs(running[:, [n - 1 for n in sizes]] - 1)


def importance(seed: int = 0, repetitions: int = 320, largest: int = 2048) -> Outcome:
    """Weights p/q correct for sampling from the wrong distribution, as long as the distributions are similar."""
    plain, weighted = catch_fish(seed, repetitions, largest)
    truth = float(LAKE_A @ KILOGRAMS)
    distances = [0.25, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    errors, shares = distant_policies(seed + 1, distances, repetitions, largest)
    sizes = [2**k for k in range(4, largest.bit_length())]
    wide, narrow = (tail_errors(seed + 2, std, sizes, repetitions) for std in (1.2, 0.5))
    theory = [float(np.exp(-(d**2))) for d in distances]
    near, far = distances.index(0.5), distances.index(2.0)
    catches = Line("kilograms", ["lake_b", "corrected", "lake_a"], [plain.mean(), weighted.mean(), truth])
    return Outcome(
        findings=(
            Finding("plain", mean_of(plain.mean(axis=1) - truth), BELOW_ZERO),
            Finding("weighted", mean_of(weighted.mean(axis=1)), around(truth, 0.02)),
            Finding("share", mean_of(shares[distances.index(1.0)]), around(np.exp(-1), 0.02)),
            Finding("grows", share_of(np.abs(errors[far]) > np.abs(errors[near])), (0.5, math.inf)),
            Finding("finite", power_law(sizes, wide, median), around(-0.5, 0.1)),
            Finding("infinite", power_law(sizes, narrow, median), (-0.4, math.inf)),
        ),
        panels=(
            Panel("lakes", (catches,), is_bars=True),
            against_theory("shares", Line("measured", distances, shares.mean(axis=1)), theory, log_y=True),
            Panel("errors", (Line("measured", distances, root_mean_square(errors.T)),), log_y=True),
            Panel(
                "tails",
                (Line("finite", sizes, median(wide)), Line("infinite", sizes, median(narrow))),
                log_x=True,
                log_y=True,
            ),
        ),
        numbers={"samples": largest, "repetitions": repetitions, "truth": truth},
    )
