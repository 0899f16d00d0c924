"""What a policy computes, as plain data: the description from which each format is written.

observation → inputs, normalised and encoded → features, and pictures → layers, one of them perhaps a memory → a head
for each part of the action
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Numbers:
    """Numbers unchanged, or (x − mean)/deviation within ±`OBSERVATION_CLIP` if there are statistics."""

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
    """The keys and indices that lead to it; empty if the observation is this array."""
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
class Spread(Dense):
    """x W + b + s log(x² v + `VARIANCE_FLOOR`), without an activation: the outputs, and where s is ½ the log σ of noise
    that is a function of x, in units of the half range."""

    variance: np.ndarray
    """v, [H, K]; 0 where s is 0."""
    share: np.ndarray
    """s, [K]; W and b are 0 where it is not."""


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
    """A convolution, max pooling over 3 × 3 pixels with stride 2 and padding 1, and residual blocks."""

    first: Convolution
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Picture:
    """An image read by convolutions, each followed by relu, and a layer over all of their outputs."""

    place: int
    """Its index among the inputs."""
    axes: tuple[int, ...]
    """The axes of the array in the order height, width, and all others, which are channels."""
    size: tuple[int, int, int]
    """(height, width, channels)."""
    layers: tuple[Convolution | Stack, ...]
    last: Dense
    """Over the numbers in the order height, width, channel."""


@dataclass(frozen=True)
class Gaussian:
    """mean = centre + half · output, in the environment's units; the action is the mean, cast and then clipped.

    If it is squashed, mean = output and the action is centre + half · tanh(mean): mean and log σ are from before tanh.
    """

    shape: tuple[int, ...]
    dtype: str
    centre: np.ndarray
    half: np.ndarray
    log_std: np.ndarray
    """The parameter log σ, in units of the half range."""
    low: np.ndarray
    """In the dtype of the action, as is `high`."""
    high: np.ndarray
    is_squashed: bool = False
    range_of_log_std: tuple[float, float] | None = None
    """If σ depends on the state, the bounds of log_std + output, in units of the half range; these outputs follow those
    of the mean."""
    parameters = ("mean", "log_std")

    @property
    def width(self) -> int:
        """The number of components, and of each parameter."""
        return len(self.centre)

    @property
    def num_outputs(self) -> int:
        """K, the number of network outputs."""
        return self.width * (1 if self.range_of_log_std is None else 2)

    @property
    def log_unit(self) -> np.ndarray:
        """What to add to log σ to express it in the units of the mean."""
        return np.zeros_like(self.half) if self.is_squashed else np.log(self.half)

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
    def width(self) -> int:
        """The number of logits."""
        return sum(self.sizes)

    @property
    def num_outputs(self) -> int:
        """K, the number of network outputs."""
        return self.width

    @property
    def num_choices(self) -> int:
        """M, the length of a mask."""
        return self.width


@dataclass(frozen=True)
class Switches:
    """Bits, 1 where the logit is positive."""

    shape: tuple[int, ...]
    dtype: str
    parameters = ("logits",)

    @property
    def width(self) -> int:
        """The number of logits."""
        return math.prod(self.shape)

    @property
    def num_outputs(self) -> int:
        """K, the number of network outputs."""
        return self.width

    @property
    def num_choices(self) -> int:
        """M, the length of a mask: two entries for each bit, whether it may be 0 and whether it may be 1."""
        return 2 * self.num_outputs


Head = Gaussian | Categories | Switches
ACTION = "action"


@dataclass(frozen=True)
class Part:
    """A part of the action and how it is computed: the whole action, or one entry of a Dict or Tuple."""

    path: tuple[str | int, ...]
    """The keys and indices that lead to it; empty if it is the whole action."""
    label: str
    """The path as text that is unique to this part."""
    head: Head

    def name(self, what: str) -> str:
        """The name of its action or of a parameter: `mean`, or `mean/KEY` of a part."""
        return f"{what}/{self.label}" if self.path else what

    @property
    def action(self) -> str:
        """The name of its action."""
        return self.name(ACTION)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its parameters."""
        return tuple(self.name(what) for what in self.head.parameters)


def labelled(heads: Sequence[tuple[tuple[str | int, ...], Head]]) -> tuple[Part, ...]:
    """The parts of an action, with their paths as labels; a later one with the same text is marked."""
    parts: list[Part] = []
    for path, head in heads:
        label = "/".join(map(str, path))
        while label in [part.label for part in parts]:
            label += "'"
        parts.append(Part(path, label, head))
    return tuple(parts)


def nested(values: Sequence[tuple[tuple[str | int, ...], str]]) -> str:
    """The Python expression of a structure with these expressions at these paths."""
    if not values[0][0]:
        return values[0][1]
    groups: dict[str | int, list[tuple[tuple[str | int, ...], str]]] = {}
    for (key, *rest), value in values:
        groups.setdefault(key, []).append((tuple(rest), value))
    inner = {key: nested(group) for key, group in groups.items()}
    if isinstance(next(iter(inner)), int):
        return f"({', '.join(inner.values())}{',' if len(inner) == 1 else ''})"
    return "{" + ", ".join(f"{key!a}: {value}" for key, value in inner.items()) + "}"


@dataclass(frozen=True)
class Plan:
    """Everything that a policy computes from an observation."""

    inputs: tuple[Input, ...]
    pictures: tuple[Picture, ...]
    """Their features follow those of all other inputs, which are joined in order."""
    layers: tuple[Dense | Memory, ...]
    parts: tuple[Part, ...]
    """What the last layer's outputs become, one part after another."""
    has_masks: bool

    @property
    def num_choices(self) -> int:
        """M, the length of a mask: the choices of all parts."""
        return sum(part.head.num_choices for part in self.parts)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters."""
        return tuple(name for part in self.parts for name in part.parameters)

    @property
    def chosen(self) -> str:
        """Which action an exported file returns, in words."""
        if any(isinstance(part.head, Gaussian) and part.head.is_squashed for part in self.parts):
            return "the most probable choices, and for real numbers the mean before tanh, within their bounds"
        return "the most probable one, within its bounds"

    def is_masked(self, part: Part) -> bool:
        """Whether the mask covers this part."""
        return self.has_masks and part.head.num_choices > 0

    @property
    def vectors(self) -> tuple[Input, ...]:
        """The inputs that no convolution reads."""
        places = {picture.place for picture in self.pictures}
        return tuple(one for place, one in enumerate(self.inputs) if place not in places)

    @property
    def memory(self) -> Memory | None:
        """The layer with memory."""
        return next((layer for layer in self.layers if isinstance(layer, Memory)), None)
