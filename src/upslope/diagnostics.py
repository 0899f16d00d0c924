"""What a run says of its own health: metrics `health/…`, from what an update has at hand anyway.

They are taken about `POINTS` times a run, so that they cost little and the rows stay small; `upslope doctor` reads them.
A metric that means nothing in a batch (no episode ended, no bounds) is nan, and a row leaves it out. All series are
reduced together: many small reductions, each a kernel of its own, would take longer to compile than the update does.
Source: Jones (2021), Debugging RL, Without the Agonizing Pain, for most; others are named where they are computed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from upslope.agent import Agent
from upslope.estimators import ends
from upslope.objectives import Sample, importance_ratio
from upslope.spaces import BoxHead
from upslope.types import Credit, Metrics, Rollout

PREFIX = "health/"
POINTS = 200
"""How many times a run is looked at."""
TAIL = 8
"""Steps before an end over which credit is held against the return that followed."""
ROWS = 256
"""Samples enough to see whether units are saturated."""
ADAM_BETAS = (0.9, 0.999)


class Seen(NamedTuple):
    """What an update has at hand when it is done; T·N samples."""

    before: Agent
    actor: Any
    """The descent of the actor: its `parameters` after, and Adam's state."""
    critic: Any
    rollout: Rollout
    """Its rewards are in the learner's unit."""
    credit: Credit
    batch: Any
    """The same, flattened, with features and the policy before."""
    after: Sample
    """What the objective sees of the batch after the update."""


Series = dict[str, tuple[Float[Array, "T N"], Bool[Array, "T N"]]]
"""Name → (a number a step, where it counts)."""


class Moments(NamedTuple):
    """Of some series, by name."""

    mean: Metrics
    std: Metrics
    low: Metrics
    high: Metrics


class Look:
    """Takes the metrics where it is due: where the share of the budget crosses a multiple of 1/`POINTS`."""

    def __init__(self, gamma: float, needs_critic: bool, before: Float[Array, ""], after: Float[Array, ""]):
        self.gamma, self.needs_critic = gamma, needs_critic
        self.is_due = (before == 0) | (jnp.floor(before * POINTS) < jnp.floor(after * POINTS))

    def __call__(self, seen: Seen) -> Metrics:
        shapes = jax.eval_shape(self.measure, seen)
        nothing = lambda _: {name: jnp.full(x.shape, jnp.nan, x.dtype) for name, x in shapes.items()}  # noqa: E731
        found = jax.lax.cond(self.is_due, self.measure, nothing, seen)
        return {PREFIX + name: value for name, value in found.items()}

    def measure(self, seen: Seen) -> Metrics:
        """All of them."""
        rollout, credit = seen.rollout, seen.credit
        value = jnp.zeros_like(rollout.reward)
        if self.needs_critic:
            value = seen.before.critic(seen.batch.features)[..., 0].reshape(value.shape)
        following, known = returns_before_the_end(self.gamma, rollout)
        scale = seen.before.reward_scale()
        series = facts(rollout, scale) | weights(self.gamma, rollout, credit, following, known) | decisions(seen)
        pairs = {"tail_correlation": (credit.target, following, known)}
        if self.needs_critic:
            series |= {"value": (value, rollout.valid), "value_error": (value - credit.target, rollout.valid)}
            pairs |= value_pairs(rollout, credit, value)
        metrics = in_units(moments(series)) | correlations(pairs) | {"ends_together": ends_together(rollout)}
        metrics |= {"reward_scale": scale} | of_features(seen.batch.features, seen.batch.valid)
        metrics |= of_network("policy", seen.before.actor, seen.before.actor.network, seen.actor, seen.batch)
        if self.needs_critic:
            metrics |= of_network("critic", seen.before.critic, seen.before.critic, seen.critic, seen.batch)
        return metrics


