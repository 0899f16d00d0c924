"""The loop, on one page: act, weigh, move.

A `TrainState` always has a leading axis S of seeds, and `over_seeds` runs one seed's program on each. One seed is
S = 1, not another path.
"""

import dataclasses
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Integer, Key, PRNGKeyArray

from upslope.core.estimators import UNROLL, Estimator, ends
from upslope.core.types import Credit, Metrics, Rollout, Values
from upslope.errors import UpslopeError
from upslope.learning.collect import EnvState, Finished, begin, collect, collect_episodes
from upslope.learning.devices import AT_ONCE, SEEDS, is_vmapped
from upslope.learning.evaluation import evaluate
from upslope.learning.health import HealthProbe
from upslope.learning.optimisers import CONSTANT, Schedules, scheduled
from upslope.learning.update import Learner, Pace, Update, begin_learning, explained_variance, improve
from upslope.models.agent import Agent, initialise_agents, returns_seen
from upslope.models.build import ModelSpec
from upslope.models.model import Memory, start_memory
from upslope.models.normaliser import updated

Weigh = Callable[[Any, Rollout], tuple[Any, Rollout, Credit, Metrics]]
Move = Callable[[Any, Rollout, Credit, PRNGKeyArray], tuple[Any, Metrics]]
QUICK: dict[str, str | bool] = {"xla_backend_optimization_level": "1", "xla_cpu_prefer_vector_width": "512"}
"""Compiled sooner: for programs that run once, and on CPU cores for training too; and for vectors of 512 bits where a
core has them, of which XLA alone uses half."""


@dataclass(frozen=True)
class Task:
    """What is to be learned and how: the environment, the pair of axes, the budget, the spaces."""

    environment: Any
    """A `CompiledEnvironment`, or a `HostEnvironment` whose episodes an engine plays."""
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

    def described(self) -> dict[str, Any]:
        """The pair of axes with their fields, for config.json."""
        for part in (self.estimator, self.update.objective):
            if not dataclasses.is_dataclass(part):
                raise UpslopeError(
                    f"{type(part).__name__} must be a dataclass, so that a run can say what it was trained with: put "
                    "@dataclass(frozen=True) above the class."
                )
        described = {"estimator": repr(self.estimator), "objective": repr(self.update.objective)}
        return described | {"needs_critic": self.estimator.needs_critic}


class TrainState(NamedTuple):
    """Everything that training changes, for each of S seeds."""

    learner: Learner
    columns: EnvState | None
    """The running episodes of a compiled world; None where the world lives elsewhere or episodes are whole."""
    memory: Memory
    """The model's in each column where the next rollout begins."""
    discounted_return: Float[Array, "N"]
    """Σ γ^k r of each running episode so far, where reward normalisation needs its variance."""
    key: PRNGKeyArray
    steps: Integer[Array, ""]
    iteration: Integer[Array, ""]


def initialise(task: Task, seed: int) -> TrainState:
    """The state of one seed before training."""
    return jax.tree.map(lambda x: x[0], initialise_all(task, [seed]))


def initialise_all(task: Task, seeds: Sequence[int], *, acts: bool = True) -> TrainState:
    """The state of all seeds [S] before training; with running episodes if the seed `acts` in a compiled environment.

    Networks are drawn in NumPy, all the rest in one program: one by one, its small operations would each be compiled.
    """
    numbers = np.asarray(seeds, np.uint32)
    split = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed), 3))
    keys = jax.jit(split, compiler_options=QUICK)(numbers)
    agents = initialise_agents(
        list(keys[:, 0]),
        task.model,
        normalize_observations=task.normalize_observations,
        normalize_rewards=task.normalize_rewards,
    )
    begin_all = over_seeds(partial(begin_training, task, acts))
    return jax.jit(lambda agents, keys: begin_all(stack(agents), keys), compiler_options=QUICK)(agents, keys)


