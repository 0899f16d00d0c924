"""Check a user's own estimator, objective and schedules before training: trace each of them once, without computing
anything, and report mistakes by the part's name.

upslope's own parts are not checked, so they cost nothing here. How an own bonus is checked: `intrinsic.py`; an own
model: `models/build.py`.
"""

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from upslope.core.estimators import Estimator
from upslope.core.messages import is_of_jax, told
from upslope.core.objectives import Objective, Sample
from upslope.core.types import Credit, Rollout, Values
from upslope.environments.compiled import shown
from upslope.environments.modules import name_of
from upslope.errors import UpslopeError
from upslope.learning.optimisers import Schedules
from upslope.models.build import ModelSpec

RULES = (
    "Compute arrays with jax.numpy instead of NumPy, and use jnp.where or jax.lax.cond instead of `if` on their values."
)
NUMBER: Any = jax.ShapeDtypeStruct((), np.float32)
DECLARATIONS = {
    "needs_critic": "reads the critic's values",
    "whole_episodes": "needs whole episodes",
}
"""Class attribute of an estimator → its meaning."""


def is_own(part: Any) -> bool:
    """Whether a part is a user's own."""
    return not name_of(part).startswith("upslope.")


def called(role: str, part: Any) -> str:
    """A part as the subject of a message, with its fields if there are only a few."""
    name = repr(part) if is_dataclass(part) else ""
    return f"The {role} {name if 0 < len(name) <= 80 else type(part).__name__}"


def rollout_like(spec: ModelSpec, steps: int, columns: int, *, has_masks: bool) -> Rollout:
    """The shapes and dtypes of a rollout [T, N]."""

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct((steps, columns, *shape), jax.dtypes.canonicalize_dtype(dtype))

    observation, number, flag = spec.observations_like(steps, columns), array(np.float32), array(bool)
    return Rollout(
        observation=observation,
        action=array(spec.head.sample_dtype, *spec.head.sample_shape),
        reward=number,
        terminated=flag,
        truncated=flag,
        next_observation=observation,
        behaviour_log_prob=number,
        valid=flag,
        action_mask=array(bool, spec.head.num_choices) if has_masks else None,
    )


def require_declarations(estimator: Estimator) -> None:
    """Raise an error if an estimator's class lacks one of the attributes that every estimator declares."""
    for attribute, meaning in DECLARATIONS.items():
        if not isinstance(declared := getattr(estimator, attribute, None), bool):
            name, has = type(estimator).__name__, "" if declared is None else f" as True or False, but as {declared!r}"
            raise UpslopeError(
                f"The estimator {name} does not declare {attribute}{has}, so it is not known whether it {meaning}. Put "
                f"`{attribute}: ClassVar[bool] = False` into the class, or True."
            )


def check_estimator(estimator: Estimator, rollout: Rollout, gamma: float) -> None:
    """Trace a user's own estimator with the shapes of a rollout [T, N].

    Raises:
        UpslopeError: it raises an exception, or returns anything but two arrays of floats [T, N].
    """
    if not is_own(estimator):
        return
    name, (steps, columns) = called("estimator", estimator), rollout.reward.shape
    values: Any = jax.ShapeDtypeStruct((steps, columns), np.float32)

    def weigh(rollout: Rollout, values: Values) -> None:
        credit = estimator(rollout, values, gamma)
        if not isinstance(credit, Credit):
            raise UpslopeError(f"{name} returned {shown(credit)}; it must return upslope.Credit(weight, target).")
        for field, array in zip(Credit._fields, credit, strict=True):
            require_floats(
                array,
                (steps, columns),
                f"{name} returned the {field}",
                f"one number for each of {steps} steps in each of {columns} columns, like rollout.reward",
                "Without a critic, the target may equal the weight."
                if array is None
                else "If steps share a number, give it to each with jnp.broadcast_to(x, rollout.reward.shape).",
            )

    traced(weigh, name, "it", rollout, Values(values, values, values if estimator.corrects else None))


def check_schedules(schedules: Schedules) -> None:
    """Trace the user's own schedules.

    Raises:
        UpslopeError: one of them raises an exception, or returns anything but a single number.
    """
    for setting, schedule in vars(schedules).items():
        if schedule is None or not is_own(schedule):
            continue
        name = f"The schedule of {setting}"
        factor = traced(schedule, name, "its call with one number, the fraction of the budget spent", NUMBER)
        if not is_whole_number(factor):  # the product of a setting and a whole number is an ordinary float
            require_floats(factor, (), f"{name} returned", "the factor of a setting at one point of the budget", "")


