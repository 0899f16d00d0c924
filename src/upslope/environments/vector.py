"""Vector environments: N environments in one object that steps and resets them itself.

`vector:CartPole-v1` is created by `gymnasium.make_vec`. `vector:module:Name` calls your own factory, which takes
`num_envs` and returns a `gymnasium.vector.VectorEnv`. `envpool:Pong-v5` is EnvPool's. `engines/batched.py` steps the
columns and handles the resets.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array

from upslope.core.messages import told
from upslope.environments.base import BrokenEnvironmentError, HostEnvironment, Request, Source
from upslope.environments.closing import close_all
from upslope.environments.host import (  # fmt: skip
    PICTURES,
    Maker,
    draw_without_screen,
    hint,
    missing_dependency,
    one_line,
    space_of,
    spec_of,
)
from upslope.environments.masks import FINAL, BatchedMaskInInfo, known_masks, with_batched_mask_in_info
from upslope.environments.modules import accepts, found, import_module
from upslope.environments.packages import register
from upslope.environments.wrappers import normalised_by, normalised_in
from upslope.errors import STOPS, UpslopeError

VECTOR_PREFIX, ENVPOOL_PREFIX = "vector:", "envpool:"
BY_GYMNASIUM = frozenset({"sync", "async"})
"""Vectorisation modes that create single environments, which can be wrapped."""


@dataclass(frozen=True)
class VectorMaker:
    """Creates the vector environments of a request; it can be sent to another process."""

    request: Request
    spec: Any = None
    """The spec to which an id was first resolved, so that another process uses the same one."""

    @property
    def target(self) -> str:
        """The name without its prefix."""
        return self.request.name.removeprefix(VECTOR_PREFIX).removeprefix(ENVPOOL_PREFIX)

    def __call__(self) -> gymnasium.Env:
        """Create one environment: a vector of one column, stepped alone."""
        return OneColumn(self.batch(1), self.request.name)

    def batch(self, num_envs: int) -> VectorEnv:
        """Create a vector environment with this many columns."""
        name = self.request.name
        if self.request.env_kwargs.get("render_mode"):
            draw_without_screen()
        made = self.made(num_envs)
        if not isinstance(made, VectorEnv):
            raise BrokenEnvironmentError(
                f"{name} returned a {type(made).__name__}, not a gymnasium.vector.VectorEnv. A single environment "
                f"needs no prefix: {self.target}"
            )
        if made.num_envs != num_envs:
            close_all(name, [made])
            raise BrokenEnvironmentError(
                f"{name} was called with num_envs={num_envs} and created {made.num_envs}. Let the factory "
                "create as many as its argument num_envs specifies."
            )
        try:
            mode_of(made, name)
            return with_batched_mask_in_info(made, name, self.request.masks)
        except UpslopeError:
            close_all(name, [made])
            raise

    def made(self, num_envs: int) -> Any:
        """The object that `make_vec`, EnvPool or the user's factory returns."""
        if self.request.name.startswith(ENVPOOL_PREFIX):
            return pooled(self.request, num_envs)
        own = self.factory()
        return self.by_id(num_envs) if own is None else self.by_factory(own, num_envs)

    def factory(self) -> Callable[..., Any] | None:
        """The user's factory; None for an id of Gymnasium or EnvPool."""
        own = found(self.target) if ":" in self.target and self.request.name.startswith(VECTOR_PREFIX) else None
        return own if callable(own) else None

    def by_factory(self, own: Callable[..., Any], num_envs: int) -> Any:
        """Call the user's factory."""
        request = self.request
        refuse_around(request, "its own factory")
        if not accepts(own, "num_envs"):
            raise UpslopeError(
                f"{request.name} takes no argument num_envs, so its number of environments cannot be set. "
                "Let the factory accept num_envs, and create that many."
            )
        limit = {"max_episode_steps": request.max_episode_steps} if accepts(own, "max_episode_steps") else {}
        limit = {name: value for name, value in limit.items() if value is not None}
        try:
            return own(num_envs=num_envs, **(limit | request.env_kwargs))
        except UpslopeError:
            raise
        except STOPS:
            raise
        except BaseException as error:
            raise BrokenEnvironmentError(
                f"{request.name} could not be created from {request.env_kwargs or 'no arguments'}: {told(error)}. The "
                f"factory is called with num_envs={num_envs}, and returns a gymnasium.vector.VectorEnv."
            ) from error

    def by_id(self, num_envs: int) -> VectorEnv:
        """Call `gymnasium.make_vec`, with the wrappers around each environment."""
        request, target = self.request, self.target
        module = import_module(target.rpartition(":")[0], target) if ":" in target else None
        if self.spec is None:
            register(target)
        kwargs: dict[str, Any] = dict(request.env_kwargs)
        if request.max_episode_steps is not None:
            kwargs["max_episode_steps"] = request.max_episode_steps
        try:
            spec = self.spec or gymnasium.spec(target.rpartition(":")[2])  # the module has already been imported
            dressed = kwargs.get("vectorization_mode", "sync" if self.needs_dressing(spec) else None)
            if dressed is not None:
                kwargs["vectorization_mode"] = dressed
            wrappers: Any = [partial(dress, request)] if dressed in BY_GYMNASIUM else []
            return gymnasium.make_vec(spec, num_envs=num_envs, wrappers=wrappers, **kwargs)
        except UpslopeError:
            raise
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise UpslopeError(missing_dependency(request.name, error)) from error
        except gymnasium.error.Error as error:
            words = f'There is no environment "{request.name}": {one_line(error)} {hint(target, module)}'
            raise UpslopeError(words) from error
        except STOPS:
            raise
        except BaseException as error:
            raise BrokenEnvironmentError(
                f"{request.name} could not be created with {request.env_kwargs or 'no arguments'}: {told(error)}."
            ) from error

    def needs_dressing(self, spec: Any) -> bool:
        """Whether Gymnasium builds the batch from single environments, by default or because of wrappers."""
        return spec.vector_entry_point is None or bool(self.request.wrappers or self.request.ignored)

    def with_pictures(self) -> "VectorMaker":
        """A maker of the same environments with rendering."""
        own = self.factory()
        if own is not None and not accepts(own, "render_mode"):
            return self
        return replace(self, request=replace(self.request, env_kwargs=self.request.env_kwargs | PICTURES))


