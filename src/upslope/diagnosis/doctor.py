"""`diagnose(run)`: find out what is wrong with a run by applying rules, and give evidence and remedies."""

import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from upslope.analysis.records import Record, read_record
from upslope.core import html
from upslope.core.files import AnyPath
from upslope.core.messages import counted, shell, warn
from upslope.diagnosis import rules_data, rules_parts, rules_update
from upslope.diagnosis import rules_environment as rules_world
from upslope.diagnosis.findings import ACTING, CRITIC, ENDS, RULES, Finding, Signs
from upslope.errors import UpslopeError

ROOMS = (rules_data, rules_world, rules_update, rules_parts)
SURE = 0.8
"""Minimum certainty for a finding to be reported during training."""
FEWEST = 10
"""Number of iterations needed before findings are reported during training, or a run is called healthy."""
DECISIVE = {CRITIC, ACTING}
"""A rule that needs one of these does not apply to a run without it, whatever other data are missing."""


@dataclass(frozen=True)
class Diagnosis:
    """The findings, starting with the most certain and severe, and the rules that were checked."""

    run: str
    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    """Names of the rules that could be checked."""
    unchecked: dict[str, str]
    """Maps the name of each rule that could not be checked to the data that it needs."""
    too_little: str
    """Why there is too little evidence to call a run healthy; empty if there is enough."""

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """Findings that are certain enough to act on."""
        return tuple(f for f in self.findings if f.is_alarm)

    def _repr_html_(self) -> str:
        rules = f"{len(self.checked)} of {len(self.checked) + len(self.unchecked)} rules"
        result = counted(len(self.alarms), "finding") if self.alarms else f"nothing wrong was found by {rules}"
        thin = html.paragraph(f"Not enough evidence: {self.too_little}.") if self.too_little else ""
        found = "".join(part for finding in self.findings for part in html_parts(finding))
        return f"<div>{html.paragraph(f'{self.run}: {result}', 'b')}{thin}{found}</div>"

    def to_json(self) -> dict[str, Any]:
        """Convert to the output of `--json`; `healthy` is null if too little is known."""
        found = [asdict(f) | {"is_alarm": f.is_alarm} for f in self.findings]
        healthy = False if self.alarms else None if self.too_little else True
        told = {"checked": list(self.checked), "unchecked": self.unchecked, "too_little": self.too_little}
        return {"run": self.run, "healthy": healthy, "findings": found, **told}


def html_parts(finding: Finding) -> Iterator[str]:
    """A finding for a notebook: symptom, evidence, causes and remedy."""
    yield html.paragraph(finding.symptom if finding.is_alarm else f"Note: {finding.symptom}")
    yield html.items(
        [
            *(evidence.words() for evidence in finding.evidence),
            f"{'Likely' if finding.is_alarm else 'Perhaps'}: {finding.likely} (certainty {finding.certainty:.0%})",
            *(f"Or else: {rival}" for rival in finding.rivals),
            *([f"How to tell: {finding.experiment}"] if finding.experiment else []),
            f"Remedy: {finding.remedy}",
        ]
    )


def diagnose(run: AnyPath) -> Diagnosis:
    """Diagnose a run, given its directory or the result of `upslope.train`.

    A warning is printed if the run's files were changed after training.

    Raises:
        UpslopeError: the path is not a run directory, or nothing was trained.
    """
    record = read_record(run)
    for change in record.changes:
        warn(change)
    return diagnosis_of(record)


def diagnosis_of(record: Record) -> Diagnosis:
    """Diagnose a run that has already been read."""
    signs, found, unchecked = Signs(record), [], {}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        for one in RULES:
            signs.lacking.clear()
            finding = one(signs)
            if finding is not None:
                found.append(finding)
            elif signs.lacking:
                unchecked[one.__name__] = ", ".join(sorted(signs.lacking & DECISIVE or signs.lacking))
    found.sort(key=lambda f: -f.rank)
    checked = tuple(one.__name__ for one in RULES if one.__name__ not in unchecked)
    return Diagnosis(record.name, tuple(found), checked, unchecked, too_little(signs, len(checked)))


def too_little(signs: Signs, num_checked: int) -> str:
    """Why a run without findings cannot be called healthy; empty if it can."""
    iterations = int(np.isfinite(signs.record.steps).sum(axis=1).max())
    if iterations < FEWEST:
        return f"it has {counted(iterations, 'iteration')}, but {FEWEST} are needed"
    if signs.is_recorded:
        command = shell("upslope", "evaluate", signs.record.path)
        return f"it learned from recorded data and played no episodes; {command} reveals more"
    if not np.isfinite(signs.returns[0]).any():
        return f"no seed has finished {ENDS} episodes, so whether the return rises is not known"
    if signs.is_flat:
        return "its return has not risen, and no rule explains why; it may need more steps"
    if num_checked < len(RULES) / 2:
        return "it lacks the metrics that most rules need; it may have been trained by an older version of upslope"
    return ""


class Watch:
    """Diagnoses a run during training, at intervals long enough to take at most 1 % of the time."""

    def __init__(self, path: Path, seconds: float = 10.0):
        self.path, self.seconds, self.line = path, seconds, ""
        self.next = perf_counter() + seconds

    def look(self) -> str:
        """The most certain finding in one line; empty as long as there is none."""
        started = perf_counter()
        if started >= self.next:
            self.line = self.words()
            now = perf_counter()
            self.next = now + max(self.seconds, 100 * (now - started))
        return self.line

    def words(self) -> str:
        """Diagnose the run so far; the result is empty if the run cannot be read yet."""
        try:
            record = read_record(self.path)
        except UpslopeError:
            return ""
        if record.steps.shape[1] < FEWEST:
            return ""
        sure = [f for f in diagnosis_of(record).alarms if f.certainty >= SURE]
        return f"{sure[0].symptom} {shell('upslope', 'doctor', self.path)}" if sure else ""
