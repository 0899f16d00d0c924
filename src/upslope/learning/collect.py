"""Act in a compiled environment and record a rollout.

`collect` is one scan. It counts the steps of each episode, sets `truncated` at the time limit, records the true
successor observation, and starts the next episode itself. For whole-episode estimators, every column holds one complete
episode, and the steps after its end are padding (`valid` is false).

If the seed is split over devices (`split.py`), each device steps its share of the columns. It draws the random numbers
for all columns, but uses only those for its own columns.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray

from upslope.core.arrays import num_bytes
from upslope.core.types import Rollout
from upslope.environments.base import CompiledEnvironment
from upslope.learning.split import num_shares, of_all, own_part
from upslope.models.agent import Acting
from upslope.models.head import ActionHead
from upslope.models.model import Carry

STEPS_TOGETHER = 4
"""Number of steps per loop iteration on an accelerator, where every iteration is launched separately."""
MAX_RESET_BYTES = 1 << 24
"""On an accelerator, the new episodes for all steps are created before the first step if they take up at most this many
bytes per seed. This needs only a few kernels in total, instead of a few kernels in each step."""


class EnvState(NamedTuple):
    """N running episodes, one per column."""

    state: Any
    observation: Any
    carry: Carry
    """The acting model's memory; () without memory."""
    length: Int[Array, "N"]
    episode_return: Float[Array, "N"]


class Randomness(NamedTuple):
    """The random inputs for one step of N columns."""

    noise: Any
    """Noise from which the policy's actions are sampled. If part of the noise is held over several steps, this field
    contains the keys for this step's noise and for the held noise."""
    keys: Key[Array, "N"]
    """Keys for the environment's transitions."""


class Finished(NamedTuple):
    """Finished episodes. Returns and lengths are meaningful only where `done` is true."""

    done: Bool[Array, "T N"]
    episode_return: Float[Array, "T N"]
    length: Int[Array, "T N"]
    stuck: Bool[Array, "T N"] | None = None
    """Mask of the steps at which an action was required but none was allowed; None if the environment does not mask
    actions."""
    info: Float[Array, "T N K"] | None = None
    """The numbers stored under K keys of `info` after the step; None if no keys are logged."""


def begin(world: CompiledEnvironment, agent: Acting, key: PRNGKeyArray, num_envs: int) -> EnvState:
    """Start N episodes."""
    return begin_episodes(world, agent, jax.random.split(key, num_envs))


def begin_episodes(world: CompiledEnvironment, agent: Acting, keys: Key[Array, "N"]) -> EnvState:
    """Start one episode per key."""
    state, observation = jax.vmap(world.reset)(keys)
    zeros = jnp.zeros(len(keys), jnp.int32)
    return EnvState(state, observation, agent.model.start(len(keys)), zeros, zeros.astype(jnp.float32))


def collect(
    world: CompiledEnvironment,
    agent: Acting,
    columns: EnvState,
    key: PRNGKeyArray,
    num_steps: int,
    max_episode_steps: int | None,
    log_info: tuple[str, ...] = (),
    vmapped: bool = False,
) -> tuple[EnvState, Rollout, Finished]:
    """Act for `num_steps` steps in N columns, continuing from `columns` and restarting whenever an episode ends.

    `vmapped` means that several seeds run simultaneously on an accelerator. The program then has fewer, larger
    operations.
    """
    num_envs = columns.length.shape[0] * num_shares()

    def step(columns: EnvState, randomness: tuple[Any, Randomness]) -> tuple[EnvState, tuple[Rollout, Finished]]:
        restart, step_randomness = randomness
        after, row, finished = advance(world, agent, columns, step_randomness, max_episode_steps, log_info)
        if makes_ahead:
            return where_rows(finished.done, restart, after), (row, finished)
        after = jax.lax.cond(
            jnp.any(finished.done),
            lambda: restarted(world, agent, restart, finished.done, after),
            lambda: after,
        )
        return after, (row, finished)

    keys = split_each(jax.random.split(key, num_steps))
    reset_keys = own_part(split_each(keys[:, 0], num_envs), axis=1)
    make = jax.vmap(partial(begin_episodes, world, agent))
    may_fit = vmapped and not world.costly_reset
    makes_ahead = may_fit and num_bytes(jax.eval_shape(make, reset_keys)) <= MAX_RESET_BYTES
    restarts = make(reset_keys) if makes_ahead else reset_keys
    randomness = restarts, draw_randomness(agent, columns, keys[:, 1])
    unroll = STEPS_TOGETHER if vmapped else 1
    columns, (rollout, finished) = jax.lax.scan(step, columns, randomness, unroll=unroll)
    return columns, rollout, finished


