"""Heads for actions with several parts: Dict and Tuple, at any depth."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float, Shaped

from upslope.core.arrays import AnyArray as Array
from upslope.core.arrays import namespace
from upslope.core.distributions import (
    Distribution,
    Product,
    split_last,
    sum_of,
)
from upslope.core.space_parts import parts_of as parts_of_space
from upslope.models.box_heads import BoxHead
from upslope.models.encoders import Refuse
from upslope.models.head import ActionHead


class ProductHead(ActionHead):
    """An action with several parts. A sampled action is one vector of 32-bit floats, the concatenation of its parts."""

    sample_dtype = np.float32

    @property
    @abstractmethod
    def children(self) -> tuple[tuple[Any, ActionHead], ...]:
        """(key, head) pairs of the parts, in order."""

    @abstractmethod
    def structure(self, parts: Sequence[Any]) -> Any:
        """Arrange one value per part in the structure of the space."""

    @abstractmethod
    def parts_of_mask(self, mask: Any) -> list[Any] | None:
        """The mask of each part; None if the mask does not have the structure of the space."""

    @abstractmethod
    def with_heads(self, heads: Sequence[ActionHead]) -> "ProductHead":
        """This head with the heads of its parts replaced."""

    @property
    def heads(self) -> tuple[ActionHead, ...]:
        """The heads of the parts."""
        return tuple(head for _, head in self.children)

    @property
    def is_continuous(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - a constant of the other heads
        return any(head.is_continuous for head in self.heads)

    @property
    def num_scales(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - a constant of the other heads
        return sum(head.num_scales for head in self.heads)

    @property
    def num_outputs(self) -> int:
        return sum(head.num_outputs for head in self.heads)

    @property
    def num_features(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - a constant of the other heads
        return max(head.num_features for head in self.heads)

    @property
    def noise_every(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - a constant of the other heads
        return next((head.noise_every for head in self.heads if head.num_features), 1)

    @property
    def sizes(self) -> list[int]:
        """The number of entries that each part occupies in an action vector."""
        return [math.prod(head.sample_shape) for head in self.heads]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return (sum(self.sizes),)

    @property
    def kept_shape(self) -> tuple[int, ...]:
        return self.sample_shape

    @property
    def boxes(self) -> dict[str, BoxHead]:
        found = [(key, inner, box) for key, head in self.children for inner, box in head.boxes.items()]
        return {f"{key}/{inner}" if inner else str(key): box for key, inner, box in found}

    @property
    def max_entropy(self) -> float | None:
        most = [head.max_entropy for head in self.heads]
        return None if None in most else sum(x for x in most if x is not None)

    @property
    def num_choices(self) -> int:
        return sum(head.num_choices for head in self.heads)

    def flat_mask(self, mask: Any) -> Any:
        parts = self.parts_of_mask(mask)
        if parts is None:
            return super().flat_mask(mask)
        flat = [self.mask_of_part(*child, part) for child, part in zip(self.children, parts, strict=True)]
        flat = [x for x in flat if x is not None]
        xp: Any = jnp if any(isinstance(x, jax.Array) for x in flat) else np
        return xp.concatenate(flat) if flat else super().flat_mask(np.zeros(0))

    def mask_of_part(self, key: Any, head: ActionHead, mask: Any) -> Any:
        """Flatten the mask of a part. A mask of None allows everything. The result is None if the part has no choices.

        Raises:
            ValueError: the mask does not fit the part.
        """
        if mask is None:
            return np.ones(head.num_choices, bool) if head.num_choices else None
        try:
            return head.flat_mask(mask)
        except ValueError as error:
            raise ValueError(f"at `{key}`, {error}") from error

    @property
    def mask_form(self) -> str:
        keys = ", ".join(repr(key) for key, head in self.children if head.num_choices)
        return f"({self.num_choices},), or a mask for each of the parts {keys}"

    def by_choices(self, mask: Bool[Array, "... M"]) -> list[Any]:
        """The mask of each part; None for parts without choices."""
        parts = split_last(mask, [head.num_choices for head in self.heads])
        return [part if head.num_choices else None for head, part in zip(self.heads, parts, strict=True)]

    def allows_some(self, mask: Bool[Array, "... M"]) -> Any:
        pairs = zip(self.heads, self.by_choices(mask), strict=True)
        found = [head.allows_some(part) for head, part in pairs if part is not None]
        return namespace(mask).stack(found, axis=-1).all(axis=-1)

    def random(self, generator: np.random.Generator, mask: Any = None) -> np.ndarray:
        masks = [None] * len(self.heads) if mask is None else self.by_choices(mask)
        drawn = [head.random(generator, part) for head, part in zip(self.heads, masks, strict=True)]
        return np.concatenate([np.ravel(x) for x in drawn]).astype(np.float32)

    def distribution(
        self, outputs: Float[Array, "... O"], log_std: Float[Array, "... L"], features: Any = None
    ) -> Distribution:
        mine = split_last(outputs, [head.num_outputs for head in self.heads])
        scales = split_last(log_std, [head.num_scales for head in self.heads])
        parts = zip(self.heads, mine, scales, strict=True)
        return Product(tuple(head.distribution(x, s, features) for head, x, s in parts))

    def split(self, action: Any) -> list[Any]:
        """Split sampled actions [..., K] into one part per head, each with its own dtype and shape."""
        pairs = zip(self.heads, split_last(action, self.sizes), strict=True)
        return [x.reshape(*x.shape[:-1], *head.sample_shape).astype(head.sample_dtype) for head, x in pairs]

    def squashed(self, action: Any) -> Any:
        pairs = zip(self.heads, split_last(action, self.sizes), strict=True)
        return namespace(action).concatenate([head.squashed(x) for head, x in pairs], axis=-1)

    def unsquashed(self, action: Any) -> Any:
        pairs = zip(self.heads, split_last(action, self.sizes), strict=True)
        return np.concatenate([head.unsquashed(x) for head, x in pairs], axis=-1)

    def to_environment(self, action: Any) -> Any:
        pairs = zip(self.heads, self.split(action), strict=True)
        return self.structure([head.to_environment(x) for head, x in pairs])

    def kept(self, action: np.ndarray, taken: Any) -> np.ndarray:
        return action

    def replayed(self, kept: np.ndarray) -> Any:
        return self.to_environment(kept)

    def in_space(self, space: gymnasium.Space) -> ActionHead:
        within = dict(parts_of_space(space))
        return self.with_heads([head.in_space(within[key]) for key, head in self.children])

    def to_compiled(self, action: Shaped[Array, "N ..."]) -> Any:
        pairs = zip(self.heads, self.split(action), strict=True)
        return self.structure([head.to_compiled(x) for head, x in pairs])

    def outside(self, action: Shaped[Array, "B ..."]) -> Float[Array, "B"] | None:
        """The fraction of clipped components among the parts that have bounds."""
        pairs = zip(self.heads, self.split(action), self.sizes, strict=True)
        found = [(head.outside(x), size) for head, x, size in pairs]
        known = [(x, size) for x, size in found if x is not None]
        return sum_of(x * size for x, size in known) / sum(size for _, size in known) if known else None

    def check(self, action: Any, refuse: Refuse) -> None:
        for (key, head), x in zip(self.children, split_last(action, self.sizes), strict=True):
            part: Any = x.reshape(*x.shape[:-1], *head.sample_shape)
            if np.dtype(head.sample_dtype).kind == "i" and (part == np.round(part)).all():
                part = np.asarray(part, np.int64)
            head.check(part, lambda words, key=key: refuse(f"at `{key}`, {words}"))


@dataclass(frozen=True)
class DictHead(ProductHead):
    """A Dict of actions."""

    parts: tuple[tuple[str, ActionHead], ...]
    """(key, head) pairs, sorted by key."""

    @property
    def children(self) -> tuple[tuple[Any, ActionHead], ...]:
        return self.parts

    def structure(self, parts: Sequence[Any]) -> dict[str, Any]:
        return {key: part for (key, _), part in zip(self.parts, parts, strict=True)}

    def parts_of_mask(self, mask: Any) -> list[Any] | None:
        """See `ProductHead.parts_of_mask`. Parts without choices may be omitted, or be None."""
        if not isinstance(mask, Mapping):
            return None
        keys, needed = [key for key, _ in self.parts], [key for key, head in self.parts if head.num_choices]
        if not set(needed) <= mask.keys() <= set(keys):
            raise ValueError(f"it has the keys {', '.join(map(repr, mask))}, but needs {', '.join(map(repr, needed))}")
        return [mask.get(key) for key, _ in self.parts]

    def with_heads(self, heads: Sequence[ActionHead]) -> ProductHead:
        return DictHead(tuple((key, head) for (key, _), head in zip(self.parts, heads, strict=True)))

    def space(self) -> gymnasium.Space:
        return spaces.Dict({key: head.space() for key, head in self.parts})


@dataclass(frozen=True)
class TupleHead(ProductHead):
    """A Tuple of actions."""

    parts: tuple[ActionHead, ...]

    @property
    def children(self) -> tuple[tuple[Any, ActionHead], ...]:
        return tuple(enumerate(self.parts))

    def structure(self, parts: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(parts)

    def parts_of_mask(self, mask: Any) -> list[Any] | None:
        is_flat = isinstance(mask, list) and all(x is not None and np.ndim(x) == 0 for x in mask)
        if not isinstance(mask, tuple | list) or is_flat:
            return None
        if len(mask) != len(self.parts):
            raise ValueError(f"it has {len(mask)} parts, but an action has {len(self.parts)}")
        return list(mask)

    def with_heads(self, heads: Sequence[ActionHead]) -> ProductHead:
        return TupleHead(tuple(heads))

    def space(self) -> gymnasium.Space:
        return spaces.Tuple([head.space() for head in self.parts])
