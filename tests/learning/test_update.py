"""The update: which samples count, when it stops, how large its steps are, and what its metrics mean."""

import math
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import LAWS, SEEDS, actor_of, critic_of, improve_once, quick_jit, same, task_of, with_networks
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from scipy.stats import chisquare

from upslope.core.estimators import GAE, RewardToGo
from upslope.core.objectives import Clip, KLPenalty, Objective, PolicyGradient, importance_ratio
from upslope.core.types import Credit
from upslope.environments.classic.cartpole import CartPole
from upslope.environments.classic.pendulum import Pendulum
from upslope.learning.collect import collect_episodes
from upslope.learning.evaluation import evaluate
from upslope.learning.iteration import initialise, iterate_many, move, weigh
from upslope.learning.optimisers import SCHEDULES, Optimiser, Schedules
from upslope.learning.shuffle import shuffle
from upslope.learning.update import begin_learning, explained_variance, mean, plain_update, standardise

SEVERAL_STEPS = {"epochs": 2, "minibatches": 2, "target_kl": 0.5, "normalize_advantage": True}
BONUS = {"epochs": 3, "bonus": 0.5}
METRICS = {f"policy/{n}" for n in ("loss", "kl", "entropy", "clip_fraction", "effective_sample_size", "gradient_norm")}
METRICS |= {f"critic/{n}" for n in ("loss", "gradient_norm")}


@cache
def experience():
    """Return a fresh agent, whole episodes of CartPole with padding, and their credit from GAE."""
    task = task_of(CartPole(), estimator=GAE())
    state = initialise(task, 0)
    collect = quick_jit(partial(collect_episodes, CartPole(), num_envs=8, max_episode_steps=30))
    rollout = collect(state.learner.agent, jax.random.key(1))[0]
    assert 0 < int(jnp.sum(~rollout.valid)) < rollout.valid.size
    return state.learner.agent, rollout, weigh(task, state, rollout)[2]


def improved(rate=0.01, imitate=False, bonus=0.0, agent=None, rollout=None, credit=None, **changes):
    """Update the agent once on its experience. The arguments can replace the agent, the rollout or the credit."""
    update, given = plain_update(**changes), (agent, rollout, credit)
    agent, rollout, credit = (new or known for new, known in zip(given, experience(), strict=True))
    learner = begin_learning(update, agent)
    return improve_once(update, learner, rollout, credit, jax.random.key(0), rate, bonus, imitate)


def norm(tree):
    return np.linalg.norm(np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)]))


def norm_between(left, right):
    return norm(jax.tree.map(jnp.subtract, left, right))


@dataclass(frozen=True)
class RatioError(Objective):
    """An objective that climbs the policy gradient but reports |ρ − 1| as its loss."""

    def loss(self, state, sample):
        climb = -sample.weight * sample.log_prob
        return jnp.abs(importance_ratio(sample) - 1) + climb - jax.lax.stop_gradient(climb)


@pytest.mark.parametrize(("world", "estimator"), [(CartPole(), GAE()), (Pendulum(), RewardToGo())])
def test_the_ratio_is_1_in_the_first_minibatch_of_every_iteration(world, estimator):
    # This must hold even after normalisers have moved in earlier iterations, and for episodes that span iterations.
    task = task_of(
        world,
        update=plain_update(objective=RatioError(), needs_critic=estimator.needs_critic),
        normalize_observations=True,
        normalize_rewards=True,
        estimator=estimator,
        max_episode_steps=20,
    )
    five = quick_jit(lambda state: iterate_many(task, state, 5))
    state, (metrics, finished, before, after) = five(initialise(task, 3))
    agent = state.learner.agent
    assert float(agent.normaliser.num_samples) == float(after[-1]) and float(agent.reward_scale()) != 1.0
    assert np.all(after > before) and np.all(metrics["policy/kl"] > 1e-6), "the policy moved in between"
    np.testing.assert_array_less(metrics["policy/loss"], 2e-5)
    assert ("critic/loss" in metrics) == estimator.needs_critic
    # CartPole pays 1 per step. Reported returns stay in the environment's units even though rewards are normalised.
    done = np.asarray(finished.done) & isinstance(world, CartPole)
    np.testing.assert_array_equal(finished.episode_return[done], finished.length[done])


