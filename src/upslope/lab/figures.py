"""Panels → Plotly figures. Colours of paper and ink are the page's, set where it is shown."""

import math
from typing import Any

import numpy as np
from plotly import graph_objects

from upslope.lab.finding import Line, Panel
from upslope.lab.texts import typeset

COLOURS = ("#3d85c6", "#e07b39", "#3a9d6e", "#b565a7", "#c9a227", "#7f8c8d")
REFERENCE = "#8a8f98"


def figure(panel: Panel, words: dict[str, Any], names: dict[str, str]) -> graph_objects.Figure:
    """One small figure; `words` has its title and axes, `names` those of the curves."""
    drawn = graph_objects.Figure()
    seen: set[str] = set()
    for place, line in enumerate(panel.lines):
        draw = bars if panel.is_bars else curve
        drawn.add_trace(draw(line, panel, names, COLOURS[place % len(COLOURS)], line.name not in seen))
        seen.add(line.name)
    drawn.update_layout(
        title={"text": typeset(words["title"]), "font": {"size": 14}, "x": 0, "xref": "paper"},
        margin={"l": 8, "r": 12, "t": 44, "b": 92 if len(seen) > 1 else 8},
        height=350,
        showlegend=len(seen) > 1,
        # Room for two rows below the axis, whatever its labels leave to the plot.
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "x": 0, "xanchor": "left"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        barmode="group",
    )
    axis = {"automargin": True, "zeroline": False}
    drawn.update_xaxes(**axis, title=typeset(words["x"]), type="log" if panel.log_x else None)
    drawn.update_yaxes(**axis, title=typeset(words["y"]), type="log" if panel.log_y else None, nticks=6)
    if panel.log_y:
        drawn.update_yaxes(**decades(panel))
    if panel.is_bars:
        drawn.update_yaxes(autorange="reversed")
    elif panel.log_x:
        shown = list(panel.lines[0].x)
        step = -(-len(shown) // 6)
        drawn.update_xaxes(tickvals=shown[::step], ticktext=[f"{x:,.0f}" for x in shown[::step]])
    return drawn


def decades(panel: Panel) -> dict[str, Any]:
    """The labels of a logarithmic axis: powers of ten, with 2 and 5 between them where there are few."""
    values = np.concatenate([np.asarray(line.y, np.float64) for line in panel.lines])
    exponents = np.log10(values[values > 0])
    low, high = math.floor(exponents.min()), math.ceil(exponents.max())
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    return {"tickvals": ticks, "ticktext": [f"{tick:.10g}" for tick in ticks]}


def curve(line: Line, panel: Panel, names: dict[str, str], colour: str, is_first: bool) -> graph_objects.Scatter:
    """y(x): measured with markers, theory dashed."""
    mode = "lines" if line.is_reference else "markers" if panel.is_points else "lines+markers"
    if len(line.x) > 40:
        mode = "lines"
    return graph_objects.Scatter(
        x=list(line.x),
        y=floats(line.y),
        error_y=error_of(line),
        name=typeset(names.get(line.name, line.name)),
        legendgroup=line.name,
        showlegend=is_first,
        mode=mode,
        line={"color": REFERENCE if line.is_reference else colour, "dash": "dash" if line.is_reference else "solid"},
        marker={"size": 6},
    )


def bars(line: Line, panel: Panel, names: dict[str, str], colour: str, is_first: bool) -> graph_objects.Bar:
    """Lying bars, so that long names can be read on a narrow screen."""
    return graph_objects.Bar(
        y=[typeset(names.get(str(x), str(x))) for x in line.x],
        x=floats(line.y),
        error_x=error_of(line),
        orientation="h",
        name=typeset(names.get(line.name, line.name)),
        showlegend=is_first,
        marker={"color": REFERENCE if line.is_reference else colour},
    )


def error_of(line: Line) -> dict[str, Any] | None:
    """The interval, where there is one."""
    if line.low is None or line.high is None:
        return None
    y, low, high = (np.asarray(x, np.float64) for x in (line.y, line.low, line.high))
    return {"array": list(high - y), "arrayminus": list(y - low), "thickness": 1.2, "width": 3, "color": REFERENCE}


def floats(values: Any) -> list[float]:
    """Plain numbers, which every reader of JSON knows."""
    return [float(value) for value in values]
