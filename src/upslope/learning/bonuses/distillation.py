"""A network that predicts the output of a fixed random network. Its error is large where it has not been trained, i.e.
at new states.

Source: Burda et al. (2019), Exploration by Random Network Distillation, https://arxiv.org/abs/1810.12894, section 2.2.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from upslope.core.arrays import is_shape
from upslope.core.space_parts import leaf_spaces
from upslope.learning.bonuses.bonus import Setting, valid_rows
from upslope.learning.descent import Plan
from upslope.learning.fitting import Examples, Fitted, begin_fitting, fit
from upslope.learning.optimisers import Optimiser
from upslope.models.build import networks_for
from upslope.models.normaliser import RunningStatistics
from upslope.models.readers import Reader

CLIP = 5.0
"""Normalised inputs are clipped to ±5 standard deviations (Burda et al. 2019, section 2.4)."""
OPTIMISER = Optimiser("adam", max_grad_norm=1.0)


class Distilled(NamedTuple):
    """A random network, its predictor, and the statistics that normalise the inputs of both."""

    target: Reader
    predictor: Fitted
    statistics: Any


def begin_distillation(setting: Setting, features: int, width: int, key: PRNGKeyArray) -> Distilled:
    """Create both networks. The target has one hidden layer and the predictor two."""
    keys = jax.random.split(key)
    target, predictor = (
        networks_for(setting.model, features, key, hidden_sizes=sizes, activation="relu")
        for key, sizes in zip(keys, ((width,), (width, width)), strict=True)
    )
    return Distilled(target, begin_fitting(predictor, OPTIMISER), start_statistics(target, setting))


def start_statistics(reader: Reader, setting: Setting) -> Any:
    """Empty statistics for each array that the reader reads."""
    spaces = leaf_spaces(setting.observation_space)
    empty = lambda shape, space: jax.ShapeDtypeStruct((1, *shape), jax.dtypes.canonicalize_dtype(space.dtype))  # noqa: E731
    observation = jax.tree.map(empty, setting.model.encoder.shapes, spaces, is_leaf=is_shape)
    shapes = jax.eval_shape(lambda x: reader.floating(reader.prepare(x)), observation)
    return jax.tree.map(lambda x: RunningStatistics.start(x.shape[1:]), shapes)


def floats_of(reader: Reader, observation: Any, valid: Bool[Array, "B"]) -> Any:
    """The arrays that a reader reads from B observations, as floats, with 0 in rows that are not valid."""
    return valid_rows(reader.floating(reader.prepare(observation)), valid)


def updated(statistics: Any, floats: Any, valid: Bool[Array, "B"]) -> Any:
    """The statistics updated with these rows."""
    one = lambda mine, x: mine.update(x[None], valid[None])  # noqa: E731
    return jax.tree.map(one, statistics, floats, is_leaf=lambda node: isinstance(node, RunningStatistics))


def normalised(statistics: Any, floats: Any) -> Any:
    """The rows in units of standard deviations, clipped."""
    one = lambda mine, x: jnp.clip(mine.normalise(x), -CLIP, CLIP)  # noqa: E731
    return jax.tree.map(one, statistics, floats, is_leaf=lambda node: isinstance(node, RunningStatistics))


def squared_errors(distilled: Distilled, floats: Any) -> Float[Array, "B K"]:
    """(f̂_k(s) − f_k(s))² for each of the K outputs."""
    inputs = normalised(distilled.statistics, floats)
    return (distilled.predictor.networks.of_legible(inputs) - distilled.target.of_legible(inputs)) ** 2


def distil(
    distilled: Distilled,
    floats: Any,
    valid: Bool[Array, "B"],
    key: PRNGKeyArray,
    *,
    share: float,
    epochs: int,
    minibatches: int,
    learning_rate: float,
) -> Distilled:
    """Train the predictor on a random share of the rows."""
    share_key, fit_key = jax.random.split(key)
    chosen = valid & (jax.random.uniform(share_key, valid.shape) < share)
    inputs = normalised(distilled.statistics, floats)

    def loss(predictor: Any, examples: Examples) -> Float[Array, "B"]:
        inputs, target = examples.features
        return jnp.mean((predictor.of_legible(inputs) - target) ** 2, axis=-1)

    examples = Examples((inputs, distilled.target.of_legible(inputs)), chosen.astype(jnp.float32), chosen)
    plan = Plan(OPTIMISER, epochs, min(minibatches, valid.size), in_halves=False)
    predictor, _ = fit(distilled.predictor, plan, loss, examples, fit_key, learning_rate)
    return distilled._replace(predictor=predictor)
