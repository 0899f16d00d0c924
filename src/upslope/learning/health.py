"""A run's health metrics `health/…`, computed from the data available after an update.

They are computed about `POINTS` times per run, so that they cost little and rows stay small. `upslope doctor` reads
them. A metric that is undefined for a batch (e.g. because no episode ended or there are no bounds) is nan, and rows
omit it. On the device, all series are reduced together to one vector, which the host converts to named metrics. Many
small reductions, each with its own kernel, would take longer to compile than the update. Source of most metrics: Jones
(2021), Debugging RL, Without the Agonizing Pain. Other sources are cited where they are used.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Shaped

from upslope.core.estimators import ends
from upslope.core.messages import PREFIX
from upslope.core.objectives import Sample, importance_ratio
from upslope.core.types import Credit, Metrics, Rollout, Successors, Values, first_columns_of, successor_of
from upslope.learning.action_effect import action_effect, late_effect
from upslope.learning.batch import in_time
from upslope.learning.devices import VMAPPED_SEEDS
from upslope.learning.evaluation import changes, differs, evaluate_with_memory, flat_rows
from upslope.learning.health_of_parts import NAMES, PARTS, has_parts, of_parts
from upslope.learning.measures import correlations, feature_statistics, prepend_false, row_sums, saturation
from upslope.models.agent import Agent, value_of
from upslope.models.head import ActionHead
from upslope.models.model import POLICY, SHARED, VALUE, Memory, has_memory

RAW = "health"
"""Name of the vector among an update's metrics."""
POINTS = 100
"""How many times per run the metrics are computed."""
TAIL = 8
"""Credit is compared with the actual return for this many steps at the end of each episode."""
ROWS = 256
"""Number of samples used to measure saturation."""
SAMPLES = 1024
"""Approximate number of samples used for all other metrics, in at least four whole columns."""
ADAM_BETAS = (0.9, 0.999)

SHARES = ("reward_nonzero", "end_share", "truncated_share", "broken_links", "reset_as_successor", "zero_after_end")
SHARES += ("still",)
SIZES = ("reward", "reward_size", "target", "weight", "terminal_error", "truncation_bootstrap", "truncation_error")
SIZES += ("tail", "tail_bias")
DECISIONS = ("log_prob", "log_prob_mismatch", "surrogate_gain", "state_dependence", "action_clipped")
SERIES = (*SHARES, *SIZES, *DECISIONS, "value", "value_bias")
"""Metrics with one number per step, summarised by mean, standard deviation, minimum and maximum."""
PAIRS = ("tail_correlation", "terminal_correlation", "penultimate_correlation", "weight_agreement")
FEATURE_STATISTICS = tuple(f"observation_{name}" for name in ("mean", "std_min", "std_max", "max", "constant"))
GROUP_STATISTICS = ("signal", "second_moment", "saturation")
OTHERS = ("reward_scale", "ends_together", "action_effect", "late_effect", *FEATURE_STATISTICS)
OTHERS += tuple(f"{network}_{name}" for network in ("policy", "critic") for name in GROUP_STATISTICS)


class UpdateData(NamedTuple):
    """The data available after an update, with T·N samples."""

    values: Values
    """The critic's values before the update, [T, C], for only the first columns; 0 without a critic."""
    reward_scale: Float[Array, ""]
    model: Any
    """The model after the update."""
    descents: dict[str, Any]
    """The state of each group's descent."""
    rollout: Rollout
    """The rollout, with rewards in the learner's units."""
    credit: Credit
    batch: Any
    """The flattened rollout and credit, with features and the policy before the update."""
    after: Sample
    """The objective's inputs for the batch, after the update."""


Series = dict[str, tuple[Shaped[Array, "T N"], Bool[Array, "T N"]]]
"""Name → (one number per step, mask of the steps that count)."""


