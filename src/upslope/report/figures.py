"""Plotly figures as data, to be drawn by the script on the page.

A colour is a name that the script looks up in the light or the dark theme: `@0` … for runs, `@ink`, `@up` and `@down`;
`@0/0.2` has an opacity of 0.2. Other strings are left unchanged.
"""

import base64
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

NUM_COLOURS = 7
DASHES = ("solid", "dash", "dot", "dashdot")
"""Dash styles; after every seven runs, the colours repeat with the next style."""
LEGEND_BELOW = {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0, "xanchor": "left"}
"""Position of a legend at the bottom of the figure, below the axis labels."""


class Html(str):
    """Text that is already HTML, so that templates do not escape it."""

    def __html__(self) -> str:
        return self


@dataclass
class Figures:
    """The figures of a page, in order."""

    found: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self, traces: list[dict[str, Any]], layout: dict[str, Any], *, height: int, label: str, linked: bool = False
    ) -> Html:
        """Add a figure, and return the HTML element that holds it. `linked` figures share the axis of environment
        steps."""
        name = f"figure-{len(self.found)}"
        self.found.append({"name": name, "data": traces, "layout": layout, "linked": linked})
        style = f'style="height:{height}px"'
        return Html(f'<div class="chart" id="{name}" {style} role="img" aria-label="{escape(label)}"></div>')


def typed(x: np.ndarray) -> dict[str, Any]:
    """Encode numbers in the form that Plotly reads fastest: 32-bit floats in base64."""
    array = np.ascontiguousarray(x, "<f4")
    shape = {"shape": ", ".join(map(str, array.shape))} if array.ndim > 1 else {}
    return {"dtype": "f4", "bdata": base64.b64encode(array.tobytes()).decode(), **shape}


def colour(run: int, opacity: float = 1.0) -> str:
    """The name of a run's colour."""
    return f"@{run % NUM_COLOURS}/{opacity:g}"


def dash(run: int) -> str:
    """The dash style of a run's mean."""
    return DASHES[run // NUM_COLOURS % len(DASHES)]


def mean_and_band(run: int, name: str, steps: np.ndarray, band: Any) -> list[dict[str, Any]]:
    """The mean over seeds as a line, and its interval (if there is one) as an area around it."""
    traces = []
    if np.isfinite(band.low).any():
        x, y = area_around(steps, band.low, band.high)
        area = {"fill": "toself", "fillcolor": colour(run, 0.18), "line": {"width": 0}, "mode": "lines"}
        traces.append({**base(run, name), "x": typed(x), "y": typed(y), **area, "hoverinfo": "skip"})
    line = {"color": colour(run), "width": 2.5, "dash": dash(run)}
    shown = np.isfinite(band.mean)
    traces.append(
        {**base(run, name), "x": typed(steps[shown]), "y": typed(band.mean[shown]), "mode": "lines", "line": line}
        | {"hovertemplate": "%{y:.4~g}"}
    )
    return traces


def area_around(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The outline of the area between two curves: one polygon for each stretch where both are finite, separated by
    nan."""
    known = np.isfinite(low) & np.isfinite(high)
    stretches = np.split(np.arange(len(x)), np.flatnonzero(np.diff(known)) + 1)
    gap, outline_x, outline_y = np.array([np.nan]), [], []
    for stretch in stretches:
        if known[stretch[0]]:
            outline_x += [x[stretch], x[stretch][::-1], gap]
            outline_y += [high[stretch], low[stretch][::-1], gap]
    return np.concatenate(outline_x), np.concatenate(outline_y)


def seeds_trace(run: int, name: str, curves: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """The curves of all seeds as one trace of thin lines, separated by nan."""
    gap = np.array([np.nan])
    x = np.concatenate([part for steps, _ in curves for part in (steps, gap)])
    y = np.concatenate([part for _, values in curves for part in (values, gap)])
    line = {"color": colour(run, 0.35), "width": 1}
    return {**base(run, name), "x": typed(x), "y": typed(y), "mode": "lines", "line": line, "hoverinfo": "skip"}


def base(run: int, name: str) -> dict[str, Any]:
    """The settings shared by all traces of a run."""
    return {"type": "scatter", "name": escape(name), "meta": {"run": run}, "showlegend": False}


def around(values: list[np.ndarray]) -> dict[str, Any]:
    """An axis range around all these values; empty if they do not differ."""
    finite = np.concatenate([np.zeros(0), *(x[np.isfinite(x)] for x in values)])
    if not finite.size:
        return {}
    low, high = float(finite.min()), float(finite.max())
    margin = 0.06 * (high - low)
    return {"range": [low - margin, high + margin]} if margin > 0 else {}


def axis(title: str, **settings: Any) -> dict[str, Any]:
    """An axis with its title; large numbers are labelled with powers of ten rather than with letters."""
    return {"title": {"text": title}, "exponentformat": "power", **settings}
