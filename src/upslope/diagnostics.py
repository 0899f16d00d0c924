"""What a run says of its own health: metrics `health/…`, from what an update has at hand anyway.

They are taken about `POINTS` times a run, so that they cost little and rows stay small; `upslope doctor` reads them.
An iteration leaves a sample of itself behind, from which a program of its own takes them where that is due; it serves
every setting of an algorithm, and within the loop would be half of what is compiled. A metric that means nothing in a
batch (no episode ended, no bounds) is nan, and a row leaves it out. All series are reduced together to one vector,
which the host spells out: many small reductions would take as long again to compile.
Source: Jones (2021), Debugging RL, Without the Agonizing Pain, for most; others are named where they are computed.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Shaped

from upslope.effects import action_effect
from upslope.estimators import ends
from upslope.measures import correlations, moments, next_row, of_features, saturation, shifted
from upslope.spaces import BoxHead, Head
from upslope.types import Credit, Rollout
from upslope.update import Learner, Trace, valid_rows
from upslope.words import PREFIX

POINTS = 100
"""How many times a run is looked at."""
TAIL = 8
"""Steps before an end over which credit is held against the return that followed."""
ROWS = 256
"""Samples enough to see whether units are saturated."""
SAMPLES = 1024
"""Samples enough for all else."""
ADAM_BETAS = (0.9, 0.999)

SHARES = ("reward_nonzero", "end_share", "truncated_share", "broken_links", "reset_as_successor", "zero_after_end")
SIZES = ("reward", "reward_size", "target", "weight", "terminal_error", "truncation_bootstrap", "tail", "tail_bias")
DECISIONS = ("log_prob", "log_prob_mismatch", "surrogate_gain", "state_dependence", "action_clipped")
SERIES = (*SHARES, *SIZES, *DECISIONS, "value", "value_bias")
"""What is a number a step; each gives its mean, deviation, lowest and highest."""
PAIRS = ("tail_correlation", "terminal_correlation", "penultimate_correlation", "weight_agreement")
OF_FEATURES = tuple(f"observation_{name}" for name in ("mean", "std_min", "std_max", "max", "constant"))
OF_NETWORK = ("signal", "second_moment", "saturation")
OTHERS = ("reward_scale", "ends_together", "action_effect", *OF_FEATURES)
OTHERS += tuple(f"{network}_{name}" for network in ("policy", "critic") for name in OF_NETWORK)


NOTHING = np.full(4 * len(SERIES) + len(PAIRS) + len(OTHERS), np.nan, np.float32)
"""The vector where it was not due."""


class Seen(NamedTuple):
    """An iteration, or a sample of it."""

    rollout: Rollout
    """Its rewards are in the learner's unit."""
    value: Float[Array, "T N"]
    """The critic's before the update; 0 without one."""
    credit: Credit
    trace: Trace


Series = dict[str, tuple[Any, Any]]
"""Name → (a number a step [T, N], where it counts)."""


