"""Evaluation episodes: the distribution of each seed's returns in both modes."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from upslope.analysis.records import Record
from upslope.report.curves import Card
from upslope.report.figures import Figures, axis, typed

MODES = {"stochastic": 0, "deterministic": 1}
"""The index of each mode's colour among the runs' colours."""
CHECKPOINTS = ("last", "best")


def evaluation_part(figures: Figures, records: Sequence[Record], names: Sequence[str]) -> dict[str, Any]:
    """A figure for each evaluated run, and the paths of the runs that were not evaluated."""
    cards = [
        evaluation_card(figures, record, name, checkpoint)
        for record, name in zip(records, names, strict=True)
        for checkpoint in CHECKPOINTS
        if (record.evaluations["checkpoint"] == checkpoint).any()
    ]
    return {"cards": cards, "modes": MODES, "without": [r.path for r in records if not len(r.evaluations)]}


def evaluation_card(figures: Figures, record: Record, name: str, checkpoint: str) -> Card:
    """The returns of one run's episodes, by seed and mode."""
    episodes = record.evaluations[record.evaluations["checkpoint"] == checkpoint]
    episodes = episodes[np.isin(episodes["seed"], record.seeds)]
    traces: list[dict[str, Any]] = []
    for mode, place in MODES.items():
        rows, colour = episodes[episodes["mode"] == mode], f"@{place}"
        seeds = np.array([record.seeds.index(s) for s in rows["seed"].tolist()])
        points = {"boxpoints": "all", "jitter": 0.6, "pointpos": 0, "marker": {"color": colour, "size": 3}}
        box = {"line": {"color": colour, "width": 1}, "fillcolor": f"{colour}/0.15", "hoveron": "points"}
        data = {"type": "box", "name": mode, "x": typed(seeds), "y": typed(rows["return"]), "showlegend": False}
        traces.append({**data, **points, **box, "hovertemplate": "%{y:.5~g}"})
    ticks = {"tickvals": list(range(len(record.seeds))), "ticktext": [str(s) for s in record.seeds]}
    layout = {"xaxis": axis("seed", **ticks), "yaxis": axis("return (reward)")}
    layout |= {"boxmode": "group", "hovermode": "closest"}
    figure = figures.add(traces, layout, height=260, label=f"Evaluation episodes of {name}")
    title = f"{name} · {record.config.environment}" + (" · best" if checkpoint == "best" else "")
    return Card(title, figure)
