"""Run directories as arrays: the input of every analysis.

An analysis reads only what training wrote to disk, so it works on any run, including one that is still training or was
interrupted.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from upslope.config.config import Config
from upslope.core.files import AnyPath
from upslope.core.grouping import place_in_group
from upslope.core.reading import damaged
from upslope.core.space_descriptions import check_spaces
from upslope.errors import UpslopeError
from upslope.runs.bundles import unpacked
from upslope.runs.directory import INFO, STOP, RunDirectory, run_paths
from upslope.runs.same_settings import changes_since_training

NOT_METRICS = ("iteration", "seed", "step")
MAX_COUNT, MAX_NUMBER = 2**53, 1e60
MAX_COLUMNS, MAX_PADDING = 2000, 200
"""Limits that reject mostly empty tables, which could exhaust memory. No real run produces one. A table may have about
`MAX_PADDING` times as many cells as values."""
SMALL_TABLE = 1 << 22
"""A table with at most this many cells is always accepted, however empty it is."""


@dataclass(frozen=True)
class Record:
    """A run as arrays, for S seeds and I iterations. Rows of a seed that finished before the others are padded with
    nan."""

    path: Path
    description: dict[str, Any]
    """The content of config.json: format, created, versions, config, axes, spaces."""
    config: Config
    seeds: tuple[int, ...]
    """The S seeds, in the run's order."""
    steps: np.ndarray
    """Number of environment steps after each iteration [S, I]."""
    metrics: Mapping[str, np.ndarray]
    """Name → values [S, I], float64; nan where a row has no finite number."""
    episodes: np.ndarray
    """All finished training episodes: a structured array of `step`, `seed`, `return`, `length`, and `info/…`."""
    stopped: dict[int, int] = field(default_factory=dict)
    """Seed → the step at which it reached --stop-at-return, for those that did."""
    metric: str = "return"
    """The quantity that is stored as an episode's `return`, in training and evaluation."""

    @property
    def name(self) -> str:
        """The name of the run directory."""
        return self.path.resolve().name

    @property
    def versions(self) -> dict[str, Any]:
        """The versions of the packages that produced the run."""
        return self.description["versions"]

    @cached_property
    def changes(self) -> list[str]:
        """How the run's files differ from those that training wrote."""
        return changes_since_training(RunDirectory(self.path), self.config)

    @cached_property
    def reached(self) -> int:
        """The number of steps that every seed has reached; 0 if a seed has no row yet. A seed that has stopped counts
        as having reached its whole budget, since its agent no longer changes."""
        reached = np.fmax.reduce(self.steps, axis=1, initial=0)
        is_over = [seed in self.stopped for seed in self.seeds]
        return int(np.where(is_over, np.maximum(reached, self.config.steps), reached).min())

    @property
    def spent(self) -> int:
        """How many steps of the budget every seed has spent; for a run on recorded data, the whole budget."""
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
        """The same run with another quantity in place of each episode's return: a key of --log-info, or `length`.
        Episodes without it are left out.

        Raises:
            UpslopeError: the run did not log that quantity.
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
        """The indices that sort the episodes by seed and step, and their seeds in this order."""
        order = np.lexsort((self.episodes["step"], self.episodes["seed"])).astype(np.uint32)
        return order, self.episodes["seed"][order]

    def with_seeds(self, seeds: tuple[int, ...]) -> "Record":
        """The same run restricted to some of its seeds."""
        rows = [self.seeds.index(seed) for seed in seeds]
        metrics = Metrics({name: x[rows] for name, x in self.metrics.items()})
        episodes = self.episodes[np.isin(self.episodes["seed"], seeds)]
        return replace(self, seeds=seeds, steps=self.steps[rows], metrics=metrics, episodes=episodes)


class Metrics(Mapping[str, np.ndarray]):
    """Metrics by name; reading one gives float64. Most were computed in 32 bits and are stored that way, since the
    metrics of a thousand seeds take half a gigabyte."""

    def __init__(self, stored: dict[str, np.ndarray]):
        self.stored = stored

    def __getitem__(self, name: str) -> np.ndarray:
        return self.stored[name].astype(float)

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def measured(rows: np.ndarray, metric: str, path: Path) -> np.ndarray:
    """Episodes with the quantity of this name in place of their return; those without it are left out."""
    if metric == "return":
        return rows
    names = rows.dtype.names or ()
    column = metric if metric == "length" else INFO + metric
    if column not in names:
        kept = ", ".join(["return", "length", *(name.removeprefix(INFO) for name in names if name.startswith(INFO))])
        raise UpslopeError(
            f"{path} has no {metric} for its episodes, only {kept}. Train with --log-info {metric} to log it."
        )
    rows = rows[np.isfinite(rows[column])].copy()
    rows["return"] = rows[column]
    return rows


def read_records(
    runs: AnyPath | Sequence[AnyPath], *, with_evaluations: bool = False, with_metrics: bool = True
) -> tuple[list[Record], list[str]]:
    """Read each folder once, and every run in archives made by `upslope.bundle`. A path that is not a readable run
    gives only a warning, since `runs/*` may match other things; so does a run whose files were changed after training
    wrote them. `with_evaluations` also reads evaluations, and leaves out a run whose evaluation.csv is damaged. Without
    metrics, `metrics` is empty, as in `read_record`.

    Raises:
        UpslopeError: a folder does not exist, or no run is left.
    """
    given = run_paths(runs)
    records: list[Record] = []
    warnings = []
    paths: list[Path] = []
    for run in given:
        try:
            with named(run):
                paths += unpacked(run)
        except UpslopeError as error:
            if len(given) == 1:
                raise
            warnings.append(f"left out: {error}")
    for path in paths:
        try:
            with named(path):
                if any(record.path.resolve() == path.resolve() for record in records):
                    warnings.append(f"left out: {path} is given more than once")
                    continue
                record = read_record(path, with_metrics=with_metrics)
                if with_evaluations:
                    _ = record.evaluations
                warnings += record.changes
            records.append(record)
        except UpslopeError as error:
            if len(paths) == 1 or is_missing(path):
                raise
            warnings.append(f"left out: {error}")
    if not records:
        raise UpslopeError(f"None of these {len(given)} paths is a readable run. " + " ".join(warnings))
    return records, warnings


@contextmanager
def named(run: Path) -> Iterator[None]:
    """Turn any failure to read a run into an error that names the run, so that the run can be left out."""
    try:
        yield
    except UpslopeError:
        raise
    except OSError as error:
        raise UpslopeError(
            f"{run} cannot be read: {error.strerror or error}. Make it readable, or leave this run out."
        ) from error
    except (RecursionError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise damaged(run, error) from error


def is_missing(path: Path) -> bool:
    """Whether nothing exists at this path, not even a dangling link. A path that cannot be inspected counts as
    existing."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return True
    except OSError:
        return False
    return False


