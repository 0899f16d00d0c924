"""Find modules that users name, e.g. `mine:World`, including modules in the folder in which a command is run.

A command may be run in a folder with untrusted files. That folder is therefore not on the module search path. If it
were, a file in it could pass for a library or a plugin and be imported without asking the user. The folder is added
only to import a module that the user named or trusted and that is found nowhere else.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "UPSLOPE_COMMAND_FOLDER"
"""The environment variable that tells child processes in which folder the command was run."""


def offer_folder(folder: Path) -> None:
    """Let this process, and the processes that it starts, search this folder for modules that users name."""
    os.environ[FOLDER_VARIABLE] = str(folder)


def reach(module: str) -> None:
    """Append the command's folder to the search path if this module is found only there."""
    top = module.partition(".")[0]
    if top in sys.modules or is_file(spec_of(top)):
        return
    with with_command_folder() as path:
        is_there = spec_of(top) is not None
    if is_there:
        sys.path[:] = path


def file_of(module: str) -> str:
    """The file or folder from which a module was or would be imported, found without importing it or its parent
    packages; empty if it is not found."""
    with with_command_folder():
        spec = spec_of(module)
    if spec is None:
        place = getattr(sys.modules.get(module), "__file__", None) or ""
    elif is_file(spec):
        place = str(spec.origin)
    else:
        place = next(iter(spec.submodule_search_locations or ()), spec.origin or "")
    return os.path.realpath(place) if Path(place).is_absolute() else place


def spec_of(module: str) -> ModuleSpec | None:
    """The spec of a module according to Python's finders, without importing anything; None if they do not find it."""
    places: Any = None
    names = module.split(".")
    spec = None
    for k in range(1, len(names) + 1):
        spec = one_spec(".".join(names[:k]), places)
        if spec is None or (k < len(names) and spec.submodule_search_locations is None):
            return None
        places = spec.submodule_search_locations
    return spec


def one_spec(name: str, places: Any) -> ModuleSpec | None:
    """The spec of a module that is already imported or can be found in these places."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__spec__", None)
    finders = (finder for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next((spec for finder in finders if (spec := finder.find_spec(name, places)) is not None), None)


def is_file(spec: ModuleSpec | None) -> bool:
    """Whether a module has a file. A folder without one (a namespace package) gives way to any other module of the same
    name."""
    return spec is not None and spec.origin is not None


@contextmanager
def with_command_folder() -> Iterator[list[str]]:
    """Search the command's folder for modules too, after all other folders. Yields the search path."""
    before, folder = sys.path[:], os.environ.get(FOLDER_VARIABLE)
    if folder and folder not in before:
        sys.path.append(folder)
    try:
        yield sys.path[:]
    finally:
        sys.path[:] = before


@contextmanager
def without_current_folder() -> Iterator[None]:
    """Import only installed packages, not modules in the current folder."""
    before, here = sys.path[:], os.path.realpath(os.curdir)
    sys.path[:] = [folder for folder in before if folder and os.path.realpath(folder) != here]
    try:
        yield
    finally:
        sys.path[:] = before
