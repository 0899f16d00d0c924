"""Fitted Q evaluation: estimate Q^π from recorded steps by repeated regression on bootstrapped targets.

    Q_{k+1} = argmin_Q Σ (Q(s, a) − y)²,   y = r + γ E_{a'~π(·|s')}[Q_k(s', a')],   without the last term if terminated

Source: Le, Voloshin & Yue 2019, Batch Policy Learning under Constraints, algorithm 3. Each regression continues from
the network of the previous one, with a few minibatches. A truncated step bootstraps from its true final observation.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from upslope.core.arrays import STATIC, pytree
from upslope.core.distributions import Distribution
from upslope.models.agent import Agent
from upslope.models.box_heads import BoxHead
from upslope.models.build import ModelSpec
from upslope.models.choice_heads import DiscreteHead, MultiBinaryHead, MultiDiscreteHead
from upslope.models.encoders import (
    BoxEncoder,
    DictEncoder,
    DiscreteEncoder,
    MultiBinaryEncoder,
    MultiDiscreteEncoder,
    ObservationEncoder,
    TupleEncoder,
)
from upslope.models.head import ActionHead
from upslope.models.normaliser import RunningStatistics, start_normaliser, updated
from upslope.models.product_heads import DictHead

MOST_ITERATIONS, LEAST_ITERATIONS = 1000, 200
HORIZONS = 4
"""Each iteration looks one step further ahead. The default number of iterations is this factor times 1/(1−γ), within
the limits above."""


@dataclass(frozen=True)
class Fitting:
    """Settings for the regressions of Q."""

    iterations: int
    """Number of regressions, each on targets computed with the result of the previous one."""
    updates: int = 50
    """Number of minibatches in each regression."""
    batch_size: int = 256
    learning_rate: float = 1e-3
    """Adam's step size, which falls linearly to 0."""
    samples: int = 4
    """Number of actions to sample from π if the expectation over actions cannot be computed as a sum."""


def usual_iterations(gamma: float, longest: int) -> int:
    """The default number of iterations for this γ and episodes of up to `longest` steps."""
    horizon = min(1 / (1 - gamma), longest) if gamma < 1 else longest
    return int(np.clip(math.ceil(HORIZONS * horizon), LEAST_ITERATIONS, MOST_ITERATIONS))


class Steps(NamedTuple):
    """M recorded steps from N episodes."""

    states: Any
    """The observations of the steps, followed by the final observation of each episode, [M + N, …]."""
    policy: Distribution
    """π(·|s) at these states."""
    action: Shaped[Array, "M ..."]
    reward: Float[Array, "M"]
    terminated: Bool[Array, "M"]
    following: Int[Array, "M"]
    """The index of s_{t+1} among the states."""

    def at(self, rows: Int[Array, "B"]) -> tuple[Any, Distribution]:
        """Return the states in these rows, and π at these states."""
        return jax.tree.map(lambda x: x[rows], (self.states, self.policy))


@pytree
class ActionValues:
    """Q̂(s, a) = offset + scale · network(s)_a for a Discrete action, otherwise offset + scale · network(s, a)."""

    network: Agent
    """An agent whose policy has the action values as its logits."""
    offset: Float[Array, ""]
    scale: Float[Array, ""]
    head: ActionHead = field(metadata=STATIC)
    """The action head of the evaluated policy."""

    def of(self, observation: Any, action: Shaped[Array, "B ..."]) -> Float[Array, "B"]:
        """Q̂(s, a)."""
        if isinstance(self.head, DiscreteHead):
            return jnp.take_along_axis(self.outputs(observation), action[:, None].astype(jnp.int32), axis=1)[:, 0]
        return self.outputs((observation, self.head.to_compiled(action)))[:, 0]

    def expected(self, observation: Any, policy: Distribution, key: PRNGKeyArray, samples: int) -> Float[Array, "B"]:
        """E_{a~π(·|s)}[Q̂(s, a)]: a sum over the choices of a Discrete action, otherwise the mean over sampled
        actions."""
        if isinstance(self.head, DiscreteHead):
            return jnp.sum(probabilities(policy, self.head.n) * self.outputs(observation), axis=-1)

        def sampled(key: PRNGKeyArray) -> Array:
            return self.of(observation, policy.choose(policy.noise(key)))

        return jnp.mean(jax.vmap(sampled)(jax.random.split(key, samples)), axis=0)

    def outputs(self, inputs: Any) -> Float[Array, "B K"]:
        """The network's outputs in the environment's reward units."""
        policy: Any = self.network.policy(inputs)
        return self.offset + self.scale * policy.logits


