"""All findings → one HTML page that needs nothing else."""

from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from plotly.io import to_html

from upslope.lab.figures import figure
from upslope.lab.finding import Finding, Outcome
from upslope.lab.run import Result, counts_of, made_of
from upslope.lab.texts import Language, measured, region, texts, typeset
from upslope.report.output import MARK
from upslope.report.page import plotly_script


def page(results: Sequence[Result], language: Language, seed: int, quick: bool) -> str:
    """The page, Plotly included."""
    words = texts(language)
    template = Template(resources.files("upslope.lab").joinpath("lab_page.html").read_text("utf-8"))
    return template.substitute(
        mark=MARK,
        language={"en": "en", "zh": "zh-CN"}[language],
        title=escape(words["page"]["title"]),
        subtitle=escape(words["page"]["subtitle"]),
        rule=escape(words["page"]["rule"]),
        contents="\n".join(entry(result, words) for result in results),
        counts=escape(counts_of([f for r in results for f in r.outcome.findings], words)),
        experiments="\n".join(section(result, words) for result in results),
        made=escape(made_of(results, words, seed, quick)),
        plotly=plotly_script(),
    )


def entry(result: Result, words: dict[str, Any]) -> str:
    """A line of the contents: what was asked, and a mark for each verdict."""
    title = typeset(words["experiments"][result.name]["title"])
    marks = "".join(
        f'<b class="{f.verdict}" title="{escape(words["page"]["verdicts"][f.verdict])}">{MARKS[f.verdict]}</b>'
        for f in result.outcome.findings
    )
    return f'<li><a href="#{result.name}">{title}</a><span>{marks}</span></li>'


MARKS = {"supported": "●", "refuted": "✕", "undecided": "○"}


def section(result: Result, words: dict[str, Any]) -> str:
    """One experiment: question, claims with their verdicts, figures."""
    mine, headings = words["experiments"][result.name], words["page"]["headings"]
    outcome = result.outcome
    source = typeset(headings["source"].format(source=mine["source"]))
    rows = "\n".join(row(finding, outcome, mine, words["page"]) for finding in outcome.findings)
    plots = "\n".join(
        f"<div>{plot(result.name, place, outcome, mine, words)}</div>" for place in range(len(outcome.panels))
    )
    return (
        f'<section id="{result.name}"><h2>{typeset(mine["title"])}</h2><div class="soft">{source}</div>'
        f"<p>{typeset(mine['asks'].format(**outcome.numbers))}</p>"
        f'<div class="findings">{rows}</div><div class="plots">{plots}</div></section>'
    )


def row(finding: Finding, outcome: Outcome, mine: dict[str, Any], words: dict[str, Any]) -> str:
    """One claim: what it says, what was measured against what was predicted, the verdict."""
    said = {key: typeset(text.format(**outcome.numbers)) for key, text in mine["claims"][finding.name].items()}
    value, interval = measured(finding.estimate)
    predicted = f"{words['headings']['predicted']} {region(finding.predicted)}"
    beneath = f'<div class="soft">{said["number"]}<br>{escape(predicted)}</div>'
    return (
        f'<div class="finding"><div class="claim">{said["claim"]}</div>'
        f'<div class="value"><b>{value}</b> <span class="interval">{interval}</span>{beneath}</div>'
        f'<div class="verdict {finding.verdict}">{escape(words["verdicts"][finding.verdict])}</div></div>'
    )


def plot(name: str, place: int, outcome: Outcome, mine: dict[str, Any], words: dict[str, Any]) -> str:
    """One figure as HTML."""
    panel = outcome.panels[place]
    drawn = figure(panel, mine["panels"][panel.name], words["lines"])
    options = {"displayModeBar": False, "responsive": True}
    # A fixed name, so that the same findings give the same page.
    return to_html(drawn, full_html=False, include_plotlyjs=False, config=options, div_id=f"{name}-{panel.name}")
