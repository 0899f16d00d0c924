"""diagnose(run): what is wrong with a run, by the rules, with evidence and remedy."""

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from upslope.analysis.records import Record, read_record
from upslope.core.messages import counted
from upslope.diagnosis import rules_data, rules_update
from upslope.diagnosis import rules_environment as rules_world
from upslope.diagnosis.findings import ACTING, CRITIC, ENDS, RULES, Finding, Signs
from upslope.errors import UpslopeError

ROOMS = (rules_data, rules_world, rules_update)
SURE = 0.8
"""While a run is still going on, only what is at least so certain is told."""
FEWEST = 10
"""Iterations before anything is told while it trains, and before a run is called healthy."""
DECISIVE = {CRITIC, ACTING}
"""Without these a rule does not apply, whatever else is lacking."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found, surest and most harmful first, and what was looked at."""

    run: str
    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    """The names of the rules that could judge."""
    unchecked: dict[str, str]
    """The names of those that could not, and what they lacked."""
    too_little: str
    """Why this is too little to call a run healthy; empty where it is enough."""

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """Findings sure enough to act on."""
        return tuple(f for f in self.findings if f.is_alarm)

    def to_json(self) -> dict[str, Any]:
        """For `--json`; `healthy` is null where too little is known."""
        found = [asdict(f) | {"is_alarm": f.is_alarm} for f in self.findings]
        healthy = False if self.alarms else None if self.too_little else True
        told = {"checked": list(self.checked), "unchecked": self.unchecked, "too_little": self.too_little}
        return {"run": self.run, "healthy": healthy, "findings": found, **told}


def diagnose(run: str | Path | Any) -> Diagnosis:
    """Diagnose a run: its directory, or what `upslope.train` returned.

    Raises:
        UpslopeError: not a run directory, or nothing was trained.
    """
    return diagnosis_of(read_record(Path(getattr(run, "path", run))))


def diagnosis_of(record: Record) -> Diagnosis:
    """The same for a record that is at hand."""
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
    """Why a run cannot be called healthy, though nothing be wrong with what is known of it."""
    iterations = int(np.isfinite(signs.record.steps).sum(axis=1).max())
    if iterations < FEWEST:
        return f"it has {counted(iterations, 'iteration')}, and {FEWEST} are needed"
    if signs.is_recorded:
        return f"it learned from recorded data and played no episodes; upslope evaluate {signs.record.path} tells more"
    if not np.isfinite(signs.returns[0]).any():
        return f"no seed has finished {ENDS} episodes, so whether the return rises is not known"
    if signs.is_flat:
        return "its return has not risen, and nothing that was looked at says why; it may need more steps"
    if num_checked < len(RULES) / 2:
        return "it does not hold what most rules look at; an older version of upslope may have trained it"
    return ""


class Watch:
    """Diagnoses a run while it trains, so seldom that it takes 1 % of the time at most."""

    def __init__(self, path: Path, seconds: float = 10.0):
        self.path, self.seconds, self.line = path, seconds, ""
        self.next = perf_counter() + seconds

    def look(self) -> str:
        """The surest finding in one line; empty while there is none."""
        started = perf_counter()
        if started >= self.next:
            self.line = self.words()
            now = perf_counter()
            self.next = now + max(self.seconds, 100 * (now - started))
        return self.line

    def words(self) -> str:
        """Diagnose what has been written so far; what cannot be read yet says nothing."""
        try:
            record = read_record(self.path)
        except UpslopeError:
            return ""
        if record.steps.shape[1] < FEWEST:
            return ""
        sure = [f for f in diagnosis_of(record).alarms if f.certainty >= SURE]
        return f"{sure[0].symptom} upslope doctor {self.path}" if sure else ""