def probabilities(policy: Distribution, n: int) -> Float[Array, "... n"]:
    """π(a|s) for each of n choices, for any kind of distribution over them."""
    shape = jax.eval_shape(policy.mode).shape
    each = [policy.log_prob(jnp.full(shape, a, jnp.int32)) for a in range(n)]
    return jnp.exp(jnp.stack(each, axis=-1))


def start_values(
    encoder: ObservationEncoder,
    head: ActionHead,
    settings: Mapping[str, Any],
    steps: Steps,
    returns: Float[np.ndarray, "M"],
    key: PRNGKeyArray,
) -> ActionValues:
    """Create a network whose output is close to the mean of the recorded returns everywhere.

    `settings` holds the network's `hidden_sizes`, `activation` and `encoders`. Real-valued inputs are normalised with
    the statistics of the recorded inputs.
    """
    wanted = dict(settings)
    inputs: Any = jax.tree.map(lambda x: x[: len(returns)], steps.states)
    if isinstance(head, DiscreteHead):
        read, outputs = encoder, DiscreteHead(head.n)
    else:
        read, outputs = TupleEncoder((encoder, encoder_of_actions(head))), DiscreteHead(1)
        inputs = (inputs, head.to_compiled(steps.action))
        wanted["encoders"] = tuple(f"0/{x}" if "=" in x else x for x in wanted.get("encoders", ()))
    rows = jax.tree.map(lambda x: jnp.asarray(x)[None], inputs)
    valid = jnp.ones((1, len(returns)), bool)
    network = Agent(
        model=ModelSpec(read, outputs, wanted).build(key),
        normaliser=updated(start_normaliser(read.normalised), rows, valid),
        return_statistics=RunningStatistics.start(()),
        head=outputs,
        normalize_rewards=False,
    )
    return ActionValues(network, jnp.float32(returns.mean()), jnp.float32(spread_of(returns)), head)


def spread_of(returns: Float[np.ndarray, "M"]) -> float:
    """The standard deviation of returns, or a small fraction of their magnitude if they hardly differ."""
    return max(float(returns.std()), 1e-3 * float(np.abs(returns).max()), 1e-6)


def encoder_of_actions(head: ActionHead) -> ObservationEncoder:
    """The encoder for actions as a compiled environment receives them: clipped, with choices counted from 0."""
    if isinstance(head, DiscreteHead):
        return DiscreteEncoder(head.n)
    if isinstance(head, MultiDiscreteHead):
        return MultiDiscreteEncoder(head.shape, head.sizes, (0,) * len(head.sizes))
    if isinstance(head, MultiBinaryHead):
        return MultiBinaryEncoder(head.shape)
    if isinstance(head, BoxHead):
        return BoxEncoder(head.shape)
    parts: Sequence[tuple[Any, ActionHead]] = head.children  # pyright: ignore[reportAttributeAccessIssue]
    encoders = [(key, encoder_of_actions(part)) for key, part in parts]
    return DictEncoder(tuple(encoders)) if isinstance(head, DictHead) else TupleEncoder(tuple(x for _, x in encoders))


