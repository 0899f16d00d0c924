"""Figures for papers and slides: the numbers of `upslope compare` and of the report, drawn by Matplotlib."""

import io
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from upslope.analysis.compare import compare_records
from upslope.analysis.comparison import Comparison, Group
from upslope.analysis.curves import at_steps
from upslope.analysis.grouping import Member, environments_of, group, warnings_of
from upslope.analysis.metrics import explain
from upslope.analysis.normalization import Normalize
from upslope.analysis.records import Record, read_records
from upslope.analysis.scores import Score
from upslope.analysis.statistics import WINDOW, Band, mean_band, returns_at
from upslope.config.coercion import coerce
from upslope.core.files import AnyPath, output_file, require_folder
from upslope.core.messages import counted, readable, unknown
from upslope.core.storage import write_atomically
from upslope.errors import UpslopeError
from upslope.report.curves import LEARNING_POINTS, POINTS
from upslope.report.figures import around
from upslope.report.print_style import (
    FORMATS,
    Format,
    Size,
    Style,
    missing_glyphs,
    require_matplotlib,
    rows_of,
    shortened,
    style_of,
)
from upslope.report.tables import MANY_PROFILES
from upslope.runs.directory import versions

Kind = Literal["curves", "comparison", "profile"]
SUFFIXES = (".pdf", ".svg", ".png")
MARK = "Made by upslope"
"""The creator recorded in every figure. Existing files without it are not overwritten."""
LARGEST = 1 << 28
"""Files of at least this many bytes are not searched for the mark."""
LINES = ("-", "--", ":", "-.")
"""Line styles; once all colours are used, they repeat with the next style."""


@dataclass(frozen=True)
class Drawn:
    """A figure that was written."""

    path: Path
    notes: tuple[str, ...]
    """A description of what the figure shows, and caveats."""


@dataclass
class Panel:
    """The content of one pair of axes."""

    title: str
    x: str
    y: str
    curves: dict[str, tuple[np.ndarray, Band]] = field(default_factory=dict)
    """Name → (x, mean and interval)."""
    seeds: list[np.ndarray] = field(default_factory=list)
    """The values of all seeds. The vertical axis covers them, but may cut off intervals."""
    groups: list[tuple[str, Group]] = field(default_factory=list)
    """(name, group) of each row, from top to bottom."""


def figure(
    runs: AnyPath | Sequence[AnyPath],
    output: str | Path = "figure.pdf",
    *,
    kind: Kind = "curves",
    size: Size = "column",
    metric: str | None = None,
    labels: Sequence[str] = (),
    score: Score = "auto",
    normalize: Normalize | None = None,
    style: str | Path | None = None,
    trust: bool = False,
) -> Drawn:
    """Draw a figure for a paper or a slide, with the numbers of `upslope.compare` and of the report.

    Runs that differ only in their seeds form one line. Areas and bars are 95 % intervals of the mean over seeds. The
    colours can be told apart with any type of colour vision. The same runs and package versions give files that are
    identical byte for byte.

    Args:
        runs: run directories, or archives made by `upslope.bundle`.
        output: the file to write, .pdf, .svg or .png, or a folder for figure.pdf. An existing file is overwritten only
            if it is an upslope figure.
        kind: "curves", a metric over environment steps; "comparison", the scores of the seeds with their mean;
            "profile", the share of seeds whose normalised score exceeds τ.
        size: "column" (3.25 inches wide), "page" (6.75 inches) or "slide".
        metric: for curves, a metric from metrics.jsonl; by default the mean return of the last 100 training episodes.
        labels: names for the groups of runs, in the order of the runs.
        score, normalize, trust: as in `upslope.compare`; a profile is normalised by "range" by default.
        style: a Matplotlib style sheet. Only fonts, colours, lines and sizes are taken from it, and no code is run.

    Raises:
        UpslopeError: Matplotlib is missing, nothing can be drawn, or the output cannot be written.
    """
    for name, value, kinds in (("kind", kind, Kind), ("size", size, Size)):
        coerce(name, value, kinds)
    refuse_unread(kind, metric, score, normalize)
    path = figure_path(output)
    require_matplotlib()
    chosen = style_of(size, style)
    records, doubts = read_records(runs, with_evaluations=True)
    if kind == "curves":
        panels, notes = curve_panels(records, metric)
    else:
        unit = normalize or ("range" if kind == "profile" else None)
        comparison = compare_records(records, score=score, normalize=unit, trust=trust)
        panels = comparison_panels(comparison) if kind == "comparison" else [profile_panel(comparison)]
        notes = [f"the score of a seed: {comparison.score}", *comparison.warnings]
    rename(panels, labels)
    notes += notes_on_names(panels, FORMATS[size])
    content, lacking = drawn(panels, FORMATS[size], chosen, path.suffix[1:].lower())
    write_atomically(path, content)
    return Drawn(path, (*doubts, *notes, *chosen.notes, *lacking))