class HealthProbe:
    """Computes the metrics when due, i.e. when the fraction of the budget spent crosses a multiple of 1/`POINTS`."""

    def __init__(
        self,
        gamma: float,
        head: ActionHead,
        before: Float[Array, ""],
        after: Float[Array, ""],
        *,
        needs_critic: bool,
        vmapped: bool = False,
    ):
        """`before` and `after` are the fractions of the budget spent before and after the update. `vmapped` means that
        this is one of several seeds along the axis `VMAPPED_SEEDS`."""
        self.gamma, self.head, self.needs_critic = gamma, head, needs_critic
        self.is_due = (before == 0) | (jnp.floor(before * POINTS) < jnp.floor(after * POINTS))
        # All seeds share the predicate, because `cond` would otherwise always compute both branches.
        self.is_due_for_any = jax.lax.psum(self.is_due.astype(jnp.int32), VMAPPED_SEEDS) > 0 if vmapped else self.is_due

    def values(self, agent: Agent, batch: Any, rollout: Rollout, memory: Memory) -> Values:
        """V(s_t) and V(s_{t+1}) when due; 0 without a critic. They are computed before the update, so that the old
        parameters do not need to be kept."""
        count = num_columns(rollout)
        nothing = jnp.zeros_like(rollout.reward)[:, :count]
        if not self.needs_critic:
            return Values(nothing, nothing)
        subset = first_columns_of(rollout, count)

        def compute_values() -> Values:
            if has_memory(agent.model):
                return evaluate_with_memory(agent, subset, jax.tree.map(lambda x: x[:count], memory))
            now = jax.tree.map(lambda x: first_columns(x, rollout), batch.features)
            successor = subset.next_observation
            if isinstance(successor, Successors):
                value = value_of(agent.model, now).reshape(nothing.shape)
                following = value_of(agent.model, agent.features(successor.observation))
                return Values(value, successor.after(value, following))
            following = agent.features(flat_rows(successor))
            return Values(*(value_of(agent.model, x).reshape(nothing.shape) for x in (now, following)))

        return jax.lax.cond(self.is_due_for_any, compute_values, lambda: Values(nothing, nothing))

    def __call__(self, seen: UpdateData) -> Metrics:
        nothing = jnp.full(4 * len(SERIES) + len(PAIRS) + len(OTHERS), jnp.nan)
        found = jax.lax.cond(self.is_due_for_any, self.measure, lambda _: nothing, keep_first_columns(seen))
        return {RAW: jnp.where(self.is_due, found, nothing)} | self.of_parts(seen)

    def of_parts(self, seen: UpdateData) -> Metrics:
        """The metrics of parts that only some models have; empty if the model has none of them."""
        if not has_parts(seen.model, seen.batch):
            return {}
        nothing = jnp.full(len(NAMES), jnp.nan)
        measured = jax.lax.cond(self.is_due_for_any, of_parts, lambda *_: nothing, seen.model, seen.batch)
        return {PARTS: jnp.where(self.is_due, measured, nothing)}

    def measure(self, seen: UpdateData) -> Float[Array, "K"]:
        """All metrics, in the order of their names."""
        rollout, credit, batch, value = seen.rollout, seen.credit, seen.batch, seen.values.value
        rollout = rollout._replace(next_observation=successor_of(rollout))
        has_value = rollout.valid if self.needs_critic else jnp.zeros_like(rollout.valid)
        tail = returns_before_the_end(self.gamma, rollout)
        series = facts(rollout) | weights(rollout, credit, tail) | decisions(seen, self.head)
        series |= {"value": (value, has_value), "value_bias": (value - credit.target, has_value)}
        series |= {"truncation_error": bootstrap_errors(self.gamma, rollout, credit, seen.values, has_value)}
        parts = [
            moments(series),
            correlations(pairs(rollout, credit, value, has_value, tail)),
            jnp.stack(
                [seen.reward_scale, ends_together(rollout), action_effect(batch, rollout), late_effect(batch, rollout)]
            ),
            feature_statistics(floating(seen.model, batch.features), batch.valid)
            if is_vector(batch.features)
            else unknown(len(FEATURE_STATISTICS)),
            group_statistics(POLICY, seen, batch),
            group_statistics(VALUE, seen, batch) if self.needs_critic else unknown(len(GROUP_STATISTICS)),
        ]
        return jnp.concatenate(parts)


