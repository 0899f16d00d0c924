"""Pack runs into one archive for sharing, and read such archives safely even if they come from an untrusted source.

bundle.json        format, and for each run its command, versions and the hashes of its files
REPEAT.md          the commands that repeat the runs, in readable form
NAME/…             the files of each run, as in its run directory
"""

import hashlib
import json
import shlex
import shutil
import stat
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any

from upslope.core.files import AnyPath, output_file, plain_file, require_folder, temporary_beside
from upslope.core.messages import readable
from upslope.core.reading import brief, parse_json
from upslope.core.storage import MAX_RATIO, SMALL
from upslope.errors import UpslopeError
from upslope.runs.directory import RunDirectory, run_path, run_paths, versions

BUNDLE_FORMAT = 1
CONTENTS, REPEAT = "bundle.json", "REPEAT.md"
PART = 2**20
"""Number of bytes to read from a file at a time."""
TABLES = ("config.json", "metrics.jsonl", "episodes.csv", "evaluation.csv", "credit.npz")
CHECKPOINTS = ("checkpoints/best.npz", "checkpoints/last.npz")
FOLDERS = ("", "checkpoints")
SUFFIX = ".zip"
MAX_ARCHIVE, MAX_UNPACKED = (1 << 32) - 1, 1 << 33
"""Maximum sizes of an archive and of its unpacked contents, in bytes."""
MAX_ENTRIES, MAX_LISTING, MAX_CONTENTS = 20_000, 1 << 24, 1 << 24
"""Maximum number of files in an archive, and maximum sizes in bytes of its file list and of `bundle.json`."""
MAX_NAME = 200
END, END_64 = b"PK\x05\x06", b"PK\x06\x07"
"""The signatures of the last record of a zip archive, and of the record before it in archives larger than 4 GiB."""
END_SIZE, END_64_SIZE, MAX_COMMENT = 22, 20, 1 << 16
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The timestamp given to every file in an archive, so that packing the same runs again yields identical bytes."""
HELD: list[TemporaryDirectory[str]] = []
"""The folders of unpacked archives, which are removed when the process ends."""


def bundle(runs: AnyPath | Sequence[AnyPath], output: str | Path = "runs.zip", *, checkpoints: bool = True) -> Path:
    """Pack runs into one archive, with their versions and the commands that repeat them.

    `upslope.compare`, `figure`, `table` and the commands report, doctor and compare read the archive directly. Packing
    the same runs again produces an identical archive.

    Args:
        runs: run directories.
        output: the archive, a .zip file. An existing file is never overwritten.
        checkpoints: also pack the checkpoints, so that the policies can be loaded and evaluated after unpacking.

    Raises:
        UpslopeError: a folder is not a run or contains links, or the output exists or cannot be written.
    """
    paths = run_paths(runs)
    path = archive_path(output)
    named = dict(zip(names_of(paths), map(RunDirectory, paths), strict=True))
    files = {name: files_of(directory, checkpoints) for name, directory in named.items()}
    there = {directory.path.resolve(): name for name, directory in named.items()}
    described = {name: description_of(name, directory, there) for name, directory in named.items()}
    temporary = temporary_beside(path)
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name, found in files.items():
                described[name]["sha256"] = {
                    inner: pack(archive, f"{name}/{inner}", file) for inner, file in found.items()
                }
            every = list(described.values())
            contents = {"format": BUNDLE_FORMAT, "upslope": versions()["upslope"], "runs": every}
            archive.writestr(entry_of(CONTENTS), json.dumps(contents, indent=1, ensure_ascii=False).encode())
            archive.writestr(entry_of(REPEAT), repeat_text(every).encode())
        with temporary.open("rb") as file, zipfile.ZipFile(file) as archive:
            refuse_long_listing(file)
            check(archive, plain_file(temporary, MAX_ARCHIVE).stat().st_size)
        temporary.replace(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else brief(error)
        raise UpslopeError(
            f"Could not write {path}: {why}. Free disk space, choose a writable folder, or omit the "
            "checkpoints: --no-checkpoints."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def archive_path(output: str | Path) -> Path:
    """Return the path of the archive: `runs.zip` in `output` if that is a folder; a name without a suffix gets `.zip`.

    Raises:
        UpslopeError: the suffix is wrong, the folder is missing, or the file exists.
    """
    path = output_file(output, f"runs{SUFFIX}")
    if path.suffix.lower() != SUFFIX:
        raise UpslopeError(
            f"An archive must be a {SUFFIX} file, but {path} is not. Pass --output a name that ends in {SUFFIX}."
        )
    require_folder(path)
    if path.exists() or path.is_symlink():
        raise UpslopeError(f"{path} already exists and will not be overwritten. Choose another --output.")
    return path


def names_of(runs: Sequence[Path]) -> list[str]:
    """Return the name of each run's folder in the archive, derived from the name of its run directory."""
    names: list[str] = []
    for run in runs:
        plain = "".join(c if is_plain(c) else "_" for c in run.resolve().name).strip(" .")[:MAX_NAME] or "run"
        name, count = plain, 1
        while name.lower() in [other.lower() for other in names]:
            count += 1
            name = f"{plain[: MAX_NAME - 10]}-{count}"
        names.append(name)
    return names


