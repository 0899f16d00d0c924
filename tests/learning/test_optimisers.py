"""Optimisers and schedules: directions agree with NumPy formulas, schedules with numbers worked by hand, and both may
be user-defined."""

from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import quick_jit, task_of
from run_helpers import arrays_of, metrics_of

import upslope
from upslope.core.objectives import Clip
from upslope.environments.classic.cartpole import CartPole
from upslope.errors import UpslopeError
from upslope.learning.batch import Batch
from upslope.learning.descent import Descent, Plan, descend, start_optimiser
from upslope.learning.iteration import pace_of
from upslope.learning.optimisers import SCHEDULES, Optimiser, Schedules, schedule_of
from upslope.learning.update import plain_update

RATE, EPSILON = 0.1, 1e-5
START = np.array([0.5, -1.0, 2.0])
X = np.random.default_rng(0).normal(size=(20, 3))


def descended(optimiser: Optimiser, epochs: int) -> np.ndarray:
    """Return the parameters after `epochs` steps down the mean of x · p, whose gradient is the mean of x for every
    p."""
    nothing = jnp.zeros(len(X))
    batch = Batch(
        features=jnp.float32(X), action=nothing, behaviour_log_prob=nothing, weight=nothing, target=nothing,
        valid=jnp.ones(len(X), bool), fresh=nothing > 0, carry=(), old_policy=None,
    )  # type: ignore[arg-type]  # fmt: skip
    parameters = [jnp.float32(START[:1]), jnp.float32(START[1:])]
    start = Descent(parameters, start_optimiser(optimiser, parameters), jnp.bool_(False))
    plan = Plan(optimiser, epochs, minibatches=1, in_halves=False)

    def loss(parameters: Any, batch: Batch) -> Any:
        return batch.features @ jnp.concatenate(parameters), None

    go = quick_jit(lambda start: descend(plan, loss, start, batch, jax.random.key(0), jnp.float32(RATE), None)[0])
    return np.concatenate(go(start).parameters)


def by_hand(name: str, gradient: np.ndarray, steps: int, weight_decay: float) -> np.ndarray:
    p, first, second = START.copy(), np.zeros(3), np.zeros(3)
    for t in range(1, steps + 1):
        if name == "sgd":
            p = p - RATE * gradient
        elif name == "rmsprop":  # Tieleman & Hinton (2012)
            second = 0.99 * second + 0.01 * gradient**2
            p = p - RATE * gradient / np.sqrt(second + EPSILON)
        else:  # Kingma & Ba (2015); decoupled decay: Loshchilov & Hutter (2019)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            corrected, spread = first / (1 - 0.9**t), second / (1 - 0.999**t)
            p = p - RATE * (corrected / (np.sqrt(spread) + EPSILON) + weight_decay * p)
    return p


@pytest.mark.parametrize("max_grad_norm", [1e6, 0.05])
@pytest.mark.parametrize(("name", "decay"), [("sgd", 0.0), ("rmsprop", 0.0), ("adam", 0.0), ("adamw", 0.1)])
def test_a_direction_is_its_formula(name: str, decay: float, max_grad_norm: float):
    gradient = X.mean(axis=0)
    assert np.linalg.norm(gradient) > 0.05
    clipped = gradient * min(1.0, max_grad_norm / np.linalg.norm(gradient))
    optimiser = Optimiser(name, max_grad_norm=max_grad_norm, weight_decay=decay)
    for steps in (1, 3):
        expected = by_hand(name, clipped, steps, decay)
        np.testing.assert_allclose(descended(optimiser, steps), expected, rtol=1e-5, atol=1e-6)


def test_weight_decay_belongs_to_adamw_alone():
    one, other = (descended(Optimiser("adam", weight_decay=decay), 1) for decay in (0.0, 0.5))
    np.testing.assert_array_equal(one, other)


def test_an_own_chain_is_complete():
    # The chain has its own rate and no clipping, so it is sgd at 0.3 whatever the learning rate is.
    found = descended(Optimiser(own=optax.sgd(0.3), max_grad_norm=1e-9), 2)
    np.testing.assert_allclose(found, START - 0.6 * X.mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "factors"),
    [
        ("linear", [1, 0.75, 0.5, 0.25, 0, 0]),
        # ½(1 + cos π p): cos(π/4) = √½.
        ("cosine", [1, 0.853553, 0.5, 0.146447, 0, 0]),
    ],
)
def test_a_schedule_falls_as_worked_by_hand(name: str, factors: list[float]):
    schedule = schedule_of(name)
    assert schedule is not None
    progress = [0, 0.25, 0.5, 0.75, 1, 1.5]
    np.testing.assert_allclose([schedule(jnp.float32(p)) for p in progress], factors, atol=1e-6)


