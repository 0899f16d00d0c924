"""Credit assignment: if a late reward depends on one action, how many episodes does each estimator need to find it?"""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Float

from upslope.core.estimators import GAE, Baseline, Estimator, NStep, RewardToGo, TotalReturn
from upslope.core.objectives import PolicyGradient
from upslope.environments.tabular import Tabular, delayed_key
from upslope.lab.finding import Estimate, Finding, Line, Outcome, Panel, difference_of, ratio_of
from upslope.lab.play import run_in_threads, small_task, train_policies

ESTIMATORS: dict[str, Estimator] = {
    "total": TotalReturn(),
    "to_go": RewardToGo(),
    "baseline": Baseline(),
    "one_step": NStep(1),
    "gae": GAE(0.95),
}
COLUMNS = 8
FOUND = 0.9
MORE, LESS = (1.0, math.inf), (-math.inf, 1.0)


def key_and_coins(length: int, coin: float = 0.3) -> Tabular:
    """The key environment with noise: every step also pays ±`coin` with equal probability, regardless of the actions.

    A state is 2 · (state of the key environment) + coin; the agent does not see the coin.
    """
    key = delayed_key(length)
    paid = coin * np.array([-1.0, 1.0])
    return Tabular(
        transition=np.kron(key.transition.repeat(2, axis=0), np.full(2, 0.5)),
        reward=(key.reward[..., None] + paid).reshape(*key.reward.shape[:2], -1).repeat(2, axis=0),
        start=np.kron(key.start, np.array([1.0, 0.0])),
        terminal=key.terminal.repeat(2),
        observation_of=key.observation_of.repeat(2),
        max_episode_steps=length,
    )


def learn(estimator: Estimator, length: int, seeds: Sequence[int], iterations: int) -> Float[np.ndarray, "S I"]:
    """Train, and return π(take the key) of each seed after every iteration of 8 episodes."""
    environment = key_and_coins(length)
    task = small_task(
        environment, estimator, PolicyGradient(), critic_epochs=10, num_envs=COLUMNS, rollout_steps=length,
        normalize_advantage=True, learning_rate=0.01,
    )  # fmt: skip
    policies, _ = train_policies(task, seeds, iterations)
    return policies[:, :, 0, 1]


def episodes_until_found(key: Float[np.ndarray, "S I"]) -> Float[np.ndarray, "S"]:
    """Number of episodes until π(take the key) ≥ 0.9. A seed that never reaches this counts with its whole budget."""
    is_found = key >= FOUND
    iteration = np.where(is_found.any(axis=1), is_found.argmax(axis=1) + 1, key.shape[1])
    return COLUMNS * iteration.astype(np.float64)


def credit(
    seed: int = 0, seeds: int = 16, length: int = 8, others: Sequence[int] = (4, 16), iterations: int = 100
) -> Outcome:
    """Measure how many episodes it takes to find the key action, by estimator and by delay."""
    each = range(seed, seed + seeds)
    cases = [(name, length) for name in ESTIMATORS]
    cases += [(name, other) for name in ("baseline", "one_step") for other in others]
    runs = [partial(learn, ESTIMATORS[name], delay, each, iterations) for name, delay in cases]
    learned = dict(zip(cases, run_in_threads(runs), strict=True))
    needed = {case: episodes_until_found(key) for case, key in learned.items()}
    curves = {name: learned[name, length] for name in ESTIMATORS}
    delays = sorted([*others, length])
    episodes = [COLUMNS * (i + 1) for i in range(iterations)]
    short, long = delays[0], delays[-1]
    return Outcome(
        findings=(
            Finding("one_step_late", ratio_of_means(needed["one_step", length], needed["baseline", length]), MORE),
            Finding("gae_sooner", ratio_of_means(needed["gae", length], needed["one_step", length]), LESS),
            Finding("baseline_sooner", ratio_of_means(needed["baseline", length], needed["to_go", length]), LESS),
            Finding("delay", ratio_of_means(needed["one_step", long], needed["one_step", short]), MORE),
        ),
        panels=(
            Panel("curves", tuple(Line(name, episodes, key.mean(axis=0)) for name, key in curves.items())),
            Panel(
                "delays",
                tuple(
                    Line(name, delays, [needed[name, delay].mean() for delay in delays])
                    for name in ("baseline", "one_step")
                ),
                log_y=True,
            ),
        ),
        numbers={
            "seeds": seeds,
            "length": length,
            "short": short,
            "long": long,
            "budget": COLUMNS * iterations,
            "never": 100 * float(np.mean(learned["one_step", long].max(axis=1) < FOUND)),
            "found": FOUND,
        },
    )


def ratio_of_means(left: Float[np.ndarray, "S"], right: Float[np.ndarray, "S"]) -> Estimate:
    """The ratio of the geometric means, left / right, with its interval."""
    return ratio_of(difference_of(np.log(left), np.log(right)))
