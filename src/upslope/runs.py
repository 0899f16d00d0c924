"""The run directory: training writes it, and nothing else changes what training wrote.

    config.json        format, versions, the full config, the spaces
    metrics.jsonl      a row per iteration and seed
    episodes.csv       every finished training episode: step, seed, return, length
    evaluation.csv     evaluation episodes
    checkpoints/       last.npz and best.npz

Rows are appended, and a checkpoint records how far the files reached; resuming cuts them there, so that a resumed
run's files equal an uninterrupted one's.
"""

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from upslope.config import Config, canonical
from upslope.errors import UpslopeError
from upslope.storage import write_atomically

RUN_FORMAT = 1
EPISODE_COLUMNS = ("step", "seed", "return", "length")
EVALUATION_COLUMNS = ("seed", "mode", "checkpoint", "environment_seed", "return", "length", "terminated")
PACKAGES = ("upslope", "jax", "jaxlib", "equinox", "optax", "gymnasium", "numpy")


class RunDirectory:
    """A run on disk."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.metrics_path = self.path / "metrics.jsonl"
        self.episodes_path = self.path / "episodes.csv"
        self.evaluation_path = self.path / "evaluation.csv"
        self.last = self.path / "checkpoints" / "last.npz"
        self.best = self.path / "checkpoints" / "best.npz"

    def create(self, config: Config, spaces: dict[str, Any], axes: dict[str, Any]) -> None:
        """Make the folder and write config.json; refuse a folder that holds something."""
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UpslopeError(
                f"{self.path} exists already, and nothing is overwritten. Go on with it: upslope resume {self.path} "
                "— or choose another --name."
            )
        try:
            self.last.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UpslopeError(f"Could not make {self.path}: {error.strerror}. Choose another folder.") from error
        description = {
            "format": RUN_FORMAT,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "config": config.to_json(),
            "axes": axes,
            "spaces": spaces,
        }
        write_atomically(self.path / "config.json", json.dumps(description, indent=2, allow_nan=False).encode())
        self.append(self.episodes_path, ",".join(EPISODE_COLUMNS) + "\n")
        self.append(self.metrics_path, "")

    def read(self) -> dict[str, Any]:
        """config.json, checked."""
        path = self.path / "config.json"
        if not path.is_file():
            raise UpslopeError(f"{self.path} is not a run directory: it has no config.json. `ls runs` shows yours.")
        try:
            description = json.loads(path.read_text("utf-8"))
            number, _ = description["format"], description["config"]["environment"]
            missing = [k for k in ("versions", "axes", "spaces") if not isinstance(description[k], dict)]
            if missing:
                raise TypeError(f"{missing} must be objects")
        except (ValueError, KeyError, TypeError) as error:
            raise UpslopeError(f"{path} is damaged or not upslope's: {type(error).__name__}: {error}.") from error
        if number != RUN_FORMAT:
            written_by = description.get("versions", {}).get("upslope", "another version")
            raise UpslopeError(
                f"{self.path} was written by upslope {written_by} in format {number}; this is upslope "
                f"{versions()['upslope']}, which reads format {RUN_FORMAT}. Use that version for this run."
            )
        return description

    def config(self) -> Config:
        """The run's config."""
        settings = self.read()["config"]
        try:
            return Config(**canonical(settings))
        except (TypeError, AttributeError, UpslopeError) as error:
            raise UpslopeError(f"{self.path / 'config.json'} does not hold a config: {error}.") from error

    def append(self, path: Path, text: str) -> None:
        """Append rows; a full disk leaves the last checkpoint valid."""
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise UpslopeError(
                f"Could not write {path}: {error.strerror or error}. The last checkpoint is intact: make room, then "
                f"upslope resume {self.path}"
            ) from error

    def sizes(self) -> dict[str, int]:
        """How far the growing files reach, once all of that is on disk."""
        for path in (self.metrics_path, self.episodes_path):
            with path.open("ab") as file:
                os.fsync(file.fileno())
        return {p.name: p.stat().st_size if p.exists() else 0 for p in (self.metrics_path, self.episodes_path)}

    def cut(self, sizes: dict[str, int]) -> None:
        """Cut the growing files back to where a checkpoint saw them."""
        for path in (self.metrics_path, self.episodes_path):
            size = int(sizes.get(path.name, 0))
            if size == 0 and not path.exists():
                continue
            if not path.exists() or path.stat().st_size < size:
                raise UpslopeError(f"{path} is shorter than its checkpoint remembers, so rows are lost; cannot resume.")
            with path.open("rb+") as file:
                file.truncate(size)

    def metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl."""
        return [json.loads(line) for line in self.metrics_path.read_text("utf-8").splitlines()]

    def episodes(self) -> np.ndarray:
        """All finished training episodes, as a structured array with `step`, `seed`, `return`, `length`."""
        return read_csv(self.episodes_path, EPISODE_COLUMNS)

    def add_evaluation(self, rows: Iterable[Sequence[Any]]) -> None:
        """Append evaluation episodes."""
        text = "".join(",".join(map(str, row)) + "\n" for row in rows)
        header = "" if self.evaluation_path.exists() else ",".join(EVALUATION_COLUMNS) + "\n"
        self.append(self.evaluation_path, header + text)


def same_run(path: Path, config: Config) -> Path:
    """The path, if the run there has this config; otherwise say what differs."""
    there = RunDirectory(path).config()
    if replace(there, preset=None) == replace(config, preset=None):
        return path
    differ = {
        n: (getattr(there, n), getattr(config, n)) for n in vars(there) if getattr(there, n) != getattr(config, n)
    }
    words = ", ".join(f"{name} was {old}, now {new}" for name, (old, new) in differ.items())
    raise UpslopeError(
        f"{path} was trained with another config ({words}), and going on with it would be neither run. Use the same "
        f"flags, or upslope resume {path}, or another --name."
    )


def read_csv(path: Path, names: Sequence[str]) -> np.ndarray:
    """A CSV of numbers with a header, as a structured array."""
    kind = np.dtype([(name, "f8" if name == "return" else "i8") for name in names])
    rows = path.read_text("utf-8").splitlines()[1:]
    return np.loadtxt(rows, delimiter=",", dtype=kind, ndmin=1) if rows else np.zeros(0, kind)


def versions() -> dict[str, str]:
    """Python, the machine, and the packages that decide the numbers."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def free_name(folder: Path, name: str) -> Path:
    """`folder/name`, or the first of `name-2`, `name-3` … that is free."""
    safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.")
    path, count = folder / safe, 1
    while path.exists():
        count += 1
        path = folder / f"{safe}-{count}"
    return path
