"""Output for notebooks: the training panel, redrawn in place, and a summary of a run as HTML."""

import io
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from rich.console import RenderableType

from upslope.config.config import Config
from upslope.core import html
from upslope.core.consoles import PlainTextConsole
from upslope.core.messages import readable
from upslope.core.numbers import half_width, number, plus_minus, range_of
from upslope.errors import UpslopeError
from upslope.runs.directory import RunDirectory
from upslope.runs.display import Display, Snapshot, extend_curve, panel, title_of

WIDTH = 92
"""Width of the panel in characters."""
REDRAW_SECONDS = 1.0
"""Minimum number of seconds between redraws."""
CODE = "<pre style='line-height: 1.2; white-space: pre; overflow-x: auto'>{code}</pre>"
CURVE_WINDOW, CURVE_POINTS = 100, 200
"""Number of episodes averaged for each point of a curve, and number of points of a curve."""
PICTURE = (560, 180)
"""Width and height of the figure of the curves, in pixels."""
COLOURS = ("#4053d3", "#ddb310", "#b51d14", "#00beff", "#fb49b0", "#00b25d", "#8a8a8a")
TABLES = ("metrics", "episodes", "evaluation")


class NotebookDisplay(Display):
    """The output of a notebook cell, which is redrawn in place and remains visible after the run has ended."""

    def __init__(self) -> None:
        self.title = ""
        self.curve: list[float] = []
        self.snapshot: Snapshot | None = None
        self.handle: Any = None
        self.due = 0.0

    def start(self, title: str, lines: Sequence[str]) -> None:
        self.title = readable(title)
        for line in lines:
            self.message(line)

    def update(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        extend_curve(self.curve, snapshot)
        if time.monotonic() >= self.due:
            self.draw()

    def recall(self, snapshots: Sequence[Snapshot]) -> None:
        for snapshot in snapshots:
            extend_curve(self.curve, snapshot)

    def draw(self) -> None:
        """Redraw the panel."""
        if self.snapshot is None:
            return
        shown = import_module("IPython.display")
        picture = shown.HTML(html_of(panel(self.title, self.snapshot, self.curve, WIDTH)))
        if self.handle is None:
            self.handle = shown.display(picture, display_id=True)
        else:
            self.handle.update(picture)
        self.due = time.monotonic() + REDRAW_SECONDS

    def message(self, text: str) -> None:
        print(readable(text), flush=True)

    def finish(self, snapshot: Snapshot | None, lines: Sequence[str]) -> None:
        if snapshot is not None:
            self.update(snapshot)
        for line in lines:
            self.message(line)

    def __exit__(self, *exception: object) -> None:
        self.draw()


def html_of(renderable: RenderableType) -> str:
    """Render rich output as HTML."""
    console = PlainTextConsole(
        record=True, width=WIDTH, file=io.StringIO(), color_system="truecolor", force_jupyter=False, force_terminal=True
    )
    console.print(renderable)
    return console.export_html(inline_styles=True, code_format=CODE)


def page_of_run(directory: RunDirectory, config: Config, returns: np.ndarray) -> str:
    """Summarise a run as HTML: what was trained, each seed's return, and the learning curves."""
    parts = [f"<b>{html.text(title_of(config))}</b><br>{html.text(directory.path)}"]
    if config.data is not None:
        return f"<div>{parts[0]}{html.paragraph('It learned from recorded data: see upslope.evaluate.')}</div>"
    spread = range_of(returns)
    rows: list[tuple[object, str]] = [
        (seed, number(float(x), spread)) for seed, x in zip(config.seed_list(), returns, strict=True)
    ]
    half = half_width(returns)
    if np.isfinite(half):
        rows.append(("mean", f"{plus_minus(float(np.nanmean(returns)), half)} (95 %)"))
    parts.append(html.table("Mean return of the last 100 training episodes", ("seed", "return"), rows))
    try:
        parts.append(curves(directory.episodes(), config))
    except UpslopeError as error:
        parts.append(html.paragraph(error))
    return f"<div>{''.join(parts)}</div>"


def curves(episodes: np.ndarray, config: Config) -> str:
    """Draw the mean return of each seed's last 100 training episodes over the budget, as SVG."""
    lines = {seed: curve_of(episodes[episodes["seed"] == seed]) for seed in config.seed_list()}
    heights = np.concatenate([y for _, y in lines.values()])
    if not len(heights) or not np.isfinite(heights).all():
        return ""
    low, high = float(heights.min()), float(heights.max())
    width, height = PICTURE
    left, bottom = 60, 20

    def points(x: np.ndarray, y: np.ndarray) -> str:
        across = left + x / max(config.steps, 1) * (width - left - 10)
        up = 10 + (high - y) / ((high - low) or 1) * (height - bottom - 15)
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, up, strict=True))

    drawn = "".join(
        f"<polyline fill='none' stroke='{COLOURS[k % len(COLOURS)]}' stroke-width='1.5' points='{points(x, y)}'>"
        f"<title>seed {seed}</title></polyline>"
        for k, (seed, (x, y)) in enumerate(lines.items())
    )
    words = "font-size='11' fill='currentColor'"
    labels = (
        f"<text x='{left - 6}' y='14' text-anchor='end' {words}>{number(high, high - low)}</text>"
        f"<text x='{left - 6}' y='{height - bottom - 5}' text-anchor='end' {words}>{number(low, high - low)}</text>"
        f"<text x='{width - 10}' y='{height - 4}' text-anchor='end' {words}>{config.steps:,} steps</text>"
    )
    frame = f"<path d='M{left},8 V{height - bottom} H{width - 10}' fill='none' stroke='currentColor' opacity='0.4'/>"
    return f"<svg viewBox='0 0 {width} {height}' width='{width}' height='{height}'>{frame}{drawn}{labels}</svg>"


def curve_of(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Select the points of a curve: steps at which episodes ended, and the mean return of the last 100 episodes at each
    step."""
    rows = rows[np.argsort(rows["step"], kind="stable")]
    total = np.concatenate([[0.0], np.cumsum(rows["return"], dtype=np.float64)])
    last = np.arange(1, len(rows) + 1)
    first = np.maximum(last - CURVE_WINDOW, 0)
    some = np.unique(np.linspace(0, len(rows) - 1, CURVE_POINTS).astype(int)) if len(rows) else np.zeros(0, int)
    means = (total[last] - total[first]) / (last - first)
    return rows["step"][some].astype(float), means[some]


def frame_of(directory: RunDirectory, which: str) -> Any:
    """Return a table of a run as a pandas DataFrame.

    Raises:
        UpslopeError: there is no such table, or pandas is not installed.
    """
    if which not in TABLES:
        raise UpslopeError(f'There is no table "{which}". A run has {", ".join(TABLES)}.')
    try:
        pandas = import_module("pandas")
    except ImportError as error:
        raise UpslopeError('A DataFrame needs the package pandas: pip install "upslope[pandas]".') from error
    if which == "metrics":
        table = pandas.DataFrame(directory.metrics())
        numbers = [name for name in table.columns if name not in ("iteration", "seed", "step")]
        return table.astype(dict.fromkeys(numbers, float))
    return pandas.DataFrame(directory.episodes() if which == "episodes" else directory.evaluations())
