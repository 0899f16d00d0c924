"""Convert a config to the shortest command that trains with it."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from upslope.config.config import Config, configure, recorded_preset
from upslope.config.presets import DEFAULT_PRESET, preset_of

NOTHING: Mapping[str, Any] = {}
FROM_THE_RUNG = ("environment", "algorithm", "preset")
"""Fields that `command_of` handles separately instead of writing a flag of the same name."""
RENAMED = {"start-from": "--from"}
"""Settings whose flag has a different name."""
REPEATED = {"wrappers": "--wrapper", "ignore-observation": "--ignore-observation", "encoder": "--encoder"}
"""Settings whose flag is repeated, once for each value."""


def command_of(config: Config, *, is_continuous: bool, inherited: Mapping[str, Any] = NOTHING) -> str:
    """Return the shortest `upslope train` command for this config.

    It has flags only for values that differ from the defaults or, if the run starts from another run, from the
    `inherited` values."""
    words = ["upslope", "train", config.environment]
    if config.algorithm != Config.algorithm:
        words += ["--algorithm", config.algorithm]
    wanted = wanted_preset(config)
    if wanted is False and preset_of(config.environment, config.algorithm):
        words.append("--no-preset")
    elif isinstance(wanted, str):
        words += ["--preset", wanted]
    options: dict[str, Any] = {"is_continuous": is_continuous, "use_preset": wanted}
    usual = configure(config.environment, config.algorithm, **options, **inherited)
    for name, value in vars(config).items():
        if name not in FROM_THE_RUNG and value != getattr(usual, name):
            words += flag(name.rstrip("_").replace("_", "-"), value)
    return shlex.join(words)


def wanted_preset(config: Config) -> bool | str:
    """The `preset` argument that leads to this config."""
    if config.preset is None:
        return False
    recorded = recorded_preset(config)
    return True if recorded is None or recorded[0] == DEFAULT_PRESET else recorded[0]


def flag(name: str, value: Any) -> list[str]:
    """The command line arguments for a setting."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if name in REPEATED:
        return [word for each in value for word in (REPEATED[name], each)]
    if isinstance(value, tuple):
        return [f"--{name}", *map(str, value)]
    return [RENAMED.get(name, f"--{name}"), json.dumps(value) if isinstance(value, dict) else str(value)]
