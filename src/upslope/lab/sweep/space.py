"""The space of a sweep: a range or choices for each searched setting, and fixed values for others.

learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}
gamma: {choices: [0.98, 0.99, 0.995]}
hidden_sizes: {choices: [[64, 64], [256, 256]]}
num_envs: 16                                        # fixed for all trials and for the defaults
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

from upslope.config.config import Config, canonical, flag_of
from upslope.config.settings_files import read_mapping
from upslope.config.trust import ROLES, names_code
from upslope.core.messages import unknown
from upslope.errors import UpslopeError

GIVEN_BY_THE_COMMAND = ("environment", "algorithm", "steps", "seeds", "seed", "preset")
"""Settings that a space cannot contain: trials are compared on one task, budget and set of seeds."""
ENDING = ("stop_at_return",)
"""Settings, other than the steps, that determine when training ends."""
NOT_IN_A_SWEEP: Mapping[str, str] = {
    "data": "A sweep scores trials by their own episodes, and recorded data have none.",
    "reference": "The trials of a sweep have no reference policy.",
    "start_from": "Every trial of a sweep starts from scratch, not from another run.",
    **dict.fromkeys(
        ENDING,
        "The trials of a sweep are compared at the same budget (--steps), so none may stop early.",
    ),
}
"""Settings that no trial may have, whether they are fixed or searched, and why."""
OF_THE_TASK = ("env_kwargs", "wrappers", "ignore_observation", "masks", "max_episode_steps")
"""Settings that change the task, so that the scores of trials that differ in them cannot be compared."""
RANGE, CHOICES = {"low", "high", "log", "step"}, {"choices"}
FORM = (
    "a space: `setting: {low: …, high: …, log: true}`, `setting: {choices: […]}`, or `setting: value`, which is fixed"
)


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, inclusive. If `log`, they are distributed evenly on a logarithmic scale."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None
    is_whole: bool = False

    @property
    def is_finite(self) -> bool:
        """Whether the range has finitely many values, so that they can all be listed."""
        return self.is_whole or self.step is not None

    def ends(self) -> tuple[Any, ...]:
        """The extreme values."""
        return self.low, self.high

    def value(self, drawn: Any) -> Any:
        """Convert the value that the sampler drew to the setting's value."""
        return drawn

    def holds(self, value: Any) -> bool:
        """Whether the value is in the range, and on its grid if there is a step."""
        if not isinstance(value, int | float) or isinstance(value, bool) or not self.low <= value <= self.high:
            return False
        steps = 0.0 if self.step is None else float((exact(value) - exact(self.low)) / exact(self.step))
        return math.isclose(steps, round(steps), abs_tol=1e-9)

    @property
    def size(self) -> int:
        """The number of values of a finite range."""
        return int((exact(self.high) - exact(self.low)) / exact(self.spacing)) + 1

    @property
    def spacing(self) -> int | float:
        """The distance between two values of a finite range."""
        return 1 if self.step is None else self.step

    def at(self, place: int) -> Any:
        """The value at a place of a finite range, counted from 0, as samplers store it."""
        value = exact(self.low) + place * exact(self.spacing)
        return int(value) if self.is_whole else float(value)

    def place(self, drawn: Any) -> int | None:
        """The place of a value in a finite range; None if the value is not in it."""
        if not self.holds(drawn):
            return None
        place = round((exact(drawn) - exact(self.low)) / exact(self.spacing))
        return place if place < self.size and math.isclose(self.at(place), drawn) else None

    def to_json(self) -> dict[str, Any]:
        """The range in the form of a space file."""
        found = {"low": self.low, "high": self.high}
        return found | ({"log": True} if self.log else {}) | ({} if self.step is None else {"step": self.step})


