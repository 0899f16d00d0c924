"""Recurrent models: their parameter groups, the gradient through sequences of L steps, and a user's own model in a
run."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import own_models
import pytest
from gymnasium import spaces
from helpers import fresh_agent, improve_once, quick_jit, rollout_of
from run_helpers import assert_stops_and_resumes

import upslope
from upslope.analysis.episode_credit import credit_of
from upslope.core.distributions import Bernoulli, Categorical, DiagonalGaussian, MultiCategorical, Product
from upslope.core.objectives import PolicyGradient
from upslope.core.types import Credit
from upslope.errors import UpslopeError
from upslope.learning.evaluation import evaluate
from upslope.learning.optimisers import Optimiser
from upslope.learning.update import begin_learning, plain_update
from upslope.models.agent import initialise_agent
from upslope.models.build import ModelSpec
from upslope.models.choice_heads import DiscreteHead
from upslope.models.encoders import BoxEncoder, DiscreteEncoder
from upslope.models.heads import head_of
from upslope.models.model import Memory, group_places, parameters_of, start_memory, unroll

SPACES = BoxEncoder((4,)), DiscreteHead(2)
T, N = 12, 5


@cache
def agent_of(own: Any, **settings: Any):
    """Create an untrained agent with a user's model, or with upslope's networks and this memory."""
    if isinstance(own, str):
        own, settings = None, {"memory": own, "memory_size": 3, "hidden_sizes": (4,)}
    return initialise_agent(jax.random.key(0), ModelSpec(*SPACES, settings, own))


@cache
def facts():
    """Draw twelve steps in five columns with random ends and padding, their credit, and whether the first row begins an
    episode."""
    generator = np.random.default_rng(0)
    terminated, truncated = generator.random((2, T, N)) < 0.12
    valid = generator.random((T, N)) < 0.9
    rollout = rollout_of(generator.normal(size=(T, N)), terminated, truncated, valid)
    observation, successor = generator.normal(size=(2, T, N, 4)).astype(np.float32)
    action = generator.integers(0, 2, (T, N)).astype(np.int32)
    observed = {"observation": jnp.asarray(observation), "next_observation": jnp.asarray(successor)}
    rollout = rollout._replace(action=jnp.asarray(action), **observed)
    weight, target = generator.normal(size=(2, T, N)).astype(np.float32)
    first = np.array([True, False, True, False, False])
    return rollout, Credit(jnp.asarray(weight), jnp.asarray(target)), first


def memory_of(model):
    """Return a memory in which some columns are in the middle of an episode."""
    _, _, first = facts()
    carry = jax.tree.map(lambda x: jnp.where(first.reshape(-1, *(1,) * (x.ndim - 1)), x, x + 0.3), model.start(N))
    return Memory(carry, jnp.asarray(first))


def begins():
    """Compute where episodes begin [T, N], according to `facts`."""
    rollout, _, first = facts()
    terminated, truncated, valid = (np.asarray(x) for x in (rollout.terminated, rollout.truncated, rollout.valid))
    over = terminated | truncated | ~valid
    return np.concatenate([first[None], over[:-1]])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru(cell, x, h):
    """Take one step of Equinox's GRU in NumPy: Cho et al. (2014), with the reset gate applied after the product."""
    weight, recurrent, bias, bias_n = (
        np.asarray(a, np.float64) for a in (cell.weight_ih, cell.weight_hh, cell.bias, cell.bias_n)
    )
    size = h.shape[1]
    inputs, hidden = x @ weight.T + bias, h @ recurrent.T
    reset = sigmoid(inputs[:, :size] + hidden[:, :size])
    update = sigmoid(inputs[:, size : 2 * size] + hidden[:, size : 2 * size])
    new = np.tanh(inputs[:, 2 * size :] + reset * (hidden[:, 2 * size :] + bias_n))
    return new + update * (h - new)


