"""One picture of a run: the panel that a terminal shows, and the words in it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import NamedTuple

from rich.columns import Columns
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text


class Diagnostic(NamedTuple):
    """How a metric is shown: its label, what is healthy, and the range outside which it turns yellow."""

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
    "weigh": "magenta",
    "move": "green",
    "write": "yellow",
}
QUIET_PHASE_STYLE = "bright_black"
BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_POINTS = 60
FEW_SEEDS = 5
LABEL_WIDTH = 19
NOTE_WIDTH = 17


@dataclass(frozen=True)
class Snapshot:
    """Where a run stands. Every sequence has one entry per seed; seconds and steps count from the start."""

    iteration: int
    steps: Sequence[int]
    total_steps: int
    episode_return: Sequence[float]
    episode_length: Sequence[float]
    metrics: Mapping[str, Sequence[float]]
    phases: Mapping[str, float]
    elapsed: float
    steps_per_second: float
    """Of all seeds together; nan while no rate is known."""
    is_recorded: bool = False
    """Whether it learns from recorded data, so that no episode is played."""
    finding: str = ""
    """What the doctor has found so far, in one line."""

    @property
    def fraction(self) -> float:
        """The share of the budget that is done, 0 to 1, averaged over seeds."""
        if not self.steps or self.total_steps <= 0:
            return 0.0
        return fmean(min(step / self.total_steps, 1.0) for step in self.steps)

    @property
    def seconds_left(self) -> float:
        """The steps still to do over the present speed; nan while there is no speed yet."""
        if not self.steps_per_second > 0:
            return math.nan
        return sum(max(self.total_steps - step, 0) for step in self.steps) / self.steps_per_second


def finite(values: Sequence[float]) -> list[float]:
    """The values that are numbers: a seed without a finished episode reports nan."""
    return [value for value in values if math.isfinite(value)]


def mean(values: Sequence[float]) -> float:
    """The mean of the finite values, nan where there is none."""
    numbers = finite(values)
    return fmean(numbers) if numbers else math.nan


def half_width(values: Sequence[float]) -> float:
    """Half the 95 % interval of the mean, t_{0.975, n−1} · s / √n over the n finite values; nan below two."""
    numbers = finite(values)
    if len(numbers) < 2:
        return math.nan
    from scipy.special import stdtrit  # a fifth of a second to import, which a single seed never needs

    return float(stdtrit(len(numbers) - 1, 0.975)) * stdev(numbers) / math.sqrt(len(numbers))


def number(value: float, like: float | None = None) -> str:
    """A value in about four digits, with as many decimals as `like` would get."""
    if not math.isfinite(value):
        return str(value)
    magnitude = abs(value if like is None else like)
    if like is None and 0 < magnitude < 0.0005:
        return f"{value:.1e}"
    decimals = 0 if magnitude >= 1000 else 1 if magnitude >= 10 else 2 if magnitude >= 1 else 4
    return f"{value:,.{decimals}f}"


def percent(share: float) -> str:
    """A share as 42 %, 100 % only when all is done."""
    return f"{math.floor(share * 100) if share > 0.99 else round(share * 100)} %"


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    if not math.isfinite(seconds):
        return "unknown"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def progress_words(snapshot: Snapshot) -> str:
    """Steps per seed of the budget; a span where seeds differ, as whole-episode runs do."""
    low, high = min(snapshot.steps, default=0), max(snapshot.steps, default=0)
    done = f"{low:,}" if low == high else f"{low:,} – {high:,}"
    return f"{done} of {snapshot.total_steps:,}"


def time_words(snapshot: Snapshot) -> str:
    """Time gone, time left and the speed of all seeds together."""
    spent = clock(snapshot.elapsed)
    if not math.isfinite(snapshot.steps_per_second):
        return spent if snapshot.fraction == 1 else f"{spent}, compiling included · time left not known yet"
    return f"{spent} · {clock(snapshot.seconds_left)} left · {number(snapshot.steps_per_second)} steps/s"


def return_words(values: Sequence[float], is_recorded: bool = False) -> tuple[str, str, str]:
    """The mean return, how far to trust it, and a warning where too few seeds stand behind it."""
    numbers = finite(values)
    if not numbers:
        return "–", "recorded data: upslope evaluate tells" if is_recorded else "no episode finished yet", ""
    average, warning = mean(numbers), "" if len(numbers) >= FEW_SEEDS else "thin evidence"
    seeds = f"{len(values)} seeds" if len(numbers) == len(values) else f"{len(numbers)} of {len(values)} seeds"
    if len(numbers) == 1:
        return number(average), ("one seed" if len(values) == 1 else seeds) + ": no interval", warning
    if min(numbers) == max(numbers):
        return number(average), f"{seeds} agree: no interval", warning
    return f"{number(average)} ± {number(half_width(numbers), like=average)}", f"(95 %) · {seeds}", warning


def sparkline(curve: Sequence[float], width: int) -> str:
    """The curve in block characters, on the budget's axis: `CURVE_POINTS` points would fill `width`."""
    width = min(width, CURVE_POINTS)
    edges = [round(column * CURVE_POINTS / width) for column in range(width + 1)]
    points = [mean(curve[a:b]) for a, b in pairwise(edges) if a < len(curve)]
    low, high = min(finite(points), default=0.0), max(finite(points), default=0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((p - low) * scale)] if math.isfinite(p) else " " for p in points)


