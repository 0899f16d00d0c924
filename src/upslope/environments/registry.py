"""make(environment): any name → a world, and nothing swapped silently."""

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, ClassVar

import gymnasium

from upslope.core.messages import COMPILED_PREFIX, told
from upslope.environments.base import CompiledEnvironment
from upslope.environments.closing import close_all
from upslope.environments.compiled import COMPILED
from upslope.errors import UpslopeError

EXTRAS = {"mujoco": "mujoco", "Box2D": "box2d", "box2d": "box2d"}
"""What a missing dependency is called in Gymnasium's message → the extra that brings it."""


@dataclass(frozen=True)
class ById:
    """Makes an environment of this id with these arguments; another process can be handed it."""

    environment: str
    env_kwargs: dict[str, Any]
    max_episode_steps: int | None
    spec: Any = None
    """What the id stood for when it was first made, so that it is the same in another process."""

    def __call__(self) -> gymnasium.Env:
        return create_by_id(self.environment, self.env_kwargs, self.max_episode_steps, self.spec)


@dataclass(frozen=True)
class ByCallable:
    """Makes an environment by calling what the user gave."""

    create: Callable[..., Any]
    name: str
    env_kwargs: dict[str, Any]

    def __call__(self) -> Any:
        return call(self.create, self.name, self.env_kwargs)


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
    is_compiled: ClassVar[bool] = False


AnyEnvironment = CompiledEnvironment | HostEnvironment
EnvironmentLike = str | Callable[..., gymnasium.Env] | CompiledEnvironment
"""What users name an environment by."""


def make(
    environment: EnvironmentLike,
    env_kwargs: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
) -> AnyEnvironment:
    """The world of a name, or of a callable that returns a Gymnasium environment; a compiled world is itself.

    `CartPole-v1` and `module:Id` are Gymnasium's, on the host; `jax:CartPole-v1` is compiled. A `max_episode_steps`
    replaces the limit of an environment given by its id; elsewhere whoever collects applies it.

    Raises:
        UpslopeError: the name is unknown (near names are given), a dependency is missing, or the environment
            could not be made.
    """
    env_kwargs = env_kwargs or {}
    if isinstance(environment, CompiledEnvironment):
        return environment
    if not isinstance(environment, str):
        name = name_of(environment)
        return host_world(name, ByCallable(environment, name, env_kwargs), is_named=False)
    if environment.startswith(COMPILED_PREFIX):
        return compiled_world(environment, env_kwargs)
    return host_world(environment, ById(environment, env_kwargs, max_episode_steps), is_named=True)


def name_of(environment: Any) -> str:
    """`module:name` of a callable."""
    kind = environment if hasattr(environment, "__qualname__") else type(environment)
    return f"{kind.__module__}:{kind.__qualname__}"


def compiled_world(environment: str, env_kwargs: dict[str, Any]) -> CompiledEnvironment:
    """The compiled world of a name, or a refusal with near names."""
    name = environment.removeprefix(COMPILED_PREFIX)
    if name not in COMPILED:
        raise UpslopeError(
            f'There is no compiled world "{environment}". {near(environment, compiled_names())} '
            f"Gymnasium's own environments run on the host: leave out the prefix {COMPILED_PREFIX}"
        )
    try:
        return COMPILED[name](**env_kwargs)
    except TypeError as error:
        raise UpslopeError(f"{environment} does not take {env_kwargs}: {error}.") from error


def draw_without_screen() -> None:
    """Let MuJoCo and pygame draw pictures where there is no screen, and say nothing of it."""
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
        if not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def host_world(name: str, create: Callable[[], Any], *, is_named: bool) -> HostEnvironment:
    """Make one environment to learn its spaces and its step limit."""
    draw_without_screen()
    env = create()
    if not isinstance(env, gymnasium.Env):
        raise UpslopeError(
            f"{name} gave a {type(env).__name__}, not a gymnasium.Env. Give a Gymnasium id, or a callable that "
            "returns one environment."
        )
    try:
        spec = env.spec
        limit = spec.max_episode_steps if spec is not None else None
        if isinstance(create, ById) and spec is not None:
            create = replace(create, spec=gymnasium.registry.get(spec.id))
        return HostEnvironment(name, create, env.observation_space, env.action_space, limit, is_named)
    finally:
        close_all(name, [env])


def call(create: Callable[..., Any], name: str, env_kwargs: dict[str, Any]) -> Any:
    """Let a user's callable make an environment, or say that it could not."""
    try:
        return create(**env_kwargs)
    except Exception as error:
        raise UpslopeError(
            f"{name} could not make an environment from {env_kwargs or 'no arguments'}: {told(error)}."
        ) from error


def create_by_id(
    environment: str, env_kwargs: dict[str, Any], max_episode_steps: int | None, spec: Any = None
) -> gymnasium.Env:
    """One environment by its Gymnasium id (which stands for `spec`, if given), `module:Id` or `module:callable`."""
    module_name, _, attribute = environment.rpartition(":")
    if module_name:
        module = import_module(module_name, environment)
        if callable(getattr(module, attribute, None)):
            return call(getattr(module, attribute), environment, env_kwargs)
    try:
        return gymnasium.make(
            spec or environment, disable_env_checker=True, max_episode_steps=max_episode_steps, **env_kwargs
        )
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise UpslopeError(missing_dependency(environment, error)) from error
    except gymnasium.error.Error as error:
        near_names = near(environment, [*gymnasium.registry, *compiled_names()])
        raise UpslopeError(f'There is no environment "{environment}": {error} {near_names}') from error
    except Exception as error:
        raise UpslopeError(
            f"{environment} could not be made with {env_kwargs or 'no arguments'}: {told(error)}."
        ) from error


def import_module(name: str, environment: str) -> Any:
    """Import the module before the colon, or say that it is not to be found."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise UpslopeError(
            f'"{environment}" asks for the module {name}, which cannot be imported: {error}. Install it, or run from '
            "the folder that holds it."
        ) from error


def missing_dependency(environment: str, error: Exception) -> str:
    """Which package to install."""
    extra = next((extra for word, extra in EXTRAS.items() if word in str(error)), None)
    remedy = f'pip install "upslope[{extra}]"' if extra else "install the package that it names"
    return f"{environment} needs a package that is not installed: {error} To use it: {remedy}."


def near(name: str, known: Iterable[str]) -> str:
    """Near names, in words."""
    lower = {k.lower(): k for k in known}
    close = [lower[k] for k in get_close_matches(name.lower(), list(lower), n=4, cutoff=0.6)]
    return f"Did you mean {', '.join(close)}?" if close else "`upslope list` shows the compiled worlds."


def compiled_names() -> list[str]:
    """All compiled worlds by their full names."""
    return [COMPILED_PREFIX + name for name in COMPILED]
