"""Evaluate the critic on every state of a rollout and on every true successor."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from upslope.core.types import Credit, Rollout, Successors, Values
from upslope.learning.batch import batch_of, beginnings
from upslope.learning.blocks import in_blocks
from upslope.learning.split import columns_shared, rows_shared
from upslope.models.agent import Agent, value_of
from upslope.models.model import Memory, has_memory, start_memory, unroll

PORTIONS = 16
"""States whose successor is not the next row are evaluated in portions of one in this many of all states, as many
portions as are needed."""


def evaluate(agent: Agent, rollout: Rollout, memory: Memory | None = None, vmapped: bool = False) -> Values:
    """V(s_t) and V(s_{t+1}). The latter is computed from the true successor, even at an episode's end.

    If s_{t+1} is the next row's observation, that row's value is reused.
    """
    if has_memory(agent.model):
        return evaluate_with_memory(agent, rollout, memory or start_memory(agent.model, rollout.reward.shape[1]))
    observation, successor = rollout.observation, rollout.next_observation
    shape = jax.tree.leaves(observation)[0].shape[:2]

    def values(observation: Any) -> Array:
        return value_of(agent.model, agent.features(observation))

    value = in_blocks(values, flat_rows(observation), vmapped).reshape(shape)
    if isinstance(successor, Successors):
        following = in_blocks(values, successor.observation, vmapped)
        return Values(value, successor.after(value, following))
    is_new = jnp.concatenate([differs(observation, successor), jnp.ones((1, shape[1]), bool)]).reshape(-1)
    next_row_value = jnp.concatenate([value[1:], value[-1:]]).reshape(-1)
    flat = flat_rows(successor)
    if vmapped:  # under vmap, a loop would run as often for every seed as for the one with the most new states
        return Values(value, jnp.where(is_new, in_blocks(values, flat, vmapped), next_row_value).reshape(shape))
    portion = max(value.shape[1], value.size // PORTIONS)
    (places,) = jnp.nonzero(is_new, size=value.size + portion, fill_value=value.size)

    def evaluate_portion(number: Array, found: Array) -> Array:
        rows = jax.lax.dynamic_slice(places, (number * portion,), (portion,))
        chosen = jax.tree.map(lambda x: x.at[rows].get(mode="clip"), flat)
        return found.at[rows].set(rows_shared(values, chosen), mode="drop")

    needed = (jnp.sum(is_new) + portion - 1) // portion
    return Values(value, jax.lax.fori_loop(0, needed, evaluate_portion, next_row_value).reshape(shape))


def log_probs(agent: Agent, rollout: Rollout, memory: Memory | None = None, vmapped: bool = False) -> Array:
    """log π(a_t|s_t) of the rollout's actions under this agent [T, N]; 0 in padding."""
    memory = memory or start_memory(agent.model, rollout.reward.shape[1])
    nothing = jnp.zeros_like(rollout.reward)
    batch = batch_of(agent, rollout, Credit(nothing, nothing), memory, None, vmapped)
    found = batch.old_policy.log_prob(batch.action)  # [T·N], or [N, T] if the model has memory
    found = found.T if found.ndim == 2 else found.reshape(nothing.shape)
    return jnp.where(rollout.valid, found, 0.0)


def evaluate_with_memory(agent: Agent, rollout: Rollout, memory: Memory) -> Values:
    """Like `evaluate`, but with memory. For V(s_{t+1}), the memory takes one more step from the carry after step t,
    within the same episode."""
    if isinstance(rollout.next_observation, Successors):  # separate rows, not tied to any column's device
        return evaluate_columns(agent, rollout, memory)
    return columns_shared(partial(evaluate_columns, agent), rollout, memory)


def evaluate_columns(agent: Agent, rollout: Rollout, memory: Memory) -> Values:
    """Like `evaluate_with_memory`, but on this device alone."""
    outputs, after = unroll(agent.model, agent.features(rollout.observation), memory.carry, beginnings(rollout, memory))
    successor, carry = rollout.next_observation, flat_rows(after)
    if isinstance(successor, Successors):
        carry = jax.tree.map(lambda x: x.at[successor.place].get(mode="clip"), carry)
        fresh = jnp.zeros(successor.place.shape, bool)
        following = agent.model.step(agent.features(successor.observation), carry, fresh)[0].value
        return Values(outputs.value, successor.after(outputs.value, following))
    following, _ = agent.model.step(flat_rows(agent.features(successor)), carry, jnp.zeros(rollout.reward.size, bool))
    return Values(outputs.value, following.value.reshape(rollout.reward.shape))


def flat_rows(observation: Any) -> Any:
    """[T, N, …] → [T·N, …], for every array of the observation."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), observation)


def changes(observation: Any, successor: Any) -> Bool[Array, "_ N"]:
    """Mask of the rows in which two observations differ in any of their arrays."""

    def one(x: Array, after: Array) -> Array:
        return jnp.any(after != x, axis=tuple(range(2, x.ndim)))

    return jax.tree.reduce(jnp.logical_or, jax.tree.map(one, observation, successor))


def differs(observation: Any, successor: Any) -> Bool[Array, "_ N"]:
    """Mask [T−1, N] of the rows whose successor differs from the next row's observation."""
    return changes(jax.tree.map(lambda x: x[1:], observation), jax.tree.map(lambda x: x[:-1], successor))
