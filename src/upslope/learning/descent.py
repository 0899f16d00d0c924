"""Descend: a network's parameters move down the gradient of a loss over epochs of shuffled minibatches."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray, Shaped

from upslope.core.distributions import Distribution
from upslope.core.types import Metrics
from upslope.learning.devices import NETWORKS
from upslope.learning.shuffle import shuffle

SPLIT_FROM = 1024
"""Samples from which the gradient of a minibatch is the sum of those of its halves, on a core."""
BLOCK = 1024
"""Samples whose numbers inside a network stay in a core's cache."""
MANY = 1 << 14
"""Parameters from which they are joined part by part."""


class Batch(NamedTuple):
    """B samples, flattened from [T, N]."""

    features: Float[Array, "B D"]
    action: Shaped[Array, "B ..."]
    behaviour_log_prob: Float[Array, "B"]
    weight: Float[Array, "B"]
    target: Float[Array, "B"]
    valid: Bool[Array, "B"]
    old_policy: Distribution


Loss = Callable[[Any, Batch], tuple[Float[Array, "B"], Any]]
"""(parameters, batch) → the loss of each sample, and more numbers a sample whose means are wanted."""


class Plan(NamedTuple):
    """How a network descends."""

    optimiser: optax.GradientTransformation
    epochs: int
    minibatches: int
    in_halves: bool
    """Whether a large minibatch goes in halves."""


class Descent(NamedTuple):
    """The state of a descent."""

    parameters: Any
    optimiser: Any
    """Of all parameters end to end in one vector, so that its arithmetic is one operation, not one for each array. It
    must treat every number alike, as Adam and a global norm do."""
    stopped: Bool[Array, ""]


def descend(
    plan: Plan,
    loss: Loss,
    start: Descent,
    batch: Batch,
    key: PRNGKeyArray,
    learning_rate: Float[Array, ""],
    must_stop: Callable[[Any], Bool[Array, ""]] | None,
) -> tuple[Descent, Metrics]:
    """Minimise the mean of `loss` over epochs of shuffled, disjoint minibatches.

    `must_stop` is asked with the means of what else the loss gives; the descent ends for good before the first
    minibatch for which it says so. Samples left over by an uneven division are others in each epoch.
    """
    num_samples = batch.weight.shape[0]
    size = num_samples // plan.minibatches
    flat, unpack = ravel_pytree(start.parameters)

    def move(descent: Descent, indices: Array) -> tuple[Descent, tuple[Array, Array]]:
        chosen = indices if plan.minibatches > 1 else None
        (value, means), slopes = slope(loss, unpack(descent.parameters), batch, chosen, plan.in_halves)
        gradient = end_to_end(slopes)
        update: tuple[Any, Any] = plan.optimiser.update(gradient, descent.optimiser)
        direction, state = update
        after = Descent(descent.parameters - learning_rate * direction, state, jnp.bool_(False))
        if must_stop is not None:
            stopped = descent._replace(stopped=jnp.bool_(True))
            after = jax.lax.cond(must_stop(means), lambda: stopped, lambda: after)
        return after, (value, optax.tree.norm(gradient))

    def step(descent: Descent, indices: Array) -> tuple[Descent, tuple[Array, Array]]:
        if must_stop is None:
            return move(descent, indices)
        skip = (jnp.float32(jnp.nan), jnp.float32(jnp.nan))
        return jax.lax.cond(descent.stopped, lambda: (descent, skip), lambda: move(descent, indices))

    def epoch(descent: Descent, key: PRNGKeyArray) -> tuple[Descent, tuple[Array, Array]]:
        indices = shuffle(key, num_samples)[: size * plan.minibatches].reshape(plan.minibatches, size)
        return jax.lax.scan(step, descent, indices)

    flat_start = start._replace(parameters=flat)
    descent, (losses, norms) = jax.lax.scan(epoch, flat_start, jax.random.split(key, plan.epochs))
    metrics = {"loss": jnp.nanmean(losses), "gradient_norm": jnp.nanmean(norms)}
    return descent._replace(parameters=unpack(descent.parameters)), metrics