def dress(request: Request, env: gymnasium.Env) -> gymnasium.Env:
    """Wrap one of the single environments, and remove the ignored parts of its observations."""
    return Maker(request).dressed(env)


def refuse_around(request: Request, origin: str) -> None:
    """Reject options that apply only to single environments."""
    asked = {"--wrapper": request.wrappers, "--ignore-observation": request.ignored}
    given = [flag for flag, value in asked.items() if value]
    if given:
        raise UpslopeError(
            f"{request.name} comes from {origin} as one object, but {' and '.join(given)} would apply inside it. "
            "Apply them there; --env-kwargs passes arguments on."
        )


def pooled(request: Request, num_envs: int) -> VectorEnv:
    """EnvPool's environments behind Gymnasium's interface for vector environments."""
    refuse_around(request, "EnvPool")
    target = request.name.removeprefix(ENVPOOL_PREFIX)
    try:
        import envpool  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UpslopeError(
            f"{request.name} needs the package envpool, which is not installed. Install it: pip install envpool"
        ) from error
    kwargs = {name: value for name, value in request.env_kwargs.items() if name != "render_mode"}
    if request.max_episode_steps is not None:
        kwargs["max_episode_steps"] = request.max_episode_steps
    try:
        return EnvPool(partial(envpool.make, target, env_type="gymnasium", num_envs=num_envs, **kwargs), num_envs)
    except Exception as error:
        raise UpslopeError(f"{request.name} could not be created by EnvPool: {told(error)}.") from error


