"""The folder of a sweep. It contains only the sweep's files, so that no others are overwritten or deleted.

A file in the folder, called the mark, names the study whose trials the folder contains, regardless of where the storage
is. A folder that is neither empty nor this study's is rejected, and so is one that contains a link.
"""

import json
import shutil
from pathlib import Path

from upslope.core.files import MAX_SETTINGS, plain_file, safe_path
from upslope.core.storage import write_atomically
from upslope.errors import UpslopeError
from upslope.lab.sweep.study import Study

MARK, TRIALS_FOLDER, STORAGE = "sweep.json", "trials", "study.db"
FILES = (MARK, STORAGE, "winner.yaml", "report.html")


def make_folder(path: Path, storage: str) -> bool:
    """Create the sweep's folder, or accept one that is empty, marked, or contains the storage. Return whether it
    contains more than the storage but no mark, as folders of earlier versions do. `claim` then checks the study.

    Raises:
        UpslopeError: the folder cannot be created, is a run, or contains a link or unknown files.
    """
    if (path / "config.json").exists():
        raise UpslopeError(f"{path} is a run, not a sweep. Choose another --name.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UpslopeError(f"Could not create {path}: {error.strerror or error}. Choose another --folder.") from error
    for name in FILES:
        safe_path(path, path / name)
    safe_path(path, path / TRIALS_FOLDER, is_folder=True)
    database = database_in(path, storage)
    names = [found.name for found in path.iterdir()]
    # Another process may be starting the same sweep: SQLite adds journals, and the mark starts as a temporary file.
    others = [name for name in names if not name.startswith((f".{MARK}.", database or MARK))]
    if MARK in names or not others:
        return False
    if database not in names:
        raise of_another(path)
    return True


def database_in(path: Path, storage: str) -> str:
    """The name of the storage's SQLite file if it is in the folder; otherwise an empty string."""
    scheme, _, place = storage.partition(":///")
    file = Path(place.partition("?")[0]).resolve()
    return file.name if scheme.startswith("sqlite") and place and file.parent == path.resolve() else ""


def claim(path: Path, study: Study, *, is_old: bool) -> None:
    """Mark the folder as this study's, or check the existing mark. With `is_old`, an unmarked folder is accepted only
    if the study already existed.

    Raises:
        UpslopeError: the folder belongs to another study.
    """
    mark = safe_path(path, path / MARK)
    is_marked = mark.exists()
    if (is_marked and marked(mark) != study.identity()) or (not is_marked and is_old and study.is_new):
        raise of_another(path)
    if not is_marked:
        words = {"study": study.identity(), "name": study.access.name}
        write_atomically(mark, (json.dumps(words) + "\n").encode())


def marked(mark: Path) -> str | None:
    """The study that a mark names; None if the mark cannot be read."""
    try:
        return json.loads(plain_file(mark, MAX_SETTINGS).read_text("utf-8"))["study"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def of_another(path: Path) -> UpslopeError:
    """The error for a folder that is not this sweep's."""
    return UpslopeError(
        f"{path} is not empty, and its contents do not belong to this sweep's study, so nothing in it is "
        "changed. To continue the sweep that wrote it, pass the same --storage; otherwise choose another "
        "--name or --folder."
    )


def trial_folder(trials: Path, number: int) -> Path:
    """The folder of a trial's run, after removing the run that an older trial with this number left there.

    Raises:
        UpslopeError: the folder contains a link, or is not a run.
    """
    path = trials / f"{number:04d}"
    safe_path(trials.parent, path, is_folder=True)
    if path.exists() and any(path.iterdir()):
        config = path / "config.json"
        if config.is_symlink() or not config.is_file():
            raise UpslopeError(f"{path} contains something other than a run, so it is not replaced. Move it elsewhere.")
        shutil.rmtree(path, ignore_errors=True)
    return path
