"""The sections that are tables: the comparison, and the settings."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np

from upslope.analysis.comparison import Comparison, Group
from upslope.analysis.records import Record
from upslope.analysis.statistics import Band, Estimate
from upslope.report.figures import Figures, axis, mean_and_band, typed

LONG = 30
"""Characters of a setting that may take several lines."""

MANY_PROFILES = 4
"""Above so many, intervals are not drawn; `--json` has them."""


def number(x: float) -> str:
    """Four digits; a dash for what is not known."""
    if not np.isfinite(x):
        return "–"
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.4g}"


def estimate(x: Estimate, words: Callable[[float], str] = number) -> str:
    """A number and its interval."""
    interval = f" <small>[{words(x.interval.low)}, {words(x.interval.high)}]</small>" if x.interval else ""
    return f"{words(x.value)}{interval}"


def share(x: Estimate) -> str:
    """A probability in hundredths, which is all that a few seeds tell."""
    return estimate(x, lambda p: f"{p:.2f}")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """Cells are HTML; the first of a row is its heading. It scrolls sideways where it is too wide."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows
    )
    title = f"<caption>{caption}</caption>" if caption else ""
    return f'<div class="wide"><table>{title}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def comparison_section(figures: Figures, comparison: Comparison) -> str:
    """Scores with intervals, drawn and in numbers, and who beats whom; one part for each environment."""
    parts = [f"<p>Score: {escape(comparison.score)}. In brackets the 95 % interval; one seed has none.</p>"]
    for environment in dict.fromkeys(g.environment for g in comparison.groups):
        groups = [g for g in comparison.groups if g.environment == environment]
        parts += [f"<h3>{escape(environment)}</h3>", score_figure(figures, groups), score_table(groups)]
        if len(groups) > 1:
            parts.append(improvement_table(comparison, [g.label for g in groups], (environment,)))
    if comparison.aggregates:
        parts.append(overall(figures, comparison))
    return "\n".join(parts)


def overall(figures: Figures, comparison: Comparison) -> str:
    """All environments together, in normalised scores: aggregates, who beats whom, performance profiles."""
    meaning = "; ".join(
        f"in {escape(r.environment)} 0 is {number(r.zero)} and 1 is {number(r.one)} ({escape(r.source)})"
        for r in comparison.references
    )
    rows = [[escape(a.label), share(a.mean), share(a.iqm)] for a in comparison.aggregates]
    parts = [
        "<h3>All environments</h3>",
        f"<p>Normalised scores: {meaning}. Every environment counts the same.</p>",
        table(["", "mean", "IQM"], rows),
    ]
    environments = tuple(r.environment for r in comparison.references)
    if len(comparison.aggregates) > 1 and len(environments) > 1:
        labels = [a.label for a in comparison.aggregates]
        parts.append(improvement_table(comparison, labels, environments))
    parts += [
        "<p>Performance profiles: which share of the seeds scores more than τ.</p>",
        profile_figure(figures, comparison),
    ]
    return "\n".join(parts)


def profile_figure(figures: Figures, comparison: Comparison) -> str:
    """The share of seeds above each normalised score, and its interval."""
    traces = []
    for place, profile in enumerate(comparison.profiles):
        band = Band(profile.share, profile.low, profile.high)
        drawn = mean_and_band(place, profile.label, profile.thresholds, band)
        # Many areas over each other tell nothing.
        kept = drawn if len(comparison.profiles) <= MANY_PROFILES else drawn[-1:]
        traces += [{**trace, "meta": {}, "showlegend": trace is drawn[-1]} for trace in kept]
    layout = {
        "xaxis": axis("normalised score τ"),
        "yaxis": axis("share of seeds above τ", range=[-0.03, 1.03]),
        "showlegend": True,
        "legend": {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0, "xanchor": "left"},
        "margin": {"l": 10, "r": 10, "t": 8, "b": 90},
    }
    return figures.add(traces, layout, height=380, label="Performance profiles over all environments")


