"""Finite MDPs defined by arrays, which can be played in JAX and solved exactly in NumPy."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray

from upslope.core.types import Action, Transition
from upslope.environments.base import CompiledEnvironment
from upslope.errors import UpslopeError

Index = Int32[Array, ""]
PerObservation = Float[np.ndarray, "O A"]
PolicyTable = PerObservation | Float[Array, "O A"]
PerState = Float[np.ndarray, "S"]
PerAction = Float[np.ndarray, "S A"]
PerSuccessor = Float[np.ndarray, "S A S"]


def _draw_index(key: PRNGKeyArray, cumulative: Float[Array, "S"]) -> Index:
    """Invert the cumulative distribution: draw i with probability cumulative[i] − cumulative[i−1]."""
    # Counting the entries that are ≤ u never selects an entry with probability zero.
    return jnp.sum(jax.random.uniform(key, (), jnp.float32) >= cumulative, dtype=jnp.int32)


@dataclass(frozen=True, eq=False)
class Tabular(CompiledEnvironment):
    """A finite Markov decision process, seen through a map from states to observations.

    `transition` [S, A, S'] is P(s'|s, a), `reward` [S, A, S'] is r(s, a, s'), and `start` [S] is P(s_0).
    `terminal` [S] marks the states that end the episode on arrival. `observation_of` [S] is the index that
    the agent sees; states with the same index cannot be distinguished. State and observation are int32 scalars,
    and actions are Discrete(A).

    The exact quantities are float64, for a policy π [O, A] that depends only on the observation. `horizon=H`
    counts only the first H rewards, as under a time limit. Without it, all rewards count, and γ = 1 needs a
    policy that can reach a terminal state from every state. Source: Sutton & Barto (2018), chapters 3, 4, 13.
    """

    transition: PerSuccessor
    reward: PerSuccessor
    start: PerState
    terminal: Bool[np.ndarray, "S"]
    observation_of: Int[np.ndarray, "S"]
    max_episode_steps: int | None = None
    observation_space: spaces.Space[Any] = field(init=False)
    action_space: spaces.Space[Any] = field(init=False)

    def __post_init__(self) -> None:
        rows = self.transition[~self.terminal]
        if (abs(rows.sum(-1) - 1) > 1e-9).any() or (rows < 0).any():
            raise UpslopeError("Each transition[s, a] must sum to 1, with no entry below 0, unless s is terminal.")
        is_distribution = abs(self.start.sum() - 1) < 1e-9 and (self.start >= 0).all()
        if not is_distribution or self.start[self.terminal].any():
            raise UpslopeError("start must be probabilities that sum to 1, and 0 in terminal states.")
        object.__setattr__(self, "observation_space", spaces.Discrete(int(self.observation_of.max()) + 1))
        object.__setattr__(self, "action_space", spaces.Discrete(self.transition.shape[1]))

    def reset(self, key: PRNGKeyArray) -> tuple[Index, Index]:
        """s_0 ~ start."""
        if np.count_nonzero(self.start) == 1:
            state = jnp.asarray(np.argmax(self.start), jnp.int32)
        else:
            state = _draw_index(key, jnp.asarray(np.cumsum(self.start), jnp.float32))
        return state, jnp.asarray(self.observation_of, jnp.int32)[state]

    def step(self, key: PRNGKeyArray, state: Index, action: Action) -> tuple[Index, Transition]:
        """s' ~ P(·|s, a), r = r(s, a, s'); terminated if s' is terminal."""
        if np.isin(self.transition, (0, 1)).all():
            successor = jnp.asarray(np.argmax(self.transition, axis=-1), jnp.int32)[state, action]
        else:
            cumulative = jnp.asarray(np.cumsum(self.transition, axis=-1), jnp.float32)
            successor = _draw_index(key, cumulative[state, action])
        observation = jnp.asarray(self.observation_of, jnp.int32)[successor]
        reward = jnp.asarray(self.reward, jnp.float32)[state, action, successor]
        terminated = jnp.asarray(self.terminal)[successor]
        return successor, Transition(observation, reward, terminated, jnp.zeros((), bool))

    def state_values(self, policy: PolicyTable, gamma: float, horizon: int | None = None) -> PerState:
        """v_π(s) = Σ_a π(a|s) Σ_s' P(s'|s, a) (r + γ v_π(s')), and 0 where terminal. (S&B eq. 3.14)

        With `horizon`, this is the value with H steps to go, computed by backward induction from v = 0.
        """
        probability = self._by_state(policy)
        if horizon is not None:
            return self._values_to_go(probability, gamma, horizon)[-1]
        return self._visits(probability, gamma) @ np.sum(probability * self._expected_reward, axis=-1)

    def action_values(self, policy: PolicyTable, gamma: float, horizon: int | None = None) -> PerAction:
        """q_π(s, a) = Σ_s' P(s'|s, a) (r + γ v_π(s')), and 0 where terminal. (S&B eq. 4.6)

        With `horizon` (H ≥ 1), v_π is the value with H − 1 steps to go.
        """
        following = self.state_values(policy, gamma, None if horizon is None else horizon - 1)
        return self._expected_reward + gamma * self._live @ following

    def expected_return(self, policy: PolicyTable, gamma: float, horizon: int | None = None) -> float:
        """J(π) = Σ_s start(s) v_π(s) = E[Σ_t γ^t r_t]. (S&B eq. 13.4)"""
        return float(self.start @ self.state_values(policy, gamma, horizon))

    def policy_gradient(self, logits: PolicyTable, gamma: float, horizon: int | None = None) -> PerObservation:
        """∂J/∂logits of the softmax policy, by the policy gradient theorem, including the factor γ^t.

            ∂J/∂θ_oa = Σ_t γ^t Σ_{s seen as o} P(s_t = s) π(a|o) (q_π(s, a) − v_π(s))

        With `horizon`, q and v at time t are the values with H − t steps to go. Unless γ = 1, an estimator that
        drops γ^t estimates a different quantity. (S&B eq. 13.5 and 13.8)
        """
        from scipy.special import softmax  # takes 0.2 s to import, and is needed only for exact gradients

        policy = softmax(np.asarray(logits, np.float64), axis=-1)
        probability = self._by_state(policy)
        if horizon is None:
            advantage = self.action_values(policy, gamma) - self.state_values(policy, gamma)[:, None]
            weighted = (self.start @ self._visits(probability, gamma))[:, None] * advantage
        else:
            values = self._values_to_go(probability, gamma, horizon)
            weighted, occupancy = np.zeros_like(probability), self.start
            for to_go in range(horizon, 0, -1):
                action_value = self._expected_reward + gamma * self._live @ values[to_go - 1]
                weighted += occupancy[:, None] * (action_value - values[to_go][:, None])
                occupancy = gamma * occupancy @ self._chain_under(probability)
        gradient = np.zeros_like(policy)
        np.add.at(gradient, self.observation_of, probability * weighted)
        return gradient

    @cached_property
    def _expected_reward(self) -> PerAction:
        return np.sum(self.transition * self.reward, axis=-1, dtype=np.float64) * ~self.terminal[:, None]

    @cached_property
    def _live(self) -> PerSuccessor:
        """P(s'|s, a), with rows of zeros for terminal states, so that their value is 0."""
        return self.transition.astype(np.float64) * ~self.terminal[:, None, None]

    def _by_state(self, policy: PolicyTable) -> PerAction:
        expected = (int(self.observation_of.max()) + 1, self.transition.shape[1])
        table = np.asarray(policy, np.float64)
        # The probabilities of a float32 policy sum to 1 only within about 1e-7 per action.
        if table.shape != expected or (table < 0).any() or not np.allclose(table.sum(-1), 1, atol=1e-5):
            raise UpslopeError(
                f"A policy must be a table of shape {expected} [observations, actions] whose rows sum to 1."
            )
        return table[self.observation_of]

    def _chain_under(self, probability: PerAction) -> Float[np.ndarray, "S S"]:
        return np.einsum("sa,sat->st", probability, self._live)

    def _values_to_go(self, probability: PerAction, gamma: float, horizon: int) -> list[PerState]:
        """v_π with 0, 1, …, H steps to go."""
        reward, chain = np.sum(probability * self._expected_reward, axis=-1), self._chain_under(probability)
        values = [np.zeros_like(reward)]
        for _ in range(horizon):
            values.append(reward + gamma * chain @ values[-1])
        return values

    def _visits(self, probability: PerAction, gamma: float) -> Float[np.ndarray, "S S"]:
        """(I − γP_π)⁻¹ = Σ_t γ^t P_π^t: the discounted visits to each column's state when starting in each row's."""
        is_edge = np.einsum("sa,sat->st", probability, self.transition) > 0
        can_end = self.terminal
        for _ in can_end:
            can_end = can_end | (is_edge & can_end).any(axis=1)
        if gamma >= 1 and not can_end.all():
            raise UpslopeError(
                f"With gamma={gamma} this policy has no finite return without a horizon: it never reaches a terminal "
                f"state from state {np.argmin(can_end)}. Use gamma < 1, or set a horizon."
            )
        return np.linalg.inv(np.eye(len(self.start)) - gamma * self._chain_under(probability))