def test_a_recurrent_model_over_time_is_its_formula_step_by_step_and_starts_anew_with_each_episode():
    model, (rollout, _, first) = agent_of(own_models.Recurrent).model, facts()
    memory, whole = memory_of(model), model.whole
    outputs, after = quick_jit(unroll)(model, rollout.observation, memory.carry, jnp.asarray(begins()))
    carry = {name: np.asarray(x, np.float64) for name, x in memory.carry.items()}
    cells = {"policy": (whole.policy_cell, 0.5), "value": (whole.value_cell, -0.5)}
    assert begins().sum() > first.sum() > 0
    for t in range(T):
        told = np.concatenate([np.asarray(rollout.observation[t]), begins()[t][:, None]], axis=1)
        for name, (cell, start) in cells.items():
            carry[name] = gru(cell, told, np.where(begins()[t][:, None], start, carry[name]))
            np.testing.assert_allclose(after[name][t], carry[name], atol=1e-5)
        logits = carry["policy"] @ np.asarray(whole.policy_layer.weight).T + whole.policy_layer.bias
        np.testing.assert_allclose(outputs.policy.logits[t], logits, atol=1e-5)
        value = carry["value"] @ np.asarray(whole.value_layer.weight)[0] + whole.value_layer.bias
        np.testing.assert_allclose(outputs.value[t], value, atol=1e-5)


def test_two_perceptrons_over_time_are_the_same_step_by_step():
    agent = fresh_agent(jax.random.key(1), spaces.Box(-1, 1, (4,)), spaces.Discrete(2), hidden_sizes=(8,))
    rollout, _, _ = facts()
    outputs, after = unroll(agent.model, agent.features(rollout.observation), (), jnp.asarray(begins()))
    assert after == () and outputs.value.shape == (T, N)
    for t in range(T):
        np.testing.assert_allclose(outputs.value[t], agent.value(rollout.observation[t]), atol=1e-6)
        np.testing.assert_allclose(outputs.policy.logits[t], agent.policy(rollout.observation[t]).logits, atol=1e-6)


def test_the_value_of_a_successor_is_one_step_further_in_the_same_episode():
    model, (rollout, _, _) = agent_of(own_models.Recurrent).model, facts()
    memory = memory_of(model)
    values = quick_jit(evaluate)(agent_of(own_models.Recurrent), rollout, memory)
    carry, begin = memory.carry, jnp.asarray(begins())
    for t in range(T):
        start = model.start(N)
        carry = jax.tree.map(lambda a, b, t=t: jnp.where(begin[t][:, None], a, b), start, carry)
        now, carry = model.step(rollout.observation[t], carry, begin[t])
        following, _ = model.step(rollout.next_observation[t], carry, jnp.zeros(N, bool))
        np.testing.assert_allclose(values.value[t], now.value, atol=1e-5)
        np.testing.assert_allclose(values.next_value[t], following.value, atol=1e-5)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (own_models.Overlapping, "belong to two groups"),
        (own_models.Missing, "missing or belong to two groups"),
        (own_models.Unknown, "`policy` and `value`, or `shared`"),
        (own_models.WithoutStart, "without the methods prepare, start, groups"),
        (own_models.OtherCarry, "a different carry"),
        (own_models.TwoValues, r"values of shape \(2, 1\)"),
        (own_models.TooManyChoices, "the policy has 3 choices, but the space has 2"),
        (own_models.HalfPrecision, "values of dtype bfloat16"),
        (own_models.HalfLogits, "log probabilities of dtype float16"),
        (own_models.CarriesKeys, r"random keys.*key_data"),
        (partial(own_models.WithParameter, further=[1.0, jnp.nan]), r"further contains numbers that are not finite"),
        (partial(own_models.WithParameter, further=1j), r"further is complex"),
        (own_models.NoPytree, "not a pytree"),
        (lambda observation_space, action_space, *, key: 1 / 0, "could not be created: ZeroDivisionError"),
    ],
)
def test_what_is_no_model_is_refused_before_training(own: Any, words: str, tmp_path):
    with pytest.raises(UpslopeError, match=words):
        initialise_agent(jax.random.key(0), ModelSpec(*SPACES, {}, own))


@pytest.mark.parametrize(
    ("space", "policy", "words"),
    [
        (spaces.MultiDiscrete([3, 2]), MultiCategorical((Categorical(jnp.zeros((2, 2))),) * 2), "2 × 2 .* 3 × 2"),
        (spaces.MultiDiscrete([3, 2]), MultiCategorical(tuple(Categorical(jnp.zeros((2, n))) for n in (3, 2))), ""),
        (spaces.MultiBinary(3), Bernoulli(jnp.zeros((2, 3))), ""),
        (
            spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (1,)))),
            Product((Categorical(jnp.zeros((2, 4))), DiagonalGaussian(jnp.zeros((2, 1)), jnp.zeros(1)))),
            "4 × 0 .* 3 × 0",
        ),
    ],
)
def test_a_models_policy_has_the_choices_of_its_space(space: Any, policy: Any, words: str):
    class Fixed(own_models.Forgetful):
        def __init__(self, observation_space: Any, action_space: Any, *, key: Any):
            super().__init__(observation_space, spaces.Discrete(2), key=key)

        def step(self, features: Any, carry: Any, fresh: Any) -> Any:
            outputs, carry = super().step(features, carry, fresh)
            return outputs._replace(policy=policy), carry

    spec = ModelSpec(SPACES[0], head_of(space), {}, Fixed)
    if not words:
        assert initialise_agent(jax.random.key(0), spec)
        return
    with pytest.raises(UpslopeError, match=words):
        initialise_agent(jax.random.key(0), spec)


