"""Play and train in finite environments, whose exact values are known. The experiments share these functions."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Float

from upslope.core.estimators import Estimator
from upslope.core.objectives import Objective, PolicyGradient, Sample
from upslope.core.types import Credit, Metrics, Rollout
from upslope.environments.base import CompiledEnvironment
from upslope.environments.tabular import Tabular
from upslope.learning.collect import collect_episodes
from upslope.learning.devices import full_precision, num_cores
from upslope.learning.evaluation import evaluate
from upslope.learning.iteration import Task, TrainState, initialise_all, iterate, over_seeds
from upslope.learning.update import Update, plain_update
from upslope.models.agent import Agent
from upslope.models.build import perceptrons_for
from upslope.models.choice_heads import DiscreteHead
from upslope.models.encoders import DiscreteEncoder
from upslope.models.networks import Perceptron
from upslope.models.normaliser import RunningStatistics
from upslope.models.perceptrons import Actor, Perceptrons

# Small programs spend most of their time in XLA's compiler, half of it on optimising code that runs once.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@dataclass(frozen=True)
class SelectedObjective(Objective):
    """Several objectives in one program, because compiling takes longer than training. The state selects one.

    The state is [index of the objective, its state].
    """

    objectives: tuple[Objective, ...]

    def init(self) -> Float[Array, "2"]:
        return self.start(0)

    def start(self, which: int) -> Float[Array, "2"]:
        """The initial state with objective number `which`."""
        return jnp.stack([jnp.float32(which), self.objectives[which].init()])

    def loss(self, state: Float[Array, "2"], sample: Sample) -> Float[Array, "B"]:
        losses = [objective.loss for objective in self.objectives]
        return jax.lax.switch(state[0].astype(jnp.int32), losses, state[1], sample)

    def adapt(self, state: Float[Array, "2"], kl: Float[Array, ""]) -> Float[Array, "2"]:
        adapts = [objective.adapt for objective in self.objectives]
        return state.at[1].set(jax.lax.switch(state[0].astype(jnp.int32), adapts, state[1], kl))

    def set_objectives(self, state: TrainState) -> TrainState:
        """Set the objectives of an initial state [K·S]: the first S seeds get objective 0, the next S objective 1, …"""
        starts = jnp.stack([self.start(k) for k in range(len(self.objectives))])
        num_seeds = state.iteration.shape[0] // len(self.objectives)
        return state._replace(learner=state.learner._replace(objective=jnp.repeat(starts, num_seeds, axis=0)))


def run_in_threads(measurements: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run independent measurements in threads: most of their time is spent in XLA, which releases Python's global
    interpreter lock."""

    def run(measure: Callable[[], Any]) -> Any:
        with full_precision(jax.default_backend() != "cpu"):  # `computing` applies only to its own thread
            return measure()

    with ThreadPoolExecutor(num_cores()) as pool:
        return list(pool.map(run, measurements))


def size_of(environment: Tabular) -> tuple[int, int]:
    """The number of observations and of actions of a finite environment."""
    assert isinstance(environment.observation_space, spaces.Discrete)
    assert isinstance(environment.action_space, spaces.Discrete)
    return int(environment.observation_space.n), int(environment.action_space.n)


def table_agent(logits: Float[np.ndarray, "O A"], value: Float[np.ndarray, "O"] | None = None) -> Agent:
    """A tabular agent over Discrete observations, with π = softmax(logits[o]), V = value[o] and no hidden layer."""
    num_observations, num_actions = logits.shape
    value = np.zeros(num_observations) if value is None else value
    encoder, head = DiscreteEncoder(num_observations), DiscreteHead(num_actions)
    network = Perceptron((jnp.asarray(logits, jnp.float32),), (jnp.zeros(num_actions),), "tanh")
    critic = Perceptron((jnp.asarray(value, jnp.float32)[:, None],), (jnp.zeros(1),), "tanh")
    return Agent(
        model=Perceptrons(Actor(network, jnp.zeros(0), head), critic, encoder),
        normaliser=None,
        return_statistics=RunningStatistics.start(()),
        head=head,
        normalize_rewards=False,
    )


def with_logits(agent: Agent, logits: Array) -> Agent:
    """The same agent with different logits, for differentiating with respect to them."""
    network = dataclasses.replace(agent.model.actor.network, weights=(logits,))
    actor = dataclasses.replace(agent.model.actor, network=network)
    return dataclasses.replace(agent, model=dataclasses.replace(agent.model, actor=actor))


