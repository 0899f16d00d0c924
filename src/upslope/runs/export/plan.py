"""A description, as plain data, of what a policy computes. Every export format is generated from this description.

observation → inputs, normalised and encoded → features, and pictures → layers, possibly including a memory → a head for
each part of the action
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Numbers:
    """Numbers, unchanged or, if there are statistics, (x − mean)/deviation clipped to ±`OBSERVATION_CLIP`."""

    mean: np.ndarray | None = None
    deviation: np.ndarray | None = None


@dataclass(frozen=True)
class Bytes:
    """Numbers from 0 to 255, encoded as x/255 for an image and as log(1 + x) for a board."""

    is_picture: bool


@dataclass(frozen=True)
class Choices:
    """Integers, each one-hot encoded: if the k-th integer is `start[k]` + i, its i-th of `sizes[k]` features is 1."""

    sizes: tuple[int, ...]
    start: tuple[int, ...]

    @property
    def meanings(self) -> tuple[np.ndarray, np.ndarray]:
        """For each feature, the index of its integer and the value that it indicates."""
        which = np.repeat(np.arange(len(self.sizes)), self.sizes)
        return which, np.concatenate([start + np.arange(n) for start, n in zip(self.start, self.sizes, strict=True)])


@dataclass(frozen=True)
class Input:
    """One array of an observation."""

    path: tuple[str | int, ...]
    """The keys and indices that lead to the array; empty if the observation is a single array."""
    shape: tuple[int, ...]
    kind: str
    """The kind of space, as Gymnasium names it, or `image`."""
    coding: Numbers | Bytes | Choices

    @property
    def name(self) -> str:
        """The keys that lead to the array, as outer/inner."""
        return "/".join(map(str, self.path)) or "observation"

    @property
    def num_features(self) -> int:
        """The number of features into which the array is encoded."""
        return sum(self.coding.sizes) if isinstance(self.coding, Choices) else math.prod(self.shape)


@dataclass(frozen=True)
class Dense:
    """A dense layer: act(x W + b)."""

    weight: np.ndarray
    """[D, K]."""
    bias: np.ndarray
    activation: str | None


@dataclass(frozen=True)
class Spread(Dense):
    """x W + b + s log(x² v + `VARIANCE_FLOOR`), without an activation. Where s is 0, this is an output; where s is ½,
    it is log σ of noise that is a function of x, in units of the half range."""

    variance: np.ndarray
    """v, [H, K]; 0 where s is 0."""
    share: np.ndarray
    """s, [K]; W and b are 0 where s is not 0."""


@dataclass(frozen=True)
class Gated:
    """The common fields of a GRU and an LSTM; G is the number of gates."""

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
    """h ← λ h + B x with complex h, y = Re(C h) + D x. B includes the gain."""

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
    """A residual block: x + second(relu(first(relu(x))))."""

    first: Convolution
    second: Convolution


@dataclass(frozen=True)
class Stack:
    """A convolution, max pooling over 3 × 3 pixels with stride 2 and padding 1, and residual blocks."""

    first: Convolution
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Picture:
    """An image processed by convolutions, each followed by relu, and by a dense layer over all of their outputs."""

    place: int
    """The image's index among the inputs."""
    axes: tuple[int, ...]
    """The axes of the array in the order height, width, and all others, which are channels."""
    size: tuple[int, int, int]
    """(height, width, channels)."""
    layers: tuple[Convolution | Stack, ...]
    last: Dense
    """The dense layer; its inputs are in the order height, width, channel."""


@dataclass(frozen=True)
class Gaussian:
    """mean = centre + half · output, in the environment's units; the action is the mean, cast and then clipped.

    If it is squashed, mean = output and the action is centre + half · tanh(mean), so mean and log σ apply before tanh.
    """

    shape: tuple[int, ...]
    dtype: str
    centre: np.ndarray
    half: np.ndarray
    log_std: np.ndarray
    """The parameter log σ, in units of the half range."""
    low: np.ndarray
    """The lower bounds. Like `high`, they have the dtype of the action."""
    high: np.ndarray
    is_squashed: bool = False
    range_of_log_std: tuple[float, float] | None = None
    """If σ depends on the state, the bounds of log_std + output, in units of the half range. These outputs come after
    those for the mean."""
    parameters = ("mean", "log_std")

    @property
    def width(self) -> int:
        """The number of components, which is also the length of each parameter."""
        return len(self.centre)

    @property
    def num_outputs(self) -> int:
        """K, the number of network outputs."""
        return self.width * (1 if self.range_of_log_std is None else 2)

    @property
    def log_unit(self) -> np.ndarray:
        """The term to add to log σ to express it in the units of the mean."""
        return np.zeros_like(self.half) if self.is_squashed else np.log(self.half)

    num_choices = 0


@dataclass(frozen=True)
class Categories:
    """Discrete choices. The value of each is the index of its highest logit plus its start."""

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
    """Bits. Each is 1 if its logit is positive."""

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
    """The keys and indices that lead to the part; empty if it is the whole action."""
    label: str
    """The path as text, unique to this part."""
    head: Head

    def name(self, what: str) -> str:
        """Return the name of the part's action or of a parameter: `mean`, or `mean/KEY` if the action has several
        parts."""
        return f"{what}/{self.label}" if self.path else what

    @property
    def action(self) -> str:
        """The name of the part's action."""
        return self.name(ACTION)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the part's parameters."""
        return tuple(self.name(what) for what in self.head.parameters)


def labelled(heads: Sequence[tuple[tuple[str | int, ...], Head]]) -> tuple[Part, ...]:
    """Label the parts of an action with their paths; apostrophes distinguish equal labels."""
    parts: list[Part] = []
    for path, head in heads:
        label = "/".join(map(str, path))
        while label in [part.label for part in parts]:
            label += "'"
        parts.append(Part(path, label, head))
    return tuple(parts)


def nested(values: Sequence[tuple[tuple[str | int, ...], str]]) -> str:
    """Return the Python expression for a structure with the given expressions at the given paths."""
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
    """The images. Their features follow those of all other inputs, which are concatenated in order."""
    layers: tuple[Dense | Memory, ...]
    parts: tuple[Part, ...]
    """The parts of the action, computed in order from consecutive outputs of the last layer."""
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
        """A description of the action that an exported file returns."""
        if any(isinstance(part.head, Gaussian) and part.head.is_squashed for part in self.parts):
            return "the most probable choices, and for real numbers the mean before tanh, within their bounds"
        return "the most probable one, within its bounds"

    def is_masked(self, part: Part) -> bool:
        """Return whether the mask covers this part."""
        return self.has_masks and part.head.num_choices > 0

    @property
    def vectors(self) -> tuple[Input, ...]:
        """The inputs that are not processed by convolutions."""
        places = {picture.place for picture in self.pictures}
        return tuple(one for place, one in enumerate(self.inputs) if place not in places)

    @property
    def memory(self) -> Memory | None:
        """The layer with memory, if any."""
        return next((layer for layer in self.layers if isinstance(layer, Memory)), None)