def end_to_end(tree: Any) -> Float[Array, "P"]:
    """All numbers in one vector, as `ravel_pytree` has them; where they are many, part by part: XLA's concatenation on
    CPUs asks of each number which part it is from, which for a wide layer takes longer than its gradient."""
    leaves = jax.tree.leaves(tree)
    size = sum(x.size for x in leaves)
    if size < MANY:
        return ravel_pytree(tree)[0]
    vector, place = jnp.zeros(size), 0
    for x in leaves:
        vector = jax.lax.dynamic_update_slice(vector, x.ravel(), (place,))
        place += x.size
    return vector


def slope(
    loss: Loss, parameters: Any, batch: Batch, indices: Integer[Array, "M"] | None, in_halves: bool = True
) -> tuple[tuple[Float[Array, ""], Any], Any]:
    """The means of `loss` over these samples (all if None), and the gradient of the first.

    Of a large minibatch that goes `in_halves` both are sums over these: what a half computes on the way stays in a
    core's cache.
    """
    num_samples = batch.weight.shape[0] if indices is None else indices.shape[0]
    num_parts = 2 if in_halves and num_samples >= SPLIT_FROM and num_samples % 2 == 0 else 1
    size = num_samples // num_parts

    def rows(x: Array, place: slice) -> Array:
        return x[place] if indices is None else jnp.take(x, indices[place], axis=0, mode="clip")

    places = [slice(p * size, (p + 1) * size) for p in range(num_parts)]
    parts = [jax.tree.map(lambda x, place=place: rows(x, place), batch) for place in places]
    count = jnp.maximum(sum(jnp.sum(part.valid) for part in parts), 1)

    def share(parameters: Any, part: Batch) -> tuple[Array, Any]:
        losses = loss(parameters, part)
        return jax.tree.map(lambda x: jnp.sum(jnp.where(part.valid, x, 0.0)) / count, losses)

    shares = [jax.value_and_grad(share, has_aux=True)(parameters, part) for part in parts]
    return jax.tree.map(lambda *x: sum(x[1:], x[0]), *shares)


def in_blocks(function: Callable[[Any], Any], rows: Any, at_once: bool = False) -> Any:
    """`function(rows)`, of which each row's answer depends on that row alone; block after block, if not `at_once`."""
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    if at_once or num_rows <= BLOCK or num_rows % BLOCK:
        return function(rows)
    blocks = jax.tree.map(lambda x: x.reshape(-1, BLOCK, *x.shape[1:]), rows)
    return jax.tree.map(lambda x: x.reshape(num_rows, *x.shape[2:]), jax.lax.map(function, blocks))


def one_after_another(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """Both answers."""
    return first(), second()


def on_two_devices(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[Any, Any]:
    """Both answers, each computed on a device of its own along the mesh's axis `NETWORKS`, then known to both."""
    shapes = jax.eval_shape(first), jax.eval_shape(second)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    mine = jax.lax.cond(
        jax.lax.axis_index(NETWORKS) == 0, lambda: (first(), nothing[1]), lambda: (nothing[0], second())
    )
    # One message: each costs some 50 microseconds, whatever its size.
    words = [as_words(x) for x in jax.tree.leaves(mine)]
    received = jax.lax.all_gather(jnp.concatenate(words), NETWORKS)
    num_first = len(jax.tree.leaves(shapes[0]))
    leaves, place = [], 0
    for number, shape in enumerate(jax.tree.leaves(shapes)):
        leaves.append(from_words(received[int(number >= num_first), place : place + shape.size], shape))
        place += shape.size
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def as_words(x: Array) -> Array:
    """The bits of an array as a vector of 32-bit words."""
    x = x.astype(jnp.uint32) if x.dtype == jnp.bool_ else x
    return jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(-1)


def from_words(words: Array, shape: jax.ShapeDtypeStruct) -> Array:
    """The array of that shape and type again."""
    if shape.dtype == jnp.bool_:
        return words.reshape(shape.shape).astype(jnp.bool_)
    return jax.lax.bitcast_convert_type(words.reshape(shape.shape), shape.dtype)
