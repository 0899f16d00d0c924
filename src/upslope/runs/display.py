"""What a person sees while training runs: a live panel, plain lines, or nothing.

Training hands over a `Snapshot` after each iteration and never waits for the screen: `update` only stores it,
and the panel is drawn about once a second from the latest one.
"""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.segment import Segment
from rich.text import Text

from upslope.core.consoles import PlainTextConsole
from upslope.core.messages import readable
from upslope.runs.panel import (
    CURVE_POINTS,
    Snapshot,
    clock,
    mean,
    panel,
    percent,
    progress_words,
    return_words,
    time_words,
)

WIDEST_PANEL = 100
LONGEST_PAUSE = 3.0
"""Seconds between two pictures, whatever drawing costs."""
SHARE = 0.02
"""Of one core's time, which training would use too, at most so much goes into drawing."""
TO_ASCII = str.maketrans({"±": "+/-", "·": "-", "–": "-", "—": "-", "−": "-", "→": "->", "…": "..."})


def extend_curve(curve: list[float], snapshot: Snapshot) -> None:
    """Note the mean return at its place on the budget's axis: at most `CURVE_POINTS` points in all."""
    place = min(int(snapshot.fraction * CURVE_POINTS), CURVE_POINTS - 1)
    now = mean(snapshot.episode_return)
    # A resumed run knows nothing of what went before it; within a run, a long iteration spans several points.
    curve.extend([now if curve else math.nan] * (place - len(curve)))
    curve[place:] = [now]


def summary(snapshot: Snapshot) -> str:
    """The same in one line, for a log."""
    value, note, warning = return_words(snapshot.episode_return, snapshot.is_recorded)
    trust = f"{note} · {warning}" if warning else note
    done = f"{percent(snapshot.fraction):>5}  {progress_words(snapshot)} steps per seed"
    return f"{done}  return {value} {trust}  after {time_words(snapshot)}"


@runtime_checkable
class Display(Protocol):
    """Where training reports to. Leaving its `with` block restores the terminal, whatever happened inside."""

    is_quiet: bool = False
    """Whether nothing but messages is shown, so that snapshots need not be interpreted."""

    def start(self, title: str, lines: Sequence[str]) -> None:
        """Announce the run: its title, and what is worth knowing before it begins."""

    def update(self, snapshot: Snapshot) -> None:
        """Note where the run stands; cheap enough to call after each iteration."""

    def message(self, text: str) -> None:
        """Tell what must not be lost, such as a warning."""

    def finish(self, snapshot: Snapshot | None, lines: Sequence[str]) -> None:
        """Show the last state, then the closing lines."""

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *exception: object) -> None:
        return None


class SparingLive(Live):
    """Redraws so seldom that it takes `SHARE` of a core's time at most."""

    due = 0.0
    """Seconds on the monotonic clock."""

    def refresh(self) -> None:
        if time.monotonic() >= self.due:
            before = time.thread_time()
            super().refresh()
            self.due = time.monotonic() + min((time.thread_time() - before) / SHARE, LONGEST_PAUSE)

    def stop(self) -> None:
        self.due = 0.0
        super().stop()


class Drawn:
    """Lines that are laid out already."""

    def __init__(self, lines: list[list[Segment]]):
        self.lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for line in self.lines:
            yield from line
            yield Segment.line()


class LiveDisplay(Display):
    """A panel that is redrawn in place, for a terminal. It stays on the screen when the run has ended."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or PlainTextConsole()
        self.title = ""
        self.curve: list[float] = []
        self.snapshot: Snapshot | None = None
        self.updated = time.monotonic()
        self.live = SparingLive(console=self.console, get_renderable=self.render, refresh_per_second=1)

    def start(self, title: str, lines: Sequence[str]) -> None:
        self.title, self.updated = readable(title), time.monotonic()
        for line in lines:
            self.message(line)
        self.live.start()

    def update(self, snapshot: Snapshot) -> None:
        self.snapshot, self.updated = snapshot, time.monotonic()
        extend_curve(self.curve, snapshot)

    def message(self, text: str) -> None:
        self.console.print(Text(readable(text)))

    def finish(self, snapshot: Snapshot | None, lines: Sequence[str]) -> None:
        if snapshot is not None:
            self.update(snapshot)
        self.live.stop()
        for line in lines:
            self.message(line)

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def render(self) -> RenderableType:
        """The panel as of now, low enough to redraw in place while the run goes on."""
        snapshot, silence = self.snapshot, time.monotonic() - self.updated
        if snapshot is None:
            return Text(f"{self.title}: waiting for the first iteration, {clock(silence)}", "dim")
        picture = self.panel_of(snapshot, silence)
        if not self.live.is_started:
            return picture
        lines = self.console.render_lines(picture)
        if len(lines) > self.console.height:
            lines = self.console.render_lines(self.panel_of(snapshot, silence, brief=True))
        return Drawn(lines)

    def panel_of(self, snapshot: Snapshot, silence: float, brief: bool = False) -> Panel:
        """The panel, with a word on how old it is."""
        # Ctrl-C makes the terminal write ^C after the panel: two free columns keep it on that line.
        width = min(self.console.width - 2, WIDEST_PANEL)
        picture = panel(self.title, snapshot, list(self.curve), width, brief)
        if silence >= 5:
            picture.subtitle, picture.subtitle_align = Text(f"updated {clock(silence)} ago", "dim"), "right"
        return picture


class PlainDisplay(Display):
    """Plain lines for a pipe or a log file: one for every tenth of the budget, and one every 30 seconds."""

    def __init__(self, stream: Any = None) -> None:
        self.stream = sys.stdout if stream is None else stream
        self.tenth = -1
        self.told = 0.0
        self.finding = ""

    def start(self, title: str, lines: Sequence[str]) -> None:
        for line in (title, *lines):
            self.message(line)

    def update(self, snapshot: Snapshot) -> None:
        tenth = math.floor(snapshot.fraction * 10)
        if tenth > self.tenth or snapshot.elapsed - self.told >= 30:
            self.tenth, self.told = tenth, snapshot.elapsed
            self.message(summary(snapshot))
        if snapshot.finding not in ("", self.finding):
            self.finding = snapshot.finding
            self.message(f"doctor: {snapshot.finding}")

    def message(self, text: str) -> None:
        text = readable(text)
        # A StringIO names no encoding and holds any character.
        if not (getattr(self.stream, "encoding", None) or "utf-8").lower().startswith("utf"):
            text = text.translate(TO_ASCII).encode("ascii", "replace").decode()
        print(text, file=self.stream, flush=True)

    def finish(self, snapshot: Snapshot | None, lines: Sequence[str]) -> None:
        if snapshot is not None and snapshot.elapsed != self.told:
            self.message(summary(snapshot))
        for line in lines:
            self.message(line)


class QuietDisplay(Display):
    """Nothing but messages, on stderr."""

    is_quiet = True

    def start(self, title: str, lines: Sequence[str]) -> None:
        pass

    def update(self, snapshot: Snapshot) -> None:
        pass

    def message(self, text: str) -> None:
        print(readable(text), file=sys.stderr, flush=True)

    def finish(self, snapshot: Snapshot | None, lines: Sequence[str]) -> None:
        pass


def choose(quiet: bool, stream: Any = None) -> Display:
    """The display that fits: quiet if asked, live on a capable terminal, else plain lines."""
    if quiet:
        return QuietDisplay()
    output = sys.stdout if stream is None else stream
    console = PlainTextConsole(file=output)
    if output.isatty() and console.encoding.startswith("utf") and not console.is_dumb_terminal:
        return LiveDisplay(console)
    return PlainDisplay(output)