def num_columns(rollout: Rollout) -> int:
    """The number of columns used."""
    length, count = rollout.reward.shape
    return min(count, max(4, SAMPLES // length))


def first_columns(x: Array, rollout: Rollout) -> Array:
    """Select the rows of the first columns from a batch's rows [T·N, …]."""
    columns = x.reshape(*rollout.reward.shape, *x.shape[1:])[:, : num_columns(rollout)]
    return columns.reshape(-1, *x.shape[1:])


def keep_first_columns(seen: UpdateData) -> UpdateData:
    """Keep only the first columns, with one row per sample."""
    columns, shape, length = num_columns(seen.rollout), seen.rollout.reward.shape, unit_length(seen.batch)
    rollout = first_columns_of(seen.rollout, columns)
    credit = jax.tree.map(lambda x: x[:, :columns], seen.credit)
    batch, after = jax.tree.map(
        lambda x: first_columns(in_time(x, shape, length), seen.rollout), (seen.batch._replace(carry=()), seen.after)
    )
    return seen._replace(rollout=rollout, credit=credit, batch=batch, after=after)


def unit_length(batch: Any) -> int | None:
    """L, the number of steps in a unit of the batch; None if units are single steps."""
    return batch.weight.shape[1] if batch.weight.ndim == 2 else None


def is_vector(features: Any) -> bool:
    """Whether features are one vector per sample, so that each component can be measured."""
    return isinstance(features, jax.Array) and features.ndim == 2


def floating(model: Any, features: Array) -> Array:
    """Features as the first layer reads them; a model may keep images as bytes until then."""
    return model.floating(features) if hasattr(model, "floating") else features


def unknown(count: int) -> Float[Array, "K"]:
    """Undefined metrics: a vector of nan."""
    return jnp.full(count, jnp.nan)


def unpack_health(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Replace the vectors [S, I, K] among metrics [S, I] with metrics `health/…`, in units independent of the
    environment."""
    if PARTS in metrics:
        named = dict(zip(NAMES, np.moveaxis(metrics[PARTS], -1, 0), strict=True))
        metrics = {n: x for n, x in metrics.items() if n != PARTS} | {PREFIX + n: x for n, x in named.items()}
    if RAW not in metrics:
        return metrics
    raw = np.moveaxis(metrics[RAW], -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = rescale(*np.split(raw, [4 * len(SERIES), 4 * len(SERIES) + len(PAIRS)]))
    return {n: x for n, x in metrics.items() if n != RAW} | {PREFIX + name: x for name, x in found.items()}


def rescale(moments: np.ndarray, correlations: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
    """Name the parts of the vector and rescale them to units independent of the environment."""
    mean, std, low, high = (dict(zip(SERIES, part, strict=True)) for part in np.split(moments, 4))
    std = {name: np.sqrt(variance) for name, variance in std.items()}
    found = dict(zip(OTHERS, others, strict=True)) | dict(zip(PAIRS, correlations, strict=True))
    found |= {name: np.sqrt(found[name]) for name in ("observation_std_min", "observation_std_max")}
    unit, scale = np.maximum(mean["reward_size"], 1e-8), found["reward_scale"]
    found |= {name: mean[name] for name in (*SHARES, *DECISIONS[1:])}
    for name, part in {"mean": mean, "std": std, "min": low, "max": high}.items():
        found |= {f"reward_{name}": part["reward"] / scale, f"target_{name}": part["target"]}
    found |= {"weight_mean": mean["weight"] / std["weight"], "weight_std": std["weight"]}
    found["weight_max"] = np.maximum(high["weight"], -low["weight"]) / std["weight"]
    found |= {name: mean[name] / unit for name in ("terminal_error", "truncation_bootstrap")}
    # Divide by the size of the values where it exceeds the mean reward. Otherwise, with rare rewards, rounding errors
    # alone would exceed the mean reward.
    size = np.hypot(mean["value"], std["value"])
    found["truncation_error"] = mean["truncation_error"] / np.maximum(unit, np.nan_to_num(size))
    found["tail_bias"] = mean["tail_bias"] / np.maximum(std["tail"], unit)
    found |= {"value_mean": mean["value"], "value_std": std["value"]}
    found["value_bias"] = mean["value_bias"] / std["target"]
    return found | {"log_prob_min": low["log_prob"]}


def facts(rollout: Rollout) -> Series:
    """Series of rewards, episode ends, and whether each row's observation is the previous row's successor."""
    valid, over = rollout.valid, (rollout.terminated | rollout.truncated) & rollout.valid
    is_still = ~changes(rollout.observation, rollout.next_observation)
    follows = prepend_false(~differs(rollout.observation, rollout.next_observation))
    follows_end, continues = valid & prepend_false(over[:-1]), valid & prepend_false((valid & ~over)[:-1])
    return {
        "reward_nonzero": (rollout.reward != 0, valid),
        "end_share": (over, valid),
        "truncated_share": (rollout.truncated & ~rollout.terminated, over),
        "broken_links": (~follows, continues),
        "reset_as_successor": (follows, follows_end),
        "zero_after_end": (rollout.reward == 0, follows_end),
        "still": (is_still, valid),
        "reward": (rollout.reward, valid),
        "reward_size": (jnp.abs(rollout.reward), valid),
    }


def weights(rollout: Rollout, credit: Credit, tail: tuple[Array, Array]) -> Series:
    """Series of weights and targets, compared with the rewards before an episode's end.

    Nothing follows a terminated episode, so the target at its last step is the last reward. At a time limit, the target
    bootstraps.
    """
    following, known = tail
    last_only = jnp.abs(credit.target - rollout.reward)
    return {
        "target": (credit.target, rollout.valid),
        "weight": (credit.weight, rollout.valid),
        "terminal_error": (last_only, rollout.terminated & rollout.valid),
        "truncation_bootstrap": (last_only, rollout.truncated & ~rollout.terminated & rollout.valid),
        "tail": (following, known),
        "tail_bias": (credit.target - following, known),
    }


def bootstrap_errors(
    gamma: float, rollout: Rollout, credit: Credit, values: Values, has_value: Bool[Array, "T N"]
) -> tuple[Float[Array, "T N"], Bool[Array, "T N"]]:
    """|target − r − γ V(s_{t+1})| at time limits, with the true successor, and a mask of those steps.

    It is 0 for every estimator that bootstraps there and carries nothing over from the next episode."""
    is_cut = rollout.truncated & ~rollout.terminated & has_value
    return jnp.abs(credit.target - rollout.reward - gamma * values.next_value), is_cut


def decisions(seen: UpdateData, head: ActionHead) -> Series:
    """Series of the policy's decisions and of how the update changed them.

    After an ascent step, the mean of Ψ (ρ − 1) is positive."""
    batch, valid = seen.batch, seen.rollout.valid
    log_prob = batch.old_policy.log_prob(batch.action)
    shifted_policy = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), batch.old_policy)
    clipped = head.outside(batch.action)
    clipped = jnp.full_like(log_prob, jnp.nan) if clipped is None else clipped
    difference = batch.old_policy.kl(shifted_policy)
    # If the other state forbids an action that is allowed here, the KL is infinite, regardless of the network.
    is_comparable = valid if batch.action_mask is None else valid & jnp.isfinite(difference).reshape(valid.shape)
    series = {
        "log_prob": log_prob,
        "log_prob_mismatch": jnp.abs(log_prob - batch.behaviour_log_prob),
        "surrogate_gain": batch.weight * (importance_ratio(seen.after) - 1),
        "state_dependence": difference,
        "action_clipped": clipped,
    }
    found = {name: (x.reshape(valid.shape), valid) for name, x in series.items()}
    return found | {"state_dependence": (found["state_dependence"][0], is_comparable)}


def pairs(rollout: Rollout, credit: Credit, value: Array, has_value: Array, tail: tuple[Array, Array]) -> list[Any]:
    """Pairs of quantities to correlate, each with a mask.

    The pairs are targets and returns, values and targets at the last and second-to-last step, and Ψ and target − V. The
    two in the last pair are equal for every advantage estimator."""
    last = rollout.terminated & has_value
    before_last = jnp.concatenate([last[1:], jnp.zeros_like(last[:1])]) & ~ends(rollout)
    return [
        (credit.target, *tail),
        (value, credit.target, last),
        (value, credit.target, before_last & has_value),
        (credit.weight, credit.target - value, has_value),
    ]


def returns_before_the_end(gamma: float, rollout: Rollout) -> tuple[Float[Array, "T N"], Bool[Array, "T N"]]:
    """Σ γ^k r from rewards alone, for the last `TAIL` steps of terminated episodes, and a mask of those steps."""
    continues, last = ~ends(rollout), rollout.terminated & rollout.valid

    def next_row(x: Array) -> Array:
        return jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])

    def step_back(_: Any, found: tuple[Array, Array]) -> tuple[Array, Array]:
        following, known = found
        known = last | (continues & next_row(known))
        return jnp.where(known, rollout.reward + jnp.where(last, 0.0, gamma * next_row(following)), 0.0), known

    start = jnp.where(last, rollout.reward, 0.0), last
    return jax.lax.fori_loop(0, TAIL - 1, step_back, start)


def ends_together(rollout: Rollout) -> Float[Array, ""]:
    """The probability that two randomly drawn episode ends are at the same step."""
    over = (rollout.terminated | rollout.truncated) & rollout.valid
    vmapped = jnp.sum(over, axis=1).astype(jnp.float32)
    count = jnp.sum(vmapped)
    return jnp.sum(vmapped * (vmapped - 1)) / (count * (count - 1))


def group_statistics(name: str, seen: UpdateData, batch: Any) -> Float[Array, "3"]:
    """The signal and the largest second moment of a group's gradient, and the share of saturated units.

    A value is nan if the optimiser keeps no such moments or the model does not expose its units.

    `signal` = ‖m̂‖² / Σ v̂ is 1 for a constant gradient and (1 − β₁)/(1 + β₁) = 0.05 for pure noise. It estimates the
    gradient noise scale of McCandlish et al. (2018) from moments that the optimiser computes anyway.
    """
    descent = seen.descents[name if name in seen.descents else SHARED]
    count, first, second = (unique_entry(descent.optimiser, moment) for moment in ("count", "mu", "nu"))
    signal = largest = jnp.float32(jnp.nan)
    if isinstance(first, jax.Array) and isinstance(second, jax.Array):
        first_left, second_left = (1 - jnp.float32(beta) ** count for beta in ADAM_BETAS)
        signal = first @ first / first_left**2 / (second @ jnp.ones_like(second) / second_left)
        largest = jnp.max(second) / second_left
    silent = jnp.float32(jnp.nan)
    if hasattr(seen.model, "hidden_units"):
        hidden = seen.model.hidden_units(jax.tree.map(lambda x: x[:ROWS], batch.features))
        if name in hidden:
            units, activation = hidden[name]
            silent = saturation(units, activation, batch.valid[:ROWS])
    return jnp.stack([signal, largest, silent])


def unique_entry(state: Any, name: str) -> Any:
    """The only entry with this name in an optimiser's state; None if there is no such entry or more than one."""
    found = [value for _, value in optax.tree.get_all_with_path(state, name)]
    return found[0] if len(found) == 1 else None


def moments(series: Series) -> Float[Array, "K"]:
    """The mean, variance, minimum and maximum of every series under its mask; not finite if the mask is empty."""
    x = jnp.stack([jnp.ravel(series[name][0]).astype(jnp.float32) for name in SERIES])
    x, where = jax.lax.optimization_barrier((x, jnp.stack([jnp.ravel(series[name][1]) for name in SERIES])))
    count = row_sums(where)
    average = row_sums(jnp.where(where, x, 0.0)) / count
    variance = row_sums(jnp.where(where, (x - average[:, None]) ** 2, 0.0)) / count
    low, high = jnp.min(jnp.where(where, x, jnp.inf), axis=1), jnp.max(jnp.where(where, x, -jnp.inf), axis=1)
    return jnp.concatenate([average, variance, low, high])
