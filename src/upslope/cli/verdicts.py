"""How `upslope doctor`, `check` and `probe` answer in a terminal."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from upslope.core.messages import counted
from upslope.diagnosis.check import Checked
from upslope.diagnosis.doctor import Diagnosis
from upslope.diagnosis.findings import Finding
from upslope.diagnosis.probe import Probed

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red", "skipped": "dim"}


def diagnosis_view(found: Diagnosis) -> RenderableType:
    """Findings, surest and most harmful first; a healthy run gets a short clean bill, and what was not looked at is
    said."""
    parts: list[RenderableType] = []
    alarms, notes = found.alarms, [f for f in found.findings if not f.is_alarm]
    rules = f"{len(found.checked)} of {len(found.checked) + len(found.unchecked)} rules"
    if found.too_little:
        parts.append(Text(f"{found.run}: too little to judge by: {found.too_little}.", "yellow"))
    if not alarms:
        words = (
            f"so far nothing wrong was found by {rules}" if found.too_little else f"nothing wrong was found by {rules}"
        )
        parts.append(Text(f"{found.run}: {words}.", "" if found.too_little else "green"))
    else:
        parts.append(Text(f"{found.run}: {counted(len(alarms), 'finding')}.", "bold"))
    parts += [finding_panel(number, finding) for number, finding in enumerate(alarms, 1)]
    for note in notes:
        words = f"note: {note.symptom} {note.likely}"
        parts.append(Text(words + (f" To tell: {note.experiment}." if note.experiment else ""), "dim"))
    return Group(*parts, *looked_at(found))


def looked_at(found: Diagnosis) -> Iterator[RenderableType]:
    """Which rules could judge, where none found anything, and which could not, by what they lacked."""
    if not found.alarms:
        yield Text(f"Checked: {spelled(found.checked)}.", "dim")
    lacking = [f"{spelled([name])} ({what})" for name, what in found.unchecked.items()]
    if lacking:
        yield Text(f"Not checked, for want of what is in brackets: {'; '.join(lacking)}.", "dim")


def spelled(names: Sequence[str]) -> str:
    """The names of rules in words."""
    return ", ".join(name.replace("_", " ") for name in names)


def finding_panel(number: int, finding: Finding) -> Panel:
    """One finding: symptom, evidence, cause and rivals, remedy."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for one in finding.evidence:
        table.add_row("evidence", Text(one.words()))
    table.add_row("likely", f"{finding.likely} (certainty {finding.certainty:.0%})")
    for rival in finding.rivals:
        table.add_row("or", rival)
    if finding.experiment:
        table.add_row("to tell", Text(finding.experiment))
    table.add_row("remedy", Text(finding.remedy, "bold"))
    title = Text(f"{number}. {finding.symptom}", "bold yellow")
    return Panel(table, title=title, title_align="left", border_style="bright_black", subtitle=finding.cause)


def check_view(found: Checked) -> Iterator[RenderableType]:
    """A table of checks, and the line to begin with."""
    table = Table(title=f"upslope check {found.environment}", title_justify="left")
    for column in ("", "check", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for one in found.checks:
        table.add_row(Text(one.status, STYLES[one.status]), one.name, Text(one.found), Text(one.remedy))
    yield table
    if found.worst == "error":
        yield Text("Correct the errors first: what is learned in a broken environment means nothing.", "bold red")
    if found.command:
        yield Text.assemble("begin with:  ", (found.command, "bold"))


def probe_view(title: str, found: Sequence[Probed]) -> Iterator[RenderableType]:
    """A row a probe, and what the first failure means."""
    table = Table(title=f"upslope probe {title}", title_justify="left")
    table.add_column("probe")
    for column in ("return below the best", "best", "value error", "value"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for one in found:
        error = "–" if one.value_error is None else f"{one.value_error:.3f}"
        words = Text("solved", "green") if one.solved else Text("not solved", "bold red")
        table.add_row(one.name, f"{one.return_gap:.3f}", f"{one.best:.2f}", error, f"{one.value:.2f}", words)
    yield table
    failed = [one for one in found if not one.solved]
    if failed:
        yield Text(f"The first that fails is {failed[0].name}: suspect {failed[0].meaning}.", "bold yellow")
    else:
        yield Text("Every probe is solved: what learns badly elsewhere is the world or the settings.", "green")