def refuse_unread(kind: Kind, metric: str | None, score: Score, normalize: Normalize | None) -> None:
    """Raise an error if a setting would have no effect."""
    if kind != "curves" and metric is not None:
        raise UpslopeError(f"--metric applies to --kind curves; a {kind} shows scores, which --score chooses.")
    if kind == "curves" and (score != "auto" or normalize is not None):
        raise UpslopeError("--score and --normalize apply to --kind comparison and profile; curves show a --metric.")
    if kind == "comparison" and normalize is not None:
        raise UpslopeError(
            "--normalize applies to --kind profile; a comparison shows each environment in its own units."
        )


def figure_path(output: str | Path) -> Path:
    """The file to write a figure to: `figure.pdf` if `output` is a folder; a name without a suffix gets `.pdf`.

    Raises:
        UpslopeError: the suffix is unknown, the folder is missing, or an existing file is not an upslope figure.
    """
    path = output_file(output, "figure.pdf")
    if path.suffix.lower() not in SUFFIXES:
        raise UpslopeError(f"A figure is a {', '.join(SUFFIXES)} file, but {path} is not. Choose another --output.")
    require_folder(path)
    if (path.exists() or path.is_symlink()) and not is_figure(path):
        raise UpslopeError(
            f"{path} exists and is not an upslope figure, so it is not replaced. Choose another --output."
        )
    return path


def is_figure(path: Path) -> bool:
    """Whether a file is a figure written by upslope."""
    return path.is_file() and path.stat().st_size < LARGEST and MARK.encode() in path.read_bytes()


def curve_panels(records: Sequence[Record], metric: str | None) -> tuple[list[Panel], list[str]]:
    """A metric over environment steps, with a panel for each environment."""
    if metric is not None and not any(has_metric(record, metric) for record in records):
        logged = {name for record in records for name in record.metrics}
        raise UpslopeError(unknown("metric in these runs", metric, logged or ["none"], "upslope report"))
    members, notes = group([record for record in records if has_metric(record, metric)])
    notes += [f"left out: {record.path} has nothing to draw" for record in records if not has_metric(record, metric)]
    if not members:
        raise UpslopeError(
            "None of these runs has a finished training episode, so there is no learning curve. Choose another "
            "--metric."
        )
    about = explain(metric or "episode/return")
    title = "return" if metric is None else about.title
    y = f"{title} ({about.unit})" if about.unit else title
    panels = [Panel(environment, "environment steps", y) for environment in environments_of(members)]
    for panel in panels:
        for member in members:
            if member.environment == panel.title:
                steps, values = curves_of(member, metric)
                panel.curves[member.label] = steps, mean_band(values)
                panel.seeds.append(values)
    words = f"mean return of the last {WINDOW} training episodes" if metric is None else f"the metric {metric}"
    return panels, [f"drawn: {words}, its mean over seeds and 95 % interval", *notes, *warnings_of(members)]


def has_metric(record: Record, metric: str | None) -> bool:
    """Whether a run has something to draw."""
    if metric is None:
        return len(record.episodes) > 0
    return metric in record.metrics and bool(np.isfinite(record.metrics[metric]).any())


def curves_of(member: Member, metric: str | None) -> tuple[np.ndarray, np.ndarray]:
    """(steps [P], values [S, P]) of all seeds of a group, on steps that all of its runs cover. For a single run, they
    are the same as in the report."""
    records = member.records
    if metric is None:
        end = min(min(float(record.config.steps), np.nanmax(record.steps)) for record in records)
        steps = np.linspace(0.0, end, LEARNING_POINTS + 1)[1:]
        return steps, np.concatenate([returns_at(record, steps) for record in records])
    first, last = max(np.nanmax(r.steps[:, 0]) for r in records), min(r.reached for r in records)
    steps = np.linspace(first, last, min(POINTS, *(record.steps.shape[1] for record in records)))
    return steps, np.concatenate([at_steps(record, metric, steps) for record in records])


