"""The training loop on one page: act, weigh, move.

A `TrainState` always has a leading axis S of seeds, and `over_seeds` runs one seed's program on each. A single seed is
S = 1, not a separate code path.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Integer, Key, PRNGKeyArray, Shaped, UInt32

from upslope.core.arrays import in_rows, raw, typed
from upslope.core.estimators import Estimator, returns_differ, returns_in_groups
from upslope.core.types import Credit, Metrics, Rollout, Values
from upslope.errors import UpslopeError
from upslope.learning.bonuses.bonus import Setting
from upslope.learning.collect import EnvState, Finished, begin, collect, collect_episodes
from upslope.learning.devices import ENVIRONMENTS, SEEDS, VMAPPED_SEEDS, is_split, is_vmapped
from upslope.learning.evaluation import evaluate, log_probs
from upslope.learning.health import HealthProbe
from upslope.learning.intrinsic import Intrinsic, Stream, begin_stream, check_bonus, fit_critic, weigh_bonus
from upslope.learning.optimisers import CONSTANT, Schedules, scheduled
from upslope.learning.own_parts import rollout_like
from upslope.learning.reference import Reference, advanced
from upslope.learning.returns import discounted_returns
from upslope.learning.split import gathered
from upslope.learning.update import Learner, Pace, Update, begin_learning, explained_variance, improve
from upslope.models.agent import Agent, initialise_agents, returns_seen
from upslope.models.build import ModelSpec
from upslope.models.model import Memory, start_memory
from upslope.models.normaliser import RunningStatistics, updated
from upslope.models.products import FULL

Weigh = Callable[[Any, Rollout], tuple[Any, Rollout, Credit, Metrics]]
AnyKey = PRNGKeyArray | UInt32[np.ndarray, "W"]
"""A random key, or its data on the host."""
Move = Callable[[Any, Rollout, Credit, Any], tuple[Any, Metrics]]
PREFERRED = {"xla_backend_optimization_level": "1", "xla_cpu_prefer_vector_width": "512"}
QUICK: dict[str, Any] = {
    option: value for option, value in PREFERRED.items() if option not in os.environ.get("XLA_FLAGS", "")
}
"""Compiler options for faster compilation, used for programs that run only once and for training on CPU cores. They
also enable 512-bit vectors on cores that support them; by default, XLA uses 256 bits. `XLA_FLAGS` takes precedence."""
OF_BONUS, OF_INTRINSIC_CRITIC = 0x626F6E75, 0x63726974
"""The numbers that are folded into an iteration's key to give the keys for the bonus and for its critic."""


@dataclass(frozen=True)
class Task:
    """A learning task: the environment, the estimator and objective, the budget, the model and the hyperparameters."""

    environment: Any
    """A `CompiledEnvironment`, or a `HostEnvironment` that an engine steps."""
    estimator: Estimator
    update: Update
    model: ModelSpec
    normalize_observations: bool
    normalize_rewards: bool
    gamma: float
    steps: int
    num_envs: int
    rollout_steps: int
    max_episode_steps: int | None
    learning_rate: float
    entropy_coefficient: float
    imitation_iterations: int
    schedules: Schedules = CONSTANT
    clip_rewards: float | None = None
    """For the learner, rewards are clipped to this magnitude. The rollout and the episodes' returns keep the
    environment's rewards."""
    log_info: tuple[str, ...] = ()
    """Keys of the numbers in `info` that are stored for every finished episode."""
    group_size: int = 1
    """G, the number of neighbouring columns whose whole episodes begin with the same reset."""
    intrinsic: Intrinsic | None = None
    """The exploration bonus and how it is credited; None without a bonus."""
    precision: str = FULL
    """The precision of the operands in the matrix products of the networks' layers."""
    devices_per_seed: int = 1
    """Number of devices over which each seed's columns of a compiled environment are split."""

    def rollout_like(self) -> Rollout:
        """The shapes and dtypes of a rollout. Whole episodes are as long as they may be."""
        steps = self.max_episode_steps if self.estimator.whole_episodes else self.rollout_steps
        return rollout_like(self.model, steps or 1, self.num_envs, has_masks=self.environment.gives_masks)

    def described(self) -> dict[str, Any]:
        """Describe the estimator, the objective and their fields for config.json."""
        bonus = () if self.intrinsic is None else (self.intrinsic.bonus,)
        for part in (self.estimator, self.update.objective, *bonus):
            if not dataclasses.is_dataclass(part):
                raise UpslopeError(
                    f"{type(part).__name__} must be a dataclass, so that a run can record its settings. "
                    "Put @dataclass(frozen=True) above the class."
                )
        described = {"estimator": repr(self.estimator), "objective": repr(self.update.objective)}
        described |= {} if self.intrinsic is None else {"bonus": repr(self.intrinsic.bonus)}
        return described | {"needs_critic": self.estimator.needs_critic}


