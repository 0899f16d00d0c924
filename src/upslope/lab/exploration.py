"""The cost of exploration in the deep sea, with an entropy bonus alone and with a bonus that counts visits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from upslope.core.estimators import Baseline
from upslope.core.objectives import Clip
from upslope.core.types import Transition
from upslope.environments.deep_sea import Cell, DeepSea
from upslope.lab.finding import (
    ABOVE_ZERO,
    BELOW_ZERO,
    Estimate,
    Finding,
    Interval,
    Line,
    Outcome,
    Panel,
    mean_of,
    with_intervals,
)
from upslope.lab.play import quick_jit, small_task
from upslope.learning.bonuses.count import Count
from upslope.learning.intrinsic import Intrinsic
from upslope.learning.iteration import Task, TrainState, initialise_all, iterate
from upslope.models.build import perceptrons_for

EPISODES = 16
"""Episodes per iteration."""
DOUBLING: Interval = (0.8, 1.2)
"""The range in which log₂ of the factor per row counts as 1."""
POWER: Interval = (0.0, 4.0)
"""Range of exponents that count as a power of N; between 10 and 30 rows, 2^N would correspond to an exponent of 13."""


@dataclass(frozen=True, eq=False)
class Sea(DeepSea):
    """A deep sea whose number of rows, at most `size`, may differ between the runs of one program."""

    rows: Any = None

    def step(self, key: PRNGKeyArray, state: Cell, action: Any) -> tuple[Cell, Transition]:
        after, made = super().step(key, state, action)
        row, column = state // self.size, state % self.size
        is_right = (action == 1) == jnp.asarray(self.leads_right)[row, column]
        is_last = row + 1 == self.rows
        reward = (is_right & is_last & (column + 1 == self.rows)) - is_right * self.move_cost / self.rows
        return jnp.where(is_last, self.size**2, after), made._replace(reward=reward, terminated=is_last)


def task_in(sea: Sea, entropy: float, intrinsic: Intrinsic | None) -> Task:
    """A task with a tabular policy and critic, whole episodes, clipping, and an entropy bonus of this weight."""
    return small_task(
        sea,
        Baseline(),
        Clip(0.2),
        model=perceptrons_for(sea, hidden_sizes=()),
        intrinsic=intrinsic,
        num_envs=EPISODES,
        learning_rate=0.02,
        entropy_coefficient=entropy,
        epochs=4,
        critic_epochs=4,
    )


def episodes_until_found(
    sizes: Sequence[int],
    seeds: Sequence[int],
    budget: Sequence[int],
    entropy: float,
    intrinsic: Intrinsic | None = None,
) -> Float[np.ndarray, "S K"]:
    """The number of episodes until the treasure is first found, in seas of K sizes; `budget` is the limit for each."""
    sea = Sea(max(sizes))
    task = task_in(sea, entropy, intrinsic)

    def until_found(rows: Array, most: Array, state: TrainState) -> Array:
        sized = replace(task, environment=replace(sea, rows=rows))

        def one(carry: tuple[TrainState, Array]) -> tuple[TrainState, Array]:
            state, _, finished = iterate(sized, carry[0])
            return state, jnp.any(finished.done & (finished.episode_return > 0.5))

        def goes_on(carry: tuple[TrainState, Array]) -> Array:
            return ~carry[1] & (EPISODES * carry[0].iteration < most)

        return EPISODES * jax.lax.while_loop(goes_on, one, (state, jnp.bool_(False)))[0].iteration

    states = initialise_all(task, [seed for seed in seeds for _ in sizes])
    rows, most = (jnp.tile(jnp.asarray(x, jnp.int32), len(seeds)) for x in (sizes, budget))
    found = quick_jit(lambda *rows: jax.lax.map(lambda one: until_found(*one), rows))(rows, most, states)
    return np.asarray(found, np.float64).reshape(len(seeds), len(sizes))


def slope(x: Sequence[float | int] | np.ndarray, y: Float[np.ndarray, "S K"]) -> Estimate:
    """The slope of y over x, averaged over independent seeds."""
    return mean_of(np.polyfit(x, y.T, 1)[0])


def entropy(seed: int = 0, seeds: int = 24, sizes: Sequence[int] = (6, 8, 10, 12, 14)) -> Outcome:
    """Each additional row doubles the number of episodes until a policy with an entropy bonus finds the treasure."""
    budget = [8 * 2**size for size in sizes]
    found = episodes_until_found(sizes, range(seed, seed + seeds), budget, entropy=0.05)
    each = [mean_of(column) for column in found.T]
    return Outcome(
        findings=(
            Finding("doubles", slope(sizes, np.log2(found)), DOUBLING),
            Finding("power", slope(np.log(sizes[-3:]), np.log(found[:, -3:])), (POWER[1], np.inf)),
        ),
        panels=(
            Panel(
                "episodes",
                (
                    with_intervals("measured", sizes, each),
                    Line("two_to_the_n", sizes, [2.0**size for size in sizes], is_reference=True),
                ),
                log_y=True,
            ),
        ),
        numbers={
            "seeds": seeds,
            "largest": max(sizes),
            "episodes": each[-1].value,
            "missed": 100 * float(np.mean(found >= budget)),
        },
    )


def counts(seed: int = 0, seeds: int = 6, sizes: Sequence[int] = (10, 14, 20, 28)) -> Outcome:
    """With a bonus that counts visits, the number of episodes grows like a power of the number of rows."""
    bonus = Intrinsic(Count(), coefficient=0.3, gamma=0.99, is_episodic=True)
    budget = [20_000] * len(sizes)
    found = episodes_until_found(sizes, range(seed, seed + seeds), budget, 0.01, bonus)
    each = [mean_of(column) for column in found.T]
    exponent = slope(np.log(sizes), np.log(found))
    fitted = np.exp(np.polyval(np.polyfit(np.log(sizes), np.log(found).mean(axis=0), 1), np.log(sizes)))
    shares = np.log2(found[:, -1]) / sizes[-1]
    return Outcome(
        findings=(
            Finding("power", exponent, POWER),
            Finding("all", mean_of(found[:, -1] - budget[-1]), BELOW_ZERO),
            Finding("less", mean_of(1 - shares), ABOVE_ZERO),
        ),
        panels=(
            Panel(
                "episodes",
                (
                    with_intervals("measured", sizes, each),
                    Line("power_of_n", sizes, fitted, is_reference=True),
                ),
                log_x=True,
                log_y=True,
            ),
        ),
        numbers={
            "seeds": seeds,
            "largest": max(sizes),
            "smallest": min(sizes),
            "episodes": each[-1].value,
            "budget": budget[-1],
        },
    )
