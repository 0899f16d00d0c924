"""The sections that are tables: the comparison, and the settings."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import numpy as np

from upslope.analysis.comparison import Comparison, Group
from upslope.analysis.records import Record
from upslope.analysis.statistics import Estimate
from upslope.report.figures import Figures, axis, typed


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
            parts.append(improvement_table(comparison, groups))
    return "\n".join(parts)


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
    """Mean, interquartile mean, median, and how early it learned."""
    known = [g.efficiency for g in groups if g.efficiency]
    early = [f"return at<br>{steps:,} steps" for steps in known[0].steps] if known else []
    head = ["", "seeds", "budget (steps)", "mean", "IQM", "median", *early]
    rows = []
    for g in groups:
        cells = [escape(g.label), str(len(g.seeds)), f"{g.budget:,}"]
        cells += [estimate(g.mean), estimate(g.iqm), estimate(g.median)]
        cells += [estimate(e) for e in g.efficiency.at] if g.efficiency else ["–"] * len(early)
        rows.append([*cells, estimate(g.efficiency.area) if g.efficiency else "–"])
    return table([*head, "area under<br>the curve"], rows)


def improvement_table(comparison: Comparison, groups: Sequence[Group]) -> str:
    """P(a seed of the row scores higher than one of the column)."""
    labels, cells = [g.label for g in groups], {}
    for found in comparison.improvements:
        if found.environments == (groups[0].environment,):
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
    versions = [r.description["versions"] for r in records]
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
    return "–" if value is None else escape(f"{value:,}" if type(value) is int else str(value))
