"""Read run directories into arrays: what every analysis starts from.

Analysis reads what training left on disk and nothing else, so that it works on any run, also one that is still going on
or was broken off.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from upslope.config import Config
from upslope.errors import UpslopeError
from upslope.runs import EVALUATION_COLUMNS, RunDirectory

NOT_METRICS = ("iteration", "seed", "step")


@dataclass(frozen=True)
class Record:
    """A run as arrays. S seeds, I iterations; a seed whose budget was spent earlier has nan in its last iterations."""

    path: Path
    description: dict[str, Any]
    """config.json: format, created, versions, config, axes, spaces."""
    config: Config
    seeds: tuple[int, ...]
    """[S], in the run's order."""
    steps: np.ndarray
    """Environment steps after each iteration [S, I]."""
    metrics: dict[str, np.ndarray]
    """name → [S, I]; nan where a row has no finite number."""
    episodes: np.ndarray
    """Every finished training episode: a structured array of `step`, `seed`, `return`, `length`."""

    @property
    def name(self) -> str:
        """The run directory's own name."""
        return self.path.resolve().name

    @cached_property
    def evaluations(self) -> np.ndarray:
        """Evaluation episodes: a structured array with the columns of evaluation.csv; empty where there are none."""
        return read_evaluations(RunDirectory(self.path).evaluation_path)

    def episodes_of(self, seed: int) -> np.ndarray:
        """One seed's training episodes, in the order in which they ended."""
        mine = self.episodes[self.episodes["seed"] == seed]
        return mine[np.argsort(mine["step"], kind="stable")]


def read_record(run: str | Path) -> Record:
    """Read a run directory.

    A row that was cut off while it was written, the last of a run that was killed, is left out.

    Raises:
        UpslopeError: not a run directory, damaged, or nothing was trained.
    """
    directory = RunDirectory(run)
    config = directory.config()
    rows = metric_rows(directory.metrics_path)
    if not rows:
        raise UpslopeError(f"{run} holds no iteration yet: nothing was trained, so there is nothing to look at.")
    seeds = tuple(config.seed_list())
    by_seed = {seed: [row for row in rows if row["seed"] == seed] for seed in seeds}
    count = max(len(mine) for mine in by_seed.values())
    names = sorted({name for row in rows for name in row} - set(NOT_METRICS))

    def array(name: str) -> np.ndarray:
        table = np.full((len(seeds), count), np.nan)
        for s, seed in enumerate(seeds):
            mine = [row.get(name) for row in by_seed[seed]]
            table[s, : len(mine)] = [np.nan if x is None else x for x in mine]
        return table

    return Record(
        path=Path(run),
        description=directory.read(),
        config=config,
        seeds=seeds,
        steps=array("step"),
        metrics={name: array(name) for name in names},
        episodes=read_episodes(directory),
    )


def metric_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without a last one that is incomplete."""
    try:
        lines = path.read_text("utf-8").split("\n")
        rows = [json.loads(line) for line in lines[:-1]]
        for row in rows:
            if not (isinstance(row, dict) and all(isinstance(row[name], int) for name in NOT_METRICS)):
                raise TypeError(f"a row must be an object with {', '.join(NOT_METRICS)}")
            if not all(x is None or isinstance(x, int | float) for x in row.values()):
                raise TypeError("a metric must be a number or null")
    except OSError as error:
        raise UpslopeError(f"Could not read {path}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UpslopeError(f"{path} is damaged or not upslope's: {type(error).__name__}: {error}.") from error
    return rows


def read_episodes(directory: RunDirectory) -> np.ndarray:
    """The training episodes; an unreadable file is named."""
    try:
        return directory.episodes()
    except (OSError, ValueError) as error:
        raise UpslopeError(f"{directory.episodes_path} is damaged or not upslope's: {error}.") from error


def read_evaluations(path: Path) -> np.ndarray:
    """evaluation.csv as a structured array."""
    text = {"mode": "U16", "checkpoint": "U8"}
    kind = np.dtype([(n, text.get(n, "f8" if n == "return" else "i8")) for n in EVALUATION_COLUMNS])
    if not path.exists():
        return np.zeros(0, kind)
    try:
        return np.loadtxt(path.read_text("utf-8").splitlines()[1:], delimiter=",", dtype=kind, ndmin=1)
    except (OSError, ValueError) as error:
        raise UpslopeError(f"{path} is damaged or not upslope's: {error}.") from error