def require_schedule(setting: str, own: Any) -> Any:
    """A user's own schedule, unless it is not a function."""
    if callable(own):
        return own
    raise UpslopeError(
        f"The schedule of {setting} is {own!r}, not a function. Pass a function that maps the fraction of the budget "
        "spent so far to a factor, e.g. lambda progress: 1 - progress."
    )


def check_objective(objective: Objective, at: Callable[[Any], Objective], count: int) -> None:
    """Trace a user's own objective with B samples: its state, its losses, their gradient, and its mask.

    `at` maps the progress to the objective with its scheduled fields.

    Raises:
        UpslopeError: it raises an exception, or returns values that do not fit.
    """
    if not is_own(objective):
        return
    name = called("objective", objective)
    samples: Any = jax.ShapeDtypeStruct((count,), np.float32)
    state = traced(objective.init, name, "its init()")
    check_objective_state(objective, name, state)

    def loss(log_prob: Any, kl: Any, sample: Sample, state: Any, progress: Any) -> Any:
        losses = at(progress).loss(state, sample._replace(log_prob=log_prob, kl=kl))
        needed = f"one number for each of {count} samples"
        advice = "upslope takes the mean itself: return the losses before they are averaged."
        require_floats(losses, (count,), f"{name} returned the loss", needed, advice)
        return jnp.sum(losses)

    sample = Sample(samples, samples, samples, samples)
    traced(jax.grad(loss, argnums=(0, 1)), name, "its loss()", samples, samples, sample, state, NUMBER)
    outside = traced(lambda ratio, progress: at(progress).is_outside(ratio), name, "its is_outside()", samples, NUMBER)
    if shown(outside) != f"bool[{count}]":
        raise UpslopeError(
            f"{name} returned {shown(outside)} from is_outside(), but bool[{count}] is needed: a flag for each ratio."
        )


def check_objective_state(objective: Objective, name: str, state: Any) -> None:
    """Reject a state that is not an array, or that changes its kind."""
    if not hasattr(state, "shape") or (objective.state_name is not None and state.shape != ()):
        kind = "an array" if objective.state_name is None else "a single number, since it is a metric"
        raise UpslopeError(f"{name} returned the state {shown(state)} from init(); it must be {kind}.")
    adapted = traced(objective.adapt, name, "its adapt()", state, NUMBER)
    if shown(adapted) != shown(state):
        raise UpslopeError(
            f"{name} returned the state {shown(adapted)} from adapt(), but {shown(state)} from init(). Shapes and "
            "dtypes of a state must never change."
        )


def traced(function: Callable[..., Any], name: str, where: str, *arguments: Any) -> Any:
    """The shapes of the value that a user's own part returns.

    Raises:
        UpslopeError: it raises an exception.
    """
    try:
        return jax.eval_shape(function, *arguments)
    except UpslopeError:
        raise
    except Exception as error:
        remedy = RULES if is_of_jax(error) else "Correct it."
        raise UpslopeError(f"{name} raised {told(error)} when JAX traced {where}. {remedy}") from error


def require_floats(x: Any, shape: tuple[int, ...], returned: str, needed: str, advice: str) -> None:
    """Raise an error unless x is an array of this shape of 32-bit floats, or of 64-bit floats if JAX has them.

    Other dtypes would train with other numbers, without a message. `advice` is how to get the right shape."""
    if not hasattr(x, "shape") or x.shape != shape:
        remedy = advice
    elif not is_full_float(x.dtype):
        remedy = "Convert it with .astype(jnp.float32)."
    else:
        return
    wanted = f"float32{list(shape)}"
    raise UpslopeError(f"{returned} {shown(x)}, but {wanted} is needed: {needed}. {remedy}".rstrip())


def is_whole_number(x: Any) -> bool:
    """Whether x is a single integer or boolean."""
    return getattr(x, "shape", None) == () and is_integer(x.dtype)


def is_integer(dtype: Any) -> bool:
    """Whether the values are integers or booleans."""
    return any(jnp.issubdtype(dtype, kind) for kind in (np.integer, np.bool_))


def is_full_float(dtype: Any) -> bool:
    """Whether JAX computes with this dtype as 32-bit floats or, if enabled, as 64-bit floats."""
    full = (np.float32, jax.dtypes.canonicalize_dtype(np.float64))
    return jnp.issubdtype(dtype, np.floating) and jax.dtypes.canonicalize_dtype(dtype) in full
