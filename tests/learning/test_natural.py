"""Natural steps agree with an enumerated Fisher matrix, have the right length in KL, and do not depend on the
parametrisation."""

import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from helpers import fresh_agent, improve_once, rollout_of, same
from run_helpers import before_chunk, metrics_of

import upslope
from upslope.core.distributions import Categorical, DiagonalGaussian
from upslope.core.objectives import NaturalGradient, TrustRegion
from upslope.core.types import Credit
from upslope.errors import UpslopeError
from upslope.learning.evaluation import log_probs
from upslope.learning.natural import line_search, natural_step
from upslope.learning.update import begin_learning, plain_update
from upslope.models.model import POLICY, VALUE, parameters_of

pytestmark = pytest.mark.usefixtures("compiled_for_users")

PROBABILITY = np.asarray([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])


def logits_kl(old, new):
    return jnp.mean(Categorical(old).kl(Categorical(new)))


def enumerated_fisher(probability):
    """Compute E_s Σ_a π(a|s) ∇log π ∇log πᵀ with respect to the logits [S, A], as a matrix [S·A, S·A], in NumPy."""
    states, actions = probability.shape
    matrix = np.zeros((states * actions, states * actions))
    for s in range(states):
        for a in range(actions):
            score = np.zeros((states, actions))
            score[s] = -probability[s]
            score[s, a] += 1
            matrix += probability[s, a] / states * np.outer(score, score)
    return matrix


def test_the_fisher_product_is_that_of_the_enumerated_matrix():
    """With 6 parameters, 6 conjugate gradient iterations solve (F + 0.1 I) x = g."""
    logits = jnp.log(jnp.asarray(PROBABILITY, jnp.float32)).ravel()
    gradient = jnp.asarray([0.3, -0.1, -0.2, 0.5, -1.0, 0.5])
    objective = NaturalGradient(0.02, 0.1, 20)
    kl = lambda x: logits_kl(logits.reshape(2, 3), x.reshape(2, 3))  # noqa: E731
    step = natural_step(objective, kl, logits, gradient)
    damped = enumerated_fisher(PROBABILITY) + 0.1 * np.eye(6)
    direction = np.linalg.solve(damped, np.asarray(gradient, np.float64))
    expected = direction * np.sqrt(2 * 0.02 / (direction @ damped @ direction))
    np.testing.assert_allclose(step, expected, rtol=1e-3, atol=1e-5)


def test_the_step_of_a_gaussian_by_hand():
    """F for (μ, log σ) is diag(1/σ², 2). With σ = 2 and g = (1, 1), x = (4, ½) and ½xᵀFx = 2.25, so α = √(δ/2.25)."""
    old = DiagonalGaussian(jnp.zeros((1, 1)), jnp.full((1, 1), jnp.log(2.0)))

    def kl(x):
        return old.kl(DiagonalGaussian(x[:1, None], x[1:, None]))[0]

    step = natural_step(NaturalGradient(0.09, 0.0, 10), kl, jnp.asarray([0.0, jnp.log(2.0)]), jnp.ones(2))
    np.testing.assert_allclose(step, np.asarray([4.0, 0.5]) * 0.2, rtol=1e-4)


def test_another_parametrisation_takes_the_same_step():
    """If θ = Mφ, mapping the natural step in φ by M gives the natural step in θ. This does not hold for a gradient
    step."""
    generator = np.random.default_rng(0)
    mixing = jnp.asarray(generator.normal(size=(6, 6)) + 2 * np.eye(6), jnp.float32)
    mean, gradient = (jnp.asarray(generator.normal(size=6), jnp.float32) for _ in range(2))
    widths = jnp.linspace(-0.5, 0.5, 6)
    old = DiagonalGaussian(mean[None], widths[None])
    kl = lambda x: old.kl(DiagonalGaussian(x[None], widths[None]))[0]  # noqa: E731
    take = partial(natural_step, NaturalGradient(0.01, 0.0, 30))
    plain = take(kl, mean, gradient)
    mixed = mixing @ take(lambda x: kl(mixing @ x), jnp.linalg.solve(mixing, mean), mixing.T @ gradient)
    np.testing.assert_allclose(mixed, plain, rtol=2e-2, atol=1e-4)
    along = lambda x: x / jnp.linalg.norm(x)  # noqa: E731
    assert float(along(mixing @ mixing.T @ gradient) @ along(gradient)) < 0.95


def test_a_zero_gradient_moves_nothing():
    kl = lambda x: jnp.sum(x**2)  # noqa: E731
    assert not natural_step(NaturalGradient(damping=0.0), kl, jnp.zeros(3), jnp.zeros(3)).any()


def test_the_line_search_by_hand():
    """With L = (x − 1)², KL = x² and a step to x = 2, KL ≤ 0.9 needs 0.8ᵏ · 2 ≤ 0.949, so k = 4, the fifth length
    tried."""
    means = lambda x: ((x - 1) ** 2, x**2)  # noqa: E731
    search = lambda objective, of: [float(x) for x in line_search(objective, of, jnp.float32(0), jnp.float32(-2))]  # noqa: E731
    assert search(TrustRegion(0.9), means) == pytest.approx([0.8**4, 5, 1 - (2 * 0.8**4 - 1) ** 2])
    assert search(TrustRegion(0.9, backtracks=4), means) == [0, 4, 0]
    uphill, lost = lambda x: (x, 0 * x), lambda x: (x * jnp.nan, x)
    assert search(TrustRegion(), uphill) == search(TrustRegion(), lost) == [0, 10, 0]


