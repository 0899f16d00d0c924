"""Display training progress as a live panel, as plain lines, or not at all.

Training passes a `Snapshot` to `update` after each iteration. `update` only stores it, so training never waits for the
screen. The panel is drawn from the latest snapshot about once a second.
"""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any, NamedTuple

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import SegmentLines
from rich.table import Table
from rich.text import Text

from upslope.config.config import Config
from upslope.core.consoles import PlainTextConsole
from upslope.core.messages import readable
from upslope.core.numbers import FEW_SEEDS, UNKNOWN, finite, half_width, number, plus_minus, range_of


class Diagnostic(NamedTuple):
    """How a metric is displayed: its label, its healthy values, and the range outside of which it turns yellow."""

    label: str
    hint: str = ""
    low: float = -math.inf
    high: float = math.inf


DIAGNOSTICS: Mapping[str, Diagnostic] = {
    "episode/length": Diagnostic("episode length"),
    "policy/kl": Diagnostic("KL", "below 0.02", high=0.02),
    "policy/clip_fraction": Diagnostic("clip fraction", "0.05 to 0.3", high=0.3),
    "policy/effective_sample_size": Diagnostic("effective samples", "near 1", low=0.5),
    "policy/entropy": Diagnostic("entropy", "falls slowly"),
    "policy/gradient_norm": Diagnostic("gradient norm", "no spikes"),
    "objective/beta": Diagnostic("beta", "settles"),
    "critic/loss": Diagnostic("critic loss", "falls, then steady"),
    "critic/explained_variance": Diagnostic("explained variance", "→ 1", low=0.0),
}
PHASE_STYLES = {
    "compiled": "cyan",
    "environment": "blue",
    "act": "cyan",
    "learn": "green",
    "write": "yellow",
}
OTHER_STYLE = "bright_black"
BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_POINTS = 60
LABEL_WIDTH = 19
NOTE_WIDTH = 17
MAX_PANEL_WIDTH = 100
MAX_PAUSE = 3.0
"""Maximum number of seconds between redraws, however long drawing takes."""
DRAWING_SHARE = 0.02
"""Maximum share of one core's time that drawing may use."""
TO_ASCII = str.maketrans({"±": "+/-", "·": "-", "–": "-", "—": "-", "−": "-", "→": "->", "…": "..."})


@dataclass(frozen=True)
class Snapshot:
    """The state of a run. Every sequence has one entry per seed. Seconds and steps are counted from the start of the
    run."""

    iteration: int
    steps: Sequence[int]
    total_steps: int
    episode_return: Sequence[float]
    episode_length: Sequence[float]
    metrics: Mapping[str, Sequence[float]]
    phases: Mapping[str, float]
    elapsed: float
    steps_per_second: float
    """The total rate of all seeds; nan if unknown."""
    is_recorded: bool = False
    """Whether the run learns from recorded data instead of playing its own episodes."""
    finding: str = ""
    """The doctor's latest finding, in one line."""
    notice: str = ""
    """A problem seen by a process that watches the run from outside, in one line."""
    age: float = 0.0
    """Age of this state in seconds, if the run is watched from outside."""
    stopped: Sequence[bool] = ()
    """Whether each seed stopped before it had spent its budget; empty if no seed did."""

    @property
    def spent(self) -> list[int]:
        """Number of steps that count as done for each seed: the steps taken, or the whole budget if the seed has
        stopped."""
        stopped = self.stopped or [False] * len(self.steps)
        return [self.total_steps if over else step for step, over in zip(self.steps, stopped, strict=True)]

    @property
    def fraction(self) -> float:
        """The finished share of the budget, 0 to 1, averaged over seeds."""
        if not self.steps or self.total_steps <= 0:
            return 0.0
        return fmean(min(step / self.total_steps, 1.0) for step in self.spent)

    @property
    def seconds_left(self) -> float:
        """The remaining steps divided by the current speed; nan if the speed is unknown."""
        if not self.steps_per_second > 0:
            return math.nan
        return sum(max(self.total_steps - step, 0) for step in self.spent) / self.steps_per_second