class TrainState(NamedTuple):
    """All state that training changes, for each of S seeds."""

    learner: Learner
    columns: EnvState | None
    """The running episodes of a compiled environment; None on the host, or if whole episodes are collected. If a seed
    is split over devices, each device holds its share of the episodes, and a full copy of everything else."""
    memory: Memory
    """The model's memory in each column at the start of the next rollout."""
    discounted_return: Float[Array, "N"]
    """The discounted return so far of each running episode, for reward normalisation."""
    key: PRNGKeyArray
    steps: Integer[Array, ""]
    iteration: Integer[Array, ""]
    reference: Reference | None = None
    """The fixed reference policy, if any; the learner is penalised for deviating from it."""
    stream: Stream | tuple[()] = ()
    """The intrinsic stream; without arrays if there is no bonus."""


def initialise(task: Task, seed: int) -> TrainState:
    """The initial state of one seed."""
    return jax.tree.map(lambda x: x[0], initialise_all(task, [seed]))


def initialise_all(task: Task, seeds: Sequence[int], *, acts: bool = True) -> TrainState:
    """The initial state of all seeds [S], with running episodes if `acts` and the environment is compiled.

    Networks are initialised in NumPy. Everything else is one program, which avoids compiling each small operation. The
    program handles a single seed and is run once per seed, because XLA may round a loop over several seeds differently
    from a single run of its body.
    """
    fresh, keys = fresh_networks(task, seeds)
    return begin_each(jax.jit(partial(begin_training, task, acts), compiler_options=QUICK), fresh, keys)


def begin_each(begin_one: Callable[..., TrainState], fresh: Sequence[Any], *rest: Any) -> TrainState:
    """Compute the initial state of all seeds [S] with a compiled program for one seed. The arrays in `rest` have one
    row per seed."""
    states = [begin_one(one, *own) for one, *own in zip(fresh, *map(in_rows, rest), strict=True)]
    # Stack in NumPy and transfer the result to the device in one step, which avoids compiling each small operation.
    together = jax.device_put(jax.tree.map(lambda *x: np.stack([np.asarray(raw(leaf)) for leaf in x]), *states))
    return jax.tree.map(typed, together, states[0])


Fresh = tuple[Agent, Stream | tuple[()]]
"""An agent and an intrinsic stream before the first step."""


def fresh_networks(task: Task, seeds: Sequence[int]) -> tuple[list[Fresh], Key[Array, "S 3"]]:
    """An agent and an intrinsic stream for each seed, and the keys with which `begin_training` continues."""
    numbers = np.asarray(seeds, np.uint32)
    split = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3))
    keys = jax.jit(split, compiler_options=QUICK)(numbers)
    first_keys = in_rows(typed(jax.device_put(np.asarray(raw(keys))[:, 0]), keys))
    agents = initialise_agents(
        first_keys,
        task.model,
        normalize_observations=task.normalize_observations,
        normalize_rewards=task.normalize_rewards,
    )
    return list(zip(agents, fresh_streams(task, first_keys), strict=True)), keys


def fresh_streams(task: Task, keys: Sequence[PRNGKeyArray]) -> list[Any]:
    """An intrinsic stream for each seed, without arrays if there is no bonus."""
    if task.intrinsic is None:
        return [()] * len(keys)
    setting = Setting(task.environment.observation_space, task.model, task.num_envs)
    of_bonus = [jax.random.fold_in(key, 1) for key in keys]
    streams = [begin_stream(task.intrinsic, setting, task.update, key) for key in of_bonus]
    check_bonus(task.intrinsic.bonus, streams[0].bonus, task.rollout_like())
    return streams


