"""Find action masks wherever environments provide them, and move them to a common place.

On the host, that place is `info["action_mask"]`. An environment with a method `action_masks()`, or with a key
`action_mask` in its observations, gets a wrapper that moves the mask there; so does a vector environment. A compiled
environment has a method `action_mask(state)`. A mask is not a network input, so the key is removed from the observation
and its space, except with --no-masks if the observation has no other part.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from upslope.core.messages import told
from upslope.core.types import Transition
from upslope.environments.base import BrokenEnvironmentError, CompiledEnvironment
from upslope.errors import STOPS, UpslopeError

KEY = "action_mask"
"""The key of a mask in an environment's info or observations."""
METHOD = "action_masks"
"""The method that returns a mask in sb3-contrib's convention."""
FINAL = ("final_obs", "final_observation")
"""Keys of the true final observations in a vector environment's info; Gymnasium's key comes first."""


def is_masked(space: Any) -> bool:
    """Whether observations contain a mask."""
    return isinstance(space, spaces.Dict) and KEY in space.spaces


def is_only_mask(space: Any) -> bool:
    """Whether observations contain nothing but a mask."""
    return is_masked(space) and len(space.spaces) == 1


def without_key(space: Any, name: str) -> spaces.Space:
    """The space of observations after their mask is removed.

    Raises:
        BrokenEnvironmentError: there is nothing else in them.
    """
    if is_only_mask(space):
        raise BrokenEnvironmentError(
            f"The observations of {name} consist only of the key `{KEY}`, which is taken out as a mask of actions, so "
            "nothing is left to observe. Add another part, or use the key as an ordinary observation with --no-masks."
        )
    return spaces.Dict({name: part for name, part in space.spaces.items() if name != KEY})


def apart(observation: Any) -> tuple[Any, Any]:
    """Split an observation into the observation without its mask, and the mask."""
    return {name: x for name, x in observation.items() if name != KEY}, observation[KEY]


def method_of(env: Any) -> Callable[[], Any] | None:
    """An environment's method that returns a mask, even if wrappers hide it."""
    try:
        method = env.get_wrapper_attr(METHOD)
    except AttributeError:
        return None
    return method if callable(method) else None


def mask_in(info: Any) -> Any:
    """The mask in an environment's info; None if there is none."""
    return info.get(KEY) if type(info) is dict or isinstance(info, Mapping) else None


class MaskInInfo(gymnasium.Wrapper):
    """Moves the mask from an environment's observation, or from its method, to its info.

    A malformed return value is passed on unchanged, so that the caller can report what is wrong with it.
    """

    def __init__(self, env: gymnasium.Env, name: str):
        super().__init__(env)
        self.has_key, self.method = is_masked(space_or_none(env, "observation_space")), method_of(env)
        self.mask_source = source_in_words(self.has_key)
        if self.has_key:
            self.observation_space = without_key(env.observation_space, name)

    def reset(self, **options: Any) -> Any:
        return self.moved(self.env.reset(**options))

    def step(self, action: Any) -> Any:
        return self.moved(self.env.step(action))

    def moved(self, answer: Any) -> Any:
        """The return value of reset or step, with the mask in info."""
        return mask_moved(answer, self.has_key, lambda: self.asked(answer[2:-1]))

    def asked(self, flags: tuple[Any, ...]) -> Any:
        """The mask that the method returns. It is not called when an episode has ended, since there may be no mask."""
        return None if self.method is None or any(map(bool, flags)) else self.method()


def is_answer(answer: Any) -> bool:
    """Whether this has the form of a return value of reset or step."""
    return isinstance(answer, tuple) and len(answer) in (2, 5) and isinstance(answer[-1], Mapping)


def mask_moved(answer: Any, has_key: bool, method: Callable[[], Any] | None) -> Any:
    """The return value of reset or step, with the mask of its observation or, if there is none, of the method in info.
    One that is malformed is returned unchanged."""
    if not is_answer(answer):
        return answer
    observation, *between, info = answer
    mask = mask_in(info)
    if has_key and isinstance(observation, dict) and KEY in observation:
        observation, shown = apart(observation)
        mask = shown if mask is None else mask
    elif mask is None and method is not None:
        mask = method()
    # Vector environments gather info in arrays, and an integer array cannot hold None.
    return (observation, *between, info if mask is None else {**info, KEY: mask})


def source_in_words(has_key: bool) -> str:
    """Describe where a wrapper finds masks."""
    return f'the key "{KEY}" of its observations' if has_key else f"its method {METHOD}()"


def with_mask_in_info(env: Any, name: str, masks: bool) -> Any:
    """Wrap a Gymnasium environment if its mask is not in its info. Without `masks`, observations that contain nothing
    else stay as they are."""
    if not isinstance(env, gymnasium.Env):
        return env
    if not can_be_masked(space_or_none(env, "action_space")):
        return env
    space = space_or_none(env, "observation_space")
    if is_only_mask(space) and not masks:
        return env
    return MaskInInfo(env, name) if is_masked(space) or method_of(env) is not None else env


class BatchedMaskInInfo(VectorWrapper):
    """Moves the masks from a vector environment's observations, or from its method, to its info."""

    def __init__(self, envs: VectorEnv, name: str):
        super().__init__(envs)
        self.has_key, self.method = is_masked(space_or_none(envs, "single_observation_space")), batched_method_of(envs)
        self.mask_source = source_in_words(self.has_key)
        if self.has_key:
            self.single_observation_space = without_key(envs.single_observation_space, name)
            self.observation_space = batch_space(self.single_observation_space, envs.num_envs)

    def reset(self, **options: Any) -> Any:
        return self.moved(self.env.reset(**options))

    def step(self, actions: Any) -> Any:
        return self.moved(self.env.step(actions))

    def moved(self, answer: Any) -> Any:
        """The return value of reset or step, with the masks of all environments in info."""
        moved = mask_moved(answer, self.has_key, self.method)
        if not self.has_key or not is_answer(moved):
            return moved
        *rest, info = moved
        return (*rest, {name: without_mask(value) if name in FINAL else value for name, value in info.items()})


