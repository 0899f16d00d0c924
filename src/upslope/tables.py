"""Tables for the terminal."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from rich.table import Table
from scipy.stats import t as student_t

from upslope.algorithms import ALGORITHMS, ESTIMATORS, OBJECTIVES
from upslope.config import presets
from upslope.environments.make import compiled_names
from upslope.evaluation import Evaluation


def evaluation_table(run: Path, checkpoint: str, found: Mapping[str, Evaluation]) -> Table:
    """Each seed's mean return in both modes, and the mean over seeds with its interval."""
    episodes = next(iter(found.values())).returns.shape[1]
    table = Table(title=f"{run} · {checkpoint} · {episodes} episodes a seed and mode", title_justify="left")
    table.add_column("seed")
    for mode in found:
        table.add_column(f"{mode}: return", justify="right")
        table.add_column("lowest – highest", justify="right")
        table.add_column("length", justify="right")
    for s, seed in enumerate(next(iter(found.values())).seeds):
        cells = [str(seed)]
        for e in found.values():
            low, high = e.returns[s].min(), e.returns[s].max()
            cells += [f"{e.returns[s].mean():.1f}", f"{low:.1f} – {high:.1f}", f"{e.lengths[s].mean():.0f}"]
        table.add_row(*cells)
    cells = ["all"]
    for e in found.values():
        cells += [mean_and_interval(e.seed_means()), "", f"{e.lengths.mean():.0f}"]
    table.add_section()
    table.add_row(*cells, style="bold")
    return table


def mean_and_interval(seed_means: np.ndarray) -> str:
    """Mean over seeds ± half its 95 % Student-t interval; one seed gives none."""
    if seed_means.size < 2:
        return f"{seed_means.mean():.1f} (one seed: no interval)"
    half = student_t.ppf(0.975, seed_means.size - 1) * seed_means.std(ddof=1) / np.sqrt(seed_means.size)
    return f"{seed_means.mean():.1f} ± {half:.1f} (95 %)"


def everything() -> Iterator[Table]:
    """What `upslope list` shows."""
    rungs = Table(title="Rungs: --algorithm", title_justify="left")
    for column in ("name", "--estimator", "--objective", "experience", "meaning"):
        rungs.add_column(column)
    for name, rung in ALGORITHMS.items():
        rungs.add_row(name, rung.estimator, rung.objective, rung.source, rung.meaning)
    yield rungs
    for title, rows in (("Estimators: --estimator", ESTIMATORS), ("Objectives: --objective", OBJECTIVES)):
        yield two_columns(title, "weight Ψ_t" if "Est" in title else "maximised", rows)
    yield two_columns("Presets, used unless --no-preset", "source", {k: v["source"] for k, v in presets().items()})
    yield two_columns("Compiled worlds", "", dict.fromkeys(compiled_names(), ""))


def two_columns(title: str, heading: str, rows: Mapping[str, str]) -> Table:
    """Names and what they mean."""
    table = Table(title=title, title_justify="left")
    table.add_column("name")
    table.add_column(heading)
    for name, meaning in rows.items():
        table.add_row(name, meaning)
    return table