def is_plain(character: str) -> bool:
    """Return whether a character is allowed in file names on every system."""
    return character.isprintable() and character not in '/\\:*?"<>|'


def files_of(directory: RunDirectory, checkpoints: bool) -> dict[str, Path]:
    """Return a run's files, keyed by their paths relative to its folder.

    Checkpoints come first: a run may still be training, and a checkpoint needs all the rows written before it.

    Raises:
        UpslopeError: the folder is not a run, or a file is a link, which could expose a file outside the run.
    """
    directory.config()
    found = {}
    for name in (*(CHECKPOINTS if checkpoints else ()), *TABLES):
        path = directory.path / name
        for place in (path.parent, path):
            if place != directory.path and place.is_symlink():
                raise UpslopeError(
                    f"{place} is a link, and links are not packed. Replace it with a copy of its target."
                )
        if path.exists():
            found[name] = plain_file(path, MAX_UNPACKED)
    return found


def description_of(name: str, directory: RunDirectory, there: Mapping[Path, str]) -> dict[str, Any]:
    """Describe a run for the archive, except for its files. `there` maps each packed run to its name in the archive."""
    description = directory.read()
    command, note = repeating(name, directory, there)
    return {
        "name": name,
        "command": command,
        "note": note,
        "created": description.get("created"),
        "versions": description["versions"],
    }


def repeating(name: str, directory: RunDirectory, there: Mapping[Path, str]) -> tuple[str, str]:
    """Return the command that trains a run again under its name in the archive, and notes on anything else that it
    needs."""
    from upslope.config.command import command_of, wanted_preset
    from upslope.runs.lineage import inherited_from, source_of  # loads JAX, which is not needed for reading
    from upslope.runs.policy import spaces_of

    config = directory.config()
    inherited, notes = {}, []
    for field, flag in {"start_from": "--from", "reference": "--reference"}.items():
        if (other := getattr(config, field)) is not None:
            source = source_of(other, flag)
            called, note = called_in(there, source.directory.path, source.checkpoint)
            config = replace(config, **{field: called or other})
            notes += [note]
    if (begins_with := directory.config().start_from) is not None:
        source = source_of(begins_with)
        try:
            inherited = inherited_from(source.config, config.environment, config.algorithm, wanted_preset(config))
        except UpslopeError:
            notes += ["Settings inherited from that run may be missing here; config.json has them all."]
    is_continuous = spaces_of(directory)[1].is_continuous
    command = command_of(config, is_continuous=is_continuous, inherited=inherited)
    return f"{command} --name {shlex.quote(name)}", " ".join(dict.fromkeys(notes))


def called_in(there: Mapping[Path, str], run: Path, checkpoint: str) -> tuple[str | None, str]:
    """Return another run's name in the archive (None if it is not in the archive) and a note about it."""
    name = there.get(run.resolve())
    if name is None:
        return None, f"It needs the run {run}, which is not in this archive."
    return f"runs/{name}@{checkpoint}", f"It needs {name}, whose command is also listed here."


def repeat_text(runs: Sequence[dict[str, Any]]) -> str:
    """Return the text of REPEAT.md: the commands that repeat the runs."""
    lines = ["# How these runs were made", ""]
    lines += ["`upslope report` reads this archive directly. Each command trains its run again. If it names a file or"]
    lines += ["a custom module, you need that too. Other versions or processors may round differently."]
    for run in runs:
        packages = ", ".join(f"{package} {number}" for package, number in run["versions"].items())
        lines += [
            "",
            f"## {readable(run['name'])}",
            "",
            f"    {readable(run['command'])}",
            "",
            *([readable(run["note"]), ""] if run["note"] else []),
            f"Made with {readable(packages)}.",
        ]
    return "\n".join(lines) + "\n"


def entry_of(name: str) -> zipfile.ZipInfo:
    """Return an archive entry for a file, without any machine-dependent metadata."""
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o644 << 16
    return entry


def pack(archive: zipfile.ZipFile, name: str, path: Path) -> str:
    """Add a file and return the hexadecimal SHA-256 of its content."""
    entry, digest = entry_of(name), hashlib.sha256()
    entry.file_size = path.stat().st_size
    with path.open("rb") as source, archive.open(entry, "w") as file:
        while part := source.read(PART):
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


