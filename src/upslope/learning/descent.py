"""Minimise a loss over one parameter group by gradient descent, in epochs of shuffled minibatches."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Integer, PRNGKeyArray

from upslope.core.arrays import num_bytes
from upslope.core.messages import told
from upslope.core.types import Metrics
from upslope.errors import UpslopeError
from upslope.learning.optimisers import Optimiser
from upslope.learning.shuffle import shuffle
from upslope.learning.split import num_shares, own_rows, own_valid, summed
from upslope.learning.vectors import concatenate_leaves

MAX_COPY_BYTES = 1 << 26
"""On an accelerator, a seed's batch is reordered by minibatch if it has at most this many bytes."""
MINIBATCHES_TOGETHER = 4
"""Maximum number of minibatches per iteration of the loop on an accelerator."""
MIN_SPLIT = 1024
"""A CPU core computes the gradient of a minibatch as a sum over two halves if the minibatch has at least this many
units."""


@runtime_checkable
class Units(Protocol):
    """B units from which minibatches are drawn, e.g. a `Batch`: a pytree of arrays [B, …] with the two properties
    below."""

    @property
    def weight(self) -> Float[Array, "B ..."]: ...
    @property
    def valid(self) -> Bool[Array, "B ..."]: ...


Loss = Callable[[Any, Any], tuple[Float[Array, "B ..."], Any]]
"""(parameters, units) → the loss of each sample, and other values for each sample, which are averaged."""


class Plan(NamedTuple):
    """Settings for the descent of one parameter group."""

    optimiser: Optimiser
    epochs: int
    minibatches: int
    in_halves: bool
    """Whether a large minibatch is processed in two halves."""
    together: bool = False
    """Whether an epoch's minibatches are gathered in one operation, with several minibatches per iteration of the loop.
    This is meant for accelerators."""


class Descent(NamedTuple):
    """The state of a descent."""

    parameters: Any
    """A list of arrays; within `descend`, a single vector."""
    optimiser: Any
    """The optimiser's state. The optimiser treats all parameters as one vector, so each operation runs once instead of
    once per array. This requires operations that are elementwise or use a global norm, as in Adam's chain. A user's
    chain receives a tree instead."""
    stopped: Bool[Array, ""]


def start_optimiser(optimiser: Optimiser, parameters: list[Array]) -> Any:
    """The optimiser's state before the first step."""
    return optimiser.transformation().init(parameters if optimiser.is_complete else ravel_pytree(parameters)[0])


def check_chain(optimiser: Optimiser, parameters: list[Array]) -> None:
    """Raise an error if a user's Optax chain cannot compute an update from a gradient."""

    def first_update(parameters: list[Array]) -> Any:
        chain = optimiser.transformation()
        return chain.update(parameters, chain.init(parameters), parameters)

    try:
        jax.eval_shape(first_update, parameters)
    except Exception as error:
        raise UpslopeError(
            f"The optimiser {optimiser.name} raised {told(error)} when it was called as update(gradients, state, "
            "parameters), which is all that upslope passes. Use a chain that needs nothing else: lbfgs and "
            "reduce_on_plateau, for example, also need the loss."
        ) from error


