"""The page of a sweep: the verdict, the history, the settings of all trials, and which of them matter."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from upslope.analysis.statistics import WINDOW
from upslope.config.config import Config
from upslope.core.messages import shell
from upslope.core.numbers import number, range_of
from upslope.lab.sweep.confirm import DEFAULT, WINNER, Confirmation
from upslope.lab.sweep.setup import Setup
from upslope.lab.sweep.space import Choices, Parameter, Space
from upslope.lab.sweep.study import Told
from upslope.lab.sweep.words import counts, setting_words, verdict_words
from upslope.report.figures import Figures, Html, around, axis
from upslope.report.output import page_path, render, write_page
from upslope.report.tables import Table, score_figure, score_table

BEST = 10
"""Number of trials in the table of the best ones."""
TICKS = 5
"""Maximum number of labels on an axis of settings."""
SCALE = [[0, "@soft/0.35"], [0.5, "@0/0.6"], [1, "@1"]]
"""Colours of scores, from the lowest to the highest."""


def write_sweep_page(path: Path, setup: Setup, found: Any, importances: Mapping[str, float]) -> Path:
    """Write the page of a `Sweep`."""
    default, space, trials, winner = setup.default, setup.space, found.trials, found.winner
    figures, seeds = Figures(), default.seed_list()
    reference = next((t.score for t in trials if t.drawn == space.drawn(default)), math.nan)
    complete = sorted((t for t in trials if t.state == "complete"), key=lambda t: (-t.score, t.number))
    html = render(
        "sweep.html",
        figures,
        package="upslope.lab",
        title=f"upslope · sweep · {default.algorithm} on {default.environment}",
        verdict=verdict_words(found),
        fresh=fresh_part(figures, found.confirmation) if found.confirmation else None,
        winner=winner_table(winner, default) if winner else None,
        counts=counts(trials),
        seeds=len(seeds),
        first_seed=seeds[0],
        last_seed=seeds[-1],
        steps=f"{default.steps:,}",
        window=WINDOW,
        default_score=number(reference) if math.isfinite(reference) else "",
        history=history_figure(figures, trials, reference),
        parallel=parallel_figure(figures, complete, space) if len(complete) > 1 else "",
        importances=importance_figure(figures, importances) if importances else "",
        space=space_table(space, default),
        best=trials_table(complete[:BEST], space) if complete else None,
        reasons=reasons_table(trials),
    )
    return write_page(page_path(path, "report.html"), html)


def fresh_part(figures: Figures, confirmation: Confirmation) -> dict[str, Any]:
    """The winner and the default on fresh seeds, with their scores as a figure and as a table."""
    groups = [confirmation.winner, confirmation.default]
    titles = {confirmation.winner.label: WINNER, confirmation.default.label: DEFAULT}
    return {
        "seeds": len(confirmation.winner.seeds),
        "score": confirmation.comparison.score,
        "figure": score_figure(figures, groups, titles),
        "scores": score_table(groups, titles),
        "warnings": confirmation.comparison.warnings,
        "command": shell("upslope", "report", *confirmation.winner.runs, *confirmation.default.runs),
    }


def winner_table(winner: Told, default: Config) -> Table:
    """The winner's settings next to the defaults."""
    rows = [
        [name.rstrip("_"), setting_words(value), setting_words(getattr(default, name))]
        for name, value in winner.drawn.items()
    ]
    return Table([f"trial {winner.number}", "winner", "default"], rows)


def history_figure(figures: Figures, trials: Sequence[Told], reference: float) -> Html:
    """Scores by trial, and the best so far."""
    complete = [t for t in trials if t.state == "complete"]
    pruned = [t for t in trials if t.state == "pruned" and t.reports]
    last = [t.reports[max(t.reports)] for t in pruned]
    traces = [
        points([t.number for t in complete], [t.score for t in complete], "complete", "@0"),
        points([t.number for t in pruned], last, "pruned", "@soft/0.7"),
    ]
    if complete:
        best = np.maximum.accumulate([t.score for t in complete])
        line = {"color": "@0", "width": 2, "shape": "hv"}
        traces.append({**plain("best so far"), "x": [t.number for t in complete], "y": best.tolist(), "mode": "lines"})
        traces[-1]["line"] = line
    if math.isfinite(reference):
        ends = [-0.5, max(t.number for t in trials) + 0.5]
        dashed = {"color": "@ink", "width": 1, "dash": "dash"}
        traces.append({**plain("the defaults"), "x": ends, "y": [reference] * 2, "mode": "lines", "line": dashed})
    scores = np.asarray([*(t.score for t in complete), *last, reference], np.float64)
    layout = {
        "xaxis": axis("trial"),
        "yaxis": axis("score (return)", **around([scores])),
        "hovermode": "closest",
    }
    return figures.add(traces, layout, height=380, label="Scores of all trials")


