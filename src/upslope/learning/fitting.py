"""Fit networks that are not part of an agent, with the same descent as the agent's networks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from upslope.core.types import Metrics
from upslope.learning.descent import Descent, Plan, descend, start_optimiser
from upslope.learning.optimisers import Optimiser


class Fitted(NamedTuple):
    """Networks and their optimiser's state."""

    networks: Any
    """A pytree whose float arrays are the parameters."""
    optimiser: Any


class Examples(NamedTuple):
    """B examples to which networks are fitted."""

    features: Any
    weight: Float[Array, "B"]
    """One number per example, e.g. its target or its weight."""
    valid: Bool[Array, "B"]
    """Mask of the valid examples. All others have no effect."""


def begin_fitting(networks: Any, optimiser: Optimiser) -> Fitted:
    """Prepare networks for their first step."""
    return Fitted(networks, start_optimiser(optimiser, jax.tree.leaves(networks)))


def fit(
    fitted: Fitted,
    plan: Plan,
    loss: Callable[[Any, Any], Float[Array, "B"]],
    examples: Any,
    key: PRNGKeyArray,
    learning_rate: Any,
) -> tuple[Fitted, Metrics]:
    """Minimise the mean of `loss(networks, examples)` over the valid examples."""
    leaves, structure = jax.tree.flatten(fitted.networks)
    start = Descent(leaves, fitted.optimiser, jnp.bool_(False))
    of_leaves = lambda leaves, examples: (loss(jax.tree.unflatten(structure, leaves), examples), None)  # noqa: E731
    descent, metrics = descend(plan, of_leaves, start, examples, key, jnp.float32(learning_rate), None)
    return Fitted(jax.tree.unflatten(structure, descent.parameters), descent.optimiser), metrics
