"""What a run says of its own health: metrics `health/…`, from what an update has at hand anyway.

They are taken about `POINTS` times a run, so that they cost little and rows stay small; `upslope doctor` reads them.
A metric that means nothing in a batch (no episode ended, no bounds) is nan, and a row leaves it out. On the device all
series are reduced together to one vector, which the host spells out: many small reductions, each a kernel of its own,
would take longer to compile than the update does.
Source: Jones (2021), Debugging RL, Without the Agonizing Pain, for most; others are named where they are computed.
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
from upslope.core.types import Credit, Metrics, Rollout, Values
from upslope.learning.action_effect import action_effect, late_effect
from upslope.learning.batch import in_time
from upslope.learning.devices import AT_ONCE
from upslope.learning.evaluation import changes, differs, evaluate_in_time, flat_rows
from upslope.learning.measures import correlations, of_features, saturation, shifted, totals
from upslope.models.agent import Agent, value_of
from upslope.models.heads import ActionHead
from upslope.models.model import POLICY, SHARED, VALUE, Memory, has_memory

RAW = "health"
"""The vector among an update's metrics."""
POINTS = 100
"""How many times a run is looked at."""
TAIL = 8
"""Steps before an end over which credit is held against the return that followed."""
ROWS = 256
"""Samples enough to see whether units are saturated."""
SAMPLES = 1024
"""Samples enough for all else: so many columns are looked at, but at least four."""
ADAM_BETAS = (0.9, 0.999)

SHARES = ("reward_nonzero", "end_share", "truncated_share", "broken_links", "reset_as_successor", "zero_after_end")
SHARES += ("still",)
SIZES = ("reward", "reward_size", "target", "weight", "terminal_error", "truncation_bootstrap", "truncation_error")
SIZES += ("tail", "tail_bias")
DECISIONS = ("log_prob", "log_prob_mismatch", "surrogate_gain", "state_dependence", "action_clipped")
SERIES = (*SHARES, *SIZES, *DECISIONS, "value", "value_bias")
"""What is a number a step; each gives its mean, deviation, lowest and highest."""
PAIRS = ("tail_correlation", "terminal_correlation", "penultimate_correlation", "weight_agreement")
OF_FEATURES = tuple(f"observation_{name}" for name in ("mean", "std_min", "std_max", "max", "constant"))
OF_NETWORK = ("signal", "second_moment", "saturation")
OTHERS = ("reward_scale", "ends_together", "action_effect", "late_effect", *OF_FEATURES)
OTHERS += tuple(f"{network}_{name}" for network in ("policy", "critic") for name in OF_NETWORK)


class Seen(NamedTuple):
    """What an update has at hand when it is done; T·N samples."""

    values: Values
    """The critic's before the update [T, C], of the first columns alone; 0 without one."""
    reward_scale: Float[Array, ""]
    model: Any
    """After the update."""
    descents: dict[str, Any]
    """Of each group, the state of its descent."""
    rollout: Rollout
    """Its rewards are in the learner's unit."""
    credit: Credit
    batch: Any
    """The same, flattened, with features and the policy before."""
    after: Sample
    """What the objective sees of the batch after the update."""


Series = dict[str, tuple[Shaped[Array, "T N"], Bool[Array, "T N"]]]
"""Name → (a number a step, where it counts)."""