def test_every_parameter_is_in_a_group_whatever_else_a_model_holds():
    # `hidden` is a number in the shared group's module, but not a parameter.
    model = agent_of(own_models.SharedTrunk).model
    assert model.whole.hidden == 4 and group_places(model) == {"shared": list(range(len(jax.tree.leaves(model))))}
    model = agent_of(own_models.Recurrent).model
    places = group_places(model)
    assert sorted(places["policy"] + places["value"]) == list(range(len(jax.tree.leaves(model))))
    cell = model.whole.policy_cell
    assert any(leaf is cell.weight_ih for leaf in parameters_of(model, "policy"))


def test_a_model_that_reads_whole_numbers_is_tried_out_with_such(tmp_path):
    class Embedded(own_models.Forgetful):
        def __init__(self, observation_space: Any, action_space: Any, *, key: Any):
            super().__init__(spaces.Box(-1, 1, (3,)), action_space, key=key)

        def prepare(self, observation: Any) -> Any:
            return jnp.eye(3)[observation]

    agent = initialise_agent(jax.random.key(0), ModelSpec(DiscreteEncoder(3), DiscreteHead(2), {}, Embedded))
    assert agent.features(jnp.asarray([1, 2])).shape == (2, 3)


GRADIENT = {"optimiser": Optimiser("sgd", max_grad_norm=1e6), "objective": PolicyGradient()}


def step_down(own: Any, length: int | None) -> dict[str, list[np.ndarray]]:
    """Return each group's gradient, which is what one step of plain gradient descent at rate 1 subtracts."""
    agent, (rollout, credit, _) = agent_of(own), facts()
    update = plain_update(sequence_length=length, **GRADIENT)
    learner = begin_learning(update, agent)
    moved, _ = improve_once(update, learner, rollout, credit, jax.random.key(0), 1.0, memory=memory_of(agent.model))
    model, after = agent.model, moved.agent.model
    return {
        name: [np.asarray(a - b) for a, b in zip(parameters_of(model, name), parameters_of(after, name), strict=True)]
        for name in group_places(model)
    }


def losses_of(names: tuple[str, ...], length: Any, model: Any) -> dict[str, Any]:
    """Compute each group's mean loss in a plain loop, in which no gradient crosses from one sequence to the next."""
    rollout, credit, _ = facts()
    begin, memory = jnp.asarray(begins()), memory_of(model)
    carry, total = memory.carry, dict.fromkeys(names, jnp.zeros(()))
    for t in range(T):
        is_cut = t % length == 0
        carry = jax.tree.map(lambda a, is_cut=is_cut: jnp.where(is_cut, jax.lax.stop_gradient(a), a), carry)
        carry = jax.tree.map(
            lambda a, b, t=t: jnp.where(begin[t].reshape(-1, *(1,) * (a.ndim - 1)), a, b), model.start(N), carry
        )
        outputs, carry = model.step(model.prepare(rollout.observation[t]), carry, begin[t])
        policy = -credit.weight[t] * outputs.policy.log_prob(rollout.action[t])
        value = 0.5 * (outputs.value - credit.target[t]) ** 2
        loss = {"policy": policy, "value": value, "shared": policy + 0.5 * value}
        total = {name: total[name] + jnp.sum(jnp.where(rollout.valid[t], loss[name], 0.0)) for name in names}
    return {name: total[name] / jnp.sum(rollout.valid) for name in names}


