"""The section of evaluation episodes: how returns are spread, seed by seed, in both modes."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from upslope.analysis.records import Record
from upslope.report.curves import grid_of
from upslope.report.figures import Figures, axis, typed

MODE_COLOURS = {"stochastic": "@0", "deterministic": "@1"}
CHECKPOINTS = ("last", "best")


def evaluation_section(figures: Figures, records: Sequence[Record], names: Sequence[str]) -> str:
    """A figure for each run that was evaluated."""
    cards = [
        card(figures, record, name, checkpoint)
        for record, name in zip(records, names, strict=True)
        for checkpoint in CHECKPOINTS
        if (record.evaluations["checkpoint"] == checkpoint).any()
    ]
    without = [r for r in records if not len(r.evaluations)]
    parts = []
    if cards:
        modes = ", ".join(f'<span style="color:var(--run-{c[1:]})">■</span> {mode}' for mode, c in MODE_COLOURS.items())
        parts.append(
            f"<p>Every evaluation episode is a point; boxes span the quartiles of a seed's episodes. {modes}. Only "
            "seeds are independent: episodes of one seed do not make the evidence stronger.</p>"
        )
        parts.append(grid_of(cards))
    if without:
        commands = "\n".join(f"upslope evaluate {record.path}" for record in without)
        parts.append(f"<p>Not evaluated yet. To add them:</p><pre>{escape(commands)}</pre>")
    return "\n".join(parts)


def card(figures: Figures, record: Record, name: str, checkpoint: str) -> str:
    """One run's episodes by seed and mode."""
    mine = record.evaluations[record.evaluations["checkpoint"] == checkpoint]
    traces: list[dict[str, Any]] = []
    for mode, colour in MODE_COLOURS.items():
        rows = mine[mine["mode"] == mode]
        places = np.array([record.seeds.index(s) for s in rows["seed"].tolist() if s in record.seeds])
        rows = rows[np.isin(rows["seed"], record.seeds)]
        points = {"boxpoints": "all", "jitter": 0.6, "pointpos": 0, "marker": {"color": colour, "size": 3}}
        box = {"line": {"color": colour, "width": 1}, "fillcolor": f"{colour}/0.15", "hoveron": "points"}
        data = {"type": "box", "name": mode, "x": typed(places), "y": typed(rows["return"]), "showlegend": False}
        traces.append({**data, **points, **box, "hovertemplate": "%{y:.5~g}"})
    ticks = {"tickvals": list(range(len(record.seeds))), "ticktext": [str(s) for s in record.seeds]}
    layout = {
        "xaxis": axis("seed", **ticks),
        "yaxis": axis("return (reward)"),
        "boxmode": "group",
        "hovermode": "closest",
    }
    figure = figures.add(traces, layout, height=260, label=f"Evaluation episodes of {name}")
    title = f"{escape(name)} · {escape(record.config.environment)}" + (" · best" if checkpoint == "best" else "")
    return f'<article class="card"><h3>{title}</h3>{figure}</article>'
