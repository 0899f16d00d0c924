"""Estimators (axis 1) checked against hand-computed sums, RLax, a plain Python loop over episodes, and general laws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from helpers import LAWS, NUM_STEPS, SEEDS, quick_jit, rollout_of, segments, values_of, whole_episodes
from hypothesis import given
from hypothesis import strategies as st

from upslope.core.estimators import GAE, Baseline, NStep, RewardToGo, TotalReturn, UnitWeight
from upslope.errors import UpslopeError

GAMMAS = st.sampled_from([0.9, 1.0])
ESTIMATORS = (TotalReturn(), RewardToGo(), Baseline(), NStep(1), NStep(3), GAE(0.0), GAE(0.7), GAE(1.0))
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


@partial(quick_jit, static_argnums=(0, 3))
def weigh(estimator, rollout, values, gamma):
    return estimator(rollout, values, gamma)


def weights(estimator, rollout, values, gamma):
    return np.asarray(weigh(estimator, rollout, values, gamma).weight)


def episodes(rollout):
    """Yield (column, start, stop) for each run of consecutive steps in one episode."""
    terminated, truncated, valid = map(np.asarray, (rollout.terminated, rollout.truncated, rollout.valid))
    for column in range(valid.shape[1]):
        start = 0
        for t in range(len(valid)):
            is_over = terminated[t, column] or truncated[t, column]
            if not valid[t, column]:
                start = t + 1
            elif is_over or t + 1 == len(valid) or not valid[t + 1, column]:
                yield column, start, t + 1
                start = t + 1


def by_loop(rollout, values, gamma, weight):
    """Evaluate `weight(rewards, values, last)` at each step [T, N], where rewards and values start at that step.

    `last` is V of the true final observation, or 0 if the episode terminated there.
    """
    result = np.zeros(rollout.reward.shape)
    for column, start, stop in episodes(rollout):
        reward, value = (np.asarray(x, np.float64)[:, column] for x in (rollout.reward, values.value))
        last = 0.0 if rollout.terminated[stop - 1, column] else float(values.next_value[stop - 1, column])
        for t in range(start, stop):
            result[t, column] = weight(reward[t:stop], value[t:stop], last)
    return result


def n_step(reward, value, last, gamma, n):
    """Return A^n = r_0 + γ r_1 + … + γ^(n−1) r_(n−1) + γ^n V_n − V_0, where the sum stops at the episode's end."""
    n = min(n, len(reward))
    bootstrap = last if n == len(reward) else value[n]
    return sum(gamma**b * reward[b] for b in range(n)) + gamma**n * bootstrap - value[0]


def mixture(reward, value, last, gamma, lambda_):
    """Return (1−λ)(A¹ + λA² + …), where all A^n that extend beyond the last step are equal."""
    rest = len(reward)
    parts = [(1 - lambda_) * lambda_ ** (n - 1) * n_step(reward, value, last, gamma, n) for n in range(1, rest)]
    return sum(parts) + lambda_ ** (rest - 1) * n_step(reward, value, last, gamma, rest)


def constant_rewards(value, next_value=None, terminated=None):
    """Return a rollout with four steps of r = 1 in one column, and these values."""
    column = lambda x: None if x is None else np.reshape(x, (4, 1))  # noqa: E731
    return rollout_of(np.ones((4, 1)), column(terminated)), values_of(column(value), column(next_value))


def test_gae_of_constant_errors_is_a_geometric_sum():
    # V = 0, so δ = 1 in every step and A_t = (1 − (γλ)^(T−t)) / (1 − γλ) with γλ = 0.45.
    rollout, values = constant_rewards(np.zeros(4))
    close(weights(GAE(0.5), rollout, values, 0.9)[:, 0], [1.743625, 1.6525, 1.45, 1.0])


def test_gae_is_zero_where_the_critic_is_right_and_knows_when_the_world_ends():
    # With γ = 0.9, r = 1 forever is worth 10. If the episode terminates, δ_3 = 1 − 10, and earlier steps discount it by
    # γλ = 0.855 per step.
    rollout, values = constant_rewards(np.full(4, 10.0), np.full(4, 10.0))
    close(weights(GAE(0.95), rollout, values, 0.9)[:, 0], np.zeros(4))
    rollout, values = constant_rewards(np.full(4, 10.0), np.full(4, 10.0), np.arange(4) == 3)
    close(weights(GAE(0.95), rollout, values, 0.9)[:, 0], [-5.625237375, -6.579225, -7.695, -9.0])


