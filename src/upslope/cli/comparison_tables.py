"""The tables of `upslope compare`."""

import math
from collections.abc import Iterator
from typing import Any

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from upslope.analysis.comparison import BUDGET_SHARES, Comparison, Group
from upslope.analysis.statistics import HUNDREDTHS
from upslope.cli.terminal import table
from upslope.core.numbers import FEW_SEEDS, UNKNOWN, finite, number, range_of

MANY_GROUPS = 6
"""Maximum number of groups for which all pairs are shown. With more groups, only pairs with the best group are
shown."""
PROFILE_COLUMNS = (0.25, 0.5, 0.75)
"""Normalised scores at which the performance profile is shown."""


def comparison_page(comparison: Comparison) -> RenderableType:
    """Tables of scores, sample efficiency and pairs, followed by the warnings."""
    return Lines(*parts(comparison))


def parts(comparison: Comparison) -> Iterator[RenderableType]:
    """The parts of the page, in order."""
    yield Text(f"The score of a seed: {comparison.score}. Intervals are 95 %, over seeds.", "dim")
    for environment in dict.fromkeys(g.environment for g in comparison.groups):
        groups = ranked([g for g in comparison.groups if g.environment == environment])
        yield scores_table(environment, groups)
        if any(g.efficiency for g in groups):
            yield efficiency_table(environment, groups, comparison.metric)
        if len(groups) > 1:
            yield improvement_table(comparison, environment, groups)
    if comparison.aggregates:
        yield aggregate_table(comparison)
    yield from map(warning, comparison.warnings)


def warning(text: str) -> Text:
    """Format a warning."""
    return Text.assemble(("! ", "bold yellow"), text)


def ranked(groups: list[Group]) -> list[Group]:
    """Sort groups by their mean, highest first."""
    return sorted(groups, key=lambda g: -g.mean.value if math.isfinite(g.mean.value) else math.inf)


def scores_table(environment: str, groups: list[Group]) -> Table:
    """Mean, interquartile mean, median, and range over seeds of each group."""

    def row(g: Group) -> tuple[Any, ...]:
        spread, scores = range_of(g.scores), finite(g.scores)  # a seed may have no score
        span = f"{number(min(scores), spread)} – {number(max(scores), spread)}" if scores else UNKNOWN
        seeds = Text(str(len(g.seeds)), "yellow" if len(g.seeds) < FEW_SEEDS else "")
        return name_of(g), seeds, *(e.words() for e in (g.mean, g.iqm, g.median)), span

    columns = ("", ">seeds", ">mean", ">interquartile mean", ">median", ">lowest – highest")
    return table(bold(f"{environment} · scores"), columns, map(row, groups))


def efficiency_table(environment: str, groups: list[Group], metric: str = "return") -> Table:
    """The training return, or another metric, at fixed fractions of the budget."""
    found = [(g, g.efficiency) for g in groups if g.efficiency is not None]
    rows = [[name_of(g), *(x.words() for x in (*e.at, e.area))] for g, e in found]
    shares = [f">{s:.0%} · {step:,}" for s, step in zip(BUDGET_SHARES, found[0][1].steps, strict=True)]
    title = f"{environment} · sample efficiency: mean {metric} of the last 100 training episodes by then"
    return table(bold(title), ["", *shares, ">area / length"], rows)


def improvement_table(comparison: Comparison, environment: str, groups: list[Group]) -> Table:
    """The probability that a seed of one group beats a seed of another."""
    pairs = [i for i in comparison.improvements if i.environments == (environment,)]
    best = groups[0].label
    shown = pairs if len(groups) <= MANY_GROUPS else [i for i in pairs if i.label == best]
    rest = "" if len(shown) == len(pairs) else f" ({len(pairs) - len(shown)} more pairs with --json)"
    title = f"{environment} · probability that a seed of the first beats a seed of the second{rest}"
    rows = ((i.label, i.other, i.probability.words(HUNDREDTHS)) for i in shown)
    return table(bold(title), ("first", "second", ">P"), rows)


def aggregate_table(comparison: Comparison) -> Table:
    """Results over all environments, in normalised scores."""
    meaning = [
        f"{r.environment}: 0 is {number(r.zero)}, 1 is {number(r.one)} ({r.source})" for r in comparison.references
    ]
    columns = ("", ">mean", ">interquartile mean", *(f">seeds above {tau:g}" for tau in PROFILE_COLUMNS))
    pairs = zip(comparison.aggregates, comparison.profiles, strict=True)
    rows = [
        (
            a.label,
            a.mean.words(HUNDREDTHS),
            a.iqm.words(HUNDREDTHS),
            *map(share_words, map(p.share_above, PROFILE_COLUMNS)),
        )
        for a, p in pairs
    ]
    title = bold("all environments · normalised scores")
    result = table(title, columns, rows, caption=Text("\n".join(meaning), "dim"), caption_justify="left")
    for i in comparison.improvements:
        if len(i.environments) > 1:
            result.add_section()
            result.add_row(f"P({i.label} > {i.other})", i.probability.words(HUNDREDTHS))
    return result


def bold(title: str) -> Text:
    """The title of a table, in bold."""
    return Text(title, "bold")


def name_of(group: Group) -> Text:
    """The label of a group, in bold."""
    return Text(group.label, "bold")


def share_words(share: float) -> str:
    """Format a share as a percentage, or as a dash if it is unknown."""
    return "–" if math.isnan(share) else f"{share:.0%}"
