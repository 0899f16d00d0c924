"""Validate the return values of environments against their spaces. Nothing is cast silently.

An environment's first return values are checked in full, and most later ones only by checks that cost almost nothing. A
number that a cast would change and an index out of range are errors. Values outside the bounds of a Box are reported
once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from upslope.core.arrays import is_shape, over_parts, shaped_like
from upslope.core.messages import raised_at, text_of, told
from upslope.core.reading import brief
from upslope.core.space_parts import leaf_spaces
from upslope.engines.notices import Notices, notices_to
from upslope.environments.masks import mask_in
from upslope.errors import STOPS, UpslopeError
from upslope.models.encoders import ObservationEncoder
from upslope.models.head import ActionHead

FIRST = 100
"""Number of initial observations of each environment that are checked in full, as is the first observation of every
episode."""
EVERY = 64
"""After these observations, only every 64th one is checked in full."""
FEW_SPACINGS = 4.0
"""A feature is considered lost if its standard deviation is less than this many times the spacing between floats."""
FAR = 10.0
"""If the mean is closer to 0 than this, a tiny spread is due to rounding rather than to an offset."""
MANY = 10_000
"""Number of elements above which the spread of an observation is not tracked."""
NUMBERS = frozenset({float, int, bool, np.float64, np.float32, np.int64, np.int32, np.bool_})
"""Reward types that need no further check."""
FLAGS = frozenset({bool, np.bool_})
"""Types of `terminated` and `truncated` that need no further check."""
ONLY_32_BITS = "upslope computes in 32 bits"
SCALE = "Scale the numbers, or subtract an offset, in the environment or a wrapper."
STEP = "(observation, reward, terminated, truncated, info)"
RESET = "(observation, info)"


@runtime_checkable
class Place(Protocol):
    """The step at which an environment returned something."""

    seen: int
    """Number of observations of its environment so far."""
    length: int

    def describe(self) -> str:
        """Describe the step so that it can be reproduced."""
        ...


@dataclass(frozen=True)
class Leaf:
    """One array of an observation: its storage format and its space's constraints."""

    path: str
    """Name of the array in messages; empty if the observation is a single array."""
    keys: tuple[Any, ...]
    """Path to the array within an observation, with the outermost key first."""
    space: gymnasium.Space | None
    shape: tuple[int, ...]
    dtype: np.dtype
    low: Any
    high: Any
    """Bounds, or None if there are no bounds to check."""
    is_index: bool
    """Whether the numbers are indices, which must be within the bounds."""

    @cached_property
    def plain_dtypes(self) -> frozenset[np.dtype]:
        """The dtypes whose numbers can all be stored unchanged."""
        if self.dtype.kind in "iu" and self.dtype.itemsize == 8:  # networks read at most 32 bits
            return frozenset()
        return frozenset({self.dtype, np.dtype(np.float64)} if self.dtype == np.float32 else {self.dtype})

    @cached_property
    def holds_all(self) -> bool:
        """Whether every array of the stored dtype can be stored, so that its numbers need no check."""
        return not self.is_index and self.dtype.itemsize < 8

    def wrong(self, observation: Any) -> str:
        """Explain why the value cannot be stored unchanged, or return an empty string if it can."""
        try:
            x = np.asarray(observation)
            if type(observation) is np.ndarray and x.dtype == self.dtype and self.holds_all:
                return ""
        except STOPS:
            raise
        except BaseException as error:  # e.g. a tensor that records gradients
            return f"NumPy cannot read it: {told(error)}"
        if np.ma.is_masked(observation):
            return "some of its numbers are masked, so they are not part of it"
        if x.dtype.kind not in "fiub":
            is_one = x.ndim == 0 and not isinstance(observation, np.ndarray)
            return f"it is {type(observation).__name__}, not numbers" if is_one else f"its dtype is {x.dtype}"
        if self.dtype.kind == "f":
            with np.errstate(all="ignore"):
                is_too_large = np.isfinite(x) & ~np.isfinite(x.astype(self.dtype))
            return f"{x[is_too_large].flat[0]} is beyond the largest {self.dtype}" if is_too_large.any() else ""
        with np.errstate(all="ignore"):
            is_changed = x.astype(self.dtype) != x
        if is_changed.any():
            return f"casting {x[is_changed].flat[0]} to {self.dtype} would change it"
        if self.dtype.itemsize == 8:
            limits = np.iinfo(np.int32 if self.dtype.kind == "i" else np.uint32)
            is_too_large = (x < limits.min) | (x > limits.max)
            if is_too_large.any():
                return f"{x[is_too_large].flat[0]} does not fit into 32 bits"
        if self.is_index:
            is_outside = (x < self.low) | (x > self.high)
            if is_outside.any():
                return f"{x[is_outside].flat[0]} is out of range"
        return ""

    def is_plainly_right(self, x: Any) -> bool:
        """Return whether inexpensive checks already confirm that the value is in the space."""
        if self.is_index:
            return type(x) in WHOLE and self.shape == () and bool(self.low <= x <= self.high)
        return type(x) is np.ndarray and x.shape == self.shape and x.dtype in self.plain_dtypes

    def exceeds(self, observation: Any) -> bool:
        """Return whether the value is outside the bounds by more than a rounding error."""
        if self.is_index or self.low is None:
            return False
        x = np.asarray(observation)
        if not ((x < self.low) | (x > self.high)).any():
            return False
        margin = 1e-5 * (1 + np.abs(x)) if self.dtype.kind == "f" else 0
        return bool(((x < self.low - margin) | (x > self.high + margin)).any())