def begin_training(task: Task, acts: bool, agent: Agent, keys: Key[Array, "3"]) -> TrainState:
    """The state of one seed with this agent; of its three keys the first made the agent."""
    _, begin_key, key = keys
    keeps_episodes = acts and task.environment.is_compiled and not task.estimator.whole_episodes
    return TrainState(
        learner=begin_learning(task.update, agent),
        columns=begin(task.environment, agent, begin_key, task.num_envs) if keeps_episodes else None,
        memory=start_memory(agent.model, task.num_envs),
        discounted_return=jnp.zeros(task.num_envs),
        key=key,
        steps=jnp.uint32(0),
        iteration=jnp.int32(0),
    )


def iterate(task: Task, state: TrainState) -> tuple[TrainState, Metrics, Finished]:
    """One policy iteration in a compiled environment: act, weigh, move."""
    act_key, move_key = iteration_keys(state)
    agent, columns, world = state.learner.agent, state.columns, task.environment
    if task.estimator.whole_episodes:
        assert task.max_episode_steps is not None
        rollout, finished = collect_episodes(world, agent, act_key, task.num_envs, task.max_episode_steps)
    else:
        assert columns is not None
        columns, rollout, finished = collect(world, agent, columns, act_key, task.rollout_steps, task.max_episode_steps)
    state, metrics = learn(partial(weigh, task), partial(move, task), state, rollout, move_key)
    memory = state.memory if columns is None else Memory(columns.carry, columns.length == 0)
    return state._replace(columns=columns, memory=memory), metrics, finished


def learn(
    weigh: Weigh, move: Move, state: TrainState, rollout: Rollout, key: PRNGKeyArray
) -> tuple[TrainState, Metrics]:
    """Learn from a rollout, wherever it came from: weigh, then move. Both may be compiled apart and timed."""
    state, scaled, credit, assessed = weigh(state, rollout)
    state, metrics = move(state, scaled, credit, key)
    return state, metrics | assessed


def weigh(task: Task, state: TrainState, rollout: Rollout) -> tuple[TrainState, Rollout, Credit, Metrics]:
    """Facts → credit, and how good the critic was that gave it. The returned rollout has its rewards in the learner's
    unit; the facts keep theirs."""
    agent = state.learner.agent
    carry = state.discounted_return
    if agent.normalize_rewards:
        discounted, carry = discounted_returns(task, carry, rollout)
        statistics = returns_seen(agent.return_statistics, rollout.reward, discounted, rollout.valid)
        agent = dataclasses.replace(agent, return_statistics=statistics)
    scaled = rollout._replace(reward=rollout.reward * agent.reward_scale())
    needs_critic = task.update.needs_critic
    values = evaluate(agent, scaled, state.memory, task.update.vmapped) if needs_critic else no_values(scaled)
    credit = task.estimator(scaled, values, task.gamma)
    assessed = {}
    if task.update.needs_critic:
        assessed["critic/explained_variance"] = explained_variance(values.value, credit.target, rollout.valid)
    learner = state.learner._replace(agent=agent)
    return state._replace(learner=learner, discounted_return=carry), scaled, credit, assessed