def test_what_is_scheduled_changes_and_the_rest_does_not():
    linear, cosine = SCHEDULES["linear"], SCHEDULES["cosine"]
    settings: dict[str, Any] = {"update": plain_update(objective=Clip(0.2)), "entropy_coefficient": 0.4}
    task = task_of(CartPole(), schedules=Schedules(linear, cosine), **settings)
    pace = pace_of(task, jnp.float32(0.25), jnp.int32(0))
    assert pace.learning_rate == pytest.approx(0.75 * 0.01) and pace.entropy_coefficient == 0.4
    assert isinstance(pace.objective, Clip) and pace.objective.epsilon == pytest.approx(0.2 * 0.853553, rel=1e-5)
    task = task_of(CartPole(), schedules=Schedules(entropy_coefficient=cosine), **settings)
    pace = pace_of(task, jnp.float32(0.75), jnp.int32(0))
    assert pace.learning_rate == pytest.approx(0.01) and pace.objective == Clip(0.2)
    assert pace.entropy_coefficient == pytest.approx(0.4 * 0.146447, rel=1e-5)


def test_unknown_names_are_refused_with_a_near_one():
    with pytest.raises(UpslopeError, match=r"schedule.*lineer.*linear"):
        upslope.train("jax:CartPole-v1", learning_rate_schedule="lineer", quiet=True)
    with pytest.raises(UpslopeError, match=r"optimiser.*adamm.*adam"):
        upslope.train("jax:CartPole-v1", optimiser="adamm", quiet=True)


SMALL: dict[str, Any] = {
    "num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 2, "hidden_sizes": (4,), "steps": 320,
    "quiet": True, "preset": False, "learning_rate": 1e-2, "max_grad_norm": 0.5,
}  # fmt: skip


def half_time(progress: Any) -> Any:
    """Return a factor of 1 in the first half of the budget and 0 in the second."""
    return jnp.where(progress < 0.5, 1.0, 0.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):
    """Train each kind of run once, when it is first requested."""
    folder = tmp_path_factory.mktemp("runs")
    constant = {"learning_rate_schedule": "constant"}
    kinds: dict[str, dict[str, Any]] = {
        "constant": constant,
        "linear": {"learning_rate_schedule": "linear"},
        "own linear": {"schedules": {"learning_rate": lambda progress: jnp.maximum(1 - progress, 0.0)}},
        "0.2": {"epsilon": 0.2, "learning_rate": 0.1},
        "own half": {"schedules": {"learning_rate": half_time}},
        "own chain": {"optimiser": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2, eps=1e-5))},
        "half of 0.2": {
            "epsilon": 0.2,
            "learning_rate": 0.1,
            "schedules": {"epsilon": lambda progress: 0.5 + 0 * progress},
        },
        "0.1": {"epsilon": 0.1, "learning_rate": 0.1},
        "own chain with its own schedule": {"optimiser": optax.adam(optax.linear_schedule(1e-3, 0.0, 80))},
    }

    @cache
    def run(kind: str) -> Path:
        settings = SMALL | kinds[kind]
        if "optimiser" in settings:  # the chain has its own rate and clipping
            settings = {
                name: value for name, value in settings.items() if name not in ("learning_rate", "max_grad_norm")
            }
        return upslope.train("jax:CartPole-v1", folder=folder, name=kind, **settings).path

    return run


def parameters_of(run: Path) -> np.ndarray:
    """Return all parameters of a run's last agent as one vector."""
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(upslope.load(run, checkpoint="last").agent.model)])


def test_an_optax_chain_is_ours_with_a_constant_rate(trained):
    ours, own, falling = (parameters_of(trained(kind)) for kind in ("constant", "own chain", "linear"))
    np.testing.assert_allclose(ours, own, atol=1e-5)
    assert np.abs(falling - ours).max() > 1e-3, "a different rate gives different parameters"


def test_an_optax_chain_may_count_its_steps_twice(trained):
    # Adam's state and the schedule's state both contain a `count`. The rate reaches 0 after 20 iterations of 4 steps.
    rows = metrics_of(trained("own chain with its own schedule"))
    assert len(rows) == 20 and rows[0]["policy/kl"] > 0
    assert "health/policy_signal" not in rows[0], "the optimiser is not known, so nothing is read from its state"


def test_an_own_schedule_is_the_named_one_with_the_same_formula(trained):
    own, named = (arrays_of(trained(kind) / "checkpoints" / "last.npz") for kind in ("own linear", "linear"))
    assert own == named


def test_an_own_schedule_is_asked_at_every_share_of_the_budget(trained):
    rows = metrics_of(trained("own half"))
    moved = [row["policy/kl"] > 0 for row in rows]
    assert moved == [True] * 10 + [False] * 10
    assert upslope.load(trained("own half")).seed == 0


def test_a_scheduled_epsilon_is_the_one_that_clips(trained):
    half, tenth, fifth = (parameters_of(trained(kind)) for kind in ("half of 0.2", "0.1", "0.2"))
    np.testing.assert_allclose(half, tenth, atol=1e-4)
    assert np.abs(fifth - tenth).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "words"), [("own chain", "Pass the object from Python"), ("own linear", "cannot be imported")]
)
def test_what_cannot_be_found_by_its_name_is_asked_for_when_a_run_goes_on(kind: str, words: str, trained):
    with pytest.raises(UpslopeError, match=words):
        upslope.resume(trained(kind), quiet=True)
