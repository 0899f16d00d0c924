"""Where experience comes in: what an environment gives is held against its spaces, and nothing is cast in silence.

An environment's first answers are checked in full, and later ones as far as that costs next to nothing. A number that
would be another one after the cast, or an index without a place, is refused; bounds of a Box that are merely exceeded
are told once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import gymnasium
import jax
import numpy as np
from gymnasium import spaces

from upslope.core.arrays import is_shape, shaped_like
from upslope.core.messages import raised_at
from upslope.core.reading import brief
from upslope.engines.notices import Notices, notices_to
from upslope.environments.masks import mask_in
from upslope.errors import UpslopeError
from upslope.models.encoders import ObservationEncoder, leaf_spaces
from upslope.models.heads import ActionHead

FIRST = 100
"""Observations of each environment that are checked in full, besides the first of every episode."""
EVERY = 16
"""Afterwards one in so many."""
FEW_SPACINGS = 4.0
"""A feature whose spread is less than this many spacings of its floats is lost."""
FAR = 10.0
"""Nearer to 0, a tiny spread is what rounding leaves rather than an offset."""
MANY = 10_000
"""Of larger observations no spread is kept."""
NUMBERS = frozenset({float, int, bool, np.float64, np.float32, np.int64, np.int32, np.bool_})
"""Types of a reward that need no second look."""
FLAGS = frozenset({bool, np.bool_})
"""Types of `terminated` and `truncated` that need none."""
STEP = "(observation, reward, terminated, truncated, info)"
RESET = "(observation, info)"


@runtime_checkable
class Place(Protocol):
    """The episode that an observation belongs to."""

    seen: int
    """Observations of its environment so far."""
    length: int

    def describe(self) -> str:
        """Enough to find the place again."""
        ...


@dataclass(frozen=True)
class Leaf:
    """One array of an observation: how it is kept, and what its space promises of it."""

    path: str
    """Empty where the observation is this array alone."""
    keys: tuple[Any, ...]
    """Where it lies in an observation, from the outside in."""
    space: gymnasium.Space | None
    shape: tuple[int, ...]
    dtype: np.dtype
    low: Any
    high: Any
    """Bounds; None where there are none to check."""
    is_index: bool
    """Whether each number chooses a place, so that none is outside the bounds."""

    def wrong(self, observation: Any) -> str:
        """Why it cannot be kept as it is; empty if it can."""
        x = np.asarray(observation)
        if x.dtype.kind not in "fiub":
            return f"it holds {type(observation).__name__}, not numbers" if x.ndim == 0 else f"its dtype is {x.dtype}"
        if self.dtype.kind == "f":
            with np.errstate(all="ignore"):
                is_too_large = np.isfinite(x) & ~np.isfinite(x.astype(self.dtype))
            return f"{x[is_too_large].flat[0]} is beyond the largest {self.dtype}" if is_too_large.any() else ""
        with np.errstate(all="ignore"):
            is_changed = x.astype(self.dtype) != x
        if is_changed.any():
            return f"as {self.dtype} {x[is_changed].flat[0]} would be another number"
        if self.dtype.itemsize == 8:
            limits = np.iinfo(np.int32 if self.dtype.kind == "i" else np.uint32)
            is_too_large = (x < limits.min) | (x > limits.max)
            if is_too_large.any():
                return f"{x[is_too_large].flat[0]} does not fit into 32 bits"
        if self.is_index:
            is_outside = (x < self.low) | (x > self.high)
            if is_outside.any():
                return f"{x[is_outside].flat[0]} has no place in it"
        return ""

    def is_plainly_right(self, x: Any) -> bool:
        """Whether a look that costs next to nothing finds what the space promises."""
        if self.is_index:
            return type(x) in WHOLE and self.shape == () and self.low <= x <= self.high
        return type(x) is np.ndarray and x.shape == self.shape

    def exceeds(self, observation: Any) -> bool:
        """Whether it is outside the bounds by more than rounding."""
        if self.is_index or self.low is None:
            return False
        x = np.asarray(observation)
        margin = 1e-5 * (1 + np.abs(x)) if self.dtype.kind == "f" else 0
        return bool(((x < self.low - margin) | (x > self.high + margin)).any())


class Border:
    """Where observations come in: their arrays, and the checks of what is written into them."""

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
        """Room for `count` observations."""
        return jax.tree.unflatten(self.structure, [np.zeros((count, *leaf.shape), leaf.dtype) for leaf in self.leaves])

    def place(self, into: Any, row: int, observation: Any, episode: Place) -> None:
        """Write an observation, if it is what the space promises."""
        episode.seen = seen = episode.seen + 1
        only = self.only
        if seen > FIRST and episode.length and seen % EVERY:
            if only is None:
                if self.place_parts(into, row, observation):
                    return
            elif only.is_plainly_right(observation):
                into[row] = observation
                return
        self.check(observation, episode)
        assign(into, row, shaped_like(self.shapes, observation))

    def place_parts(self, into: Any, row: int, observation: Any) -> bool:
        """Write each array where a quick look finds it right; whether all were."""
        try:
            for leaf in self.leaves:
                array, x = into, observation
                for key in leaf.keys:
                    array, x = array[key], x[key]
                if not leaf.is_plainly_right(x):
                    return False
                array[row] = x
        except (KeyError, IndexError, TypeError):
            return False
        return True

    def check(self, observation: Any, episode: Place) -> None:
        """Refuse what is not in the space; tell what merely exceeds its bounds, and what 32 bits cannot hold."""
        if not self.fits(observation):
            raise UpslopeError(
                f"{self.name} returned an observation {kind_of(observation)}, but its observation space says "
                f"{self.shapes}: {episode.describe()}. Correct the environment or its observation_space."
            )
        for leaf, x, spread in zip(self.leaves, self.parts(observation), self.spreads, strict=True):
            reason = leaf.wrong(x)
            if reason:
                raise UpslopeError(
                    f"{self.name} returned the observation{leaf.path} {short(x)}, which is not in its space "
                    f"{leaf.space}: {reason}: {episode.describe()}. Correct the environment, or declare the space that "
                    "it means."
                )
            if leaf.exceeds(x):
                self.notices(
                    f"bounds{leaf.path}",
                    f"warning: {self.name} returned the observation{leaf.path} {short(x)}, outside the bounds of its "
                    f"space {leaf.space}: {episode.describe()}. It is taken as it is, and this is said once.",
                )
            if spread is not None and spread.count >= 0:
                self.watch(leaf, x, spread, is_last=episode.seen >= FIRST)

    def watch(self, leaf: Leaf, x: Any, spread: "Spread", *, is_last: bool) -> None:
        """Learn how far a feature spreads at first, and tell where floats cannot hold it."""
        with np.errstate(all="ignore"):  # what is not finite is refused elsewhere
            spread.add(np.asarray(x, np.float64))
        if is_last:
            lost = lost_digits(spread.mean, spread.deviation(), leaf.dtype)
            if lost.any():
                self.notices(f"offset{leaf.path}", words_of_loss(self.name, leaf.path, spread, lost, leaf.dtype))
            spread.count = -1

    def fits(self, observation: Any) -> bool:
        """Whether an observation has the structure and the shapes of the space."""
        try:
            found = map(shape_of, self.parts(observation))
            return all(shape == leaf.shape for shape, leaf in zip(found, self.leaves, strict=True))
        except ValueError:
            return False

    def parts(self, observation: Any) -> list[Any]:
        """Its arrays, in the order of the leaves.

        Raises:
            ValueError: it has another structure than the space.
        """
        if self.only is not None:
            return [observation]
        return self.structure.flatten_up_to(shaped_like(self.shapes, observation))


class Spread:
    """Mean and deviation of each number of an array in 64 bits, by Welford's update; done where the count is −1."""

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
        """The standard deviation."""
        return np.sqrt(self.squares / max(self.count, 1))