def read_record(run: AnyPath, *, with_metrics: bool = True) -> Record:
    """Read a run directory.

    An incomplete last row, left by a run that was killed while writing, is ignored. Without metrics, `metrics` is
    empty: scores and learning curves come from episodes and steps, and the metrics of many seeds are far larger.

    Raises:
        UpslopeError: the path is not a run directory, the run is damaged, or it has no finished iteration yet.
    """
    directory = RunDirectory(run)
    config = directory.config()
    seeds = tuple(config.seed_list())
    arrays = metric_arrays(directory, seeds, with_metrics=with_metrics)
    description = directory.read()
    try:
        check_spaces(description["spaces"])
        check_axes(description["axes"], config)
        check_lineage(description.get("lineage"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise damaged(directory.path / "config.json", error) from error
    stops = arrays.pop(STOP, np.full((len(seeds), 1), np.nan))
    if config.stop_at_return is None and np.isfinite(stops).any():
        error = ValueError(f"a row has {STOP}, but config.json has no return to stop at")
        raise damaged(directory.metrics_path, error)
    last = np.fmax.reduce(arrays["step"], axis=1)
    stopped = {seed: int(last[s]) for s, seed in enumerate(seeds) if np.isfinite(stops[s]).any()}
    return Record(
        path=directory.path,
        description=description,
        config=config,
        seeds=seeds,
        steps=arrays["step"],
        metrics=Metrics({name: x for name, x in arrays.items() if name not in NOT_METRICS}),
        episodes=rows_of_seeds(directory.episodes_path, directory.episodes(), seeds),
        stopped=stopped,
    )


def check_axes(axes: dict[str, Any], config: Config) -> None:
    """Reject a run that does not describe its custom estimator or objective, whose fields tell groups apart.

    Raises:
        TypeError: a description is missing, or is not a string.
    """
    for role in ("estimator", "objective"):
        if ":" in getattr(config, role) and not isinstance(axes.get(role), str):
            raise TypeError(f"`axes` must describe its {role}, {getattr(config, role)}")


def check_lineage(lineage: Any) -> None:
    """Reject a lineage that training could not have written. None is the lineage of a run with a new agent.

    Raises:
        TypeError: a field is missing or has the wrong type.
    """
    if lineage is None:
        return
    found = lineage if isinstance(lineage, dict) else {}
    texts, counts = ("run", "checkpoint"), ("seeds", "steps")
    is_sound = all(isinstance(found.get(name), str) for name in texts)
    is_sound &= all(is_list_of(int, found.get(name)) and bool(found[name]) for name in counts)
    is_sound &= all(is_list_of(str, found.get(name)) for name in ("taken_over", "begun_anew"))
    if not is_sound or any(abs(x) > MAX_COUNT for name in counts for x in found[name]):
        raise TypeError(
            "`lineage` must give a run, its checkpoint, seeds and steps, and what was and was not inherited"
        )


def is_list_of(kind: type, value: Any) -> bool:
    """Whether the value is a list of values of exactly this type."""
    return isinstance(value, list) and all(type(x) is kind for x in value)


def metric_arrays(
    directory: RunDirectory, seeds: tuple[int, ...], *, with_metrics: bool = True
) -> dict[str, np.ndarray]:
    """The rows of metrics.jsonl, without an incomplete last one: name → [S, I]. The rows of each seed are in order, and
    missing values are nan. Without metrics, only the columns that count steps are returned."""
    try:
        columns = read_columns(directory, with_metrics=with_metrics)
        counts = np.array([columns[name] for name in NOT_METRICS], float)
        if (counts % 1 != 0).any() or (counts < 0).any() or (counts > MAX_COUNT).any():
            raise TypeError(f"a row must have {', '.join(NOT_METRICS)} as whole numbers from 0 to 2⁵³")
        for column in columns.values():
            check_size(column)
        values = sum(int(np.count_nonzero(~np.isnan(column))) for column in columns.values())
    except (ValueError, TypeError, OverflowError) as error:
        raise damaged(directory.metrics_path, error) from error
    index = {seed: s for s, seed in enumerate(seeds)}
    seed = counts[NOT_METRICS.index("seed")]
    if not len(seed):
        raise UpslopeError(f"{directory.path} has no finished iteration yet, so there is nothing to analyse.")
    require_known(directory, seed, seeds)
    s = np.asarray([index[int(one)] for one in seed], int)
    check_lengths(directory, s, seeds)
    i = place_in_group(s)
    try:
        require_dense(len(seeds) * (int(i.max()) + 1) * len(columns), values)
    except ValueError as error:
        raise damaged(directory.metrics_path, error) from error
    found = {}
    for name in list(columns):  # each is dropped once it is copied: a thousand seeds have a million rows
        found[name] = np.full((len(seeds), i.max() + 1), np.nan, columns[name].dtype)
        found[name][s, i] = columns.pop(name)
    return found


def require_known(directory: RunDirectory, seed: np.ndarray, seeds: tuple[int, ...]) -> None:
    """Reject rows of seeds that config.json does not have. It was edited if it is not damaged."""
    if foreign := sorted(set(seed.astype(int).tolist()) - set(seeds)):
        raise UpslopeError(
            f"{directory.metrics_path} has rows of seed {foreign[0]}, but according to config.json the run has "
            f"{f'only seed {seeds[0]}' if len(seeds) == 1 else f'the seeds {seeds[0]} to {seeds[-1]}'}: one of the two "
            "files was edited or is damaged. Restore it from a copy, or leave this run out."
        )


def read_columns(directory: RunDirectory, *, with_metrics: bool) -> dict[str, np.ndarray]:
    """The columns of metrics.jsonl, with one number for each row; missing values are nan."""
    parts: dict[str, list[tuple[int, np.ndarray]]] = {name: [] for name in NOT_METRICS}
    known, num_rows, values = set(NOT_METRICS), 0, 0
    for rows in directory.metric_rows():
        names = set().union(*rows)
        known |= names
        if len(known) > MAX_COLUMNS:
            raise ValueError(f"its rows have {len(known):,} different columns")
        values += sum(map(len, rows))
        require_dense((num_rows + len(rows)) * len(known), values)
        for name in names if with_metrics else names & {*NOT_METRICS, STOP}:
            numbers = np.array([row.get(name) for row in rows], float)
            parts.setdefault(name, []).append((num_rows, numbers if name in NOT_METRICS else narrow(numbers)))
        num_rows += len(rows)
    return {name: joined(parts.pop(name), num_rows) for name in (*NOT_METRICS, *sorted(set(parts) - set(NOT_METRICS)))}


def require_dense(places: int, values: int) -> None:
    """Reject a table that is almost empty before it takes memory.

    Raises:
        ValueError: the table has more than about 200 cells for each value.
    """
    if places > SMALL_TABLE + MAX_PADDING * values:
        raise ValueError(f"its rows contain {values:,} numbers, but a table of all its columns has {places:,} cells")


def narrow(numbers: np.ndarray) -> np.ndarray:
    """Convert the numbers to 32 bits if this loses no precision."""
    return numbers.astype(np.float32) if is_exact(numbers, np.dtype(np.float32)) else numbers


def joined(parts: list[tuple[int, np.ndarray]], num_rows: int) -> np.ndarray:
    """Assemble a column of a table from its parts. Each part comes with the row at which it begins."""
    column = np.full(num_rows, np.nan, np.result_type(np.float32, *(part.dtype for _, part in parts)))
    for start, part in parts:
        column[start : start + len(part)] = part
    return column


def is_exact(numbers: np.ndarray, dtype: np.dtype) -> bool:
    """Whether this dtype represents the numbers exactly."""
    with np.errstate(over="ignore"):
        return np.array_equal(numbers.astype(dtype), numbers, equal_nan=True)


def check_size(x: np.ndarray) -> None:
    """Reject finite numbers that are too large for any sum of 32-bit rewards or losses, and whose squares would
    overflow."""
    if float(np.abs(x[np.isfinite(x)]).max(initial=0)) > MAX_NUMBER:
        raise ValueError(f"it contains a number beyond ±{MAX_NUMBER:g}, which training cannot produce")


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
    """Reject row counts so unequal that padding every seed to the longest would create mostly empty rows."""
    longest = int(np.unique(seed, return_counts=True)[1].max())
    if len(seeds) * longest > MAX_PADDING * (len(seed) + 100):
        raise UpslopeError(
            f"{directory.metrics_path} has {len(seed):,} rows, {longest:,} of them of one seed, but config.json has "
            f"{len(seeds):,} seeds: one of the two files is damaged. Restore it from a copy, or leave this run out."
        )
