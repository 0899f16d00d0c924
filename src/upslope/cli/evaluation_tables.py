"""The tables of `upslope evaluate` and `upslope judge`."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from upslope.analysis.grouping import MORE_SEEDS
from upslope.analysis.judgement import Judgement
from upslope.analysis.statistics import agreement, mean_known, mean_of, thinness
from upslope.cli.comparison_tables import warning
from upslope.cli.terminal import table
from upslope.core.messages import counted
from upslope.core.numbers import number, range_of
from upslope.runs.evaluation import Evaluation


def evaluation_view(run: Path, checkpoint: str, found: Mapping[str, Evaluation]) -> RenderableType:
    """The table of evaluations, followed by warnings about its means."""
    means = {mode: e.seed_means() for mode, e in found.items()}
    thin = thinness(len(next(iter(means.values()))))
    doubts = [f"{thin}. {MORE_SEEDS}"] if thin else []
    doubts += [f"{mode}: {agreed}" for mode, x in means.items() if (agreed := agreement(x))]
    return Lines(evaluation_table(run, checkpoint, found), *map(warning, doubts))


def evaluation_table(run: Path, checkpoint: str, found: Mapping[str, Evaluation]) -> Table:
    """Each seed's mean return in both modes, and the mean over seeds with its interval."""
    first = next(iter(found.values()))
    episodes = counted(first.returns.shape[1], "episode")
    rows = [[str(seed)] for seed in first.seeds]
    total = ["all"]
    for e in found.values():
        for row, x, length in zip(rows, e.returns, e.lengths, strict=True):
            spread = range_of(x)
            span = f"{number(float(x.min()), spread)} – {number(float(x.max()), spread)}"
            row += [number(float(x.mean()), spread), span, f"{length.mean():.0f}"]
        mean = mean_of(e.seed_means())
        total += [mean.words(), "", f"{e.lengths.mean():.0f}"]
        for x in e.info.values():
            means = mean_known(x)
            for row, one in zip(rows, means, strict=True):
                row.append(number(one, range_of(means)))
            total.append(mean_of(means).words())
    titles = (">lowest – highest", ">length", *(f">{key}" for key in first.info))
    columns = [column for mode in found for column in (f">{mode}: return", *titles)]
    title = f"{run} · {checkpoint} · {episodes} per seed and mode · intervals are 95 %"
    result = table(title, ["seed", *columns], rows)
    result.add_section()
    result.add_row(*total, style="bold")
    return result


def judgement_view(found: Judgement) -> RenderableType:
    """The result of each estimator, the verdict, and a description of the data on which the verdict is based."""
    first, value, effective, *why = found.columns
    shown = table(found.title, (first, f">{value}", f">{effective}", *why), found.rows())
    return Lines(shown, Text(found.conclusion), *map(warning, found.notes))
