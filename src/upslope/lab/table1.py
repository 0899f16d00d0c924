"""A small version of Table 1 of the PPO paper: surrogate objectives compared on compiled Pendulum."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from upslope.config.config import configure
from upslope.config.task import Parts, objective_of, task_of
from upslope.engines.compiled import CompiledEngine
from upslope.environments.classic.pendulum import Pendulum
from upslope.lab.finding import ABOVE_ZERO, Finding, Line, Outcome, Panel, difference_of, mean_of, with_intervals
from upslope.lab.play import SelectedObjective


class Surrogate(NamedTuple):
    """A row of Table 1 of Schulman et al. 2017: its settings and its reported score."""

    settings: Mapping[str, Any]
    paper: float


def clip(epsilon: float) -> dict[str, Any]:
    """Settings for clipping with ε."""
    return {"objective": "clip", "epsilon": epsilon}


def penalty(beta: float, target: float | None) -> dict[str, Any]:
    """Settings for a KL penalty, fixed or adaptive."""
    return {"objective": "kl_penalty", "beta": beta, "beta_target": target}


SURROGATES = {
    "no clipping or penalty": Surrogate({"objective": "importance_sampled"}, -0.39),
    "clip, ε = 0.1": Surrogate(clip(0.1), 0.76),
    "clip, ε = 0.2": Surrogate(clip(0.2), 0.82),
    "clip, ε = 0.3": Surrogate(clip(0.3), 0.70),
    "adaptive KL, d = 0.003": Surrogate(penalty(1.0, 0.003), 0.68),
    "adaptive KL, d = 0.01": Surrogate(penalty(1.0, 0.01), 0.74),
    "adaptive KL, d = 0.03": Surrogate(penalty(1.0, 0.03), 0.71),
    "fixed KL, β = 0.3": Surrogate(penalty(0.3, None), 0.62),
    "fixed KL, β = 1": Surrogate(penalty(1.0, None), 0.71),
    "fixed KL, β = 3": Surrogate(penalty(3.0, None), 0.72),
    "fixed KL, β = 10": Surrogate(penalty(10.0, None), 0.69),
}
NONE, BEST, ADAPTIVE, FIXED = "no clipping or penalty", "clip, ε = 0.2", "adaptive KL, d = 0.01", "fixed KL, β = 1"
DEFAULT_NAMES = (NONE, "clip, ε = 0.1", BEST, "clip, ε = 0.3", ADAPTIVE, FIXED)


def scores(names: Sequence[str], seeds: Sequence[int], steps: int) -> Float[np.ndarray, "2 K S"]:
    """Each seed's mean return on Pendulum with each surrogate objective, in the first iteration and over the last 50
    episodes."""
    small = {"steps": steps, "rollout_steps": 512, "minibatches": 16, "hidden_sizes": (32, 32)}
    configs = [configure("jax:Pendulum-v1", is_continuous=True, **small, **SURROGATES[name].settings) for name in names]
    every = SelectedObjective(tuple(objective_of(config) for config in configs))
    task = task_of(configs[0], Pendulum(), Parts(objective=every))
    per_iteration = task.num_envs * task.rollout_steps
    engine = CompiledEngine(task, [*seeds] * len(names), steps // per_iteration)
    _, chunk = engine.advance(every.set_objectives(engine.start()))
    first = [np.mean([r for step, _, r, *_ in rows if step <= per_iteration]) for rows in chunk.episodes]
    last = [np.mean([row[2] for row in rows[-50:]]) for rows in chunk.episodes]
    return np.array([first, last]).reshape(2, len(names), len(seeds))


def normalise(scores: Float[np.ndarray, "K S"], untrained: float) -> Float[np.ndarray, "K S"]:
    """Normalise to the paper's scale: 0 is the untrained policy, 1 the best run."""
    return (scores - untrained) / (scores.max() - untrained)


def slopes(found: Mapping[str, Float[np.ndarray, "S"]]) -> Float[np.ndarray, "S"]:
    """The least-squares slope of our scores against the paper's, for each seed.

    The row without clipping or penalty is omitted, since it is the lowest in both and would dominate the slope. A slope
    is a weighted sum of one seed's scores, so the slopes are independent samples, and Student's interval is valid.
    """
    compared = [name for name in found if name != NONE]
    paper = np.array([SURROGATES[name].paper for name in compared])
    centred = paper - paper.mean()
    return centred @ np.array([found[name] for name in compared]) / (centred @ centred)


def table1(seed: int = 0, seeds: int = 24, steps: int = 40_960, names: Sequence[str] = DEFAULT_NAMES) -> Outcome:
    """Compare normalised scores with the paper's."""
    first, last = scores(names, range(seed, seed + seeds), steps)
    found = dict(zip(names, normalise(last, float(first.mean())), strict=True))
    paper = [SURROGATES[name].paper for name in names]
    estimates = [mean_of(found[name]) for name in names]
    return Outcome(
        findings=(
            *(
                Finding(f"{label}_over_none", difference_of(found[name], found[NONE]), ABOVE_ZERO)
                for label, name in (("clip", BEST), ("adaptive", ADAPTIVE), ("fixed", FIXED))
            ),
            Finding("clip_over_adaptive", difference_of(found[BEST], found[ADAPTIVE]), ABOVE_ZERO),
            Finding("order", mean_of(slopes(found)), ABOVE_ZERO),
        ),
        panels=(
            Panel(
                "scores",
                (
                    with_intervals("measured", names, estimates),
                    Line("paper", names, paper, is_reference=True),
                ),
                is_bars=True,
            ),
        ),
        numbers={"seeds": seeds, "steps": steps},
    )
