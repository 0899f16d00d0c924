"""The progress of a ladder: on a terminal, a live table with a row per rung; otherwise, a line for each event."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from upslope.runs.display import (
    Display,
    LiveDisplay,
    Snapshot,
    choose,
    clock,
    extend_curve,
    progress_bar,
    return_words,
    sparkline,
    summary,
)

BAR_WIDTH = 12
CURVE_WIDTH = 20
FINISHED = "finished"
PAUSE = 30.0
"""Seconds between two lines about the same rung if the output is not a terminal."""


@dataclass
class Row:
    """The state of one rung."""

    note: str = "waiting"
    snapshot: Snapshot | None = None
    fraction: float = 0.0
    returns: Sequence[float] = ()
    """Each seed's mean return over its last 100 training episodes."""
    curve: list[float] = field(default_factory=list)

    def cells(self) -> tuple[RenderableType, ...]:
        """Progress, return with its interval, the curve so far, and the elapsed time."""
        if not len(self.returns):
            return "", "", "", ""
        value, _, warning = return_words(self.returns)
        returns = Text(value).append(f" {warning}", "yellow") if warning else Text(value)
        elapsed = clock(self.snapshot.elapsed) if self.snapshot else ""
        curve = Text(sparkline(self.curve, CURVE_WIDTH), "green")
        return progress_bar(self.fraction, BAR_WIDTH), returns, curve, elapsed


class LadderDisplay:
    """Shows all rungs while they are trained one after another; use it as a context manager."""

    def __init__(self, title: str, rungs: Sequence[str], quiet: bool) -> None:
        self.title, self.rows = title, {rung: Row() for rung in rungs}
        self.display = choose(quiet)
        self.started = time.monotonic()
        self.live: Live | None = None
        if isinstance(self.display, LiveDisplay):
            self.live = Live(console=self.display.console, get_renderable=self.table, refresh_per_second=4)

    def __enter__(self) -> "LadderDisplay":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, text: str) -> None:
        """Print a line above the table or to the log, unless the display is quiet."""
        if not self.display.is_quiet:
            self.display.message(text)

    def warn(self, text: str) -> None:
        """Print a line even if the display is quiet."""
        self.display.message(text)

    def mark(self, rung: str, note: str, returns: Sequence[float] = ()) -> None:
        """Set a rung's note, and also its returns if it had finished before this call to `ladder`."""
        row = self.rows[rung]
        row.note = note
        if len(returns):
            row.fraction, row.returns = 1.0, returns
        if self.live is None:
            end = f" {summary(row.snapshot).strip()}" if note == FINISHED and row.snapshot else ""
            self.say(f"{rung}: {note}{end}")

    def table(self) -> Table:
        """The current table."""
        title = Text.assemble((self.title, "bold"), (f" · {clock(time.monotonic() - self.started)}", "dim"))
        table = Table(title=title, title_justify="left")
        for column in ("rung", "progress", "return, mean over seeds", "over the run", "time", ""):
            table.add_column(column)
        for rung, row in self.rows.items():
            table.add_row(Text(rung, "bold"), *row.cells(), Text(row.note, "dim"))
        return table


class RungDisplay(Display):
    """Forwards the progress of one rung to the ladder's table."""

    def __init__(self, ladder: LadderDisplay, rung: str) -> None:
        self.ladder, self.rung, self.printed = ladder, rung, 0.0

    def start(self, title: str, lines: Sequence[str]) -> None:
        self.ladder.mark(self.rung, "starting")

    def update(self, snapshot: Snapshot) -> None:
        row = self.ladder.rows[self.rung]
        row.note, row.snapshot = "training", snapshot
        row.fraction, row.returns = snapshot.fraction, snapshot.episode_return
        extend_curve(row.curve, snapshot)
        if self.ladder.live is None and snapshot.elapsed - self.printed > PAUSE:
            self.printed = snapshot.elapsed
            self.ladder.say(f"{self.rung}: {summary(snapshot)}")

    def message(self, text: str) -> None:
        self.ladder.warn(f"{self.rung}: {text}")

    def finish(self, snapshot: Snapshot | None, lines: Sequence[str]) -> None:
        self.ladder.mark(self.rung, FINISHED)


def left_out_lines(left_out: Mapping[str, str]) -> list[str]:
    """One line for each reason why rungs are left out, with the names of these rungs."""
    reasons: dict[str, list[str]] = {}
    for rung, reason in left_out.items():
        reasons.setdefault(reason, []).append(rung)
    return [f"left out: {', '.join(rungs)}: {reason}" for reason, rungs in reasons.items()]
