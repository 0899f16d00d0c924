"""The style of a printed figure: sizes, colours, and the user's own Matplotlib style sheet (extra `figure`)."""

import ast
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from upslope.core.files import MAX_SETTINGS, plain_file
from upslope.core.messages import counted
from upslope.core.reading import brief
from upslope.errors import UpslopeError

Size = Literal["column", "page", "slide"]
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that can be told apart with any type of colour vision: those of Okabe & Ito (2008, Color Universal Design)
except yellow, which is too pale for a line."""
FAMILIES = (
    *(
        "axes.",
        "errorbar.",
        "font.",
        "grid.",
        "legend.",
        "lines.",
        "markers.",
        "patch.",
        "scatter.",
        "xtick.",
        "ytick.",
    ),
    *("figure.constrained_layout.", "figure.edgecolor", "figure.facecolor", "figure.figsize", "pdf.fonttype"),
    *("savefig.dpi", "savefig.edgecolor", "savefig.facecolor", "savefig.transparent", "svg.fonttype", "text.color"),
)
"""The settings that a style sheet may change. All others name modules, programs and folders, or are irrelevant to a
file."""
LONGEST_CYCLE = 10_000
"""Maximum number of characters in a colour cycle."""


@dataclass(frozen=True)
class Format:
    """The dimensions of a figure, in inches and points."""

    width: float
    panels: int
    """The maximum number of panels side by side."""
    panel_height: float
    row_height: float
    """The height of a row in a comparison."""
    font: float
    line: float
    dots: int
    """Pixels per inch of a PNG."""
    name_length: int
    """The maximum number of characters in a name."""
    row_name_length: int
    """The maximum number of characters in a name next to a row."""


FORMATS: dict[Size, Format] = {
    "column": Format(3.25, 1, 2.0, 0.2, 8.0, 1.2, 300, 34, 24),
    "page": Format(6.75, 3, 2.0, 0.2, 8.0, 1.2, 300, 34, 24),
    "slide": Format(12.0, 3, 5.0, 0.45, 18.0, 2.5, 150, 40, 24),
}
"""A column and the full width of a two-column journal, and a slide of 13.33 × 7.5 inches with room for its title."""


@dataclass(frozen=True)
class Style:
    """Matplotlib's settings, the colours of lines, and the settings that were ignored in a style sheet."""

    settings: dict[str, Any]
    colours: tuple[str, ...] = PALETTE
    notes: tuple[str, ...] = ()


