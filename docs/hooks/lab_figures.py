"""Render the verdicts and figures of a lab experiment from the stored results of `python benchmarks/lab.py`."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from plotly.io import to_html
from plotly.offline import get_plotlyjs

from upslope.lab.experiments import EXPERIMENTS
from upslope.lab.finding import Estimate, Finding, Line, Outcome, Panel
from upslope.lab.page import experiment_view
from upslope.lab.texts import texts
from upslope.report.figures import Html
from upslope.report.output import templates

STORED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "lab.json"
SCRIPT = "assets/plotly.min.js"
NOT_STORED = {
    "en": "This copy of the documentation has no results for this experiment. Run it: `upslope lab --only {name}`.",
    "zh": "这份文档里没有实测结果。自己测：`upslope lab --only {name} --language zh`。",
}
HEADING = {"en": "The lab: ", "zh": "实验室："}


def section(name: str, language: str = "en") -> str:
    """Return the section for an experiment: its question, the claims with their verdicts, and the figures."""
    if name not in [experiment.name for experiment in EXPERIMENTS]:
        raise LookupError(f'the lab has no experiment "{name}"')
    words: dict[str, Any] = texts(language)  # type: ignore[arg-type]  # both languages have pages
    head = f"## {HEADING[language]}{words['experiments'][name]['title']}\n\n"
    outcome = stored().get(name)
    if outcome is None:
        return head + NOT_STORED[language].format(name=name) + "\n"
    view = experiment_view(name, outcome, words, plot)
    shown = str(templates("upslope.lab").get_template("lab_parts.html").module.findings(view))
    # A blank line would terminate the HTML block.
    return head + f'<div class="lab">{" ".join(shown.split())}</div>\n'


def plot(name: str, figure: dict[str, Any]) -> Html:
    """Render a figure as HTML. The id is fixed, so that the same findings give the same page."""
    options = {"displayModeBar": False, "responsive": True}
    return Html(to_html(figure, full_html=False, include_plotlyjs=False, config=options, div_id=name))


@cache
def stored() -> dict[str, Outcome]:
    """Return the stored outcome of each experiment. The dictionary is empty if there are no stored results."""
    if not STORED.is_file():
        return {}
    return {found["name"]: outcome(found) for found in json.loads(STORED.read_text("utf-8"))["experiments"]}


def outcome(found: dict[str, Any]) -> Outcome:
    """Convert an experiment's JSON to the lab's own data types."""
    findings = tuple(
        Finding(
            f["name"],
            Estimate(number(f["measured"]), (number(f["interval"][0]), number(f["interval"][1]))),
            (bound(f["predicted"][0], -math.inf), bound(f["predicted"][1], math.inf)),
        )
        for f in found["findings"]
    )
    panels = tuple(
        Panel(**panel | {"lines": tuple(Line(**line) for line in panel["lines"])}) for panel in found.get("panels", ())
    )
    return Outcome(findings, panels, found["numbers"])


def number(value: float | None) -> float:
    """Convert a stored number. JSON has no nan, so it is stored as null."""
    return math.nan if value is None else value


def bound(value: float | None, endless: float) -> float:
    """Convert a stored bound. JSON has no infinity, so it is stored as null."""
    return endless if value is None else value


def write_script(site: Path) -> None:
    """Copy Plotly's script from the installed package into the site."""
    (site / SCRIPT).write_text(get_plotlyjs(), "utf-8")