@pytest.mark.parametrize("objective", [PolicyGradient(), Clip()])
def test_every_metric_is_there_and_finite(objective):
    _, metrics = improved(objective=objective, **SEVERAL_STEPS)
    assert set(metrics) == METRICS
    assert all(map(np.isfinite, metrics.values()))
    assert metrics["policy/kl"] > 0 and 0 < metrics["policy/effective_sample_size"] < 1


def test_the_update_stops_for_good_before_the_step_that_would_start_too_far_away():
    # The first minibatch sees KL = 0 and the second a KL above the target, so only one step of ten is taken.
    stopped, _ = improved(epochs=10, target_kl=1e-9)
    once, _ = improved()
    assert same(actor_of(stopped.agent), actor_of(once.agent))
    assert same(stopped.optimisers["policy"], once.optimisers["policy"])
    # If another agent acted, the samples may be too uninformative from the start, so the policy takes no step.
    agent = opinionated()
    stopped, metrics = improved(agent=agent, epochs=10, min_effective_sample_size=0.99)
    assert metrics["policy/effective_sample_size"] < 0.99
    assert same(actor_of(stopped.agent), actor_of(agent)) and not same(critic_of(stopped.agent), critic_of(agent))


def test_policy_and_critic_leave_each_other_alone():
    plain, _ = improved(**SEVERAL_STEPS)
    more_critic, _ = improved(**SEVERAL_STEPS | {"critic_epochs": 5})
    assert same(actor_of(plain.agent), actor_of(more_critic.agent))
    assert not same(critic_of(plain.agent), critic_of(more_critic.agent))
    more_actor, _ = improved(**SEVERAL_STEPS | {"epochs": 5, "bonus": 0.1})
    assert same(critic_of(plain.agent), critic_of(more_actor.agent))
    assert not same(actor_of(plain.agent), actor_of(more_actor.agent))


def test_more_epochs_bring_the_critic_nearer_to_its_target():
    agent, rollout, credit = experience()

    def error(agent):
        return np.mean((agent.value(rollout.observation) - credit.target)[rollout.valid] ** 2)

    learner, _ = improved(**SEVERAL_STEPS)
    longer, _ = improved(**SEVERAL_STEPS | {"critic_epochs": 5})
    assert error(longer.agent) < error(learner.agent) < error(agent)


def test_the_explained_variance_is_that_of_the_critic_that_was_asked():
    agent, rollout, credit = experience()
    task = task_of(CartPole(), estimator=GAE())
    assessed = quick_jit(partial(weigh, task))(initialise(task, 0), rollout)[3]
    target, value = credit.target[rollout.valid], agent.value(rollout.observation[rollout.valid])
    expected = float(1 - np.var(target - value) / np.var(target))
    assert assessed["critic/explained_variance"] == pytest.approx(expected, abs=1e-4)


def opinionated():
    """Return a different agent from the one that acted, with a policy far from uniform."""
    agent = initialise(task_of(CartPole()), 5).learner.agent
    return with_networks(agent, jax.tree.map(lambda x: 50 * x, actor_of(agent)))


def test_the_ratio_is_over_who_acted_and_the_divergence_from_who_learned():
    _, rollout, _ = experience()
    learner, metrics = improved(agent=opinionated(), rate=0.1, **BONUS)
    policies = [agent.policy(rollout.observation[rollout.valid]) for agent in (opinionated(), learner.agent)]
    old, new = (log_softmax(np.float64(policy.logits), -1) for policy in policies)
    chosen = np.take_along_axis(new, np.asarray(rollout.action[rollout.valid])[:, None], -1)[:, 0]
    ratio = np.exp(chosen - rollout.behaviour_log_prob[rollout.valid])
    kl = np.mean(np.sum(np.exp(old) * (old - new), -1))
    assert metrics["policy/kl"] == pytest.approx(kl, rel=1e-3)
    assert metrics["policy/entropy"] == pytest.approx(-np.mean(np.sum(np.exp(new) * new, -1)), rel=1e-3)
    assert metrics["policy/clip_fraction"] == pytest.approx(np.mean(np.abs(ratio - 1) > 0.2), rel=1e-3)
    assert metrics["policy/effective_sample_size"] == pytest.approx(np.mean(ratio) ** 2 / np.mean(ratio**2), rel=1e-3)
    assert abs(np.mean(np.sum(np.exp(new) * (new - old), -1)) / kl - 1) > 0.01, "the reverse divergence differs"