def facts(rollout: Rollout, reward_scale: Float[Array, ""]) -> Series:
    """Rewards in the world's unit, how episodes end, and whether a row goes on where the row before it stopped."""
    valid, over = rollout.valid, (rollout.terminated | rollout.truncated) & rollout.valid
    axes = tuple(range(2, rollout.observation.ndim))
    follows = shifted(jnp.all(rollout.observation[1:] == rollout.next_observation[:-1], axis=axes))
    begins, goes_on = valid & shifted(over[:-1]), valid & shifted((valid & ~over)[:-1])
    return {
        "reward": (rollout.reward / reward_scale, valid),
        "reward_nonzero": (rollout.reward != 0, valid),
        "end_share": (over, valid),
        "truncated_share": (rollout.truncated & ~rollout.terminated, over),
        "broken_links": (~follows, goes_on),
        "reset_as_successor": (follows, begins),
        "zero_after_end": (rollout.reward == 0, begins),
    }


def weights(gamma: float, rollout: Rollout, credit: Credit, following: Array, known: Array) -> Series:
    """Weights and targets, held against the rewards that came before an end.

    Where an episode terminated nothing follows, so the target is the last reward; at a time limit it is more.
    """
    low, high = possible_returns(gamma, rollout)
    impossible = (credit.target < low) | (credit.target > high)
    last_only = jnp.abs(credit.target - rollout.reward)
    return {
        "weight": (credit.weight, rollout.valid),
        "target": (credit.target, rollout.valid),
        "target_impossible": (impossible, rollout.valid),
        "reward_size": (jnp.abs(rollout.reward), rollout.valid),
        "terminal_error": (last_only, rollout.terminated & rollout.valid),
        "truncation_bootstrap": (last_only, rollout.truncated & ~rollout.terminated & rollout.valid),
        "tail": (following, known),
        "tail_bias": (credit.target - following, known),
    }


def decisions(seen: Seen) -> Series:
    """What the policy did and how the update changed it. An ascent makes the mean of Ψ (ρ − 1) positive."""
    batch, valid = seen.batch, seen.rollout.valid
    log_prob = batch.old_policy.log_prob(batch.action)
    elsewhere = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), batch.old_policy)
    series = {
        "log_prob": log_prob,
        "log_prob_mismatch": jnp.abs(log_prob - batch.behaviour_log_prob),
        "surrogate_gain": batch.weight * (importance_ratio(seen.after) - 1),
        "state_dependence": batch.old_policy.kl(elsewhere),
    }
    head = seen.before.actor.head
    if isinstance(head, BoxHead) and np.isfinite([*head.low, *head.high]).all():
        outside = (batch.action < jnp.asarray(head.low)) | (batch.action > jnp.asarray(head.high))
        series["action_clipped"] = jnp.mean(outside, axis=-1, dtype=jnp.float32)
    return {name: (x.reshape(valid.shape), valid) for name, x in series.items()}


def value_pairs(rollout: Rollout, credit: Credit, value: Float[Array, "T N"]) -> dict[str, tuple[Array, Array, Array]]:
    """The critic's values against the targets at the last and the last but one step; and Ψ against target − V, which
    it is for every advantage."""
    last = rollout.terminated & rollout.valid
    before_last = jnp.concatenate([last[1:], jnp.zeros_like(last[:1])]) & ~ends(rollout)
    return {
        "terminal_correlation": (value, credit.target, last),
        "penultimate_correlation": (value, credit.target, before_last),
        "weight_agreement": (credit.weight, credit.target - value, rollout.valid),
    }