class EnvPool(VectorEnv):
    """EnvPool's environments. EnvPool takes its seed on creation, so a reset with a seed recreates them.

    After an episode ends, EnvPool's next step resets it and ignores the action (NEXT_STEP).
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - Gymnasium's name

    def __init__(self, make: Callable[..., Any], num_envs: int):
        self.make, self.num_envs = make, num_envs
        self.pool = make()
        self.single_observation_space = self.pool.observation_space
        self.single_action_space = self.pool.action_space
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        limit = getattr(getattr(self.pool, "spec", None), "config", None)
        self.max_episode_steps = getattr(limit, "max_episode_steps", None)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start a new episode in every environment."""
        if seed is not None:
            close = getattr(self.pool, "close", None)
            if callable(close):
                close()
            self.pool = self.make(seed=seed)
        observation, info = self.pool.reset()
        return observation, dict(info)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step every environment."""
        observation, reward, terminated, truncated, info = self.pool.step(np.asarray(actions))
        return observation, reward, terminated, truncated, dict(info)

    def close_extras(self, **kwargs: Any) -> None:
        """Release the threads."""
        close = getattr(self.pool, "close", None)
        if callable(close):
            close()


def mode_of(envs: VectorEnv, name: str) -> AutoresetMode:
    """How a vector environment begins the next episode.

    Raises:
        UpslopeError: its metadata do not specify it.
    """
    mode = (envs.metadata or {}).get("autoreset_mode")
    try:
        return mode if isinstance(mode, AutoresetMode) else AutoresetMode(mode)
    except ValueError:
        known = ", ".join(str(each) for each in AutoresetMode)
        raise BrokenEnvironmentError(
            f'{name} has metadata["autoreset_mode"] = {mode!r}, but this must specify what the step after an end does. '
            f"Set it to one of {known}."
        ) from None


def row_of(batch: Any, row: int) -> Any:
    """One environment's part of batched observations, which are arrays, or dictionaries and tuples of arrays."""
    if isinstance(batch, dict):
        return {name: row_of(part, row) for name, part in batch.items()}
    if isinstance(batch, tuple):
        return tuple(row_of(part, row) for part in batch)
    return batch[row]


def final_observation(info: Any, row: int, name: str, place: Callable[[], str]) -> Any:
    """The true final observation of an episode that was reset in the step that ended it.

    Raises:
        UpslopeError: info does not contain it.
    """
    found = next((info[key] for key in FINAL if key in info), None) if isinstance(info, dict) else None
    value = None if found is None else row_of(found, row)
    if value is None:
        raise UpslopeError(
            f'{name} reset an episode in the step that ended it, but info["final_obs"] does not contain its final '
            f"observation: {place()}. Without it, training cannot bootstrap at a time limit: provide it, or reset in "
            "the next step (AutoresetMode.NEXT_STEP)."
        )
    return value


def mask_of(info: Any, row: int, space: spaces.Space) -> Any:
    """One environment's action mask in the info of a vector environment; None if there is none. `space` is that of its
    actions.

    A list holds one mask for each environment, and so does a tuple, such as the one that a vector environment's `call`
    returns, unless the actions have parts: then it holds the batched masks of the parts. A value that has neither form
    is returned whole, so that the caller can report what is wrong with it."""
    if not isinstance(info, dict) or "action_mask" not in info:
        return None
    has, masks = info.get("_action_mask"), info["action_mask"]
    if has is not None and not np.all(has[row]):
        return None
    has_parts = isinstance(space, spaces.Tuple | spaces.Dict)
    is_listed = isinstance(masks, tuple) and (not has_parts or all(isinstance(x, tuple | dict) for x in masks))
    try:
        return masks[row] if is_listed else row_of(masks, row)
    except (IndexError, TypeError, KeyError):
        return masks


def column_of(info: Any, row: int) -> Mapping[str, Any]:
    """One environment's part of the info of a vector environment. If the step also began the next episode, this is the
    info of the episode that ended, from `final_info`."""
    final = info.get("final_info") if isinstance(info, Mapping) else None
    has_final = info.get("_final_info") if final is not None else None
    if final is None or (has_final is not None and not has_final[row]):
        return part_of(info, row)
    if isinstance(final, Mapping):
        return part_of(final, row)
    return final[row] if isinstance(final[row], Mapping) else {}


def part_of(info: Any, row: int) -> dict[str, Any]:
    """One environment's row of each value in info; `_key` marks the environments for which a key is given."""
    found: dict[str, Any] = {}
    for key, value in info.items() if isinstance(info, Mapping) else ():
        has = info.get(f"_{key}")
        if str(key).startswith("_") or key in (*FINAL, "final_info") or (has is not None and not np.all(has[row])):
            continue
        if isinstance(value, Mapping):
            found[key] = part_of(value, row)
        elif isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
            if len(value) <= row:
                continue
            found[key] = value[row]
    return found


def joined(actions: list[Any], space: spaces.Space) -> Any:
    """Combine single actions into one batch in the form of the space."""
    return concatenate(space, actions, create_empty_array(space, len(actions), fn=np.zeros))