def test_a_truncated_episode_is_bootstrapped_from_its_own_final_observation():
    # There are two episodes in a column. The first is truncated after one step with V(s_1) = 7; the second starts with
    # V = 1000.
    rollout = rollout_of([[1.0], [2.0]], truncated=[[True], [False]])
    values = values_of([[3.0], [1000.0]], [[7.0], [5.0]])
    expected = [[1 + 0.5 * 7 - 3], [2 + 0.5 * 5 - 1000]]
    for estimator in (NStep(1), NStep(5), GAE(0.0), GAE(0.9), GAE(1.0)):
        close(weights(estimator, rollout, values, 0.5), expected)


def test_the_sums_of_whole_episodes_by_hand():
    # Rewards 1, 2, 4 with γ = 1/2 give R = (1 + 1 + 1, 2 + 2, 4). The second column ends after one step.
    reward, ended = [[1.0, 8.0], [2.0, 9.0], [4.0, 9.0]], [[False, True], [False, False], [True, False]]
    rollout = rollout_of(reward, ended, valid=[[True, True], [True, False], [True, False]])
    values = values_of(np.full((3, 2), 0.5))
    close(weights(TotalReturn(), rollout, values, 0.5), [[3, 8], [3, 0], [3, 0]])
    close(weights(RewardToGo(), rollout, values, 0.5), [[3, 8], [4, 0], [4, 0]])
    close(weights(Baseline(), rollout, values, 0.5), [[2.5, 7.5], [3.5, 0], [3.5, 0]])
    close(weights(UnitWeight(), rollout, values, 0.5), [[1, 1], [1, 0], [1, 0]])


@pytest.mark.parametrize("terminating", [0.0, 0.2])
def test_advantages_and_targets_equal_rlax(terminating):
    # RLax takes a single sequence of values and encodes an end as discount 0, so it has no truncation and no padding.
    rollout, values = segments(0, terminating, truncating=0.0, padding=0.0)
    sequence = jnp.concatenate([values.value, values.next_value[-1:]])
    discount = 0.9 * ~rollout.terminated

    @quick_jit
    @partial(jax.vmap, in_axes=1, out_axes=1)
    def oracle(reward, discount, sequence):
        gae = partial(rlax.truncated_generalized_advantage_estimation, reward, discount, values=sequence)
        lambda_return = partial(rlax.lambda_returns, reward, discount, sequence[1:])
        n_step_return = partial(rlax.n_step_bootstrapped_returns, reward, discount, sequence[1:])
        lambdas, steps = (0.0, 0.7, 1.0), (1, 3, NUM_STEPS)
        return (
            {lambda_: (gae(lambda_=lambda_), lambda_return(lambda_=lambda_)) for lambda_ in lambdas},
            {n: n_step_return(n=n) for n in steps},
        )

    by_lambda, by_steps = oracle(rollout.reward, discount, sequence)
    for lambda_, (advantage, target) in by_lambda.items():
        ours = weigh(GAE(lambda_), rollout, values, 0.9)
        close(ours.weight, advantage)
        close(ours.target, target)
    for n, target in by_steps.items():
        close(weigh(NStep(n), rollout, values, 0.9).target, target)


@LAWS
@given(SEEDS, GAMMAS)
def test_n_step_and_gae_equal_a_loop_over_episodes(seed, gamma):
    rollout, values = segments(seed)
    for n in (1, 3, 100):
        expected = by_loop(rollout, values, gamma, partial(n_step, gamma=gamma, n=n))
        close(weights(NStep(n), rollout, values, gamma), expected)
    for lambda_ in (0.0, 0.7, 1.0):
        expected = by_loop(rollout, values, gamma, partial(mixture, gamma=gamma, lambda_=lambda_))
        close(weights(GAE(lambda_), rollout, values, gamma), expected)


@LAWS
@given(SEEDS, GAMMAS)
def test_returns_equal_a_loop_over_whole_episodes(seed, gamma):
    rollout, values = whole_episodes(seed)
    discounted = lambda reward: np.polyval(reward[::-1], gamma)  # noqa: E731
    to_go = by_loop(rollout, values, gamma, lambda reward, value, last: discounted(reward))
    close(weights(RewardToGo(), rollout, values, gamma), to_go)
    close(weights(TotalReturn(), rollout, values, gamma), np.where(rollout.valid, to_go[0], 0))
    above = by_loop(rollout, values, gamma, lambda reward, value, last: discounted(reward) - value[0])
    close(weights(Baseline(), rollout, values, gamma), above)


@LAWS
@given(SEEDS, GAMMAS)
def test_one_step_is_gae_0_and_all_steps_are_gae_1(seed, gamma):
    rollout, values = segments(seed)
    close(weights(NStep(1), rollout, values, gamma), weights(GAE(0.0), rollout, values, gamma))
    close(weights(NStep(NUM_STEPS), rollout, values, gamma), weights(GAE(1.0), rollout, values, gamma))


