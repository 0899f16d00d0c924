"""The first use of a Gymnasium environment: check whether reset, step, render and close do what training needs.

Each kind of fault has its own message, which states what was returned and what is expected. Tolerated faults give a
warning.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from upslope.core.arrays import is_shape, shaped_like
from upslope.core.messages import text_of, told
from upslope.core.space_parts import leaf_spaces
from upslope.diagnosis.check_results import Check
from upslope.diagnosis.trials import HostPlayer, actions_of, player_of
from upslope.engines.border import ONLY_32_BITS, SCALE, contains, leaf_of, weighing
from upslope.engines.columns import reset_seed
from upslope.environments.masks import mask_in, source_of
from upslope.environments.registry import AnyEnvironment
from upslope.errors import STOPS, UpslopeError
from upslope.models.encoders import encoder_of

STEPS = 20
"""Number of steps taken in this test."""
RESET = "Return (observation, info) from reset()."
STEP = "Return (observation, reward, terminated, truncated, info) from step()."
MASK = "Correct the mask, or train without it: upslope train … --no-masks."


def first_contact(environment: AnyEnvironment, limit: int | None) -> list[Check]:
    """Reset and step a few times, checking each return value. A compiled environment is skipped, since its protocol was
    checked when it was created."""
    if environment.is_compiled:
        return []
    try:
        player = player_of(environment, limit)
    except UpslopeError as error:
        return [Check("environment", "error", str(error), "Allow more than one instance to be created.")]
    assert isinstance(player, HostPlayer)
    found = list(answers(player, environment))
    has_failed = any(check.status == "error" for check in found)
    try:
        player.close()
    except STOPS:
        raise
    except BaseException as error:
        words = "No training result is lost, but correct close()."
        found.append(Check("close", "warning", f"close() raised {told(error)}", words))
    return found if has_failed else [*found, *pictures(environment)]


def answers(player: HostPlayer, environment: AnyEnvironment) -> Iterator[Check]:
    """Check the return values of reset and step, stopping at the first fault."""
    env = player.env
    space, is_late = environment.observation_space, False
    try:
        answer = env.reset(seed=reset_seed(0, 0, 0))
    except STOPS:
        raise
    except BaseException as error:
        yield reset_failed(error)
        return
    fault = fault_of_reset(answer) or fault_of_observation(space, answer[0])
    if fault:
        yield Check("reset", "error", f"reset() {fault[0]}", fault[1] or RESET)
        return
    try:
        mask = player.allowed(answer[1], 0)
    except UpslopeError as error:
        yield Check("action mask", "error", str(error), MASK)
        return
    yield Check("reset", "ok", "an observation of the space, and info")
    next_action, said, seen = actions_of(environment, 0), {}, [] if mask is None else [mask]
    for step in range(STEPS):
        action = next_action(mask)
        try:
            answer = env.step(action)
        except STOPS:
            raise
        except BaseException as error:
            yield step_failed(error, action)
            return
        fault = fault_of_step(answer) or fault_of_observation(space, answer[0])
        if fault:
            yield Check("step", "error", f"step() {fault[0]}", fault[1] or STEP)
            return
        said |= dict.fromkeys(oddities(answer))
        if answer[2] or answer[3]:
            break
        is_late |= mask is None and mask_in(answer[4]) is not None
        try:
            mask = player.allowed(answer[4], step + 1)
        except UpslopeError as error:
            yield Check("action mask", "error", str(error), MASK)
            return
        seen += [] if mask is None else [mask]
    yield Check("step", "warning" if said else "ok", "; ".join(said) or "five values of the right types",
                "Training interprets them as intended, but correct them anyway." if said else "")  # fmt: skip
    yield from masks(env, seen, is_late and not environment.gives_masks)


def reset_failed(error: BaseException) -> Check:
    """Report an exception in reset."""
    if isinstance(error, TypeError) and "seed" in str(error):
        remedy = "Write it as reset(self, *, seed=None, options=None), and call super().reset(seed=seed)."
        return Check("reset", "error", f"reset() takes no seed: {told(error)}", remedy)
    return Check("reset", "error", f"reset() raised {told(error)}", "Correct reset().")


def step_failed(error: BaseException, action: Any) -> Check:
    """Report an exception in step."""
    words = f"step({action!r}) raised {told(error)}"
    remedy = "Correct step(): it must accept every action of the space, unless the action mask forbids it."
    return Check("step", "error", words, remedy)


Fault = tuple[str, str]
"""What was returned, and the remedy. An empty remedy means that the usual advice applies."""


def fault_of_reset(answer: Any) -> Fault | None:
    """Find a fault in the form of reset's return value."""
    if isinstance(answer, tuple | list) and len(answer) == 2:
        return fault_of_info(answer[1])
    if answer is None:
        return "returned None", ""
    if isinstance(answer, tuple):
        return f"returned {len(answer)} values instead of (observation, info)", ""
    return f"returned {brief(answer)} alone, without info, as before Gymnasium 0.26", ""


def fault_of_step(answer: Any) -> Fault | None:
    """Find a fault in step's return value, apart from the observation."""
    if answer is None:
        return "returned None", ""
    if not isinstance(answer, tuple | list):
        return f"returned {brief(answer)} alone", ""
    if len(answer) == 4:
        words = "Split done: terminated if the environment ended, truncated if the time was up."
        return "returned 4 values, (observation, reward, done, info), as before Gymnasium 0.26", words
    if len(answer) != 5:
        return f"returned {len(answer)} values instead of 5", ""
    ends = fault_of_end("terminated", answer[2]) or fault_of_end("truncated", answer[3])
    return fault_of_reward(answer[1]) or ends or fault_of_info(answer[4])


