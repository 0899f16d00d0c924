"""Gymnasium environments on the host, by id, as `module:Id`, as `module:callable`, or from a callable."""

import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from upslope.core.messages import told
from upslope.environments.base import BrokenEnvironmentError, CompiledEnvironment, HostEnvironment, Request
from upslope.environments.closing import close_all
from upslope.environments.compiled import compiled_names
from upslope.environments.ignoring import ignoring
from upslope.environments.masks import known_masks, with_mask_in_info
from upslope.environments.modules import accepts, call, found, import_module
from upslope.environments.names import near, registered_by
from upslope.environments.packages import fitting, package_of, register, remedy_of
from upslope.environments.wrappers import normalised_in, wrap
from upslope.errors import STOPS, UpslopeError

EXTRAS = {"mujoco": "mujoco", "Box2D": "box2d", "box2d": "box2d"}
"""Name of a missing dependency in Gymnasium's message → the extra that installs it."""
PICTURES = {"render_mode": "rgb_array"}
"""The keyword argument that enables rendering."""


@dataclass(frozen=True)
class Maker:
    """Creates the environments of a request. It can be sent to another process if they were requested by name."""

    request: Request
    spec: Any = None
    """The spec to which an id was first resolved, so that another process uses the same one."""

    def __call__(self) -> Any:
        """Create one environment with its wrappers."""
        request = self.request
        if request.env_kwargs.get("render_mode") or any("Render" in text for text in request.wrappers):
            draw_without_screen()
        return self.dressed(self.bare())

    def dressed(self, env: Any) -> Any:
        """Wrap an environment, move its mask to its info, and remove the ignored parts of its observations."""
        request = self.request
        wrapped = wrap(env, request.wrappers, request.name)
        return self.without_ignored(with_mask_in_info(wrapped, request.name, request.masks))

    def without_ignored(self, made: Any) -> Any:
        """Remove the ignored parts of an environment's observations."""
        request = self.request
        if not request.ignored or not isinstance(made, gymnasium.Env):
            return made
        space_of(made, "observation_space", request.name)
        return ignoring(made, request.ignored, request.name)

    def bare(self) -> Any:
        """Create one environment without wrappers."""
        request, create = self.request, self.callable()
        if create is None:
            return create_by_id(request, self.spec)
        made = call(create, request.name, request.env_kwargs)
        limit = request.max_episode_steps if request.wrappers and isinstance(made, gymnasium.Env) else None
        # Some wrappers need a limit that they can see. An id's limit is in its spec.
        return made if limit is None else gymnasium.wrappers.TimeLimit(made, limit)

    def callable(self) -> Any:
        """The user's class, factory or instance; None for a registered id."""
        request = self.request
        if request.given is not None:
            return request.given
        module, _, attribute = request.name.rpartition(":")
        own = found(request.name) if module else None
        if isinstance(own, CompiledEnvironment):
            return lambda: own
        return own if attribute and callable(own) else None

    def with_pictures(self) -> "Maker":
        """A maker of the same environments with rendering. A factory without a parameter `render_mode` is called
        unchanged."""
        create = self.callable()
        if create is not None and not accepts(create, "render_mode"):
            return self
        return replace(self, request=replace(self.request, env_kwargs=self.request.env_kwargs | PICTURES))


def draw_without_screen() -> None:
    """Let MuJoCo and pygame render without a screen, silently."""
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl")
        if not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


def host_environment(maker: Maker, env: Any) -> HostEnvironment:
    """Describe an environment that was created to learn its spaces and its step limit, and close it."""
    name = maker.request.name
    if not isinstance(env, gymnasium.Env):
        raise BrokenEnvironmentError(f"{name} returned {not_an_environment(env)}")
    try:
        observations, actions = space_of(env, "observation_space", name), space_of(env, "action_space", name)
        spec = spec_of(env)
        limit = None if spec is None else spec.max_episode_steps
        if spec is not None and maker.callable() is None:
            maker = replace(maker, spec=gymnasium.registry.get(spec.id))
        is_named, masks = maker.request.given is None, (known_masks(env, name), maker.request.masks)
        drawn, normalised = partial(drawing, maker), normalised_in(env)
        return HostEnvironment(
            name, maker, observations, actions, limit, is_named, drawn, *masks, normalised=normalised
        )
    finally:
        close_all(name, [env])


def spec_of(env: Any) -> EnvSpec | None:
    """The specification from which Gymnasium created an environment; None if its `spec` is something else, e.g. a
    user's own attribute."""
    return env.spec if isinstance(env.spec, EnvSpec) else None


def drawing(maker: Maker) -> HostEnvironment:
    """The same environment with rendering.

    Raises:
        UpslopeError: it cannot be rendered.
    """
    draw_without_screen()
    maker = maker.with_pictures()
    env = maker()
    mode = getattr(env, "render_mode", None)
    environment = host_environment(maker, env)
    if mode != PICTURES["render_mode"]:
        raise UpslopeError(
            f'{environment.name} was created with render_mode={mode!r}, but pictures need "rgb_array". Let its '
            "class or factory accept the argument render_mode."
        )
    return environment