def mean(values: Sequence[float]) -> float:
    """Return the mean of the finite values, or nan if there are none."""
    numbers = finite(values)
    return fmean(numbers) if numbers else math.nan


def title_of(config: Config) -> str:
    """Return one line that describes what is being trained."""
    seeds = "1 seed" if config.seeds == 1 else f"{config.seeds} seeds"
    return f"{config.algorithm} on {config.environment} · {seeds}"


def closing_words(
    elapsed: float, seeds: Sequence[int], returns: Sequence[float] | None, stopped_at: Sequence[int] = ()
) -> str:
    """Return the results of a run in one line; `returns` is None for a run on recorded data.

    `stopped_at` holds the step at which each seed stopped early, or 0 if the seed spent its whole budget."""
    if returns is None:
        return f"trained in {elapsed:.1f} s"
    spread = range_of(returns)
    results = [number(r, spread) if math.isfinite(r) else "no episode ended" for r in returns]
    ends = [f" (stopped at step {step:,})" if step else "" for step in stopped_at or [0] * len(seeds)]
    shown = ", ".join(f"seed {s}: {words}{end}" for s, words, end in zip(seeds, results, ends, strict=True))
    return f"trained in {elapsed:.1f} s; mean return of the last 100 training episodes: {shown}"


def percent(share: float) -> str:
    """Format a share as 42 %; 100 % is shown only when everything is finished."""
    return f"{math.floor(share * 100) if share > 0.99 else round(share * 100)} %"


def clock(seconds: float) -> str:
    """Format seconds as 0:07, 12:34 or 1:02:03."""
    if not math.isfinite(seconds):
        return "unknown"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def progress_words(snapshot: Snapshot) -> str:
    """Return the steps per seed out of the budget, as a range if seeds differ, as in whole-episode runs."""
    low, high = min(snapshot.steps, default=0), max(snapshot.steps, default=0)
    done = f"{low:,}" if low == high else f"{low:,} – {high:,}"
    return f"{done} of {snapshot.total_steps:,}"


def time_words(snapshot: Snapshot) -> str:
    """Return the elapsed time, the remaining time, and the total speed of all seeds."""
    spent = clock(snapshot.elapsed)
    if not math.isfinite(snapshot.steps_per_second):
        return spent if snapshot.fraction == 1 else f"{spent}, including compilation · time left not known yet"
    return f"{spent} · {clock(snapshot.seconds_left)} left · {number(snapshot.steps_per_second)} steps/s"


def return_words(values: Sequence[float], is_recorded: bool = False) -> tuple[str, str, str]:
    """Return the mean return, its uncertainty, and a warning if it is based on few seeds."""
    numbers = finite(values)
    if not numbers:
        return UNKNOWN, "recorded data: see upslope evaluate" if is_recorded else "no episode finished yet", ""
    average, warning = fmean(numbers), "" if len(numbers) >= FEW_SEEDS else "thin evidence"
    seeds = f"{len(values)} seeds" if len(numbers) == len(values) else f"{len(numbers)} of {len(values)} seeds"
    if len(numbers) == 1:
        return number(average), ("one seed" if len(values) == 1 else seeds) + ": no interval", warning
    if min(numbers) == max(numbers):
        return number(average), f"{seeds} agree: no interval", warning
    return plus_minus(average, half_width(numbers)), f"(95 %) · {seeds}", warning


def summary(snapshot: Snapshot) -> str:
    """Return the state of a run in one line, for a log."""
    value, note, warning = return_words(snapshot.episode_return, snapshot.is_recorded)
    details = f"{note} · {warning}" if warning else note
    done = f"{percent(snapshot.fraction):>5}  {progress_words(snapshot)} steps per seed"
    return f"{done}  return {value} {details}  after {time_words(snapshot)}"


def curve_place(snapshot: Snapshot) -> int:
    """Return the index of the point on the curve that a run has reached."""
    return min(int(snapshot.fraction * CURVE_POINTS), CURVE_POINTS - 1)


