"""The protocol of a compiled world."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from gymnasium.spaces import Space
from jaxtyping import Array, PRNGKeyArray

from upslope.core.types import Action, Transition


class CompiledEnvironment(ABC):
    """A world written in JAX: pure, unbatched, and it never resets itself.

    `reset(key) → (state, observation)` begins an episode; `step(key, state, action) → (state, Transition)` answers
    one action. States are pytrees of arrays of fixed shapes and dtypes. The time limit is `max_episode_steps`:
    whoever collects the rollout counts the steps and sets `truncated`, so a world only says `terminated`.
    The spaces are Gymnasium's, so one function builds an agent for any world.
    """

    observation_space: Space[Any]
    action_space: Space[Any]
    max_episode_steps: int | None = None
    is_compiled: ClassVar[bool] = True
    """Whether acting is part of the compiled program; the environments of Gymnasium say no."""

    @abstractmethod
    def reset(self, key: PRNGKeyArray) -> tuple[Any, Array]:
        """Draw s_0 from the world's initial distribution; return the state and its observation."""

    @abstractmethod
    def step(self, key: PRNGKeyArray, state: Any, action: Action) -> tuple[Any, Transition]:
        """Draw s_{t+1}, r_t ~ P(·|s_t, a_t); `Transition.truncated` is False here."""