def space_of(env: gymnasium.Env, role: str, name: str) -> gymnasium.Space:
    """The space that an environment declares; anything that is not a space is rejected."""
    try:
        space = getattr(env, role)
    except STOPS:
        raise
    except BaseException as error:
        reason = "" if isinstance(error, AttributeError) else f" ({told(error)})"
        raise BrokenEnvironmentError(
            f"{name} declares no {role}{reason}. Set self.{role} in __init__, e.g. to gymnasium.spaces.Discrete(2)."
        ) from error
    if not isinstance(space, gymnasium.Space):
        of_gym = type(space).__module__.split(".")[0] == "gym"
        what = f"a space from the old gym package, {space}" if of_gym else f"{space!r} ({type(space).__name__})"
        raise BrokenEnvironmentError(
            f"{name} declares {what} as its {role}. It must be one of gymnasium.spaces, e.g. "
            "gymnasium.spaces.Box(-1, 1, (2,))."
        )
    return space


def not_an_environment(env: Any) -> str:
    """The message for an object that is not a Gymnasium environment, with the remedy."""
    kind = type(env)
    modules = {base.__module__.split(".")[0] for base in kind.__mro__}
    what = "nothing" if env is None else f"a {kind.__name__}"
    if isinstance(env, gymnasium.vector.VectorEnv):
        return (
            f"{what}, which contains several environments. Prefix the name of its factory: "
            "vector:module:Name; or pass a factory of single environments, from which upslope creates --num-envs."
        )
    if "gym" in modules:
        return (
            f"{what} from the old gym package, not a gymnasium.Env. Convert it in your own function: "
            "shimmy.GymV26CompatibilityV0(env=env), or GymV21CompatibilityV0 for older ones."
        )
    if {"pettingzoo", "dm_env", "dm_control"} & modules:
        return f"{what}, not a gymnasium.Env. Convert it in your own function, e.g. with the package shimmy."
    if callable(getattr(env, "reset", None)) and callable(getattr(env, "step", None)):
        return f"{what}, which has reset() and step() but is not a gymnasium.Env. Make it a subclass of gymnasium.Env."
    return f"{what}, not a gymnasium.Env. Pass a Gymnasium id, or a callable that returns one environment."


OF_MAKE = {
    "id": "Name the environment itself instead.",
    "max_episode_steps": "Use --max-episode-steps.",
    "disable_env_checker": "upslope checks what environments return itself.",
}
"""Arguments of `gymnasium.make` that are not an environment's own, and what to do instead of passing them."""


def create_by_id(request: Request, spec: Any = None) -> gymnasium.Env:
    """Create one environment by its Gymnasium id, resolved to `spec` if given, or by `module:Id`."""
    name, kwargs = request.name, request.env_kwargs
    for argument in OF_MAKE.keys() & kwargs.keys():
        raise UpslopeError(f"--env-kwargs contains {argument}, which Gymnasium takes itself. {OF_MAKE[argument]}")
    module = import_module(name.rpartition(":")[0], name) if ":" in name else None
    if spec is None:
        register(name)
    try:
        limit = request.max_episode_steps
        return gymnasium.make(spec or name, disable_env_checker=True, max_episode_steps=limit, **kwargs)
    except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
        raise UpslopeError(missing_dependency(name, error)) from error
    except gymnasium.error.Error as error:
        raise UpslopeError(f'There is no environment "{name}": {one_line(error)} {hint(name, module)}') from error
    except STOPS:
        raise
    except BaseException as error:
        raise BrokenEnvironmentError(
            f"{name} could not be created with {kwargs or 'no arguments'}: {told(error)}.{fitting(name)}"
        ) from error


def one_line(error: Exception) -> str:
    """An error's message on one line, as a sentence."""
    words = " ".join(str(error).split()).rstrip(".")
    return words if words.endswith(("?", "!")) else f"{words}."


def hint(name: str, module: Any) -> str:
    """Advice on an id that is not registered."""
    register = next((each for each in vars(module) if each.startswith("register")), None) if module else None
    if register and callable(getattr(module, register)):
        return (
            f"{module.__name__} does not register its ids on import. Call {module.__name__}.{register}() "
            "in your own module, and use that module's name: mymodule:Id."
        )
    own = vars(module) if module else {}
    mine = [f"{module.__name__}:{each}" for each, x in own.items() if is_own(each, x, module)]
    foreign = "" if package_of(name) else registered_by(name)
    return foreign or near(name, [*gymnasium.registry, *compiled_names(), *mine])


def is_own(name: str, value: Any, module: Any) -> bool:
    """Whether a class or function is defined in the module itself."""
    return not name.startswith("_") and getattr(value, "__module__", "") == module.__name__


def missing_dependency(environment: str, error: Exception) -> str:
    """The message that names the package to install."""
    extra = next((extra for word, extra in EXTRAS.items() if word in str(error)), None)
    said = f"{environment} needs a package that is not installed: {str(error).rstrip('.')}."
    if extra:
        return f'{said} To use it: pip install "upslope[{extra}]".'
    return f"{said} {remedy_of(error) if isinstance(error, ImportError) else 'Install the package named above.'}"
