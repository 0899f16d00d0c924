"""All combinations of a space's values, numbered, for samplers that try each of them once."""

import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from upslope.lab.sweep.space import Space


@dataclass(frozen=True)
class Combinations:
    """The combinations of a space whose parameters all have finitely many values. They are numbered, but not listed,
    since there may be very many."""

    space: Space

    @cached_property
    def size(self) -> int:
        """The number of combinations."""
        return prod(parameter.size for parameter in self.space.searched.values())

    def at(self, number: int) -> dict[str, Any]:
        """The values of a combination, as samplers store them."""
        drawn = {}
        for name, parameter in self.space.searched.items():
            number, place = divmod(number, parameter.size)
            drawn[name] = parameter.at(place)
        return drawn

    def number(self, drawn: Mapping[str, Any]) -> int | None:
        """The number of the combination with these values; None if a value is missing or not in the space."""
        number, factor = 0, 1
        for name, parameter in self.space.searched.items():
            place = parameter.place(drawn[name]) if name in drawn else None
            if place is None:
                return None
            number, factor = number + factor * place, factor * parameter.size
        return number

    def numbers(self, drawn: Iterable[Mapping[str, Any]]) -> set[int]:
        """The numbers of those combinations that have all of their values in the space."""
        return {number for values in drawn if (number := self.number(values)) is not None}

    def missing(self, tried: Collection[int], seed: str) -> int | None:
        """A combination that is not among `tried`, chosen at random by the seed; None if there is none."""
        if len(tried) >= self.size:
            return None
        found = random.Random(seed).randrange(self.size - len(tried))
        for other in sorted(tried):  # skip the combinations that were tried
            if found < other:
                break
            found += 1
        return found
