"""Arrays and JSON in one file: written atomically, read without executing anything.

A file is a NumPy `.npz` archive (zip with checksums) whose entry `meta` is a JSON text.
"""

import contextlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upslope.errors import UpslopeError

MAX_BYTES = 1 << 36
"""A file that declares more than 64 GiB of arrays is refused before any of it is read."""

UNREADABLE = (
    OSError, ValueError, TypeError, KeyError, IndexError, EOFError, RuntimeError, MemoryError, NotImplementedError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What a damaged or foreign file can make the readers raise."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write to a temporary file beside it, flush to disk, then rename: a reader sees the old or the new, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UpslopeError(
            f"Could not write {path}: {error.strerror or error}. What stood there before is intact. Make room or "
            "give another folder, then go on."
        ) from error


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write arrays and a JSON-able `meta` into one file, atomically."""
    buffer = io.BytesIO()
    members: dict[str, Any] = {"meta": np.asarray(json.dumps(meta)), **arrays}
    np.savez(buffer, **members)
    write_atomically(path, buffer.getvalue())


def load_arrays(path: Path, what: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read such a file; `what` it should be is said when it is not.

    Raises:
        UpslopeError: the file is missing, damaged, foreign, or holds pickled objects.
    """
    if not path.is_file():
        raise UpslopeError(f"There is no {what} at {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(entry.file_size for entry in archive.infolist())
            if declared > MAX_BYTES:
                raise ValueError(f"it declares {declared:,} bytes")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        not_arrays = [name for name, x in arrays.items() if not isinstance(x, np.ndarray)]
        if not_arrays:
            raise ValueError(f"{', '.join(not_arrays)} is no array")
        meta = json.loads(str(arrays.pop("meta")[()]))
        if not isinstance(meta, dict):
            raise ValueError("its meta entry is not a JSON object")
    except UNREADABLE as error:
        raise UpslopeError(
            f"{path} is not a {what} of upslope, or it is damaged: {type(error).__name__}: {error}."
        ) from error
    return arrays, meta


def plain(x: Any) -> Any:
    """Dataclasses, arrays and paths → what strict JSON can hold; nan and infinity are null."""
    if is_dataclass(x):
        return {f.name: plain(getattr(x, f.name)) for f in fields(x)}
    if isinstance(x, dict):
        return {str(key): plain(value) for key, value in x.items()}
    if isinstance(x, tuple | list | np.ndarray):
        return [plain(value) for value in x]
    if isinstance(x, bool | np.bool_):
        return bool(x)
    if isinstance(x, float | np.floating):
        return float(x) if np.isfinite(x) else None
    return int(x) if isinstance(x, np.integer) else x if isinstance(x, int | str | None) else str(x)