def _from_moves(successor: Int[np.ndarray, "S A"]) -> PerSuccessor:
    return np.eye(len(successor))[successor]


def short_corridor(max_episode_steps: int | None = 200) -> Tabular:
    """Three states that look alike, with actions reversed in one: the best policy is stochastic.

    Action 0 is left, 1 is right; in the second state they are swapped. r = −1 per step until the goal, state 3.
    With p = π(right), J is largest at p = 2 − √2 ≈ 0.586, where J = −(6 + 4√2) ≈ −11.66; with p = 0 or p = 1 the goal
    is never reached. The limit of 200 steps cuts off one episode in 10⁹ at p = 0.5, but 7 % at p = 0.05, where the
    book's learners start: raise the limit to 1,000 for those. Source: Sutton & Barto (2018), example 13.1.
    """
    return Tabular(
        transition=_from_moves(np.array([[0, 1], [2, 0], [1, 3], [3, 3]])),
        reward=np.full((4, 2, 4), -1.0),
        start=np.eye(4)[0],
        terminal=np.arange(4) == 3,
        observation_of=np.zeros(4, np.int64),
        max_episode_steps=max_episode_steps,
    )


def gridworld(
    rows: int = 4,
    columns: int = 4,
    step_cost: float = 0.0,
    slip: float = 0.0,
    max_episode_steps: int | None = 100,
) -> Tabular:
    """From the upper left corner to the lower right one: +1 on arrival, −`step_cost` on each step.

    Actions: 0 up, 1 right, 2 down, 3 left; a move into a wall has no effect. With probability `slip`, the move goes in
    one of the four directions, chosen at random. The observation is the cell, row · columns + column. The shortest path
    takes rows + columns − 2 steps. On a 4×4 grid, a random walk takes 59 steps on average, and 84 % of walks arrive
    within 100 steps.
    """
    if rows * columns < 2 or not 0 <= slip <= 1:
        raise UpslopeError(f"A gridworld needs ≥ 2 cells and slip in [0, 1], not {rows}×{columns} and {slip}.")
    cell = np.arange(rows * columns)
    row, column = np.divmod(cell, columns)
    moves = [
        np.clip(row + down, 0, rows - 1) * columns + np.clip(column + right, 0, columns - 1)
        for down, right in ((-1, 0), (0, 1), (1, 0), (0, -1))
    ]
    intended = _from_moves(np.stack(moves, axis=-1))
    is_goal = cell == cell[-1]
    return Tabular(
        transition=(1 - slip) * intended + slip * intended.mean(axis=1, keepdims=True),
        reward=np.broadcast_to(is_goal - step_cost, intended.shape),
        start=np.eye(len(cell))[0],
        terminal=is_goal,
        observation_of=cell,
        max_episode_steps=max_episode_steps,
    )


def delayed_key(length: int = 8) -> Tabular:
    """A walk of `length` steps whose first action alone decides the reward at its end.

    Action 1 in the first step takes the key; later actions have no effect. The last step terminates, with r = 1
    if the key was taken, else 0. Since v_π(s_0) = γ^(length−1) π(1|s_0), the first action deserves all the credit.
    Observation: 2 · position + (has key). The time limit is `length`, where the episode ends anyway.
    """
    if length < 2:
        raise UpslopeError(f"The key world needs a length of at least 2 steps, not {length}.")
    state = np.arange(2 * (length + 1))
    position, has_key = np.divmod(state, 2)
    kept = 2 * np.minimum(position + 1, length) + has_key
    transition = _from_moves(np.stack([kept, np.where(position == 0, kept | 1, kept)], axis=-1))
    return Tabular(
        transition=transition,
        reward=np.broadcast_to(np.where(state == state[-1], 1.0, 0.0), transition.shape),
        start=np.eye(len(state))[0],
        terminal=position == length,
        observation_of=state,
        max_episode_steps=length,
    )