def in_units(found: Moments) -> Metrics:
    """The moments that say something, each in a unit that does not depend on the world."""
    unit = jnp.maximum(found.mean["reward_size"], 1e-8)
    plain = ("reward_nonzero", "end_share", "truncated_share", "broken_links", "reset_as_successor", "zero_after_end")
    plain += ("target_impossible", "log_prob_mismatch", "surrogate_gain", "state_dependence", "action_clipped")
    metrics = {name: found.mean[name] for name in plain if name in found.mean}
    metrics |= {f"reward_{name}": part["reward"] for name, part in found._asdict().items()}
    metrics |= {"target_mean": found.mean["target"], "target_std": found.std["target"]}
    metrics |= {"log_prob_min": found.low["log_prob"], "weight_std": found.std["weight"]}
    metrics["target_max"] = jnp.maximum(found.high["target"], -found.low["target"])
    metrics["weight_mean"] = found.mean["weight"] / nonzero(found.std["weight"])
    largest = jnp.maximum(found.high["weight"], -found.low["weight"])
    metrics["weight_max"] = largest / nonzero(found.std["weight"])
    metrics |= {name: found.mean[name] / unit for name in ("terminal_error", "truncation_bootstrap")}
    metrics["tail_bias"] = found.mean["tail_bias"] / jnp.maximum(found.std["tail"], unit)
    if "value" in found.mean:
        metrics |= {"value_mean": found.mean["value"], "value_std": found.std["value"]}
        metrics["value_bias"] = found.mean["value_error"] / nonzero(found.std["target"])
    return metrics


def possible_returns(gamma: float, rollout: Rollout) -> tuple[Array, Array]:
    """The range that a return can have if rewards stay in the range of this batch's; wider by one reward."""
    horizon = 1 / (1 - gamma) if gamma < 1 else 1e6
    lowest = jnp.min(rollout.reward, initial=jnp.inf, where=rollout.valid)
    highest = jnp.max(rollout.reward, initial=-jnp.inf, where=rollout.valid)
    size = jnp.maximum(jnp.abs(lowest), jnp.abs(highest))
    return jnp.minimum(lowest, lowest * horizon) - size, jnp.maximum(highest, highest * horizon) + size


def returns_before_the_end(gamma: float, rollout: Rollout) -> tuple[Float[Array, "T N"], Bool[Array, "T N"]]:
    """Σ γ^k r of the at most `TAIL` last steps of episodes that terminated, from the facts alone; and where they are."""
    going_on, last = ~ends(rollout), rollout.terminated & rollout.valid

    def next_row(x: Array) -> Array:
        return jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])

    def further(_: Any, found: tuple[Array, Array]) -> tuple[Array, Array]:
        following, known = found
        known = last | (going_on & next_row(known))
        return jnp.where(known, rollout.reward + gamma * jnp.where(last, 0.0, next_row(following)), 0.0), known

    start = jnp.where(last, rollout.reward, 0.0), last
    return jax.lax.fori_loop(0, TAIL - 1, further, start)


def ends_together(rollout: Rollout) -> Float[Array, ""]:
    """The probability that two ends, drawn at random, fall on the same step."""
    over = (rollout.terminated | rollout.truncated) & rollout.valid
    at_once = jnp.sum(over, axis=1).astype(jnp.float32)
    count = jnp.sum(at_once)
    return jnp.sum(at_once * (at_once - 1)) / nonzero(count * (count - 1))


def of_network(name: str, before: Any, network: Any, descent: Any, batch: Any) -> Metrics:
    """How far parameters moved, what Adam's moments tell of the gradient, and the share of silent units.

    `signal` = ‖m̂‖² / Σ v̂: 1 for a gradient that is always the same, (1 − β₁)/(1 + β₁) = 0.05 for noise alone. It is the
    gradient noise scale of McCandlish et al. (2018) from moments that are there anyway.
    """
    count, first, second = (optax.tree.get(descent.optimiser, moment) for moment in ("count", "mu", "nu"))
    first_left, second_left = (1 - jnp.float32(beta) ** count for beta in ADAM_BETAS)
    old, new, first, second = (flat(tree) for tree in (before, descent.parameters, first, second))
    sums = jnp.sum(jnp.stack([(new - old) ** 2, old**2, first**2, second]), axis=1)
    return {
        f"{name}_step": jnp.sqrt(sums[0] / nonzero(sums[1])),
        f"{name}_signal": sums[2] / first_left**2 / nonzero(sums[3] / second_left),
        f"{name}_second_moment": jnp.max(second) / second_left,
        f"{name}_saturation": saturation(network, batch.features[:ROWS], batch.valid[:ROWS]),
    }


