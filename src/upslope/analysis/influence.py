"""What a memory has kept: how strongly the policy's current output depends on each earlier observation, measured by
the gradient."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from upslope.core.types import Rollout
from upslope.models.agent import Agent
from upslope.models.composed import Composed
from upslope.models.model import has_memory, unroll

LONGEST = 256
"""Maximum number of steps examined; the rest of a longer episode is ignored."""
ROWS, ROWS_OF_IMAGES = 64, 16
"""Maximum number of decisions examined, evenly spaced. Each needs a backward pass through the episode, and these are
slow for images."""
EXACT = 4
"""Largest number of outputs differentiated one by one. If there are more, this many sums with random signs are
differentiated instead."""


class Influence(NamedTuple):
    """‖∂(outputs of the policy at t)/∂(observation at k)‖ in an episode."""

    steps: np.ndarray
    """The steps t of the decisions examined [R]."""
    size: np.ndarray
    """The norm of the gradient for each decision and each step k [R, K]; 0 where k > t."""


def influence_of(agent: Agent, rollout: Rollout) -> Influence | None:
    """The influence of each observation on later decisions of one episode [T, 1]; None without a memory.

    The outputs are a policy's logits before masking, or its means. The observation is taken as the network reads it,
    after normalisation and preparation. The norm is taken over all outputs and all numbers of the observation
    (Frobenius). It is exact for up to `EXACT` outputs, and estimated from random signs for more (Hutchinson 1989).
    """
    if not has_memory(agent.model):
        return None
    length = min(len(rollout.reward), LONGEST)
    observation = jax.tree.map(lambda x: jax.device_put(x[:length]), rollout.observation)
    features = prepared = agent.features(observation)
    if isinstance(agent.model, Composed):  # its images are bytes, so they have no gradient
        features = jax.tree.map(lambda x: x.astype(jnp.float32), features)
    leaves, structure = jax.tree.flatten(features)
    scales = [255.0 if before.dtype == jnp.uint8 else 1.0 for before in jax.tree.leaves(prepared)]
    moving = [k for k, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.floating)]
    if not moving:
        return None
    rows = ROWS if all(leaves[k].ndim <= 3 for k in moving) else ROWS_OF_IMAGES
    steps = np.unique(np.linspace(0, length - 1, rows).round().astype(int))
    fresh = jnp.zeros((length, 1), bool).at[0].set(True)

    def outputs(moved: list[Array]) -> Float[Array, "T K"]:
        inner = list(leaves)
        for k, x in zip(moving, moved, strict=True):
            inner[k] = x
        seen = jax.tree.unflatten(structure, inner)
        policy = unroll(agent.model, seen, agent.model.start(1), fresh)[0].policy
        named = [(path[-1], x) for path, x in jax.tree_util.tree_leaves_with_path(policy) if x.shape[:1] == (length,)]
        centres = [x for name, x in named if getattr(name, "name", None) in ("mean", "logits")]
        return jnp.concatenate([x.reshape(length, -1) for x in centres or [x for _, x in named]], axis=1)

    @jax.jit
    def sizes(moved: list[Array]) -> Float[Array, "R T"]:
        out, back = jax.vjp(outputs, moved)
        probes = jnp.asarray(probes_of(out.shape[1]))

        def one(row: Array) -> Float[Array, "T"]:
            """The squared gradient of one step's outputs, summed over the probes."""
            squares = jnp.zeros(length)
            for probe in probes:
                for k, x in zip(moving, back(jnp.zeros_like(out).at[row].set(probe))[0], strict=True):
                    squares += jnp.sum((scales[k] * x).reshape(length, -1) ** 2, axis=1)
            return jnp.sqrt(squares)

        return jax.lax.map(one, jnp.asarray(steps))

    found = np.array(sizes([leaves[k] for k in moving]))
    return Influence(steps, np.where(np.arange(length) <= steps[:, None], found, 0.0))


def probes_of(count: int) -> Float[np.ndarray, "P K"]:
    """Directions whose squared gradients add up to the squared Frobenius norm, exactly or on average."""
    if count <= EXACT:
        return np.eye(count, dtype=np.float32)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (EXACT, count))
    return (signs / np.sqrt(EXACT)).astype(np.float32)
