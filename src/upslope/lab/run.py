"""Run experiments one after another, and present the results as lines, a table, or JSON."""

import reprlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from upslope.errors import UpslopeError
from upslope.lab.experiments import EXPERIMENTS
from upslope.lab.finding import Experiment, Finding, Outcome
from upslope.lab.texts import Language, measured, region, texts
from upslope.runs.directory import versions

STYLES = {"supported": "green", "refuted": "red", "undecided": "yellow"}

MOST_SEED = 2**31 - 10_000
"""The largest seed: an experiment also uses the seeds that follow it, which must fit in 32 bits."""


@dataclass(frozen=True)
class Result:
    """The outcome of an experiment and its duration in seconds."""

    name: str
    outcome: Outcome
    seconds: float


def select(names: Sequence[str] | None) -> list[Experiment]:
    """The named experiments, in the order of `EXPERIMENTS`; all of them for None."""
    if names is None:
        return list(EXPERIMENTS)
    if not names:
        raise UpslopeError("--only is empty. Name at least one experiment, or leave it out to run all.")
    known = [experiment.name for experiment in EXPERIMENTS]
    for name in names:
        if name not in known:
            raise UpslopeError(f'Unknown lab experiment "{name}". Available: {", ".join(known)}.')
    return [experiment for experiment in EXPERIMENTS if experiment.name in names]


def check_seed(seed: int) -> None:
    """Reject a seed outside the range from 0 to `MOST_SEED`."""
    if not 0 <= seed <= MOST_SEED:
        raise UpslopeError(f"--seed must be from 0 to {MOST_SEED:,}, not {reprlib.repr(seed)}. Choose another one.")


def run(names: Sequence[str] | None, language: Language, seed: int, quick: bool, console: Console) -> list[Result]:
    """Run experiments, and print a line after each.

    Raises:
        UpslopeError: there is no such experiment, or the seed is invalid.
    """
    check_seed(seed)
    words, results, experiments = texts(language), [], select(names)
    for place, experiment in enumerate(experiments, start=1):
        title = f"{place}/{len(experiments)}  {words['experiments'][experiment.name]['title']}"
        started = perf_counter()
        with console.status(title):
            outcome = experiment.measure(seed=seed, **(experiment.quick if quick else {}))
        results.append(Result(experiment.name, outcome, perf_counter() - started))
        seconds = words["page"]["headings"]["seconds"].format(seconds=results[-1].seconds)
        counts = f"  {verdict_counts(outcome.findings, words)}  {seconds}"
        console.print(Text.assemble(title, (counts, "dim")), highlight=False)
    return results


def verdict_counts(findings: Sequence[Finding], words: dict[str, Any]) -> str:
    """The number of claims with each verdict."""
    counts = Counter(finding.verdict for finding in findings)
    return words["page"]["counts"].format(**{verdict: counts[verdict] for verdict in STYLES})


def provenance(results: Sequence[Result], words: dict[str, Any], seed: int, quick: bool) -> str:
    """One line with the version, the seed and the total duration."""
    total = sum(result.seconds for result in results)
    short = words["page"]["quick"] if quick else ""
    return words["page"]["made"].format(version=versions()["upslope"], seed=seed, seconds=total, quick=short)


def closing(results: Sequence[Result], language: Language, seed: int, quick: bool, path: Path) -> str:
    """The closing lines: counts of verdicts, provenance, and the path of the page."""
    words = texts(language)
    findings = [finding for result in results for finding in result.outcome.findings]
    written = words["page"]["written"].format(path=path)
    return "\n".join((verdict_counts(findings, words), provenance(results, words, seed, quick), written))


def verdict_table(results: Sequence[Result], language: Language) -> Table:
    """A table of all claims, each with its prediction, measurement and verdict."""
    words = texts(language)
    headings = words["page"]["headings"]
    table = Table(title=headings["summary"], title_justify="left", show_lines=False)
    for name in ("claim", "predicted", "measured", "verdict"):
        table.add_column(headings[name], overflow="fold")
    for result in results:
        entry = words["experiments"][result.name]
        table.add_section()
        table.add_row(Text(entry["title"], "bold"))
        for finding in result.outcome.findings:
            verdict = Text(words["page"]["verdicts"][finding.verdict], STYLES[finding.verdict])
            claim = entry["claims"][finding.name]["claim"].format(**result.outcome.numbers)
            value = " ".join(measured(finding.estimate)).strip()
            table.add_row(claim, region(finding.predicted), value, verdict)
    return table


def as_json(results: Sequence[Result], language: Language, seed: int, quick: bool) -> dict[str, Any]:
    """All results as data, which `plain` converts to strict JSON: infinite bounds become null."""
    experiments = []
    for result in results:
        entry = texts(language)["experiments"][result.name]
        numbers = {key: float(value) for key, value in result.outcome.numbers.items()}
        findings = [
            {
                "name": finding.name,
                "claim": entry["claims"][finding.name]["claim"].format(**numbers),
                "number": entry["claims"][finding.name]["number"].format(**numbers),
                "predicted": finding.predicted,
                "measured": finding.estimate.value,
                "interval": finding.estimate.interval,
                "verdict": finding.verdict,
            }
            for finding in result.outcome.findings
        ]
        words = {key: entry[key].format(**numbers) for key in ("title", "source", "asks")}
        panels = [vars(panel) | {"lines": [line._asdict() for line in panel.lines]} for panel in result.outcome.panels]
        experiments.append(
            {"name": result.name, **words, "seconds": round(result.seconds, 1), "numbers": numbers}
            | {"findings": findings, "panels": panels}
        )
    return {"seed": seed, "quick": quick, "versions": versions(), "experiments": experiments}
