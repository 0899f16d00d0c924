"""Where environments say which actions are allowed, brought to one place each.

On the host that is `info["action_mask"]`; an environment with a method `action_masks()`, or with a key `action_mask`
among its observations, is put into a wrapper that moves the mask there. A compiled environment has a method
`action_mask(state)`. A mask is no input to a network, so the key leaves the observation, and its space.
"""

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
from gymnasium import spaces

from upslope.core.types import Action, Transition
from upslope.environments.base import CompiledEnvironment

KEY = "action_mask"
"""What environments call a mask, in their info and among their observations."""
METHOD = "action_masks"
"""The method that sb3-contrib asks for a mask."""


def is_masked(space: Any) -> bool:
    """Whether observations have a key that holds a mask."""
    return isinstance(space, spaces.Dict) and KEY in space.spaces


def without_key(space: Any) -> spaces.Space:
    """The space of observations whose mask was taken out."""
    return spaces.Dict({name: part for name, part in space.spaces.items() if name != KEY})


def apart(observation: Any) -> tuple[Any, Any]:
    """An observation without its mask, and the mask."""
    return {name: x for name, x in observation.items() if name != KEY}, observation[KEY]


def method_of(env: Any) -> Callable[[], Any] | None:
    """An environment's method that gives a mask, also where wrappers hide it."""
    try:
        method = env.get_wrapper_attr(METHOD)
    except AttributeError:
        return None
    return method if callable(method) else None


def mask_in(info: Any) -> Any:
    """The mask that an environment's info holds; None without one."""
    return info.get(KEY) if isinstance(info, Mapping) else None


class MaskInInfo(gymnasium.Wrapper):
    """Puts the mask of an environment's observation, or of its method, where all environments have theirs: into info.

    An answer of another form is passed on as it is, so that whoever asked can say what is wrong with it.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.has_key, self.method = is_masked(env.observation_space), method_of(env)
        self.mask_source = f'the key "{KEY}" of its observations' if self.has_key else f"its method {METHOD}()"
        if self.has_key:
            self.observation_space = without_key(env.observation_space)

    def reset(self, **options: Any) -> Any:
        return self.moved(self.env.reset(**options))

    def step(self, action: Any) -> Any:
        return self.moved(self.env.step(action))

    def moved(self, answer: Any) -> Any:
        """What reset or step answers, with the mask in info."""
        if not isinstance(answer, tuple) or len(answer) not in (2, 5) or not isinstance(answer[-1], Mapping):
            return answer
        observation, *between, info = answer
        mask = mask_in(info)
        if self.has_key and isinstance(observation, dict) and KEY in observation:
            observation, shown = apart(observation)
            mask = shown if mask is None else mask
        elif mask is None and self.method is not None and not any(map(bool, between[1:])):
            mask = self.method()  # not at an end, where an environment may have nothing to say
        return (observation, *between, {**info, KEY: mask})


def with_mask_in_info(env: Any) -> Any:
    """A Gymnasium environment, in a wrapper where its mask is not in its info."""
    if not isinstance(env, gymnasium.Env):
        return env
    has_key = is_masked(getattr(env, "observation_space", None))
    return MaskInInfo(env) if has_key or method_of(env) is not None else env


def source_of(env: gymnasium.Env) -> str:
    """Words for where an environment's masks come from."""
    try:
        return env.get_wrapper_attr("mask_source")
    except AttributeError:
        return f'info["{KEY}"]'


def gives_masks(env: gymnasium.Env) -> bool:
    """Whether an environment says which actions are allowed, which its first answer shows."""
    try:
        return mask_in(env.reset(seed=0)[1]) is not None
    except Exception:  # training resets it too, and names the place
        return False


class MaskApart(CompiledEnvironment):
    """A compiled environment whose observations hold the mask of their state."""

    def __init__(self, inner: CompiledEnvironment):
        self.inner = inner
        self.observation_space, self.action_space = without_key(inner.observation_space), inner.action_space
        self.max_episode_steps = inner.max_episode_steps

    def reset(self, key: Any) -> tuple[Any, Any]:
        state, observation = self.inner.reset(key)
        observation, mask = apart(observation)
        return (state, mask), observation

    def step(self, key: Any, state: Any, action: Action) -> tuple[Any, Transition]:
        inner, transition = self.inner.step(key, state[0], action)
        observation, mask = apart(transition.observation)
        return (inner, mask), transition._replace(observation=observation)

    def action_mask(self, state: Any) -> Any:
        return state[1]


class WithoutMasks(CompiledEnvironment):
    """A compiled environment whose masks are ignored."""

    def __init__(self, inner: CompiledEnvironment):
        self.inner = inner
        self.observation_space, self.action_space = inner.observation_space, inner.action_space
        self.max_episode_steps = inner.max_episode_steps

    def reset(self, key: Any) -> tuple[Any, Any]:
        return self.inner.reset(key)

    def step(self, key: Any, state: Any, action: Action) -> tuple[Any, Transition]:
        return self.inner.step(key, state, action)


def with_mask_apart(environment: CompiledEnvironment, masks: bool) -> CompiledEnvironment:
    """A compiled environment that tells its mask, or not, by `action_mask` alone."""
    if is_masked(environment.observation_space):
        environment = MaskApart(environment)
    return environment if masks or not environment.gives_masks else WithoutMasks(environment)
