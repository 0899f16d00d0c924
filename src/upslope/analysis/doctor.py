"""diagnose(run): what is wrong with a run, by the rules, with evidence and remedy."""

import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upslope.analysis import rules_data, rules_update, rules_world
from upslope.analysis.findings import RULES, Finding, Signs
from upslope.analysis.records import Record, read_record

ROOMS = (rules_data, rules_world, rules_update)


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
