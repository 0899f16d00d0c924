"""Ranges of Box actions that 32-bit floats, in which policies compute, cannot resolve: some are refused, others are
described in a warning."""

from collections.abc import Iterator

import numpy as np

from upslope.errors import UpslopeError
from upslope.models.box_heads import PRACTICALLY_INFINITE, BoxHead
from upslope.models.encoders import at
from upslope.models.head import ActionHead

PRACTICALLY_ZERO = 1 / PRACTICALLY_INFINITE
"""In ranges narrower than this, a policy's σ would underflow."""
FEW_VALUES = 256
"""A range that contains fewer floats than this is reported: a policy's noise becomes much smaller than its range while
it learns."""
RESCALED = """--wrapper 'RescaleAction:{"min_action": -1, "max_action": 1}'"""


def refuse_unresolved(box: BoxHead, name: str, key: str) -> None:
    """Refuse a Box in which a component can take different values, but only one of them in 32 bits.

    Raises:
        UpslopeError: there is such a component.
    """
    low, high = box.range
    is_narrow = high - low < PRACTICALLY_ZERO
    for k in np.flatnonzero(is_narrow | (num_values(box) < 2)).tolist():
        reason = f"{gap_in_words(box, k)} apart, so the agent could choose only one value"
        if is_narrow[k]:
            reason = "a range too narrow for the 32-bit floats in which policies compute"
        raise UpslopeError(
            f"{name} takes actions{at(key)} with {component_in_words(box, k)}, {reason}. {remedy_of(box, key)}"
        )


def warnings_of(head: ActionHead, name: str) -> Iterator[str]:
    """Yield a warning about each Box whose range is too coarse in 32 bits, or is treated as infinite."""
    for key, box in head.boxes.items():
        if words := coarse_in_words(box):
            yield f"warning: {name} takes actions{at(key)} with {words}. {remedy_of(box, key)}"
        if bounds := huge_bounds(box):
            yield (
                f"warning: {name} takes actions{at(key)} with the bound {bounds[0]:g}. Bounds of at least "
                f"{PRACTICALLY_INFINITE:g} count as infinite. Declare the range that the environment uses."
            )


def coarse_in_words(box: BoxHead) -> str:
    """Describe the first component in which the agent can choose only among a few values; empty if there is none."""
    count = num_values(box)
    for k in np.flatnonzero(count < FEW_VALUES).tolist():
        return (
            f"{component_in_words(box, k)}, {gap_in_words(box, k)} apart, so the agent can choose only among "
            f"{count[k]:.0f} values"
        )
    return ""


def huge_bounds(box: BoxHead) -> list[float]:
    """The bounds that are so large that they count as infinite, except infinities and the largest numbers of a dtype,
    which stand for them."""
    meant = {np.inf, *(float(np.finfo(dtype).max) for dtype in (np.float32, np.float64))}
    return [x for x in (*box.low, *box.high) if abs(x) >= PRACTICALLY_INFINITE and abs(x) not in meant]


def remedy_of(box: BoxHead, key: str) -> str:
    """How to give a Box a range that 32-bit floats resolve."""
    where = "in the environment or a wrapper"
    wrapper = "" if key or not box.is_bounded else f": {RESCALED}"
    return f"Let the policy choose numbers between -1 and 1, and shift and scale them {where}{wrapper}."


def num_values(box: BoxHead) -> np.ndarray:
    """The number of floats in the range of each component; infinite for components that have only one value."""
    low, high = box.range
    is_fixed = np.asarray(box.low) == np.asarray(box.high)
    return np.where(is_fixed, np.inf, np.floor((high - low) / gaps(box)) + 1)


def gaps(box: BoxHead) -> np.ndarray:
    """The largest distance between adjacent floats in the range of each component."""
    kept = narrowest(box)
    furthest = np.max(np.abs(box.range), axis=0).astype(kept)
    before = np.nextafter(furthest, kept(0)).astype(np.float64)
    return np.maximum(furthest.astype(np.float64) - before, np.finfo(kept).smallest_subnormal)


def narrowest(box: BoxHead) -> type[np.floating]:
    """The dtype that determines which actions are possible: that of policies, unless the environment's is narrower."""
    return np.float16 if box.dtype == "float16" else np.float32


def gap_in_words(box: BoxHead, k: int) -> str:
    """Describe the distance between adjacent floats in the range of a component."""
    return f"where two {8 * np.dtype(narrowest(box)).itemsize}-bit floats are {gaps(box)[k]:.3g}"


def component_in_words(box: BoxHead, k: int) -> str:
    """Describe a component by its index and its range."""
    low, high = (float(x[k]) for x in box.range)
    return f"component {k} between {low:.12g} and {high:.12g}"
