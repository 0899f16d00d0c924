"""Read a checkpoint's metadata without JAX, and advise on checkpoints that are missing or damaged."""

from pathlib import Path
from typing import Any

from upslope.core.messages import shell
from upslope.core.storage import load_meta
from upslope.errors import UpslopeError
from upslope.runs.directory import RunDirectory


def read_meta(path: Path) -> dict[str, Any]:
    """Read only the metadata of a checkpoint."""
    return load_meta(path, "checkpoint", remedy_for(path))


def meta_or_nothing(path: Path) -> dict[str, Any]:
    """Read a checkpoint's metadata, or return an empty dictionary if the file is missing, damaged or not accessible."""
    try:
        return read_meta(path)
    except (UpslopeError, OSError):
        return {}


def remedy_for(path: Path) -> str:
    """Advise on a checkpoint of a run that is missing or damaged. If the run's other one exists, say how to use it."""
    run, other = RunDirectory(path.parent.parent), {"last": "best", "best": "last"}.get(path.stem, "")
    if not run.has_begun:
        return f"The run was stopped before training began. Begin it: {shell('upslope', 'resume', run.path)}"
    if not path.with_name(f"{other}.npz").is_file():
        return "Restore it from a copy, or train a new run."
    onward = shell("upslope", "train", "--from", f"{run.path}@{other}", "--name", "NEW")
    return (
        f"Restore it from a copy, or use the run's {other} checkpoint: evaluate, record or export it with --checkpoint "
        f'{other} (in Python, checkpoint="{other}"), or train its agents further in a new run: {onward}'
    )
