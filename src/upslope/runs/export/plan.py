"""What a policy computes, as plain data: the description from which each format is written.

observation → inputs, normalised and encoded → features, and pictures → layers, one of them perhaps a memory → head
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Numbers:
    """Numbers as they are, or (x − mean)/deviation within ±`OBSERVATION_CLIP` if there are statistics."""

    mean: np.ndarray | None = None
    deviation: np.ndarray | None = None


@dataclass(frozen=True)
class Bytes:
    """Numbers from 0 to 255: x/255 of a picture, log(1 + x) of a board."""

    is_picture: bool


@dataclass(frozen=True)
class Choices:
    """Whole numbers, each one-hot: value `start` + i of one of `sizes[k]` sets the i-th of its features."""

    sizes: tuple[int, ...]
    start: tuple[int, ...]

    @property
    def meanings(self) -> tuple[np.ndarray, np.ndarray]:
        """The number that each feature belongs to, and the value that it indicates."""
        which = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return which, np.concatenate([start + np.arange(n) for start, n in zip(self.start, self.sizes, strict=True)])


@dataclass(frozen=True)
class Input:
    """One array of an observation."""

    path: tuple[str | int, ...]
    """The keys and places that lead to it; empty if the observation is this array."""
    shape: tuple[int, ...]
    kind: str
    """The kind of space, as Gymnasium names it, or `image`."""
    coding: Numbers | Bytes | Choices

    @property
    def name(self) -> str:
        """Its keys, outer/inner."""
        return "/".join(map(str, self.path)) or "observation"

    @property
    def num_features(self) -> int:
        """The number of features that it becomes."""
        return sum(self.coding.sizes) if isinstance(self.coding, Choices) else math.prod(self.shape)


@dataclass(frozen=True)
class Dense:
    """act(x W + b)."""

    weight: np.ndarray
    """[D, K]."""
    bias: np.ndarray
    activation: str | None


@dataclass(frozen=True)
class Gated:
    """What a GRU and an LSTM have in common; G is the number of gates."""

    input_weight: np.ndarray
    """W, [G·H, D]."""
    state_weight: np.ndarray
    """U, [G·H, H]."""
    bias: np.ndarray
    """b, [G·H]."""

    @property
    def size(self) -> int:
        """H."""
        return self.state_weight.shape[1]


@dataclass(frozen=True)
class Gru(Gated):
    """r, z = σ(W x + U h + b), n = tanh(W x + b + r (U h + b_n)), h ← n + z (h − n); the gates are r, z, n."""

    state_bias: np.ndarray
    """b_n, [H]."""
    carries = ("memory",)


@dataclass(frozen=True)
class Lstm(Gated):
    """i, f, o = σ(W x + U h + b), g = tanh(W x + U h + b), c ← f c + i g, h ← o tanh(c); the gates are i, f, g, o."""

    carries = ("memory_hidden", "memory_cell")


@dataclass(frozen=True)
class Lru:
    """h ← λ h + B x in complex numbers, y = Re(C h) + D x. B contains the gain."""

    rate: np.ndarray
    """λ, [2, H]: real and imaginary part."""
    inward: np.ndarray
    """B, [2, H, D]."""
    outward: np.ndarray
    """C, [2, H, H]."""
    skip: np.ndarray
    """D, [H, D]."""
    carries = ("memory_real", "memory_imaginary")

    @property
    def size(self) -> int:
        """H."""
        return self.skip.shape[0]


Memory = Gru | Lstm | Lru


@dataclass(frozen=True)
class Convolution:
    """The cross-correlation of an image with a square kernel, plus a bias."""

    weight: np.ndarray
    """[outputs, inputs, k, k]."""
    bias: np.ndarray
    stride: int
    padding: int


@dataclass(frozen=True)
class Block:
    """x + second(relu(first(relu(x))))."""

    first: Convolution
    second: Convolution


@dataclass(frozen=True)
class Stack:
    """A convolution, the highest of 3 × 3 pixels at stride 2 and padding 1, and residual blocks."""

    first: Convolution
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Picture:
    """An image read by convolutions, each followed by relu, and a layer over all that they found."""

    place: int
    """Its place among the inputs."""
    axes: tuple[int, ...]
    """The axes of the array in the order height, width, and all others, which are channels."""
    size: tuple[int, int, int]
    """(height, width, channels)."""
    layers: tuple[Convolution | Stack, ...]
    last: Dense
    """Over the numbers in the order height, width, channel."""


@dataclass(frozen=True)
class Gaussian:
    """mean = centre + half · output, in the environment's units; the action is the mean, cast and then clipped."""

    shape: tuple[int, ...]
    dtype: str
    centre: np.ndarray
    half: np.ndarray
    log_std: np.ndarray
    low: np.ndarray
    """In the dtype of the action, as is `high`."""
    high: np.ndarray
    parameters = ("mean", "log_std")

    @property
    def num_outputs(self) -> int:
        """K, the number of network outputs."""
        return len(self.centre)

    num_choices = 0


@dataclass(frozen=True)
class Categories:
    """Choices, each the highest of its logits plus its start."""

    shape: tuple[int, ...]
    dtype: str
    sizes: tuple[int, ...]
    start: tuple[int, ...]
    parameters = ("logits",)

    @property
    def num_outputs(self) -> int:
        """K, the number of network outputs."""
        return sum(self.sizes)

    @property
    def num_choices(self) -> int:
        """M, the length of a mask."""
        return sum(self.sizes)


@dataclass(frozen=True)
class Switches:
    """Switches, on where the logit is positive."""

    shape: tuple[int, ...]
    dtype: str
    parameters = ("logits",)

    @property
    def num_outputs(self) -> int:
        """K, the number of network outputs."""
        return math.prod(self.shape)

    @property
    def num_choices(self) -> int:
        """M, the length of a mask: two places for each switch, whether it may be 0 and whether it may be 1."""
        return 2 * self.num_outputs


@dataclass(frozen=True)
class Plan:
    """All that a policy computes from an observation."""

    inputs: tuple[Input, ...]
    pictures: tuple[Picture, ...]
    """Their features follow those of all other inputs, which are joined in order."""
    layers: tuple[Dense | Memory, ...]
    head: Gaussian | Categories | Switches
    has_masks: bool

    @property
    def vectors(self) -> tuple[Input, ...]:
        """The inputs that no convolution reads."""
        places = {picture.place for picture in self.pictures}
        return tuple(one for place, one in enumerate(self.inputs) if place not in places)

    @property
    def memory(self) -> Memory | None:
        """The layer that remembers."""
        return next((layer for layer in self.layers if isinstance(layer, Memory)), None)