def lost_digits(mean: Any, deviation: Any, dtype: Any = np.float32) -> np.ndarray:
    """Where numbers around `mean` differ by no more than a few spacings of the floats that networks read: a mask."""
    mean, deviation = np.atleast_1d(mean), np.atleast_1d(deviation)
    kept = np.float16 if np.dtype(dtype) == np.float16 else np.float32
    with np.errstate(all="ignore"):
        spacing = np.abs(np.spacing(mean.astype(kept)).astype(np.float64))
        # Beneath the resolution of 64 bits it is not the environment that varies.
        is_real = deviation > 4 * np.spacing(np.abs(mean))
    return (np.abs(mean) >= FAR) & is_real & (deviation < FEW_SPACINGS * spacing)


def lost_in_float32(observations: np.ndarray) -> np.ndarray:
    """The features of observations [n, …], as the environment gave them, that 32-bit floats cannot tell apart: their
    numbers in the flattened observation."""
    flat = np.asarray(observations, np.float64).reshape(len(observations), -1)
    return np.flatnonzero(lost_digits(flat.mean(0), flat.std(0)))


def words_of_loss(name: str, path: str, spread: Spread, lost: np.ndarray, dtype: Any) -> str:
    """Which features floats cannot hold, and what to do."""
    places = np.flatnonzero(lost)
    mean, deviation = (float(np.ravel(x)[places[0]]) for x in (spread.mean, spread.deviation()))
    kept = np.float16 if np.dtype(dtype) == np.float16 else np.float32
    gap = abs(float(np.spacing(kept(mean))))
    shown = ", ".join(map(str, places[:5])) + (f" and {len(places) - 5} others" if len(places) > 5 else "")
    return (
        f"warning: {name} varies by {deviation:.2g} around {mean:.6g} in feature {shown} of the observation{path}, "
        f"where two {8 * np.dtype(kept).itemsize}-bit floats are {gap:.3g} apart, so the agent cannot see it, and "
        "normalising cannot help. Subtract the offset in the environment before it returns the observation."
    )


