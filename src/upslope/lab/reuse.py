"""Reuse of one batch: the plain policy gradient fails, unless a KL penalty or clipping is added."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from upslope.core.estimators import GAE
from upslope.core.objectives import Clip, KLPenalty, Objective, PolicyGradient
from upslope.environments.tabular import gridworld
from upslope.lab.finding import ABOVE_ZERO, BELOW_ZERO, Finding, Line, Outcome, Panel, mean_of, with_intervals
from upslope.lab.play import SelectedObjective, run_in_threads, small_task, train_policies

OBJECTIVES: dict[str, Objective] = {"plain": PolicyGradient(), "kl": KLPenalty(1.0, 0.01), "clip": Clip(0.2)}
MAZE = gridworld(4, 4, step_cost=0.05, slip=0.2, max_episode_steps=50)


def trained(epochs: int, seeds: Sequence[int], iterations: int) -> Float[np.ndarray, "2 K S"]:
    """Each seed's exact expected return after training with each objective, and the mean KL of its updates."""
    every = SelectedObjective(tuple(OBJECTIVES.values()))
    task = small_task(
        MAZE, GAE(0.95), every, epochs=epochs, critic_epochs=8, normalize_advantage=True, num_envs=8
    )  # fmt: skip
    policies, metrics = train_policies(task, seeds, iterations)
    returns = [MAZE.expected_return(policy[-1], 1.0, MAZE.max_episode_steps) for policy in policies]
    found = np.array([returns, np.mean(metrics["policy/kl"], axis=1)])
    return found.reshape(2, len(OBJECTIVES), len(seeds))


def reuse(seed: int = 0, seeds: int = 16, epochs: Sequence[int] = (1, 8, 48), iterations: int = 20) -> Outcome:
    """Measure the return and the KL as functions of the number of epochs on each batch."""
    each = range(seed, seed + seeds)
    found = np.array(run_in_threads([partial(trained, count, each, iterations) for count in epochs]))
    first, last = 0, -1
    returns, divergence = (dict(zip(OBJECTIVES, found[:, k].swapaxes(0, 1), strict=True)) for k in (0, 1))
    banded = [with_intervals(name, epochs, [mean_of(row) for row in values]) for name, values in returns.items()]
    return Outcome(
        findings=(
            Finding("breaks", mean_of(returns["plain"][last] - returns["plain"][first]), BELOW_ZERO),
            Finding("kl_mends", mean_of(returns["kl"][last] - returns["plain"][last]), ABOVE_ZERO),
            Finding("clip_mends", mean_of(returns["clip"][last] - returns["plain"][last]), ABOVE_ZERO),
            Finding("clip_near", mean_of(divergence["clip"][last] - divergence["plain"][last]), BELOW_ZERO),
            Finding("kl_near", mean_of(divergence["kl"][last] - divergence["plain"][last]), BELOW_ZERO),
            Finding("pays", mean_of(returns["clip"][last] - returns["clip"][first]), ABOVE_ZERO),
        ),
        panels=(
            Panel("returns", tuple(banded), log_x=True),
            Panel(
                "divergence",
                tuple(Line(name, epochs, values.mean(axis=1)) for name, values in divergence.items()),
                log_x=True,
                log_y=True,
            ),
        ),
        numbers={"seeds": seeds, "most": max(epochs), "iterations": iterations, "samples": 8 * 32},
    )