def begin_training(task: Task, acts: bool, fresh: Fresh, keys: Key[Array, "3"]) -> TrainState:
    """The initial state of one seed with these networks. The first of its three keys was used to create them."""
    _, begin_key, key = keys
    agent, stream = fresh
    keeps_episodes = acts and task.environment.is_compiled and not task.estimator.whole_episodes
    memory = start_memory(agent.model, task.num_envs)
    return TrainState(
        learner=begin_learning(task.update, agent),
        columns=begin(task.environment, agent, begin_key, task.num_envs) if keeps_episodes else None,
        memory=memory,
        discounted_return=jnp.zeros(task.num_envs),
        key=key,
        steps=jnp.uint32(0),
        iteration=jnp.int32(0),
        reference=None if task.update.reference_kl is None else Reference(as_reference(agent), memory),
        stream=stream,
    )


def as_reference(agent: Agent) -> Agent:
    """The agent without the parts that its policy does not need."""
    return dataclasses.replace(agent, return_statistics=RunningStatistics.start(()), normalize_rewards=False)


def begun_with(state: TrainState, learner: Learner) -> TrainState:
    """Replace the learner in the initial state of all seeds [S]. The new learner's model initialises every memory."""
    num_envs = state.discounted_return.shape[1]
    memory = jax.vmap(lambda model: start_memory(model, num_envs))(learner.agent.model)
    columns = state.columns if state.columns is None else state.columns._replace(carry=memory.carry)
    return state._replace(learner=learner, memory=memory, columns=columns)


def iterate(task: Task, state: TrainState) -> tuple[TrainState, Metrics, Finished]:
    """One policy iteration in a compiled environment: act, weigh, move."""
    act_key, move_key = iteration_keys(state)
    agent, columns, world = state.learner.agent, state.columns, task.environment
    vmapped = task.update.vmapped
    if task.estimator.whole_episodes:
        assert task.max_episode_steps is not None
        sizes = task.num_envs, task.max_episode_steps
        rollout, finished = collect_episodes(world, agent, act_key, *sizes, task.log_info, task.group_size, vmapped)
    else:
        assert columns is not None
        sizes = task.rollout_steps, task.max_episode_steps
        columns, rollout, finished = collect(world, agent, columns, act_key, *sizes, task.log_info, vmapped)
    rollout, finished = gathered((rollout, finished), axis=1)
    state, metrics = learn(partial(weigh, task), partial(move, task), state, rollout, move_key)
    memory = state.memory if columns is None else gathered(Memory(columns.carry, columns.length == 0))
    return state._replace(columns=columns, memory=memory), metrics, finished


def learn(weigh: Weigh, move: Move, state: TrainState, rollout: Rollout, key: AnyKey) -> tuple[TrainState, Metrics]:
    """Learn from a rollout, whatever its source: weigh, then move."""
    state, scaled, credit, assessed = weigh(state, rollout)
    state, metrics = move(state, scaled, credit, key)
    return state, metrics | assessed


def weigh(task: Task, state: TrainState, rollout: Rollout) -> tuple[TrainState, Rollout, Credit, Metrics]:
    """Facts → credit, together with the critic's explained variance. The returned rollout has rewards in the learner's
    units; the given rollout is not changed."""
    rollout = with_clipped_rewards(rollout, task.clip_rewards)
    agent = state.learner.agent
    carry = state.discounted_return
    if agent.normalize_rewards:
        discounted, carry = discounted_returns(task.gamma, carry, rollout)
        carry = jnp.zeros_like(carry) if task.estimator.whole_episodes else carry
        statistics = returns_seen(agent.return_statistics, rollout.reward, discounted, rollout.valid)
        agent = dataclasses.replace(agent, return_statistics=statistics)
    scaled = rollout._replace(reward=rollout.reward * agent.reward_scale())
    needs_critic = task.update.needs_critic
    values = evaluate(agent, scaled, state.memory, task.update.vmapped) if needs_critic else no_values(scaled)
    if task.estimator.corrects:
        values = values._replace(log_prob=log_probs(agent, scaled, state.memory, task.update.vmapped))
    credit = task.estimator(scaled, values, task.gamma)
    assessed = {}
    if task.update.needs_critic:
        assessed["critic/explained_variance"] = explained_variance(values.value, credit.target, rollout.valid)
    if task.group_size > 1:
        assessed["policy/equal_groups"] = equal_groups(scaled, task.gamma, task.group_size)
    learner = state.learner._replace(agent=agent)
    state = state._replace(learner=learner, discounted_return=carry)
    if task.intrinsic is not None:
        state, credit, paid = with_bonus(task, task.intrinsic, state, rollout, values, credit)
        assessed |= paid
    return state, scaled, credit, assessed


