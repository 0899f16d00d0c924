"""Memory cells follow their formulas, and nothing is carried across the start of an episode."""

from functools import cache
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from upslope.models.build import ModelSpec
from upslope.models.choice_heads import DiscreteHead
from upslope.models.encoders import BoxEncoder
from upslope.models.memories import Cell, cell_of
from upslope.models.model import restarted, unroll
from upslope.models.recurrences import gated_over_time

T, N, D, H = 9, 4, 3, 5
MEMORIES = ("gru", "lstm", "lru")


@cache
def cell(memory: str) -> Cell:
    return cell_of(memory, D, H, jax.random.key(0), np.random.default_rng(1))


@cache
def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Draw inputs [T, N, D], and flags that mark where episodes begin."""
    generator = np.random.default_rng(2)
    return generator.standard_normal((T, N, D)).astype(np.float32), generator.random((T, N)) < 0.3


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gru_by_hand(layer: Any, x: np.ndarray, h: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Take one step of a GRU as in Cho et al. 2014, with the reset gate applied after the matrix product."""
    of_input, of_state = np.asarray(layer.weight_ih), np.asarray(layer.weight_hh)
    bias, bias_n = np.asarray(layer.bias), np.asarray(layer.bias_n)
    r, z, n = np.split(x @ of_input.T + bias, 3, axis=-1)
    hr, hz, hn = np.split(h @ of_state.T, 3, axis=-1)
    r, z = sigmoid(r + hr), sigmoid(z + hz)
    new = np.tanh(n + r * (hn + bias_n))
    h = new + z * (h - new)
    return h, h


def lstm_by_hand(layer: Any, x: np.ndarray, carry: Any) -> tuple[np.ndarray, Any]:
    """Take one step of an LSTM as in Hochreiter and Schmidhuber 1997, with a forget gate."""
    h, c = carry
    gates = x @ np.asarray(layer.weight_ih).T + h @ np.asarray(layer.weight_hh).T + np.asarray(layer.bias)
    i, f, g, o = np.split(gates, 4, axis=-1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    return h, (h, c)


def lru_by_hand(made: Any, x: np.ndarray, carry: Any) -> tuple[np.ndarray, Any]:
    """Take one step of an LRU as in Orvieto et al. 2023, equations 2 and 3, in complex numbers."""
    rate = np.exp(-np.exp(np.asarray(made.nu)) + 1j * np.exp(np.asarray(made.theta)))
    inward, outward = (np.asarray(part)[0] + 1j * np.asarray(part)[1] for part in (made.inward, made.outward))
    h = rate * (carry[0] + 1j * carry[1]) + np.sqrt(1 - np.abs(rate) ** 2) * (x @ inward.T)
    return (h @ outward.T).real + x @ np.asarray(made.skip).T, (h.real, h.imag)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_cell_over_time_is_its_formula_step_by_step_and_starts_anew_with_each_episode(memory: str):
    made: Any = cell(memory)
    x, fresh = inputs()
    start = jax.tree.map(lambda c: np.full(c.shape, 0.3, np.float32), made.start(N))
    outputs, after = made.over_time(jnp.asarray(x), start, jnp.asarray(fresh))
    carry = start
    for t in range(T):
        carry = jax.tree.map(lambda c, f=fresh[t]: np.where(f[:, None], 0, c), carry)
        if memory == "lru":
            expected, carry = lru_by_hand(made, x[t], carry)
        else:
            expected, carry = {"gru": gru_by_hand, "lstm": lstm_by_hand}[memory](made.layer, x[t], carry)
        np.testing.assert_allclose(outputs[t], expected, atol=2e-5)
        jax.tree.map(lambda c, e, t=t: np.testing.assert_allclose(c[t], e, atol=2e-5), after, carry)


@pytest.mark.parametrize("memory", ["gru", "lstm"])
def test_the_gradient_over_time_is_that_of_equinoxs_cell_in_a_plain_scan(memory: str):
    made: Any = cell(memory)
    x, fresh = (jnp.asarray(array) for array in inputs())
    start = jax.tree.map(lambda c: jnp.full(c.shape, 0.3), made.start(N))
    towards = jax.tree.map(lambda c: jnp.asarray(np.random.default_rng(5).normal(size=(T, *c.shape))), start)

    def plain(layer: Any, x: Any, carry: Any) -> Any:
        def one(carry: Any, now: Any) -> Any:
            carry = jax.tree.map(lambda c: jnp.where(now[1][:, None], 0.0, c), carry)
            carry = jax.vmap(layer)(now[0], carry)
            return carry, carry

        return jax.lax.scan(one, carry, (x, fresh))[1]

    def slope_of(after: Any) -> Any:
        return sum(
            jnp.sum(jnp.sin(a) * b) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(towards), strict=True)
        )

    def product(loss: Any) -> Any:
        """Return the loss, its gradient, and the product of its second derivatives with the parameters."""
        given = made.layer, x, start
        slope, along = jax.linearize(jax.grad(loss, argnums=(0, 1, 2)), *given)
        return loss(*given), slope, along(*given)

    found = product(lambda layer, x, carry: slope_of(gated_over_time(layer, x, carry, fresh)))
    expected = product(lambda layer, x, carry: slope_of(plain(layer, x, carry)))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("shared", [False, True])
