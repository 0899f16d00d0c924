"""Turn the results of `speed.py` into the tables and the plot of docs/performance.md.

A ratio states how many times as fast upslope is as another contender: upslope's rate divided by the other's, or the
other's duration divided by upslope's. It is always computed within a round and is below 1 if upslope is slower.
"""

import json
import statistics
import textwrap
from pathlib import Path
from typing import Any

from pages import fill
from speed_cases import CASES

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "speed"
PAGE = HERE.parent / "docs" / "performance.md"
PLOT = HERE.parent / "docs" / "images" / "speed.svg"
TITLE_WIDTH = 76
"""Characters that fit on a line above a bar plot."""
Rounds = list[dict[str, dict[str, float]]]


def is_ours(name: str) -> bool:
    """Whether this contender is upslope."""
    return name.startswith("upslope")


def is_bound(name: str) -> bool:
    """Whether this contender only steps the environment and is therefore not a rival."""
    return name.startswith("raw")


def spread(values: list[float], digits: int = 0) -> str:
    """Format the median and range of several values, or a single value."""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} – {max(values):,.{digits}f})"


class Result:
    """The stored rounds of one case."""

    def __init__(self, case: str, stored: dict[str, Any]) -> None:
        self.title: str = stored["title"]
        self.unit: str = stored.get("unit", "steps_per_second")
        self.rounds: Rounds = stored["rounds"]
        self.processor: str = stored.get("machine", {}).get("processor", "–")
        self.names = list(self.rounds[0])
        self.case = case

    def values(self, who: str) -> list[float]:
        """Return a contender's measured values, one per round."""
        return [r[who][self.unit] for r in self.rounds]

    def shown(self, who: str) -> str:
        """Format the median and range of a contender's values."""
        return f"{spread(self.values(who), 1)} s" if self.unit == "seconds" else spread(self.values(who))

    def median_of(self, who: str, key: str) -> str:
        """Format the median of another measurement, or a dash if there is none."""
        found = [r[who][key] for r in self.rounds if key in r[who]]
        return f"{statistics.median(found):,.1f}" if found else "–"

    def ratios(self, ours: str, other: str) -> list[float]:
        """Return how many times as fast the first contender is as the second, for every round."""
        pairs = zip(self.values(ours), self.values(other), strict=True)
        return [b / a if self.unit == "seconds" else a / b for a, b in pairs]

    def ratio_shown(self, ours: str, other: str) -> str:
        """Format the ratios, in bold if upslope is slower."""
        ratios = self.ratios(ours, other)
        return spread(ratios, 2) if statistics.median(ratios) >= 1 else f"**{spread(ratios, 2)}**"

    def best_other(self) -> str | None:
        """Return the rival with the fastest median, if there is a rival."""
        rivals = [n for n in self.names if not is_ours(n) and not is_bound(n)]
        sign = -1 if self.unit == "seconds" else 1
        return max(rivals, key=lambda n: sign * statistics.median(self.values(n)), default=None)


def stored_results() -> list[Result]:
    """Read the results of every measured case, in the order of the cases."""
    paths = {case: RESULTS / f"{case}.json" for case in CASES}
    return [Result(c, json.loads(p.read_text("utf-8"))) for c, p in paths.items() if p.exists()]


def against_the_best() -> str:
    """Format a Markdown table that compares upslope with the fastest rival in each case, and with raw stepping."""
    lines = [
        "| work | upslope | steps/s, or s | fastest peer | steps/s, or s | times as fast | of raw stepping | on |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in stored_results():
        best = result.best_other()
        bound = next((n for n in result.names if is_bound(n)), None)
        for ours in filter(is_ours, result.names):
            which = ours.removeprefix("upslope").strip(", ") or "one run"
            other = (best, result.shown(best), result.ratio_shown(ours, best)) if best else ("–", "–", "–")
            share = spread(result.ratios(ours, bound), 2) if bound else "–"
            cells = (result.title, which, result.shown(ours), *other, share, result.processor)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def contenders() -> str:
    """Format a Markdown table of all contenders in every case, with their start-up times and peak memory."""
    lines = [
        "| work | who | steps/s, or s: median (range) | until the first update, s | peak memory, MB |",
        "|---|---|---|---|---|",
    ]
    for result in stored_results():
        for who in result.names:
            extra = [result.median_of(who, key) for key in ("first_update", "peak_memory_mb")]
            lines.append(f"| {result.title} | {who} | {result.shown(who)} | {extra[0]} | {extra[1]} |")
    return "\n".join(lines)


def plot() -> None:
    """Draw a bar plot for every case, with the range over rounds."""
    from matplotlib import pyplot

    results = stored_results()
    heights = [0.7 + 0.28 * len(result.names) for result in results]
    figure, axes = pyplot.subplots(
        len(results), 1, figsize=(8, sum(heights) + 0.5), height_ratios=heights, layout="constrained"
    )
    for axis, result in zip(axes, results, strict=True):
        scale = 1 if result.unit == "seconds" else 1e3
        measured = [[value / scale for value in result.values(who)] for who in result.names]
        middle = [statistics.median(x) for x in measured]
        reach = [
            [m - min(x) for m, x in zip(middle, measured, strict=True)],
            [max(x) - m for m, x in zip(middle, measured, strict=True)],
        ]
        colours = ["#1f77b4" if is_ours(who) else "#b0b0b0" for who in result.names]
        axis.barh(result.names, middle, xerr=reach, color=colours)
        axis.invert_yaxis()
        unit = "seconds; less is better" if result.unit == "seconds" else "thousand steps/s"
        axis.set_title(textwrap.fill(f"{result.title} ({unit})", TITLE_WIDTH), fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(PLOT)


def phases() -> str:
    """Format the stored results of `benchmarks/phases.py` as a Markdown table."""
    stored = json.loads((HERE / "results" / "phases.json").read_text("utf-8"))
    lines = ["| case | parts |", "|---|---|"]
    for case, parts in stored.items():
        lines.append(f"| {case} | " + ", ".join(f"{name} {value:g}" for name, value in parts.items()) + " |")
    return "\n".join(lines)


def write_page() -> None:
    """Write the tables between their markers in the page, and draw the plot."""
    fill(PAGE, "speed", against_the_best())
    fill(PAGE, "contenders", contenders())
    fill(PAGE, "phases", phases())
    plot()