class OneColumn(gymnasium.Env):
    """Presents a vector environment with one column as a single environment, for code that plays one episode at a
    time."""

    def __init__(self, envs: VectorEnv, name: str):
        self.envs, self.name, self.mode = envs, name, mode_of(envs, name)
        self.observation_space, self.action_space = envs.single_observation_space, envs.single_action_space
        self.render_mode = envs.render_mode
        self.metadata = envs.metadata
        if isinstance(envs, BatchedMaskInInfo):
            self.mask_source = envs.mask_source

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.envs.reset(seed=seed)
        return row_of(observation, 0), self.info_of(info)

    def step(self, action: Any) -> Any:
        """Step; at the end of an episode, the observation is the true final one."""
        batch = joined([action], self.action_space)
        observation, reward, terminated, truncated, info = self.envs.step(batch)
        for what, values in {"reward": reward, "terminated": terminated, "truncated": truncated}.items():
            if np.shape(values) != (1,):
                raise UpslopeError(
                    f"{self.name} returned {what} {values!r} from step(), where Gymnasium's vector environments return "
                    "one for each environment, here 1. Correct what step() returns."
                )
        is_over = bool(terminated[0] or truncated[0])
        seen = row_of(observation, 0)
        if is_over and self.mode is AutoresetMode.SAME_STEP:
            seen = final_observation(info, 0, self.name, lambda: "its only column")
        return seen, reward[0], terminated[0], truncated[0], self.info_of(info)

    def info_of(self, info: Any) -> dict[str, Any]:
        """The info of the column."""
        mask = mask_of(info, 0, self.action_space)
        known = dict(column_of(info, 0))
        return known if mask is None else known | {"action_mask": mask}

    def render(self) -> Any:
        """The picture of the column."""
        frames = self.envs.render()
        return frames[0] if frames is not None else None

    def close(self) -> None:
        """Close the vector environment."""
        self.envs.close()


def make_vector(request: Request) -> HostEnvironment:
    """Describe a vector environment, by creating one with a single column."""
    maker = VectorMaker(request)
    if maker.factory() is None and not request.name.startswith(ENVPOOL_PREFIX):
        envs = maker.batch(1)
        close_all(request.name, [envs])
        spec = spec_of(envs)
        maker = replace(maker, spec=None if spec is None else gymnasium.registry.get(spec.id))
    return described(maker)


def described(maker: VectorMaker) -> HostEnvironment:
    """The spaces, the step limit and the masks of a maker's environments."""
    request = maker.request
    env = maker()
    try:
        envs: Any = env.envs  # pyright: ignore[reportAttributeAccessIssue]
        observations, actions = (space_of(env, role, request.name) for role in ("observation_space", "action_space"))
        spec = maker.spec or spec_of(envs)
        limit = request.max_episode_steps or (spec.max_episode_steps if spec is not None else None)
        limit = limit or getattr(envs.unwrapped, "max_episode_steps", None)
        masks = known_masks(env, request.name), request.masks
        drawing = partial(drawn, maker)
        kind = f"{type(envs.unwrapped).__name__}, resets {RESETS[mode_of(envs, request.name)]}"
        normalised = normalised_in(envs) or normalised_by(request.wrappers)
        parts = masks[0], masks[1], maker.batch, kind, normalised
        return HostEnvironment(request.name, maker, observations, actions, limit, True, drawing, *parts)
    finally:
        close_all(request.name, [env])


RESETS = {
    AutoresetMode.NEXT_STEP: "in the step after an end, which is not a transition",
    AutoresetMode.SAME_STEP: "in the step that ends an episode",
    AutoresetMode.DISABLED: "when upslope requests it",
}
"""Descriptions of how episodes are reset."""


def drawn(maker: VectorMaker) -> HostEnvironment:
    """The same environment with rendering.

    Raises:
        UpslopeError: it cannot be rendered.
    """
    draw_without_screen()
    environment = described(maker.with_pictures())
    env = environment.create()
    try:
        if env.render_mode != PICTURES["render_mode"]:
            raise UpslopeError(
                f"{environment.name} was created with render_mode={env.render_mode!r}, but pictures need "
                '"rgb_array". Let its factory accept the argument render_mode.'
            )
    finally:
        close_all(environment.name, [env])
    return environment


SOURCE = Source(VECTOR_PREFIX, make_vector)
ENVPOOL_SOURCE = Source(ENVPOOL_PREFIX, make_vector)
