"""Curves over environment steps: learning curves and all metrics."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from upslope.analysis.curves import at_steps, common_steps, thin
from upslope.analysis.metrics import EXPLANATIONS, HEALTH, METRICS, Explanation, explain
from upslope.analysis.records import Record
from upslope.analysis.statistics import curve, mean_band
from upslope.report.figures import Figures, Html, around, axis, mean_and_band, seeds_trace

POINTS = 100
"""Number of points in the mean curve of a metric."""
BUCKETS = 50
"""Number of buckets for the metric of a seed; each bucket keeps two points."""
LEARNING_POINTS = 200


class Card(NamedTuple):
    """A figure with its title; for a metric, also its name and explanation."""

    title: str
    figure: Html
    metric: str = ""
    about: Explanation | None = None


def learning_part(figures: Figures, records: Sequence[Record], names: Sequence[str]) -> list[dict[str, Any]]:
    """A figure for each environment: every seed's return, the mean over seeds, and its interval."""
    parts = []
    for environment in dict.fromkeys(r.config.environment for r in records):
        here = [k for k, r in enumerate(records) if r.config.environment == environment]
        drawn = [k for k in here if len(records[k].episodes)]
        parts.append({"environment": environment, "without": [names[k] for k in here if k not in drawn], "figure": ""})
        if drawn:
            curves = {k: curve(records[k], LEARNING_POINTS) for k in drawn}
            traces = [t for k, found in curves.items() for t in learning_traces(k, names[k], *found)]
            y_range = around([returns for _, returns in curves.values()])
            layout = {"xaxis": steps_axis([records[k] for k in drawn]), "yaxis": axis("return (reward)", **y_range)}
            label = f"Learning in {environment}"
            parts[-1]["figure"] = figures.add(traces, layout, height=420, label=label, linked=True)
    return parts


def learning_traces(run: int, name: str, steps: np.ndarray, returns: np.ndarray) -> list[dict[str, Any]]:
    """The traces of one run: seeds, interval and mean."""
    seeds = [thin(steps, seed_returns, LEARNING_POINTS) for seed_returns in returns]
    return [seeds_trace(run, name, seeds), *mean_and_band(run, name, steps, mean_band(returns))]


def diagnostics_part(figures: Figures, records: Sequence[Record], names: Sequence[str]) -> dict[str, list[Card]]:
    """Cards for the metrics of each iteration (`known`), and for health and custom metrics (`others`)."""
    logged = sorted({name for r in records for name in r.metrics if np.isfinite(r.metrics[name]).any()})
    own = [name for name in logged if name not in EXPLANATIONS]
    known = {"known": METRICS, "others": [*HEALTH, *own]}
    return {
        part: [metric_card(figures, records, names, metric) for metric in metrics if metric in logged]
        for part, metrics in known.items()
    }


def metric_card(figures: Figures, records: Sequence[Record], names: Sequence[str], metric: str) -> Card:
    """A metric over environment steps; single seeds are drawn only if the metric is logged in every iteration."""
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
    return Card(about.title, figure, metric, about)


def steps_axis(records: Sequence[Record]) -> dict[str, Any]:
    """The axis shared by all figures: from 0 to the last step of any run."""
    return axis(
        "environment steps",
        tickformat="~s",
        hoverformat=",.0f",
        range=[0, max(float(np.nanmax(r.steps)) for r in records)],
    )
