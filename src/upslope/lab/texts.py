"""The lab's texts in each language, and the formatting of its numbers and formulas."""

import math
import re
from functools import cache
from html import escape
from importlib import resources
from typing import Any, Literal

import yaml

from upslope.core.numbers import number, with_interval
from upslope.lab.finding import Estimate, Interval
from upslope.report.figures import Html

Language = Literal["en", "zh"]


@cache
def texts(language: Language) -> dict[str, Any]:
    """All texts in a language, for the page, the curves and each experiment."""
    return yaml.safe_load(resources.files("upslope.lab").joinpath(f"lab_{language}.yaml").read_text("utf-8"))


def measured(estimate: Estimate) -> tuple[str, str]:
    """A number and its interval in brackets as text; the interval of an exact number is empty."""
    low, high = estimate.interval
    value, interval = (number(estimate.value), "") if low == high else with_interval(estimate.value, low, high)
    return typographic(value), typographic(interval)


def region(predicted: Interval) -> str:
    """A predicted range as text: `> 0`, `< 1`, or `−0.55 … −0.45`."""
    lower, upper = predicted
    if math.isinf(upper):
        return typographic(f"> {number(lower)}")
    if math.isinf(lower):
        return typographic(f"< {number(upper)}")
    return typographic(" … ".join(number(bound, upper - lower) for bound in predicted))


def typographic(number: str) -> str:
    """Typeset a number with a proper minus sign and without the leading zero of an exponent."""
    return number.replace("-", "−").replace("e−0", "e−")


def typeset(text: str) -> Html:
    """Convert plain text to HTML: n^(−1/2) as a superscript, R_t as a subscript."""
    raised = re.sub(r"\^\(([^)]*)\)|\^(\w+)", lambda found: f"<sup>{found[1] or found[2]}</sup>", escape(text))
    return Html(re.sub(r"(?<=\w)_(\w+)", r"<sub>\1</sub>", raised))