def with_bonus(
    task: Task, intrinsic: Intrinsic, state: TrainState, rollout: Rollout, values: Values, credit: Credit
) -> tuple[TrainState, Credit, Metrics]:
    """The credit with the bonus's Ψ added; see `learning/intrinsic.py`."""
    assert isinstance(state.stream, Stream)
    # This number must differ from those that splits use: `split(key)[1]` may be `fold_in(key, 1)`, which is the
    # critic's key.
    key = jax.random.fold_in(iteration_keys(state)[1], OF_BONUS)
    parts = task.estimator, task.update, state.stream, state.learner.agent, state.memory
    stream, credit, metrics = weigh_bonus(intrinsic, *parts, rollout, values, credit, key)
    return state._replace(stream=stream), credit, metrics


def equal_groups(rollout: Rollout, gamma: float, group_size: int) -> Float[Array, ""]:
    """The share of groups whose returns are all equal, which makes comparing them uninformative."""
    return jnp.mean(~returns_differ(returns_in_groups(rollout, gamma, group_size)))


def with_clipped_rewards(rollout: Rollout, limit: float | None) -> Rollout:
    """A copy of the rollout with rewards clipped to [−limit, limit], as the learner sees them."""
    return rollout if limit is None else rollout._replace(reward=jnp.clip(rollout.reward, -limit, limit))


def move(
    task: Task, state: TrainState, rollout: Rollout, credit: Credit, key: PRNGKeyArray
) -> tuple[TrainState, Metrics]:
    """Credit → a better agent. Then update the normaliser with the observations, for the next iteration.

    The normaliser is updated last. With new statistics, π_θ would differ from the policy that acted, and the ratio
    would not start at 1.
    """
    progress = state.steps.astype(jnp.float32) / task.steps
    steps = state.steps + jnp.sum(rollout.valid, dtype=jnp.uint32)
    probe = HealthProbe(
        task.gamma,
        task.model.head,
        progress,
        steps.astype(jnp.float32) / task.steps,
        needs_critic=task.update.needs_critic,
        vmapped=task.update.vmapped,
    )
    pace = pace_of(task, progress, state.iteration)
    stream, fitted = state.stream, {}
    if isinstance(stream, Stream):
        facts = state.learner.agent, rollout, jax.random.fold_in(key, OF_INTRINSIC_CRITIC)
        stream, fitted = fit_critic(stream, task.update, *facts, pace.learning_rate)
    known = state.memory, probe, state.reference
    learner, metrics = improve(task.update, state.learner, rollout, credit, key, pace, *known)
    agent = learner.agent
    if agent.normalize_observations:
        normaliser = updated(agent.normaliser, rollout.observation, rollout.valid)
        learner = learner._replace(agent=dataclasses.replace(agent, normaliser=normaliser))
    if state.reference is not None and not task.estimator.whole_episodes:
        state = state._replace(reference=advanced(state.reference, rollout))
    after = state._replace(learner=learner, steps=steps, iteration=state.iteration + 1, stream=stream)
    return after, metrics | fitted


def pace_of(task: Task, progress: Float[Array, ""], iteration: Integer[Array, ""]) -> Pace:
    """The values of all scheduled quantities at this point in the budget."""
    schedules = task.schedules
    objective = task.update.objective
    if schedules.epsilon is not None and hasattr(objective, "epsilon"):
        factor: Any = schedules.epsilon(progress)
        # `replace` cannot be used, because its range checks would fail on a traced value.
        objective = copy(objective)
        for name in ("epsilon", "epsilon_high"):
            if (epsilon := getattr(objective, name, None)) is not None:
                object.__setattr__(objective, name, epsilon * factor)
    return Pace(
        learning_rate=jnp.float32(scheduled(task.learning_rate, schedules.learning_rate, progress)),
        entropy_coefficient=scheduled(task.entropy_coefficient, schedules.entropy_coefficient, progress),
        objective=objective,
        imitate=iteration < task.imitation_iterations,
    )


