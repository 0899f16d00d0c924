"""The tables of the report page: the comparison and the settings."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from upslope.analysis.comparison import Comparison, Group
from upslope.analysis.lineage import beginning_of
from upslope.analysis.records import Record
from upslope.analysis.statistics import HUNDREDTHS, Band, Estimate
from upslope.core.numbers import UNKNOWN, number, with_interval
from upslope.report.figures import LEGEND_BELOW, Figures, Html, axis, mean_and_band, typed

LONG = 30
"""Settings with more characters may wrap over several lines."""
MANY_PROFILES = 4
"""With more profiles than this, their intervals are not drawn; they are in the output of `--json`."""


class Table(NamedTuple):
    """The cells of a table; the first cell of a row is its heading."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


def estimate(x: Estimate, spread: float = np.nan) -> str:
    """An estimate as text, with its interval; `spread` sets the digits if there is no interval."""
    if x.interval is None:
        return number(x.value, spread)
    value, interval = with_interval(x.value, x.interval.low, x.interval.high)
    return Html(f"{value} <small>{interval}</small>")


def comparison_part(figures: Figures, comparison: Comparison, names: dict[Path, str]) -> dict[str, Any]:
    """Scores with intervals, as figures and tables, and pairwise probabilities, with one part per environment.

    A group with a single run is shown under the run's name; one with several runs, under its label in the comparison.
    """
    parts = []
    for environment in dict.fromkeys(g.environment for g in comparison.groups):
        groups = [g for g in comparison.groups if g.environment == environment]
        titles = {g.label: names[g.runs[0]] if len(g.runs) == 1 else g.label for g in groups}
        pairs = improvement_table(comparison, titles, (environment,))
        drawn = {"figure": score_figure(figures, groups, titles, comparison.metric), "pairs": pairs}
        drawn["scores"] = score_table(groups, titles, comparison.metric)
        parts.append({"environment": environment, **drawn})
    overall = overall_part(figures, comparison) if comparison.aggregates else None
    return {"score": comparison.score, "environments": parts, "overall": overall}


def overall_part(figures: Figures, comparison: Comparison) -> dict[str, Any]:
    """Results over all environments in normalised scores: aggregates, pairwise probabilities and performance
    profiles."""
    rows = [[a.label, estimate(a.mean, HUNDREDTHS), estimate(a.iqm, HUNDREDTHS)] for a in comparison.aggregates]
    environments = tuple(r.environment for r in comparison.references)
    labels = {a.label: a.label for a in comparison.aggregates}
    return {
        "meaning": [
            f"in {r.environment} 0 is {number(r.zero)} and 1 is {number(r.one)} ({r.source})"
            for r in comparison.references
        ],
        "scores": Table(["", "mean", "IQM"], rows),
        "pairs": improvement_table(comparison, labels, environments) if len(environments) > 1 else None,
        "figure": profile_figure(figures, comparison),
    }


def profile_figure(figures: Figures, comparison: Comparison) -> Html:
    """The share of seeds above each normalised score, and its interval."""
    traces = []
    for place, profile in enumerate(comparison.profiles):
        band = Band(profile.share, profile.low, profile.high)
        drawn = mean_and_band(place, profile.label, profile.thresholds, band)
        # Many overlapping areas would be unreadable.
        kept = drawn if len(comparison.profiles) <= MANY_PROFILES else drawn[-1:]
        traces += [{**trace, "meta": {}, "showlegend": trace is drawn[-1]} for trace in kept]
    layout = {
        "xaxis": axis("normalised score τ"),
        "yaxis": axis("share of seeds above τ", range=[-0.03, 1.03]),
        "showlegend": True,
        "legend": LEGEND_BELOW,
        "margin": {"l": 10, "r": 10, "t": 8, "b": 90},
    }
    return figures.add(traces, layout, height=380, label="Performance profiles over all environments")


def score_figure(figures: Figures, groups: Sequence[Group], titles: dict[str, str], metric: str = "return") -> Html:
    """Each seed as a point, and the mean as a bar with its interval. A single seed has no bar."""
    traces: list[dict[str, Any]] = []
    for place, group in enumerate(groups):
        common = {"type": "scatter", "showlegend": False, "name": escape(titles[group.label]), "mode": "markers"}
        seeds = {"x": typed(group.scores), "y": [place] * len(group.scores), "text": [f"seed {s}" for s in group.seeds]}
        marker = {"color": "@ink/0.35", "size": 7}
        traces.append({**common, **seeds, "marker": marker, "hovertemplate": "%{text}: %{x:.5~g}"})
        if len(group.seeds) < 2 or not np.isfinite(group.mean.value):
            continue
        mean: dict[str, Any] = {"x": [group.mean.value], "y": [place]}
        if group.mean.interval:
            up = group.mean.interval.high - group.mean.value
            mean["error_x"] = {"type": "data", "array": [up], "color": "@ink", "thickness": 2}
        marker = {"symbol": "line-ns", "size": 18, "line": {"width": 3, "color": "@ink"}}
        traces.append({**common, **mean, "marker": marker, "hovertemplate": "mean %{x:.5~g}"})
    ticks = {"tickvals": list(range(len(groups))), "ticktext": [escape(titles[g.label]) for g in groups]}
    layout = {
        "xaxis": axis(
            "score (reward)" if metric == "return" else metric,
            **single_tick_axis(np.concatenate([g.scores for g in groups])),
        ),
        "yaxis": {**ticks, "range": [len(groups) - 0.5, -0.5], "fixedrange": True},
        "hovermode": "closest",
    }
    return figures.add(traces, layout, height=80 + 34 * len(groups), label="Scores and their intervals")


