"""Describe each metric. The meaning comes from the tables in analysis/, and the advice from the doctor's rules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import yaml

from upslope.analysis.metrics import EXPLANATIONS, Explanation

RULES = Path(__file__).resolve().parents[2] / "src" / "upslope" / "diagnosis"
OTHERWISE: dict[str, str] = yaml.safe_load(Path(__file__).with_name("advice.yaml").read_text("utf-8"))
DERIVED = {
    "relative entropy": "policy/entropy",
    "σ in half ranges": "policy/entropy",
    "Σ √(2 KL)": "policy/kl",
    "truncation_bootstrap / |V|": "health/truncation_bootstrap",
    "share of the rise lost": "episode/return",
}
"""Quantities that rules compute from a metric, mapped to that metric."""
STANDS_FOR = {
    "key": "",
    "flag": "--learning-rate or the limit that is strict",
    "s.config.gamma": "0.9, say,",
    "s.horizon": "1/(1 − γ)",
    "s.step_flag": "--learning-rate (of natural steps: --delta)",
    "length": "many more",
    "counted(max(s.samples, 1), 'sample')": "few samples",
    "lost.sum()": "some",
    "np.sum(x > 0.7)": "some",
    "len(lost)": "the",
    "len(x)": "the",
    "best": "one return",
    "np.nanmean(first)": "400, say,",
    "np.nanmean(last)": "100",
    "np.nanmedian(x)": "say −200",
    "sampled": "another",
    "at_longest.mean()": "many",
    "longest": "n",
    "rates[0]": "many",
    "rates[-1]": "fewer",
    "steps": "thousands of",
    "broken": "observations, say,",
    "shell('upslope', 'check', s.config.environment)": "upslope check ENVIRONMENT",
}
"""General words that replace the numbers of a particular run in the texts of the rules."""


class Rule(NamedTuple):
    """The texts of one of the doctor's rules, and the metrics on which the rule is based."""

    metrics: frozenset[str]
    symptom: str
    likely: str
    remedy: str


def tables(name: str, language: str = "en") -> str:
    """Return one section for each metric of a table such as `analysis.metrics.METRICS`."""
    module, _, attribute = name.rpartition(".")
    explained: dict[str, Explanation] | None = getattr(import_module(f"upslope.{module}"), attribute, None)
    if explained is None:
        raise LookupError(f"upslope.{module} has no {attribute}")
    return "\n".join(section(metric, explanation) for metric, explanation in explained.items())


def section(metric: str, explanation: Explanation) -> str:
    """Return the section for a metric: its name, unit and meaning, its healthy values, and advice for other values."""
    advice = [f"    - {rule.symptom} {rule.likely} *{rule.remedy}*" for rule in rules() if metric in rule.metrics]
    advice += [f"    - {OTHERWISE[metric]}"] if metric in OTHERWISE else []
    if not advice:
        raise LookupError(f"{metric}: neither a rule nor advice.yaml explains what to do if it is not healthy")
    lines = [
        f"### `{metric}` {{ #{metric.replace('/', '-')} }}\n",
        f"{explanation.title}, in *{explanation.unit}*. {explanation.meaning}\n",
        f"- **Healthy:** {explanation.healthy}",
    ]
    return "\n".join([*lines, "- **If it is not:**\n", *advice]) + "\n"


@cache
def rules() -> tuple[Rule, ...]:
    """Return the doctor's rules. They are parsed, not called, so the advice does not depend on the flags of a run."""
    functions = [
        node
        for path in sorted(RULES.glob("rules_*.py"))
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef)
    ]
    return tuple(rule for function in functions for rule in rules_of(function))


def rules_of(function: ast.FunctionDef) -> Iterator[Rule]:
    """Yield each finding that the function of a rule can return."""
    assigned = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
    known = {node.targets[0].id: node.value for node in assigned if isinstance(node.targets[0], ast.Name)}
    for call in calls_of("Finding", function):
        symptom, likely, remedy = (words(node, known) for node in call.args[1:4])
        evidence = [found.args[0] for found in calls_of("evidence", call)]
        if remedy:
            yield Rule(metrics_in(*evidence) or metrics_in(function), symptom, likely, remedy)


def calls_of(name: str, node: ast.AST) -> list[ast.Call]:
    """Return the calls of `name(…)` and of `something.name(…)`."""
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call)]
    return [n for n in calls if name in (getattr(n.func, "id", None), getattr(n.func, "attr", None))]


def metrics_in(*nodes: ast.AST) -> frozenset[str]:
    """Return the metrics whose names occur in these pieces of source code."""
    constants = (n.value for node in nodes for n in ast.walk(node) if isinstance(n, ast.Constant))
    found = {name for name in constants if isinstance(name, str)}
    full = {x for name in found for x in (name, f"health/{name}", DERIVED.get(name, ""))}
    return frozenset(full & EXPLANATIONS.keys())


def part_in_words(part: ast.expr) -> str:
    """Return text unchanged, and replace a number of a run with words.

    If there are no words for the number, the result is "…", which is allowed only in brackets.
    """
    if isinstance(part, ast.FormattedValue):
        return STANDS_FOR.get(ast.unparse(part.value), "…")
    return str(part.value) if isinstance(part, ast.Constant) else "…"


def words(node: ast.AST, known: dict[str, ast.expr]) -> str:
    """Return the text of an expression in the source code, without the numbers of a particular run."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        text = re.sub(r" \([^()]*…[^()]*\)", "", "".join(map(part_in_words, node.values)))
        if "…" in text:
            raise LookupError(f"{ast.unparse(node)}: STANDS_FOR has no replacement for one of its numbers")
        return text[:1].upper() + text[1:] if text[:1].isascii() else text
    if isinstance(node, ast.IfExp):
        return " Or: ".join(filter(None, (words(node.body, known), words(node.orelse, known))))
    if isinstance(node, ast.Name) and node.id in known:
        return words(known[node.id], {})
    return ""