class HealthProbe:
    """Takes the metrics where it is due: where the share of the budget crosses a multiple of 1/`POINTS`."""

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
        """`before` and `after` are shares of the budget. With `vmapped` it is one of several seeds that run along the
        axis `AT_ONCE`."""
        self.gamma, self.head, self.needs_critic = gamma, head, needs_critic
        self.is_due = (before == 0) | (jnp.floor(before * POINTS) < jnp.floor(after * POINTS))
        # One answer for all seeds, since where they differed both branches would be computed, every time.
        self.is_due_for_any = jax.lax.psum(self.is_due.astype(jnp.int32), AT_ONCE) > 0 if vmapped else self.is_due

    def values(self, agent: Agent, batch: Any, rollout: Rollout, memory: Memory) -> Values:
        """V(s_t) and V(s_{t+1}) where it is due; 0 without a critic. Taken before the update, so that the parameters
        before it need not be kept."""
        count = num_columns(rollout)
        nothing = jnp.zeros_like(rollout.reward)[:, :count]
        if not self.needs_critic:
            return Values(nothing, nothing)
        few = jax.tree.map(lambda x: x[:, :count], rollout)

        def look() -> Values:
            if has_memory(agent.model):
                return evaluate_in_time(agent, few, jax.tree.map(lambda x: x[:count], memory))
            now = jax.tree.map(lambda x: first_columns(x, rollout), batch.features)
            following = agent.features(flat_rows(few.next_observation))
            return Values(*(value_of(agent.model, x).reshape(nothing.shape) for x in (now, following)))

        return jax.lax.cond(self.is_due_for_any, look, lambda: Values(nothing, nothing))

    def __call__(self, seen: Seen) -> Metrics:
        nothing = jnp.full(4 * len(SERIES) + len(PAIRS) + len(OTHERS), jnp.nan)
        found = jax.lax.cond(self.is_due_for_any, self.measure, lambda _: nothing, narrow(seen))
        return {RAW: jnp.where(self.is_due, found, nothing)}

    def measure(self, seen: Seen) -> Float[Array, "K"]:
        """All of them, in the order of the names."""
        rollout, credit, batch, value = seen.rollout, seen.credit, seen.batch, seen.values.value
        has_value = rollout.valid if self.needs_critic else jnp.zeros_like(rollout.valid)
        tail = returns_before_the_end(self.gamma, rollout)
        series = facts(rollout) | weights(rollout, credit, tail) | decisions(seen, self.head)
        series |= {"value": (value, has_value), "value_bias": (value - credit.target, has_value)}
        series |= {"truncation_error": at_limits(self.gamma, rollout, credit, seen.values, has_value)}
        parts = [
            moments(series),
            correlations(pairs(rollout, credit, value, has_value, tail)),
            jnp.stack(
                [seen.reward_scale, ends_together(rollout), action_effect(batch, rollout), late_effect(batch, rollout)]
            ),
            of_features(batch.features, batch.valid) if is_vector(batch.features) else unknown(len(OF_FEATURES)),
            of_group(POLICY, seen, batch),
            of_group(VALUE, seen, batch) if self.needs_critic else unknown(len(OF_NETWORK)),
        ]
        return jnp.concatenate(parts)