def fit(
    start: ActionValues,
    steps: Steps,
    folds: Sequence[np.ndarray],
    gamma: float,
    fitting: Fitting,
    key: PRNGKeyArray,
) -> ActionValues:
    """Fit one Q̂ per fold [F]. A fold lists the rows of its steps, which are all sampled equally often.

    Targets are clipped to the range that the recorded rewards allow, [min(r, 0), max(r, 0)] / (1−γ), so that Q̂ cannot
    diverge.
    """
    keys = jax.random.split(key, len(folds))

    counts = [len(rows) for rows in folds]
    padded = np.stack([np.resize(rows, max(counts)) for rows in folds])

    def every_fold(start: ActionValues, steps: Steps, folds: Array, counts: Array) -> ActionValues:
        regress = Regression(start, steps, gamma, fitting).run
        return jax.lax.map(lambda each: regress(*each), (folds, counts, keys))

    return jax.jit(every_fold)(start, steps, jnp.asarray(padded), jnp.asarray(counts))


@dataclass(frozen=True)
class Regression:
    """The regressions for one fold, within a compiled program."""

    start: ActionValues
    steps: Steps
    gamma: float
    fitting: Fitting

    def run(self, rows: Int[Array, "K"], count: Int[Array, ""], key: PRNGKeyArray) -> ActionValues:
        """Run all iterations on the first `count` of these rows."""

        def iteration(carry: tuple[ActionValues, Any], key: PRNGKeyArray) -> tuple[tuple[ActionValues, Any], None]:
            target = carry[0]

            def minibatch(carry: tuple[ActionValues, Any], key: PRNGKeyArray) -> tuple[Any, None]:
                draw, actions = jax.random.split(key)
                chosen = rows[jax.random.randint(draw, (self.fitting.batch_size,), 0, count)]
                return self.update(*carry, chosen, self.targets(target, chosen, actions)), None

            return jax.lax.scan(minibatch, carry, jax.random.split(key, self.fitting.updates))

        carry = (self.start, self.optimiser.init(self.start.network.model))
        (values, _), _ = jax.lax.scan(iteration, carry, jax.random.split(key, self.fitting.iterations))
        return values

    def targets(self, target: ActionValues, rows: Int[Array, "B"], key: PRNGKeyArray) -> Float[Array, "B"]:
        """y = r + γ E_{a'~π}[Q(s', a')] for these steps."""
        reward, every = self.steps.reward[rows], self.steps.reward
        ahead = target.expected(*self.steps.at(self.steps.following[rows]), key, self.fitting.samples)
        y = reward + self.gamma * jnp.where(self.steps.terminated[rows], 0.0, ahead)
        if self.gamma >= 1:
            return y
        return jnp.clip(
            y, jnp.minimum(every.min(), 0) / (1 - self.gamma), jnp.maximum(every.max(), 0) / (1 - self.gamma)
        )

    def update(
        self, values: ActionValues, state: Any, rows: Int[Array, "B"], y: Float[Array, "B"]
    ) -> tuple[ActionValues, Any]:
        """Take one optimiser step on the mean of (Q(s, a) − y)², in the network's units."""
        states, _ = self.steps.at(rows)

        def loss(model: Any) -> Array:
            return jnp.mean(((with_model(values, model).of(states, self.steps.action[rows]) - y) / values.scale) ** 2)

        model = values.network.model
        moves, state = self.optimiser.update(jax.grad(loss)(model), state, model)
        return with_model(values, optax.apply_updates(model, moves)), state

    @property
    def optimiser(self) -> optax.GradientTransformation:
        """Adam with a step size that falls to 0."""
        count = self.fitting.iterations * self.fitting.updates
        return optax.adam(optax.linear_schedule(self.fitting.learning_rate, 0.0, count))


def with_model(values: ActionValues, model: Any) -> ActionValues:
    """Return the action values with a different network."""
    return replace(values, network=replace(values.network, model=model))


def in_blocks_of(size: int, function: Any, count: int, *trees: Any) -> Any:
    """Apply a function of rows to `count` rows, `size` at a time in one compiled program, and return NumPy arrays."""
    size, compiled, found = min(size, count), jax.jit(function), []
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        found.append(compiled(*jax.tree.map(partial(np.take, indices=rows, axis=0), trees)))
    return jax.tree.map(lambda *x: np.concatenate(x)[:count], *found)