def progress_rows(table: Table, snapshot: Snapshot, width: int) -> None:
    """How far, how long, how fast."""
    bar = Table.grid(padding=(0, 2, 0, 0))
    progress = ProgressBar(1.0, snapshot.fraction, width=width, complete_style="cyan", finished_style="cyan")
    bar.add_row(progress, Text(percent(snapshot.fraction), "bold"))
    table.add_row("progress", bar)
    table.add_row("steps per seed", progress_words(snapshot))
    table.add_row("elapsed", time_words(snapshot))


def return_rows(table: Table, snapshot: Snapshot, curve: Sequence[float], width: int) -> None:
    """The return: its mean and interval, its course over the run, and each seed."""
    value, note, warning = return_words(snapshot.episode_return, snapshot.is_recorded)
    words = Text.assemble((value, "bold green"), " ", (note, "dim"))
    table.add_row(Text("return", "bold"), words.append(f" · {warning}", "yellow") if warning else words)
    numbers, course = finite(snapshot.episode_return), finite(curve)
    if course:
        blocks = sparkline(curve, width).ljust(min(width, CURVE_POINTS))
        low, high = min(course), max(course)
        largest = max(abs(low), abs(high))
        scale = f"  {number(low, like=largest)} to {number(high, like=largest)}"
        table.add_row("over the run", Text.assemble((blocks, "green"), (scale, "dim")))
    if len(numbers) > 1:
        average = mean(numbers)
        span = f"{number(min(numbers), like=average)} – {number(max(numbers), like=average)}"
        table.add_row("lowest – highest", span)
        if len(snapshot.episode_return) <= 10:
            each = [number(v, average) if math.isfinite(v) else "–" for v in snapshot.episode_return]
            table.add_row("each seed", Columns([Text(text, justify="right") for text in each], (0, 2)))


def diagnostic_rows(table: Table, snapshot: Snapshot) -> None:
    """The metrics that tell a healthy run from a sick one, each with what to expect of it."""
    # A seed that has not finished an episode yet is no fault; a metric that is nan in one seed is.
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
        table.add_row(label, Text.assemble((aligned.ljust(14), style), note))


def phase_rows(table: Table, snapshot: Snapshot, width: int) -> None:
    """One bar cut by phase. A space parts the pieces, so that it reads without colour too."""
    spent = {name: seconds for name, seconds in snapshot.phases.items() if seconds > 0}
    other = snapshot.elapsed - sum(spent.values())
    if spent and other > 0.01 * snapshot.elapsed:
        spent["other"] = other
    total, before = sum(spent.values()), 0.0
    bar, names = Text(), []
    for name, seconds in spent.items():
        style = PHASE_STYLES.get(name, QUIET_PHASE_STYLE)
        cells = round((before + seconds) / total * width) - round(before / total * width)
        before += seconds
        bar.append("━" * (cells - 1) + " " if cells > 1 else "╸" * cells, style)
        names.append(Text.assemble(("■ ", style), f"{name} ", (percent(seconds / total), "dim")))
    if names:
        table.add_row("", "")
        table.add_row("where the time goes", bar)
        table.add_row("", Columns(names, padding=(0, 2)))


def panel(title: str, snapshot: Snapshot, curve: Sequence[float], width: int, brief: bool = False) -> Panel:
    """The whole picture of a run, `width` columns wide; `brief` leaves the diagnostics out."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", width=LABEL_WIDTH, no_wrap=True)
    table.add_column()
    room = max(width - LABEL_WIDTH - 6, NOTE_WIDTH + 8)
    progress_rows(table, snapshot, min(room - NOTE_WIDTH, CURVE_POINTS))
    table.add_row("", "")
    return_rows(table, snapshot, curve, room - NOTE_WIDTH)
    if not brief:
        table.add_row("", "")
        diagnostic_rows(table, snapshot)
    if snapshot.finding:
        table.add_row("", "")
        table.add_row("doctor", Text(snapshot.finding, "bold yellow"))
    phase_rows(table, snapshot, room)
    heading = Text(title, "bold")
    return Panel(table, title=heading, title_align="left", border_style="bright_black", width=width)
