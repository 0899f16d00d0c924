"""What the doctor says of each run."""

from collections.abc import Sequence
from html import escape

from upslope.analysis.records import Record
from upslope.diagnosis.doctor import Diagnosis, diagnosis_of
from upslope.diagnosis.findings import Finding


def health_section(records: Sequence[Record], names: Sequence[str]) -> str:
    """Findings of the runs that have any; the others get one clean bill together."""
    found = [diagnosis_of(record) for record in records]
    sick = [(name, one) for name, one in zip(names, found, strict=True) if one.alarms]
    well = [name for name, one in zip(names, found, strict=True) if not one.alarms and not one.too_little]
    unsure = [(name, one.too_little) for name, one in zip(names, found, strict=True) if one.too_little]
    parts = [findings_of(name, one) for name, one in sick]
    if well:
        words = "Nothing wrong was found in" if sick or unsure else "Nothing wrong was found:"
        parts.append(f"<p>{words} {escape(', '.join(well))}. <code>upslope doctor</code> says what was checked.</p>")
    parts += [f"<p>Too little to judge {escape(name)} by: {escape(why)}.</p>" for name, why in unsure]
    return "".join(parts)


def findings_of(name: str, found: Diagnosis) -> str:
    """A run's alarms, surest and most harmful first."""
    return f"<h3>{escape(name)}</h3>" + "".join(finding_block(finding) for finding in found.alarms)


def finding_block(finding: Finding) -> str:
    """Symptom, cause, evidence, rivals, remedy."""
    rows = [("likely", f"{finding.likely} (certainty {finding.certainty:.0%})")]
    rows += [("evidence", one.words()) for one in finding.evidence]
    rows += [("or", rival) for rival in finding.rivals]
    rows += [("to tell", finding.experiment)] if finding.experiment else []
    rows += [("remedy", finding.remedy)]
    table = "".join(f"<tr><th>{label}</th><td>{escape(words)}</td></tr>" for label, words in rows)
    return f'<h4>{escape(finding.symptom)}</h4><div class="wide"><table class="finding">{table}</table></div>'
