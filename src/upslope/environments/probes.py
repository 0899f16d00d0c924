"""Probe environments, each so small that its correct value is known and a failure has only one possible cause.

The first failure locates the mistake. If it is at `probe/constant`, the critic's loss is broken; at
`probe/observation`, the learner does not see its observation. A failure at `probe/delay` points to the discount or
bootstrap, at `probe/action` to the policy update, and at `probe/both` to the pairing of observation and action. These
five are from Jones (2021), Debugging RL, Without the Agonizing Pain; the other probes follow the same idea.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, Float32, PRNGKeyArray

from upslope.core.types import Action, Transition
from upslope.environments.base import CompiledEnvironment

Observation = Float32[Array, "D"]
Answer = tuple[Observation, Float32[Array, ""], Bool[Array, ""]]
"""The successor observation, the reward, and whether the episode ends."""


@dataclass(frozen=True, eq=False)
class Probe(CompiledEnvironment):
    """An environment whose optimal value is known in closed form.

    `draw(key)` gives s_0; `answer(state, action)` gives s', r and whether the episode ends; `value(state, gamma)` is
    V*(s); `show(state)` is the observation, by default the state itself. A one-step probe returns the state it started
    from, not zeros. A learner that wrongly bootstraps past the end then sees a value that feeds back into itself, and
    clearly misses V*.
    """

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    draw: Callable[[PRNGKeyArray], Any]
    answer: Callable[[Any, Any], tuple[Any, Any, Any]]
    value: Callable[[Any, float], Float[Array, "..."]]
    max_episode_steps: int | None = 1
    watched: float | None = None
    """The best return within the time limit, for a probe that never terminates."""
    allows: Callable[[Any], Bool[Array, "M"]] | None = None
    """Returns the mask of allowed actions; None if nothing is forbidden."""
    show: Callable[[Any], Any] = lambda state: state

    def reset(self, key: PRNGKeyArray) -> tuple[Any, Any]:
        """Draw s_0."""
        state = self.draw(key)
        return state, self.show(state)

    def step(self, key: PRNGKeyArray, state: Any, action: Any) -> tuple[Any, Transition]:
        """Apply `answer`; it is deterministic, because all randomness is in s_0."""
        state, reward, terminated = self.answer(state, action)
        return state, Transition(self.show(state), reward, terminated, jnp.zeros((), bool))

    def action_mask(self, state: Any) -> Bool[Array, "M"] | None:
        return None if self.allows is None else self.allows(state)

    def exact_value(self, state: Any, gamma: float) -> Float[Array, "..."]:
        """V*(s) = max over policies of E[Σ_t γ^t r_t | s_0 = s], for any leading axes.

        In `constant`, `observation`, `delay` and `truncation`, actions do not matter, so every policy has this value.
        """
        return self.value(state, gamma)


def _one_step(reward: Callable[[Observation, Any], Float32[Array, ""]]) -> Callable[..., Answer]:
    return lambda observation, action: (observation, reward(observation, action), jnp.ones((), bool))


def _ones(observation: Float[Array, "... D"], gamma: float) -> Float[Array, "..."]:
    return jnp.ones(observation.shape[:-1], jnp.float32)


def _draw_zero(key: PRNGKeyArray) -> Observation:
    return jnp.zeros((1,), jnp.float32)


def _draw_sign(key: PRNGKeyArray) -> Observation:
    return jax.random.rademacher(key, (1,), jnp.float32)


def _box(low: float, size: int = 1) -> spaces.Box:
    return spaces.Box(low, 1.0, (size,), np.float32)


def constant() -> Probe:
    """One step, r = 1 for any action: V = 1."""
    one = _one_step(lambda observation, action: jnp.ones((), jnp.float32))
    return Probe(_box(0.0), spaces.Discrete(2), _draw_zero, one, _ones)


def observation() -> Probe:
    """One step, s_0 = ±1 at random, r = s_0: V(s) = s."""
    answer = _one_step(lambda observation, action: observation[0])
    return Probe(_box(-1.0), spaces.Discrete(2), _draw_sign, answer, lambda observation, gamma: observation[..., 0])


def delay() -> Probe:
    """Two steps, the observation is the time t, r_0 = 0 and r_1 = 1: V(0) = γ, V(1) = 1."""

    def answer(observation: Observation, action: Action) -> Answer:
        return jnp.ones((1,), jnp.float32), observation[0], observation[0] > 0

    def value(observation: Float[Array, "... D"], gamma: float) -> Float[Array, "..."]:
        return jnp.where(observation[..., 0] > 0, 1.0, gamma)

    return Probe(_box(0.0), spaces.Discrete(2), _draw_zero, answer, value, max_episode_steps=2)


def action() -> Probe:
    """One step, r = +1 for action 1 and −1 for action 0: V* = 1."""
    answer = _one_step(lambda observation, action: jnp.where(action == 1, 1.0, -1.0).astype(jnp.float32))
    return Probe(_box(0.0), spaces.Discrete(2), _draw_zero, answer, _ones)


def both() -> Probe:
    """One step, s_0 = ±1 at random, r = +1 for action 1 at +1 and action 0 at −1, else −1: V* = 1."""
    answer = _one_step(lambda observation, action: observation[0] * jnp.where(action == 1, 1.0, -1.0))
    return Probe(_box(-1.0), spaces.Discrete(2), _draw_sign, answer, _ones)


def truncation() -> Probe:
    """From 0 to 1 for r = −2, then r = 1 forever, cut off after 7 steps: V(1) = 1 / (1 − γ) and V(0) = γ V(1) − 2.

    A learner that treats the time limit as termination gets a lower value. So does one that bootstraps from the next
    row, which is the first of the next episode and worth less than the state in which the episode was cut off.
    """

    def answer(observation: Observation, action: Action) -> Answer:
        reward = jnp.where(observation[0] > 0, 1.0, -2.0).astype(jnp.float32)
        return jnp.ones((1,), jnp.float32), reward, jnp.zeros((), bool)

    def value(observation: Float[Array, "... D"], gamma: float) -> Float[Array, "..."]:
        following = 1.0 / (1.0 - gamma)
        return jnp.where(observation[..., 0] > 0, following, gamma * following - 2.0)

    return Probe(_box(0.0), spaces.Discrete(2), _draw_zero, answer, value, max_episode_steps=7, watched=4.0)


def continuous() -> Probe:
    """One step, s_0 = ±1 at random, r = −(a − s_0/2)² with a in [−1, 1]: V* = 0, at a = s_0/2."""
    answer = _one_step(lambda observation, action: -((action[0] - 0.5 * observation[0]) ** 2))
    return Probe(
        _box(-1.0),
        _box(-1.0),
        _draw_sign,
        answer,
        lambda observation, gamma: jnp.zeros_like(observation[..., 0]),
    )


def multidiscrete() -> Probe:
    """One step, two heads of 2 and 3 choices, r = 1 if both match the observation, else 0: V* = 1.

    The observation [5] is the one-hot of the first target (2) followed by that of the second (3); all six
    pairs are equally likely, so each head must read its own part.
    """

    def draw(key: PRNGKeyArray) -> Observation:
        target = jax.random.randint(key, (), 0, 6, jnp.int32)
        return jnp.concatenate([jax.nn.one_hot(target // 3, 2), jax.nn.one_hot(target % 3, 3)], dtype=jnp.float32)

    def reward(observation: Observation, action: Action) -> Float32[Array, ""]:
        return observation[action[0]] * observation[2 + action[1]]

    return Probe(_box(0.0, 5), spaces.MultiDiscrete([2, 3]), draw, _one_step(reward), _ones)


def multibinary() -> Probe:
    """One step, three bits, r = the fraction that equals the observed bits [3], drawn uniformly: V* = 1."""

    def draw(key: PRNGKeyArray) -> Observation:
        return jax.random.bernoulli(key, 0.5, (3,)).astype(jnp.float32)

    def reward(observation: Observation, action: Action) -> Float32[Array, ""]:
        return jnp.mean(action == observation, dtype=jnp.float32)

    return Probe(_box(0.0, 3), spaces.MultiBinary(3), draw, _one_step(reward), _ones)


def mask() -> Probe:
    """One step, three actions, s_0 = ±1 at random; action 2 is forbidden at +1, and action 0 at −1: V* = 1.

    At +1 action 1 pays 1 and action 0 costs 1; at −1 action 2 pays 1 and action 1 costs 1. A forbidden action would pay
    100, so a learner that takes one is noticed immediately.
    """

    def allows(observation: Observation) -> Bool[Array, "3"]:
        is_up = observation[0] > 0
        return jnp.stack([is_up, jnp.ones((), bool), ~is_up])

    def reward(observation: Observation, action: Action) -> Float32[Array, ""]:
        paid = jnp.where(action == jnp.where(observation[0] > 0, 1, 2), 1.0, -1.0)
        return jnp.where(allows(observation)[action], paid, 100.0).astype(jnp.float32)

    return Probe(_box(-1.0), spaces.Discrete(3), _draw_sign, _one_step(reward), _ones, allows=allows)


CUE_LASTS = 10
"""The number of steps between a cue and the action that it determines."""


def memory() -> Probe:
    """11 steps: the first shows −1, 0 or +1, and the last rewards the action 0, 1 or 2 that stands for it: V* = γ¹⁰.

    All other steps show 0; in the last, r = 1 for that action, else −1. The state is (cue, time). If the cue is 0, a
    memory that is not reset confuses the episode with the previous one.
    """

    def draw(key: PRNGKeyArray) -> Observation:
        return jnp.stack([jax.random.randint(key, (), -1, 2, jnp.int32).astype(jnp.float32), jnp.float32(0.0)])

    def answer(state: Observation, action: Action) -> Answer:
        is_last = state[1] >= CUE_LASTS
        paid = jnp.where(action == state[0] + 1, 1.0, -1.0)
        return state.at[1].add(1), jnp.where(is_last, paid, 0.0).astype(jnp.float32), is_last

    def value(state: Float[Array, "... 2"], gamma: float) -> Float[Array, "..."]:
        return gamma ** (CUE_LASTS - state[..., 1])

    def show(state: Observation) -> Any:
        return jnp.where(state[1] == 0, state[:1], 0.0)

    # One more step than an episode has, so that the episode terminates before the limit.
    return Probe(_box(-1.0), spaces.Discrete(3), draw, answer, value, max_episode_steps=CUE_LASTS + 2, show=show)


def image() -> Probe:
    """One step, a 4 × 4 image with one bright cell, r = 1 for the action that stands for its quadrant, else −1: V* = 1.

    The image consists of bytes, and the state is the number of the bright cell.
    """

    def draw(key: PRNGKeyArray) -> Any:
        return jax.random.randint(key, (), 0, 16, jnp.int32)

    def reward(cell: Any, action: Action) -> Float32[Array, ""]:
        return jnp.where(action == 2 * (cell // 8) + cell % 4 // 2, 1.0, -1.0).astype(jnp.float32)

    def show(cell: Any) -> Any:
        return jnp.zeros(16, jnp.uint8).at[cell].set(255).reshape(4, 4)

    space = spaces.Box(0, 255, (4, 4), np.uint8)
    return Probe(
        space, spaces.Discrete(4), draw, _one_step(reward), lambda cell, gamma: jnp.ones(cell.shape), show=show
    )


def dictionary() -> Probe:
    """One step, a Dict of two signs and an index, r = 1 for the action that stands for index and sign, else −1: V* = 1.

    All are random. The correct action, from 0 to 3, is 2 · which, plus 1 if the sign at that index is +1.
    """

    def draw(key: PRNGKeyArray) -> Any:
        signs, which = jax.random.split(key)
        return {
            "signs": jax.random.rademacher(signs, (2,), jnp.float32),
            "which": jax.random.randint(which, (), 0, 2, jnp.int32),
        }

    def reward(state: Any, action: Action) -> Float32[Array, ""]:
        right = 2 * state["which"] + (state["signs"][state["which"]] > 0)
        return jnp.where(action == right, 1.0, -1.0).astype(jnp.float32)

    space = spaces.Dict({"signs": _box(-1.0, 2), "which": spaces.Discrete(2)})
    value = lambda state, gamma: jnp.ones(state["which"].shape)  # noqa: E731
    return Probe(space, spaces.Discrete(4), draw, _one_step(reward), value)


def asymmetric() -> Probe:
    """One step, two signs: the policy sees one, which sets the best action; the critic sees both. V* = ½ + the other.

    Both are ±1 at random, and the policy reads the first (`--policy-reads 0`); r = ½ + the second for action 1 at +1 or
    action 0 at −1, else 0.

    The best policy that does not see the second sign earns ½ on average; a policy that sees it avoids losses and earns
    ¾.
    """

    def draw(key: PRNGKeyArray) -> Observation:
        return jax.random.rademacher(key, (2,), jnp.float32)

    def reward(state: Observation, action: Action) -> Float32[Array, ""]:
        return jnp.where((action == 1) == (state[0] > 0), 0.5 + state[1], 0.0)

    def value(state: Float[Array, "... 2"], gamma: float) -> Float[Array, "..."]:
        return 0.5 + state[..., 1]

    return Probe(_box(-1.0, 2), spaces.Discrete(2), draw, _one_step(reward), value)


def hybrid() -> Probe:
    """One step, a Dict of a choice and an amount in [−1, 1]; s_0 = two independent signs. V* = 1.

    r = 1 if the choice matches the first sign, minus (amount − ¼ of the second sign)². Each part must read its own
    sign. If a part receives the other part's number, or if its log-probability is left out, the policy cannot earn V*.
    """

    def draw(key: PRNGKeyArray) -> Observation:
        return jax.random.rademacher(key, (2,), jnp.float32)

    def reward(observation: Observation, action: Any) -> Float32[Array, ""]:
        is_met = (action["choice"] == 1) == (observation[0] > 0)
        return is_met.astype(jnp.float32) - (action["amount"][0] - 0.25 * observation[1]) ** 2

    space = spaces.Dict({"choice": spaces.Discrete(2), "amount": _box(-1.0)})
    return Probe(_box(-1.0, 2), space, draw, _one_step(reward), _ones)
