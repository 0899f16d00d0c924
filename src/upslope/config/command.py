"""The command that gives a config."""

import json
import shlex
from typing import Any

from upslope.config.config import Config, configure, preset_of

FROM_THE_RUNG = ("environment", "algorithm", "preset")
"""Fields that are said in another way than by a flag of their name."""


def command_of(config: Config, *, is_continuous: bool) -> str:
    """The shortest `upslope train` that trains with this config: only what its defaults do not give is said."""
    words = ["upslope", "train", config.environment]
    if config.algorithm != Config.algorithm:
        words += ["--algorithm", config.algorithm]
    is_preset = config.preset is not None
    if not is_preset and preset_of(config.environment, config.algorithm):
        words.append("--no-preset")
    usual = configure(config.environment, config.algorithm, is_continuous=is_continuous, use_preset=is_preset)
    for name, value in vars(config).items():
        if name not in FROM_THE_RUNG and value != getattr(usual, name):
            words += flag(name.rstrip("_").replace("_", "-"), value)
    return shlex.join(words)


def flag(name: str, value: Any) -> list[str]:
    """A setting as it is given on the command line."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if name == "wrappers":
        return [word for wrapper in value for word in ("--wrapper", wrapper)]
    if isinstance(value, tuple):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