@pytest.mark.parametrize(
    "own", [own_models.Recurrent, own_models.SharedTrunk, pytest.param("gru", marks=pytest.mark.weekly), "lru"]
)
def test_the_gradient_flows_through_stretches_of_l_steps_and_no_further(own: Any):
    model, found = agent_of(own).model, {}
    slopes = quick_jit(jax.jacrev(partial(losses_of, tuple(group_places(model))), argnums=1))
    cuts = (5,) if isinstance(own, str) else (4, 5, 1)
    for length in (None, *cuts):  # 5 does not divide 12, so the last sequence is padded
        found[length], expected = step_down(own, length), slopes(length or T, model)
        for name, gradients in found[length].items():
            for mine, theirs in zip(gradients, parameters_of(expected[name], name), strict=True):
                np.testing.assert_allclose(mine, theirs, atol=1e-6)
    whole = [x for gradients in found[None].values() for x in gradients]
    for length in cuts:
        cut = [x for gradients in found[length].values() for x in gradients]
        gap = max(np.abs(a - b).max(initial=0) for a, b in zip(whole, cut, strict=True))
        assert gap > 1e-3, "a cut changes the gradient"


def test_a_model_that_ignores_its_carry_has_one_gradient_at_every_length():
    alone = step_down(own_models.Memoryless, None)
    for length in (1, 3, 4, 7, 100, None):
        found = step_down(own_models.Forgetful, length)
        for name in ("policy", "value"):
            for mine, theirs in zip(found[name], alone[name], strict=True):
                np.testing.assert_allclose(mine, theirs, atol=1e-6)


SMALL: dict[str, Any] = {
    "num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 2, "sequence_length": 4, "steps": 320,
    "max_episode_steps": 11, "seeds": 2, "quiet": True, "preset": False, "model_kwargs": {"hidden": 4},
}  # fmt: skip
RUNS = {
    "compiled": ("jax:CartPole-v1", own_models.Recurrent, {}),
    "compiled shared": ("jax:CartPole-v1", own_models.SharedTrunk, {"normalize_observations": True}),
    "host": ("CartPole-v1", own_models.Recurrent, {"normalize_observations": True}),
    "host sliced": ("CartPole-v1", own_models.SharedTrunk, {"seeds": 1, "workers": 2}),
}


@pytest.fixture(scope="module")
def trained(folder):
    """Train each kind of run once, when it is first requested."""

    @cache
    def run(kind: str):
        environment, model, settings = RUNS[kind]
        return upslope.train(environment, model=model, folder=folder, name=kind, **(SMALL | settings)).path

    return run


KINDS = ["compiled", "host sliced"]  # together, these cover each model and each engine
KINDS += [pytest.param(kind, marks=pytest.mark.weekly) for kind in RUNS if kind not in KINDS]


@pytest.mark.parametrize("kind", KINDS)
def test_the_ratio_is_one_before_the_policy_moves(kind: str, folder):
    # With one epoch of one minibatch, the policy that is updated is still the one that acted, so ρ = 1 in the loss.
    environment, model, settings = RUNS[kind]
    settings = SMALL | settings | {"epochs": 1, "minibatches": 1, "steps": 160, "learning_rate": 1e-8}
    run = upslope.train(environment, model=model, folder=folder, name=f"{kind} still", **settings)
    for row in run.metrics():
        assert row["policy/effective_sample_size"] == pytest.approx(1, abs=1e-5)
        assert row["policy/clip_fraction"] == 0
        if "health/log_prob_mismatch" in row:
            assert row["health/log_prob_mismatch"] < 1e-5
    assert any("health/log_prob_mismatch" in row for row in run.metrics())


@pytest.mark.parametrize("kind", KINDS)
def test_an_own_model_stopped_and_resumed_is_uninterrupted(kind: str, trained):
    environment, model, settings = RUNS[kind]
    assert_stops_and_resumes(environment, trained(kind), model=model, **(SMALL | settings))


