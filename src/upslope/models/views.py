"""Views of an observation: the policy and the critic may each read only some of its parts.

A critic that sees more than the policy is called asymmetric (Pinto et al. 2018, Asymmetric Actor Critic for Image-Based
Robot Learning, https://arxiv.org/abs/1710.06542): the critic is needed only during training, so it may use
information that no sensor provides when the policy is deployed.
"""

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from upslope.core.arrays import AnyArray as Array
from upslope.core.arrays import is_shape
from upslope.core.keys import key_of, key_within, same_key
from upslope.core.messages import listed
from upslope.errors import UpslopeError
from upslope.models.encoders import BoxEncoder, CompositeEncoder, ObservationEncoder
from upslope.models.model import POLICY, VALUE

Features = tuple[Any, tuple[Any, ...]]
"""The features [B, D] of all arrays that no convolutional network reads, or None if there are none, and the images
[B, height, width, channels] that convolutional networks read."""
NUMBERS = re.compile("([0-9]{1,9})(?:-([0-9]{1,9}))?")
"""A component of a vector, or an inclusive range of components: `2`, `2-5`."""


@dataclass(frozen=True)
class View:
    """A part of an observation. In each field, None means everything."""

    keys: tuple[str, ...] | None = None
    """The keys of the arrays that are read, in whole or in part."""
    spans: tuple[tuple[int, int], ...] | None = None
    """(start, stop) of each range that is read, within the vector of all features."""
    images: tuple[int, ...] | None = None
    """The indices of the images that are read by a convolutional network."""

    def vector(self, features: Shaped[Array, "... D"]) -> Shaped[Array, "... K"]:
        """The features that are read."""
        if self.spans is None:
            return features
        parts: Any = [features[..., start:stop] for start, stop in self.spans]
        if len(parts) == 1:
            return parts[0]
        if isinstance(features, np.ndarray):
            read: Any = np.concatenate(parts, axis=-1)
            return read
        # Keep normalisation from fusing with the concatenation, which would make rounding depend on the program.
        return jnp.concatenate(jax.lax.optimization_barrier(parts), axis=-1)

    def of(self, features: Features) -> Features:
        """The features and images that are read."""
        vector, images = features
        chosen = images if self.images is None else tuple(images[place] for place in self.images)
        return (None if vector is None or self.spans == () else self.vector(vector)), chosen

    def width(self, num_features: int) -> int:
        """The number of features that are read, out of `num_features`."""
        return num_features if self.spans is None else sum(stop - start for start, stop in self.spans)

    def chosen(self, networks: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        """The (key, network) pairs whose images are read."""
        return networks if self.images is None else tuple(networks[place] for place in self.images)

    def reads(self, key: str) -> bool:
        """Whether any part of the array under this key is read."""
        return self.keys is None or key in self.keys


WHOLE = View()
"""The whole observation."""
Views = tuple[View, View]
"""The view of the policy, and the view of the critic."""
FLAGS = {"policy_reads": "--policy-reads", "critic_reads": "--critic-reads"}
"""Setting → its flag."""


def views_of(encoder: ObservationEncoder, networks: Sequence[tuple[str, str]], settings: Mapping[str, Any]) -> Views:
    """The views of the policy and the critic according to `policy_reads` and `critic_reads`; None means everything.

    Raises:
        UpslopeError: a key is unknown, or no key is given.
    """
    policy, critic = (
        WHOLE if settings.get(name) is None else view_of(encoder, networks, settings[name], flag)
        for name, flag in FLAGS.items()
    )
    return policy, critic


def view_of(encoder: ObservationEncoder, networks: Sequence[tuple[str, str]], wanted: Sequence[str], flag: str) -> View:
    """The parts of an observation under these keys. `networks` lists the images that convolutional networks read."""
    if not wanted:
        raise UpslopeError(
            f"{flag} names no part, but a network that reads nothing cannot learn. Name at least one part."
        )
    columns, images = places_of(encoder, networks)
    parts = list(parts_of(encoder))
    chosen = [stretch for key in wanted for stretch in part_under(key, parts, flag)]
    refuse_shared_keys(parts, {key for key, _, _ in chosen}, flag)
    keys, seen = {key for key, _, _ in chosen}, tuple(sorted({images[key] for key, _, _ in chosen if key in images}))
    # Merge the spans, so that parts that are named twice or overlap are read only once, in the observation's order.
    spans = joined((columns[key] + start, columns[key] + stop) for key, start, stop in chosen if key in columns)
    total = sum(inner.num_features for key, inner, _ in encoder.leaves(encoder.shapes) if key in columns)
    if sum(stop - start for start, stop in spans) == total and len(seen) == len(images):
        return WHOLE
    return View(tuple(key for key in (*columns, *images) if key in keys), spans, seen)


def places_of(
    encoder: ObservationEncoder, networks: Sequence[tuple[str, str]]
) -> tuple[dict[str, int], dict[str, int]]:
    """The index of each array's first feature in the feature vector, and the index of each image among the images."""
    columns, total = {}, 0
    images = {key: place for place, (key, _) in enumerate(networks)}
    for key, inner, _ in encoder.leaves(encoder.shapes):
        if key not in images:
            columns[key], total = total, total + inner.num_features
    return columns, images


Stretch = tuple[str, int, int]
"""Consecutive features of an array: (key, start, stop)."""


@dataclass(frozen=True)
class Part:
    """A part of an observation: an array, or several."""

    path: tuple[Any, ...]
    """The keys and indices that lead to it; empty for the whole observation."""
    stretches: tuple[Stretch, ...]
    """The features of its arrays."""
    is_array: bool
    length: int = 0
    """The number of components that can be read individually; 0 unless it is a vector."""

    def components(self, key: str) -> Stretch | None:
        """The component, or range of components, that a key names; None if it names something else."""
        prefix = key_within(key_of(self.path), "") if self.path else ""
        found = NUMBERS.fullmatch(key.removeprefix(prefix)) if key.startswith(prefix) else None
        if found is None:
            return None
        first, last = int(found[1]), int(found[2] or found[1])
        return (key_of(self.path), first, last + 1) if first <= last < self.length else None


def parts_of(encoder: ObservationEncoder, path: tuple[Any, ...] = ()) -> Iterator[Part]:
    """Each part of an observation, before the part that contains it."""
    if not isinstance(encoder, CompositeEncoder):
        is_vector = isinstance(encoder, BoxEncoder) and len(encoder.shape) == 1
        length = encoder.num_features if is_vector else 0
        yield Part(path, ((key_of(path), 0, encoder.num_features),), True, length)
        return
    whole: list[Stretch] = []
    for name, part in encoder.children:
        inner = list(parts_of(part, (*path, name)))
        yield from inner
        whole += inner[-1].stretches
    yield Part(path, tuple(whole), False)


def part_under(key: str, parts: Sequence[Part], flag: str) -> Sequence[Stretch]:
    """The features under a key, which names a part, a component of a vector, or a range of components.

    Raises:
        UpslopeError: there is no such part, or there are several.
    """
    named = [(part.path, part.stretches) for part in parts if part.path and key_of(part.path) == key]
    named += [((*part.path, found[1]), (found,)) for part in parts if (found := part.components(key))]
    if len(named) > 1:
        raise UpslopeError(f"{flag} {shlex.quote(key)}: {same_key(key, [path for path, _ in named])}")
    if named:
        return named[0][1]
    names = [key_of(part.path) for part in parts if part.path]
    names += [key_of((*part.path, f"0-{part.length - 1}")) for part in parts if part.length]
    has = f"Their parts: {listed(map(shlex.quote, names))}" if names else "They have no parts: omit the flag"
    near = get_close_matches(key, names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UpslopeError(f"{flag} {shlex.quote(key)}: the observations have no such part.{hint} {has}.")


def refuse_shared_keys(parts: Sequence[Part], keys: Collection[str], flag: str) -> None:
    """Refuse to read arrays that share one of these keys with another array, e.g. one inside a part that is read."""
    for key in keys:
        paths = [part.path for part in parts if part.is_array and key_of(part.path) == key]
        if len(paths) > 1:
            raise UpslopeError(f"{flag} cannot tell two parts apart: {same_key(key, paths)}")


def joined(spans: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Sort spans in ascending order, and merge those that touch or overlap."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return tuple(found)


def view_in(model: Any, group: str) -> View:
    """The part of an observation that a parameter group of a model reads. Models other than upslope's own read all of
    it."""
    policy, critic = getattr(model, "views", (WHOLE, WHOLE))
    return {POLICY: policy, VALUE: critic}[group]


def completed(shapes: Any, observation: Any, view: View, key: str | None = None) -> Any:
    """The observation, with zeros in place of missing parts of a Dict that are not read."""
    if view.keys is None or not isinstance(shapes, dict) or not isinstance(observation, Mapping):
        return observation
    found = dict(observation)
    for name, part in shapes.items():
        inner = key_within(key, name)
        if name in found:
            found[name] = completed(part, found[name], view, inner)
        elif not any(read == inner or read.startswith(f"{inner}/") for read in view.keys):
            found[name] = jax.tree.map(lambda shape: np.zeros(shape, np.float32), part, is_leaf=is_shape)
    return found


def emptied(encoder: ObservationEncoder, observation: Any, view: View) -> Any:
    """The observation, with zeros in the arrays that are not read. Their batch axes are those of the arrays that are
    read."""
    if view.keys is None:
        return observation
    arrays, structure = jax.tree.flatten(observation)
    keys, shapes = zip(*((key, inner.shapes) for key, inner, _ in encoder.leaves(encoder.shapes)), strict=True)
    leaves = list(zip(keys, shapes, arrays, strict=True))
    batch = next(x.shape[: max(0, x.ndim - len(shape))] for key, shape, x in leaves if view.reads(key))
    kept = [x if view.reads(key) else np.zeros((*batch, *shape), np.float32) for key, shape, x in leaves]
    return jax.tree.unflatten(structure, kept)
