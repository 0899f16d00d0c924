"""Schulman's estimators of the KL divergence: values and mean gradients, computed as sums over all actions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upslope.core.distributions import Categorical
from upslope.core.objectives import kl_estimate

POLICY, REFERENCE = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
# By hand: KL(π‖π_ref) = 0.5 log 2.5 + 0.3 log 1.5 + 0.2 log(1/3), and ∂KL/∂logit_a = π_a (log π_a/π_ref,a − KL).
KL = 0.5 * np.log(2.5) + 0.3 * np.log(1.5) + 0.2 * np.log(1 / 3)
GRADIENT = POLICY * (np.log(POLICY / REFERENCE) - KL)


def expected(estimator):
    """Return the means over a ~ π of the estimate and of its gradient with respect to the logits for fixed a."""

    def mean(logits):
        log_prob = Categorical(logits).log_probs()
        return jnp.sum(POLICY * kl_estimate(estimator, log_prob, jnp.log(REFERENCE)))

    return jax.value_and_grad(mean)(jnp.log(POLICY))


def test_values():
    for x in (-0.7, 0.0, 0.4):  # x = log π_ref − log π
        found = [float(kl_estimate(name, jnp.float32(-1.0), jnp.float32(x - 1.0))) for name in ("k1", "k2", "k3")]
        assert found == pytest.approx([-x, x * x / 2, np.exp(x) - 1 - x], abs=1e-6)
    assert [float(expected(name)[0]) for name in ("k1", "k3")] == pytest.approx([KL, KL], abs=1e-6)
    assert float(expected("k2")[0]) == pytest.approx(POLICY @ np.log(POLICY / REFERENCE) ** 2 / 2, abs=1e-6)


def test_mean_gradients():
    # k1: E[∇log π] = 0. k2: E[log(π/π_ref) ∇log π] = ∇KL(π‖π_ref). k3: −E[π_ref/π ∇log π] = π − π_ref = ∇KL(π_ref‖π).
    for name, gradient in (("k1", np.zeros(3)), ("k2", GRADIENT), ("k3", POLICY - REFERENCE)):
        np.testing.assert_allclose(expected(name)[1], gradient, atol=1e-6)
    exact = jax.grad(lambda logits: Categorical(logits).kl(Categorical(jnp.log(REFERENCE))))(jnp.log(POLICY))
    np.testing.assert_allclose(exact, GRADIENT, atol=1e-6)
