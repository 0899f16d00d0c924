"""The public names, for mkdocstrings."""

from __future__ import annotations

import ast

from code_of import SOURCE

import upslope


def all_names(_: str, language: str = "en") -> str:
    """One section a module that has public names: what the module is, and each name."""
    return "\n".join(section(room, names) for room, names in upslope.ROOMS.items())


def section(room: str, names: tuple[str, ...]) -> str:
    """The names that live in one module."""
    path = SOURCE.joinpath("upslope", *room.split(".")).with_suffix(".py")
    about = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n\n")[0]
    documented = "\n\n".join(f"::: upslope.{room}.{name}" for name in names)
    return f"## {', '.join(names)}\n\n{about}\n\n{documented}\n"