def leaves_of(space: gymnasium.Space, shapes: Any) -> list[Leaf]:
    """The arrays of an observation of this space."""
    named = jax.tree_util.tree_leaves_with_path(shapes, is_leaf=is_shape)
    parts = jax.tree.leaves(leaf_spaces(space), is_leaf=lambda node: isinstance(node, gymnasium.Space))
    if len(parts) != len(named):  # an encoder that reads the space as something else
        parts = [space] * len(named) if len(named) == 1 else [None] * len(named)
    return [leaf_of(path, part, shape) for (path, shape), part in zip(named, parts, strict=True)]


def leaf_of(path: tuple[Any, ...], space: gymnasium.Space | None, shape: tuple[int, ...]) -> Leaf:
    """What one space promises, at this path of JAX's in an observation."""
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
"""Types of an index that need only be compared."""


def stored_dtype(space: gymnasium.Space) -> np.dtype:
    """The dtype in which observations are kept: the space's own, 64-bit floats in 32 bits."""
    dtype = np.dtype(space.dtype or np.float32)
    return np.dtype(np.float32) if dtype.kind == "f" and dtype.itemsize > 4 else dtype


def shape_of(x: Any) -> Any:
    """The shape of one array or number."""
    return x.shape if isinstance(x, np.ndarray) else np.shape(x)


def kind_of(x: Any) -> str:
    """What came instead of an array: its shape, or its type where it is none."""
    if isinstance(x, np.ndarray | np.generic | int | float | list):
        try:
            return f"of shape {shape_of(x)}"
        except ValueError:
            return "of rows of unequal lengths"
    if isinstance(x, Mapping):
        return f"with the keys {short(', '.join(map(repr, x)))}"
    return "None" if x is None else f"of type {type(x).__name__}" + (f" {short(x)}" if isinstance(x, tuple) else "")


def short(x: Any) -> str:
    """A value in at most 80 characters, on one line."""
    text = " ".join(str(x).split())
    return text if len(text) <= 80 else text[:77] + "…"


def reset_answer(answer: Any, name: str, place: Place) -> Any:
    """The first observation of what `reset` returned."""
    if isinstance(answer, tuple | list) and len(answer) == 2 and (answer[1] is None or isinstance(answer[1], Mapping)):
        return answer[0]
    raise UpslopeError(
        f"{name} returned {answer_in_words(answer)} from reset(), where Gymnasium expects {RESET}: {place.describe()}. "
        "Environments older than Gymnasium 0.26 return the observation alone: return (observation, {})."
    )