def move(
    task: Task, state: TrainState, rollout: Rollout, credit: Credit, key: PRNGKeyArray
) -> tuple[TrainState, Metrics]:
    """Credit → a better agent; then let its normaliser see the observations, for the next iteration.

    Only then: with other statistics π_θ would be another policy than the one that acted, and the ratio not 1.
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
    learner, metrics = improve(task.update, state.learner, rollout, credit, key, pace, state.memory, probe)
    agent = learner.agent
    if agent.normalize_observations:
        normaliser = updated(agent.normaliser, rollout.observation, rollout.valid)
        learner = learner._replace(agent=dataclasses.replace(agent, normaliser=normaliser))
    return state._replace(learner=learner, steps=steps, iteration=state.iteration + 1), metrics


def pace_of(task: Task, progress: Float[Array, ""], iteration: Integer[Array, ""]) -> Pace:
    """What changes over the budget, at this share of it."""
    schedules = task.schedules
    objective = task.update.objective
    if schedules.epsilon is not None and hasattr(objective, "epsilon"):
        epsilon: Any = objective.epsilon  # pyright: ignore[reportAttributeAccessIssue] - a field of some objectives
        # Not `replace`, which would ask a number that is being traced whether it is in range.
        objective = copy(objective)
        object.__setattr__(objective, "epsilon", epsilon * schedules.epsilon(progress))
    return Pace(
        learning_rate=jnp.float32(scheduled(task.learning_rate, schedules.learning_rate, progress)),
        entropy_coefficient=scheduled(task.entropy_coefficient, schedules.entropy_coefficient, progress),
        objective=objective,
        imitate=iteration < task.imitation_iterations,
    )


def iterate_many(
    task: Task, state: TrainState, iterations: int
) -> tuple[TrainState, tuple[Metrics, Finished, Integer[Array, "I"], Integer[Array, "I"]]]:
    """Several iterations of one seed in one program."""
    return repeat(task, partial(iterate, task), state, iterations)


def repeat(
    task: Task, go: Callable[[TrainState], tuple[TrainState, Metrics, Any]], state: TrainState, times: int
) -> Any:
    """Iterate several times; a seed whose budget is spent stands still.

    Returns the state, and for each iteration the metrics, what finished, and the steps before and after.
    """

    go = jax.jit(go, inline=True)  # traced once for its shapes and itself

    def stay(state: TrainState) -> tuple[TrainState, Metrics, Any]:
        _, metrics, finished = jax.eval_shape(go, state)
        nothing = jax.tree.map(lambda m: jnp.full(m.shape, jnp.nan, m.dtype), metrics)
        return state, nothing, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), finished)

    def body(state: TrainState, _: None) -> tuple[TrainState, tuple[Metrics, Any, Array, Array]]:
        before = state.steps
        state, metrics, finished = jax.lax.cond(state.steps < task.steps, go, stay, state)
        return state, (metrics, finished, before, state.steps)

    return jax.lax.scan(body, state, length=times)


def over_seeds(function: Callable[..., Any], vmapped: bool = False) -> Callable[..., Any]:
    """Run one seed's program on every seed, one after another or all at once: [S, …] → [S, …]."""
    if vmapped:
        return jax.vmap(function, axis_name=AT_ONCE)
    return lambda *arguments: jax.lax.map(lambda one: function(*one), arguments)


def spread_seeds(function: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[..., Any]:
    """`function(shared, one)` for every seed, spread evenly over the devices of a mesh: (shared, [S, …]) → [S, …]."""
    vmapped = is_vmapped(mesh)
    return jax.shard_map(
        lambda shared, states: over_seeds(partial(function, shared), vmapped)(states),
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(SEEDS)),
        out_specs=PartitionSpec(SEEDS),
        check_vma=False,
    )


def stack(states: list[Any]) -> Any:
    """Give a list of S like pytrees the leading axis S."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def iteration_keys(state: TrainState) -> tuple[PRNGKeyArray, PRNGKeyArray]:
    """This iteration's keys to act and to move; they depend on the seed and the iteration alone."""
    act_key, move_key = jax.random.split(jax.random.fold_in(state.key, state.iteration))
    return act_key, move_key


def no_values(rollout: Rollout) -> Values:
    """For an estimator without a critic."""
    zeros = jnp.zeros_like(rollout.reward)
    return Values(zeros, zeros)


def discounted_returns(
    task: Task, carry: Float[Array, "N"], rollout: Rollout
) -> tuple[Float[Array, "T N"], Float[Array, "N"]]:
    """G_t = r_t + γ G_{t−1} within each episode, forwards in time, and G at the end to go on from."""

    def forwards(before: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        reward, end = now
        total = reward + task.gamma * before
        return jnp.where(end, 0.0, total), total

    carry, discounted = jax.lax.scan(forwards, carry, (rollout.reward, ends(rollout)), unroll=UNROLL)
    return discounted, jnp.zeros_like(carry) if task.estimator.whole_episodes else carry
