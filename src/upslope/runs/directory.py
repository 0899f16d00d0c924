"""The run directory. Only training writes or modifies the results of training.

    config.json        format, versions, the full config, the spaces
    metrics.jsonl      a row per iteration and seed
    episodes.csv       every finished training episode: step, seed, return, length
    evaluation.csv     evaluation episodes
    checkpoints/       last.npz and best.npz
    tracking/          what was sent to experiment trackers, if any

Rows are appended, and each checkpoint records the sizes and the hashes of the files. Resuming truncates the files to
those sizes, so the files of a resumed run are identical to those of an uninterrupted one. Files that were changed are
refused.
"""

import json
import os
import platform
import reprlib
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from upslope.config.config import Config, canonical
from upslope.core.files import MAX_TABLE, MAX_TEXT, AnyPath, plain_file, safe_path, writable
from upslope.core.messages import readable, shell
from upslope.core.reading import brief, csv_type, damaged, parse_json, read_csv, read_rows
from upslope.core.storage import write_atomically
from upslope.environments.packages import registered_version
from upslope.errors import UpslopeError
from upslope.runs.unchanged import CRLF, PrefixDigest, change_in

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

RUN_FORMAT = 1
EPISODE_COLUMNS = ("step", "seed", "return", "length")
EVALUATION_COLUMNS = ("seed", "mode", "checkpoint", "environment_seed", "return", "length", "terminated")
EVALUATION_TEXT = {"mode": "U16", "checkpoint": "U8"}
EVALUATION_LIMIT = 10_000
"""Number of steps after which an evaluation episode is truncated if neither the run nor the environment has a limit."""
INFO = "info/"
"""The prefix of the columns that store numbers from `info`."""
STOP = "stop/return"
"""When a seed reaches --stop-at-return, its last row records the return under this key."""
MAX_HINTED = 5
"""Maximum number of runs that a hint lists."""
PACKAGES = ("upslope", "jax", "jaxlib", "optax", "gymnasium", "numpy")
ENGINES = {"mujoco": "mujoco", "box2d": "Box2D", "ale-py": "ale_py"}
"""Packages that simulate Gymnasium's environments → the module that is loaded when an environment uses the package."""


def run_path(run: Any) -> Path:
    """Return the folder of a run, which users give as a path or as the result of `upslope.train`.

    Raises:
        UpslopeError: it is neither.
    """
    if not isinstance(run, str | os.PathLike):
        raise UpslopeError(
            f"A run is given by its folder, e.g. runs/CartPole-v1-ppo, or as the result of upslope.train, not as "
            f"{reprlib.repr(run)}."
        )
    return Path(run)


def run_paths(runs: Any) -> list[Path]:
    """Return the folders of one or several runs, which users give as for `run_path`.

    Raises:
        UpslopeError: one of them is not a run, or none was given.
    """
    if isinstance(runs, str | os.PathLike) or not isinstance(runs, Iterable):
        return [run_path(runs)]
    paths = [run_path(run) for run in runs]
    if not paths:
        raise UpslopeError("No run was given. Name at least one run directory, e.g. runs/*")
    return paths


