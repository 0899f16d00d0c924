"""The two kinds of environment: compiled ones, written in JAX, and host environments, which follow Gymnasium's
protocol."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import jax
from gymnasium.spaces import Space
from jaxtyping import Array, PRNGKeyArray

from upslope.core.types import Transition
from upslope.errors import UpslopeError


class BrokenEnvironmentError(UpslopeError):
    """Raised when an environment was found but cannot be created or violates its protocol."""


class CompiledEnvironment(ABC):
    """An environment written in JAX: pure, unbatched, and without automatic resets.

    `reset(key) → (state, observation)` begins an episode; `step(key, state, action) → (state, Transition)` applies one
    action. A state is a pytree of arrays whose shapes and dtypes never change. Discrete actions are counted from 0;
    actions of a Dict or Tuple space are a dictionary or tuple of arrays. `max_episode_steps` is the time limit: upslope
    counts the steps and sets `truncated`, so an environment only reports `terminated`. The spaces are Gymnasium's.
    """

    observation_space: Space[Any]
    """The space of observations."""
    action_space: Space[Any]
    """The space of actions."""
    max_episode_steps: int | None = None
    """The number of steps after which an episode is truncated; None for no limit."""
    ignores_masks: bool = False
    """Whether it has action masks that are not used."""
    costly_reset: bool = False
    """Whether a reset is much more expensive than a step. If so, only the columns whose episodes ended are reset, one
    after another. Otherwise all columns are reset together, and the results for the others are discarded."""
    is_compiled: ClassVar[bool] = True
    """Whether acting is part of the compiled program; False for environments on the host."""

    @abstractmethod
    def reset(self, key: PRNGKeyArray) -> tuple[Any, Array]:
        """Draw s_0 from the initial distribution; return the state and its observation."""

    @abstractmethod
    def step(self, key: PRNGKeyArray, state: Any, action: Any) -> tuple[Any, Transition]:
        """Draw s_{t+1}, r_t ~ P(·|s_t, a_t); `Transition.truncated` is False here."""

    def action_mask(self, state: Any) -> Any:
        """The mask of allowed actions in a state, in the form that Gymnasium's `space.sample(mask=…)` accepts, or as
        one array as in sb3-contrib; None if nothing is ever forbidden."""
        return None

    def episode_info(self, state: Any) -> dict[str, Any]:
        """Numbers that describe an episode that ends in this state, keyed by name, for --log-info; none by default."""
        return {}

    @property
    def gives_masks(self) -> bool:
        """Whether `action_mask` is implemented."""
        if type(self).action_mask is CompiledEnvironment.action_mask:
            return False
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.eval_shape(lambda key: self.action_mask(self.reset(key)[0]), key) is not None


def info_shapes(environment: CompiledEnvironment) -> dict[str, Any]:
    """The names of the numbers that `episode_info` returns, with their shapes.

    Raises:
        BrokenEnvironmentError: one of the values is not a single number.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    found = jax.eval_shape(lambda key: environment.episode_info(environment.reset(key)[0]), key)
    for name, value in found.items():
        if getattr(value, "shape", None) != ():
            raise BrokenEnvironmentError(
                f"episode_info() of a compiled environment returns {name} as {value}, not as a single number."
            )
    return found


@dataclass(frozen=True)
class HostEnvironment:
    """A Gymnasium environment's name and spaces, and the functions that create instances of it."""

    name: str
    create: Callable[[], gymnasium.Env]
    observation_space: gymnasium.Space
    action_space: gymnasium.Space
    max_episode_steps: int | None
    is_named: bool
    """Whether it was requested by name, so that another process can create it too."""
    drawing: Callable[[], "HostEnvironment"]
    """Creates the same environment with rendering; raises `UpslopeError` if that is impossible."""
    has_masks: bool | UpslopeError = False
    """Whether its info contains the mask of allowed actions, or the error that prevented upslope from finding out."""
    uses_masks: bool = True
    batch: Callable[[int], gymnasium.vector.VectorEnv] | None = None
    """Creates several environments as one object, which steps and resets them itself; None if that is impossible."""
    kind: str = ""
    """A description of what creates the batches, and of how they start the next episode."""
    normalised: tuple[str, ...] = ()
    """What its wrappers scale by running statistics, which are lost when the environment is closed."""
    is_compiled: ClassVar[bool] = False

    @property
    def gives_masks(self) -> bool:
        """Whether its action masks are used.

        Raises:
            UpslopeError: it could not be reset, so it is unknown whether it has masks.
        """
        if self.uses_masks and isinstance(self.has_masks, UpslopeError):
            raise self.has_masks
        return self.uses_masks and self.has_masks is True

    @property
    def ignores_masks(self) -> bool:
        """Whether it has action masks that are not used."""
        return not self.uses_masks and self.has_masks is True


AnyEnvironment = CompiledEnvironment | HostEnvironment
EnvironmentLike = str | Callable[..., gymnasium.Env | CompiledEnvironment] | CompiledEnvironment
"""What users may pass as an environment."""


@dataclass(frozen=True)
class Request:
    """A requested environment: its name, or the object given in Python, and the options to create it."""

    name: str
    env_kwargs: dict[str, Any]
    max_episode_steps: int | None = None
    wrappers: tuple[str, ...] = ()
    """Wrappers in the format of `--wrapper`, innermost first."""
    ignored: tuple[str, ...] = ()
    """Keys of observations to leave out, in the format of `--ignore-observation`."""
    given: Any = None
    """The object that the user passed in Python, if any."""
    masks: bool = True
    """Whether action masks are used."""


@dataclass(frozen=True)
class Source:
    """A source of environments: a prefix of names, and the function that creates environments with such names.

    Environments declare their own capabilities: `is_compiled`, `gives_masks`, and on the host `is_named`, `drawing`.
    """

    prefix: str
    make: Callable[[Request], AnyEnvironment]
