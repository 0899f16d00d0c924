"""The lab's texts in each language, and its numbers and formulas as text."""

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
    """All texts: of the page, of the curves, of each experiment."""
    return yaml.safe_load(resources.files("upslope.lab").joinpath(f"lab_{language}.yaml").read_text("utf-8"))


def measured(estimate: Estimate) -> tuple[str, str]:
    """The number and its interval in brackets; an exact number has no interval."""
    low, high = estimate.interval
    value, interval = (number(estimate.value), "") if low == high else with_interval(estimate.value, low, high)
    return typographic(value), typographic(interval)


def region(predicted: Interval) -> str:
    """`> 0`, `< 1`, or `−0.55 … −0.45`."""
    least, most = predicted
    if math.isinf(most):
        return typographic(f"> {number(least)}")
    if math.isinf(least):
        return typographic(f"< {number(most)}")
    return typographic(" … ".join(number(bound, most - least) for bound in predicted))


def typographic(number: str) -> str:
    """The same number with a real minus sign, and without the leading zero of an exponent."""
    return number.replace("-", "−").replace("e−0", "e−")


def typeset(text: str) -> Html:
    """Plain words → HTML: n^(−1/2) is raised, R_t lowered."""
    raised = re.sub(r"\^\(([^)]*)\)|\^(\w+)", lambda found: f"<sup>{found[1] or found[2]}</sup>", escape(text))
    return Html(re.sub(r"(?<=\w)_(\w+)", r"<sub>\1</sub>", raised))