def comparison_panels(comparison: Comparison) -> list[Panel]:
    """The scores of each group, with a panel for each environment."""
    if not any(np.isfinite(g.scores).any() for g in comparison.groups):
        raise UpslopeError(
            "None of these runs has a score: no episode has ended. Train longer, or run upslope evaluate."
        )
    panels = []
    for environment in dict.fromkeys(g.environment for g in comparison.groups):
        here = [(g.label, g) for g in comparison.groups if g.environment == environment]
        panels.append(Panel(environment, "score (reward)", "", groups=here))
    return panels


def profile_panel(comparison: Comparison) -> Panel:
    """The share of seeds above each normalised score."""
    if not comparison.profiles:
        raise UpslopeError("No algorithm was trained in all of these environments, so there is no profile to draw.")
    panel = Panel("", "normalised score τ", "share of seeds above τ")
    has_bands = len(comparison.profiles) <= MANY_PROFILES
    for one in comparison.profiles:
        none = np.full_like(one.share, np.nan)
        band = Band(one.share, one.low, one.high) if has_bands else Band(one.share, none, none)
        panel.curves[one.label] = one.thresholds, band
    return panel


def names_of(panels: Sequence[Panel]) -> list[str]:
    """The names of all groups, in order."""
    return list(dict.fromkeys(name for p in panels for name in (*p.curves, *(name for name, _ in p.groups))))


def rename(panels: Sequence[Panel], labels: Sequence[str]) -> None:
    """Give the groups the user's names.

    Raises:
        UpslopeError: there are more or fewer names than groups, or two names are equal.
    """
    names = names_of(panels)
    if not labels:
        return
    if len(labels) != len(names) or len(set(labels)) < len(labels):
        raise UpslopeError(
            f"labels gives {counted(len(labels), 'label')} for {counted(len(names), 'group')} of runs. Give one for "
            f"each, in this order: {', '.join(names)}."
        )
    called = dict(zip(names, labels, strict=True))
    for panel in panels:
        panel.curves = {called[name]: curve for name, curve in panel.curves.items()}
        panel.groups = [(called[name], group) for name, group in panel.groups]


def length_of_names(panels: Sequence[Panel], form: Format) -> int:
    """The maximum number of characters in a name."""
    return form.row_name_length if panels[0].groups else form.name_length


def notes_on_names(panels: Sequence[Panel], form: Format) -> list[str]:
    """A note if names are shortened."""
    is_shortened = any(len(name) > length_of_names(panels, form) for name in names_of(panels))
    return ["long names are shortened; choose others with --labels"] if is_shortened else []


def drawn(panels: Sequence[Panel], form: Format, style: Style, suffix: str) -> tuple[bytes, list[str]]:
    """The content of the figure's file, and notes."""
    import matplotlib

    settings: Any = style.settings
    with warnings.catch_warnings(record=True) as caught, matplotlib.rc_context(settings):
        warnings.simplefilter("always")
        whole = laid_out(panels, form, style)
        buffer = io.BytesIO()
        whole.savefig(buffer, format=suffix, metadata=metadata_of(suffix))
    return buffer.getvalue(), missing_glyphs([str(warning.message) for warning in caught])


def metadata_of(suffix: str) -> dict[str, Any]:
    """Metadata with the mark but no date, so that the same runs give identical bytes."""
    creator = f"{MARK} {versions()['upslope']}"
    if suffix == "png":
        return {"Software": creator}
    return {"Creator": creator} | ({"CreationDate": None, "Producer": None} if suffix == "pdf" else {"Date": None})


def laid_out(panels: Sequence[Panel], form: Format, style: Style) -> Any:
    """Lay out all panels with one legend."""
    from matplotlib import rcParams
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = names_of(panels)
    shown = dict(zip(names, shortened([readable(name) for name in names], length_of_names(panels, form)), strict=True))
    lines = {name: line_of(place, style) for place, name in enumerate(names)}
    columns = min(form.panels, len(panels))
    rows = rows_of(len(panels), columns)
    whole = Figure(figsize=(form.width, height_of(panels, form, columns)), layout="constrained")
    FigureCanvasAgg(whole)
    axes = whole.subplots(rows, columns, squeeze=False)
    for place, panel in enumerate(panels):
        at = axes.flat[place]
        draw(at, panel, shown, lines, form)
    for at in axes.flat[len(panels) :]:
        at.set_axis_off()
    if any(panel.curves for panel in panels) and len(names) > 1:
        add_legend(whole, [(shown[name], lines[name]) for name in names])
    if style.settings["figure.figsize"] != matplotlib_size():
        whole.set_size_inches(*rcParams["figure.figsize"])
    return whole