def test_a_network_unrolled_is_the_network_step_by_step(memory: str, shared: bool):
    settings = {"hidden_sizes": (6,), "memory": memory, "memory_size": H, "shared_trunk": shared}
    model = ModelSpec(BoxEncoder((D,)), DiscreteHead(2), settings).build(jax.random.key(3))
    x, fresh = (jnp.asarray(array) for array in inputs())
    features = model.prepare(x)
    outputs, after = unroll(model, features, model.start(N), fresh)
    carry = model.start(N)
    for t in range(T):
        now, carry = model.step(model.prepare(x[t]), restarted(model, carry, fresh[t]), fresh[t])
        np.testing.assert_allclose(outputs.value[t], now.value, atol=1e-5)
        np.testing.assert_allclose(outputs.policy.logits[t], now.policy.logits, atol=1e-5)
        jax.tree.map(lambda a, b, t=t: np.testing.assert_allclose(a[t], b, atol=1e-5), after, carry)


def test_a_linear_recurrence_keeps_what_it_saw_and_starts_within_the_ring():
    made: Any = cell_of("lru", D, 64, jax.random.key(0), np.random.default_rng(0))
    sizes = np.exp(-np.exp(np.asarray(made.nu)))
    assert sizes.min() >= 0.9 and sizes.max() <= 0.999


def returns_of(model: Any) -> tuple[jax.Array, jax.Array]:
    """Compute the exact return in a small environment, and Σ p(τ) R(τ) log π(τ) with p held fixed, which has the
    same gradient.

    The environment shows a cue once, and pays mainly if the action in the last of three steps equals the cue.
    """
    exact, surrogate = jnp.float32(0), jnp.float32(0)
    for cue, *actions in product((0, 1), repeat=4):
        observation = jnp.zeros((3, 1, 1)).at[0, 0, 0].set(2.0 * cue - 1)
        fresh = jnp.zeros((3, 1), bool).at[0].set(True)
        outputs, _ = unroll(model, model.prepare(observation), model.start(1), fresh)
        log_prob = outputs.policy.log_prob(jnp.asarray(actions, jnp.int32)[:, None]).sum()
        paid = float(actions[2] == cue) + 0.3 * actions[0] - 0.2 * actions[1] * cue
        exact += 0.5 * jnp.exp(log_prob) * paid
        surrogate += 0.5 * jax.lax.stop_gradient(jnp.exp(log_prob)) * paid * log_prob
    return exact, surrogate


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_policy_gradient_through_memory_is_that_of_the_exact_return(memory: str):
    settings = {"hidden_sizes": (4,), "memory": memory, "memory_size": 3}
    model = ModelSpec(BoxEncoder((1,)), DiscreteHead(2), settings).build(jax.random.key(5))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64) * 1.5 + 0.05), model)
        leaves, structure = jax.tree.flatten(wide)
        gradient = jax.tree.leaves(jax.jit(jax.grad(lambda m: returns_of(m)[1]))(wide))
        exact = jax.jit(lambda m: returns_of(m)[0])
        generator = np.random.default_rng(0)
        for _ in range(3):
            direction = [generator.standard_normal(x.shape) for x in leaves]
            ahead, behind = (
                exact(jax.tree.unflatten(structure, [x + h * d for x, d in zip(leaves, direction, strict=True)]))
                for h in (1e-5, -1e-5)
            )
            slope = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
            assert abs(slope - float(ahead - behind) / 2e-5) < 1e-4 * max(1, abs(slope))
