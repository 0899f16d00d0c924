"""Tables for the terminal."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table

from upslope.analysis.grouping import MORE_SEEDS
from upslope.analysis.statistics import agreement, mean_of, thinness
from upslope.cli.comparison_tables import warning, words
from upslope.config.config import presets
from upslope.config.ladder import ALGORITHMS, ESTIMATORS, OBJECTIVES
from upslope.core.messages import COMPILED_PREFIX, counted
from upslope.environments.compiled import COMPILED
from upslope.runs.evaluation import Evaluation


def evaluation_view(run: Path, checkpoint: str, found: Mapping[str, Evaluation]) -> RenderableType:
    """The table, and below it what makes its means doubtful."""
    means = {mode: e.seed_means() for mode, e in found.items()}
    thin = thinness(len(next(iter(means.values()))))
    doubts = [f"{thin}. {MORE_SEEDS}"] if thin else []
    doubts += [f"{mode}: {agreed}" for mode, x in means.items() if (agreed := agreement(x))]
    return Lines(evaluation_table(run, checkpoint, found), *map(warning, doubts))


def evaluation_table(run: Path, checkpoint: str, found: Mapping[str, Evaluation]) -> Table:
    """Each seed's mean return in both modes, and the mean over seeds with its interval."""
    episodes = counted(next(iter(found.values())).returns.shape[1], "episode")
    table = Table(title=f"{run} · {checkpoint} · {episodes} a seed and mode · intervals are 95 %", title_justify="left")
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
        mean = mean_of(e.seed_means())
        cells += [words(mean, mean.value), "", f"{e.lengths.mean():.0f}"]
    table.add_section()
    table.add_row(*cells, style="bold")
    return table


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
    sources: dict[str, str] = {}
    for environment, row in presets().items():
        others = {f"{environment} --preset {name}": other["source"] for name, other in row.get("others", {}).items()}
        sources |= {environment: row["source"]} | others
    yield two_columns("Presets, used unless --no-preset", "source", sources)
    worlds = {COMPILED_PREFIX + name: str(world.__doc__).splitlines()[0] for name, world in COMPILED.items()}
    yield two_columns("Compiled worlds", "meaning", worlds)


def two_columns(title: str, heading: str, rows: Mapping[str, str]) -> Table:
    """Names and what they mean."""
    table = Table(title=title, title_justify="left")
    table.add_column("name")
    table.add_column(heading)
    for name, meaning in rows.items():
        table.add_row(name, meaning)
    return table
