"""Run directories as arrays, the input of every analysis.

An analysis reads only what training wrote to disk, so it works on any run, including one that is still training or was
interrupted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from upslope.config.config import Config
from upslope.core.grouping import in_groups
from upslope.core.reading import damaged
from upslope.core.space_descriptions import check_spaces
from upslope.errors import UpslopeError
from upslope.runs.bundles import unpacked
from upslope.runs.directory import INFO, STOP, RunDirectory

NOT_METRICS = ("iteration", "seed", "step")
MAX_COUNT, MAX_NUMBER = 2**53, 1e60
MAX_COLUMNS, MAX_PADDING = 2000, 200
"""Limits against mostly empty tables, which could exceed memory; no real run has one."""


@dataclass(frozen=True)
class Record:
    """A run as arrays. S seeds, I iterations; a seed that finished earlier than others ends in nan."""

    path: Path
    description: dict[str, Any]
    """config.json: format, created, versions, config, axes, spaces."""
    config: Config
    seeds: tuple[int, ...]
    """The S seeds, in the run's order."""
    steps: np.ndarray
    """Number of environment steps after each iteration [S, I]."""
    metrics: dict[str, np.ndarray]
    """Name → values [S, I]; nan where a row has no finite number."""
    episodes: np.ndarray
    """All finished training episodes: a structured array of `step`, `seed`, `return`, `length`, and `info/…`."""
    stopped: dict[int, int] = field(default_factory=dict)
    """Seed → the step at which it reached --stop-at-return, for those that did."""
    metric: str = "return"
    """What stands as the `return` of an episode, in training and evaluation."""

    @property
    def name(self) -> str:
        """The name of the run directory."""
        return self.path.resolve().name

    @property
    def versions(self) -> dict[str, Any]:
        """The versions of the packages that made the run."""
        return self.description["versions"]

    @cached_property
    def reached(self) -> int:
        """The number of steps that every seed has reached; 0 if a seed has no row yet. One that has stopped counts with
        its whole budget, since its agent is the same at every later step."""
        reached = np.fmax.reduce(self.steps, axis=1, initial=0)
        is_over = [seed in self.stopped for seed in self.seeds]
        return int(np.where(is_over, np.maximum(reached, self.config.steps), reached).min())

    @property
    def spent(self) -> int:
        """The steps of the budget that every seed has spent; for a run on recorded data, the whole budget."""
        return self.config.steps if self.config.data is not None else min(self.config.steps, self.reached)

    @property
    def is_finished(self) -> bool:
        """Whether every seed has spent its budget."""
        return self.spent >= self.config.steps

    @cached_property
    def evaluations(self) -> np.ndarray:
        """Evaluation episodes: a structured array with the columns of evaluation.csv; empty if there are none."""
        directory = RunDirectory(self.path)
        rows = rows_of_seeds(directory.evaluation_path, directory.evaluations(), self.seeds)
        return measured(rows, self.metric, self.path)

    def measured_by(self, metric: str) -> "Record":
        """The same run with another number of each episode in place of its return: a key of --log-info, or `length`.
        Episodes without it are left out.

        Raises:
            UpslopeError: the run did not keep that number.
        """
        if metric == self.metric:
            return self
        return replace(self, metric=metric, episodes=measured(self.episodes, metric, self.path))

    def episodes_of(self, seed: int) -> np.ndarray:
        """The training episodes of one seed, in the order in which they ended."""
        order, seeds = self.order_of_episodes
        first, last = np.searchsorted(seeds, [seed, seed + 1])
        return self.episodes[order[first:last]]

    @cached_property
    def order_of_episodes(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows of the episodes by seed and step, and their seeds in this order."""
        order = np.lexsort((self.episodes["step"], self.episodes["seed"])).astype(np.uint32)
        return order, self.episodes["seed"][order]

    def with_seeds(self, seeds: tuple[int, ...]) -> "Record":
        """The same run restricted to some of its seeds."""
        rows = [self.seeds.index(seed) for seed in seeds]
        metrics = {name: x[rows] for name, x in self.metrics.items()}
        episodes = self.episodes[np.isin(self.episodes["seed"], seeds)]
        return replace(self, seeds=seeds, steps=self.steps[rows], metrics=metrics, episodes=episodes)


def measured(rows: np.ndarray, metric: str, path: Path) -> np.ndarray:
    """Episodes with the number of this name in place of their return; those without it are left out."""
    if metric == "return":
        return rows
    names = rows.dtype.names or ()
    column = metric if metric == "length" else INFO + metric
    if column not in names:
        kept = ", ".join(["return", "length", *(name.removeprefix(INFO) for name in names if name.startswith(INFO))])
        raise UpslopeError(
            f"{path} kept no {metric} of its episodes, only {kept}. Train with --log-info {metric} to keep it."
        )
    rows = rows[np.isfinite(rows[column])].copy()
    rows["return"] = rows[column]
    return rows


def read_records(
    runs: str | Path | Sequence[str | Path], *, with_evaluations: bool = False
) -> tuple[list[Record], list[str]]:
    """Read each folder once, and each run of an archive that `upslope.bundle` made; return a warning for each that is
    not a readable run, since `runs/*` may match other things. `with_evaluations` also reads evaluations, and leaves
    out a run whose evaluation.csv is damaged.

    Raises:
        UpslopeError: a folder does not exist, or no run is left.
    """
    runs = [runs] if isinstance(runs, str | Path) else runs
    if not runs:
        raise UpslopeError("No run is given. Name at least one run directory, e.g. runs/*")
    records: list[Record] = []
    warnings = []
    paths: list[Path] = []
    for run in runs:
        try:
            paths += unpacked(run)
        except UpslopeError as error:
            if len(runs) == 1:
                raise
            warnings.append(f"left out: {error}")
    for path in paths:
        if any(record.path.resolve() == path.resolve() for record in records):
            warnings.append(f"left out: {path} is given more than once")
            continue
        try:
            record = read_record(path)
            if with_evaluations:
                _ = record.evaluations
            records.append(record)
        except UpslopeError as error:
            if len(paths) == 1 or not path.exists():
                raise
            warnings.append(f"left out: {error}")
    if not records:
        raise UpslopeError(f"None of these {len(runs)} paths is a readable run. " + " ".join(warnings))
    return records, warnings


def read_record(run: str | Path) -> Record:
    """Read a run directory.

    An incomplete last row, left by a run that was killed while writing, is ignored.

    Raises:
        UpslopeError: this is not a run directory, it is damaged, or it has no iteration yet.
    """
    directory = RunDirectory(run)
    config = directory.config()
    seeds = tuple(config.seed_list())
    names, table = metric_table(directory)
    mine = np.isin(table[:, names.index("seed")], seeds)
    table = table if mine.all() else table[mine]
    if not len(table):
        raise UpslopeError(f"{run} has no finished iteration yet, so there is nothing to analyse.")
    description = directory.read()
    try:
        check_spaces(description["spaces"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise damaged(directory.path / "config.json", error) from error
    check_lengths(directory, table[:, names.index("seed")], seeds)
    arrays = by_seed(names, table, seeds)
    stops = arrays.pop(STOP, np.full((len(seeds), 1), np.nan))
    last = np.fmax.reduce(arrays["step"], axis=1)
    stopped = {seed: int(last[s]) for s, seed in enumerate(seeds) if np.isfinite(stops[s]).any()}
    return Record(
        path=Path(run),
        description=description,
        config=config,
        seeds=seeds,
        steps=arrays["step"],
        metrics={name: x for name, x in arrays.items() if name not in NOT_METRICS},
        episodes=rows_of_seeds(directory.episodes_path, directory.episodes(), seeds),
        stopped=stopped,
    )


def metric_table(directory: RunDirectory) -> tuple[list[str], np.ndarray]:
    """The columns and rows [R, C] of metrics.jsonl, without an incomplete last row; nan for missing values."""
    try:
        parts = [part_of(rows) for rows in directory.metric_rows()]
        names = [*NOT_METRICS, *column_names(mine for mine, _ in parts)]
        table = np.full((sum(len(part) for _, part in parts), len(names)), np.nan)
        places, end = {name: place for place, name in enumerate(names)}, len(table)
        while parts:  # each is dropped once it is copied, since a run may have a million rows
            mine, part = parts.pop()
            table[end - len(part) : end, [places[name] for name in mine]] = part
            end -= len(part)
        counts = table[:, : len(NOT_METRICS)]
        if (counts % 1 != 0).any() or (counts < 0).any() or (counts > MAX_COUNT).any():
            raise TypeError(f"a row must have {', '.join(NOT_METRICS)} as whole numbers from 0 to 2⁵³")
        check_size(table)
    except (ValueError, TypeError, OverflowError) as error:
        raise damaged(directory.metrics_path, error) from error
    return names, table


def part_of(rows: Sequence[dict[str, Any]]) -> tuple[list[str], np.ndarray]:
    """The columns and numbers [R, C] of some rows; nan for missing values."""
    names = [*NOT_METRICS, *column_names(rows)]
    return names, np.array([list(map(row.get, names)) for row in rows], float).reshape(-1, len(names))


def column_names(rows: Iterable[Iterable[str]]) -> list[str]:
    """The names of all metrics, in order."""
    names = sorted(set().union(*rows) - set(NOT_METRICS))
    if len(names) + len(NOT_METRICS) > MAX_COLUMNS:
        raise ValueError(f"its rows have {len(names) + len(NOT_METRICS):,} different columns")
    return names


def check_size(x: np.ndarray) -> None:
    """Refuse finite numbers that no sum of 32-bit rewards or losses can reach, and whose squares would overflow."""
    columns = x.T if x.ndim > 1 else [x]  # one at a time, for the memory of their copies
    if any((np.abs(column[np.isfinite(column)]) > MAX_NUMBER).any() for column in columns):
        raise ValueError(f"it holds a number beyond ±{MAX_NUMBER:g}, which training cannot produce")


def rows_of_seeds(path: Path, rows: np.ndarray, seeds: tuple[int, ...]) -> np.ndarray:
    """Select the rows of these seeds, and check that their counts and returns are possible for episodes.

    Raises:
        UpslopeError: a count or a return is impossible.
    """
    counts = [name for name in rows.dtype.names or () if rows.dtype[name].kind == "i"]
    try:
        if any((rows[name] < 0).any() or (rows[name] > MAX_COUNT).any() for name in counts):
            raise ValueError(f"{', '.join(counts)} must be between 0 and 2⁵³")
        for name in ("return", *(name for name in rows.dtype.names or () if name.startswith(INFO))):
            check_size(rows[name])
    except ValueError as error:
        raise damaged(path, error) from error
    return rows[np.isin(rows["seed"], seeds)]


def check_lengths(directory: RunDirectory, seed: np.ndarray, seeds: tuple[int, ...]) -> None:
    """Refuse numbers of rows so unequal that padding each seed to the longest would add mostly empty rows."""
    longest = int(np.unique(seed, return_counts=True)[1].max())
    if len(seeds) * longest > MAX_PADDING * (len(seed) + 100):
        raise UpslopeError(
            f"{directory.metrics_path} has {len(seed):,} rows, {longest:,} of them of one seed, but config.json has "
            f"{len(seeds):,} seeds: one of the two files is damaged. Restore it from a copy, or leave this run out."
        )


def by_seed(names: list[str], table: np.ndarray, seeds: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Split a table by seed: name → [S, I], with each seed's rows in order."""
    place = {seed: s for s, seed in enumerate(seeds)}
    s = np.asarray([place[int(seed)] for seed in table[:, names.index("seed")]])
    return dict(zip(names, np.moveaxis(in_groups(table, s, len(seeds), np.nan), -1, 0), strict=True))
