"""Hypothesis strategies for files that a crash, a bad disk, another program or an attacker could have corrupted."""

import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

WORDS = st.text(max_size=12)
NUMBERS = st.one_of(
    st.integers(-3, 300), st.integers(), st.sampled_from([10**400, -(2**63), 2**31, 2**64, 1e308, -0.0, 1e-320]),
    st.floats(allow_nan=True),
)  # fmt: skip
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, WORDS, st.sampled_from(["best", "../../x", "\x1b[31m", "nan"]))
VALUES = st.recursive(SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(WORDS, x, max_size=3), max_leaves=6)
"""JSON values, along with NaN and Infinity, which Python writes although they are not valid JSON."""
TYPES = ("?", "i1", "u8", ">i4", "f2", "f4", "f8", "c8", "U3", "S2", "M8[s]", "V4", "O")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, planted: Path):
        self.planted = planted

    def __reduce__(self) -> Any:
        return Path.touch, (self.planted,)


@st.composite
def spoiled_bytes(draw: Any, content: bytes) -> bytes:
    """Draw a corrupted version of `content`: truncated, modified, replaced, or with bytes inserted or repeated."""
    how = draw(st.sampled_from(("cut", "flip", "overwrite", "double", "insert", "foreign")))
    if how == "foreign" or not content:
        return draw(st.binary(max_size=300))
    place = draw(st.integers(0, len(content) - 1))
    if how == "cut":
        return content[:place]
    if how == "double":
        return content[:place] + content[max(0, place - draw(st.integers(1, 200))) :]
    if how == "insert":
        return content[:place] + draw(st.binary(min_size=1, max_size=20)) + content[place:]
    if how == "overwrite":
        new = draw(st.binary(min_size=1, max_size=64))
        return content[:place] + new + content[place + len(new) :]
    spoiled = bytearray(content)
    for _ in range(draw(st.integers(1, 8))):
        spoiled[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(spoiled)


@st.composite
def spoiled_json(draw: Any, value: Any) -> Any:
    """Draw a copy of a JSON value in which one entry, at any depth, is replaced, removed, added or duplicated."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = draw(st.sampled_from(keys))
    new = value.copy()
    how = draw(st.sampled_from(("inside", "inside", "inside", "gone", "added", "doubled")))
    if how == "gone":
        del new[key]
    elif how == "added" and isinstance(new, dict):
        new[draw(WORDS)] = draw(VALUES)
    elif how == "doubled" and isinstance(new, list):
        new.insert(key, new[key])
    else:
        new[key] = draw(spoiled_json(value[key]))
    return new


@st.composite
def spoiled_rows(draw: Any, text: str) -> bytes:
    """Draw a copy of a table in which a cell or a row is replaced, missing or malformed."""
    rows = text.split("\n")
    k = draw(st.integers(0, len(rows) - 1))
    cells = rows[k].split(",")
    c = draw(st.integers(0, len(cells) - 1))
    words = st.sampled_from(["", "nan", "inf", "-1", "1e400", "9" * 30, "1.5", "#", '"', "x" * 99, "0x10", "\x00", "١"])
    new = draw(words | WORDS)
    how = draw(st.sampled_from(("cell", "row", "gone", "cut", "added")))
    if how == "cell":
        rows[k] = ",".join([*cells[:c], new, *cells[c + 1 :]])
    elif how == "row":
        rows[k] = new
    elif how == "gone":
        del rows[k]
    elif how == "cut":
        rows = [*rows[:k], ",".join(cells[:c])]
    else:
        rows.insert(k, rows[k] + "," + new)
    return "\n".join(rows).encode("utf-8", "surrogatepass")


def spoiled_lines(text: str) -> st.SearchStrategy[bytes]:
    """Return a strategy for JSON lines, one of which has malformed content."""
    rows = text.splitlines()

    @st.composite
    def spoil(draw: Any) -> bytes:
        k = draw(st.integers(0, len(rows) - 1))
        new = draw(spoiled_json(json.loads(rows[k])))
        return ("\n".join([*rows[:k], json.dumps(new), *rows[k + 1 :]]) + "\n").encode("utf-8", "surrogatepass")

    return spoil()


def npy(array: np.ndarray) -> bytes:
    """Return an array in the .npy format."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def declaring(descr: str, shape: str, held: bytes = b"") -> bytes:
    """Return the content of an .npy file whose header declares this type and shape, followed by `held`."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode("latin1", "replace")
    return b"\x93NUMPY\x01\x00" + (len(text) + 1).to_bytes(2, "little") + text + b"\n" + held


def packed(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    """Return an archive that contains these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def unpacked(content: bytes) -> dict[str, bytes]:
    """Return the files in an archive."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@st.composite
def spoiled_array(draw: Any, content: bytes, planted: Path) -> bytes:
    """Draw an array with another type, shape or size, an array with other values, or bytes that are not an array."""
    array = np.load(io.BytesIO(content))
    how = draw(st.sampled_from(("type", "shape", "header", "values", "values", "objects", "pickle", "bytes", "end")))
    if how == "type":
        kind = draw(st.sampled_from(TYPES))
        return npy(
            np.zeros(array.shape, kind) if kind in ("O", "V4") or array.dtype.kind == "U" else array.astype(kind)
        )
    if how == "shape":
        new = array[None] if draw(st.booleans()) else array.ravel()[: draw(st.integers(0, array.size))]
        return npy(new)
    if how == "header":
        shapes = (
            "(10**15,)",
            "(140737488355328,)",
            "(-1,)",
            "(3.0,)",
            "()",
            "(True,)",
            "(0, 99999999999)",
            "'a'",
            "((1,),)",
        )
        types = ("'<f8'", "'|O'", "'<U0'", "'|V9999999999'", "'<U999999999'", "[('a', '<f8')]", "'<q'", "None")
        return declaring(draw(st.sampled_from(types)), draw(st.sampled_from(shapes)), draw(st.binary(max_size=40)))
    if how == "values" and array.size and array.dtype.kind in "biuf":
        new = array.copy()
        info = np.finfo(new.dtype) if new.dtype.kind == "f" else None
        some = [np.nan, np.inf, -1, 0, info.max] if info else [0, 1, -1, 2**40, np.iinfo(np.int64).max]
        with np.errstate(all="ignore"):
            new.flat[draw(st.integers(0, array.size - 1))] = np.asarray(draw(st.sampled_from(some))).astype(new.dtype)
        return npy(new)
    if how == "objects":
        return npy(np.array([Payload(planted)] * max(array.size, 1), object))
    if how == "pickle":
        return pickle.dumps(Payload(planted))
    return content[: draw(st.integers(0, len(content)))] if how == "end" else draw(spoiled_bytes(content))


@st.composite
def spoiled_npz(draw: Any, content: bytes, planted: Path) -> bytes:
    """Draw an archive with a malformed, missing or added member, with other metadata, or with a corrupted container."""
    members = unpacked(content)
    name = draw(st.sampled_from(["meta.npy", *members]))
    how = draw(st.sampled_from(("array", "array", "meta", "meta", "gone", "added", "bytes", "pickle", "compressed")))
    if how in ("bytes", "compressed"):
        method = draw(st.sampled_from((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
        return draw(spoiled_bytes(content if how == "bytes" else packed(members, method)))
    if how == "pickle":
        return pickle.dumps(Payload(planted))
    if how == "gone":
        del members[name]
    elif how == "added":
        members[draw(st.sampled_from(("../../planted.npy", "/x.npy", "world/x.npy", "text", "weight/new.npy")))] = npy(
            np.ones(2)
        )
    elif how == "meta":
        value = draw(spoiled_json(json.loads(str(np.load(io.BytesIO(members["meta.npy"]))[()]))))
        members["meta.npy"] = npy(np.asarray(json.dumps(value)))
    else:
        members[name] = draw(spoiled_array(members[name], planted))
    return packed(members)
