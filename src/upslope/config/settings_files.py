"""Read settings from YAML files safely: tags cannot create objects, and aliases and duplicate names are refused."""

import reprlib
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from upslope.core.files import MAX_SETTINGS, plain_file
from upslope.core.messages import readable
from upslope.errors import UpslopeError


class PlainLoader(yaml.SafeLoader):
    """A YAML loader that refuses aliases, numbers in bases other than 10, and duplicate names.

    With aliases, a few lines can expand to gigabytes. Numbers in other bases are rarely intended, and parsing them can
    take minutes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [name for name, times in names.items() if times > 1]:
            raise wrong(node, f"{', '.join(map(reprlib.repr, twice))} is set more than once; keep one of the values")
        return super().construct_mapping(node, deep)

    def whole(self, node: Any) -> int:
        """Parse an integer in decimal digits."""
        digits = self.construct_scalar(node).lstrip("+-").replace("_", "")
        if not digits.isdecimal() or (digits[0] == "0" and digits != "0"):
            raise wrong(node, DECIMAL.format(reprlib.repr(node.value)))
        return int(node.value)

    def number(self, node: Any) -> float:
        """Parse a number in decimal digits."""
        if ":" in self.construct_scalar(node):
            raise wrong(node, DECIMAL.format(reprlib.repr(node.value)))
        return self.construct_yaml_float(node)


PlainLoader.add_constructor("tag:yaml.org,2002:int", PlainLoader.whole)
PlainLoader.add_constructor("tag:yaml.org,2002:float", PlainLoader.number)
DECIMAL = "{} is not a decimal number; write it in digits, or in quotes if it is text"


def wrong(node: Any, words: str) -> yaml.YAMLError:
    """Create the error for a node of the file."""
    return yaml.MarkedYAMLError(problem=words, problem_mark=node.start_mark)


def read_mapping(path: Path, *, what: str = "settings as `name: value` lines, e.g. `learning-rate: 0.001`") -> dict:
    """Read a YAML file that contains one mapping; `what` describes what it must contain.

    Raises:
        UpslopeError: the file cannot be read, is too large, or contains anything else.
    """
    if path.exists():
        plain_file(path, MAX_SETTINGS)
    try:
        settings = yaml.load(path.read_text("utf-8"), PlainLoader)
        if not isinstance(settings, dict):
            raise UpslopeError(f"{path} must contain {what}.")
        unprintable = [str(name) for name, value in settings.items() if not f"{name}{value}".isprintable()]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise UpslopeError(f"Could not read the settings in {path}: {error}.") from error
    if unprintable:
        raise UpslopeError(
            f"{path} has unprintable characters in {', '.join(map(readable, unprintable))}. Remove or escape them."
        )
    return settings
