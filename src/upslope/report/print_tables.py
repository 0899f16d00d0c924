"""Tables of scores for papers, pages and spreadsheets: the numbers of `upslope compare`."""

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Literal

from upslope.analysis.compare import compare
from upslope.analysis.comparison import Comparison, Group
from upslope.analysis.scores import Score
from upslope.analysis.statistics import Estimate
from upslope.config.coercion import coerce
from upslope.core.files import AnyPath
from upslope.core.messages import readable
from upslope.core.numbers import UNKNOWN, range_of

Format = Literal["latex", "markdown", "csv"]
HEAD = ("environment", "algorithm", "mean", "IQM", "median", "seeds", "steps")
STATISTICS = ("mean", "iqm", "median")
LATEX = {
    "\\": r"\textbackslash{}",
    **{letter: f"\\{letter}" for letter in "{}$&#_%"},
    **{"^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "`": r"\textasciigrave{}", "|": r"\textbar{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}"},
    **{"[": "{[}", "*": "{*}"},  # after the end of a row, LaTeX would read these as its arguments
}
"""Replacements for characters that LaTeX would interpret as commands."""
FORMULA = tuple("=+-@\t\r\n＝＋－＠")
"""A spreadsheet treats a cell that begins with one of these characters as a formula (OWASP, CSV Injection)."""


def table(runs: AnyPath | Sequence[AnyPath], format: Format = "latex", *, score: Score = "auto") -> str:
    """A table of the scores of runs, as text: mean, interquartile mean and median with 95 % intervals, seeds and steps.

    Runs that differ only in their seeds form one row. The numbers are the same as in `upslope.compare`, with the same
    rounding; its warnings give reasons to doubt them. CSV keeps all digits.

    Args:
        runs: run directories, or archives made by `upslope.bundle`.
        format: "latex" (with the booktabs package), "markdown" or "csv".
        score: how a seed is scored, as in `upslope.compare`.

    Raises:
        UpslopeError: in the same cases as `upslope.compare`.
    """
    coerce("format", format, Format)
    return table_of(compare(runs, score=score), format)


def table_of(comparison: Comparison, format: Format) -> str:
    """The table of a comparison, as text that ends with a newline."""
    writers: dict[Format, Callable[[Comparison], str]] = {"latex": latex, "markdown": markdown, "csv": as_csv}
    return writers[format](comparison)


def latex(comparison: Comparison) -> str:
    """A LaTeX tabular."""
    rows = [
        [latex_text(cell) for cell in words_of(g)] + [latex_number(x) for x in numbers_of(g)] for g in comparison.groups
    ]
    lines = [
        r"% \usepackage{booktabs}",
        f"% The score of a seed: {readable(comparison.score)}. Intervals are 95 %, over seeds.",
        r"\begin{tabular}{ll" + "r" * (len(HEAD) - 2) + "}",
        r"\toprule",
        " & ".join(HEAD) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def markdown(comparison: Comparison) -> str:
    """A Markdown table."""
    rows = [[*map(markdown_text, words_of(g)), *numbers_of(g)] for g in comparison.groups]
    lines = [HEAD, ["---", "---", *["---:"] * (len(HEAD) - 2)], *rows]
    caption = f"The score of a seed: {markdown_text(comparison.score)}. Intervals are 95 %, over seeds."
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{caption}\n"


def as_csv(comparison: Comparison) -> str:
    """Comma-separated values, with a column for each endpoint of an interval."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    columns = [f"{name}{end}" for name in STATISTICS for end in ("", "_low", "_high")]
    writer.writerow(["environment", "algorithm", *columns, "seeds", "steps"])
    for g in comparison.groups:
        ends = [x for name in STATISTICS for x in with_ends(getattr(g, name))]
        writer.writerow([*map(csv_text, words_of(g)), *ends, len(g.seeds), g.budget])
    return buffer.getvalue()


def words_of(g: Group) -> list[str]:
    """The cells of a row that are text."""
    return [g.environment, g.label]


def numbers_of(g: Group) -> list[str]:
    """The cells of a row that are numbers."""
    spread = range_of(g.scores)
    return [*(getattr(g, name).words(spread) for name in STATISTICS), str(len(g.seeds)), f"{g.budget:,}"]


def with_ends(estimate: Estimate) -> list[float | str]:
    """An estimate and the endpoints of its interval; cells are empty if there is no interval."""
    ends = (estimate.interval.low, estimate.interval.high) if estimate.interval else (math.nan, math.nan)
    return [x if math.isfinite(x) else "" for x in (estimate.value, *ends)]


def latex_text(text: str) -> str:
    """Text that LaTeX shows unchanged; otherwise two hyphens would become a dash."""
    return "".join(LATEX.get(letter, letter) for letter in readable(text)).replace("--", "-{-}")


def latex_number(words: str) -> str:
    """A number with its interval in mathematical type."""
    if words == UNKNOWN:
        return "--"
    for sign, command in ((",", "{,}"), ("{,} ", r",\,"), ("±", r"\pm"), (" [", r"\;[")):
        words = words.replace(sign, command)
    return f"${words}$"


def markdown_text(text: str) -> str:
    """Text that Markdown shows unchanged."""
    escaped = readable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$])", r"\\\1", escaped)


def csv_text(text: str) -> str:
    """Text that no spreadsheet interprets as a formula."""
    shown = readable(text)
    return f"'{shown}" if shown.lstrip(" ").startswith(FORMULA) else shown
