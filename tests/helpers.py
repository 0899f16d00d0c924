"""Helpers shared by the tests, mainly to build rollouts with given ends, agents with given logits, and small tasks."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from compile_flags import FUSION_EMITTERS
from gymnasium.spaces import Box, Discrete
from hypothesis import settings
from hypothesis import strategies as st

import upslope
from upslope.config.config import configure
from upslope.core.distributions import Bernoulli, Categorical, DiagonalGaussian, MultiCategorical
from upslope.core.estimators import GAE
from upslope.core.types import Rollout, Values
from upslope.learning.iteration import Task
from upslope.learning.update import Pace, improve, plain_update
from upslope.models.agent import Agent, initialise_agent
from upslope.models.build import ModelSpec, perceptrons_for
from upslope.models.choice_heads import DiscreteHead
from upslope.models.encoders import DiscreteEncoder, encoder_of
from upslope.models.heads import head_of
from upslope.models.networks import Perceptron
from upslope.models.normaliser import RunningStatistics
from upslope.models.perceptrons import Actor, Perceptrons
from upslope.runs.directory import ENGINES, RunDirectory
from upslope.runs.policy import described_spaces

# Use the same examples every time: a law that holds only up to rounding could otherwise fail once in a thousand runs.
LAWS = settings(deadline=None, max_examples=20, derandomize=True, database=None)
SEEDS = st.integers(0, 2**32 - 1)
DISTRIBUTIONS = ("categorical", "multi_categorical", "bernoulli", "gaussian")
NUM_STEPS, NUM_ENVS = 8, 8
# For a small program, most of the time is spent in XLA, and half of that on optimising code that runs only once.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# Use JAX's default options, whatever conftest.py sets, for computations in which rounding errors grow.
users_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3} | FUSION_EMITTERS)


def rollout_of(reward, terminated=None, truncated=None, valid=None):
    """Return a rollout with these rewards [T, N] and ends. By default, no episode ends and every step is valid."""
    reward = jnp.asarray(reward, jnp.float32)
    no = np.zeros(reward.shape, bool)
    return Rollout(
        observation=jnp.zeros((*reward.shape, 1)),
        action=jnp.zeros(reward.shape, jnp.int32),
        reward=reward,
        terminated=jnp.asarray(no if terminated is None else terminated),
        truncated=jnp.asarray(no if truncated is None else truncated),
        next_observation=jnp.zeros((*reward.shape, 1)),
        behaviour_log_prob=jnp.zeros(reward.shape),
        valid=jnp.asarray(~no if valid is None else valid),
    )


def values_of(value, next_value=None):
    """Return value estimates [T, N]. By default, V(s_{t+1}) is V in the next row, and zero after the last row."""
    value = np.asarray(value, np.float32)
    if next_value is None:
        next_value = np.concatenate([value[1:], np.zeros_like(value[:1])])
    return Values(jnp.asarray(value), jnp.asarray(next_value, jnp.float32))


def segments(seed, terminating=0.15, truncating=0.15, padding=0.1):
    """Return segments with ends anywhere: a step may be terminated, truncated, both, or padding."""
    generator = np.random.default_rng(seed)
    shape = (NUM_STEPS, NUM_ENVS)
    terminated, truncated = generator.random(shape) < terminating, generator.random(shape) < truncating
    valid = generator.random(shape) >= padding
    return rollout_of(generator.normal(size=shape), terminated, truncated, valid), random_values(
        generator, terminated | truncated | ~valid
    )


def whole_episodes(seed, truncating=0.5):
    """Return one episode per column. It has any length up to T and terminates or is truncated; the rest is padding."""
    generator = np.random.default_rng(seed)
    length = generator.integers(1, NUM_STEPS + 1, NUM_ENVS)
    time = np.arange(NUM_STEPS)[:, None]
    is_last, is_truncated = time == length - 1, generator.random(NUM_ENVS) < truncating
    reward = generator.normal(size=(NUM_STEPS, NUM_ENVS))
    rollout = rollout_of(reward, is_last & ~is_truncated, is_last & is_truncated, time < length)
    return rollout, random_values(generator, time >= length - 1)


def random_values(generator, end):
    """Return values with V(s_{t+1}) from the next row or, at an end, V of the true final observation."""
    value, final = generator.normal(size=(2, *end.shape))
    following = np.concatenate([value[1:], final[-1:]])
    return values_of(value, np.where(end, final, following))


def softmax_agent(logits, value=None):
    """Return a tabular agent for Discrete observations, with π = softmax(logits[o]) and V = value[o]."""
    logits = jnp.asarray(logits, jnp.float32)
    num_observations, num_actions = logits.shape
    value = jnp.zeros(num_observations) if value is None else jnp.asarray(value, jnp.float32)
    encoder, head = DiscreteEncoder(num_observations), DiscreteHead(num_actions)
    network = Perceptron((logits,), (jnp.zeros(num_actions),), "tanh")
    critic = Perceptron((value[:, None],), (jnp.zeros(1),), "tanh")
    return Agent(
        model=Perceptrons(Actor(network, jnp.zeros(0), head), critic, encoder),
        normaliser=None,
        return_statistics=RunningStatistics.start(()),
        head=head,
        normalize_rewards=False,
    )


def actor_of(agent):
    """Return the policy network with its head."""
    return agent.model.actor


def critic_of(agent):
    """Return the critic network."""
    return agent.model.critic


def with_networks(agent, actor=None, critic=None):
    """Return a copy of the agent with these networks."""
    model = replace(agent.model, actor=actor or agent.model.actor, critic=critic or agent.model.critic)
    return replace(agent, model=model)


def fresh_agent(key, observation_space, action_space, *, normalize=(), head=None, **settings):
    """Return an untrained agent with two perceptrons; `normalize` may contain "observations" and "rewards"."""
    spec = ModelSpec(encoder_of(observation_space, "world"), head or head_of(action_space, "world"), settings)
    return initialise_agent(key, spec, **{f"normalize_{name}": True for name in normalize})


def with_logits(agent, logits):
    """Return a copy of a tabular agent with other logits, so that gradients can be taken with respect to them."""
    actor = actor_of(agent)
    return with_networks(agent, replace(actor, network=replace(actor.network, weights=(logits,))))


@partial(quick_jit, static_argnums=0)
def improve_once(update, learner, rollout, credit, key, rate, bonus=0.0, imitate=False, memory=None):
    """Perform one update with this learning rate and entropy coefficient."""
    pace = Pace(jnp.float32(rate), jnp.float32(bonus), update.objective, jnp.bool_(imitate))
    return improve(update, learner, rollout, credit, key, pace, memory)


def random_policy(kind, seed, batch=5):
    """Return a batch of random policies of one kind, all far from uniform."""
    generator = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(generator.normal(size=(batch, *shape)) * 1.5, jnp.float32)  # noqa: E731 - a named expression
    if kind == "categorical":
        return Categorical(draw(4))
    if kind == "multi_categorical":
        return MultiCategorical((Categorical(draw(2)), Categorical(draw(3))))
    if kind == "bernoulli":
        return Bernoulli(draw(3))
    return DiagonalGaussian(draw(2), 0.3 * draw(2))


def task_of(world, update=None, network=None, **changes):
    """Return a small task in a compiled environment: 8 columns of 32 steps."""
    estimator = changes.pop("estimator", GAE())
    fields = {
        "environment": world,
        "estimator": estimator,
        "update": update or plain_update(needs_critic=estimator.needs_critic),
        "model": perceptrons_for(world, **({"hidden_sizes": (16,)} | (network or {}))),
        "normalize_observations": False,
        "normalize_rewards": False,
        "gamma": 0.99,
        "steps": 100_000,
        "num_envs": 8,
        "rollout_steps": 32,
        "max_episode_steps": world.max_episode_steps,
        "learning_rate": 0.01,
        "entropy_coefficient": 0.0,
        "imitation_iterations": 0,
    }
    return Task(**(fields | changes))


def train_case(cases, case, folder, name, **options):
    """Train a case, an (environment, rung, settings) tuple, with `options` added; return the run's path."""
    environment, algorithm, settings = cases[case]
    return upslope.train(environment, algorithm, folder=folder, name=name, **(settings | options)).path


