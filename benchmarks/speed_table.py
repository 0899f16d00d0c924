"""What `speed.py` stored, as the tables and the plot of docs/performance.md.

A ratio says how many times as fast upslope is as another: of rates, upslope's over the other's; of seconds, the
other's over upslope's. It is always computed within a round, and below 1 where upslope is slower.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from pages import fill
from speed_cases import CASES

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "speed"
PAGE = HERE.parent / "docs" / "performance.md"
PLOT = HERE.parent / "docs" / "images" / "speed.svg"
Rounds = list[dict[str, dict[str, float]]]


def is_ours(name: str) -> bool:
    """Whether this contender is upslope."""
    return name.startswith("upslope")


def is_bound(name: str) -> bool:
    """Whether this contender only steps, and is no rival."""
    return name.startswith("raw")


def spread(values: list[float], digits: int = 0) -> str:
    """Median and range as text, or a single value."""
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
        """What was measured of a contender, one value a round."""
        return [r[who][self.unit] for r in self.rounds]

    def shown(self, who: str) -> str:
        """The same as text with its unit."""
        return f"{spread(self.values(who), 1)} s" if self.unit == "seconds" else spread(self.values(who))

    def median_of(self, who: str, key: str) -> str:
        """The median of another measurement as text, or a dash."""
        found = [r[who][key] for r in self.rounds if key in r[who]]
        return f"{statistics.median(found):,.1f}" if found else "–"

    def ratios(self, ours: str, other: str) -> list[float]:
        """How many times as fast the first is as the second, in every round."""
        pairs = zip(self.values(ours), self.values(other), strict=True)
        return [b / a if self.unit == "seconds" else a / b for a, b in pairs]

    def ratio_shown(self, ours: str, other: str) -> str:
        """The same as text, bold where upslope is slower."""
        ratios = self.ratios(ours, other)
        return spread(ratios, 2) if statistics.median(ratios) >= 1 else f"**{spread(ratios, 2)}**"

    def best_other(self) -> str | None:
        """The fastest rival by its median, if there is one."""
        rivals = [n for n in self.names if not is_ours(n) and not is_bound(n)]
        sign = -1 if self.unit == "seconds" else 1
        return max(rivals, key=lambda n: sign * statistics.median(self.values(n)), default=None)


def stored_results() -> list[Result]:
    """Those of every case that has been measured, in the order of the cases."""
    paths = {case: RESULTS / f"{case}.json" for case in CASES}
    return [Result(c, json.loads(p.read_text("utf-8"))) for c, p in paths.items() if p.exists()]


def against_the_best() -> str:
    """A Markdown table with a row for every shape: upslope beside the fastest rival, and the share of raw stepping."""
    lines = [
        "| work | upslope | steps/s, or s | the best other | steps/s, or s | times as fast | of raw stepping | on |",
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
    """A Markdown table of every case's contenders, with what each needs to begin."""
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
    """Plot bars for every case, with the range over rounds."""
    from matplotlib import pyplot

    results = stored_results()
    heights = [0.5 + 0.28 * len(result.names) for result in results]
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
        axis.set_title(f"{result.title} ({unit})", fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(PLOT)


def phases() -> str:
    """The stored results of `benchmarks/phases.py` as a Markdown table."""
    stored = json.loads((HERE / "results" / "phases.json").read_text("utf-8"))
    lines = ["| case | parts |", "|---|---|"]
    for case, parts in stored.items():
        lines.append(f"| {case} | " + ", ".join(f"{name} {value:g}" for name, value in parts.items()) + " |")
    return "\n".join(lines)


def write_page() -> None:
    """Write the tables between their marks, and draw the plot."""
    fill(PAGE, "speed", against_the_best())
    fill(PAGE, "contenders", contenders())
    fill(PAGE, "phases", phases())
    plot()