class Border:
    """Allocates observation arrays and checks the values that are written into them."""

    def __init__(self, name: str, space: gymnasium.Space, encoder: ObservationEncoder, notices: Notices | None = None):
        self.name, self.space, self.shapes = name, space, encoder.shapes
        self.notices = notices or notices_to()
        self.leaves = leaves_of(space, self.shapes)
        self.structure = jax.tree.structure(self.shapes, is_leaf=is_shape)
        self.only = self.leaves[0] if is_shape(self.shapes) else None
        self.spreads: list[Spread | None] = [
            Spread() if isinstance(leaf.space, spaces.Box) and np.prod(leaf.shape) <= MANY else None
            for leaf in self.leaves
        ]

    def empty(self, count: int) -> Any:
        """Allocate arrays for `count` observations."""
        return jax.tree.unflatten(self.structure, [np.zeros((count, *leaf.shape), leaf.dtype) for leaf in self.leaves])

    def placing(self, into: Any) -> Callable[[int, Any, Place], None]:
        """Return a function that writes observations into rows of these arrays after checking them against the space.

        The arrays of a Dict or Tuple are looked up here once, not again for every row.
        """
        only = self.only
        size = 0 if only else len(self.shapes)
        arrays = self.structure.flatten_up_to(into)
        parts = [(array, leaf.keys, leaf.is_plainly_right) for array, leaf in zip(arrays, self.leaves, strict=True)]

        def place(row: int, observation: Any, episode: Place) -> None:
            episode.seen = seen = episode.seen + 1
            if seen > FIRST and episode.length and seen % EVERY:
                if only is None:
                    if place_parts(parts, size, row, observation):
                        return
                elif only.is_plainly_right(observation):
                    into[row] = observation
                    return
            for array, x in zip(arrays, self.checked(observation, episode), strict=True):
                array[row] = x

        return place

    def checked(self, observation: Any, episode: Place) -> list[Any]:
        """Return the arrays of an observation, or raise an error if a value is not in the space. Report values outside
        its bounds and features that are lost in 32 bits."""
        self.require_fit(observation, episode)
        found = self.parts(observation)
        for leaf, x, spread in zip(self.leaves, found, self.spreads, strict=True):
            reason = leaf.wrong(x)
            if reason:
                fault, remedy = (
                    "which is not in its space",
                    "Correct the environment, or declare a space that contains it.",
                )
                if contains(leaf.space, x):
                    fault, remedy = f"but {ONLY_32_BITS}; its space is", SCALE
                raise UpslopeError(
                    f"{self.name} returned the observation{leaf.path} {short(x)}, {fault} {leaf.space}: {reason}: "
                    f"{episode.describe()}. {remedy}"
                )
            if leaf.exceeds(x):
                self.notices(
                    f"bounds{leaf.path}",
                    f"warning: {self.name} returned the observation{leaf.path} {short(x)}, outside the bounds of its "
                    f"space {leaf.space}: {episode.describe()}. It is used unchanged, and this warning is shown once.",
                )
            if spread is not None and spread.count >= 0:
                self.watch(leaf, x, spread, is_last=episode.seen >= FIRST)
        return found

    def watch(self, leaf: Leaf, x: Any, spread: "Spread", *, is_last: bool) -> None:
        """Track the spread of the first observations, and report features that floats cannot resolve."""
        with np.errstate(all="ignore"):  # non-finite values raise an error elsewhere
            spread.add(np.asarray(x, np.float64))
        if is_last:
            lost = lost_digits(spread.mean, spread.deviation(), leaf.dtype)
            if lost.any():
                self.notices(f"offset{leaf.path}", words_of_loss(self.name, leaf.path, spread, lost, leaf.dtype))
            spread.count = -1

    def require_fit(self, observation: Any, episode: Place) -> None:
        """Raise an error if an observation does not have the structure and the shapes of the space."""
        misfit = self.misfit(observation)
        if misfit is not None:
            what, expected, path = misfit
            raise UpslopeError(
                f"{self.name} returned an observation{path} {kind_of(what)}, but its observation space "
                f"requires {expected}: {episode.describe()}. Correct the environment or its observation_space."
            )

    def misfit(self, observation: Any) -> tuple[Any, Any, str] | None:
        """Return the first part whose structure or shape differs from the space, what was expected instead, and its
        path. Return None if every part fits."""
        try:
            parts = self.parts(observation)
        except ValueError:
            return observation, self.shapes, ""
        for leaf, x in zip(self.leaves, parts, strict=True):
            if not has_shape(x, leaf.shape):
                return x, leaf.shape, leaf.path
        return None

    def parts(self, observation: Any) -> list[Any]:
        """Return the arrays of an observation, in the order of the leaves.

        Raises:
            ValueError: its structure differs from the space's.
        """
        if self.only is not None:
            return [observation]
        return self.structure.flatten_up_to(shaped_like(self.shapes, observation))


