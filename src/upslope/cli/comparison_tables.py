"""A comparison on the terminal."""

import math
from collections.abc import Iterator

from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from upslope.analysis.comparison import BUDGET_SHARES, Comparison, Group
from upslope.analysis.statistics import HUNDREDTHS
from upslope.core.numbers import FEW_SEEDS, number, range_of

MANY_GROUPS = 6
"""Up to so many groups, every pair is shown; of more, only the best against each other one."""
PROFILE_COLUMNS = (0.25, 0.5, 0.75)
"""Normalised scores at which the profile is shown."""


def comparison_page(comparison: Comparison) -> RenderableType:
    """Tables of scores, sample efficiency and pairs, and the warnings below, where they are read last."""
    return Lines(*parts(comparison))


def parts(comparison: Comparison) -> Iterator[RenderableType]:
    """One after another."""
    yield Text(f"The score of a seed: {comparison.score}. Intervals are 95 %, over seeds.", "dim")
    for environment in dict.fromkeys(g.environment for g in comparison.groups):
        groups = ranked([g for g in comparison.groups if g.environment == environment])
        yield scores_table(environment, groups)
        if any(g.efficiency for g in groups):
            yield efficiency_table(environment, groups)
        if len(groups) > 1:
            yield improvement_table(comparison, environment, groups)
    if comparison.aggregates:
        yield aggregate_table(comparison)
    yield from map(warning, comparison.warnings)


def warning(text: str) -> Text:
    """What must be known before numbers are believed."""
    return Text.assemble(("! ", "bold yellow"), text)


def ranked(groups: list[Group]) -> list[Group]:
    """The highest mean first."""
    return sorted(groups, key=lambda g: -g.mean.value if math.isfinite(g.mean.value) else math.inf)


def scores_table(environment: str, groups: list[Group]) -> Table:
    """Mean, interquartile mean and median, and the range of seeds."""
    table = titled(f"{environment} · scores")
    table.add_column("")
    for column in ("seeds", "mean", "interquartile mean", "median", "lowest – highest"):
        table.add_column(column, justify="right")
    for g in groups:
        spread = range_of(g.scores)
        span = f"{number(float(min(g.scores)), spread)} – {number(float(max(g.scores)), spread)}"
        seeds = Text(str(len(g.seeds)), "yellow" if len(g.seeds) < FEW_SEEDS else "")
        table.add_row(name_of(g), seeds, *(e.words() for e in (g.mean, g.iqm, g.median)), span)
    return table


def efficiency_table(environment: str, groups: list[Group]) -> Table:
    """The training return after shares of the budget."""
    steps = next(g.efficiency.steps for g in groups if g.efficiency)
    table = titled(f"{environment} · sample efficiency: mean return of the last 100 training episodes by then")
    table.add_column("")
    for share, step in zip(BUDGET_SHARES, steps, strict=True):
        table.add_column(f"{share:.0%} · {step:,}", justify="right")
    table.add_column("area / length", justify="right")
    for g in groups:
        if g.efficiency is not None:
            table.add_row(name_of(g), *(e.words() for e in (*g.efficiency.at, g.efficiency.area)))
    return table


def improvement_table(comparison: Comparison, environment: str, groups: list[Group]) -> Table:
    """How probable it is that a seed of one beats a seed of another."""
    mine = [i for i in comparison.improvements if i.environments == (environment,)]
    best = groups[0].label
    shown = mine if len(groups) <= MANY_GROUPS else [i for i in mine if i.label == best]
    rest = "" if len(shown) == len(mine) else f" ({len(mine) - len(shown)} more pairs with --json)"
    table = titled(f"{environment} · probability that a seed of the first beats a seed of the second{rest}")
    for column in ("first", "second"):
        table.add_column(column)
    table.add_column("P", justify="right")
    for i in shown:
        table.add_row(i.label, i.other, i.probability.words(HUNDREDTHS))
    return table


def aggregate_table(comparison: Comparison) -> Table:
    """All environments together, in normalised scores."""
    table = titled("all environments · normalised scores")
    table.add_column("")
    for column in ("mean", "interquartile mean", *(f"seeds above {tau:g}" for tau in PROFILE_COLUMNS)):
        table.add_column(column, justify="right")
    for aggregate, profile in zip(comparison.aggregates, comparison.profiles, strict=True):
        shares = [f"{profile.share_above(tau):.0%}" for tau in PROFILE_COLUMNS]
        table.add_row(aggregate.label, aggregate.mean.words(HUNDREDTHS), aggregate.iqm.words(HUNDREDTHS), *shares)
    for i in comparison.improvements:
        if len(i.environments) > 1:
            table.add_section()
            table.add_row(f"P({i.label} > {i.other})", i.probability.words(HUNDREDTHS))
    meaning = [
        f"{r.environment}: 0 is {number(r.zero)}, 1 is {number(r.one)} ({r.source})" for r in comparison.references
    ]
    table.caption = Text("\n".join(meaning), "dim")
    table.caption_justify = "left"
    return table


def titled(title: str) -> Table:
    """A table with its title above the left edge."""
    return Table(title=Text(title, "bold"), title_justify="left")


def name_of(group: Group) -> Text:
    """The label."""
    return Text(group.label, "bold")
