"""Translate the names that other libraries use for settings and algorithms to upslope's names."""

from functools import cache
from importlib import resources
from typing import Any

import yaml

from upslope.config.ladder import ALGORITHMS
from upslope.core.messages import unknown
from upslope.errors import UpslopeError


@cache
def table(name: str, package: str = "config") -> dict[str, Any]:
    """Load a YAML file from one of upslope's packages."""
    text = resources.files(f"upslope.{package}").joinpath(name).read_text("utf-8")
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def foreign(kind: str, name: str) -> str:
    """Return upslope's name or advice for a foreign name of this kind; empty if the name is unknown."""
    key = name.lstrip("-").lower().replace("-", "_")
    return next((said for said, names in table("foreign_names.yaml")[kind].items() if key in names), "")


def foreign_setting(name: str) -> str:
    """Return a message with upslope's name for another library's setting; empty if the name is unknown."""
    ours, advice = foreign("settings", name), foreign("advice", name)
    if name.startswith("--"):
        ours = ours and f"--{ours.rstrip('_').replace('_', '-')}"
    parts = [f"There is no {name}{ours and f'; upslope calls it {ours}'}.", advice]
    return " ".join(filter(None, parts)) if ours or advice else ""


def known_algorithm(name: str) -> str:
    """Return the name of a rung.

    Raises:
        UpslopeError: there is no such rung. The message suggests the closest one.
    """
    if name in ALGORITHMS:
        return name
    if nearest := foreign("algorithms", name):
        rungs = ", ".join(ALGORITHMS)
        raise UpslopeError(f'There is no "{name}", since upslope has only policy gradients: {rungs}. {nearest}')
    raise UpslopeError(unknown("algorithm", name, ALGORITHMS))