def same(left, right):
    """Return whether two pytrees are equal bit for bit."""
    leaves = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in leaves)


def write_run(
    folder, name="run", *, episodes, steps, environment="CartPole-v1", algorithm="ppo", reached=None, evaluations=(),
    versions=None, **settings,
):  # fmt: skip
    """Write a run directory as training would leave it. `episodes` has the form {seed: [(step, return), …]}."""
    seeds = sorted(episodes)
    settings |= {"seed": seeds[0], "seeds": len(seeds), "steps": steps}
    config = configure(environment, algorithm, is_continuous=False, use_preset=False, **settings)
    directory = RunDirectory(folder / name)
    encoder, head = encoder_of(Box(-1, 1, (2,)), environment), head_of(Discrete(2), environment)
    directory.create(
        config, described_spaces(encoder, head), {"estimator": config.estimator, "objective": config.objective}
    )
    rows = [
        {"iteration": i, "seed": s, "step": round((i + 1) / 4 * (reached or steps))} for s in seeds for i in range(4)
    ]
    directory.append(directory.metrics_path, "".join(json.dumps(row) + "\n" for row in rows))
    ended = [f"{step},{seed},{score},1\n" for seed, mine in episodes.items() for step, score in mine]
    directory.append(directory.episodes_path, "".join(ended))
    if evaluations:
        directory.add_evaluation(evaluations)
    description = directory.read()
    # Other tests may have loaded further engines into this process, but this run uses only those in `versions`.
    used = {name: number for name, number in description["versions"].items() if name not in ENGINES}
    (directory.path / "config.json").write_text(json.dumps(description | {"versions": used | (versions or {})}))
    return directory.path


def ending(*scores, first=0, step=100):
    """Return `episodes` for `write_run`: one episode per seed, whose return is the seed's score."""
    return {first + i: [(step, score)] for i, score in enumerate(scores)}


def warned(comparison, *words):
    return any(all(word in warning for word in words) for warning in comparison.warnings)


def two_environments(run_of):
    scores = {
        ("ppo", "CartPole-v1"): (100, 300, 500),
        ("a2c", "CartPole-v1"): (0, 100, 200),
        ("ppo", "Acrobot-v1"): (-100, -80, -90),
        ("a2c", "Acrobot-v1"): (-180, -100, -140),
    }
    return [
        run_of(f"{rung}-{world}", episodes=ending(*each), steps=100, algorithm=rung, environment=world)
        for (rung, world), each in scores.items()
    ]