@pytest.mark.parametrize("kind", ["compiled", "host"])
def test_an_own_model_is_loaded_evaluated_and_recorded(kind: str, trained, tmp_path):
    path = trained(kind)
    found = upslope.evaluate(path, episodes=3)
    assert found["stochastic"].returns.shape == (2, 3)
    data = upslope.record(path, episodes=3, output=tmp_path / "data.npz")
    policy = upslope.load(path, seed=0, checkpoint="last")
    assert policy.has_memory
    # Step through the recording: the policy assigns the recorded probabilities to the recorded actions.
    with np.load(data) as recorded:
        ends = np.cumsum(recorded["length"])
        for first, last in zip(ends - recorded["length"], ends, strict=True):
            memory = start_memory(policy.agent.model, 1)
            carry, fresh = memory
            for t in range(first, last):
                observation = jnp.asarray(recorded["observation"][t : t + 1])
                distribution, carry = policy.agent.act(observation, carry, fresh)
                fresh = jnp.zeros(1, bool)
                log_prob = distribution.log_prob(jnp.asarray(recorded["action"][t : t + 1]))[0]
                assert log_prob == pytest.approx(recorded["behaviour_log_prob"][t], abs=1e-5)
        observations = recorded["observation"][: ends[0]]
    # The policy remembers earlier calls until it is reset.
    probabilities = []
    for _ in range(2):
        policy.reset()
        probabilities.append([float(policy.distribution(x[None]).log_probs()[0, 0]) for x in observations])
    assert probabilities[0] == probabilities[1]
    assert float(policy.distribution(observations[:1]).log_probs()[0, 0]) != probabilities[0][0]
    with pytest.raises(UpslopeError, match=r"remembers 1 episodes.*policy\.reset"):
        policy(observations[:2])
    with pytest.raises(UpslopeError, match="upslope credit"):
        policy.value(observations[0])


def test_recorded_episodes_teach_a_model_with_memory(trained, tmp_path):
    data = upslope.record(trained("compiled"), episodes=6, output=tmp_path / "data.npz")
    options: dict[str, Any] = {"folder": tmp_path, "quiet": True, "minibatches": 2, "sequence_length": 4}
    run = upslope.train(
        "jax:CartPole-v1", "off_policy", data=str(data), model=own_models.Recurrent, steps=200, epochs=1, **options
    )
    # The model has the teacher's architecture but not its parameters, so the ratio is not 1, but the loss is finite.
    rows = run.metrics()
    assert rows and all(np.isfinite(row["policy/loss"]) for row in rows)


@pytest.mark.parametrize("environment", ["jax:CartPole-v1", "CartPole-v1"])
def test_whole_episodes_teach_a_model_with_memory(environment: str, tmp_path):
    settings: dict[str, Any] = {"num_envs": 2, "max_episode_steps": 20, "critic_epochs": 2, "steps": 100}
    options: dict[str, Any] = {"folder": tmp_path, "quiet": True, "preset": False, "sequence_length": 8}
    run = upslope.train(environment, "reinforce_baseline", model=own_models.Recurrent, **settings, **options)
    assert all(np.isfinite(row["policy/loss"]) and np.isfinite(row["critic/loss"]) for row in run.metrics())


def test_more_minibatches_than_stretches_are_refused(tmp_path):
    settings = SMALL | {"minibatches": 8, "sequence_length": SMALL["rollout_steps"]}
    with pytest.raises(UpslopeError, match="--minibatches 8 is more than the 2 sequences"):
        upslope.train("jax:CartPole-v1", model=own_models.Recurrent, folder=tmp_path, **settings)
    settings = {name: value for name, value in settings.items() if name != "model_kwargs"}
    with pytest.raises(UpslopeError, match="--minibatches 8 is more than the 2 sequences of --sequence-length"):
        upslope.train("jax:CartPole-v1", memory="gru", folder=tmp_path / "ours", **settings)
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("environment", ["jax:CartPole-v1", "CartPole-v1"])
def test_a_sequence_longer_than_a_rollout_is_refused(environment: str, tmp_path):
    with pytest.raises(UpslopeError, match="--sequence-length 9 is more than --rollout-steps 8"):
        upslope.train(environment, memory="gru", sequence_length=9, rollout_steps=8, folder=tmp_path, preset=False)
    assert not list(tmp_path.iterdir())


def test_a_model_without_memory_may_be_a_users_own(tmp_path):
    settings = {k: v for k, v in SMALL.items() if k not in ("sequence_length", "model_kwargs")}
    run = upslope.train("CartPole-v1", model=own_models.Memoryless, folder=tmp_path, **settings)
    assert run.config.model == "own_models:Memoryless"
    policy = run.load()
    batch = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    assert policy(batch).shape == (7,) and policy.value(batch).shape == (7,)
    weight = np.asarray(policy.agent.model.whole.policy_layer.weight)
    logits = batch @ weight.T + np.asarray(policy.agent.model.whole.policy_layer.bias)
    np.testing.assert_array_equal(policy(batch), logits.argmax(axis=1))


def test_a_credit_picture_of_a_model_with_memory_has_its_probabilities(trained):
    credit = credit_of(trained("compiled"), seed=1)
    probability = credit.policy["probability"]
    assert probability.shape == (len(credit.reward), 2) and credit.value is not None
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-5)
