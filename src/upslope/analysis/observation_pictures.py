"""Draw the images in an episode's observations as viewable pictures."""

from typing import Any

import numpy as np

from upslope.analysis.episode_pictures import MAX_PICTURES, Pictures, can_encode, encode
from upslope.models.composed import layout_of
from upslope.models.encoders import BOARD, ImageEncoder, ImageLayout, ObservationEncoder

SIDE = 160
"""Small images are enlarged until their longer side has about this many pixels."""
HUES = np.array(
    [(86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178)]
)
"""The colours of a board's channels, repeated if there are more channels (Okabe and Ito 2008; colour-blind readers can
tell them apart)."""
MAX_IMAGES = 4
"""Maximum number of images that are drawn per observation."""


def observed_pictures(encoder: ObservationEncoder, observation: Any) -> tuple[np.ndarray, dict[str, tuple[bytes, ...]]]:
    """The steps that are drawn [F], and, by key, each image of the observation [T, …] at those steps, as WebP."""
    leaves = [(key, layout_of(part), part, x) for key, part, x in encoder.leaves(observation)]
    images = [(key, layout, part, np.asarray(x)) for key, layout, part, x in leaves if layout is not None][:MAX_IMAGES]
    if not images or not can_encode(Pictures()):
        return np.zeros(0, np.int64), {}
    length = len(images[0][3])
    steps = np.arange(0, length, -(-length // MAX_PICTURES))
    return steps, {key: drawn(layout, part, x, steps) for key, layout, part, x in images}


def drawn(layout: ImageLayout, part: ObservationEncoder, images: np.ndarray, steps: np.ndarray) -> tuple[bytes, ...]:
    """Encode images [T, …] at these steps as WebP."""
    is_board = part.is_board if isinstance(part, ImageEncoder) else max(layout.size[:2]) <= BOARD
    colours = board_colours if is_board else photographs
    kept = colours(layout, images[steps], is_bytes=isinstance(part, ImageEncoder))
    return tuple(encode(enlarged(image), is_exact=is_board) for image in kept)


def photographs(layout: ImageLayout, images: Any, *, is_bytes: bool) -> np.ndarray:
    """Convert pictures to RGB [F, height, width, 3]. If frames are stacked, only the newest is used.

    Floats are rescaled from their range in the episode to 0–255.
    """
    shown: Any = layout.channels_last(images)
    others = [size for axis, size in enumerate(layout.shape) if axis not in (layout.height, layout.width)]
    channels = others[-1] if others else 1
    newest = shown[..., -channels:] if channels in (1, 3) else shown[..., -1:]
    numbers = newest.astype(np.float64)
    if not is_bytes:
        low, high = numbers.min(), numbers.max()
        numbers = 255 * (numbers - low) / max(high - low, 1e-12)
    return np.broadcast_to(numbers, (*numbers.shape[:-1], 3)).astype(np.uint8)


def board_colours(layout: ImageLayout, images: Any, *, is_bytes: bool) -> np.ndarray:
    """Convert boards to RGB [F, height, width, 3]. Each channel has a colour, whose brightness shows where a value lies
    within the channel's range in the episode."""
    numbers: Any = layout.channels_last(images).astype(np.float64)
    low, high = numbers.min(axis=(0, 1, 2)), numbers.max(axis=(0, 1, 2))
    shares = (numbers - low) / np.where(high > low, high - low, 1.0)
    colours = HUES[np.arange(shares.shape[-1]) % len(HUES)]
    weight = np.maximum(shares.sum(axis=-1, keepdims=True), 1.0)
    return (shares @ colours / weight).astype(np.uint8)


def enlarged(image: np.ndarray) -> np.ndarray:
    """Repeat each pixel of the image, so that it is large enough to see."""
    times = max(1, SIDE // max(image.shape[:2]))
    return image.repeat(times, axis=0).repeat(times, axis=1)