def extend_curve(curve: list[float], snapshot: Snapshot) -> None:
    """Add the mean return to the curve, whose x axis divides the budget into `CURVE_POINTS` points."""
    place = curve_place(snapshot)
    now = mean(snapshot.episode_return)
    # A resumed run has no earlier data; within a run, one long iteration may cover several points.
    curve.extend([now if curve else math.nan] * (place - len(curve)))
    curve[place:] = [now]


def sparkline(curve: Sequence[float], width: int) -> str:
    """Draw the curve in block characters; a curve of `CURVE_POINTS` points fills `width`."""
    width = min(width, CURVE_POINTS)
    edges = [round(column * CURVE_POINTS / width) for column in range(width + 1)]
    points = [mean(curve[a:b]) for a, b in pairwise(edges) if a < len(curve)]
    low, high = min(finite(points), default=0.0), max(finite(points), default=0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((p - low) * scale)] if math.isfinite(p) else " " for p in points)


def progress_bar(fraction: float, width: int) -> Table:
    """Return a bar and the percentage."""
    bar = Table.grid(padding=(0, 2, 0, 0))
    progress = ProgressBar(1.0, fraction, width=width, complete_style="cyan", finished_style="cyan")
    bar.add_row(progress, Text(percent(fraction), "bold"))
    return bar


def return_rows(table: Table, snapshot: Snapshot, curve: Sequence[float], width: int) -> None:
    """Add rows for the return: its mean and interval, its curve over the run, and each seed's value."""
    value, note, warning = return_words(snapshot.episode_return, snapshot.is_recorded)
    words = Text.assemble((value, "bold green"), " ", (note, "dim"))
    table.add_row(Text("return", "bold"), words.append(f" · {warning}", "yellow") if warning else words)
    numbers, seen = finite(snapshot.episode_return), finite(curve)
    if seen:
        blocks = sparkline(curve, width).ljust(min(width, CURVE_POINTS))
        scale = f"  {number(min(seen), range_of(seen))} to {number(max(seen), range_of(seen))}"
        table.add_row("over the run", Text.assemble((blocks, "green"), (scale, "dim")))
    if len(numbers) > 1:
        spread = range_of(numbers)
        table.add_row("lowest – highest", f"{number(min(numbers), spread)} – {number(max(numbers), spread)}")
        if len(snapshot.episode_return) <= 10:
            each = [Text(number(value, spread), justify="right") for value in snapshot.episode_return]
            table.add_row("each seed", Columns(each, (0, 2)))


def diagnostic_rows(table: Table, snapshot: Snapshot) -> None:
    """Add rows for the metrics that show whether a run is healthy, each with its expected range."""
    # A seed without a finished episode is not an error, but a metric that is nan in one seed is.
    metrics = {"episode/length": finite(snapshot.episode_length), **snapshot.metrics}
    for name, (label, hint, low, high) in DIAGNOSTICS.items():
        values = metrics.get(name, ())
        if not len(values):
            continue
        lost, value = len(values) - len(finite(values)), mean(values)
        text = number(value)
        aligned = " " * max(0, 7 - len(text.partition(".")[0])) + text
        style = "" if low <= value <= high else "yellow"
        note = (f"not finite in {lost} of {len(values)}", "yellow") if lost else (hint, "dim")
        table.add_row(label, Text.assemble((aligned.ljust(13) + " ", style), note))


def phase_rows(table: Table, snapshot: Snapshot, width: int) -> None:
    """Add a bar divided by phase. Spaces separate its pieces, which keeps it readable without colour."""
    spent = {name: seconds for name, seconds in snapshot.phases.items() if seconds > 0}
    other = snapshot.elapsed - sum(spent.values())
    if spent and other > 0.01 * snapshot.elapsed:
        spent["other"] = other
    total, before = sum(spent.values()), 0.0
    bar, names = Text(), []
    for name, seconds in spent.items():
        style = PHASE_STYLES.get(name, OTHER_STYLE)
        cells = round((before + seconds) / total * width) - round(before / total * width)
        before += seconds
        bar.append("━" * (cells - 1) + " " if cells > 1 else "╸" * cells, style)
        names.append(Text.assemble(("■ ", style), f"{name} ", (percent(seconds / total), "dim")))
    if names:
        table.add_row("", "")
        table.add_row("where the time goes", bar)
        table.add_row("", Columns(names, padding=(0, 2)))


