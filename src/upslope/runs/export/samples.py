"""Random observations and masks for checking an exported policy."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from upslope.models.encoders import CompositeEncoder, DictEncoder, ObservationEncoder
from upslope.runs.export.plan import Bytes, Categories, Choices, Head, Input, Plan

MOST = 2**24
"""Maximum magnitude of a random number; 32-bit floats represent every integer up to it."""


def random_arrays(plan: Plan, count: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Return `count` random observations, as an array [count, …] for each input. Numbers are spread around the mean
    seen in training, and some exceed the clipping bounds."""
    return [random_array(one, count, generator) for one in plan.inputs]


def random_array(one: Input, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return `count` random arrays for one input, [count, …]."""
    shape, coding = (count, *one.shape), one.coding
    if isinstance(coding, Bytes):
        return generator.integers(0, 256 if coding.is_picture else 5, shape, np.uint8)
    if isinstance(coding, Choices):
        drawn = generator.integers(0, coding.sizes, (count, len(coding.sizes))) + np.asarray(coding.start)
        return drawn.reshape(shape)
    if one.kind == "MultiBinary":
        return generator.integers(0, 2, shape).astype(np.int8)
    drawn = 2 * generator.standard_t(3, shape)
    if coding.mean is not None and coding.deviation is not None:
        drawn = coding.mean + coding.deviation * drawn
    return np.clip(drawn, -MOST, MOST).astype(np.float32)


def random_masks(plan: Plan, count: int, generator: np.random.Generator) -> np.ndarray | None:
    """Return `count` random masks [count, M], each of which allows at least one action. Return None if the policy has
    no masks."""
    if not plan.has_masks:
        return None
    masks = generator.random((count, plan.num_choices)) < 0.6
    start = 0
    for size in (size for part in plan.parts for size in sizes_of(part.head)):
        masks[np.arange(count), start + generator.integers(0, size, count)] = True
        start += size
    return masks


def sizes_of(head: Head) -> Sequence[int]:
    """Return the number of options of each choice that a mask covers."""
    return head.sizes if isinstance(head, Categories) else [2] * (head.num_choices // 2)


def structured(plan: Plan, encoder: ObservationEncoder, arrays: Sequence[np.ndarray]) -> Any:
    """Arrange the arrays [B, …] in the structure of the observation. Arrays that the policy does not read are 0."""
    given = {one.path: x for one, x in zip(plan.inputs, arrays, strict=True)}

    def of(part: ObservationEncoder, path: tuple[str | int, ...]) -> Any:
        if isinstance(part, CompositeEncoder):
            inner = [(key, of(child, (*path, key))) for key, child in part.children]
            return dict(inner) if isinstance(part, DictEncoder) else tuple(x for _, x in inner)
        return given[path] if path in given else np.zeros((len(arrays[0]), *part.shapes), np.float32)

    return of(encoder, ())