def matplotlib_size() -> list[float]:
    """The size that Matplotlib gives a figure by default."""
    from matplotlib import rcParamsDefault

    return rcParamsDefault["figure.figsize"]


def height_of(panels: Sequence[Panel], form: Format, columns: int) -> float:
    """The height of all rows of panels, in inches."""
    rows = [panels[first : first + columns] for first in range(0, len(panels), columns)]
    return sum(max(height_of_panel(panel, form) for panel in row) for row in rows)


def height_of_panel(panel: Panel, form: Format) -> float:
    """The height of a panel with rows or with curves, in inches."""
    if panel.curves:
        return form.panel_height
    return form.row_height * (len(panel.groups) + 0.5) + 5 * form.font / 72


def line_of(place: int, style: Style) -> dict[str, Any]:
    """The colour and line style of the group with this index."""
    colours = style.colours
    return {"color": colours[place % len(colours)], "linestyle": LINES[place // len(colours) % len(LINES)]}


def draw(at: Any, panel: Panel, shown: dict[str, str], lines: dict[str, dict[str, Any]], form: Format) -> None:
    """Draw a panel."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    at.set_title(shortened([readable(panel.title)], form.name_length)[0])
    at.set_xlabel(panel.x)
    at.set_ylabel(panel.y)
    at.xaxis.set_major_locator(MaxNLocator(4 if panel.groups else 5))
    for name, (x, band) in panel.curves.items():
        if np.isfinite(band.low).any():
            at.fill_between(x, band.low, band.high, color=lines[name]["color"], alpha=0.18, linewidth=0)
        at.plot(x, band.mean, **lines[name])
    if panel.x == "environment steps":
        at.set_xlim(0, max(x[-1] for x, _ in panel.curves.values()))
        at.xaxis.set_major_formatter(FuncFormatter(lambda x, _: in_short(x)))
        at.set_ylim(*around(panel.seeds).get("range", (None, None)))
    if panel.groups:
        draw_scores(at, panel, shown, lines)


def draw_scores(at: Any, panel: Panel, shown: dict[str, str], lines: dict[str, dict[str, Any]]) -> None:
    """Draw each seed as a point, and the mean as a bar with its interval; a single seed has no bar."""
    from matplotlib import rcParams

    width = rcParams["lines.linewidth"]
    for place, (name, one) in enumerate(panel.groups):
        colour = lines[name]["color"]
        dots = {"color": "#202020", "markersize": 1.9 * width, "alpha": 0.5, "markeredgewidth": 0, "zorder": 3}
        at.plot(one.scores, [place] * len(one.scores), "o", **dots)
        if len(one.seeds) > 1 and math.isfinite(one.mean.value):
            at.plot([one.mean.value], [place], "|", color=colour, markersize=8 * width, mew=1.6 * width)
            if one.mean.interval:
                ends = [one.mean.interval.low, one.mean.interval.high]
                at.plot(ends, [place] * 2, "-", color=colour, linewidth=1.6 * width)
    at.set_yticks(range(len(panel.groups)), [shown[name] for name, _ in panel.groups])
    at.set_ylim(len(panel.groups) - 0.5, -0.5)
    at.grid(visible=False, axis="y")


def in_short(steps: float) -> str:
    """A number of steps in short form: 50k, 2M."""
    for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(steps) >= unit:
            return f"{steps / unit:g}{sign}"
    return f"{steps:g}"


def add_legend(whole: Any, entries: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Add a legend below the panels, in as many columns as fit."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **line) for _, line in entries]
    renderer, legend = whole.canvas.get_renderer(), None
    for columns in range(len(entries), 0, -1):
        options = {"ncols": columns, "handlelength": 1.4, "columnspacing": 1.0, "handletextpad": 0.5}
        # A name that begins with _ would be omitted, so the names are set afterwards.
        legend = whole.legend(handles, ["x"] * len(entries), loc="outside lower center", **options)
        for text, (name, _) in zip(legend.get_texts(), entries, strict=True):
            text.set_text(name)
        if columns == 1 or legend.get_window_extent(renderer).width <= 0.98 * whole.bbox.width:
            break
        legend.remove()
    assert legend is not None
    whole.set_figheight(whole.get_figheight() + legend.get_window_extent(renderer).height / whole.dpi)
