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
    """Findings, the most certain and harmful first, or a clean bill of health, and the rules that were not checked."""
    parts: list[RenderableType] = []
    alarms, notes = found.alarms, [f for f in found.findings if not f.is_alarm]
    rules = f"{len(found.checked)} of {len(found.checked) + len(found.unchecked)} rules"
    if found.too_little:
        parts.append(Text(f"{found.run}: too little to judge by: {found.too_little}.", "yellow"))
    if not alarms:
        so_far, style = ("so far ", "") if found.too_little else ("", "green")
        parts.append(Text(f"{found.run}: {so_far}nothing wrong was found by {rules}.", style))
    else:
        parts.append(Text(f"{found.run}: {counted(len(alarms), 'finding')}.", "bold"))
    parts += [finding_panel(number, finding) for number, finding in enumerate(alarms, 1)]
    for note in notes:
        words = f"note: {note.symptom} {note.likely}"
        parts.append(Text(words + (f" To tell: {note.experiment}." if note.experiment else ""), "dim"))
    return Group(*parts, *looked_at(found))


def looked_at(found: Diagnosis) -> Iterator[RenderableType]:
    """The rules that were checked, if none found anything, and those that could not be, with what they lacked."""
    if not found.alarms:
        yield Text(f"Checked: {spelled(found.checked)}.", "dim")
    lacking = [f"{spelled([name])} ({what})" for name, what in found.unchecked.items()]
    if lacking:
        yield Text(f"Not checked, for want of what is in brackets: {'; '.join(lacking)}.", "dim")


def spelled(names: Sequence[str]) -> str:
    """Spell out the names of rules."""
    return ", ".join(name.replace("_", " ") for name in names)


def finding_panel(number: int, finding: Finding) -> Panel:
    """One finding: symptom, evidence, cause and rivals, remedy."""
    rows = [("evidence", Text(one.words())) for one in finding.evidence]
    rows += [("likely", f"{finding.likely} (certainty {finding.certainty:.0%})")]
    rows += [("or", rival) for rival in finding.rivals]
    rows += [("to tell", Text(finding.experiment))] if finding.experiment else []
    rows += [("remedy", Text(finding.remedy, "bold"))]
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    for row in rows:
        grid.add_row(*row)
    title = Text(f"{number}. {finding.symptom}", "bold yellow")
    return Panel(grid, title=title, title_align="left", border_style="bright_black", subtitle=finding.cause)


def check_view(found: Checked) -> Iterator[RenderableType]:
    """A table of checks, and the line to start training with."""
    rows = ((Text(x.status, STYLES[x.status]), x.name, Text(x.found), Text(x.remedy)) for x in found.checks)
    yield table(f"upslope check {found.environment}", ("", "check", "found", "what to do"), rows)
    if found.worst == "error":
        yield Text("Correct the errors first: what is learned in a broken environment means nothing.", "bold red")
    if found.command:
        yield Text.assemble("begin with:  ", (found.command, "bold"))
    if found.choices:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True)
        for choice in found.choices:
            grid.add_row(Text(choice.what), Text(choice.why, "dim"))
        yield grid


def probe_view(title: str, found: Sequence[Probed]) -> Iterator[RenderableType]:
    """A table with one row per probe, and the meaning of the first failure."""

    def row(one: Probed) -> tuple[Any, ...]:
        error = "–" if one.value_error is None else f"{one.value_error:.3f}"
        verdict = Text("solved", "green") if one.solved else Text("not solved", "bold red")
        return one.name, f"{one.return_gap:.3f}", f"{one.best:.2f}", error, f"{one.value:.2f}", verdict

    columns = ("probe", ">return below the best", ">best", ">value error", ">value", "verdict")
    yield table(f"upslope probe {title}", columns, map(row, found))
    failed = [one for one in found if not one.solved]
    if failed:
        yield Text(f"The first that fails is {failed[0].name}: suspect {failed[0].meaning}.", "bold yellow")
    else:
        yield Text(
            "Every probe is solved: if learning fails elsewhere, suspect the environment or the settings.", "green"
        )
