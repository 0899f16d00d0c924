"""The standing of a race: one row a rung, live on a terminal, a line when something happens elsewhere."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from upslope.runs.display import Display, LiveDisplay, choose, extend_curve, summary
from upslope.runs.panel import Snapshot, clock, percent, return_words, sparkline

BAR_WIDTH = 12
CURVE_WIDTH = 20
FINISHED = "finished"
TOLD_EVERY = 30.0
"""Seconds between the lines of one rung, where there is no terminal."""


@dataclass
class Row:
    """What is known of one rung."""

    note: str = "waiting"
    fraction: float = 0.0
    returns: Sequence[float] = ()
    """Each seed's mean return of its last 100 training episodes."""
    curve: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    summary: str = ""


class Standing:
    """Shows all rungs of a race while they train one after another; use it as a context."""

    def __init__(self, title: str, rungs: Sequence[str], quiet: bool) -> None:
        self.title, self.rows = title, {rung: Row() for rung in rungs}
        self.display = choose(quiet)
        self.started = time.monotonic()
        self.live: Live | None = None
        if isinstance(self.display, LiveDisplay):
            self.live = Live(console=self.display.console, get_renderable=self.table, refresh_per_second=4)

    def __enter__(self) -> "Standing":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live is not None:
            self.live.stop()

    def say(self, text: str) -> None:
        """A line above the table, or in the log; nothing if it is to be quiet."""
        if self.live is not None:
            self.display.message(text)
        else:
            self.display.finish(None, [text])

    def warn(self, text: str) -> None:
        """What must not be lost."""
        self.display.message(text)

    def lane(self, rung: str) -> "Lane":
        """Where the training of a rung reports to."""
        return Lane(self, rung)

    def mark(self, rung: str, note: str, returns: Sequence[float] = ()) -> None:
        """How a rung stands, in a word; with its returns if it has come to its end before."""
        row = self.rows[rung]
        row.note = note
        if len(returns):
            row.fraction, row.returns = 1.0, returns
        if self.live is None:
            self.say(f"{rung}: {note}" + (f" {row.summary.strip()}" if note == FINISHED else ""))

    def table(self) -> Table:
        """The standing as of now."""
        title = Text.assemble((self.title, "bold"), (f" · {clock(time.monotonic() - self.started)}", "dim"))
        table = Table(title=title, title_justify="left")
        for column in ("rung", "progress", "return, mean over seeds", "over the run", "time", ""):
            table.add_column(column)
        for rung, row in self.rows.items():
            table.add_row(Text(rung, "bold"), *cells(row), Text(row.note, "dim"))
        return table


class Lane(Display):
    """One rung's training, reported to the standing."""

    def __init__(self, standing: Standing, rung: str) -> None:
        self.standing, self.rung, self.told = standing, rung, 0.0

    def start(self, title: str, lines: Sequence[str]) -> None:
        self.standing.mark(self.rung, "starting")

    def update(self, snapshot: Snapshot) -> None:
        row = self.standing.rows[self.rung]
        row.note, row.fraction, row.returns = "training", snapshot.fraction, snapshot.episode_return
        row.elapsed, row.summary = snapshot.elapsed, summary(snapshot)
        extend_curve(row.curve, snapshot)
        if self.standing.live is None and snapshot.elapsed - self.told > TOLD_EVERY:
            self.told = snapshot.elapsed
            self.standing.say(f"{self.rung}: {row.summary}")

    def message(self, text: str) -> None:
        self.standing.warn(f"{self.rung}: {text}")

    def finish(self, snapshot: Snapshot | None, lines: Sequence[str]) -> None:
        self.standing.mark(self.rung, FINISHED)


def cells(row: Row) -> tuple[RenderableType, ...]:
    """Progress, return with its interval, the curve so far, and the time."""
    if not len(row.returns):
        return "", "", "", ""
    bar = Table.grid(padding=(0, 1, 0, 0))
    bar.add_row(ProgressBar(1.0, row.fraction, width=BAR_WIDTH), percent(row.fraction))
    value, _, warning = return_words(row.returns)
    trust = Text(value).append(f" {warning}", "yellow") if warning else Text(value)
    time_spent = clock(row.elapsed) if row.elapsed else ""
    return bar, trust, Text(sparkline(row.curve, CURVE_WIDTH), "green"), time_spent


def left_out_lines(left_out: Mapping[str, str]) -> list[str]:
    """Which rungs do not take part, and why; those with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for rung, reason in left_out.items():
        reasons.setdefault(reason, []).append(rung)
    return [f"left out: {', '.join(rungs)}: {reason}" for reason, rungs in reasons.items()]
