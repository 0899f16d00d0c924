"""Compiled environments: upslope's own as `jax:Name`, a user's as `jax:module:Name`."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from gymnasium import spaces

from upslope.core.messages import COMPILED_PREFIX, told
from upslope.core.numbers import MAX_COUNT
from upslope.core.types import Transition
from upslope.environments import probes
from upslope.environments.base import BrokenEnvironmentError, CompiledEnvironment, Request, Source
from upslope.environments.classic.acrobot import Acrobot
from upslope.environments.classic.cartpole import CartPole
from upslope.environments.classic.mountain_car import MountainCar, MountainCarContinuous
from upslope.environments.classic.pendulum import Pendulum
from upslope.environments.deep_sea import DeepSea
from upslope.environments.ignoring import ignoring
from upslope.environments.masks import with_mask_apart
from upslope.environments.modules import call, found
from upslope.environments.names import near
from upslope.environments.tabular import delayed_key, gridworld, short_corridor
from upslope.environments.tokens import tokens
from upslope.environments.wrappers import wrap
from upslope.errors import UpslopeError
from upslope.models.heads import head_of

COMPILED: dict[str, Callable[..., CompiledEnvironment]] = {
    "CartPole-v1": CartPole,
    "Pendulum-v1": Pendulum,
    "Acrobot-v1": Acrobot,
    "MountainCar-v0": MountainCar,
    "MountainCarContinuous-v0": MountainCarContinuous,
    "DeepSea-v0": DeepSea,
    "GridWorld-v0": gridworld,
    "ShortCorridor-v0": short_corridor,
    "Key-v0": delayed_key,
    "Tokens-v0": tokens,
    "probe/constant": probes.constant,
    "probe/observation": probes.observation,
    "probe/delay": probes.delay,
    "probe/action": probes.action,
    "probe/both": probes.both,
    "probe/truncation": probes.truncation,
    "probe/continuous": probes.continuous,
    "probe/multidiscrete": probes.multidiscrete,
    "probe/multibinary": probes.multibinary,
    "probe/mask": probes.mask,
    "probe/memory": probes.memory,
    "probe/image": probes.image,
    "probe/dict": probes.dictionary,
    "probe/asymmetric": probes.asymmetric,
    "probe/hybrid": probes.hybrid,
}
"""Name → constructor. The first five replicate Gymnasium's environments step for step, with the same names and
keyword arguments. Every constructor can be called without arguments."""


def make_compiled(request: Request) -> CompiledEnvironment:
    """Create a compiled environment by name; for an unknown name, suggest similar ones."""
    name = request.name.removeprefix(COMPILED_PREFIX)
    if ":" in name:
        return make_own(request, name)
    if name not in COMPILED:
        raise UpslopeError(
            f'There is no compiled environment "{request.name}". {near(request.name, compiled_names())} '
            f"Gymnasium's own environments run on the host: omit the prefix {COMPILED_PREFIX}"
        )
    try:
        environment = COMPILED[name](**request.env_kwargs)
    except TypeError as error:
        raise UpslopeError(f"{request.name} does not take {request.env_kwargs}: {error}.") from error
    return finished(environment, request)


def make_own(request: Request, name: str) -> CompiledEnvironment:
    """Create the user's own environment, from an instance, a class or a factory."""
    own = found(name)
    if own is None:
        module, _, attribute = name.rpartition(":")
        raise UpslopeError(f"The module {module} has no {attribute}. Correct the name in {request.name}.")
    if isinstance(own, CompiledEnvironment):
        return finished(own, request)
    if not callable(own):
        raise BrokenEnvironmentError(
            f"{name} is a {type(own).__name__}, not a CompiledEnvironment or a function that returns one."
        )
    environment = call(own, name, request.env_kwargs)
    if not isinstance(environment, CompiledEnvironment):
        raise BrokenEnvironmentError(
            f"{name} returned a {type(environment).__name__}, not an upslope.CompiledEnvironment. Subclass "
            f"that, or omit the prefix {COMPILED_PREFIX} for a Gymnasium environment."
        )
    return finished(environment, request)


def finished(environment: CompiledEnvironment, request: Request) -> CompiledEnvironment:
    """Wrap the environment as requested. A user's own environment is also checked against the protocol."""
    environment = wrap(environment, request.wrappers, request.name)
    check_limit(environment.max_episode_steps, request.name)
    if not type(environment).__module__.startswith("upslope."):
        check_protocol(environment, request.name)
    environment = with_mask_apart(environment, request.name, request.masks)
    if environment.gives_masks:
        check_mask(environment, request.name)
    return ignoring(environment, request.ignored, request.name)


def check_limit(limit: Any, name: str) -> None:
    """Reject a time limit that --max-episode-steps would refuse too.

    Raises:
        BrokenEnvironmentError: it is neither None nor a number of steps.
    """
    is_count = isinstance(limit, int | np.integer) and not isinstance(limit, bool) and 0 < limit <= MAX_COUNT
    if limit is not None and not is_count:
        raise BrokenEnvironmentError(
            f"{name} has max_episode_steps = {limit!r}; it must be an integer from 1 to {MAX_COUNT:,}, or None for no "
            "limit."
        )


