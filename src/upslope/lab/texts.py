"""The words of the lab in each language, and how numbers are written."""

import math
import re
from functools import cache
from html import escape
from importlib import resources
from typing import Any, Literal

import yaml

from upslope.lab.finding import Estimate, Interval

Language = Literal["en", "zh"]


@cache
def texts(language: Language) -> dict[str, Any]:
    """All words: of the page, of the curves, of each experiment."""
    return yaml.safe_load(resources.files("upslope.lab").joinpath(f"lab_{language}.yaml").read_text("utf-8"))


def number(value: float, width: float = 0.0) -> str:
    """With as many digits as an interval of this width deserves: two that change; three in all where it has none."""
    if not math.isfinite(value):
        return "–"
    if width > 0:
        return f"{value:.{max(0, min(6, 1 - math.floor(math.log10(width))))}f}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−").replace("e−0", "e−")


def measured(estimate: Estimate) -> tuple[str, str]:
    """The number, and its interval in brackets; an exact number has none."""
    low, high = estimate.interval
    width = high - low if math.isfinite(high - low) else 0.0
    if low == high:
        return number(estimate.value), ""
    return number(estimate.value, width), f"[{number(low, width)}, {number(high, width)}]"


def region(predicted: Interval) -> str:
    """`> 0`, `< 1`, or `−0.55 … −0.45`."""
    least, most = predicted
    if math.isinf(most):
        return f"> {number(least)}"
    if math.isinf(least):
        return f"< {number(most)}"
    digits = max(0, 1 - math.floor(math.log10(most - least)))
    return " … ".join(f"{bound:.{digits}f}".replace("-", "−") for bound in predicted)


def typeset(text: str) -> str:
    """Plain words → HTML: n^(−1/2) is raised, R_t lowered."""
    raised = re.sub(r"\^\(([^)]*)\)|\^(\w+)", lambda found: f"<sup>{found[1] or found[2]}</sup>", escape(text))
    return re.sub(r"(?<=\w)_(\w+)", r"<sub>\1</sub>", raised)