def plain(name: str) -> dict[str, Any]:
    """The options that all traces of the history share."""
    return {
        "type": "scatter",
        "name": name,
        "showlegend": False,
        "hovertemplate": f"{name}: %{{y:.5~g}}<extra></extra>",
    }


def points(x: Sequence[int], y: Sequence[float], name: str, colour: str) -> dict[str, Any]:
    """Trials of one state as points."""
    marker = {"color": colour, "size": 7}
    hover = {"hovertemplate": f"trial %{{x}}, {name}: %{{y:.5~g}}<extra></extra>"}
    return {**plain(name), **hover, "x": list(x), "y": list(y), "mode": "markers", "marker": marker}


def parallel_figure(figures: Figures, complete: Sequence[Told], space: Space) -> Html:
    """Parallel coordinates, with an axis for each setting and a line for each complete trial."""
    scores = [t.score for t in complete]
    dimensions = [dimension(name, p, [t.drawn.get(name) for t in complete]) for name, p in space.searched.items()]
    dimensions.append({"label": "score", "values": scores, "tickformat": ".4~g"})
    bar = {"title": {"text": "score"}, "thickness": 12, "outlinewidth": 0, "tickformat": ".4~g"}
    line = {"color": scores, "colorscale": SCALE, "showscale": True, "colorbar": bar}
    trace = {"type": "parcoords", "dimensions": dimensions, "line": line, "labelangle": 0}
    trace |= {"rangefont": {"size": 1, "color": "@paper/0"}, "labelfont": {"size": 12}, "tickfont": {"size": 11}}
    layout = {"margin": {"l": 70, "r": 20, "t": 50, "b": 24}}
    return figures.add([trace], layout, height=420, label="The settings of all complete trials")


def dimension(name: str, parameter: Parameter, drawn: Sequence[Any]) -> dict[str, Any]:
    """One axis: linear or logarithmic for a range, like the range itself; for choices, one position per choice."""
    label = escape(name.rstrip("_"))
    if isinstance(parameter, Choices):
        words = parameter.words
        ticks = {"tickvals": list(range(len(words))), "ticktext": [escape(setting_words(w) or "none") for w in words]}
        return {"label": label, "values": [words.index(x) for x in drawn], "range": [0, len(words) - 1 or 1], **ticks}
    if not parameter.log:
        return {"label": label, "values": list(drawn), "range": [parameter.low, parameter.high], "tickformat": ".4~g"}
    ends = [math.log10(parameter.low), math.log10(parameter.high)]
    at = np.linspace(ends[0], ends[1], TICKS)
    ticks = {"tickvals": at.tolist(), "ticktext": [f"{10**x:.2g}" for x in at]}
    return {"label": label, "values": [math.log10(x) for x in drawn], "range": ends, **ticks}


def importance_figure(figures: Figures, importances: Mapping[str, float]) -> Html:
    """The importances as horizontal bars, the largest at the top."""
    names = list(importances)[::-1]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [importances[name] for name in names],
        "y": [escape(name.rstrip("_")) for name in names],
        "marker": {"color": "@0"},
        "hovertemplate": "%{y}: %{x:.2f}<extra></extra>",
        "showlegend": False,
    }
    layout = {"xaxis": axis("importance", rangemode="tozero"), "yaxis": {"fixedrange": True}}
    return figures.add([trace], layout, height=70 + 30 * len(names), label="Importances of the settings")


def space_table(space: Space, default: Config) -> Table:
    """The searched space, next to the defaults."""
    rows = [[name.rstrip("_"), extent(p), setting_words(getattr(default, name))] for name, p in space.searched.items()]
    return Table(["setting", "searched", "default"], rows, "The space")


def extent(parameter: Parameter) -> str:
    """A description of a range or choices."""
    if isinstance(parameter, Choices):
        return ", ".join(setting_words(x) or "none" for x in parameter.words)
    low, high = setting_words(parameter.low), setting_words(parameter.high)
    step = "" if parameter.step is None else f", in steps of {setting_words(parameter.step)}"
    return f"{low} to {high}{', logarithmic' if parameter.log else ''}{step}"


def trials_table(trials: Sequence[Told], space: Space) -> Table:
    """Trials with their settings."""
    names, spread = list(space.searched), range_of([t.score for t in trials])
    rows = [[str(t.number), number(t.score, spread), *(setting_words(t.drawn.get(n)) for n in names)] for t in trials]
    return Table(["trial", "score", *(name.rstrip("_") for name in names)], rows, f"The best {len(trials)} trials")


def reasons_table(trials: Sequence[Told]) -> Table | None:
    """The trials that failed or diverged; None if there are none."""
    rows = [[str(t.number), t.state, t.reason] for t in trials if t.reason]
    return Table(["trial", "state", "reason"], rows) if rows else None
