"""Render all findings as one self-contained HTML page."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from upslope.lab.finding import Finding, Line, Outcome, Panel
from upslope.lab.run import Result, provenance, verdict_counts
from upslope.lab.texts import Language, measured, region, texts, typeset
from upslope.report.figures import LEGEND_BELOW, Figures
from upslope.report.output import render

COLOURS = ("#3d85c6", "#e07b39", "#3a9d6e", "#b565a7", "#c9a227", "#7f8c8d")
REFERENCE = "#8a8f98"
HEIGHT = 350
MANY_POINTS = 40
"""Curves with more points are drawn without markers."""
MARKS = {"supported": "●", "refuted": "✕", "undecided": "○"}


def page(results: Sequence[Result], language: Language, seed: int, quick: bool) -> str:
    """Render the page, with Plotly embedded."""
    words, figures = texts(language), Figures()

    def place(name: str, drawn: dict[str, Any]) -> str:
        return figures.add(drawn["data"], drawn["layout"], height=HEIGHT, label=name)

    views = [experiment_view(result.name, result.outcome, words, place) for result in results]
    return render(
        "lab.html",
        figures,
        package="upslope.lab",
        title=f"upslope · {words['page']['title']}",
        words=words["page"],
        experiments=views,
        counts=verdict_counts([f for r in results for f in r.outcome.findings], words),
        made=provenance(results, words, seed, quick),
        **words["page"]["html"],
    )


def experiment_view(
    name: str, outcome: Outcome, words: dict[str, Any], place: Callable[[str, dict[str, Any]], str]
) -> dict[str, Any]:
    """The template's data for an experiment; `place` takes a figure's name and data and returns its HTML."""
    entry, page = words["experiments"][name], words["page"]
    return {
        "name": name,
        "title": typeset(entry["title"]),
        "source": typeset(page["headings"]["source"].format(source=entry["source"])),
        "asks": typeset(entry["asks"].format(**outcome.numbers)),
        "findings": [finding_view(finding, outcome, entry, page) for finding in outcome.findings],
        "plots": [
            place(f"{name}-{panel.name}", figure(panel, entry["panels"][panel.name], words["lines"]))
            for panel in outcome.panels
        ],
    }


def finding_view(finding: Finding, outcome: Outcome, entry: dict[str, Any], words: dict[str, Any]) -> dict[str, str]:
    """The template's data for a claim: its text, the measurement and the prediction, and the verdict."""
    claim = {key: typeset(text.format(**outcome.numbers)) for key, text in entry["claims"][finding.name].items()}
    value, interval = measured(finding.estimate)
    verdict = {"verdict": finding.verdict, "verdict_words": words["verdicts"][finding.verdict]}
    predicted = f"{words['headings']['predicted']} {region(finding.predicted)}"
    return (
        claim | verdict | {"value": value, "interval": interval, "predicted": predicted, "mark": MARKS[finding.verdict]}
    )


def figure(panel: Panel, words: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """A panel as a Plotly figure. `words` contains its titles, and `names` the names of the curves."""
    names_shown = list(dict.fromkeys(line.name for line in panel.lines))
    draw = bars if panel.is_bars else curve
    traces = []
    for place, line in enumerate(panel.lines):
        is_first = line.name not in [earlier.name for earlier in panel.lines[:place]]
        shared = {"name": typeset(names.get(line.name, line.name)), "legendgroup": line.name, "showlegend": is_first}
        traces.append(
            shared | draw(line, panel, names, REFERENCE if line.is_reference else COLOURS[place % len(COLOURS)])
        )
    axis = {"automargin": True, "zeroline": False}
    layout: dict[str, Any] = {
        "title": {"text": typeset(words["title"]), "font": {"size": 14}, "x": 0, "xref": "paper"},
        "margin": {"l": 8, "r": 12, "t": 44, "b": 92 if len(names_shown) > 1 else 8},
        "height": HEIGHT,
        "showlegend": len(names_shown) > 1,
        "legend": LEGEND_BELOW,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "barmode": "group",
        "xaxis": {**axis, "title": {"text": typeset(words["x"])}, **({"type": "log"} if panel.log_x else {})},
        "yaxis": {
            **axis,
            "title": {"text": typeset(words["y"])},
            "nticks": 6,
            **(decades(panel) if panel.log_y else {}),
        },
    }
    if panel.is_bars:
        layout["yaxis"]["autorange"] = "reversed"
    elif panel.log_x:
        ticks = json_numbers(panel.lines[0].x)[:: -(-len(panel.lines[0].x) // 6)]
        layout["xaxis"] |= {"tickvals": ticks, "ticktext": [f"{x:,.0f}" for x in ticks]}
    return {"data": traces, "layout": layout}


def decades(panel: Panel) -> dict[str, Any]:
    """A logarithmic axis with labels at powers of ten, and also at 2 and 5 times these if there are only a few."""
    values = np.concatenate([np.asarray(line.y, np.float64) for line in panel.lines])
    exponents = np.log10(values[values > 0])
    low, high = math.floor(exponents.min()), math.ceil(exponents.max())
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:.10g}" for tick in ticks]}


def curve(line: Line, panel: Panel, names: dict[str, str], colour: str) -> dict[str, Any]:
    """A curve y(x): measurements are drawn with markers, theory as a dashed line."""
    is_plain = line.is_reference or len(line.x) > MANY_POINTS
    look = {"color": colour, "dash": "dash" if line.is_reference else "solid"}
    mode = "lines" if is_plain else "markers" if panel.is_points else "lines+markers"
    drawn = {"type": "scatter", "x": json_numbers(line.x), "y": json_numbers(line.y), "mode": mode, "line": look}
    return drawn | {"marker": {"size": 6}} | error_of(line, "error_y")


def bars(line: Line, panel: Panel, names: dict[str, str], colour: str) -> dict[str, Any]:
    """Horizontal bars, so that long names can be read on a narrow screen."""
    labels = [typeset(names.get(str(x), str(x))) for x in line.x]
    drawn = {"type": "bar", "y": labels, "x": json_numbers(line.y), "orientation": "h", "marker": {"color": colour}}
    return drawn | error_of(line, "error_x")


def error_of(line: Line, axis: str) -> dict[str, Any]:
    """The error bars of a line; empty if it has no intervals."""
    if line.low is None or line.high is None:
        return {}
    y, low, high = (np.asarray(x, np.float64) for x in (line.y, line.low, line.high))
    look = {"type": "data", "thickness": 1.2, "width": 3, "color": REFERENCE}
    return {axis: {"array": json_numbers(high - y), "arrayminus": json_numbers(y - low), **look}}


def json_numbers(values: Any) -> list[float | None]:
    """Convert to plain numbers, with None for nan and infinity, which JSON lacks."""
    return [float(value) if math.isfinite(value) else None for value in values]