def descend(
    plan: Plan,
    loss: Loss,
    start: Descent,
    batch: Units,
    key: PRNGKeyArray,
    learning_rate: Float[Array, ""],
    must_stop: Callable[[Any], Bool[Array, ""]] | None,
    renew: Callable[[Any, PRNGKeyArray], Any] | None = None,
) -> tuple[Descent, Metrics]:
    """Minimise the mean of `loss` over epochs of shuffled, disjoint minibatches.

    `must_stop` receives the means of the other values that `loss` returns. The descent stops before the first minibatch
    for which it returns true. If the units cannot be divided evenly, each epoch omits different ones. `renew` redraws
    the random parts of the batch for each epoch.
    """
    num_units = batch.weight.shape[0]
    size = num_units // plan.minibatches
    chain = plan.optimiser.transformation()
    flat, unpack = ravel_pytree(start.parameters)

    def apply_gradient(parameters: Array, gradients: Any, state: Any) -> tuple[Array, Any, Array]:
        gradient = concatenate_leaves(gradients)
        if plan.optimiser.is_complete:
            updates, state = chain.update(gradients, state, unpack(parameters))
            return parameters + concatenate_leaves(updates), state, gradient
        update: tuple[Any, Any] = chain.update(gradient, state, parameters)
        direction, state = update
        return parameters - learning_rate * direction, state, gradient

    def move(batch: Units, descent: Descent, indices: Array | None) -> tuple[Descent, tuple[Array, Array]]:
        chosen = indices if plan.minibatches > 1 else None
        (value, means), gradients = minibatch_gradient(loss, unpack(descent.parameters), batch, chosen, plan.in_halves)
        parameters, state, gradient = apply_gradient(descent.parameters, gradients, descent.optimiser)
        after = Descent(parameters, state, jnp.bool_(False))
        if must_stop is not None:
            stopped = descent._replace(stopped=jnp.bool_(True))
            after = jax.lax.cond(must_stop(means), lambda: stopped, lambda: after)
        return after, (value, optax.tree.norm(gradient))

    def step(batch: Units, descent: Descent, indices: Array | None) -> tuple[Descent, tuple[Array, Array]]:
        if must_stop is None:
            return move(batch, descent, indices)
        skip = (jnp.float32(jnp.nan), jnp.float32(jnp.nan))
        return jax.lax.cond(descent.stopped, lambda: (descent, skip), lambda: move(batch, descent, indices))

    def epoch(descent: Descent, key: PRNGKeyArray) -> tuple[Descent, tuple[Array, Array]]:
        indices = shuffle(key, num_units)[: size * plan.minibatches].reshape(plan.minibatches, size)
        drawn = batch if renew is None else renew(batch, jax.random.fold_in(key, 1))
        if not plan.together or plan.minibatches == 1 or num_bytes(drawn) > MAX_COPY_BYTES:
            return jax.lax.scan(partial(step, drawn), descent, indices)
        shuffled = jax.tree.map(lambda x: jnp.take(x, indices, axis=0, mode="clip"), drawn)
        unroll = min(plan.minibatches, MINIBATCHES_TOGETHER)
        return jax.lax.scan(lambda descent, units: step(units, descent, None), descent, shuffled, unroll=unroll)

    flat_start = start._replace(parameters=flat)
    descent, (losses, norms) = jax.lax.scan(epoch, flat_start, jax.random.split(key, plan.epochs))
    metrics = {"loss": jnp.nanmean(losses), "gradient_norm": jnp.nanmean(norms)}
    return descent._replace(parameters=unpack(descent.parameters)), metrics


def minibatch_gradient(
    loss: Loss, parameters: Any, batch: Units, indices: Integer[Array, "M"] | None, in_halves: bool = True
) -> tuple[tuple[Float[Array, ""], Any], Any]:
    """Return the means of all values of `loss` over these units (all units if None), and the gradient of the mean loss.

    With `in_halves`, a large minibatch is summed over two halves, so that intermediate values stay in a core's cache.
    If the seed is split over devices, each device processes a share of the units, and all devices receive the sum.
    """
    if num_shares() > 1:
        num_units = batch.weight.shape[0]
        return shared_gradient(loss, parameters, batch, jnp.arange(num_units) if indices is None else indices)
    num_units = batch.weight.shape[0] if indices is None else indices.shape[0]
    num_parts = 2 if in_halves and num_units >= MIN_SPLIT and num_units % 2 == 0 else 1
    size = num_units // num_parts

    def rows(x: Any, place: slice) -> Any:
        return x[place] if indices is None else jnp.take(x, indices[place], axis=0, mode="clip")

    places = [slice(p * size, (p + 1) * size) for p in range(num_parts)]
    parts = [jax.tree.map(lambda x, place=place: rows(x, place), batch) for place in places]
    count = jnp.maximum(sum(jnp.sum(part.valid) for part in parts), 1)

    def share(parameters: Any, part: Units) -> tuple[Array, Any]:
        losses = loss(parameters, part)
        return jax.tree.map(lambda x: jnp.sum(jnp.where(part.valid, x, 0.0)) / count, losses)

    shares = [jax.value_and_grad(share, has_aux=True)(parameters, part) for part in parts]
    return jax.tree.map(lambda *x: sum(x[1:], x[0]), *shares)


def shared_gradient(
    loss: Loss, parameters: Any, batch: Units, indices: Integer[Array, "M"]
) -> tuple[tuple[Float[Array, ""], Any], Any]:
    """Like `minibatch_gradient`, with a share of the units on each device. All devices have the whole batch."""
    mine, is_own = own_rows(indices)
    part = jax.tree.map(lambda x: jnp.take(x, mine, axis=0, mode="clip"), batch)
    counts = own_valid(part.valid, is_own)
    count = jnp.maximum(jnp.sum(jnp.take(batch.valid, indices, axis=0, mode="clip")), 1)

    def share(parameters: Any) -> tuple[Array, Any]:
        return jax.tree.map(lambda x: jnp.sum(jnp.where(counts, x, 0.0)) / count, loss(parameters, part))

    return summed(jax.value_and_grad(share, has_aux=True)(parameters))