def score_figure(figures: Figures, groups: Sequence[Group]) -> str:
    """Each seed a point, the mean a bar with its interval."""
    traces: list[dict[str, Any]] = []
    for place, group in enumerate(groups):
        seeds = {"x": typed(group.scores), "y": [place] * len(group.scores), "mode": "markers"}
        marker = {"color": "@ink/0.35", "size": 7}
        shown = {"type": "scatter", "showlegend": False, "name": escape(group.label)}
        text = [f"seed {s}" for s in group.seeds]
        traces.append({**shown, **seeds, "marker": marker, "text": text, "hovertemplate": "%{text}: %{x:.5~g}"})
        mean = {"x": [number_or_none(group.mean.value)], "y": [place], "mode": "markers"}
        if group.mean.interval:
            up = group.mean.interval.high - group.mean.value
            mean["error_x"] = {"type": "data", "array": [up], "color": "@ink", "thickness": 2}
        marker = {"symbol": "line-ns", "size": 18, "line": {"width": 3, "color": "@ink"}}
        traces.append({**shown, **mean, "marker": marker, "hovertemplate": "mean %{x:.5~g}"})
    ticks = {"tickvals": list(range(len(groups))), "ticktext": [escape(g.label) for g in groups]}
    layout = {
        "xaxis": axis("score (reward)"),
        "yaxis": {**ticks, "range": [len(groups) - 0.5, -0.5], "fixedrange": True},
        "hovermode": "closest",
    }
    return figures.add(traces, layout, height=80 + 34 * len(groups), label="Scores and their intervals")


def number_or_none(x: float) -> float | None:
    """JSON knows no nan."""
    return float(x) if np.isfinite(x) else None


def score_table(groups: Sequence[Group]) -> str:
    """Mean, interquartile mean, median, and how early it learned. The mean is first: a phone shows no more."""
    known = [g.efficiency for g in groups if g.efficiency]
    early = [f"return at<br>{steps:,} steps" for steps in known[0].steps] if known else []
    head = ["", "mean", "IQM", "median", "seeds", "budget<br>(steps)", *early, "area /<br>length"]
    rows = []
    for g in groups:
        cells = [escape(g.label), estimate(g.mean), estimate(g.iqm), estimate(g.median)]
        cells += [str(len(g.seeds)), f"{g.budget:,}"]
        cells += [estimate(e) for e in g.efficiency.at] if g.efficiency else ["–"] * len(early)
        rows.append([*cells, estimate(g.efficiency.area) if g.efficiency else "–"])
    return table(head, rows)


def improvement_table(comparison: Comparison, labels: Sequence[str], environments: tuple[str, ...]) -> str:
    """P(a seed of the row scores higher than one of the column)."""
    cells: dict[tuple[str, str], str] = {}
    for found in comparison.improvements:
        if found.environments == environments:
            cells[found.label, found.other] = share(found.probability)
            cells.setdefault((found.other, found.label), share(turned(found.probability)))
    rows = [[escape(a), *(cells.get((a, b), "") for b in labels)] for a in labels]
    return table(["", *map(escape, labels)], rows, "Probability that a seed of the row beats one of the column")


def turned(p: Estimate) -> Estimate:
    """1 − p."""
    interval = type(p.interval)(1 - p.interval.high, 1 - p.interval.low) if p.interval else None
    return Estimate(1 - p.value, interval)


def settings_section(records: Sequence[Record], names: Sequence[str]) -> str:
    """What differs between the runs first, then all the rest."""
    heads = ["", *map(escape, names)]
    settings = [r.config.to_json() for r in records]
    keys = list(dict.fromkeys(key for one in settings for key in one))
    differ = [k for k in keys if len({repr(one.get(k)) for one in settings}) > 1]
    same = [k for k in keys if k not in differ]
    versions = [r.versions for r in records]
    packages = list(dict.fromkeys(key for one in versions for key in one))
    parts = []
    if len(records) > 1:
        rows = [[f"<code>{escape(k)}</code>", *(shown(one.get(k)) for one in settings)] for k in differ]
        parts.append(table(heads, rows) if differ else "<p>The runs have the same settings.</p>")
    rows = [[f"<code>{escape(k)}</code>", shown(settings[0].get(k))] for k in same]
    title = f"{len(same)} settings that all share" if len(records) > 1 else f"{len(same)} settings"
    parts.append(f"<details><summary>{title}</summary>{table(['', 'value'], rows)}</details>")
    rows = [["path", *(escape(str(r.path)) for r in records)], ["created", *(created(r) for r in records)]]
    rows += [[escape(p), *(escape(str(one.get(p, "–"))) for one in versions)] for p in packages]
    parts.append(f"<details><summary>Versions and places</summary>{table(heads, rows)}</details>")
    return "\n".join(parts)


def created(record: Record) -> str:
    """When a run began."""
    return escape(str(record.description.get("created", "–")))


def shown(value: Any) -> str:
    """A setting as text."""
    text = "–" if value is None else escape(f"{value:,}" if type(value) is int else str(value))
    return f'<span class="long">{text}</span>' if len(text) > LONG else text
