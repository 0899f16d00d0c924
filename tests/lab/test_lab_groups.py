"""The experiment on groups sums over kinds of groups. This sum must equal the sum over all groups of sequences."""

from itertools import product

import numpy as np
import pytest

from upslope.core.estimators import GroupMean, LeaveOneOut
from upslope.lab import groups


@pytest.fixture(scope="module")
def sequences():
    return groups.sequences_of(2, groups.a_policy())


def test_the_sequences_have_the_exact_gradient(sequences):
    exact = groups.world().policy_gradient(groups.a_policy(), 1.0, groups.LENGTH)
    begin, end = groups.begin_of(2), groups.begin_of(3)
    np.testing.assert_allclose(sequences.gradient, groups.PROMPTS * exact[begin:end].ravel(), atol=1e-12)
    assert sequences.probability.sum() == pytest.approx(1.0)
    assert len(sequences.length) == 63  # 31 sequences with an end and 32 without


@pytest.mark.parametrize("estimator", [GroupMean(2, True, "episode"), GroupMean(2, False, "batch"), LeaveOneOut(2)])
def test_kinds_give_the_same_as_all_pairs_of_sequences(sequences, estimator):
    pairs = np.array(list(product(range(len(sequences.total)), repeat=2)))
    probability = sequences.probability[pairs].prod(axis=1)
    factor = groups.factors(estimator, sequences.total[pairs], sequences.length[pairs])
    update = np.einsum("m,mi,mik->mk", np.ones(len(pairs)), factor, sequences.score[pairs])
    mean = probability @ update
    np.testing.assert_allclose(groups.expected_update(estimator, 2, sequences), mean, atol=1e-6)
    if isinstance(estimator, LeaveOneOut):
        variance = probability @ (update**2).sum(axis=1) - mean @ mean
        assert groups.variance_of_groups(2, sequences) == pytest.approx(2 * variance, rel=1e-4)


def test_a_prompt_weighs_as_its_deviation_says():
    # A group of two has deviation 1/2 if its rewards differ and 0 if they are equal, so the weight is 2 · (R − mean)
    # for every prompt.
    weight = groups.weight_of_prompt(GroupMean(2, divide_by_deviation=True), np.array([0.1, 0.5, 0.9]))
    np.testing.assert_allclose(weight, 1.0, atol=1e-6)
    # In infinitely large groups, the weight is 1/√(p (1 − p)).
    weight = groups.weight_of_prompt(GroupMean(256, divide_by_deviation=True), np.array([0.2, 0.5]))
    np.testing.assert_allclose(weight, [1 / 0.4, 1 / 0.5], rtol=0.02)
