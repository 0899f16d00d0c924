"""Group estimators checked by hand, and their expected gradients checked by enumerating all groups."""

import itertools

import jax
import numpy as np
import pytest
from helpers import rollout_of

from upslope.core.estimators import GroupMean, LeaveOneOut
from upslope.core.types import Values
from upslope.errors import UpslopeError
from upslope.learning.iteration import equal_groups

close = lambda found, expected: np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)  # noqa: E731


def episodes(returns, lengths):
    """Return one episode per column, with these lengths; the last step's reward is the episode's return."""
    step, last = np.arange(max(lengths))[:, None], np.asarray(lengths) - 1
    return rollout_of(np.where(step == last, returns, 0.0), terminated=step == last, valid=step <= last)


def weigh(estimator, returns, lengths):
    """Return each step's weight [T, N] in the loss, which is a mean over the steps of the batch."""
    rollout = episodes(returns, lengths)
    found = np.asarray(estimator(rollout, Values(rollout.reward, rollout.reward), 1.0).weight, np.float64)
    assert not found[~np.asarray(rollout.valid)].any()
    return found / sum(lengths)


RETURNS, LENGTHS = [1.0, 0.0, 0.0, 3.0], [1, 2, 2, 3]


def test_each_episode_is_compared_with_the_others_of_its_group():
    # Groups (1, 0) and (0, 3): 1 − 0, 0 − 1, 0 − 3, 3 − 0, each with weight ¼ in the mean over episodes.
    close(weigh(LeaveOneOut(2), RETURNS, LENGTHS)[0], np.array([1, -1, -3, 3]) / 4)
    # One group of four: the means of the other three episodes are 1, 4/3, 4/3, 1/3.
    close(weigh(LeaveOneOut(4), RETURNS, LENGTHS)[0], np.array([0, -4 / 3, -4 / 3, 8 / 3]) / 4)
    close(weigh(GroupMean(4), RETURNS, LENGTHS)[0], np.array([0, -1, -1, 2]) / 4)


@pytest.mark.parametrize(
    ("division", "expected"),
    [
        ("none", np.array([0, -1, -1, 2]) / 4),
        ("episode", np.array([0, -1 / 2, -1 / 2, 2 / 3]) / 4),
        ("batch", np.array([0, -1, -1, 2]) / 8),
    ],
)
def test_the_length_divides_an_episode_by_itself_or_all_together(division, expected):
    for estimator, factor in ((GroupMean(4, divide_by_length=division), 1), (LeaveOneOut(4, division), 4 / 3)):
        found = weigh(estimator, RETURNS, LENGTHS)
        close(found[0], factor * expected)
        close(found[2, 3], factor * expected[3])  # all steps of an episode have the same weight


def test_the_deviation_is_that_of_the_group_and_equal_returns_weigh_nothing():
    # (1, 0): mean and deviation are 1/2. (0.1, 0.1): the deviation is 0, and rounding must not cause nonzero weights.
    returns, lengths = [1.0, 0.0, 0.1, 0.1], [1, 2, 3, 2]
    close(weigh(GroupMean(2, divide_by_deviation=True), returns, lengths)[0], [1 / 4, -1 / 4, 0, 0])
    skipping = GroupMean(2, divide_by_deviation=True, skip_equal_groups=True)
    close(weigh(skipping, returns, lengths)[0], [1 / 2, -1 / 2, 0, 0])  # the mean over two episodes instead of four
    by_steps = GroupMean(2, divide_by_deviation=True, divide_by_length="batch", skip_equal_groups=True)
    close(weigh(by_steps, returns, lengths)[0], [1 / 3, -1 / 3, 0, 0])  # and over their three steps
    assert not weigh(skipping, [2.0] * 4, lengths).any()


def test_fields_that_mean_nothing_are_refused():
    with pytest.raises(UpslopeError, match="at least 2 episodes, not 1"):
        LeaveOneOut(1)
    with pytest.raises(UpslopeError, match="0"):
        GroupMean(0)


# This policy continues with probability p₁ and then with p₂. SCORE is ∇log π of its three sequences with respect to
# the logits.
P1, P2 = 0.3, 0.6
PROBABILITY = np.array([1 - P1, P1 * (1 - P2), P1 * P2])
SCORE = np.array([[-P1, 0.0], [1 - P1, -P2], [1 - P1, 1 - P2]])
RETURN, LENGTH = np.array([1.0, 0.0, 0.5]), np.array([1, 2, 2])
# J = 1 − p₁ + p₁ p₂ / 2, so ∂J/∂logit₁ = p₁ (1 − p₁) (p₂/2 − 1) and ∂J/∂logit₂ = p₁ p₂ (1 − p₂) / 2.
GRADIENT = np.array([P1 * (1 - P1) * (P2 / 2 - 1), P1 * P2 * (1 - P2) / 2])
GROUPS = np.array(list(itertools.product(range(3), repeat=3)))


