"""Hyperparameters given to a part's constructor have the type of their field, whatever the caller passes."""
# pyright: reportArgumentType=false

from dataclasses import dataclass, make_dataclass
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import rollout_of

from upslope.core.estimators import GAE, Estimator, GroupMean, LeaveOneOut, NStep, VTrace
from upslope.core.fields import require_field_types
from upslope.core.objectives import Clip, KLPenalty, TrustRegion
from upslope.core.types import Credit, Rollout, Values
from upslope.errors import UpslopeError
from upslope.learning.bonuses.rnd import RND


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        (NStep, {"n": 2.5}, "NStep: n must be a whole number, not 2.5."),
        (NStep, {"n": True}, "n must be a whole number, not True."),
        (GAE, {"lambda_": "0.9"}, "lambda_ must be a number, not '0.9'."),
        (GAE, {"lambda_": None}, "lambda_ must be a number, not None."),
        (Clip, {"epsilon": "x"}, "Clip: epsilon must be a number, not 'x'."),
        (KLPenalty, {"target": "x"}, "target must be a number or None, not 'x'."),
        (TrustRegion, {"backtracks": 1.5}, "backtracks must be a whole number"),
        (LeaveOneOut, {"divide_by_length": "steps"}, "one of none, episode, batch, not 'steps'"),
        (GroupMean, {"divide_by_deviation": 1}, "divide_by_deviation must be True or False, not 1."),
        (RND, {"width": "wide"}, "RND: width must be a whole number, not 'wide'."),
    ],
)
def test_a_hyperparameter_of_another_type_is_refused(part, fields, message):
    # The session's type checks would refuse the call first, and they do not reach a class made here.
    unchecked = make_dataclass(part.__name__, [], bases=(part,), frozen=True)
    with pytest.raises(UpslopeError) as refused:
        unchecked(**fields)
    assert message in str(refused.value)


def test_what_fits_is_accepted():
    @dataclass
    class Fields:
        whole: int = 1
        number: float = 0.5
        sloppy: float = None  # pyright: ignore[reportAssignmentType]

    for values in ({"whole": np.int64(3)}, {"number": 1}, {"number": np.float32(0.5)}, {"number": jnp.float32(0.5)}):
        require_field_types(Fields(**values))


def test_annotations_that_cannot_be_evaluated_are_not_checked():
    @dataclass
    class Fields:
        number: float = 0.5
        other: "Nowhere" = 3  # pyright: ignore[reportUndefinedVariable]

    require_field_types(Fields(number="text"))


def test_a_users_estimator_is_checked_as_ours_are():
    @dataclass(frozen=True)
    class Own(Estimator):
        scale: float = 1.0
        needs_critic: ClassVar[bool] = False
        whole_episodes: ClassVar[bool] = False

        def __call__(self, rollout: Rollout, values: Values, gamma: float) -> Credit:
            return Credit(rollout.reward * self.scale, rollout.reward)

    assert Own(2).scale == 2
    with pytest.raises(UpslopeError, match="Own: scale must be a number, not 'large'"):
        Own("large")


def test_an_estimator_called_directly_says_what_it_lacks():
    rollout = rollout_of(jnp.ones((3, 5)))
    values = Values(jnp.zeros((3, 5)), jnp.zeros((3, 5)))
    with pytest.raises(UpslopeError, match=r"values\.log_prob is None"):
        VTrace()(rollout, values, 0.9)
    with pytest.raises(UpslopeError, match="5 columns cannot be divided into groups of 4"):
        LeaveOneOut(4)(rollout, values, 0.9)