class RunDirectory:
    """A run on disk."""

    def __init__(self, path: AnyPath):
        self.path = run_path(path)
        self.metrics_path = self.path / "metrics.jsonl"
        self.episodes_path = self.path / "episodes.csv"
        self.evaluation_path = self.path / "evaluation.csv"
        self.last = self.path / "checkpoints" / "last.npz"
        self.best = self.path / "checkpoints" / "best.npz"
        self.written = {path.name: PrefixDigest(path) for path in (self.metrics_path, self.episodes_path)}

    def create(
        self,
        config: Config,
        spaces: dict[str, Any],
        axes: dict[str, Any],
        networks: Sequence[str] = (),
        lineage: dict[str, Any] | None = None,
        fill: Callable[["RunDirectory"], None] = lambda _: None,
        *,
        is_mixed: bool = False,
    ) -> None:
        """Create the folder and its first files atomically. A folder that is not empty is refused.

        `lineage` describes the run that this one starts from, and `fill` writes further initial files. `is_mixed` means
        that seeds may train on different processors, whose results may differ in the last digits.

        The folder is created under a temporary name and then renamed. If two runs use the same name, the second fails,
        and a killed process never leaves an incomplete run.
        """
        description = {
            "format": RUN_FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(config.environment),
            "config": config.to_json(),
            "axes": axes,
            "spaces": spaces,
            "networks": list(networks),
        } | ({} if lineage is None else {"lineage": lineage})
        description |= {"mixed_processors": True} if is_mixed else {}
        place = self.path.resolve()
        temporary = place.with_name(f".{place.name[:200]}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            self.refuse_taken()
            (temporary / "checkpoints").mkdir(parents=True)
            text = json.dumps(description, indent=2, allow_nan=False)
            write_atomically(temporary / "config.json", text.encode())
            (temporary / self.episodes_path.name).write_bytes(episodes_header(config).encode())
            (temporary / self.metrics_path.name).touch()
            fill(RunDirectory(temporary))
            temporary.replace(place)
        except UpslopeError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            self.refuse_taken()
            words = error.strerror or error
            raise UpslopeError(f"Could not create {self.path}: {words}. Choose another folder.") from error

    def refuse_taken(self) -> None:
        """Refuse a folder that is not empty."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UpslopeError(
                f"{self.path} already exists and will not be overwritten. Resume it: "
                f"{shell('upslope', 'resume', self.path)} — or choose another --name."
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run for writing by this process. If the process is killed, the system releases the lock."""
        self.refuse_links()
        with (self.path / "config.json").open("rb") as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    resume = shell("upslope", "resume", self.path)
                    raise UpslopeError(
                        f"{self.path} is being trained by another process, and two would corrupt each other's rows. "
                        f"Wait until it finishes, or stop it and resume: {resume} — or train under another --name."
                    ) from error
                except OSError:
                    pass  # a file system without locks
            for left_over in self.last.parent.glob(".*.tmp"):
                with suppress(OSError):
                    left_over.unlink()
            yield

    @contextmanager
    def marked_mixed(self) -> Iterator[None]:
        """Record in the config.json of a locked run that it continues on different processors.

        The file is replaced, so the new file is locked too. The old one stays locked for processes that have it open.
        """
        path = self.path / "config.json"
        described = json.loads(path.read_text("utf-8"))
        if described.get("mixed_processors"):
            yield
            return
        write_atomically(path, json.dumps(described | {"mixed_processors": True}, indent=2, allow_nan=False).encode())
        with self.locked():
            yield

    def refuse_links(self) -> None:
        """Raise an error if training would write through a link or to a pipe or device."""
        files = [self.path / "config.json", self.metrics_path, self.episodes_path, self.last, self.best]
        boards = list((self.path / "tensorboard").glob("seed_*"))
        for folder in (self.last.parent, self.path / "tensorboard", *boards):
            safe_path(self.path, folder, is_folder=True)
        for path in files:
            safe_path(self.path, path)

    @property
    def has_begun(self) -> bool:
        """Whether there is a checkpoint or a row. A run that was killed right after its creation has neither."""
        return self.last.exists() or has_line(self.metrics_path, 1) or has_line(self.episodes_path, 2)

    def read(self) -> dict[str, Any]:
        """Read and check config.json."""
        path = self.path / "config.json"
        if not path.is_file():
            raise UpslopeError(not_a_run(self.path))
        plain_file(path, MAX_TEXT)
        try:
            description = parse_json(path.read_text("utf-8"))
            number, _ = description["format"], description["config"]["environment"]
            missing = [k for k in ("versions", "axes", "spaces") if not isinstance(description[k], dict)]
            if missing:
                raise TypeError(f"{missing} must be objects")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise damaged(path, error) from error
        if number != RUN_FORMAT:
            written_by = description["versions"].get("upslope", "another version")
            raise UpslopeError(
                f"{self.path} was written by upslope {reprlib.repr(written_by)} in format {reprlib.repr(number)}; this "
                f"is upslope {versions()['upslope']}, which reads format {RUN_FORMAT}. Use that version for this run."
            )
        return description

    def config(self) -> Config:
        """Return the run's config."""
        description = self.read()
        settings = description["config"]
        try:
            return Config(**canonical(before_there_were(description["spaces"], settings) | settings))
        except (TypeError, ValueError, AttributeError, UpslopeError) as error:
            raise UpslopeError(f"{self.path / 'config.json'} does not contain a config: {brief(error)}.") from error

    def append(self, path: Path, text: str) -> None:
        """Append rows; if the disk is full, the last checkpoint stays valid."""
        try:
            with writable(self.path, path).open("a", encoding="utf-8", newline="\n") as file:
                file.write(text)
        except OSError as error:
            raise self.unwritable(path, error) from error

    def unwritable(self, path: Path, error: OSError) -> UpslopeError:
        """Return the error for a growing file that cannot be written."""
        remedy = "Free disk space, make sure that the folder is writable, and"
        again = "try again" if path == self.evaluation_path else f"resume: {shell('upslope', 'resume', self.path)}"
        return UpslopeError(
            f"Could not write {path}: {error.strerror or error}. The last checkpoint is intact. {remedy} {again}"
        )

    def sizes(self) -> dict[str, int]:
        """Return the sizes of the growing files, after flushing them to disk."""
        found = {}
        for path in (self.metrics_path, self.episodes_path):
            try:
                with writable(self.path, path).open("ab") as file:
                    os.fsync(file.fileno())
                    found[path.name] = file.tell()
            except OSError as error:
                raise self.unwritable(path, error) from error
        return found

    def digests(self, sizes: dict[str, int]) -> dict[str, str]:
        """Return the SHA-256 of the growing files up to these sizes. Only bytes that were added since the last call are
        read."""
        try:
            return {name: self.written[name].up_to(size) for name, size in sizes.items()}
        except OSError as error:
            raise self.unwritable(Path(error.filename or self.path), error) from error

    def headers(self, config: Config) -> dict[Path, str]:
        """The growing files, with the first line of each; it is empty for a file of JSON objects."""
        return {self.metrics_path: "", self.episodes_path: episodes_header(config)}

    def truncate(self, sizes: dict[str, int], digests: dict[str, str]) -> None:
        """Truncate the growing files to their sizes at a checkpoint. If any file does not begin with what had been
        written by then, none is changed. `digests` is empty for a checkpoint of an older version."""
        headers = self.headers(self.config())
        for path, header in headers.items():
            before = digests.get(path.name)
            digest = None if before is None else (self.written[path.name], before)
            if change := change_in(path, sizes[path.name], header, digest):
                raise UpslopeError(self.not_resumable(path, change))
        for path in headers:
            try:
                with writable(self.path, path).open("rb+") as file:
                    file.truncate(sizes[path.name])
            except OSError as error:
                raise self.unwritable(path, error) from error

    def not_resumable(self, path: Path, change: str) -> str:
        """Say why a change in a growing file prevents a run from being resumed, and what to do about it."""
        restore = "Convert them back to LF" if change == CRLF else "Restore it from a copy"
        onward = shell("upslope", "train", "--from", self.path, "--name", "NEW")
        return (
            f"{path} {change}, so the run cannot be resumed, and nothing was changed. {restore}, or train its agents "
            f"further in a new run: {onward}"
        )

    def metrics(self) -> list[dict[str, Any]]:
        """Return all rows of metrics.jsonl, except an incomplete last one."""
        return [row for some in self.metric_rows() for row in some]

    def metric_rows(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of `metrics` in batches, since the rows of many seeds do not fit in memory as dictionaries."""
        return read_rows(self.metrics_path)

    def episodes(self) -> np.ndarray:
        """Return all finished training episodes, as a structured array with fields `step`, `seed`, `return`, `length`,
        and `info/…` for each key of --log-info."""
        return read_csv(self.episodes_path, (*EPISODE_COLUMNS, *info_columns(self.config())))

    def evaluations(self) -> np.ndarray:
        """Return all evaluation episodes, as a structured array with the columns of evaluation.csv."""
        path, columns, text = self.evaluation_path, evaluation_columns(self.config()), EVALUATION_TEXT
        return read_csv(path, columns, text) if path.exists() else np.zeros(0, csv_type(columns, text))

    def add_evaluation(self, rows: Iterable[Sequence[Any]], place: Callable[[], Path] | None = None) -> Path:
        """Add either all of the evaluation episodes or none, and return the file that holds them.

        The file is evaluation.csv, or the path that `place` returns; `place` is called while no other process is
        writing.

        The new episodes are the first ones of their seed, mode, checkpoint and environment seed under the run's own
        step limit. They therefore replace the same number of stored episodes; any later stored episodes are kept. A row
        or header that an earlier write left incomplete is repaired. If a row in the middle is unreadable, the original
        file is kept as `evaluation.csv.damaged`."""
        text = "".join(",".join(map(str, row)) + "\n" for row in rows)
        columns = evaluation_columns(self.config())
        with self.exclusive():
            path = safe_path(self.path, self.evaluation_path if place is None else place())
            old = plain_file(path, MAX_TABLE).read_bytes() if path.exists() else b""
            whole, is_lossless = repaired(old.decode("utf-8", "replace"), columns)
            if not is_lossless:
                write_atomically(safe_path(self.path, path.with_name(path.name + ".damaged")), old)
            write_atomically(path, with_these(whole, text).encode())
        return path

    def evaluations_at(self, step: int) -> Path:
        """Return the file for evaluations of the agent at this step, which is used if the agent's checkpoint no longer
        exists."""
        return self.path / f"evaluation-at-step-{step}.csv"

    def set_aside_evaluations(self, aside: Path) -> Path | None:
        """Rename evaluation.csv, because the agents whose results it contains were trained further. Return its new
        path, or None if the file does not exist."""
        path = safe_path(self.path, self.evaluation_path)
        with self.exclusive():  # an evaluation that is being stored right now is set aside too
            return path.replace(safe_path(self.path, aside)) if path.exists() else None

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Lock the folder, so that other processes wait before they add rows to its files."""
        if fcntl is None:
            yield
            return
        folder = os.open(self.path, os.O_RDONLY)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def before_there_were(spaces: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that apply to runs of older versions, which had no masks and read images with perceptrons."""
    if "encoder" in settings:
        return {"masks": False}
    # Imported here because they import JAX, which takes a second, and reports on newer runs do not need it.
    from upslope.models.composed import PERCEPTRON, networks_of
    from upslope.models.description import from_json
    from upslope.models.encoders import ENCODERS

    try:
        has_images = bool(networks_of(from_json(spaces["observation"], ENCODERS)))
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        has_images = False  # the error is raised later, when the spaces are read
    return {"masks": False} | ({"encoder": [PERCEPTRON]} if has_images else {})


def has_line(path: Path, number: int) -> bool:
    """Return whether a file has a line of this number, counted from 1, even an incomplete one."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return len(list(islice(file, number))) == number


def episodes_header(config: Config) -> str:
    """Return the first line of episodes.csv."""
    return ",".join((*EPISODE_COLUMNS, *info_columns(config))) + "\n"


def info_columns(config: Config) -> tuple[str, ...]:
    """Return the columns for the numbers from `info` that a run stores for every episode."""
    return tuple(INFO + key for key in config.log_info)


def evaluation_columns(config: Config) -> tuple[str, ...]:
    """Return the columns of evaluation.csv."""
    return (*EVALUATION_COLUMNS, *info_columns(config))


def repaired(content: str, columns: Sequence[str] = EVALUATION_COLUMNS) -> tuple[str, bool]:
    """Return an evaluation file reduced to its header and readable rows, and whether at most an incomplete last row was
    dropped."""
    header = ",".join(columns)
    first, *lines = content.split("\n")
    kept = [line for line in lines if is_evaluation_row(line, len(columns))]
    is_lossless = (first == header or (header.startswith(first) and not lines)) and kept in (lines, lines[:-1])
    return "\n".join([header, *kept]) + "\n", is_lossless


def with_these(whole: str, added: str) -> str:
    """Merge the added rows into an evaluation file.

    For each seed, mode, checkpoint and environment seed, the added rows replace the first episodes, and later stored
    episodes follow them."""
    header, *lines = whole.splitlines()
    new, stored = by_episodes(added.splitlines()), by_episodes(lines)
    kept = [line for line in lines if episodes_key(line) not in new]
    both = [line for key, rows in new.items() for line in (*rows, *stored.get(key, [])[len(rows) :])]
    return "\n".join([header, *kept, *both]) + "\n"


def by_episodes(lines: Iterable[str]) -> dict[tuple[str, ...], list[str]]:
    """Group rows by seed, mode, checkpoint and environment seed, in order."""
    found: dict[tuple[str, ...], list[str]] = {}
    for line in lines:
        found.setdefault(episodes_key(line), []).append(line)
    return found


def episodes_key(line: str) -> tuple[str, ...]:
    """Return the seed, mode, checkpoint and environment seed of a row."""
    return tuple(line.split(",")[:4])


def is_evaluation_row(line: str, num_columns: int = len(EVALUATION_COLUMNS)) -> bool:
    """Return whether the line is a complete row."""
    cells = line.split(",")
    try:
        seed, _, _, environment_seed, score, length, terminated, *info = cells
        numbers = [int(seed), int(environment_seed), float(score), int(length), int(terminated), *map(float, info)]
        return len(numbers) == num_columns - 2
    except ValueError:
        return False


def not_a_run(path: Path) -> str:
    """Explain why a path is not a run, and suggest similar names if nothing exists there."""
    inside = runs_in(path)
    beside = {Path(run).name: run for run in (*runs_in(path.parent), *runs_in(Path("runs")))}
    near = [beside[name] for name in get_close_matches(path.name, beside, n=3)]
    if inside:
        why, hint = (
            "it has no config.json",
            f"It contains runs: {', '.join(inside[:MAX_HINTED])}{' …' * (len(inside) > MAX_HINTED)}",
        )
    elif path.exists():
        why, hint = "it is a file", "`ls runs` lists your runs."
        if path.is_dir():
            why = "its config.json is not a file" if (path / "config.json").exists() else "it has no config.json"
        if path.suffix.lower() == ".zip":
            hint = "report, compare, figure, table and doctor read an archive; for anything else, unpack it: " + shell(
                "python", "-m", "zipfile", "-e", path, path.with_suffix("")
            )
    else:
        why = f"there is no such folder{'' if path.is_absolute() else f' in {Path.cwd()}'}"
        hint = f"Did you mean {' or '.join(near)}?" if near else "`upslope train` creates one."
    return f"{path} is not a run directory: {why}. {hint}"


def runs_in(folder: Path) -> list[str]:
    """Return the paths of the runs directly in a folder."""
    return sorted(str(found.parent) for found in folder.glob("*/config.json"))


def same_run(path: Path, config: Config) -> Path:
    """Return the path if the run there has this config; otherwise raise an error that lists the differences."""
    there = RunDirectory(path).config()
    if replace(there, preset=None) == replace(config, preset=None):
        return path
    differ = {
        n: (getattr(there, n), getattr(config, n)) for n in vars(there) if getattr(there, n) != getattr(config, n)
    }
    words = ", ".join(f"{name} was {old}, now {new}" for name, (old, new) in differ.items())
    raise UpslopeError(
        f"{path} was trained with another config ({words}), so it cannot be resumed with these settings. Use the same "
        f"flags, or {shell('upslope', 'resume', path)}, or another --name."
    )


def versions(environment: str = "") -> dict[str, str]:
    """Return the machine type and the versions of Python and of the packages that affect results.

    Simulation packages are included only if they are loaded. The package imported for the environment's id is included
    too."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in (*PACKAGES, *(name for name, module in ENGINES.items() if module in sys.modules)):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found | registered_version(environment)


RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{k}" for port in ("com", "lpt") for k in range(1, 10))}
"""File names that Windows reserves."""
MAX_NAME = 200
"""Maximum length of a name in bytes. File systems allow 255, and files next to a run have slightly longer names."""


def check_name(name: str) -> str:
    """Return the name of a run or a ladder if it is a valid name for a single folder.

    Raises:
        UpslopeError: the name points to another folder, or a file system would reject it.
    """
    shown = readable(name if len(name) <= 60 else name[:60] + "…")
    if len(name.encode("utf-8", "replace")) > MAX_NAME:
        why = f"has {len(name):,} characters, and at most {MAX_NAME} bytes are allowed"
    elif not name.strip() or not name.isprintable():
        why = "is empty, or contains non-printable characters"
    elif name.startswith(".") or "/" in name or "\\" in name:
        why = "is in another folder or hidden; --folder sets where runs are stored"
    elif name.split(".")[0].lower() in RESERVED or name != name.strip():
        why = "is reserved on some systems, or begins or ends with a space"
    else:
        return name
    raise UpslopeError(f'--name "{shown}" cannot be the name of a folder: it {why}. Choose another --name.')


def free_name(folder: Path, name: str) -> Path:
    """Return `folder/name`, or the first free name among `name-2`, `name-3` …."""
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")[: MAX_NAME // 4] or "run"
    path, count = folder / safe, 1
    while path.exists():
        count += 1
        path = folder / f"{safe}-{count}"
    return path