def check_protocol(environment: CompiledEnvironment, name: str) -> None:
    """Trace reset and step once, without computing anything, and check their return values against the spaces.

    Raises:
        BrokenEnvironmentError: a shape, dtype or structure is not what JAX or the spaces require.
    """
    for role in ("observation_space", "action_space"):
        space = getattr(environment, role, None)
        if not isinstance(space, spaces.Space):
            what = "no" if space is None else f"a {type(space).__name__} as its"
            raise BrokenEnvironmentError(f"{name} has {what} {role}. Give it one of Gymnasium's spaces.")
    key = jax.eval_shape(lambda: jax.random.key(0))
    answer = traced(environment.reset, name, "reset", key)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise BrokenEnvironmentError(
            f"{name}.reset(key) returned {shown(answer)}; it must return (state, observation)."
        )
    state, observation = answer
    check_observation(environment.observation_space, observation, f"{name}.reset(key)")
    answer = traced(environment.step, name, "step", key, state, action_like(environment.action_space, name))
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Transition)):
        raise BrokenEnvironmentError(
            f"{name}.step(key, state, action) returned {shown(answer)}; it must return (state, "
            "upslope.Transition(observation, reward, terminated, truncated))."
        )
    check_state(state, answer[0], name)
    transition = answer[1]
    check_observation(environment.observation_space, transition.observation, f"{name}.step()")
    for field, kind, wanted in (
        ("reward", "f", "a float"),
        ("terminated", "b", "a bool"),
        ("truncated", "b", "a bool"),
    ):
        value = getattr(transition, field)
        if not hasattr(value, "shape") or value.shape != () or value.dtype.kind != kind:
            raise BrokenEnvironmentError(
                f"{name}.step() returned the {field} {shown(value)}; it must be {wanted} of shape ()."
            )


def check_mask(environment: CompiledEnvironment, name: str) -> None:
    """Reject a mask that does not fit the action space.

    Raises:
        BrokenEnvironmentError: the mask has a different format.
    """
    key, head = jax.eval_shape(lambda: jax.random.key(0)), head_of(environment.action_space, name)
    try:
        jax.eval_shape(lambda key: head.flat_mask(environment.action_mask(environment.reset(key)[0])), key)
    except Exception as error:
        raise BrokenEnvironmentError(
            f"{name}.action_mask(state) does not fit the action space {environment.action_space}: {told(error)}. "
            "Correct it, or ignore masks with --no-masks."
        ) from error


def traced(function: Callable[..., Any], name: str, where: str, *arguments: Any) -> Any:
    """The shapes of a method's return value."""
    try:
        return jax.eval_shape(function, *arguments)
    except Exception as error:
        raise BrokenEnvironmentError(
            f"{name} raised {told(error)} when JAX traced {where}(). A compiled environment must use jax.numpy and "
            "jax.random, and jnp.where or jax.lax.cond instead of `if` on values of the state."
        ) from error


def action_like(space: spaces.Space, name: str) -> Any:
    """The shapes and dtypes of an action as the environment receives it."""
    head = head_of(space, name)
    sampled = jax.ShapeDtypeStruct((1, *head.sample_shape), head.sample_dtype)
    return jax.eval_shape(lambda x: jax.tree.map(lambda part: part[0], head.to_compiled(x)), sampled)


def check_observation(space: spaces.Space, observation: Any, where: str, key: str = "") -> None:
    """Reject an observation whose structure, shape or kind of number does not match its space."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        kind = dict if isinstance(space, spaces.Dict) else tuple
        parts: dict[Any, Any] = dict(space.items() if isinstance(space, spaces.Dict) else enumerate(space))
        found: dict[Any, Any] = dict(enumerate(observation)) if isinstance(observation, tuple) else observation
        if type(observation) is not kind or found.keys() != parts.keys():
            raise BrokenEnvironmentError(
                f"{where} returned the observation{key} {shown(observation)}, but its space is {space}: it must be a "
                f"plain {kind.__name__} with the parts {', '.join(map(repr, parts))}."
            )
        for index, part in parts.items():
            check_observation(part, found[index], where, f"{key}[{index!r}]")
    elif isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        kinds = {"f": "f", "i": "iu", "u": "iu", "b": "biu"}[np.dtype(space.dtype or np.float32).kind]
        if not hasattr(observation, "shape") or observation.shape != space.shape or observation.dtype.kind not in kinds:
            raise BrokenEnvironmentError(
                f"{where} returned the observation{key} {shown(observation)}, but the observation space is {space}. "
                "Correct one of them."
            )


def check_state(before: Any, after: Any, name: str) -> None:
    """Reject a step that changes the structure, a shape or a dtype of the state."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise BrokenEnvironmentError(
            f"{name}.step() returned a state whose structure differs from reset()'s: {shown(after)}, not "
            f"{shown(before)}."
        )
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise BrokenEnvironmentError(
                f"{name}.step() changed state{jax.tree_util.keystr(path)} from {shown(a)} to {shown(b)}. Shapes and "
                "dtypes of a state must never change: let reset() return the dtype that step() computes."
            )


def shown(tree: Any) -> str:
    """Format a traced value, each array as `float32[2, 3]`."""
    short = jax.tree.map(lambda x: Word(f"{x.dtype}{list(x.shape)}") if hasattr(x, "shape") else x, tree)
    return repr(short)


class Word(str):
    """Text whose repr omits the quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def compiled_names() -> list[str]:
    """The full names of upslope's own compiled environments."""
    return [COMPILED_PREFIX + name for name in COMPILED]


SOURCE = Source(COMPILED_PREFIX, make_compiled)
