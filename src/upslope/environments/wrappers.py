"""Wrappers given by a flag or a setting: Gymnasium's and upslope's own by name, others as `module:Name`.

In `--wrapper FlattenObservation --wrapper 'FrameStackObservation:{"stack_size": 4}'`, the first wrapper is innermost,
and arguments follow a colon as a JSON object.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import gymnasium
import numpy as np

from upslope.core.messages import told
from upslope.environments.base import BrokenEnvironmentError, CompiledEnvironment
from upslope.environments.modules import found
from upslope.environments.names import parse_wrapper
from upslope.errors import STOPS, UpslopeError


class WeightedReward(gymnasium.Wrapper):
    """Replaces several rewards r_i, e.g. for several objectives, with the single reward Σ_i w_i r_i."""

    def __init__(self, env: gymnasium.Env, weights: Sequence[int | float]):
        super().__init__(env)
        self.weights = np.asarray(weights, np.float64)

    def step(self, action: Any) -> Any:
        """Step, and return the weighted sum as the reward, with the original rewards in `info["reward_parts"]`."""
        answer: Any = self.env.step(action)
        if not isinstance(answer, tuple) or len(answer) != 5:
            return answer  # so that the error message shows its original form
        observation, terminated, truncated, info = answer[0], *answer[2:]
        reward: Any = answer[1]
        parts = np.ravel(reward)
        if len(parts) != len(self.weights):
            raise UpslopeError(
                f"The reward has the shape {np.shape(reward)}, but the wrapper WeightedReward has "
                f"{len(self.weights)} weights. Give one for each part."
            )
        return (
            observation,
            float(self.weights @ parts),
            terminated,
            truncated,
            {
                **info,
                "reward_parts": reward,
            },
        )


OWN = {"WeightedReward": WeightedReward}
"""upslope's own wrappers by name."""


def wrap(environment: Any, texts: tuple[str, ...], name: str) -> Any:
    """Apply the wrappers to an environment, starting with the innermost."""
    for text in texts:
        wrapper, arguments = parse_wrapper(text)
        kind, is_compiled = wrapper_of(wrapper), isinstance(environment, CompiledEnvironment)
        if is_compiled and ":" not in wrapper:
            raise UpslopeError(
                f"{name} is compiled, but {wrapper} wraps Gymnasium environments. Omit it, or name your "
                "own wrapper for compiled environments as module:Name."
            )
        try:
            wrapped = kind(environment, **arguments)
        except STOPS:
            raise
        except BaseException as error:
            raise BrokenEnvironmentError(
                f"The wrapper {wrapper} could not wrap {name} with {arguments or 'no arguments'}: {told(error)}."
            ) from error
        if not isinstance(wrapped, CompiledEnvironment if is_compiled else gymnasium.Env):
            wanted = "CompiledEnvironment" if is_compiled else "gymnasium.Env"
            raise BrokenEnvironmentError(f"The wrapper {wrapper} returned a {type(wrapped).__name__}, not a {wanted}.")
        environment = wrapped
    return environment


NORMALISERS = {
    "observations": (gymnasium.wrappers.NormalizeObservation, gymnasium.wrappers.vector.NormalizeObservation),
    "rewards": (gymnasium.wrappers.NormalizeReward, gymnasium.wrappers.vector.NormalizeReward),
}
"""Gymnasium's wrappers that scale what an environment returns by running statistics."""


def normalised_in(env: Any) -> tuple[str, ...]:
    """What the wrappers of an environment, or of a batch and the first environment in it, scale by statistics that
    change while it runs: observations, rewards."""
    found: list[str] = []
    while isinstance(env, gymnasium.Wrapper | gymnasium.vector.VectorWrapper):
        is_running = getattr(env, "update_running_mean", True)
        found += [what for what, kinds in NORMALISERS.items() if isinstance(env, kinds) and is_running]
        env = env.env
    if isinstance(env, gymnasium.vector.SyncVectorEnv):
        found += normalised_in(env.envs[0])
    return tuple(dict.fromkeys(found))


def normalised_by(texts: tuple[str, ...]) -> tuple[str, ...]:
    """What wrappers in the format of `--wrapper` scale, for environments that other processes create."""
    requested = [wrapper_of(parse_wrapper(text)[0]) for text in texts]
    return tuple(what for what, kinds in NORMALISERS.items() if any(kind in kinds for kind in requested))


def wrapper_of(name: str) -> Any:
    """The wrapper class or function with this name.

    Raises:
        UpslopeError: there is no wrapper with this name.
    """
    known = [*OWN, *(each for each in gymnasium.wrappers.__all__ if each[0].isupper())]
    wrapper, colon, rest = name.partition(":")
    if colon and wrapper in known:
        raise UpslopeError(
            f"The arguments of the wrapper {wrapper} must be a JSON object with their names, not {rest}, e.g. "
            "--wrapper 'FrameStackObservation:{\"stack_size\": 4}'."
        )
    try:
        kind = OWN.get(name) or (found(name) if ":" in name else getattr(gymnasium.wrappers, name, None))
        kind = kind if ":" in name or name in known else None
    except ImportError as error:
        raise UpslopeError(f"The wrapper {name} needs a package that is not installed: {error}.") from error
    if callable(kind):
        return kind
    if ":" in name:
        module, _, attribute = name.rpartition(":")
        raise UpslopeError(f"The module {module} has no wrapper {attribute}. Correct the name in --wrapper {name}.")
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    words = f"Did you mean {' or '.join(close)}?" if close else f"Known: {', '.join(known)}."
    raise UpslopeError(f"Gymnasium has no wrapper {name}. {words} Others are named as module:Name.")
