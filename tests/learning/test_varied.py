"""Numbers that are inputs to a compiled program: arithmetic, where a task contains them, and uses that they reject."""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import rollout_of, values_of

from upslope.config.prepare import prepare
from upslope.core.estimators import GAE, NStep
from upslope.core.objectives import Clip
from upslope.environments.registry import make
from upslope.learning.varied import Family, Inputs, UndecidedError, Varied, flatten


def outputs(function, *numbers):
    """Call `function` in a program compiled with the numbers as inputs; return its result and the row of inputs."""
    inputs = Inputs()

    def program(row):
        return function(*(Varied(f"x{k}", lambda x, k=k: x[k], inputs.reading(row)) for k in range(len(numbers))))

    traced = jax.jit(program).lower(jnp.zeros(64)).compile()
    return traced(jnp.asarray(inputs.row(numbers), jnp.float32)), inputs.row(numbers)


def test_arithmetic_is_done_in_double_precision_as_for_constants():
    x = jnp.arange(1.0, 4.0)
    gamma, lambda_ = 0.9907, 0.9373
    assert np.float32(gamma) * np.float32(lambda_) != np.float32(gamma * lambda_)  # so the order of operations matters
    found, row = outputs(lambda a, b: (a * b * x, x - (1 - a) / 3, -a * x, 2**b + x), gamma, lambda_)
    expected = (gamma * lambda_ * x, x - (1 - gamma) / 3, -gamma * x, 2**lambda_ + x)
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))
    assert row[:4] == [gamma * lambda_, (1 - gamma) / 3, -gamma, 2**lambda_]


def test_functions_that_jax_compiles_by_themselves_take_it():
    x = jnp.arange(-1.0, 2.0)
    functions = [
        lambda e: jnp.clip(x, 0 - e, e),
        lambda e: jnp.where(x > e, e, x),
        lambda e: jnp.maximum(x, e),
        lambda e: jnp.float32(e) + x,
        lambda e: optax.clip_by_global_norm(e).update(x, optax.EmptyState())[0],
        lambda e: jax.grad(lambda y: jnp.sum(jnp.square(y) * e))(x),
    ]
    for function in functions:
        np.testing.assert_array_equal(outputs(function, 0.3)[0], function(0.3))


def test_code_that_decides_by_it_is_refused_and_code_that_overlooks_it_gets_nan():
    number = Varied("gamma", lambda x: x[0], lambda _: jnp.float32(0))
    for ask in (lambda: number == 1.0, lambda: number < 1, lambda: bool(number), lambda: int(number), lambda: {number}):
        with pytest.raises(UndecidedError, match="gamma determines which operations are computed"):
            ask()
    assert isinstance(number, float) and math.isnan(math.fabs(number)) and number != "a" and number is not None


def tasks_of(*settings, algorithm="ppo", **shared):
    """Return a task for each of these settings, in the same environment."""
    environment = make("jax:CartPole-v1")
    return [prepare(environment, algorithm, preset=False, settings=shared | some)[1] for some in settings]


def test_tasks_that_differ_in_numbers_are_a_family_and_others_are_not():
    plain, numbers, wider = tasks_of({}, {"gamma": 0.9, "epsilon": 0.3}, {"learning_rate": 1e-3})
    family = Family(plain, ()).joined(numbers)
    assert family.paths == (("update", "objective", "epsilon"), ("gamma",))
    assert family.numbers(numbers) == [0.3, 0.9] and family.numbers(plain) == [0.2, 0.99]
    assert family.joined(plain) is family
    assert family.joined(wider).paths == (*family.paths, ("learning_rate",))
    others = tasks_of({"num_envs": 16}, {"epochs": 2}, {"hidden_sizes": (8,)}, {"target_kl": 0.1}, {"memory": "gru"})
    others += tasks_of({"n": 3}, algorithm="a2c") + tasks_of({"learning_rate_schedule": "constant"})
    assert [family.joined(task) for task in others] == [None] * len(others)


def test_settings_of_first_parameters_stay_one_family():
    environment = make("jax:Pendulum-v1")
    first, other = (prepare(environment, settings={"log_std_init": x})[1] for x in (0.0, -1.0))
    assert Family(first, ()).joined(other).paths == ()


def test_a_bound_task_has_inputs_for_its_numbers_and_checks_are_not_asked():
    (task,) = tasks_of({})
    inputs = Inputs()
    family = Family(task, (("gamma",), ("estimator", "lambda_"), ("update", "objective", "epsilon")))
    bound = family.bound(task, inputs.reading(jnp.arange(64.0)))
    assert isinstance(bound.gamma, Varied) and isinstance(bound.update.objective.epsilon, Varied)
    assert isinstance(bound.update.objective, Clip) and isinstance(bound.estimator, GAE)
    assert flatten(task)["gamma",] == 0.99 and task.update.objective.epsilon == 0.2
    rollout, values = rollout_of(np.ones((3, 2))), values_of(np.ones((3, 2)))
    bound.estimator(rollout, values, bound.gamma)
    assert list(inputs.columns) == ["x0", "(x0 * x1)"]


@dataclass(frozen=True)
class Deciding(NStep):
    """A user's estimator whose formula branches on λ."""

    lambda_: float = 0.5

    def __call__(self, rollout, values, gamma):
        return super().__call__(rollout, values, 0.0 if self.lambda_ > 0.5 else gamma)


def test_a_part_that_decides_by_a_number_is_found_out_when_the_program_is_traced():
    (task,) = tasks_of({})
    family = Family(replace(task, estimator=Deciding()), (("estimator", "lambda_"),))
    bound = family.bound(family.first, Inputs().reading(jnp.zeros(64)))
    with pytest.raises(UndecidedError, match="x0 determines"):
        bound.estimator(rollout_of(np.ones((3, 2))), values_of(np.ones((3, 2))), 0.9)