def iterate_many(
    task: Task, state: TrainState, iterations: int
) -> tuple[TrainState, tuple[Metrics, Finished, Integer[Array, "I"], Integer[Array, "I"]]]:
    """Run several iterations for one seed in one program."""
    return repeat(task, partial(iterate, task), state, iterations)


def repeat(
    task: Task, iterate_once: Callable[[TrainState], tuple[TrainState, Metrics, Any]], state: TrainState, count: int
) -> Any:
    """Run several iterations. A seed whose budget is spent stays unchanged.

    Returns the state and, for each iteration, the metrics, the finished episodes, and the steps before and after.
    """

    iterate_once = jax.jit(iterate_once, inline=True)  # trace only once, for both shapes and execution

    def skip(state: TrainState) -> tuple[TrainState, Metrics, Any]:
        _, metrics, finished = jax.eval_shape(iterate_once, state)
        nothing = jax.tree.map(lambda m: jnp.full(m.shape, jnp.nan, m.dtype), metrics)
        return state, nothing, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), finished)

    def body(state: TrainState, _: None) -> tuple[TrainState, tuple[Metrics, Any, Array, Array]]:
        before = state.steps
        state, metrics, finished = jax.lax.cond(state.steps < task.steps, iterate_once, skip, state)
        return state, (metrics, finished, before, state.steps)

    return jax.lax.scan(body, state, length=count)


def over_seeds(function: Callable[..., Any], vmapped: bool = False) -> Callable[..., Any]:
    """Run one seed's program on every seed, sequentially or vmapped: [S, …] → [S, …]."""
    if vmapped:
        return jax.vmap(function, axis_name=VMAPPED_SEEDS)
    return lambda *arguments: jax.lax.map(lambda one: function(*one), arguments)


def spread_seeds(function: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[..., Any]:
    """Run `function(shared, state) → (state, facts)` on every seed, with seeds spread evenly over a mesh's devices.

    The result maps (shared, states [S, …]) → (states [S, …], facts [S, …])."""
    vmapped = is_vmapped(mesh)

    def spread(shared: Any, states: Any) -> Any:
        axes = axes_of(states, mesh)
        return jax.shard_map(
            lambda shared, states: over_seeds(partial(function, shared), vmapped)(states),
            mesh=mesh,
            in_specs=(PartitionSpec(), axes),
            out_specs=(axes, PartitionSpec(SEEDS)),
            check_vma=False,
        )(shared, states)

    return spread


def axes_of(states: Any, mesh: Mesh) -> Any:
    """The axes of a mesh over which each array of the states [S, …] is split. Running episodes [S, N, …] are also split
    over the environments' axis."""
    if not is_split(mesh):
        return PartitionSpec(SEEDS)
    return jax.tree.map(lambda _: PartitionSpec(SEEDS), states)._replace(columns=PartitionSpec(SEEDS, ENVIRONMENTS))


def stack(states: list[Any]) -> Any:
    """Stack S pytrees of the same structure along a new leading axis S."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def iteration_keys(state: TrainState) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """The keys for acting and moving in this iteration, which depend only on the seed and the iteration."""
    return keys_at(state.key, state.iteration)


def keys_at(key: PRNGKeyArray, iteration: Any) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """The keys for acting and moving in an iteration, given the seed's key."""
    act_key, move_key = jax.random.split(jax.random.fold_in(key, iteration))
    return act_key, move_key


def keys_ahead(key: PRNGKeyArray, iteration: Integer[Array, ""], count: int) -> Shaped[Array, "I 2 W"]:
    """The data of the keys for acting and moving in the next iterations."""
    ahead = jax.vmap(lambda i: jnp.stack(keys_at(key, iteration + i)))(jnp.arange(count))
    return jax.random.key_data(ahead)


def no_values(rollout: Rollout) -> Values:
    """Zero values, for an estimator without a critic."""
    zeros = jnp.zeros_like(rollout.reward)
    return Values(zeros, zeros)
