"""List the public names for mkdocstrings."""

from __future__ import annotations

import ast

from code_of import SOURCE

import upslope

FIELDS = ("core.types", "environments.base", "models.model")
"""Modules whose classes are shown with all fields, including fields without a docstring."""


def all_names(_: str, language: str = "en") -> str:
    """Return one section for each module with public names, with a description of the module and of each name."""
    return "\n".join(section(room, names) for room, names in upslope.PUBLIC_NAMES.items())


def section(room: str, names: tuple[str, ...]) -> str:
    """Return the section for the names of one module."""
    path = SOURCE.joinpath("upslope", *room.split(".")).with_suffix(".py")
    about = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n\n")[0]
    options = "\n    options:\n      show_if_no_docstring: true" if room in FIELDS else ""
    documented = "\n\n".join(f"::: upslope.{room}.{name}{options}" for name in names)
    return f"## {', '.join(names)}\n\n{about}\n\n{documented}\n"
