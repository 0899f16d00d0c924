"""Many trials in one program: each gives the same numbers, bit for bit, as it does alone."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from gymnasium import spaces
from own_models import SharedTrunk

from upslope.config.prepare import prepare
from upslope.engines.base import Chunk, not_finite
from upslope.engines.compiled import CompiledEngine
from upslope.engines.trials import TrialsEngine
from upslope.environments.registry import make
from upslope.learning.devices import computing
from upslope.learning.varied import Family
from upslope.models.build import ModelSpec
from upslope.models.encoders import encoder_of
from upslope.models.heads import head_of

BOX = spaces.Box(-1.0, 1.0, (4,), np.float32)
SMALL = {"steps": 160, "num_envs": 2, "rollout_steps": 16, "minibatches": 2, "epochs": 2, "hidden_sizes": (8,)}
SEEDS = [3, 4]
CASES = {
    "ppo": (
        "jax:CartPole-v1",
        {"learning_rate": 1.3e-3, "gamma": 0.9907, "lambda_": 0.9373, "epsilon": 0.13, "max_grad_norm": 0.7},
        {"learning_rate": 3.3e-2, "gamma": 0.97, "lambda_": 0.9, "epsilon": 0.271, "max_grad_norm": 1.7},
        {"entropy_coefficient": 0.013, "target_kl": 0.02, "epsilon_schedule": "linear", "normalize_observations": True},
        {"entropy_coefficient": 0.002, "target_kl": 0.03, "epsilon_schedule": "linear", "normalize_observations": True},
    ),
    "ppo_kl": (
        "jax:Pendulum-v1",
        {
            "gamma": 0.9907,
            "beta": 0.7,
            "beta_target": 0.0131,
            "log_std_init": -0.7,
            "weight_decay": 0.013,
            "clip_rewards": 3.7,
        },
        {
            "gamma": 0.97,
            "beta": 2.3,
            "beta_target": 0.0052,
            "log_std_init": 0.3,
            "weight_decay": 0.002,
            "clip_rewards": 5.1,
        },
        {"optimiser": "adamw", "shared_trunk": True, "value_coefficient": 0.3},
        {"optimiser": "adamw", "shared_trunk": True, "value_coefficient": 0.3},
    ),
}


def trained_alone(task):
    """Return the final state of ordinary training."""
    engine = CompiledEngine(task, SEEDS)
    state = engine.start()
    while (np.asarray(state.steps) < task.steps).any():
        state, _ = engine.advance(state)
    return state


def arrays(state):
    """Return the learner's arrays as bytes."""
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state.learner)]


@pytest.mark.usefixtures("compiled_for_users")
@pytest.mark.parametrize("algorithm", ["ppo", pytest.param("ppo_kl", marks=pytest.mark.weekly)])
def test_trials_in_one_program_are_bit_for_bit_those_alone(algorithm):
    # The program has three slots, one of which starts late.
    name, *parts = CASES[algorithm]
    environment = make(name)
    settings = [SMALL | parts[0] | parts[2], SMALL | parts[1] | parts[3]]
    first, second = (prepare(environment, algorithm, preset=False, settings=one)[1] for one in settings)
    family = Family(first, ()).joined(second)
    with computing(on_host=False):
        engine = TrialsEngine(family, SEEDS, slots=3, iterations=2)
        engine.place(0, second)
        engine.place(2, first)
        engine.advance_all()
        engine.stop(0)  # frees its rows for another trial while the others continue
        engine.place(0, second)
        engine.place(1, first)
        while (np.asarray(engine.rows_now.steps) < SMALL["steps"]).any():
            engine.advance_all()
        alone = {0: second, 1: first, 2: first}
        expected = {id(task): arrays(trained_alone(task)) for task in (first, second)}
    state = engine.rows_now.state
    for slot, task in alone.items():
        rows = engine.places(slot)
        mine = [np.asarray(x)[rows].tobytes() for x in jax.tree.leaves(state.learner)]
        assert mine == expected[id(task)], f"slot {slot}"
    assert expected[id(first)] != expected[id(second)]


def test_trials_with_a_users_model_are_those_alone():
    """What is no array in a model is created anew by each trial, so it never equals that of another one."""
    settings = [SMALL | {"learning_rate": rate, "model": "own_models:SharedTrunk"} for rate in (1e-3, 1e-2)]
    del settings[0]["hidden_sizes"], settings[1]["hidden_sizes"]
    made = make("jax:CartPole-v1")
    first, second = (prepare(made, "ppo", preset=False, settings=one)[1] for one in settings)
    with computing(on_host=False):
        engine = TrialsEngine(Family(first, ()).joined(second), SEEDS, slots=2, iterations=2)
        for slot, task in enumerate((first, second)):
            engine.place(slot, task)
        while (np.asarray(engine.rows_now.steps) < SMALL["steps"]).any():
            engine.advance_all()
        expected = [jax.tree.leaves(trained_alone(task).learner) for task in (first, second)]
    for slot in range(2):
        mine = [np.asarray(x)[engine.places(slot)] for x in jax.tree.leaves(engine.rows_now.state.learner)]
        for one, other in zip(mine, expected[slot], strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_keyword_of_a_users_model_is_never_taken_for_a_setting_of_the_networks():
    """The first trial's model is compiled into the program, with every keyword that it stores."""
    spec = ModelSpec(encoder_of(BOX, "x"), head_of(spaces.Discrete(2), "x"), {"log_std_init": 0.1}, SharedTrunk)
    first = replace(prepare(make("jax:CartPole-v1"), "ppo", preset=False, settings=SMALL)[1], model=spec)
    second = replace(first, model=replace(spec, settings={"log_std_init": 0.2}))
    assert Family(first, ()).joined(second) is None
    ours = [replace(task, model=replace(task.model, own=None)) for task in (first, second)]
    assert Family(ours[0], ()).joined(ours[1]) is not None


def test_numbers_that_are_not_finite_are_seen_in_the_last_iteration_that_learned():
    """If the last chunk is longer than the remaining budget, its extra iterations are idle and do not count."""
    loss = np.array([[1.0, np.nan, 0.0], [1.0, 1.0, 0.0], [np.nan, 1.0, 1.0], [np.nan, 0.0, 0.0]])
    before = np.array([[0, 8, 16], [0, 8, 16], [0, 8, 16], [16, 16, 16]])
    after = np.array([[8, 16, 16], [8, 16, 16], [8, 16, 24], [16, 16, 16]])
    chunk = Chunk({"policy/loss": loss, "policy/kl": np.zeros_like(loss)}, after, before, [[]] * 4)
    assert not_finite(chunk).tolist() == [True, False, False, False]