def is_due(before: np.ndarray, after: np.ndarray, total: int) -> np.ndarray:
    """Where the share of the budget that was spent crosses a multiple of 1/`POINTS`, or is spent for the first time."""
    return (after > before) & ((before == 0) | (before * POINTS // total < after * POINTS // total))


def narrow(seen: Seen) -> Seen:
    """The first columns alone: enough for `SAMPLES` steps, but at least four."""
    length, width = seen.rollout.reward.shape
    columns = min(width, max(4, SAMPLES // length))

    def of_rows(x: Array) -> Array:
        return x.reshape(length, width, *x.shape[1:])[:, :columns].reshape(-1, *x.shape[1:])

    trace = jax.tree.map(of_rows, seen.trace)
    return jax.tree.map(lambda x: x[:, :columns], seen._replace(trace=()))._replace(trace=trace)


def measure(gamma: Float[Array, ""], learner: Learner, seen: Seen, has_critic: bool) -> Float[Array, "K"]:
    """All of them, in the order of the names, once the learner has moved."""
    agent, rollout, credit, value, features = learner.agent, seen.rollout, seen.credit, seen.value, seen.trace.features
    has_value = rollout.valid & has_critic
    action, valid = valid_rows(rollout.valid, rollout.action), rollout.valid.reshape(-1)
    tail = returns_before_the_end(gamma, rollout)
    series = facts(rollout) | weights(rollout, credit, tail) | decisions(seen, action, agent.actor.head)
    series |= {"value": (value, has_value), "value_bias": (value - credit.target, has_value)}
    of_actor = of_network(learner.actor_optimiser, agent.actor.network, features, valid)
    none = jnp.full_like(of_actor, jnp.nan)
    parts = [
        moments([series[name] for name in SERIES]).reshape(-1),
        correlations(pairs(rollout, credit, value, has_value, tail)),
        jnp.stack([agent.reward_scale(), ends_together(rollout), action_effect(seen.trace.policy, action, rollout)]),
        of_features(features, valid),
        of_actor,
        of_network(learner.critic_optimiser, agent.critic, features, valid) if has_critic else none,
    ]
    return jnp.concatenate(parts)


def spell_out(vectors: Float[np.ndarray, "S K"]) -> dict[str, np.ndarray]:
    """The vectors as `health/…` [S], in units that do not depend on the world."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = in_units(*np.split(vectors.T, [4 * len(SERIES), 4 * len(SERIES) + len(PAIRS)]))
    return {PREFIX + name: x for name, x in found.items()}


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
    found["tail_bias"] = mean["tail_bias"] / np.maximum(std["tail"], unit)
    found |= {"value_mean": mean["value"], "value_std": std["value"]}
    found["value_bias"] = mean["value_bias"] / std["target"]
    return found | {"log_prob_min": low["log_prob"]}


def facts(rollout: Rollout) -> Series:
    """Rewards, how episodes end, and whether a row goes on where the row before it stopped."""
    valid, over = rollout.valid, (rollout.terminated | rollout.truncated) & rollout.valid
    axes = tuple(range(2, rollout.observation.ndim))
    follows = shifted(jnp.all(rollout.observation[1:] == rollout.next_observation[:-1], axis=axes))
    begins, goes_on = valid & shifted(over[:-1]), valid & shifted((valid & ~over)[:-1])
    return {
        "reward_nonzero": (rollout.reward != 0, valid),
        "end_share": (over, valid),
        "truncated_share": (rollout.truncated & ~rollout.terminated, over),
        "broken_links": (~follows, goes_on),
        "reset_as_successor": (follows, begins),
        "zero_after_end": (rollout.reward == 0, begins),
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


def decisions(seen: Seen, action: Shaped[Array, "B ..."], head: Head) -> Series:
    """What the policy did and how the update changed it. An ascent makes the mean of Ψ (ρ − 1) positive."""
    valid, trace = seen.rollout.valid, seen.trace
    behaviour = valid_rows(valid, seen.rollout.behaviour_log_prob)
    log_prob = trace.policy.log_prob(action)
    elsewhere = jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), trace.policy)
    clipped = jnp.full_like(log_prob, jnp.nan)
    if isinstance(head, BoxHead) and np.isfinite([*head.low, *head.high]).all():
        outside = (action < jnp.asarray(head.low)) | (action > jnp.asarray(head.high))
        clipped = jnp.mean(outside, axis=-1, dtype=jnp.float32)
    series = {
        "log_prob": log_prob,
        "log_prob_mismatch": jnp.abs(log_prob - behaviour),
        "surrogate_gain": trace.weight * (jnp.exp(trace.log_prob - behaviour) - 1),
        "state_dependence": trace.policy.kl(elsewhere),
        "action_clipped": clipped,
    }
    return {name: (x.reshape(valid.shape), valid) for name, x in series.items()}


def pairs(rollout: Rollout, credit: Credit, value: Array, has_value: Array, tail: tuple[Array, Array]) -> list[Any]:
    """Targets against the return that followed; values against targets at the last and the last but one step; and Ψ
    against target − V, which it is for every advantage."""
    last = rollout.terminated & has_value
    before_last = next_row(last) & ~ends(rollout)
    return [
        (credit.target, *tail),
        (value, credit.target, last),
        (value, credit.target, before_last & has_value),
        (credit.weight, credit.target - value, has_value),
    ]


def returns_before_the_end(gamma: Any, rollout: Rollout) -> tuple[Float[Array, "T N"], Bool[Array, "T N"]]:
    """Σ γ^k r of the at most `TAIL` last steps of episodes that terminated, by the facts alone; and where they are."""
    going_on, last = ~ends(rollout), rollout.terminated & rollout.valid

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
    return jnp.sum(at_once * (at_once - 1)) / (count * (count - 1))


def of_network(
    optimiser: Any, network: Any, features: Float[Array, "B D"], valid: Bool[Array, "B"]
) -> Float[Array, "3"]:
    """What Adam's moments tell of the gradient, and the share of silent units.

    `signal` = ‖m̂‖² / Σ v̂: 1 for a gradient that is always the same, (1 − β₁)/(1 + β₁) = 0.05 for noise alone. It is the
    gradient noise scale of McCandlish et al. (2018) from moments that are there anyway.
    """
    count, first, second = (optax.tree.get(optimiser, moment) for moment in ("count", "mu", "nu"))
    first_left, second_left = (1 - jnp.float32(beta) ** count for beta in ADAM_BETAS)
    first, second = (jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (first, second))
    signal = first @ first / first_left**2 / (second @ jnp.ones_like(second) / second_left)
    silent = saturation(network, features[:ROWS], valid[:ROWS])
    return jnp.stack([signal, jnp.max(second) / second_left, silent])