def restarted(
    world: CompiledEnvironment, agent: Acting, keys: Key[Array, "N"], done: Bool[Array, "N"], columns: EnvState
) -> EnvState:
    """Start a new episode in every column whose episode is done, each from its column's key."""
    if not world.costly_reset:
        return where_rows(done, begin_episodes(world, agent, keys), columns)
    done_first = jnp.argsort(~done)

    def restart(number: Any, columns: EnvState) -> EnvState:
        row = done_first[number]
        fresh = begin_episodes(world, agent, keys[row][None])
        return jax.tree.map(lambda all_rows, one: all_rows.at[row].set(one[0]), columns, fresh)

    return jax.lax.fori_loop(0, jnp.sum(done), restart, columns)


def collect_episodes(
    world: CompiledEnvironment,
    agent: Acting,
    key: PRNGKeyArray,
    num_envs: int,
    max_episode_steps: int,
    log_info: tuple[str, ...] = (),
    group_size: int = 1,
    vmapped: bool = False,
) -> tuple[Rollout, Finished]:
    """Collect one whole episode in each of N columns, padded to `max_episode_steps`.

    The episodes in each group of `group_size` neighbouring columns begin with the same reset. If the seed is split over
    devices, the N columns are those of all devices together."""
    begin_key, act_key = jax.random.split(key)

    def step(carry: tuple[EnvState, Array], randomness: Randomness) -> tuple[Any, tuple[Rollout, Finished]]:
        columns, running = carry
        after, row, finished = advance(world, agent, columns, randomness, max_episode_steps, log_info)
        row = row._replace(valid=running, reward=jnp.where(running, row.reward, 0.0))
        stuck = None if finished.stuck is None else finished.stuck & running
        finished = finished._replace(done=finished.done & running, stuck=stuck)
        return (after, running & ~finished.done), (row, finished)

    if group_size == 1:
        columns = begin_episodes(world, agent, own_part(jax.random.split(begin_key, num_envs)))
    else:
        reset_keys = jax.random.split(begin_key, num_envs // group_size)
        columns = begin_episodes(world, agent, own_part(reset_keys[jnp.arange(num_envs) // group_size]))
    randomness = draw_randomness(agent, columns, jax.random.split(act_key, max_episode_steps))
    unroll = STEPS_TOGETHER if vmapped else 1
    return jax.lax.scan(step, (columns, jnp.ones_like(columns.length, bool)), randomness, unroll=unroll)[1]


def draw_randomness(agent: Acting, columns: EnvState, keys: Key[Array, "T"]) -> Randomness:
    """The random inputs for T steps.

    They are drawn in one batch. In a fast environment, splitting keys and drawing numbers would otherwise take up a
    large share of the time per step. The policy is needed only for the shape of the noise.
    """
    keys, head = split_each(keys), agent.head
    transition_keys = own_part(split_each(keys[:, 1], columns.length.shape[0] * num_shares()), axis=1)
    if head.num_features:  # the noise is one matrix per column, drawn where it is used
        noise = keys[:, 0], keys[head.held_since(jnp.arange(len(keys))), 0]
        return Randomness(noise, transition_keys)
    noise = jax.vmap(lambda key: own_part(policy_of_all(agent, columns).noise(key)))(keys[:, 0])
    return Randomness(noise, transition_keys)


def policy_of_all(agent: Acting, columns: EnvState) -> Any:
    """A policy for the columns of all devices together, needed for the shape of its noise."""
    return act_in_columns(agent, of_all(columns._replace(state=())), None)[0]


def split_each(keys: Key[Array, "T"], num: int = 2) -> Key[Array, "T num"]:
    """Split each key into `num` keys."""
    return jax.vmap(lambda key: jax.random.split(key, num))(keys)


def advance(
    world: CompiledEnvironment,
    agent: Acting,
    columns: EnvState,
    randomness: Randomness,
    max_episode_steps: int | None,
    log_info: tuple[str, ...] = (),
) -> tuple[EnvState, Rollout, Finished]:
    """Advance every column by one step, without restarting finished episodes."""
    mask = choices = mask_of(world, agent.head, columns)
    stuck = None
    if mask is not None:
        # A compiled program cannot raise errors. If nothing is allowed, an arbitrary action is drawn, and `stuck`
        # reports it.
        stuck = ~agent.head.allows_some(mask)
        choices = mask | stuck[:, None]
    policy, carry = act_in_columns(agent, columns, choices)
    noise = randomness.noise
    if agent.head.num_features:
        noise = own_part(policy_of_all(agent, columns).held_noise(*noise))
    action = policy.choose(noise)
    state, transition = jax.vmap(world.step)(randomness.keys, columns.state, agent.head.to_compiled(action))
    length = columns.length + 1
    at_limit = jnp.zeros_like(transition.truncated) if max_episode_steps is None else length >= max_episode_steps
    truncated = transition.truncated | at_limit
    episode_return = columns.episode_return + transition.reward
    row = Rollout(
        observation=columns.observation,
        action=action,
        reward=transition.reward,
        terminated=transition.terminated,
        truncated=truncated,
        next_observation=transition.observation,
        behaviour_log_prob=policy.log_prob(action),
        valid=jnp.ones_like(truncated),
        action_mask=mask,
    )
    after = EnvState(state, transition.observation, carry, length, episode_return)
    info = info_of(world, after, log_info) if log_info else None
    return after, row, Finished(transition.terminated | truncated, episode_return, length, stuck, info)


def act_in_columns(agent: Acting, columns: EnvState, mask: Bool[Array, "N M"] | None) -> tuple[Any, Carry]:
    """π(·|s) in every column, and the carry after this step.

    The given carry has already been reset where an episode begins."""
    return agent.act(columns.observation, columns.carry, columns.length == 0, mask)


def mask_of(world: CompiledEnvironment, head: ActionHead, columns: EnvState) -> Bool[Array, "N M"] | None:
    """The choices that the environment allows in each column; None if it does not mask actions."""

    def one(state: Any) -> Array | None:
        mask = world.action_mask(state)
        return None if mask is None else head.flat_mask(mask)

    return in_each_column(one, columns)


def info_of(world: CompiledEnvironment, columns: EnvState, keys: tuple[str, ...]) -> Float[Array, "N K"]:
    """The numbers stored under these keys of `info` in each column."""

    def one(state: Any) -> Array:
        found = world.episode_info(state)
        return jnp.stack([jnp.asarray(found[key], jnp.float32) for key in keys])

    return in_each_column(one, columns)


def in_each_column(function: Callable[[Any], Any], columns: EnvState) -> Any:
    """A function of the environment's state, applied to the state of every column. A state may have no arrays."""
    return jax.vmap(function, axis_size=len(columns.length))(columns.state)


def where_rows(mask: Bool[Array, "N"], chosen: Any, otherwise: Any) -> Any:
    """`chosen` in rows where the mask is true, `otherwise` elsewhere, for each array of a pytree."""
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b), chosen, otherwise)