def panel(title: str, snapshot: Snapshot, curve: Sequence[float], width: int, brief: bool = False) -> Panel:
    """Return the complete display of a run, `width` columns wide; `brief` omits the diagnostics."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", width=LABEL_WIDTH, no_wrap=True)
    table.add_column()
    room = max(width - LABEL_WIDTH - 6, NOTE_WIDTH + 8)
    table.add_row("progress", progress_bar(snapshot.fraction, min(room - NOTE_WIDTH, CURVE_POINTS)))
    table.add_row("steps per seed", progress_words(snapshot))
    table.add_row("elapsed", time_words(snapshot))
    table.add_row("", "")
    return_rows(table, snapshot, curve, room - NOTE_WIDTH)
    if not brief:
        table.add_row("", "")
        diagnostic_rows(table, snapshot)
    if snapshot.finding:
        table.add_row("", "")
        table.add_row("doctor", Text(snapshot.finding, "bold yellow"))
    if snapshot.notice:
        table.add_row("", "")
        table.add_row("notice", Text(snapshot.notice, "bold yellow"))
    phase_rows(table, snapshot, room)
    heading = Text(title, "bold")
    return Panel(table, title=heading, title_align="left", border_style="bright_black", width=width)


class Display:
    """The interface through which training reports its progress. Leaving its `with` block always restores the
    terminal."""

    is_quiet: bool = False
    """Whether only messages are shown. If so, the doctor is not needed."""

    def start(self, title: str, lines: Sequence[str]) -> None:
        """Announce the run: its title, and notes for the user."""

    def update(self, snapshot: Snapshot) -> None:
        """Store the current state; cheap enough to call after each iteration."""

    def recall(self, snapshots: Sequence[Snapshot]) -> None:
        """Add the earlier states of a run that began before it was displayed."""

    def message(self, text: str) -> None:
        """Show an important message, for example a warning."""

    def stopping(self) -> None:
        """Show that a signal has arrived. A signal's handler calls this, so it must not write anything itself."""

    def finish(self, snapshot: Snapshot | None, lines: Sequence[str]) -> None:
        """Show the last state, then the closing lines."""

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *exception: object) -> None:
        return None


STOPPING = "stopping after this iteration; Ctrl-C again stops without saving"


class SparingLive(Live):
    """A live display that limits redrawing to `DRAWING_SHARE` of a core's time."""

    due = 0.0
    """The time of the next redraw, in seconds on the monotonic clock."""

    def refresh(self) -> None:
        if time.monotonic() >= self.due:
            before = time.thread_time()
            super().refresh()
            self.due = time.monotonic() + min((time.thread_time() - before) / DRAWING_SHARE, MAX_PAUSE)

    def stop(self) -> None:
        self.due = 0.0
        super().stop()


