"""Natural gradient descent of the policy. Each batch gives one step, whose size is measured as a KL divergence rather
than as a distance between parameters.

The Fisher matrix is never formed. Its product with a vector is the derivative of the mean KL's gradient along the
vector.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float

from upslope.core.objectives import NaturalGradient, TrustRegion
from upslope.core.types import Metrics
from upslope.learning.batch import Batch
from upslope.learning.blocks import blockwise
from upslope.learning.descent import Descent, Loss, minibatch_gradient
from upslope.learning.split import own_rows, own_valid, summed
from upslope.learning.vectors import concatenate_leaves

SHRINK = 0.8
"""The line search multiplies the step length by this factor after every failed try."""


def descend_naturally(
    objective: NaturalGradient, loss: Loss, start: Descent, batch: Batch, *, vmapped: bool
) -> tuple[Descent, Metrics]:
    """Move along F⁻¹∇L, where L is the mean of `loss`.

    The other values that `loss` returns must include `kl`, the KL(π_old‖π_θ) of each sample."""
    flat, unpack = ravel_pytree(start.parameters)
    rows, is_own = own_rows(batch)
    counts = own_valid(rows.valid, is_own)

    def own_means(parameters: Array) -> tuple[Array, Array]:
        """This device's part of the mean loss and of the mean KL. The latter is differentiated twice."""
        losses, distance = blockwise(lambda rows: loss(unpack(parameters), rows), rows, vmapped=vmapped)
        count = jnp.maximum(jnp.sum(batch.valid), 1)
        loss_sum, kl_sum = (jnp.sum(jnp.where(counts, x, 0.0)) for x in (losses, distance.kl))
        return loss_sum / count, kl_sum / count

    def means(parameters: Array) -> tuple[Array, Array]:
        return summed(own_means(parameters))

    def moved(parameters: Array) -> Descent:
        return start._replace(parameters=unpack(parameters))

    (before, _), gradients = minibatch_gradient(loss, start.parameters, batch, None, in_halves=not vmapped)
    gradient = concatenate_leaves(gradients)
    step = natural_step(objective, lambda parameters: own_means(parameters)[1], flat, gradient)
    metrics = {"loss": before, "gradient_norm": jnp.linalg.norm(gradient)}
    if isinstance(objective, TrustRegion):
        share, tried, gain = line_search(objective, means, flat, step)
        moved_to = jnp.where(share > 0, flat - share * step, flat)  # skip a step that is not finite
        return moved(moved_to), metrics | {"improvement": gain, "line_search_steps": tried}
    return moved(flat - step), metrics | {"improvement": means(flat)[0] - means(flat - step)[0]}


def natural_step(objective: NaturalGradient, mean_kl: Any, parameters: Array, gradient: Array) -> Float[Array, "P"]:
    """αx with (F + damping · I) x = ∇L and ½ (αx)ᵀ(F + damping · I)(αx) = δ; 0 if the gradient is 0.

    `mean_kl` returns this device's part of the mean KL if the seed is split over devices.
    """
    _, fisher_product = jax.linearize(jax.grad(mean_kl), parameters)
    product = lambda v: summed(fisher_product(v)) + objective.damping * v  # noqa: E731
    direction, _ = cg(product, gradient, maxiter=objective.conjugate_gradient_iterations)
    square = direction @ product(direction)
    return jnp.where(square > 0, jnp.sqrt(2 * objective.delta / jnp.where(square > 0, square, 1.0)), 0.0) * direction


def line_search(objective: TrustRegion, means: Any, start: Array, step: Array) -> tuple[Array, Array, Array]:
    """The first of the fractions 1, 0.8, 0.8², … of the step at which the loss falls and the KL is at most δ, or 0 if
    there is none.

    Also returns the number of fractions tried, and the decrease in the loss."""
    before = means(start)[0]

    def attempt(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tried, _, _ = state
        after, kl = means(start - SHRINK**tried * step)
        is_accepted = (after < before) & (kl <= objective.delta)
        return tried + 1, is_accepted, jnp.where(is_accepted, before - after, 0.0)

    goes_on = lambda state: ~state[1] & (state[0] < objective.backtracks)  # noqa: E731
    nothing = (jnp.float32(0), jnp.bool_(False), jnp.float32(0))
    tried, accepted, gain = jax.lax.while_loop(goes_on, attempt, nothing)
    return jnp.where(accepted, SHRINK ** (tried - 1), 0.0), tried, gain