def num_columns(rollout: Rollout) -> int:
    """How many columns are looked at."""
    length, count = rollout.reward.shape
    return min(count, max(4, SAMPLES // length))


def first_columns(x: Array, rollout: Rollout) -> Array:
    """Of a batch's rows [T·N, …] those of the first columns."""
    columns = x.reshape(*rollout.reward.shape, *x.shape[1:])[:, : num_columns(rollout)]
    return columns.reshape(-1, *x.shape[1:])


def narrow(seen: Seen) -> Seen:
    """The first columns alone, each sample a row."""
    columns, shape, length = num_columns(seen.rollout), seen.rollout.reward.shape, unit_length(seen.batch)
    rollout, credit = jax.tree.map(lambda x: x[:, :columns], (seen.rollout, seen.credit))
    batch, after = jax.tree.map(
        lambda x: first_columns(in_time(x, shape, length), seen.rollout), (seen.batch._replace(carry=()), seen.after)
    )
    return seen._replace(rollout=rollout, credit=credit, batch=batch, after=after)


def unit_length(batch: Any) -> int | None:
    """L: how many steps a unit of the batch has; None where it is one step."""
    return batch.weight.shape[1] if batch.weight.ndim == 2 else None


def is_vector(features: Any) -> bool:
    """Whether features are one vector a sample, so that its components can be told apart."""
    return isinstance(features, jax.Array) and features.ndim == 2


def unknown(count: int) -> Float[Array, "K"]:
    """Numbers that mean nothing here."""
    return jnp.full(count, jnp.nan)


def spell_out(metrics: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Metrics [S, I], with the vector [S, I, K] replaced by `health/…` in units that do not depend on the world."""
    if RAW not in metrics:
        return metrics
    raw = np.moveaxis(metrics[RAW], -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = in_units(*np.split(raw, [4 * len(SERIES), 4 * len(SERIES) + len(PAIRS)]))
    return {n: x for n, x in metrics.items() if n != RAW} | {PREFIX + name: x for name, x in found.items()}


def in_units(moments: np.ndarray, correlations: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
    """The parts of the vector by name."""
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
    # In units of the values too: where rewards are rare, rounding alone would be large beside them.
    size = np.hypot(mean["value"], std["value"])
    found["truncation_error"] = mean["truncation_error"] / np.maximum(unit, np.nan_to_num(size))
    found["tail_bias"] = mean["tail_bias"] / np.maximum(std["tail"], unit)
    found |= {"value_mean": mean["value"], "value_std": std["value"]}
    found["value_bias"] = mean["value_bias"] / std["target"]
    return found | {"log_prob_min": low["log_prob"]}


def facts(rollout: Rollout) -> Series:
    """Rewards, how episodes end, and whether a row goes on where the row before it stopped."""
    valid, over = rollout.valid, (rollout.terminated | rollout.truncated) & rollout.valid
    is_still = ~changes(rollout.observation, rollout.next_observation)
    follows = shifted(~differs(rollout.observation, rollout.next_observation))
    begins, goes_on = valid & shifted(over[:-1]), valid & shifted((valid & ~over)[:-1])
    return {
        "reward_nonzero": (rollout.reward != 0, valid),
        "end_share": (over, valid),
        "truncated_share": (rollout.truncated & ~rollout.terminated, over),
        "broken_links": (~follows, goes_on),
        "reset_as_successor": (follows, begins),
        "zero_after_end": (rollout.reward == 0, begins),
        "still": (is_still, valid),
        "reward": (rollout.reward, valid),
        "reward_size": (jnp.abs(rollout.reward), valid),
    }


def weights(rollout: Rollout, credit: Credit, tail: tuple[Array, Array]) -> Series:
    """Weights and targets, held against the rewards that came before an end.

    Where an episode terminated nothing follows, so the target is the last reward; at a time limit it is more.
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


def at_limits(
    gamma: float, rollout: Rollout, credit: Credit, values: Values, has_value: Bool[Array, "T N"]
) -> tuple[Float[Array, "T N"], Bool[Array, "T N"]]:
    """How far the target at a time limit is from r + γ V(s_{t+1}), the true successor's: 0 for every estimator that
    bootstraps there and carries nothing over from the next episode."""
    is_cut = rollout.truncated & ~rollout.terminated & has_value
    return jnp.abs(credit.target - rollout.reward - gamma * values.next_value), is_cut


def decisions(seen: Seen, head: ActionHead) -> Series:
    """What the policy did and how the update changed it. An ascent makes the mean of Ψ (ρ − 1) positive."""
    batch, valid = seen.batch, seen.rollout.valid
    log_prob = batch.old_policy.log_prob(batch.action)
    elsewhere = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), batch.old_policy)
    clipped = head.outside(batch.action)
    clipped = jnp.full_like(log_prob, jnp.nan) if clipped is None else clipped
    difference = batch.old_policy.kl(elsewhere)
    # Where the other state forbids what is allowed here, it differs by its mask, which says nothing of the network.
    is_alike = valid if batch.action_mask is None else valid & jnp.isfinite(difference).reshape(valid.shape)
    series = {
        "log_prob": log_prob,
        "log_prob_mismatch": jnp.abs(log_prob - batch.behaviour_log_prob),
        "surrogate_gain": batch.weight * (importance_ratio(seen.after) - 1),
        "state_dependence": difference,
        "action_clipped": clipped,
    }
    found = {name: (x.reshape(valid.shape), valid) for name, x in series.items()}
    return found | {"state_dependence": (found["state_dependence"][0], is_alike)}


def pairs(rollout: Rollout, credit: Credit, value: Array, has_value: Array, tail: tuple[Array, Array]) -> list[Any]:
    """Targets against the return that followed; values against targets at the last and the last but one step; and Ψ
    against target − V, which it is for every advantage."""
    last = rollout.terminated & has_value
    before_last = jnp.concatenate([last[1:], jnp.zeros_like(last[:1])]) & ~ends(rollout)
    return [
        (credit.target, *tail),
        (value, credit.target, last),
        (value, credit.target, before_last & has_value),
        (credit.weight, credit.target - value, has_value),
    ]


def returns_before_the_end(gamma: float, rollout: Rollout) -> tuple[Float[Array, "T N"], Bool[Array, "T N"]]:
    """Σ γ^k r of the at most `TAIL` last steps of episodes that terminated, by the facts alone; and where they are."""
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
    vmapped = jnp.sum(over, axis=1).astype(jnp.float32)
    count = jnp.sum(vmapped)
    return jnp.sum(vmapped * (vmapped - 1)) / (count * (count - 1))


def of_group(name: str, seen: Seen, batch: Any) -> Float[Array, "3"]:
    """What the optimiser's moments tell of a group's gradient, and the share of silent units; nan where the optimiser
    keeps no such moments, or the model does not show its units.

    `signal` = ‖m̂‖² / Σ v̂: 1 for a gradient that is always the same, (1 − β₁)/(1 + β₁) = 0.05 for noise alone. It is the
    gradient noise scale of McCandlish et al. (2018) from moments that are there anyway.
    """
    descent = seen.descents[name if name in seen.descents else SHARED]
    count, first, second = (the_one(descent.optimiser, moment) for moment in ("count", "mu", "nu"))
    signal = largest = jnp.float32(jnp.nan)
    if isinstance(first, jax.Array) and isinstance(second, jax.Array):
        first_left, second_left = (1 - jnp.float32(beta) ** count for beta in ADAM_BETAS)
        signal = first @ first / first_left**2 / (second @ jnp.ones_like(second) / second_left)
        largest = jnp.max(second) / second_left
    silent = jnp.float32(jnp.nan)
    if hasattr(seen.model, "hidden_units"):
        units, activation = seen.model.hidden_units(jax.tree.map(lambda x: x[:ROWS], batch.features))[name]
        silent = saturation(units, activation, batch.valid[:ROWS])
    return jnp.stack([signal, largest, silent])


def the_one(state: Any, name: str) -> Any:
    """What an optimiser's state calls by this name; None where nothing or more than one thing is called so."""
    found = [value for _, value in optax.tree.get_all_with_path(state, name)]
    return found[0] if len(found) == 1 else None


def moments(series: Series) -> Float[Array, "K"]:
    """Means, then variances, lowest and highest, of every series where it counts; nan where it does so nowhere."""
    x = jnp.stack([jnp.ravel(series[name][0]).astype(jnp.float32) for name in SERIES])
    x, where = jax.lax.optimization_barrier((x, jnp.stack([jnp.ravel(series[name][1]) for name in SERIES])))
    count = totals(where)
    average = totals(jnp.where(where, x, 0.0)) / count
    variance = totals(jnp.where(where, (x - average[:, None]) ** 2, 0.0)) / count
    low, high = jnp.min(jnp.where(where, x, jnp.inf), axis=1), jnp.max(jnp.where(where, x, -jnp.inf), axis=1)
    return jnp.concatenate([average, variance, low, high])
