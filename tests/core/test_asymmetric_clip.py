"""Clipping with a larger ε above 1 than below, tested for weights of both signs."""

import jax
import jax.numpy as jnp
import pytest

from upslope.core.objectives import Clip, Sample
from upslope.errors import UpslopeError
from upslope.learning.update import policy_metrics

# Each row is (Ψ, ρ, −loss, slope of −loss in log ρ) for ε = 0.2 and ε high = 0.28.
TABLE = [
    (1.0, 0.5, 0.5, 0.5),
    (1.0, 1.25, 1.25, 1.25),
    (1.0, 1.3, 1.28, 0.0),
    (-1.0, 0.75, -0.8, 0.0),
    (-1.0, 1.25, -1.25, -1.25),
    (-1.0, 1.5, -1.5, -1.5),
]


@pytest.mark.parametrize(("weight", "ratio", "gain", "slope"), TABLE)
def test_the_gradient_at_every_corner(weight, ratio, gain, slope):
    def loss(log_prob):
        sample = Sample(log_prob, jnp.zeros(1), jnp.full(1, weight), jnp.zeros(1))
        return Clip(0.2, 0.28).loss(jnp.float32(0), sample)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.log(jnp.full(1, ratio)))
    assert (-float(value), -float(gradient[0])) == pytest.approx((gain, slope), abs=1e-5)


def test_the_clip_fraction_knows_both_bounds():
    log_prob = jnp.log(jnp.asarray([0.7, 0.85, 1.25, 1.3]))
    sample, valid = Sample(log_prob, jnp.zeros(4), jnp.ones(4), jnp.zeros(4)), jnp.ones(4, bool)
    assert float(policy_metrics(Clip(0.2, 0.28), sample, valid)["policy/clip_fraction"]) == 0.5
    assert float(policy_metrics(Clip(0.2), sample, valid)["policy/clip_fraction"]) == 0.75


def test_an_upper_bound_below_the_ratio_of_one_is_refused():
    with pytest.raises(UpslopeError, match=r"ε high > 0, not -0\.1"):
        Clip(0.2, -0.1)