@LAWS
@given(SEEDS, GAMMAS)
def test_the_baseline_is_gae_1_where_all_episodes_terminated(seed, gamma):
    rollout, values = whole_episodes(seed, truncating=0.0)
    close(weights(Baseline(), rollout, values, gamma), weights(GAE(1.0), rollout, values, gamma))


@LAWS
@given(SEEDS)
def test_gae_is_the_geometric_mixture_of_n_steps(seed):
    rollout, values = segments(seed)
    # All A^n with n ≥ T are equal, and their shares 0.3 · 0.7^(n−1) sum to 0.7^(T−1).
    shares = [0.3 * 0.7 ** (n - 1) for n in range(1, NUM_STEPS)] + [0.7 ** (NUM_STEPS - 1)]
    advantages = [weights(NStep(n), rollout, values, 0.9) for n in range(1, NUM_STEPS + 1)]
    close(weights(GAE(0.7), rollout, values, 0.9), np.tensordot(shares, advantages, axes=1))


@LAWS
@given(SEEDS, GAMMAS)
def test_the_critic_learns_the_return_that_the_weight_compares_with_its_value(seed, gamma):
    rollout, values = whole_episodes(seed)
    for estimator in (Baseline(), NStep(3), GAE(0.7)):
        credit = weigh(estimator, rollout, values, gamma)
        close(credit.target, np.where(rollout.valid, credit.weight + values.value, 0))


@LAWS
@given(SEEDS, st.sampled_from(ESTIMATORS), st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))
def test_padding_changes_nothing(seed, estimator, garbage):
    rollout, values = whole_episodes(seed) if estimator.whole_episodes else segments(seed)
    clean = weigh(estimator, rollout, values, 0.9)
    soil = lambda x: jnp.where(rollout.valid, x, garbage)  # noqa: E731
    flags = np.random.default_rng(seed).random((2, *rollout.valid.shape)) < 0.5
    soiled = rollout._replace(
        reward=soil(rollout.reward),
        terminated=jnp.where(rollout.valid, rollout.terminated, flags[0]),
        truncated=jnp.where(rollout.valid, rollout.truncated, flags[1]),
    )
    credit = weigh(estimator, soiled, jax.tree.map(soil, values), 0.9)
    for ours, theirs in zip(credit, clean, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert not np.any(np.asarray(ours)[~np.asarray(rollout.valid)])
    larger = lambda x, fill: jnp.pad(x, ((0, 2), (0, 1)), constant_values=fill)  # noqa: E731
    facts = soiled._replace(
        reward=larger(soiled.reward, garbage),
        terminated=larger(soiled.terminated, False),
        truncated=larger(soiled.truncated, False),
        valid=larger(soiled.valid, False),
    )
    padded = weights(estimator, facts, jax.tree.map(lambda x: larger(soil(x), garbage), values), 0.9)
    close(padded, larger(clean.weight, 0.0))


@LAWS
@given(SEEDS, st.sampled_from([NStep(3), GAE(0.0), GAE(0.7), GAE(1.0), RewardToGo()]))
def test_nothing_crosses_the_end_of_an_episode(seed, estimator):
    rollout, values = segments(seed, truncating=0.3)
    is_end = np.asarray(rollout.terminated | rollout.truncated)
    is_after = np.arange(NUM_STEPS)[:, None] > is_end.argmax(axis=0)
    before = weights(estimator, rollout, values, 0.9)
    for is_other in (is_after, ~is_after):
        other = lambda x, is_other=is_other: x + jnp.where(is_other, 100.0, 0.0)  # noqa: E731
        changed = rollout._replace(reward=other(rollout.reward))
        after = weights(estimator, changed, jax.tree.map(other, values), 0.9)
        untouched = ~is_other & is_end.any(axis=0)
        np.testing.assert_array_equal(after[untouched], before[untouched])


def test_the_value_of_a_terminal_observation_is_never_looked_at():
    rollout = rollout_of([[1.0]], terminated=[[True]])
    for next_value in (1e30, np.inf, np.nan):
        close(weights(GAE(0.9), rollout, values_of([[0.25]], [[next_value]]), 0.9), [[0.75]])


@pytest.mark.parametrize("refused", [(GAE, -0.1), (GAE, 1.1), (GAE, float("nan")), (NStep, 0), (NStep, -3)])
def test_a_lambda_outside_0_and_1_and_no_steps_at_all_are_refused(refused):
    with pytest.raises(UpslopeError, match="needs"):
        refused[0](refused[1])
