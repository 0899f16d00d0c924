"""The sections of curves over environment steps: learning, and every diagnostic."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from upslope.analysis.curves import at_steps, common_steps, thin
from upslope.analysis.metrics import HEALTH, METRICS, explain
from upslope.analysis.records import Record
from upslope.analysis.statistics import WINDOW, curve, mean_band
from upslope.report.figures import Figures, around, axis, mean_and_band, seeds_trace

POINTS = 100
"""Of the mean of a diagnostic."""
BUCKETS = 50
"""Of a seed's diagnostic, which keeps two points each."""
LEARNING_POINTS = 200


def learning_section(figures: Figures, records: Sequence[Record], names: Sequence[str]) -> str:
    """A figure for each environment: every seed's return, the mean over seeds, and its interval."""
    parts = [
        f"<p>Each thin line is one seed: the mean return of its last {WINDOW} training episodes. The thick line is the "
        "mean over seeds, the area its 95 % interval (Student's t; none for one seed; of few seeds it may reach beyond "
        "the picture).</p>"
    ]
    for environment in dict.fromkeys(r.config.environment for r in records):
        mine = [k for k, r in enumerate(records) if r.config.environment == environment and len(r.episodes)]
        without = [names[k] for k, r in enumerate(records) if r.config.environment == environment and k not in mine]
        parts.append(f"<h3>{escape(environment)}</h3>")
        if without:
            words = escape(", ".join(without))
            parts.append(f'<p class="note">No finished training episode, so no curve: {words}.</p>')
        if mine:
            curves = {k: curve(records[k], LEARNING_POINTS) for k in mine}
            traces = [t for k, found in curves.items() for t in learning_traces(k, names[k], *found)]
            reach = around([returns for _, returns in curves.values()])
            layout = {"xaxis": steps_axis([records[k] for k in mine]), "yaxis": axis("return (reward)", **reach)}
            parts.append(figures.add(traces, layout, height=420, label=f"Learning in {environment}", linked=True))
    return "\n".join(parts)


def learning_traces(run: int, name: str, steps: np.ndarray, returns: np.ndarray) -> list[dict[str, Any]]:
    """One run's seeds, interval and mean."""
    seeds = [thin(steps, mine, LEARNING_POINTS) for mine in returns]
    return [seeds_trace(run, name, seeds), *mean_and_band(run, name, steps, mean_band(returns))]


def diagnostics_section(figures: Figures, records: Sequence[Record], names: Sequence[str]) -> str:
    """A figure for each metric, with what it means beside it; health and a user's own are folded away."""
    logged = sorted({name for r in records for name in r.metrics if np.isfinite(r.metrics[name]).any()})
    known = [name for name in METRICS if name in logged]
    others = [name for name in HEALTH if name in logged]
    others += [name for name in logged if name not in METRICS and name not in HEALTH]
    parts = [
        "<p>All share the axis of environment steps: point at one, and the others show the same moment; zoom one, and "
        "all follow. Double-click to see everything again.</p>",
        grid_of([metric_card(figures, records, names, metric) for metric in known]),
    ]
    if others:
        cards = grid_of([metric_card(figures, records, names, metric) for metric in others])
        parts.append(f"<details><summary>{len(others)} further metrics of the runs' health</summary>{cards}</details>")
    return "\n".join(parts)


def metric_card(figures: Figures, records: Sequence[Record], names: Sequence[str], metric: str) -> str:
    """A metric: its title, its figure, its meaning, and what is healthy."""
    about, traces, shown = explain(metric), [], []
    for k, record in enumerate(records):
        values = record.metrics.get(metric)
        if values is None or not np.isfinite(values).any():
            continue
        if metric in METRICS:
            curves = [thin(x, y, BUCKETS) for x, y in zip(record.steps, values, strict=True)]
            traces.append(seeds_trace(k, names[k], curves))
            shown.append(values)
        grid = common_steps(record, POINTS)
        seeds = at_steps(record, metric, grid)
        traces += mean_and_band(k, names[k], grid, mean_band(seeds))
        shown.append(seeds)
    layout = {"xaxis": steps_axis(records), "yaxis": axis(about.unit, **around(shown))}
    figure = figures.add(traces, layout, height=250, label=about.title, linked=True)
    words = f"{escape(about.meaning)} <b>Healthy:</b> {escape(about.healthy)}" if about.meaning else ""
    return (
        f'<article class="card"><h3>{escape(about.title)}</h3>{figure}'
        f'<p class="about"><code>{escape(metric)}</code> {words}</p></article>'
    )


def steps_axis(records: Sequence[Record]) -> dict[str, Any]:
    """The axis that all share: from 0 to the last step of any run."""
    return axis(
        "environment steps",
        tickformat="~s",
        hoverformat=",.0f",
        range=[0, max(float(np.nanmax(r.steps)) for r in records)],
    )


def grid_of(cards: list[str]) -> str:
    """Cards side by side where there is room."""
    return f'<div class="grid">{"".join(cards)}</div>'
