"""What other libraries call a setting or an algorithm → what it is here."""

from functools import cache
from importlib import resources
from typing import Any

import yaml

from upslope.config.ladder import ALGORITHMS
from upslope.core.messages import unknown
from upslope.errors import UpslopeError


@cache
def table(name: str, package: str = "config") -> dict[str, Any]:
    """A YAML file of a package."""
    text = resources.files(f"upslope.{package}").joinpath(name).read_text("utf-8")
    return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def foreign(kind: str, name: str) -> str:
    """What upslope says of a name of this kind; empty where it knows nothing."""
    key = name.lstrip("-").lower().replace("-", "_")
    return next((said for said, names in table("foreign_names.yaml")[kind].items() if key in names), "")


def foreign_setting(name: str) -> str:
    """Say what a setting of another library is called here; empty where the name is unknown."""
    ours, advice = foreign("settings", name), foreign("advice", name)
    if name.startswith("--"):
        ours = ours and f"--{ours.rstrip('_').replace('_', '-')}"
    parts = [f"There is no {name}{ours and f'; upslope calls it {ours}'}.", advice]
    return " ".join(filter(None, parts)) if ours or advice else ""


def known_algorithm(name: str) -> str:
    """The name of a rung, or a refusal that says what comes nearest."""
    if name in ALGORITHMS:
        return name
    if nearest := foreign("algorithms", name):
        rungs = ", ".join(ALGORITHMS)
        raise UpslopeError(f'There is no "{name}": upslope has policy gradients only, {rungs}. {nearest}')
    raise UpslopeError(unknown("algorithm", name, ALGORITHMS))
