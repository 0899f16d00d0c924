"""diagnose(run): what is wrong with a run, by the rules, with evidence and remedy."""

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from upslope.analysis import rules_data, rules_update, rules_world
from upslope.analysis.findings import RULES, Finding, Signs
from upslope.analysis.records import Record, read_record
from upslope.errors import UpslopeError

ROOMS = (rules_data, rules_world, rules_update)
SURE = 0.8
"""While a run is still going on, only what is at least so certain is told."""
FEWEST = 10
"""Iterations before anything is told."""


@dataclass(frozen=True)
class Diagnosis:
    """What was found, surest and most harmful first, and what was looked at."""

    run: str
    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    """The names of all rules that were asked."""

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """Findings sure enough to act on."""
        return tuple(f for f in self.findings if f.is_alarm)

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        found = [asdict(f) | {"is_alarm": f.is_alarm} for f in self.findings]
        return {"run": self.run, "healthy": not self.alarms, "findings": found, "checked": list(self.checked)}


def diagnose(run: str | Path | Any) -> Diagnosis:
    """Diagnose a run: its directory, or what `upslope.train` returned.

    Raises:
        UpslopeError: not a run directory, or nothing was trained.
    """
    return diagnosis_of(read_record(Path(getattr(run, "path", run))))


def diagnosis_of(record: Record) -> Diagnosis:
    """The same for a record that is at hand."""
    signs = Signs(record)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        found = [finding for one in RULES if (finding := one(signs)) is not None]
    found.sort(key=lambda f: -f.rank)
    return Diagnosis(record.name, tuple(found), tuple(one.__name__ for one in RULES))


class Watch:
    """Diagnoses a run while it trains, so seldom that it takes 2 % of the time at most."""

    def __init__(self, path: Path, seconds: float = 10.0):
        self.path, self.seconds, self.line = path, seconds, ""
        self.next = perf_counter() + seconds

    def look(self) -> str:
        """The surest finding in one line; empty while there is none."""
        started = perf_counter()
        if started >= self.next:
            self.line = self.words()
            now = perf_counter()
            self.next = now + max(self.seconds, 50 * (now - started))
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
