"""Estimators and objectives refuse inputs from which they would compute other numbers without an error."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import rollout_of

from upslope.core.estimators import GAE, Baseline, NStep, RewardToGo
from upslope.core.objectives import Clip, PolicyGradient, Sample
from upslope.core.types import Values
from upslope.errors import UpslopeError

ROLLOUT = rollout_of(np.ones((4, 2), np.float32))
ZEROS = Values(jnp.zeros((4, 2)), jnp.zeros((4, 2)))


@pytest.mark.parametrize("estimator", [RewardToGo(), GAE(), NStep(3)])
@pytest.mark.parametrize("flag", ["terminated", "truncated", "valid"])
@pytest.mark.parametrize("dtype", [np.int8, np.float32])
def test_flags_that_are_numbers_are_refused(estimator, flag, dtype):
    rollout = ROLLOUT._replace(**{flag: np.asarray(getattr(ROLLOUT, flag)).astype(dtype)})
    with pytest.raises(UpslopeError, match=rf"rollout\.{flag} must be booleans, not {np.dtype(dtype)}"):
        estimator(rollout, ZEROS, 0.9)


@pytest.mark.parametrize(
    ("rollout", "values", "gamma", "message"),
    [
        (ROLLOUT, Values(jnp.zeros(4), jnp.zeros((4, 2))), 0.9, r"values\.value must have the axes \[T, N\]"),
        (ROLLOUT, Values(jnp.zeros((4, 1)), jnp.zeros((4, 2))), 0.9, r"\(4, 1\), but rollout\.reward has \(4, 2\)"),
        (ROLLOUT, Values(jnp.zeros((4, 2)), jnp.zeros((3, 2))), 0.9, r"values\.next_value has the shape \(3, 2\)"),
        (ROLLOUT, None, 0.9, r"values\.value must be an array \[T, N\], not NoneType"),
        (ROLLOUT, ZEROS, "0.9", r"gamma must be a number, not '0\.9'"),
        (ROLLOUT._replace(reward=[[1.0]]), ZEROS, 0.9, r"rollout\.reward must be an array \[T, N\], not list"),
        (ROLLOUT._replace(reward=np.ones((0, 2))), ZEROS, 0.9, "at least one row"),
        (ROLLOUT._replace(valid=np.ones((4, 1), bool)), ZEROS, 0.9, r"rollout\.valid has the shape \(4, 1\)"),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_refused(rollout, values, gamma, message):
    with pytest.raises(UpslopeError, match=message):
        Baseline()(rollout, values, gamma)


@pytest.mark.parametrize("objective", [PolicyGradient(), Clip()])
def test_samples_that_would_be_combined_with_each_other_are_refused(objective):
    rows, column = jnp.zeros(3), jnp.zeros((3, 1))
    with pytest.raises(UpslopeError, match=r"behaviour_log_prob \(3, 1\), weight \(3,\)"):
        objective.loss(jnp.float32(0.0), Sample(rows, column, rows, rows))