def test_the_entropy_bonus_raises_the_entropy():
    _, rollout, credit = experience()
    before = np.mean(opinionated().policy(rollout.observation).entropy()[rollout.valid])
    _, metrics = improved(agent=opinionated(), credit=credit._replace(weight=jnp.zeros_like(credit.weight)), **BONUS)
    assert metrics["policy/entropy"] > before + 0.01


@pytest.mark.parametrize("garbage", [1e6, np.inf, np.nan])
def test_padding_has_no_influence_on_the_update(garbage):
    _, rollout, credit = experience()

    def soil(x):
        mask = rollout.valid.reshape(rollout.valid.shape + (1,) * (x.ndim - 2))
        return jnp.where(mask, x, jnp.asarray(garbage, x.dtype)) if x.dtype == jnp.float32 else x

    soiled = {"rollout": jax.tree.map(soil, rollout), "credit": Credit(*map(soil, credit))}
    assert same(*(improved(objective=Clip(), **given, **SEVERAL_STEPS) for given in ({}, soiled)))


def test_an_update_by_padding_alone_does_not_move():
    agent, rollout, _ = experience()
    nothing = rollout._replace(valid=rollout.valid & False)
    assert same(improved(rollout=nothing, objective=Clip(), **SEVERAL_STEPS)[0].agent, agent)


def test_the_gradient_is_clipped_to_a_global_norm():
    # Adam's step hides the scale of its input, but its first moment is 0.1 times the first gradient.
    def seen(max_grad_norm):
        learner, metrics = improved(optimiser=Optimiser(max_grad_norm=max_grad_norm))
        return optax.tree.get(learner.optimisers["policy"], "mu"), float(metrics["policy/gradient_norm"])

    free, length = seen(1e6)
    clipped, reported = seen(0.01)
    assert length > 0.05 and reported == pytest.approx(length, rel=1e-5), "the metric is the norm before clipping"
    assert norm(free) == pytest.approx(0.1 * length, rel=1e-4)
    assert norm(clipped) == pytest.approx(0.1 * 0.01, rel=1e-4)
    assert norm_between(clipped, jax.tree.map(lambda g: g * 0.01 / length, free)) < 1e-6, "the direction stays"


def test_the_learning_rate_falls_linearly_to_zero_at_the_budget():
    task = task_of(CartPole(), schedules=Schedules(SCHEDULES["linear"]), steps=1000)
    _, rollout, credit = experience()
    start = initialise(task, 0)
    move_once = quick_jit(lambda steps: move(task, start._replace(steps=steps), rollout, credit, jax.random.key(0))[0])

    def distances(steps):
        agent, before = move_once(jnp.uint32(steps)).learner.agent, start.learner.agent
        return np.array([norm_between(part(agent), part(before)) for part in (actor_of, critic_of)])

    for steps, share in ((250, 0.75), (500, 0.5), (1000, 0.0), (1500, 0.0)):
        np.testing.assert_allclose(distances(steps), share * distances(0), rtol=1e-3, atol=1e-7)


def test_beta_follows_the_divergence_of_the_update_but_not_while_imitating():
    objective = KLPenalty(beta=3.0, target=1e-9)
    learner, metrics = improved(objective=objective)
    assert metrics["policy/kl"] > 1.5e-9 and all(map(np.isfinite, metrics.values()))
    assert metrics["objective/beta"] == 3.0 and learner.objective == 6.0
    imitating, _ = improved(objective=objective, imitate=True)
    assert imitating.objective == 3.0
    # Imitating means climbing log π of the recorded actions, each with a weight of 1.
    credit = experience()[2]
    cloned, _ = improved(credit=credit._replace(weight=jnp.ones_like(credit.weight)))
    assert (
        norm_between(actor_of(imitating.agent), actor_of(cloned.agent))
        < 1e-5
        < norm_between(actor_of(cloned.agent), actor_of(learner.agent))
    )


