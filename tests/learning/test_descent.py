"""Gradient descent: the gradient of a product, minibatches in halves, rows in blocks, and two networks on two
devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, PartitionSpec

from upslope.learning.batch import Batch
from upslope.learning.blocks import BLOCK, in_blocks
from upslope.learning.descent import MIN_SPLIT, Descent, Plan, descend, minibatch_gradient
from upslope.learning.devices import NETWORKS, SEEDS, assign_seeds
from upslope.learning.optimisers import Optimiser
from upslope.learning.two_devices import on_two_devices
from upslope.learning.vectors import MIN_PIECEWISE_SIZE, concatenate_leaves
from upslope.models.products import linear


@pytest.mark.parametrize("leading", [(7,), (3, 5), ()])
@pytest.mark.parametrize(("inputs", "outputs"), [(4, 64), (64, 64), (64, 2), (1, 1)])
def test_the_gradient_of_a_product_is_that_of_matrix_calculus(inputs, outputs, leading):
    generator = np.random.default_rng(0)
    x, weight = generator.normal(size=(*leading, inputs)), generator.normal(size=(inputs, outputs))
    above = generator.normal(size=(*leading, outputs))
    found = jax.grad(lambda x, w: jnp.sum(linear(x, w) * above), argnums=(0, 1))(jnp.float32(x), jnp.float32(weight))
    np.testing.assert_allclose(found[0], above @ weight.T, rtol=1e-4, atol=1e-5)
    outer = np.einsum("bi,bo->io", x.reshape(-1, inputs), above.reshape(-1, outputs))
    np.testing.assert_allclose(found[1], outer, rtol=1e-4, atol=1e-5)


def test_a_descent_moves_as_the_optimiser_does_on_each_array():
    # Fit y = w x + b by least squares in two epochs of one minibatch each, and compare with optax applied to the
    # parameters' tree.
    batch, x, y, valid = batch_of(64)
    parameters = {"w": jnp.float32([[0.3]]), "b": jnp.float32([-0.2])}

    def loss(parameters, batch):
        predicted = (batch.features @ parameters["w"] + parameters["b"])[:, 0]
        return jnp.where(batch.valid, predicted - batch.target, 0.0) ** 2, None

    optimiser = optax.chain(optax.clip_by_global_norm(0.5), optax.scale_by_adam(eps=1e-5))
    plan = Plan(Optimiser(max_grad_norm=0.5), epochs=2, minibatches=1, in_halves=False)
    start = Descent(parameters, optimiser.init(ravel_pytree(parameters)[0]), jnp.bool_(False))
    moved, _ = descend(plan, loss, start, batch, jax.random.key(0), jnp.float32(0.1), None)
    expected, state = parameters, optimiser.init(parameters)
    for _ in range(2):
        error = x * float(expected["w"][0, 0]) + float(expected["b"][0]) - y
        slope_w, slope_b = (float(np.mean((2 * error * by)[valid])) for by in (x, np.ones_like(x)))
        gradient = {"w": jnp.float32([[slope_w]]), "b": jnp.float32([slope_b])}
        direction, state = optimiser.update(gradient, state)
        expected = jax.tree.map(lambda p, d: p - 0.1 * d, expected, direction)
    jax.tree.map(lambda found, known: np.testing.assert_allclose(found, known, rtol=1e-5), moved.parameters, expected)


@pytest.mark.parametrize("num_wide", [1, MIN_PIECEWISE_SIZE])
def test_parameters_end_to_end_are_where_the_optimiser_unpacks_them(num_wide):
    numbers = np.arange(7 + num_wide, dtype=np.float32)
    tree = {"b": numbers[6:7], "c": numbers[7:].reshape(1, -1), "a": numbers[:6].reshape(3, 2)}
    found = jax.jit(concatenate_leaves)(tree)
    np.testing.assert_array_equal(found, numbers)
    jax.tree.map(np.testing.assert_array_equal, ravel_pytree(tree)[1](found), tree)


def batch_of(num_samples):
    """Return samples of y = 2x + noise. Every third sample is invalid and has nan as its target."""
    generator = np.random.default_rng(1)
    x = generator.normal(size=num_samples)
    valid = np.arange(num_samples) % 3 != 0
    y = np.where(valid, 2 * x + generator.normal(size=num_samples), np.nan)
    zeros = jnp.zeros(num_samples)
    known = {
        "action": zeros,
        "behaviour_log_prob": zeros,
        "weight": zeros,
        "fresh": jnp.asarray(valid),
        "carry": (),
        "old_policy": None,
    }
    batch = Batch(jnp.float32(x)[:, None], target=jnp.float32(y), valid=jnp.asarray(valid), **known)
    return batch, x, y, valid


def squared_error(weight, batch):
    y = jnp.where(batch.valid, batch.target, 0.0)
    return (weight * batch.features[:, 0] - y) ** 2, jnp.abs(batch.features[:, 0])


@pytest.mark.parametrize("num_samples", [MIN_SPLIT - 2, MIN_SPLIT, MIN_SPLIT + 1, MIN_SPLIT + 2])
@pytest.mark.parametrize("is_chosen", [True, False])
def test_in_halves_or_whole_the_slope_is_that_of_the_mean_over_what_counts(num_samples, is_chosen):
    batch, x, y, valid = batch_of(num_samples + 500 if is_chosen else num_samples)
    chosen = np.random.default_rng(2).permutation(len(x))[:num_samples] if is_chosen else np.arange(num_samples)
    indices = jnp.asarray(chosen, jnp.int32) if is_chosen else None
    (value, size), gradient = minibatch_gradient(squared_error, jnp.float32(0.5), batch, indices)
    x, y, valid = x[chosen], y[chosen], valid[chosen]
    np.testing.assert_allclose(value, np.mean((0.5 * x[valid] - y[valid]) ** 2), rtol=1e-5)
    np.testing.assert_allclose(size, np.mean(np.abs(x[valid])), rtol=1e-5)
    np.testing.assert_allclose(gradient, np.mean(2 * x[valid] * (0.5 * x[valid] - y[valid])), rtol=1e-4)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("num_rows", [3, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_in_blocks_each_row_has_its_own_answer_at_its_place(num_rows, at_once):
    rows = {"x": np.arange(2 * num_rows).reshape(num_rows, 2), "y": np.arange(num_rows)}
    found = in_blocks(lambda r: (r["x"].sum(axis=-1), r["x"] * r["y"][:, None]), rows, at_once)
    np.testing.assert_array_equal(found[0], rows["x"].sum(axis=-1))
    np.testing.assert_array_equal(found[1], rows["x"] * rows["y"][:, None])


def test_two_devices_know_both_answers_bit_for_bit():
    # The encoding must preserve -0.0 and nan, counts beyond a float's precision, flags, scalars, and empty trees.
    def first(x):
        return {"count": jnp.int32(2**24 + 1), "odd": x, "flag": x[2] > 0, "none": {}}

    def second(x):
        return jnp.uint32(2**32 - 1), x[2] * jnp.ones((3, 2)), jnp.array([True, False])

    def both(run, x):
        return run(partial(first, x), partial(second, x))

    x = jnp.array([-0.0, jnp.nan, 1.5])
    mesh = Mesh(np.asarray(jax.devices()).reshape(1, 2), (SEEDS, NETWORKS))
    apart = jax.jit(partial(what_each_knows, mesh, partial(both, on_two_devices)))(x)
    alone = jax.jit(partial(both, lambda first, second: (first(), second())))(x)
    assert jax.tree.structure(apart) == jax.tree.structure(alone)
    for ours, theirs in zip(jax.tree.leaves(apart), jax.tree.leaves(alone), strict=True):
        assert ours.dtype == theirs.dtype
        for known in np.asarray(ours):
            assert known.tobytes() == np.asarray(theirs).tobytes()


def what_each_knows(mesh, function, x):
    """Return the function's result on every device of the mesh, [2, …]."""
    return jax.shard_map(
        lambda x: jax.tree.map(lambda y: y[None], function(x)),
        mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(NETWORKS), check_vma=False,
    )(x)  # fmt: skip


@pytest.mark.parametrize(
    ("num_seeds", "is_worth_two", "expected"),
    [
        (1, True, [(slice(0, 1), (1, 2))]),
        (1, False, [(slice(0, 1), (1, 1))]),
        (2, True, [(slice(0, 2), (2, 1))]),
        (5, True, [(slice(0, 4), (2, 1)), (slice(4, 5), (1, 2))]),
    ],
)
def test_seeds_share_two_devices_so_that_none_is_idle(num_seeds, is_worth_two, expected):
    shares = assign_seeds(num_seeds, is_worth_two)
    assert [(seeds, mesh.devices.shape) for seeds, mesh in shares] == expected
