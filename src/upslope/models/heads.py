"""Choose the head for an action space, with the kind of policy that a run requests.

To support another kind of space, write a head and add it to `HEADS`.
"""

from collections.abc import Callable, Sequence

import gymnasium
import numpy as np
from gymnasium import spaces

from upslope.core.space_descriptions import ACTION_DTYPES, MAX_DEPTH, range_of_choices
from upslope.core.space_parts import parts_of as parts_of_space
from upslope.errors import UpslopeError
from upslope.models.box_heads import LOG_STD, PRACTICALLY_INFINITE, BoxHead, SquashedHead, StateNoiseHead
from upslope.models.box_limits import refuse_unresolved
from upslope.models.choice_heads import DiscreteHead, MultiBinaryHead, MultiDiscreteHead, dtype_of
from upslope.models.description import unsupported
from upslope.models.encoders import at
from upslope.models.head import ActionHead
from upslope.models.product_heads import DictHead, ProductHead, TupleHead

HEADS = (DiscreteHead, BoxHead, MultiDiscreteHead, MultiBinaryHead, DictHead, TupleHead)
MOST_CHOICES = 2**24
"""The largest number of choices in a part of an action. 32-bit floats represent every integer up to this number."""


def head_of(space: gymnasium.Space, name: str = "The environment") -> ActionHead:
    """Create the head for an action space, with a Gaussian policy for real-valued actions.

    Raises:
        UpslopeError: the space is not supported.
    """
    if not isinstance(space, gymnasium.Space):
        raise UpslopeError(f"{name} must have an action space of Gymnasium, e.g. env.action_space, not {space!r}.")
    return head_of_part(space, name, "")


def head_of_part(space: gymnasium.Space, name: str, key: str, depth: int = 0) -> ActionHead:
    """The head for the part of an action under this key."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        return product_head(space, name, key, depth)
    if space.shape is not None and 0 in space.shape:
        raise UpslopeError(f"{name} takes actions{at(key)} that contain no numbers, {space}. Remove that part.")
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
        return choice_head(space, name, key)
    if isinstance(space, spaces.Box):
        dtype = np.dtype(space.dtype or np.float32).name
        if dtype not in ACTION_DTYPES["BoxHead"]:
            raise UpslopeError(
                f"{name} takes actions of dtype {dtype}{at(key)}, {space}; a Box action can have dtype "
                f"{', '.join(ACTION_DTYPES['BoxHead'])}. If actions are integers, declare Discrete or "
                "MultiDiscrete, or take floats and round them in the environment."
            )
        low, high = np.asarray(space.low, np.float64).ravel(), np.asarray(space.high, np.float64).ravel()
        box = BoxHead(tuple(space.shape), tuple(low.tolist()), tuple(high.tolist()), dtype)
        refuse_unresolved(box, name, key)
        return box
    if isinstance(space, spaces.MultiBinary):
        return MultiBinaryHead(tuple(int(n) for n in space.shape))
    raise UpslopeError(unsupported(name, "action", space, key))


def choice_head(space: spaces.Discrete | spaces.MultiDiscrete, name: str, key: str) -> ActionHead:
    """The head for one choice or several, whose numbers must fit into the space's dtype."""
    sizes: list[int] = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec).tolist()
    start: list[int] = np.ravel(space.start).tolist()
    dtype = dtype_of(space)
    lowest, largest = range_of_choices(dtype)
    last = max(first + n - 1 for first, n in zip(start, sizes, strict=True))
    if min(start) < lowest or last > largest:
        raise UpslopeError(
            f"{name} takes actions from {min(start)} to {last}{at(key)}, {space}, but those of dtype {dtype} can only "
            f"be from {lowest} to {largest}. Count from 0 in the environment, or declare a larger dtype."
        )
    if isinstance(space, spaces.Discrete):
        return DiscreteHead(sizes[0], start[0], dtype)
    return MultiDiscreteHead(tuple(space.nvec.shape), tuple(sizes), tuple(start), dtype)


def product_head(space: gymnasium.Space, name: str, key: str, depth: int) -> ProductHead:
    """The head for a Dict or a Tuple of actions."""
    parts = list(parts_of_space(space))
    has_names = isinstance(space, spaces.Tuple) or all(isinstance(index, str) for index, _ in parts)
    if not parts or not has_names or depth >= MAX_DEPTH:
        raise UpslopeError(unsupported(name, "action", space, key))
    heads = []
    for index, part in parts:
        place = f"{key}/{index}" if key else str(index)
        heads.append((index, head_of_part(part, name, place, depth + 1)))
        largest = int(np.max(part.n if isinstance(part, spaces.Discrete) else getattr(part, "nvec", 0)))
        if largest > MOST_CHOICES:
            raise UpslopeError(
                f"{name} has {largest:,} choices{at(place)}; a part of an action can have at most {MOST_CHOICES:,}, "
                "because it is stored as a 32-bit float. Declare several smaller choices, or a Box."
            )
    if isinstance(space, spaces.Tuple):
        return TupleHead(tuple(head for _, head in heads))
    return DictHead(tuple(sorted(heads, key=lambda part: part[0])))


def with_policy(
    head: ActionHead,
    name: str,
    *,
    kind: str = "gaussian",
    state_std: bool = False,
    log_std_init: float = 0.0,
    hidden_sizes: Sequence[int] = (),
    noise_every: int = 1,
) -> ActionHead:
    """The head with this kind of policy for its real-valued parts: gaussian, squashed or gsde.

    Raises:
        UpslopeError: this kind of policy does not support these bounds, this initial log σ, or these layers.
    """
    low, high = LOG_STD
    if state_std and head.boxes and not low <= log_std_init <= high:
        raise UpslopeError(
            f"--state-dependent-std keeps log σ between {low:g} and {high:g}, but --log-std-init is {log_std_init:g}. "
            "Choose a value in this range."
        )
    for key, box in head.boxes.items():
        if kind == "squashed" and not box.is_bounded:
            raise UpslopeError(
                f"--head squashed squashes actions into finite bounds (below {PRACTICALLY_INFINITE:g}), but those of "
                f"{name}{at(key)} are {box.space()}. Declare the bounds in the environment, or use --head gaussian."
            )
    if kind != "gsde":
        made = SquashedHead if kind == "squashed" else BoxHead
        return with_boxes(head, lambda box: made(box.shape, box.low, box.high, box.dtype, state_std))
    if head.boxes and state_std:
        raise UpslopeError(
            "--state-dependent-std lets the network output σ, but with --head gsde σ follows from its "
            "last hidden layer. Omit one of the two."
        )
    if head.boxes and not hidden_sizes:
        raise UpslopeError(
            "--head gsde derives its noise from the last hidden layer, but there is none. Set "
            "--hidden-sizes, e.g. to 64 64."
        )
    features = hidden_sizes[-1] if hidden_sizes else 0
    return with_boxes(
        head, lambda box: StateNoiseHead(box.shape, box.low, box.high, box.dtype, False, features, noise_every)
    )


def with_boxes(head: ActionHead, changed: Callable[[BoxHead], BoxHead]) -> ActionHead:
    """The head with the heads of its real-valued parts replaced."""
    if isinstance(head, ProductHead):
        return head.with_heads([with_boxes(part, changed) for part in head.heads])
    return changed(head) if isinstance(head, BoxHead) else head


def without_features(head: ActionHead) -> ActionHead:
    """The head with a distribution that needs only the outputs and log σ."""

    def plain(box: BoxHead) -> BoxHead:
        return BoxHead(box.shape, box.low, box.high, box.dtype) if box.num_features else box

    return with_boxes(head, plain) if head.num_features else head