def single_tick_axis(scores: np.ndarray) -> dict[str, Any]:
    """Axis settings with a single tick if all scores are the same, e.g. with one seed; otherwise empty."""
    known = scores[np.isfinite(scores)]
    if not len(known) or np.ptp(known) > 0:
        return {}
    value, margin = float(known[0]), max(abs(float(known[0])), 1.0)
    return {"range": [value - margin, value + margin], "tickvals": [value], "ticktext": [number(value)]}


def score_table(groups: Sequence[Group], titles: dict[str, str], metric: str = "return") -> Table:
    """Mean, interquartile mean, median, and sample efficiency. The mean comes first, since nothing else fits on a
    phone's screen."""
    known = [g.efficiency for g in groups if g.efficiency]
    early = [Html(f"{escape(metric)} at<br>{steps:,} steps") for steps in known[0].steps] if known else []
    head = ["", "mean", "IQM", "median", "seeds", Html("budget<br>(steps)"), *early, Html("area /<br>length")]
    rows = []
    for g in groups:
        planned = g.settings["steps"]
        budget = f"{g.budget:,}" if g.budget == planned else Html(f"{g.budget:,}<br>of {planned:,}")
        cells = [titles[g.label], estimate(g.mean), estimate(g.iqm), estimate(g.median), str(len(g.seeds)), budget]
        cells += [estimate(e) for e in g.efficiency.at] if g.efficiency else [UNKNOWN] * len(early)
        rows.append([*cells, estimate(g.efficiency.area) if g.efficiency else UNKNOWN])
    return Table(head, rows)


def improvement_table(comparison: Comparison, titles: dict[str, str], environments: tuple[str, ...]) -> Table | None:
    """P(a seed of the row scores higher than one of the column) for all labels; None if there is only one label."""
    if len(titles) < 2:
        return None
    cells: dict[tuple[str, str], str] = {}
    for found in comparison.improvements:
        if found.environments == environments:
            cells[found.label, found.other] = estimate(found.probability, HUNDREDTHS)
            cells.setdefault((found.other, found.label), estimate(complement(found.probability), HUNDREDTHS))
    rows = [[titles[a], *(cells.get((a, b), "") for b in titles)] for a in titles]
    return Table(["", *titles.values()], rows, "Probability that a seed from the row beats one from the column")


def complement(p: Estimate) -> Estimate:
    """1 − p with its interval."""
    interval = type(p.interval)(1 - p.interval.high, 1 - p.interval.low) if p.interval else None
    return Estimate(1 - p.value, interval)


def settings_part(records: Sequence[Record], names: Sequence[str]) -> dict[str, Table | None]:
    """The networks, the settings that differ between the runs, the settings that all runs share, and the versions."""
    settings = [r.config.to_json() for r in records]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    differ = [k for k in keys if len({repr(one.get(k)) for one in settings}) > 1]
    rows = [["path", *(str(r.path) for r in records)]]
    rows += [["created", *(str(r.description.get("created", UNKNOWN)) for r in records)]]
    packages = list(dict.fromkeys(key for r in records for key in r.versions))
    rows += [[package, *(str(r.versions.get(package, UNKNOWN)) for r in records)] for package in packages]
    return {
        "networks": networks_table(records, names),
        "differ": Table(["", *names], [[code(k), *(setting_text(s.get(k)) for s in settings)] for k in differ])
        if differ
        else None,
        "same": Table(["", "value"], [[code(k), setting_text(settings[0].get(k))] for k in keys if k not in differ]),
        "versions": Table(["", *names], rows),
    }


def networks_table(records: Sequence[Record], names: Sequence[str]) -> Table:
    """The networks that read the observations, the memory, and whether actions are masked."""
    rows = [["networks", *map(layers_of, records)]]
    rows += [["images", *map(readers_of, records)]]
    rows += [["memory", *map(memory_of, records)]]
    rows += [["left out", *(", ".join(r.config.ignore_observation) or "nothing" for r in records)]]
    rows += [["masks", *map(masks_of, records)]]
    rows += [["began with", *map(beginning_of, records)]]
    if any(record.stopped for record in records):
        rows += [["stopped early", *map(stops_of, records)]]
    return Table(["", *names], rows)


def layers_of(record: Record) -> str:
    """The hidden layers, or the name of a user's own model."""
    config = record.config
    if config.model != "perceptron":
        return config.model
    widths = " and ".join(map(str, config.hidden_sizes))
    kind = "on one trunk" if config.shared_trunk else "each with its own layers"
    return f"{kind}: hidden {widths}, {config.activation}"


def readers_of(record: Record) -> str:
    """The network that reads each image, from config.json; runs of older versions do not record it."""
    parts = record.description.get("networks")
    if not isinstance(parts, list):
        return UNKNOWN
    return ", ".join(part for part in map(str, parts) if " read by " in part) or "none"


def memory_of(record: Record) -> str:
    """The memory's cell and size."""
    config = record.config
    return "none" if config.memory is None else f"{config.memory} of {config.memory_size} units"


def stops_of(record: Record) -> str:
    """The seeds that reached --stop-at-return, and when."""
    return ", ".join(f"seed {seed} at step {step:,}" for seed, step in record.stopped.items()) or "none"


def masks_of(record: Record) -> str:
    """Whether action masks were used."""
    if record.description["spaces"].get("has_masks") is True:
        return "used"
    return "none" if record.config.masks else "none, or ignored"


def code(name: str) -> Html:
    """The name of a setting, marked up as code."""
    return Html(f"<code>{escape(name)}</code>")


def setting_text(value: Any) -> str:
    """The value of a setting as text."""
    text = UNKNOWN if value is None else f"{value:,}" if type(value) is int else str(value)
    return Html(f'<span class="long">{escape(text)}</span>') if len(text) > LONG else text