def fault_of_info(info: Any) -> Fault | None:
    """Find a fault in info, which must be a dictionary."""
    if isinstance(info, Mapping):
        return None
    return f"returned {brief(info)} as info, not a dictionary", "Return {} as info if there is nothing to report."


def fault_of_reward(reward: Any) -> Fault | None:
    """Find a fault in a reward, which must be one finite number."""
    number = as_numbers(reward)
    if number is None:
        return f"returned the reward {brief(reward)}, which is not a number", "Return a float as the reward."
    if number.size > 1:
        return (
            f"returned a reward of shape {number.shape}, but upslope learns from a single number",
            f"Weight its parts as you like: --wrapper '{weighing(number.size)}'.",
        )
    if not np.isfinite(number).all():
        return f"returned the reward {brief(reward)}, which is not finite", "Look for a division by 0."
    return None


def fault_of_end(name: str, value: Any) -> Fault | None:
    """Find a fault in `terminated` or `truncated`."""
    number = as_numbers(value)
    if number is None or number.size != 1 or not np.isin(number, (0, 1)).all():
        return f"returned {brief(value)} as {name}", f"Return True or False as {name}."
    return None


def oddities(answer: Any) -> Iterator[str]:
    """Describe deviations that training tolerates but other libraries may not."""
    reward, terminated, truncated = answer[1:4]
    if np.ndim(reward):
        yield f"the reward is an array of shape {np.shape(reward)}"
    for name, value in (("terminated", terminated), ("truncated", truncated)):
        if not isinstance(value, bool | np.bool_):
            yield f"{name} is {brief(value)}, not a bool"


def fault_of_observation(space: gymnasium.Space, observation: Any) -> Fault | None:
    """Find a fault in an observation's structure, shape or dtype, or in its range if a wrong dtype would be cast."""
    words = "Correct the observation, or the observation space."
    if isinstance(space, spaces.Dict | spaces.Tuple):
        shapes = encoder_of(space, "the environment").shapes
        try:
            parts = jax.tree.structure(shapes, is_leaf=is_shape).flatten_up_to(shaped_like(shapes, observation))
        except ValueError as error:
            return f"returned the observation {brief(observation)}: {error}", words
        leaves = jax.tree.leaves(leaf_spaces(space))
        return next(filter(None, map(fault_of_observation, leaves, parts)), None)
    numbers = as_numbers(observation)
    if numbers is None:
        return f"returned the observation {brief(observation)}, but the observation space is {space}", words
    if numbers.shape != space.shape:
        return (
            f"returned an observation of shape {numbers.shape}, but the observation space is {short(space)} of shape "
            f"{space.shape}"
        ), words
    return fault_of_values(space, numbers)


def fault_of_values(space: gymnasium.Space, numbers: np.ndarray) -> Fault | None:
    """Find a fault in the values of observations [..., *shape] of a space, by the same rules as training."""
    reason = leaf_of((), space, space.shape or ()).wrong(numbers)
    if not reason:
        return None
    if all(contains(space, x) for x in numbers.reshape(-1, *(space.shape or ()))):
        return f"returned an observation of the space {short(space)}, but {ONLY_32_BITS}: {reason}", SCALE
    return (
        f"returned an observation that is not in the observation space {short(space)}: {reason}",
        "Correct the environment, or declare the space that it actually uses.",
    )


def masks(env: gymnasium.Env, seen: list[np.ndarray], is_late: bool) -> Iterator[Check]:
    """Report on the action masks that were observed."""
    if seen:
        share = float(np.mean(seen))
        yield Check("action mask", "ok", f"{source_of(env)} allows {share:.0%} of the choices")
    elif is_late:
        words = "info has an action mask after step(), but none after reset(), so masks are not used"
        yield Check("action mask", "warning", words, "Return it in reset()'s info too.")


def pictures(environment: Any) -> Iterator[Check]:
    """Check whether the environment renders pictures if it claims to; only videos and the credit view need them."""
    try:
        player = player_of(environment, None)
        modes = player.env.metadata.get("render_modes", ()) if isinstance(player, HostPlayer) else ()
        player.close()
    except STOPS:
        raise
    except BaseException:
        modes = ()  # the metadata has a different form, or closing failed, which was checked earlier
    if "rgb_array" not in modes:
        return
    remedy = "Only `upslope credit` and videos need pictures."
    try:
        env = environment.drawing().create()
        try:
            env.reset(seed=reset_seed(0, 0, 0))
            picture = env.render()
        finally:
            env.close()
    except STOPS:
        raise
    except BaseException as error:
        yield Check("pictures", "warning", f"it could not be rendered: {told(error)}", remedy)
        return
    if isinstance(picture, np.ndarray) and picture.ndim == 3:
        yield Check("pictures", "ok", f"render() returns pictures of {picture.shape[1]} × {picture.shape[0]}")
    else:
        yield Check("pictures", "warning", f"render() returned {brief(picture)}, not a picture", remedy)


def as_numbers(value: Any) -> np.ndarray | None:
    """Convert a value to an array of numbers; None if that is not possible."""
    if value is None or isinstance(value, dict | str | bytes):
        return None
    try:
        array = np.asarray(value)
    except Exception:
        return None
    return array if array.dtype.kind in "fiub" else None


def brief(value: Any) -> str:
    """Describe a value in a few words."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of shape {value.shape}"
    if isinstance(value, dict):
        return f"a dictionary with {', '.join(map(repr, list(value)[:3])) or 'nothing'}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    words = repr(value) if isinstance(value, str) else text_of(value)
    return words if len(words) <= 40 else f"a {type(value).__name__}"


def short(space: gymnasium.Space) -> str:
    """Describe a space in a few words; a large Box by its dtype."""
    words = str(space)
    return words if len(words) <= 60 else f"{type(space).__name__} of {space.dtype}"
