"""Arrays and JSON in one file, written atomically and read without executing code.

A file is a NumPy `.npz` archive (a zip file with checksums) whose entry `meta` is JSON text.
"""

import contextlib
import io
import json
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upslope.core.files import kind_of, temporary_beside
from upslope.core.reading import brief, parse_json
from upslope.errors import UpslopeError

MAX_BYTES = 1 << 36
"""A file that declares more than 64 GiB of arrays is rejected before any of it is read."""
MAX_RATIO, SMALL = 200, 1 << 26
"""A file that declares over 64 MiB and over 200 times its own size is rejected too, since real data compresses less."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write and sync a temporary file next to the path, then rename it. Readers see either the complete
    old file or the complete new one."""
    temporary = temporary_beside(path)
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
            f"Could not write {path}: {error.strerror or error}. The previous file, if any, is intact. Free "
            "disk space, or choose a writable folder."
        ) from error


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Atomically write arrays and a JSON-serialisable `meta` to one file."""
    buffer = io.BytesIO()
    members: dict[str, Any] = {"meta": np.asarray(json.dumps(meta, allow_nan=False)), **arrays}
    np.savez(buffer, **members)
    write_atomically(path, buffer.getvalue())


def load_arrays(path: Path, what: str, remedy: str = "") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read a file written by `save_arrays`; `what` is its name in error messages, and `remedy` replaces their advice.

    Raises:
        UpslopeError: the file is missing, damaged, foreign, declares more than it contains, or contains pickled
            objects.
    """
    with opened(path, what, remedy) as archive:
        arrays = {entry.filename.removesuffix(".npy"): read_array(archive, entry) for entry in archive.infolist()}
        if "meta" not in arrays:
            raise ValueError("it has no entry `meta`, which holds a JSON object such as {}")
        return arrays, meta_in(arrays.pop("meta"))


def load_meta(path: Path, what: str, remedy: str = "") -> dict[str, Any]:
    """Read only the metadata of a file, as `load_arrays` does."""
    with opened(path, what, remedy) as archive:
        return meta_in(read_array(archive, archive.getinfo("meta.npy")))


@contextlib.contextmanager
def opened(path: Path, what: str, remedy: str) -> Iterator[zipfile.ZipFile]:
    """Open a file written by `save_arrays`. Any error while it is read means that it is damaged."""
    if not path.is_file():
        there = f"{path} is {kind_of(path.stat().st_mode)}, not a {what}" if path.exists() else ""
        words = there or f"There is no {what} at {path}"
        raise UpslopeError(f"{words}. {remedy or 'Pass a file written by upslope.'}")
    try:
        with zipfile.ZipFile(path) as archive:
            check_declared(archive, path.stat().st_size)
            yield archive
    except Exception as error:  # zipfile, its compressors and NumPy's header parser raise a dozen types
        raise UpslopeError(
            f"{path} is not a {what} from upslope, or it is damaged: {type(error).__name__}: "
            f"{brief(error)}. {remedy or 'Pass another file, or an undamaged copy of this one.'}"
        ) from error


def meta_in(array: np.ndarray) -> dict[str, Any]:
    """Parse the entry that holds a file's metadata."""
    meta = parse_json(str(array[()]))
    if not isinstance(meta, dict):
        raise ValueError("its meta entry is not a JSON object")
    return meta


def check_declared(archive: zipfile.ZipFile, size: int) -> None:
    """Reject an archive that declares far more data than its size allows (a zip bomb)."""
    declared = sum(entry.file_size for entry in archive.infolist())
    if declared > MAX_BYTES or declared > max(SMALL, MAX_RATIO * size):
        raise ValueError(f"it is {size:,} bytes long but declares {declared:,}")


def read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """Read an array, after checking that its header declares numbers or text and matches the stored size."""
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version not in HEADERS:
            raise ValueError(f"{entry.filename} is an array of version {version}")
        shape, _, dtype = HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError(f"{entry.filename} contains Python objects, which could execute code when loaded")
        if dtype.kind not in "biufcUS" or not dtype.itemsize or any(type(n) is not int or n < 0 for n in shape):
            raise ValueError(f"{entry.filename} declares {dtype} {shape}")
        if math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
            raise ValueError(f"{entry.filename} declares {dtype}{list(shape)}, but its size differs")
        file.seek(0)
        array = np.lib.format.read_array(file, allow_pickle=False)
        file.read()  # zipfile checks the CRC at the end of the entry
    return array


HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def fits_32_bits(x: np.ndarray) -> bool:
    """Whether all numbers are finite and within the range of a 32-bit float."""
    return bool((np.abs(x.astype(np.float64)) <= np.finfo(np.float32).max).all())


def plain(x: Any) -> Any:
    """Convert dataclasses, arrays and paths to strict JSON values; nan and infinity become null."""
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