def step_answer(answer: Any, name: str, place: Place) -> tuple[Any, float, bool, bool]:
    """Observation, reward, terminated and truncated of what `step` returned."""
    if not isinstance(answer, tuple | list) or len(answer) != 5:
        old = " Environments older than Gymnasium 0.26 return `done` instead of the two." if is_old(answer) else ""
        raise UpslopeError(
            f"{name} returned {answer_in_words(answer)} from step(), where Gymnasium expects {STEP}: "
            f"{place.describe()}.{old} Correct what step() returns."
        )
    observation, reward, terminated, truncated, _ = answer
    ended, cut = flag_of(terminated, "terminated", name, place), flag_of(truncated, "truncated", name, place)
    return observation, reward_of(reward, name, place), ended, cut


def is_old(answer: Any) -> bool:
    """Whether it is what `step` returned before Gymnasium 0.26."""
    return isinstance(answer, tuple | list) and len(answer) == 4


def answer_in_words(answer: Any) -> str:
    """What came back."""
    if isinstance(answer, tuple | list):
        kinds = ", ".join(type(x).__name__ for x in answer[:8])
        return f"{len(answer)} values ({kinds})"
    return "None" if answer is None else f"one {type(answer).__name__} {short(answer)}"


def reward_of(reward: Any, name: str, place: Place) -> float:
    """A reward as one number."""
    if type(reward) in NUMBERS:
        return float(reward)
    try:
        x = np.asarray(reward)
    except Exception:
        x = np.asarray(None)
    if x.size == 1 and x.dtype.kind in "fiub":
        return float(x.reshape(()).item())
    if x.dtype.kind in "fiub":
        raise UpslopeError(
            f"{name} returned a reward of shape {x.shape}, {short(x)}: {place.describe()}. upslope learns from "
            "one number. Weigh its parts: gymnasium.wrappers.TransformReward(env, lambda r: float(weights @ r)), or "
            "mo_gymnasium.wrappers.LinearReward."
        )
    raise UpslopeError(
        f"{name} returned the reward {short(reward)} of type {type(reward).__name__}, where a number is expected: "
        f"{place.describe()}. Correct what step() returns."
    )


def flag_of(flag: Any, what: str, name: str, place: Place) -> bool:
    """`terminated` or `truncated` as a truth value."""
    if type(flag) in FLAGS:
        return bool(flag)
    try:
        x = np.asarray(flag)
    except Exception:
        x = np.asarray(None)
    if x.size == 1 and x.dtype.kind in "fiub" and x.reshape(()).item() in (0, 1):
        return bool(x.reshape(()).item())
    raise UpslopeError(
        f"{name} returned `{what}` as {short(flag)} of type {type(flag).__name__}, where True or False is expected: "
        f"{place.describe()}. step() returns {STEP}."
    )


def raised(name: str, where: str, place: str, error: Exception) -> str:
    """An environment's own exception, with the place."""
    words, at = str(error).strip(), raised_at(error)
    said = f"{name} raised {type(error).__name__} in {where}()" + (f": {words}" if words else "")
    if isinstance(error, ValueError | TypeError) and "unpack" in words and "gymnasium" in at:
        at += f"; a wrapper of Gymnasium's expects {STEP} from step() and {RESET} from reset()"
    return f"{said} — {place}" + (f" ({at})." if at else ".")


def read_mask(info: Any, head: ActionHead, name: str, place: Place) -> Any:
    """Which choices an environment's info allows [M]."""
    mask = mask_in(info)
    if mask is None:
        raise UpslopeError(
            f"{name} gave no action mask in its info, though it did before: {place.describe()}. Give "
            'info["action_mask"] in every answer but the last of an episode, or ignore masks with --no-masks.'
        )
    try:
        return head.flat_mask(mask)
    except Exception as error:
        raise UpslopeError(
            f"{name} gave the action mask {short(mask)}, which does not fit its action space: {brief(error)}: "
            f"{place.describe()}. Correct it, or ignore masks with --no-masks."
        ) from error


def nothing_allowed(name: str, place: str) -> str:
    """That an action had to be chosen where all are forbidden."""
    return (
        f"{name} allows no action: {place}. Its action mask forbids every choice where one has to be made. Allow one, "
        "or end the episode there."
    )


def assign(into: Any, rows: Any, values: Any) -> None:
    """into[rows] = values, for every array of an observation."""
    if isinstance(into, np.ndarray):
        into[rows] = values
    else:
        jax.tree.map(lambda a, b: a.__setitem__(rows, b), into, values)