@LAWS
@given(SEEDS, st.sampled_from([1, 2, 7, 1000]))
def test_shuffle_is_a_permutation(seed, n):
    np.testing.assert_array_equal(np.sort(shuffle(jax.random.key(seed), n)), np.arange(n))


def test_shuffle_makes_every_order_and_so_every_index_in_every_place_equally_likely():
    keys = jax.random.split(jax.random.key(0), 48_000)
    orders = np.asarray(jax.jit(jax.vmap(partial(shuffle, n=4), in_axes=0))(keys))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    # Each of the 24 orders should occur 2,000 times, with a standard deviation of √(48000 · 1/24 · 23/24) = 44.
    assert np.max(np.abs(counts - 2000)) < 4.5 * 44


@pytest.mark.parametrize("n", [5, 7])
def test_the_orders_of_a_few_numbers_are_even(n):
    keys = jax.random.split(jax.random.key(1), 200_000)
    orders = np.asarray(jax.jit(jax.vmap(partial(shuffle, n=n)))(keys))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == math.factorial(n)
    assert chisquare(counts).pvalue > 1e-3


def test_places_and_neighbours_of_a_long_shuffle_are_even():
    n = 1000  # not a power of two, so some numbers are enciphered more than once
    keys = jax.random.split(jax.random.key(2), 2000)
    orders = np.asarray(jax.jit(jax.vmap(partial(shuffle, n=n)))(keys))
    first_quarter = np.bincount(orders[:, : n // 4].ravel(), minlength=n)
    # Quarters are drawn without replacement, so each count has variance 2000 · ¼ · ¾.
    assert abs(np.std(first_quarter) / np.sqrt(2000 * 0.25 * 0.75) - 1) < 0.1
    steps = np.bincount((np.diff(orders, axis=1) % n).ravel(), minlength=n)[1:]
    assert chisquare(steps).pvalue > 1e-3


def test_statistics_over_the_valid_samples_by_hand():
    valid = jnp.asarray([True, True, True, False])
    x = jnp.asarray([1.0, 2.0, 6.0, jnp.nan])
    assert mean(x, valid) == 3.0
    # Deviations −2, −1, 3: the variance is 14/3.
    np.testing.assert_allclose(standardise(x, valid), np.array([-2, -1, 3, 0]) / np.sqrt(14 / 3), rtol=1e-6)
    np.testing.assert_array_equal(standardise(jnp.full(4, 5.0), valid), 0)
    # V = (1, 1, 4) leaves residuals of 0, 1, 2: 1 − (2/3)/(14/3) = 6/7. A constant offset does not count as an error.
    value = jnp.asarray([1.0, 1.0, 4.0, 9.0])
    assert explained_variance(value, x, valid) == pytest.approx(6 / 7, rel=1e-5)
    assert explained_variance(value + 10, x, valid) == pytest.approx(6 / 7, rel=1e-5)
    assert explained_variance(x, x, valid) == 1.0
    assert explained_variance(jnp.zeros(4), x, valid) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("ends", [0, 3, 200])
def test_successors_have_the_critics_value_wherever_they_come_from(ends):
    """Successors that differ from the next observation may be few, many, or absent except in the last row."""
    generator = np.random.default_rng(ends)
    agent, rollout, _ = experience()
    observation = jnp.asarray(generator.standard_normal((64, 8, 4)), jnp.float32)
    successor = jnp.concatenate([observation[1:], observation[:1] + 9.0]).reshape(-1, 4)
    rows = generator.permutation(len(successor))[:ends]
    successor = successor.at[rows].add(generator.standard_normal((ends, 4)).astype(np.float32)).reshape(64, 8, 4)
    values = jax.jit(evaluate)(agent, rollout._replace(observation=observation, next_observation=successor))
    np.testing.assert_allclose(values.value, agent.value(observation), atol=1e-6)
    np.testing.assert_allclose(values.next_value, agent.value(successor), atol=1e-6)