def contains(space: gymnasium.Space | None, x: Any) -> bool:
    """Return whether a space contains a value that upslope cannot represent in 32 bits."""
    try:
        return space is not None and not np.ma.is_masked(x) and space.contains(x)
    except STOPS:
        raise
    except BaseException:
        return False


def place_parts(
    parts: list[tuple[np.ndarray, tuple[Any, ...], Callable[[Any], bool]]], size: int, row: int, observation: Any
) -> bool:
    """Write each part of a Dict or Tuple of this size that passes its quick check into its array, and return whether
    all of them passed."""
    try:
        if len(observation) != size:
            return False
        for array, keys, is_plainly_right in parts:
            x = observation
            for key in keys:
                x = x[key]
            if not is_plainly_right(x):
                return False
            array[row] = x
    except (KeyError, IndexError, TypeError, ValueError):
        return False
    return True


class Spread:
    """The running mean and standard deviation of each element of an array, computed in 64 bits with Welford's
    algorithm. A count of −1 means that tracking has finished."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def add(self, x: np.ndarray) -> None:
        """Include one array."""
        self.count += 1
        before = x - self.mean
        self.mean = self.mean + before / self.count
        self.squares = self.squares + before * (x - self.mean)

    def deviation(self) -> Any:
        """Return the standard deviation."""
        return np.sqrt(self.squares / max(self.count, 1))


def lost_digits(mean: Any, deviation: Any, dtype: Any = np.float32) -> np.ndarray:
    """Return a mask of the features whose deviation is less than a few times the spacing, at `mean`, of the floats that
    networks read."""
    mean, deviation = np.atleast_1d(mean), np.atleast_1d(deviation)
    kept = np.float16 if np.dtype(dtype) == np.float16 else np.float32
    with np.errstate(all="ignore"):
        spacing = np.abs(np.spacing(mean.astype(kept)).astype(np.float64))
        # Variation below the resolution of 64-bit floats is rounding error.
        is_real = deviation > 4 * np.spacing(np.abs(mean))
    return (np.abs(mean) >= FAR) & is_real & (deviation < FEW_SPACINGS * spacing)


def lost_in_float32(observations: np.ndarray) -> np.ndarray:
    """Find the features that 32-bit floats cannot resolve in observations [n, …], as the environment returned them.

    The result contains indices into the flattened observation."""
    flat = np.asarray(observations, np.float64).reshape(len(observations), -1)
    return np.flatnonzero(lost_digits(flat.mean(0), flat.std(0)))


def words_of_loss(name: str, path: str, spread: Spread, lost: np.ndarray, dtype: Any) -> str:
    """Return the warning about features that floats cannot resolve."""
    places = np.flatnonzero(lost)
    mean, deviation = (float(np.ravel(x)[places[0]]) for x in (spread.mean, spread.deviation()))
    kept = np.float16 if np.dtype(dtype) == np.float16 else np.float32
    gap = abs(float(np.spacing(kept(mean))))
    shown = ", ".join(map(str, places[:5])) + (f" and {len(places) - 5} others" if len(places) > 5 else "")
    return (
        f"warning: {name} varies by {deviation:.2g} around {mean:.6g} in feature {shown} of the observation{path}, "
        f"where two {8 * np.dtype(kept).itemsize}-bit floats are {gap:.3g} apart, so the agent cannot see the "
        "variation, and normalisation cannot restore it. Subtract the offset in the environment before it returns the "
        "observation."
    )


def leaves_of(space: gymnasium.Space, shapes: Any) -> list[Leaf]:
    """Return the leaves of an observation in this space."""
    named = jax.tree_util.tree_leaves_with_path(shapes, is_leaf=is_shape)
    parts = jax.tree.leaves(leaf_spaces(space), is_leaf=lambda node: isinstance(node, gymnasium.Space))
    if len(parts) != len(named):  # the encoder reads the space in a different form
        parts = [space] * len(named) if len(named) == 1 else [None] * len(named)
    return [leaf_of(path, part, shape) for (path, shape), part in zip(named, parts, strict=True)]


def leaf_of(path: tuple[Any, ...], space: gymnasium.Space | None, shape: tuple[int, ...]) -> Leaf:
    """Return the leaf of one space, at this JAX key path in an observation."""
    dtype = np.dtype(np.float32) if space is None else stored_dtype(space)
    low: Any = None
    high: Any = None
    is_index = True
    if isinstance(space, spaces.Discrete):
        low, high = int(space.start), int(space.start + space.n - 1)
    elif isinstance(space, spaces.MultiDiscrete):
        low, high = space.start, space.start + space.nvec - 1
    elif isinstance(space, spaces.MultiBinary):
        low, high = 0, 1
    else:
        is_index = False
        if isinstance(space, spaces.Box):
            low, high = (np.asarray(x, np.float64) for x in (space.low, space.high))
    keys = tuple(step.key if isinstance(step, jax.tree_util.DictKey) else step.idx for step in path)
    return Leaf(jax.tree_util.keystr(path), keys, space, shape, dtype, low, high, is_index)


WHOLE = frozenset({int, np.int64, np.int32})
"""Types of indices that need only a range check."""


def stored_dtype(space: gymnasium.Space) -> np.dtype:
    """Return the dtype in which observations are stored: that of the space in this machine's byte order, with 64-bit
    floats reduced to 32 bits."""
    dtype = np.dtype(space.dtype or np.float32)
    return np.dtype(np.float32) if dtype.kind == "f" and dtype.itemsize > 4 else dtype.newbyteorder("=")


def shape_of(x: Any) -> Any:
    """Return the shape of one array or number."""
    return x.shape if isinstance(x, np.ndarray) else np.shape(x)


def has_shape(x: Any, shape: tuple[int, ...]) -> bool:
    """Return whether a value is an array, a number, or nested rows of numbers with this shape."""
    try:
        return shape_of(x) == shape
    except STOPS:
        raise
    except BaseException:  # rows of unequal lengths, or an array of another library that NumPy must not read
        return False


def kind_of(x: Any) -> str:
    """Describe what was returned instead of the expected array: its shape, or its type if it is not an array."""
    if isinstance(x, np.ndarray | np.generic | int | float | list):
        try:
            return f"of shape {shape_of(x)}"
        except ValueError:
            return "of rows of unequal lengths"
    if isinstance(x, Mapping):
        return f"with the keys {short(', '.join(map(repr, x)))}" if x else "without any key"
    return "None" if x is None else f"of type {type(x).__name__}" + (f" {short(x)}" if isinstance(x, tuple) else "")


def short(x: Any) -> str:
    """Shorten a value to at most 80 characters on one line."""
    text = " ".join(text_of(x).split())
    return text if len(text) <= 80 else text[:77] + "…"


def reset_answer(answer: Any, name: str, place: Place) -> Any:
    """Extract the first observation from the return value of `reset`."""
    if isinstance(answer, tuple | list) and len(answer) == 2 and (answer[1] is None or isinstance(answer[1], Mapping)):
        require_info(answer[1], "reset", name, place)
        return answer[0]
    raise UpslopeError(
        f"{name} returned {answer_in_words(answer)} from reset(), where Gymnasium expects {RESET}: {place.describe()}. "
        "Environments written before Gymnasium 0.26 return only the observation: return (observation, {})."
    )


def step_answer(answer: Any, name: str, place: Place) -> tuple[Any, float, bool, bool]:
    """Extract observation, reward, terminated and truncated from the return value of `step`."""
    if not isinstance(answer, tuple | list) or len(answer) != 5:
        old = (
            " Environments written before Gymnasium 0.26 return `done` instead of the two flags."
            if is_old(answer)
            else ""
        )
        raise UpslopeError(
            f"{name} returned {answer_in_words(answer)} from step(), where Gymnasium expects {STEP}: "
            f"{place.describe()}.{old} Correct what step() returns."
        )
    observation, reward, terminated, truncated, info = answer
    ended, cut = flag_of(terminated, "terminated", name, place), flag_of(truncated, "truncated", name, place)
    require_info(info, "step", name, place)
    return observation, reward_of(reward, name, place), ended, cut


def require_info(info: Any, where: str, name: str, place: Place) -> None:
    """Raise an error if `info` is not a dictionary."""
    if not isinstance(info, Mapping):
        raise UpslopeError(
            f"{name} returned `info` as {short(info)} of type {type(info).__name__} from {where}(), where Gymnasium "
            f"expects a dictionary: {place.describe()}. Return {{}} if there is nothing to report."
        )


def is_old(answer: Any) -> bool:
    """Return whether the value has the format that `step` returned before Gymnasium 0.26."""
    return isinstance(answer, tuple | list) and len(answer) == 4


def answer_in_words(answer: Any) -> str:
    """Describe the returned value."""
    if isinstance(answer, tuple | list):
        kinds = ", ".join(type(x).__name__ for x in answer[:8])
        return f"{len(answer)} values ({kinds})"
    return "None" if answer is None else f"one {type(answer).__name__} {short(answer)}"


def reward_of(reward: Any, name: str, place: Place) -> float:
    """Convert a reward to one number."""
    if type(reward) in NUMBERS:
        return in_32_bits(reward, name, place)
    x = as_numbers(reward)
    if x.size == 1 and x.dtype.kind in "fiub":
        return in_32_bits(x.reshape(()).item(), name, place)
    if x.size == 0 and x.dtype.kind in "fiub":
        raise UpslopeError(
            f"{name} returned a reward of shape {x.shape}, without a number: {place.describe()}. Correct what step() "
            "returns."
        )
    if x.dtype.kind in "fiub":
        raise UpslopeError(
            f"{name} returned a reward of shape {x.shape}, {short(x)}: {place.describe()}. upslope learns from "
            f"one number. Combine its parts with weights of your choice: --wrapper '{weighing(x.size)}'."
        )
    raise UpslopeError(
        f"{name} returned the reward {short(reward)} of type {type(reward).__name__}, where a number is expected: "
        f"{place.describe()}. Correct what step() returns."
    )


def as_numbers(x: Any) -> np.ndarray:
    """Convert the value to an array, which contains no numbers if NumPy cannot read it or a part of it is masked."""
    try:
        return np.asarray(None if np.ma.is_masked(x) else x)
    except STOPS:
        raise
    except BaseException:
        return np.asarray(None)


def in_32_bits(reward: Any, name: str, place: Place) -> float:
    """Return the reward if it fits into the 32-bit floats in which rewards are stored; otherwise raise an error."""
    if (isinstance(reward, int) or np.isfinite(reward)) and abs(reward) > LARGEST:
        raise UpslopeError(
            f"{name} returned the reward {short(reward)}, beyond the largest float32: {place.describe()}. Scale the "
            "rewards down."
        )
    return float(reward)


LARGEST = float(np.finfo(np.float32).max)


def weighing(size: int) -> str:
    """Return the wrapper that gives all parts of a reward the same weight."""
    weights = str([1] * size) if size <= MOST_WEIGHTS else f"[1, 1, …: {size} numbers]"
    return f'WeightedReward:{{"weights": {weights}}}'


MOST_WEIGHTS = 20
"""Maximum number of weights written out in a message."""


def flag_of(flag: Any, what: str, name: str, place: Place) -> bool:
    """Convert `terminated` or `truncated` to a bool."""
    if type(flag) in FLAGS:
        return bool(flag)
    x = as_numbers(flag)
    if x.size == 1 and x.dtype.kind in "fiub" and x.reshape(()).item() in (0, 1):
        return bool(x.reshape(()).item())
    raise UpslopeError(
        f"{name} returned `{what}` as {short(flag)} of type {type(flag).__name__}, where True or False is expected: "
        f"{place.describe()}. step() returns {STEP}."
    )


def raised(name: str, where: str, place: str, error: BaseException) -> str:
    """Return the error message for an exception in an environment, with the step at which it was raised."""
    words, at = text_of(error).strip(), raised_at(error)
    if isinstance(error, UpslopeError):  # raised in a wrapper of upslope
        return f"{name}: {words} — {place}."
    said = f"{name} raised {type(error).__name__} in {where}()" + (f": {words}" if words else "")
    if isinstance(error, ValueError | TypeError) and "unpack" in words and "gymnasium" in at:
        at += f"; a Gymnasium wrapper expects {STEP} from step() and {RESET} from reset()"
    return f"{said} — {place}" + (f" ({at})." if at else ".")


def mask_reader(head: ActionHead, name: str) -> Callable[[Any, Place], Any]:
    """Return a function that returns the mask of allowed choices [M] in an environment's info, as zeros and ones or
    booleans."""
    shape = (head.num_choices,) if head.num_choices else None

    def read(info: Any, place: Place) -> Any:
        mask = mask_in(info)
        if type(mask) is np.ndarray and mask.shape == shape:  # the usual forms
            kind = mask.dtype.char
            if kind == "?" or (kind in "bB" and not mask.tobytes().strip(b"\0\1")):
                return mask
        return flat_mask(mask, head, name, place.describe)

    return read


def flat_mask(mask: Any, head: ActionHead, name: str, describe: Callable[[], str]) -> Any:
    """Return the allowed choices of a mask [M]; `describe` describes the step at which it was returned.

    Raises:
        UpslopeError: the mask is missing, or does not fit the actions.
    """
    if mask is None:
        raise UpslopeError(
            f"{name} returned no action mask in its info, although it did before: {describe()}. Return "
            'info["action_mask"] from every call except the last step of an episode, or ignore masks with --no-masks.'
        )
    try:
        return head.flat_mask(mask)
    except Exception as error:
        raise UpslopeError(
            f"{name} returned the action mask {short(mask)}, which does not fit its action space: {brief(error)}: "
            f"{describe()}. Correct it, or ignore masks with --no-masks."
        ) from error


def nothing_allowed(name: str, place: str) -> str:
    """Return the error message for a step at which an action is required but none is allowed."""
    return (
        f"{name} allows no action: {place}. Its action mask forbids every choice although one is required. Allow at "
        "least one, or end the episode there."
    )


def assign(into: Any, rows: Any, values: Any) -> None:
    """Assign into[rows] = values for every array of an observation."""
    over_parts(lambda a, b: a.__setitem__(rows, b), into, values)
