"""Settings in YAML files, which are only read: no tag makes an object, and no alias expands."""

from pathlib import Path
from typing import Any

import yaml

from upslope.core.files import MAX_SETTINGS, plain_file
from upslope.core.messages import readable
from upslope.errors import UpslopeError


class PlainLoader(yaml.SafeLoader):
    """A YAML loader without aliases, because with them a few lines can expand to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed; write the value out")
        return super().compose_node(parent, index)


def read_mapping(path: Path, *, what: str = "settings as `name: value` lines, e.g. `learning-rate: 0.001`") -> dict:
    """Read a YAML file that holds one mapping; `what` says what it must hold.

    Raises:
        UpslopeError: the file cannot be read, is too large, or holds anything else.
    """
    if path.exists():
        plain_file(path, MAX_SETTINGS)
    try:
        settings = yaml.load(path.read_text("utf-8"), PlainLoader)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise UpslopeError(f"Could not read the settings in {path}: {error}.") from error
    if not isinstance(settings, dict):
        raise UpslopeError(f"{path} must hold {what}.")
    unprintable = [str(name) for name, value in settings.items() if not f"{name}{value}".isprintable()]
    if unprintable:
        raise UpslopeError(
            f"{path} has unprintable characters in {', '.join(map(readable, unprintable))}. Remove or escape them."
        )
    return settings
