"""Presets: named sets of settings that are tuned for an environment or that define how it is created."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from upslope.config.foreign_names import table
from upslope.environments.names import without_batching
from upslope.environments.packages import package_of
from upslope.errors import UpslopeError

DEFAULT_PRESET = "default"
"""The name of the preset used by default."""
TUNED = ("ppo", "ppo_kl", "ppo_kl_fixed")
"""The rungs for which settings were tuned. All others use only the part of a preset that creates the environment."""
MERGED = "env_kwargs"
"""The setting whose value is merged with the user's, so that a preset provides the arguments that the user omits."""


def presets() -> dict[str, Any]:
    """The rows, keyed by environment id or by a pattern of ids with `*`.

    Each row is the default preset, and its `others` holds further presets by name. `settings` are tuned for PPO, and
    `making` defines how the environment is created for any algorithm."""
    return table("presets.yaml")


def row_of(environment: str) -> dict[str, Any]:
    """Find an environment's row by its full name, by its id without a module or source, or by the family of ids that a
    package registers."""
    known = presets()
    origin, _, name = without_batching(environment).rpartition(":")
    if exact := known.get(environment) or known.get(name):
        return exact
    package = package_of(name)
    if origin and (package is None or origin != package.module):
        return {}
    families = [key for key in known if "*" in key and fnmatchcase(name, key)]
    return known[max(families, key=len)] if families else {}


def presets_of(environment: str, algorithm: str) -> dict[str, Any]:
    """Return the presets of an environment for a rung, keyed by name, with "default" first. A compiled environment
    without its own row uses the row of its Gymnasium counterpart."""
    row = row_of(environment)
    making = {"making": row.get("making", {})}
    if not row or (algorithm not in TUNED and not making["making"]):
        return {}
    if algorithm not in TUNED:
        return {DEFAULT_PRESET: row | {"settings": {}, "others": {}}}
    return {DEFAULT_PRESET: row | making} | {name: making | other for name, other in row.get("others", {}).items()}


def preset_of(environment: str, algorithm: str, wanted: bool | str = True) -> dict[str, Any] | None:
    """Return the requested preset: the default preset if there is one (True), none (False), or the one with this name.

    Raises:
        UpslopeError: there is no preset with this name.
    """
    if wanted is False:
        return None
    known = presets_of(environment, algorithm)
    if wanted is True:
        return known.get(DEFAULT_PRESET)
    if wanted not in known:
        names = f"Known: {', '.join(known)}." if known else "It has none; omit --preset."
        raise UpslopeError(f'There is no preset "{wanted}" for {algorithm} on {environment}. {names}')
    return known[wanted]


def made_by(preset: Mapping[str, Any] | None, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that create the environment: those of a preset, overridden by the requested ones.

    Wrappers may change the observations, so if the user passes any, the preset does not remove parts of the
    observations."""
    making = dict((preset or {}).get("making", {}))
    if asked.get("wrappers"):
        making.pop("ignore_observation", None)
    arguments = making.get(MERGED, {}) | (asked.get(MERGED) or {})
    return making | dict(asked) | ({MERGED: arguments} if arguments else {})


def words_of(making: Mapping[str, Any]) -> Sequence[str]:
    """Describe the changes that a preset makes to the environment, as flags."""
    flags = {"wrappers": "--wrapper", "ignore_observation": "--ignore-observation", "env_kwargs": "--env-kwargs"}
    words = []
    for name, value in making.items():
        values = value if isinstance(value, list | tuple) else [value]
        words += [f"{flags.get(name, '--' + name.replace('_', '-'))} {each}" for each in values]
    return words