def saturation(network: Any, features: Float[Array, "B D"], valid: Bool[Array, "B"]) -> Float[Array, ""]:
    """The share of the first layer that passes nothing on: |tanh| > 0.99, or a unit that is 0 for every sample."""
    inner = features @ network.weights[0] + network.biases[0]
    if network.activation != "tanh":
        return jnp.mean(jnp.max(inner, axis=0, initial=-jnp.inf, where=valid[:, None]) <= 0, dtype=jnp.float32)
    is_flat = jnp.mean(jnp.abs(jnp.tanh(inner)) > 0.99, axis=1, dtype=jnp.float32)
    return jnp.sum(jnp.where(valid, is_flat, 0.0)) / jnp.sum(valid)


def of_features(features: Float[Array, "B D"], valid: Bool[Array, "B"]) -> Metrics:
    """Observations as the networks see them: how far from 0, how wide, and the share that never changes."""
    rows, count = valid[:, None], jnp.maximum(jnp.sum(valid), 1)
    centre = jnp.sum(jnp.where(rows, features, 0.0), axis=0) / count
    spread = jnp.sqrt(jnp.sum(jnp.where(rows, (features - centre) ** 2, 0.0), axis=0) / count)
    return {
        "observation_mean": jnp.max(jnp.abs(centre)),
        "observation_std_min": jnp.min(spread),
        "observation_std_max": jnp.max(spread),
        "observation_max": jnp.max(jnp.abs(features), initial=0.0, where=rows),
        "observation_constant": jnp.mean(spread < 1e-6, dtype=jnp.float32),
    }


def moments(series: Series) -> Moments:
    """Mean, standard deviation, lowest and highest of every series where it counts; nan where it does so nowhere."""
    x = jnp.stack([jnp.ravel(x).astype(jnp.float32) for x, _ in series.values()])
    x, where = jax.lax.optimization_barrier((x, jnp.stack([jnp.ravel(mask) for _, mask in series.values()])))
    count = jnp.sum(where, axis=1)
    average = jnp.sum(jnp.where(where, x, 0.0), axis=1) / count
    variance = jnp.sum(jnp.where(where, (x - average[:, None]) ** 2, 0.0), axis=1) / count
    low, high = jnp.min(jnp.where(where, x, jnp.inf), axis=1), jnp.max(jnp.where(where, x, -jnp.inf), axis=1)
    return Moments(*(dict(zip(series, part, strict=True)) for part in (average, jnp.sqrt(variance), low, high)))


def correlations(pairs: dict[str, tuple[Array, Array, Array]]) -> Metrics:
    """Pearson's of every pair where it counts, nan where one of the two does not vary."""
    x, y, where = jax.lax.optimization_barrier(
        tuple(jnp.stack([jnp.ravel(pair[k]) for pair in pairs.values()]) for k in range(3))
    )
    count = jnp.sum(where, axis=1)
    average = lambda z: jnp.sum(jnp.where(where, z, 0.0), axis=1) / count  # noqa: E731
    x, y = x - average(x)[:, None], y - average(y)[:, None]
    scale = jnp.sqrt(average(x**2) * average(y**2))
    return dict(zip(pairs, average(x * y) / jnp.where(scale > 1e-10, scale, jnp.nan), strict=True))


def shifted(x: Bool[Array, "_ N"]) -> Bool[Array, "T N"]:
    """One row later; the first row is false."""
    return jnp.concatenate([jnp.zeros_like(x[:1], shape=(1, *x.shape[1:])), x])


def flat(tree: Any) -> Float[Array, "P"]:
    """All leaves in one vector."""
    return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)])


def nonzero(x: Float[Array, ""]) -> Float[Array, ""]:
    """The number, or nan for 0: by nothing nothing can be divided."""
    return jnp.where(x != 0, x, jnp.nan)
