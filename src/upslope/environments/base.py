"""What an environment is: compiled, written in JAX, or on the host, in Gymnasium's protocol."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import jax
from gymnasium.spaces import Space
from jaxtyping import Array, PRNGKeyArray

from upslope.core.types import Action, Transition
from upslope.errors import UpslopeError


class BrokenEnvironmentError(UpslopeError):
    """An environment was found, but it cannot be made or breaks its protocol."""


class CompiledEnvironment(ABC):
    """An environment written in JAX: pure, unbatched, and without automatic resets.

    `reset(key) → (state, observation)` begins an episode; `step(key, state, action) → (state, Transition)` answers
    one action. A state is a pytree of arrays whose shapes and dtypes never change. Discrete actions count from 0.
    `max_episode_steps` is the time limit: upslope counts the steps and sets `truncated`, so that an environment only
    reports `terminated`. The spaces are Gymnasium's.
    """

    observation_space: Space[Any]
    """What an observation is."""
    action_space: Space[Any]
    """What an action is."""
    max_episode_steps: int | None = None
    """Steps after which an episode is truncated; None for no limit."""
    is_compiled: ClassVar[bool] = True
    """Whether acting is part of the compiled program; environments on the host say no."""

    @abstractmethod
    def reset(self, key: PRNGKeyArray) -> tuple[Any, Array]:
        """Draw s_0 from the initial distribution; return the state and its observation."""

    @abstractmethod
    def step(self, key: PRNGKeyArray, state: Any, action: Action) -> tuple[Any, Transition]:
        """Draw s_{t+1}, r_t ~ P(·|s_t, a_t); `Transition.truncated` is False here."""

    def action_mask(self, state: Any) -> Any:
        """Which actions are allowed in a state, as Gymnasium's `space.sample(mask=…)` takes it or in one array as
        sb3-contrib does; None where nothing is ever forbidden."""
        return None

    @property
    def gives_masks(self) -> bool:
        """Whether `action_mask` says anything."""
        if type(self).action_mask is CompiledEnvironment.action_mask:
            return False
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.eval_shape(lambda key: self.action_mask(self.reset(key)[0]), key) is not None


@dataclass(frozen=True)
class HostEnvironment:
    """A Gymnasium environment, and how to make more of it."""

    name: str
    create: Callable[[], gymnasium.Env]
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    max_episode_steps: int | None
    is_named: bool
    """Whether it was asked for by its name, so that another process can make it too."""
    drawing: Callable[[], "HostEnvironment"]
    """Gives the same environment, made so that it draws pictures; an `UpslopeError` where it cannot be."""
    gives_masks: bool = False
    """Whether its info says which actions are allowed."""
    is_compiled: ClassVar[bool] = False


AnyEnvironment = CompiledEnvironment | HostEnvironment
EnvironmentLike = str | Callable[..., gymnasium.Env | CompiledEnvironment] | CompiledEnvironment
"""What users name an environment by."""


@dataclass(frozen=True)
class Request:
    """What was asked for: an environment by its name, or what the user gave in Python, and how to make it."""

    name: str
    env_kwargs: dict[str, Any]
    max_episode_steps: int | None = None
    wrappers: tuple[str, ...] = ()
    """As `--wrapper` reads them, the innermost first."""
    ignored: tuple[str, ...] = ()
    """Keys of observations that are left out, as `--ignore-observation` reads them."""
    given: Any = None
    """What the user gave in Python, where it was no name."""
    masks: bool = True
    """Whether what it says of allowed actions counts."""


@dataclass(frozen=True)
class Source:
    """Where environments come from: a prefix of names, and what makes an environment of such a name.

    What an environment can do is said by itself: `is_compiled`, `gives_masks`, and on the host `is_named`, `drawing`.
    """

    prefix: str
    make: Callable[[Request], AnyEnvironment]