@dataclass(frozen=True)
class Choices:
    """A few values of any kind."""

    values: tuple[Any, ...]

    @property
    def words(self) -> tuple[Any, ...]:
        """The values as samplers store them: lists as text, anything else unchanged."""
        return tuple(map(word, self.values))

    def ends(self) -> tuple[Any, ...]:
        """All values."""
        return self.values

    def value(self, drawn: Any) -> Any:
        """Convert the value that the sampler drew to the setting's value."""
        return self.values[self.words.index(drawn)]

    def holds(self, value: Any) -> bool:
        """Whether the value is one of the choices."""
        return value in self.values

    @property
    def size(self) -> int:
        """The number of choices."""
        return len(self.values)

    def at(self, place: int) -> Any:
        """The choice at a place, counted from 0, as samplers store it."""
        return self.words[place]

    def place(self, drawn: Any) -> int | None:
        """The place of a choice, given as samplers store it; None if it is not among the choices."""
        return self.words.index(drawn) if drawn in self.words else None

    def to_json(self) -> dict[str, Any]:
        """The choices in the form of a space file."""
        return {"choices": [list(v) if isinstance(v, tuple) else v for v in self.values]}


Parameter = Range | Choices


@dataclass(frozen=True)
class Space:
    """The settings that a sweep searches and those that it fixes, keyed by field of `Config`."""

    searched: Mapping[str, Parameter]
    fixed: Mapping[str, Any]

    def settings(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of a trial for the values that the sampler drew."""
        return {name: self.searched[name].value(x) for name, x in drawn.items() if name in self.searched}

    def drawn(self, config: Config) -> dict[str, Any] | None:
        """The values that a sampler would have to draw to obtain a config; None if a value is not in the space."""
        values = {name: getattr(config, name) for name in self.searched}
        is_inside = all(parameter.holds(values[name]) for name, parameter in self.searched.items())
        return {name: word(value) for name, value in values.items()} if is_inside else None

    def to_json(self) -> dict[str, Any]:
        """The space in the form of its file."""
        searched = {name: parameter.to_json() for name, parameter in self.searched.items()}
        return searched | {name: list(x) if isinstance(x, tuple) else x for name, x in self.fixed.items()}

    def only(self, names: Any) -> "Space":
        """This space with only those searched settings that are among `names`."""
        return Space({name: p for name, p in self.searched.items() if name in names}, self.fixed)


def exact(value: int | float) -> Decimal:
    """A number as it is written, so that the steps of a range are not rounded."""
    return Decimal(str(value))


def word(value: Any) -> Any:
    """A value as samplers store it."""
    return json.dumps(value) if isinstance(value, tuple | list | dict) else value


def read_space(source: str | Path | Mapping[str, Any]) -> Space:
    """Read a space file, or take a mapping in the same form.

    Raises:
        UpslopeError: a setting does not exist or cannot be searched, a range is empty, or the file names code.
    """
    if isinstance(source, Mapping):
        return space_of(source, "the space")
    space = space_of(read_mapping(Path(source), what=FORM), str(source))
    refuse_code(space, str(source))
    return space


def shipped_space(*, is_continuous: bool) -> Space:
    """The shipped space for Box actions, or for all other actions."""
    return space_of(shipped()["box" if is_continuous else "discrete"], "the shipped space")


@cache
def shipped() -> dict[str, Any]:
    """The shipped spaces by kind of action."""
    return yaml.safe_load((files("upslope.lab.sweep") / "spaces.yaml").read_text("utf-8"))


def space_of(entries: Mapping[str, Any], place: str) -> Space:
    """The space described by a mapping; `place` names it in messages."""
    searched: dict[str, Parameter] = {}
    fixed: dict[str, Any] = {}
    for written, entry in entries.items():
        try:
            name = field_of(str(written))
            is_searched = isinstance(entry, Mapping) and bool(set(map(str, entry)) & (RANGE | CHOICES))
            refuse_in_a_sweep(name)
            if name in GIVEN_BY_THE_COMMAND:
                raise UpslopeError(f"{written} is the same for all trials; pass it to the command instead.")
            if name in searched or name in fixed:
                raise UpslopeError(f"{written} appears twice.")
            if is_searched:
                searched[name] = parameter_of(name, entry)
            else:
                fixed |= canonical({name: entry})
        except UpslopeError as error:
            raise UpslopeError(f"In {place}: {error}") from error
    if not searched:
        raise UpslopeError(f"{place} searches nothing. Write {FORM}.")
    return Space(searched, fixed)


def refuse_in_a_sweep(name: str) -> None:
    """Reject a setting that no trial of a sweep may have."""
    if name not in NOT_IN_A_SWEEP:
        return
    flags = f"upslope train ENVIRONMENT --config winner.yaml {flag_of(name)} …"
    later = f" After the sweep, the winner can be trained with it: {flags}" if name in ENDING else ""
    raise UpslopeError(f"{NOT_IN_A_SWEEP[name]} Omit {name}.{later}")


def field_of(written: str) -> str:
    """The field of `Config` for a name as written in a file or a flag.

    Raises:
        UpslopeError: there is no such setting.
    """
    name = "lambda_" if written == "lambda" else written.replace("-", "_")
    if name not in get_type_hints(Config):
        canonical({written: None})  # always raises; it also recognises the names that other libraries use
    return name


def parameter_of(name: str, entry: Mapping[str, Any]) -> Parameter:
    """The range or the choices of a setting."""
    if name in OF_THE_TASK:
        raise UpslopeError(
            f"{name} changes the task, so trials that differ in it cannot be compared. Fix it: `{name}: value`."
        )
    if strange := sorted(set(map(str, entry)) - RANGE - CHOICES):
        raise UpslopeError(unknown(f"key of {name}", strange[0], RANGE | CHOICES, "docs/sweep.md"))
    if "choices" in entry:
        return choices_of(name, entry)
    return range_of(name, entry)


def choices_of(name: str, entry: Mapping[str, Any]) -> Choices:
    """The choices of a setting, converted to its type."""
    values = entry["choices"]
    if len(entry) > 1:
        raise UpslopeError(f"{name} has both choices and a range. Give one of the two.")
    if not isinstance(values, list | tuple) or not values:
        raise UpslopeError(f"the choices of {name} must be a list of values, e.g. {{choices: [0.98, 0.99]}}.")
    found = tuple(canonical({name: value})[name] for value in values)
    if any(a == b for k, a in enumerate(found) for b in found[:k]):
        raise UpslopeError(f"the choices of {name} contain a value twice.")
    return Choices(found)


def range_of(name: str, entry: Mapping[str, Any]) -> Range:
    """The range of a numeric setting."""
    kind = number_kind(get_type_hints(Config)[name])
    if kind is None:
        raise UpslopeError(f"{name} is not a number, so it has no range. Give {{choices: […]}}.")
    if missing := [end for end in ("low", "high") if entry.get(end) is None]:
        raise UpslopeError(f"the range of {name} has no {' and no '.join(missing)}. Write {{low: …, high: …}}.")
    low, high = (canonical({name: entry[end]})[name] for end in ("low", "high"))
    step = None if entry.get("step") is None else canonical({name: entry["step"]})[name]
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise UpslopeError(f"log of {name} must be true or false, not {log!r}.")
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in (low, high, 0 if step is None else step)):
        raise UpslopeError(f"the range of {name} must have finite ends, not {low} and {high}.")
    if not low < high:
        raise UpslopeError(f"the range of {name} is empty: low {low} is not below high {high}.")
    if log and low <= 0:
        raise UpslopeError(f"the range of {name} starts at {low}, which has no logarithm. Raise low, or omit log.")
    if step is not None and (log or not 0 < exact(step) <= exact(high) - exact(low)):
        why = "log and step exclude each other" if log else f"a step of {step} does not fit into it"
        raise UpslopeError(f"the range of {name}: {why}.")
    return Range(low, high, log, step, kind is int)


def number_kind(hint: Any) -> type | None:
    """int or float for a setting that is a number or an optional number; None for all others."""
    kinds = set(get_args(hint)) - {NoneType} if get_origin(hint) is UnionType else {hint}
    return next((kind for kind in (float, int) if kinds == {kind}), None)


def refuse_code(space: Space, place: str) -> None:
    """Reject a file that names code to import or specifies how to create an environment, since reading a file must not
    run code."""
    named: list[tuple[str, Any]] = [*space.fixed.items()]
    named += [(name, value) for name, p in space.searched.items() for value in p.ends()]
    for name, value in named:
        is_code = name in ROLES and (name in ("env_kwargs", "wrappers") or names_code(str(value)))
        if is_code or name == "model_kwargs":
            flag = "--wrapper" if name == "wrappers" else flag_of(name)
            raise UpslopeError(
                f"{place} sets {name} to {value!r}, but a space file may not name code or specify how to "
                f"create an environment. Pass it to the command: {flag}. From Python, the space may also be a "
                "dictionary that names code."
            )