EVERY_KIND = Dict(
    {"a": Discrete(3), "b": Box(-1, 1, (2,)), "c": MultiBinary(2), "d": MultiDiscrete([2, 3]), "e": Box(0, 1, (1,))}
)


@pytest.fixture(scope="module")
def moved():
    """Update a policy over every kind of action. Some rows forbid a choice, and some are padding."""
    agent = fresh_agent(jax.random.key(0), Box(-1, 1, (4,)), EVERY_KIND, hidden_sizes=(8,))
    generator = np.random.default_rng(0)
    rollout = rollout_of(np.zeros((16, 4)), valid=generator.random((16, 4)) < 0.8)
    observation = jnp.asarray(generator.normal(size=(16, 4, 4)), jnp.float32)
    policy = agent.model.step(observation.reshape(-1, 4), (), jnp.zeros(64, bool))[0].policy
    mask = np.ones((64, policy.num_choices), bool)
    mask[::2, 0] = False
    action = policy.masked(jnp.asarray(mask)).sample(jax.random.key(1)).reshape(16, 4, -1)
    rollout = rollout._replace(observation=observation, action=action, action_mask=jnp.asarray(mask).reshape(16, 4, -1))
    rollout = rollout._replace(behaviour_log_prob=log_probs(agent, rollout))
    weight = jnp.asarray(np.where(rollout.valid, generator.normal(size=(16, 4)), 0.0), jnp.float32)
    update = plain_update(objective=TrustRegion(0.02, damping=0.01), minibatches=2)
    learner = begin_learning(update, agent)
    after, metrics = improve_once(update, learner, rollout, Credit(weight, weight), jax.random.key(2), 1e-3)
    return learner, after, metrics


def test_every_kind_of_action_is_moved_within_the_region(moved):
    _, after, metrics = moved
    assert 0.005 < float(metrics["policy/kl"]) <= 0.02 * (1 + 1e-4)
    assert metrics["policy/improvement"] > 0 and 1 <= metrics["policy/line_search_steps"] < 10
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.agent.model))


def test_only_the_critic_descends_by_its_optimiser(moved):
    before, after, _ = moved
    assert same(before.optimisers[POLICY], after.optimisers[POLICY])
    assert not same(before.optimisers[VALUE], after.optimisers[VALUE])
    assert not same(parameters_of(before.agent.model, VALUE), parameters_of(after.agent.model, VALUE))


@pytest.mark.parametrize("make", [lambda: TrustRegion(0.0), lambda: NaturalGradient(damping=-1.0),
                                  lambda: NaturalGradient(conjugate_gradient_iterations=0),
                                  lambda: TrustRegion(backtracks=0)])  # fmt: skip
def test_hyperparameters_without_a_meaning_are_refused(make):
    with pytest.raises(UpslopeError, match="needs"):
        make()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shared_trunk": True}, "cannot share parameters with the critic"),
        ({"target_kl": 0.02}, "--target-kl applies only to --objective policy_gradient"),
        ({"epochs": 3}, "the critic uses --critic-epochs"),
        ({"epsilon": 0.1}, "--epsilon applies only to"),
        ({"estimator": "reward_to_go", "learning_rate": 0.1}, "--learning-rate applies only to"),
        ({"objective": "clip", "backtracks": 3}, "--backtracks applies only to --objective trust_region"),
    ],
)
def test_what_a_natural_step_does_not_read_is_refused(settings, said):
    with pytest.raises(UpslopeError, match=said):
        upslope.train("jax:CartPole-v1", "trpo", **settings)


def test_a_seed_that_was_stopped_and_resumed_alone_is_that_seed_among_others(tmp_path):
    """The run is on the host and has a memory and a normaliser. The KL divergence of every update stays within δ."""
    settings = {"num_envs": 2, "rollout_steps": 16, "minibatches": 2, "critic_epochs": 2, "hidden_sizes": (8,)}
    settings |= {"memory": "gru", "memory_size": 4, "normalize_observations": True, "delta": 0.005, "steps": 320}
    train = partial(upslope.train, "CartPole-v1", "trpo", folder=tmp_path, quiet=True, preset=False, **settings)
    among = metrics_of(train(name="both", seeds=2).path)
    kl = [row["policy/kl"] for row in among]
    assert len(kl) == 20 and 0 < max(kl) <= 0.005 * (1 + 1e-3)
    stop_here = before_chunk(4, lambda: signal.raise_signal(signal.SIGINT))
    with stop_here, pytest.raises(KeyboardInterrupt):
        train(name="alone", seed=1)
    assert 0 < len(metrics_of(tmp_path / "alone")) < 10
    resumed = metrics_of(upslope.resume(tmp_path / "alone", quiet=True).path)
    assert resumed == [row for row in among if row["seed"] == 1]