class LiveDisplay(Display):
    """A panel redrawn in place, for a terminal. It stays on the screen after the run has ended."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or PlainTextConsole()
        self.title = ""
        self.curve: list[float] = []
        self.snapshot: Snapshot | None = None
        self.updated = time.monotonic()
        self.is_stopping = False
        self.live = SparingLive(console=self.console, get_renderable=self.render, refresh_per_second=1)

    def start(self, title: str, lines: Sequence[str]) -> None:
        self.title, self.updated = readable(title), time.monotonic()
        for line in lines:
            self.message(line)
        self.live.start()

    def update(self, snapshot: Snapshot) -> None:
        self.snapshot, self.updated = snapshot, time.monotonic() - snapshot.age
        extend_curve(self.curve, snapshot)

    def stopping(self) -> None:
        self.is_stopping = True  # the next redraw shows it

    def recall(self, snapshots: Sequence[Snapshot]) -> None:
        for snapshot in snapshots:
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
        """Return the current panel, short enough to be redrawn in place while the run continues."""
        snapshot, silence = self.snapshot, time.monotonic() - self.updated
        if snapshot is None:
            state = STOPPING if self.is_stopping else f"waiting for the first iteration, {clock(silence)}"
            return Text(f"{self.title}: {state}", "yellow" if self.is_stopping else "dim")
        picture = self.panel_of(snapshot, silence)
        if not self.live.is_started:
            return picture
        lines = self.console.render_lines(picture)
        if len(lines) > self.console.height:
            lines = self.console.render_lines(self.panel_of(snapshot, silence, brief=True))
        return SegmentLines(lines, new_lines=True)

    def panel_of(self, snapshot: Snapshot, silence: float, brief: bool = False) -> Panel:
        """Return the panel, with the age of its data if that is more than a few seconds."""
        # Ctrl-C makes the terminal print ^C after the panel: two free columns keep it on that line.
        width = min(self.console.width - 2, MAX_PANEL_WIDTH)
        picture = panel(self.title, snapshot, list(self.curve), width, brief)
        if self.is_stopping and self.live.is_started:
            picture.subtitle, picture.subtitle_align = Text(STOPPING, "yellow"), "right"
        elif silence >= 5:
            picture.subtitle, picture.subtitle_align = Text(f"updated {clock(silence)} ago", "dim"), "right"
        return picture


class PlainDisplay(Display):
    """Plain lines for a pipe or a log file: one for each tenth of the budget, and one every 30 seconds."""

    def __init__(self, stream: Any = None) -> None:
        self.stream = sys.stdout if stream is None else stream
        self.tenth = -1
        self.last_logged = 0.0
        self.finding = self.notice = ""

    def start(self, title: str, lines: Sequence[str]) -> None:
        for line in (title, *lines):
            self.message(line)

    def update(self, snapshot: Snapshot) -> None:
        tenth = math.floor(snapshot.fraction * 10)
        if tenth > self.tenth or snapshot.elapsed - self.last_logged >= 30:
            self.tenth, self.last_logged = tenth, snapshot.elapsed
            self.message(summary(snapshot))
        if snapshot.finding not in ("", self.finding):
            self.finding = snapshot.finding
            self.message(f"doctor: {snapshot.finding}")
        if snapshot.notice not in ("", self.notice):
            self.message(f"notice: {snapshot.notice}")
        self.notice = snapshot.notice

    def message(self, text: str) -> None:
        text = readable(text)
        # A StringIO has no encoding and can contain any character.
        if not (getattr(self.stream, "encoding", None) or "utf-8").lower().startswith("utf"):
            text = text.translate(TO_ASCII).encode("ascii", "replace").decode()
        print(text, file=self.stream, flush=True)

    def finish(self, snapshot: Snapshot | None, lines: Sequence[str]) -> None:
        if snapshot is not None and snapshot.elapsed != self.last_logged:
            self.message(summary(snapshot))
        for line in lines:
            self.message(line)


class QuietDisplay(Display):
    """Shows only messages, on stderr."""

    is_quiet = True

    def message(self, text: str) -> None:
        print(readable(text), file=sys.stderr, flush=True)


def choose(quiet: bool, stream: Any = None) -> Display:
    """Choose the display: quiet if requested, live in a notebook or a capable terminal, otherwise plain."""
    if quiet:
        return QuietDisplay()
    output = sys.stdout if stream is None else stream
    console = PlainTextConsole(file=output)
    if console.is_jupyter and stream is None:
        from upslope.runs.notebooks import NotebookDisplay  # imported here because it builds on this module

        return NotebookDisplay()
    if output.isatty() and console.encoding.startswith("utf") and not console.is_dumb_terminal:
        return LiveDisplay(console)
    return PlainDisplay(output)