def require_matplotlib() -> None:
    """Raise an error if Matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        raise UpslopeError('A figure needs Matplotlib, which is not installed: pip install "upslope[figure]"')


def style_of(size: Size, sheet: str | Path | None) -> Style:
    """The settings of a figure of this size, independent of the user's matplotlibrc, and those of a style sheet. Fonts
    are embedded in a PDF as TrueType, as publishers require, and drawn as outlines in an SVG.
    """
    import matplotlib

    font, line = FORMATS[size].font, FORMATS[size].line
    skipped = ("backend", "interactive", "toolbar", "timezone")
    settings = {key: x for key, x in matplotlib.rcParamsDefault.items() if not key.startswith(skipped)}
    settings |= {"font.size": font, "axes.titlesize": font, "axes.labelsize": font, "lines.linewidth": line}
    settings |= dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), font - font // 8)
    settings |= dict.fromkeys(("axes.spines.top", "axes.spines.right", "legend.frameon"), False)
    settings |= {"axes.linewidth": 0.5 * line, "grid.linewidth": 0.4 * line, "grid.color": "#d0d0d0", "axes.grid": True}
    settings |= dict.fromkeys(("xtick.major.width", "ytick.major.width"), 0.5 * line)
    settings |= {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "upslope", "axes.axisbelow": True}
    settings |= {"savefig.dpi": FORMATS[size].dots, "text.parse_math": False, "text.usetex": False}
    own = sheet_of(Path(sheet)) if sheet is not None else Style({})
    return Style(settings | own.settings, own.colours, own.notes)


def sheet_of(path: Path) -> Style:
    """The settings in a Matplotlib style sheet.

    The sheet is read here line by line, because Matplotlib would also accept settings that import a module, start a
    program or read another file.

    Raises:
        UpslopeError: the file cannot be read, or contains something that is not a setting.
    """
    from matplotlib import RcParams, rcParamsDefault

    if not path.exists():
        raise UpslopeError(f"There is no style sheet {path}. Pass the path of a text file with Matplotlib settings.")
    try:
        text = plain_file(path, MAX_SETTINGS).read_text("utf-8")
    except (OSError, ValueError) as error:
        raise UpslopeError(f"{path} cannot be read as a style sheet: {brief(error)}. Pass a text file.") from error
    settings: Any = RcParams()
    colours, left_out = PALETTE, []
    for number, line in enumerate(text.split("\n"), 1):
        line = without_comment(line)
        if not line:
            continue
        key, colon, value = (part.strip() for part in line.partition(":"))
        if not colon or key not in rcParamsDefault:
            raise UpslopeError(
                f"{path}, line {number}: {brief(ValueError(line))} is not a Matplotlib setting. A line of a style "
                "sheet has the form `key: value`."
            )
        if key == "axes.prop_cycle":
            found = colours_of(value)
            colours = found or colours
            left_out += [] if found else [key]
        elif key.startswith(FAMILIES):
            try:
                settings[key] = value.removeprefix('"').removesuffix('"')
            except (ValueError, TypeError) as error:
                raise UpslopeError(f"{path}, line {number}: {brief(error)}. Correct the value.") from error
        else:
            left_out.append(key)
    words = f"{path}: left out {', '.join(dict.fromkeys(left_out))}: a style sheet sets fonts, colours, lines and sizes"
    return Style(dict(settings), colours, (words,) if left_out else ())


def without_comment(line: str) -> str:
    """The line up to a # that is not in quotes."""
    quote = ""
    for place, letter in enumerate(line):
        if letter == "#" and not quote:
            return line[:place].strip()
        if letter in "\"'" and quote in ("", letter):
            quote = "" if quote else letter
    return line.strip()


def colours_of(cycle: str) -> tuple[str, ...]:
    """The colours of a cycle, `cycler('color', ['#0072B2', …])`, found without evaluating it; empty if it has none."""
    from matplotlib.colors import is_color_like

    if len(cycle) > LONGEST_CYCLE:
        return ()
    try:
        tree = ast.parse(cycle.strip().strip('"'), mode="eval")
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        given = [(call.args[0], call.args[1]) for call in calls if len(call.args) == 2]
        named = [ast.literal_eval(values) for name, values in given if ast.literal_eval(name) in ("color", "c")]
        named += [ast.literal_eval(k.value) for call in calls for k in call.keywords if k.arg in ("color", "c")]
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return ()
    values = named[0] if named and isinstance(named[0], list | tuple) else ()
    colours = [value if is_color_like(value) else f"#{value}" for value in values if isinstance(value, str)]
    return tuple(colours) if len(colours) == len(values) and all(map(is_color_like, colours)) else ()


def shortened(names: list[str], length: int) -> list[str]:
    """Shorten names in the middle to a maximum length, but keep them distinct."""
    found: list[str] = []
    for name in names:
        short = middle_left_out(name, length)
        before = [other for other in names[: len(found)] if middle_left_out(other, length) == short]
        same = len(set(before) - {name})
        found.append(f"{middle_left_out(name, length - 4)} ({same + 1})" if same else short)
    return found


def middle_left_out(name: str, length: int) -> str:
    """The beginning and the end of a name that is too long."""
    if len(name) <= length:
        return name
    end = length // 3
    return f"{name[: length - end - 1]}…{name[len(name) - end :]}"


def rows_of(count: int, columns: int) -> int:
    """The number of rows needed for this many items."""
    return -(-count // columns)


def missing_glyphs(messages: list[str]) -> list[str]:
    """A note if the font lacks characters of the names."""
    missing = [message for message in messages if message.startswith("Glyph")]
    if not missing:
        return []
    return [
        f"the font has no glyph for {counted(len(set(missing)), 'character')} in these names. Choose another in a "
        "style sheet (`font.family: Noto Sans CJK SC`), or set --labels"
    ]