def unpacked(run: AnyPath) -> list[Path]:
    """Return the run directories that a path refers to.

    An archive is unpacked into a private temporary folder, which is removed when the process ends. Any other path is
    returned unchanged.

    Raises:
        UpslopeError: the archive is damaged or unsafe, or was made by another program.
    """
    path = run_path(run)
    if path.suffix.lower() != SUFFIX or not path.is_file():
        return [path]
    plain_file(path, MAX_ARCHIVE)
    holder = TemporaryDirectory(prefix="upslope-")
    try:
        with path.open("rb") as file:
            refuse_long_listing(file)
            with zipfile.ZipFile(file) as archive:
                entries = check(archive, path.stat().st_size)
                check_contents(archive)
                folder = Path(holder.name) / path.name
                for entry in entries:
                    unpack(archive, entry, folder)
    except Exception as error:  # zipfile and zlib raise a dozen exception types
        holder.cleanup()
        raise UpslopeError(
            f"{path} is not an upslope archive, or it is damaged: {brief(error)}. Nothing in it was kept. "
            "Make one with upslope bundle, or unpack it yourself and pass the folders."
        ) from error
    HELD.append(holder)
    return [folder / name for name in dict.fromkeys(entry.filename.split("/")[0] for entry in entries)]


def refuse_long_listing(file: IO[bytes]) -> None:
    """Refuse an archive with too many files before their list is read.

    Raises:
        ValueError: there are too many files, or the archive has no file list.
    """
    size = file.seek(0, 2)
    file.seek(max(size - END_SIZE - END_64_SIZE - MAX_COMMENT, 0))
    tail = file.read()
    place = tail.rfind(END)
    if tail[-END_SIZE:].startswith(END) and tail.endswith(b"\0\0"):
        place = len(tail) - END_SIZE
    if place < 0 or len(tail) < place + END_SIZE:
        raise ValueError("it is not a zip archive")
    count, listing = int.from_bytes(tail[place + 10 : place + 12], "little"), tail[place + 12 : place + 16]
    is_large = tail[max(place - END_64_SIZE, 0) : place].startswith(END_64)
    if is_large or count > MAX_ENTRIES or int.from_bytes(listing, "little") > MAX_LISTING:
        raise ValueError(f"it lists more than {MAX_ENTRIES:,} files")
    file.seek(0)


def check(archive: zipfile.ZipFile, size: int) -> list[zipfile.ZipInfo]:
    """Check that an archive of `size` bytes contains only what `bundle` writes, and return the entries of the runs.

    Raises:
        ValueError: a file has an unexpected name, is a link, appears twice, or is too large.
    """
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise ValueError(f"it has more than {MAX_ENTRIES:,} files")
    declared = sum(entry.file_size for entry in entries)
    if declared > MAX_UNPACKED or declared > max(SMALL, MAX_RATIO * size):
        raise ValueError(f"it is {size:,} bytes long but declares {declared:,}")
    seen: set[str] = set()
    found = []
    for entry in entries:
        name = entry.filename
        if name.lower() in seen:
            raise ValueError(f"it contains {name} twice")
        seen.add(name.lower())
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFDIR if entry.is_dir() else stat.S_IFREG):
            raise ValueError(f"{name} is not a plain file")
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{name} is encrypted or uses another compression method")
        if is_of_a_run(name) and not entry.is_dir():
            found.append(entry)
        elif name not in (CONTENTS, REPEAT) and not (entry.is_dir() and is_of_a_run(name)):
            raise ValueError(f"it contains {name!r}, which is not part of a run")
    return found


def is_of_a_run(name: str) -> bool:
    """Return whether `bundle` could have given a file or folder this name."""
    run, _, inner = name.partition("/")
    is_name = 0 < len(run) <= MAX_NAME and all(map(is_plain, run)) and run.strip(" .") == run
    return is_name and (inner in (*TABLES, *CHECKPOINTS) or (inner.rstrip("/") in FOLDERS and name.endswith("/")))


def check_contents(archive: zipfile.ZipFile) -> None:
    """Check that an archive was written by `bundle`, in a format that this version can read.

    Raises:
        ValueError, KeyError: it was written by another program or version.
    """
    entry = archive.getinfo(CONTENTS)
    if entry.file_size > MAX_CONTENTS:
        raise ValueError(f"{CONTENTS} is too large")
    contents = parse_json(archive.read(entry).decode("utf-8"))
    number = contents.get("format") if isinstance(contents, dict) else None
    if number != BUNDLE_FORMAT:
        raise ValueError(f"it has the format {number!r}, but this version reads {BUNDLE_FORMAT}")


def unpack(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, folder: Path) -> None:
    """Extract an entry into a folder. Its name must have been checked first, since it could otherwise point outside the
    folder."""
    path = folder.joinpath(*PurePosixPath(entry.filename).parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(entry) as source, path.open("xb") as file:
        shutil.copyfileobj(source, file)