def expected_gradient(estimator):
    """Sum P(group) · (gradient of a batch with only this group) over all 27 groups of three episodes."""

    def one(reward, terminated, valid):
        rollout = rollout_of(reward, terminated, valid=valid)
        return estimator(rollout, Values(rollout.reward, rollout.reward), 1.0).weight[0] / valid.sum()

    step, last = np.arange(2)[:, None], LENGTH[GROUPS][:, None, :] - 1
    reward = np.where(step == last, RETURN[GROUPS][:, None, :], 0.0)
    factor = np.asarray(jax.vmap(one)(reward, step == last, step <= last), np.float64)
    return np.einsum("m,mi,mik->k", PROBABILITY[GROUPS].prod(axis=1), factor, SCORE[GROUPS])


def by_formula(weight):
    """Compute the same sum from a published formula: `weight(returns, lengths)` [3] weights the episodes of a group."""
    rows = [(PROBABILITY[g].prod(), weight(RETURN[g], LENGTH[g]), SCORE[g]) for g in GROUPS]
    return sum(probability * factor @ score for probability, factor, score in rows)


def test_leave_one_out_is_unbiased():
    close(expected_gradient(LeaveOneOut(3)), GRADIENT)
    close(expected_gradient(GroupMean(3)), 2 / 3 * GRADIENT)


def standardised(returns):
    return (returns - returns.mean()) / returns.std() if np.ptp(returns) else np.zeros(3)


@pytest.mark.parametrize(
    ("estimator", "weight"),
    [
        (GroupMean(3, divide_by_deviation=True), lambda r, n: standardised(r) / 3),
        (GroupMean(3, divide_by_length="episode"), lambda r, n: (r - r.mean()) / n / 3),
        (GroupMean(3, divide_by_length="batch"), lambda r, n: (r - r.mean()) / n.sum()),
        (GroupMean(3, True, "episode"), lambda r, n: standardised(r) / n / 3),
        (GroupMean(3, True, "batch", True), lambda r, n: standardised(r) / n.sum()),
        (LeaveOneOut(3, "episode"), lambda r, n: (r - (r.sum() - r) / 2) / n / 3),
    ],
    ids=lambda x: repr(x) if isinstance(x, GroupMean | LeaveOneOut) else "",
)
def test_each_division_has_the_bias_of_its_formula(estimator, weight):
    found = expected_gradient(estimator)
    close(found, by_formula(weight))
    cosine = found @ GRADIENT / np.linalg.norm(found) / np.linalg.norm(GRADIENT)
    assert cosine < 1 - 1e-5  # with three distinct returns, dividing by the deviation also rotates the gradient


BATCHES = np.array(list(itertools.product(range(3), repeat=4)))
"""All 81 batches of two groups with two episodes each."""


@pytest.mark.parametrize("division", ["none", "episode"])
def test_leaving_equal_groups_out_is_drawing_until_one_differs(division):
    """DAPO's dynamic sampling draws a group again until its returns differ.

    Skipping groups with equal returns gives the same expectation, times the probability that at least one group of the
    batch is kept.
    """

    def update(chosen, estimator):
        step, last = np.arange(2)[:, None], LENGTH[chosen] - 1
        rollout = rollout_of(np.where(step == last, RETURN[chosen], 0.0), step == last, valid=step <= last)
        weight = np.asarray(estimator(rollout, Values(rollout.reward, rollout.reward), 1.0).weight, np.float64)
        return weight[0] / (LENGTH[chosen]).sum() @ SCORE[chosen]

    skipping, plain = GroupMean(2, True, division, True), GroupMean(2, True, division)
    found = sum(PROBABILITY[batch].prod() * update(batch, skipping) for batch in BATCHES)
    pairs = [pair for pair in itertools.product(range(3), repeat=2) if RETURN[pair[0]] != RETURN[pair[1]]]
    chance = [PROBABILITY[list(pair)].prod() for pair in pairs]
    drawn_again = sum(p * update(np.array(pair), plain) for p, pair in zip(chance, pairs, strict=True)) / sum(chance)
    close(found, (1 - (1 - sum(chance)) ** 2) * drawn_again)


def test_rounding_in_the_sum_of_rewards_is_no_difference_between_episodes():
    """The two episodes have the same rewards in a different order, so their 32-bit sums differ in the last bit."""
    reward = np.float32([[0.1, 0.6], [0.1, 0.1], [0.6, 0.1]])
    last = np.arange(3)[:, None] == np.full(2, 2)
    rollout = rollout_of(reward, terminated=last)
    for skips in (False, True):
        estimator = GroupMean(2, divide_by_deviation=True, skip_equal_groups=skips)
        weight = np.asarray(estimator(rollout, Values(rollout.reward, rollout.reward), 1.0).weight)
        assert not weight.any()
    assert equal_groups(rollout, 1.0, 2) == 1.0
