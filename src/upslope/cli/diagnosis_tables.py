"""Terminal output of `upslope doctor`, `check` and `probe`."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from upslope.cli.terminal import table
from upslope.core.messages import counted
from upslope.diagnosis.check import Checked
from upslope.diagnosis.doctor import Diagnosis
from upslope.diagnosis.findings import Finding
from upslope.diagnosis.probe import Probed

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red", "skipped": "dim"}


def diagnosis_view(found: Diagnosis) -> RenderableType:
    """The findings, most certain and severe first, or a clean bill of health, followed by the rules that were not
    checked."""
    parts: list[RenderableType] = []
    alarms, notes = found.alarms, [f for f in found.findings if not f.is_alarm]
    rules = f"{len(found.checked)} of {len(found.checked) + len(found.unchecked)} rules"
    if found.too_little:
        parts.append(Text(f"{found.run}: not enough evidence: {found.too_little}.", "yellow"))
    if not alarms:
        so_far, style = ("so far ", "") if found.too_little else ("", "green")
        parts.append(Text(f"{found.run}: {so_far}nothing wrong was found by {rules}.", style))
    else:
        parts.append(Text(f"{found.run}: {counted(len(alarms), 'finding')}.", "bold"))
    parts += [finding_panel(number, finding) for number, finding in enumerate(alarms, 1)]
    for note in notes:
        words = [f"note: {note.symptom} Perhaps (certainty {note.certainty:.0%}): {note.likely}"]
        words += [f"Or else: {rival}." for rival in note.rivals]
        words += [f"To confirm: {note.experiment}."] if note.experiment else []
        parts.append(Text(" ".join(words), "dim"))
    return Group(*parts, *rule_lines(found))


def rule_lines(found: Diagnosis) -> Iterator[RenderableType]:
    """A line that lists the rules that were checked, if none raised an alarm, and a line that lists the rules without
    enough data."""
    if not found.alarms:
        yield Text(f"Checked: {spaced(found.checked)}.", "dim")
    lacking = [f"{spaced([name])} ({what})" for name, what in found.unchecked.items()]
    if lacking:
        yield Text(f"Not checked (missing data in parentheses): {'; '.join(lacking)}.", "dim")


def spaced(names: Sequence[str]) -> str:
    """The names of rules, with spaces for underscores, separated by commas."""
    return ", ".join(name.replace("_", " ") for name in names)


def finding_panel(number: int, finding: Finding) -> Panel:
    """A finding: symptom, evidence, likely cause, alternative causes and remedy."""
    rows = [("evidence", Text(evidence.words())) for evidence in finding.evidence]
    rows += [("likely", f"{finding.likely} (certainty {finding.certainty:.0%})")]
    rows += [("or else", rival) for rival in finding.rivals]
    rows += [("how to tell", Text(finding.experiment))] if finding.experiment else []
    rows += [("remedy", Text(finding.remedy, "bold"))]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    title = Text(f"{number}. {finding.symptom}", "bold yellow")
    return Panel(grid, title=title, title_align="left", border_style="bright_black", subtitle=finding.cause)


def check_view(found: Checked) -> Iterator[RenderableType]:
    """A table of checks, and a command that starts training."""
    rows = ((Text(x.status, STYLES[x.status]), x.name, Text(x.found), Text(x.remedy)) for x in found.checks)
    yield table(f"upslope check {found.environment}", ("", "check", "found", "what to do"), rows)
    if found.worst == "error":
        yield Text("Fix the errors first: results from a broken environment are meaningless.", "bold red")
    if found.command:
        yield Text.assemble("start with:  ", (found.command, "bold"))
    if found.choices:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True)
        for choice in found.choices:
            grid.add_row(Text(choice.what), Text(choice.why, "dim"))
        yield grid


def probe_view(title: str, found: Sequence[Probed]) -> Iterator[RenderableType]:
    """A table with one row per probe, and the meaning of the first failure."""

    def row(probe: Probed) -> tuple[Any, ...]:
        error = "–" if probe.value_error is None else f"{probe.value_error:.3f}"
        verdict = Text("solved", "green") if probe.solved else Text("not solved", "bold red")
        return probe.name, f"{probe.return_gap:.3f}", f"{probe.best:.2f}", error, f"{probe.value:.2f}", verdict

    columns = ("probe", ">gap to best return", ">best return", ">value error", ">value", "verdict")
    yield table(f"upslope probe {title}", columns, map(row, found))
    failed = [probe for probe in found if not probe.solved]
    if failed:
        yield Text(f"The first failure is {failed[0].name}: suspect {failed[0].meaning}.", "bold yellow")
    else:
        yield Text(
            "All probes are solved. If learning fails elsewhere, suspect the environment or the settings.", "green"
        )