def without_mask(final: Any) -> Any:
    """The final observations in a vector environment's info without their masks. They are batched, or an array of
    single observations with None for environments whose episode goes on."""
    if isinstance(final, dict):
        return {name: x for name, x in final.items() if name != KEY}
    if isinstance(final, np.ndarray | list | tuple):
        kept = np.empty(len(final), object)
        kept[:] = [without_mask(each) if isinstance(each, dict) else each for each in final]
        return kept
    return final


def batched_method_of(envs: VectorEnv) -> Callable[[], Any] | None:
    """A vector environment's method that returns the masks of all its environments, even if wrappers hide it."""
    while True:
        if callable(method := getattr(envs, METHOD, None)):
            return method
        if not isinstance(envs, VectorWrapper):
            return None
        envs = envs.env


def with_batched_mask_in_info(envs: VectorEnv, name: str, masks: bool) -> VectorEnv:
    """Wrap a vector environment if its masks are not in its info; see `with_mask_in_info`."""
    space = space_or_none(envs, "single_observation_space")
    if not can_be_masked(space_or_none(envs, "single_action_space")) or (is_only_mask(space) and not masks):
        return envs
    return BatchedMaskInInfo(envs, name) if is_masked(space) or batched_method_of(envs) is not None else envs


def space_or_none(env: gymnasium.Env | VectorEnv, role: str) -> Any:
    """A space of an environment; None if it is not declared or cannot be read. The fault is reported where the spaces
    are needed."""
    try:
        return getattr(env, role)
    except STOPS:
        raise
    except BaseException:
        return None


def can_be_masked(space: Any) -> bool:
    """Whether actions have choices that could be forbidden, unlike real numbers."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return any(map(can_be_masked, space.values() if isinstance(space, spaces.Dict) else space))
    return not isinstance(space, spaces.Box)


def source_of(env: gymnasium.Env) -> str:
    """Describe where an environment's masks come from."""
    try:
        return env.get_wrapper_attr("mask_source")
    except AttributeError:
        return f'info["{KEY}"]'


def gives_masks(env: gymnasium.Env, name: str) -> bool:
    """Whether an environment provides masks.

    If the spaces do not show this, the environment is reset once. The process's random states are restored afterwards.

    Raises:
        BrokenEnvironmentError: it cannot be reset.
    """
    if not can_be_masked(env.action_space):
        return False
    if (isinstance(env, MaskInInfo) and env.has_key) or is_only_mask(env.observation_space):
        return True
    states = random.getstate(), np.random.get_state()
    try:
        answer = env.reset(seed=0)
    except STOPS:
        raise
    except BaseException as error:
        raise BrokenEnvironmentError(
            f"{name} raised {told(error)} in reset(seed=0), at its first reset. Correct reset()."
        ) from error
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
    return isinstance(answer, tuple) and len(answer) == 2 and mask_in(answer[1]) is not None


def known_masks(env: gymnasium.Env, name: str) -> bool | UpslopeError:
    """Whether an environment provides masks; if this cannot be determined, return the error instead of raising it."""
    try:
        return gives_masks(env, name)
    except UpslopeError as error:
        return error


class MaskApart(CompiledEnvironment):
    """Wraps a compiled environment whose observations contain the action mask."""

    def __init__(self, inner: CompiledEnvironment, name: str):
        self.inner = inner
        self.observation_space, self.action_space = without_key(inner.observation_space, name), inner.action_space
        self.max_episode_steps, self.costly_reset = inner.max_episode_steps, inner.costly_reset

    def reset(self, key: Any) -> tuple[Any, Any]:
        state, observation = self.inner.reset(key)
        observation, mask = apart(observation)
        return (state, mask), observation

    def step(self, key: Any, state: Any, action: Any) -> tuple[Any, Transition]:
        inner, transition = self.inner.step(key, state[0], action)
        observation, mask = apart(transition.observation)
        return (inner, mask), transition._replace(observation=observation)

    def action_mask(self, state: Any) -> Any:
        return state[1]

    def episode_info(self, state: Any) -> dict[str, Any]:
        return self.inner.episode_info(state[0])


class WithoutMasks(CompiledEnvironment):
    """A compiled environment whose masks are ignored."""

    ignores_masks = True

    def __init__(self, inner: CompiledEnvironment):
        self.inner = inner
        self.observation_space, self.action_space = inner.observation_space, inner.action_space
        self.max_episode_steps, self.costly_reset = inner.max_episode_steps, inner.costly_reset

    def reset(self, key: Any) -> tuple[Any, Any]:
        return self.inner.reset(key)

    def step(self, key: Any, state: Any, action: Any) -> tuple[Any, Transition]:
        return self.inner.step(key, state, action)

    def episode_info(self, state: Any) -> dict[str, Any]:
        return self.inner.episode_info(state)


def with_mask_apart(environment: CompiledEnvironment, name: str, masks: bool) -> CompiledEnvironment:
    """Wrap a compiled environment so that its mask comes only from `action_mask`, or so that it has none if `masks` is
    false. In the latter case, observations that contain nothing else stay as they are."""
    if is_only_mask(environment.observation_space) and not masks:
        return WithoutMasks(environment)
    if is_masked(environment.observation_space):
        environment = MaskApart(environment, name)
    return environment if masks or not environment.gives_masks else WithoutMasks(environment)