def logits_of(agent: Agent) -> Float[Array, "O A"]:
    """The logits of a tabular agent."""
    return agent.model.actor.network.weights[0]


def play(environment: Tabular, agent: Agent, seed: int, episodes: int) -> Rollout:
    """Play whole episodes, one per column [T, N = episodes]."""
    limit = environment.max_episode_steps
    assert limit is not None
    collect = partial(collect_episodes, environment, num_envs=episodes, max_episode_steps=limit)
    return quick_jit(collect)(agent, jax.random.key(seed))[0]


def credits_of(estimators: Sequence[Estimator], agent: Agent, rollout: Rollout, gamma: float) -> list[Credit]:
    """The credit that each estimator assigns to the same rollout with the agent's critic, computed in one program."""

    def weigh(agent: Agent, rollout: Rollout) -> list[Credit]:
        values = evaluate(agent, rollout)
        return [estimator(rollout, values, gamma) for estimator in estimators]

    return quick_jit(weigh)(agent, rollout)


def episode_gradients(
    agent: Agent, rollout: Rollout, weight: Float[Array, "T N"], objective: Objective | None = None
) -> Float[np.ndarray, "N K"]:
    """Each episode's estimate of the policy gradient, Σ_t Ψ_t ∇log π(a_t|s_t), flattened over the K logits."""
    objective = objective or PolicyGradient()

    def gain(logits: Array, observation: Array, action: Array, log_mu: Array, weight: Array, valid: Array) -> Array:
        log_prob = with_logits(agent, logits).policy(observation).log_prob(action)
        loss = objective.loss(objective.init(), Sample(log_prob, log_mu, weight, jnp.zeros_like(weight)))
        return -jnp.sum(jnp.where(valid, loss, 0.0))

    facts = (rollout.observation, rollout.action, rollout.behaviour_log_prob, weight, rollout.valid)
    gradient = quick_jit(jax.vmap(jax.grad(gain), in_axes=(None, 1, 1, 1, 1, 1)))
    found = gradient(logits_of(agent), *facts)
    return np.asarray(found, np.float64).reshape(weight.shape[1], -1)


def small_task(environment: CompiledEnvironment, estimator: Estimator, objective: Objective, **changes: Any) -> Task:
    """A task in a small environment; `changes` are fields of `Task` or of `Update`."""
    of_update = {field.name for field in dataclasses.fields(Update)} & set(changes)
    update = {name: changes.pop(name) for name in of_update}
    fields: dict[str, Any] = {
        "environment": environment,
        "estimator": estimator,
        "update": plain_update(objective=objective, needs_critic=estimator.needs_critic, **update),
        "model": perceptrons_for(environment, hidden_sizes=(32,)),
        "normalize_observations": False,
        "normalize_rewards": False,
        "gamma": 0.99,
        "steps": 10**9,
        "num_envs": 8,
        "rollout_steps": 32,
        "max_episode_steps": environment.max_episode_steps,
        "learning_rate": 0.01,
        "entropy_coefficient": 0.0,
        "imitation_iterations": 0,
    }
    return Task(**(fields | changes))


def train_policies(task: Task, seeds: Sequence[int], iterations: int) -> tuple[Float[np.ndarray, "S I O A"], Metrics]:
    """Train, and return the policy table after every iteration, from which its exact return can be computed.

    With a `SelectedObjective` of K objectives, each objective trains all `seeds`: S = K · len(seeds).
    """
    every_observation = jnp.arange(size_of(task.environment)[0])

    def one(state: TrainState, _: None) -> tuple[TrainState, Any]:
        state, metrics, _finished = iterate(task, state)
        agent = state.learner.agent
        return state, (agent.model.actor.network(agent.features(every_observation)), metrics)

    def train(state: TrainState) -> Any:
        return jax.lax.scan(one, state, length=iterations)[1]

    objective = task.update.objective
    if isinstance(objective, SelectedObjective):
        state = objective.set_objectives(initialise_all(task, [*seeds] * len(objective.objectives)))
    else:
        state = initialise_all(task, seeds)
    logits, metrics = quick_jit(over_seeds(train))(state)
    return np.asarray(jax.nn.softmax(logits), np.float64), metrics
