"""The result of `upslope judge`: estimates of a policy's value from recorded episodes, or why there are none."""

from dataclasses import asdict, dataclass
from typing import Any

from upslope.core import html
from upslope.core.messages import counted
from upslope.core.numbers import number, plus_minus

LABELS = {
    "is": "importance sampling",
    "wis": "importance sampling, weighted",
    "pdis": "per decision",
    "wpdis": "per decision, weighted",
    "fqe": "fitted Q",
    "dr": "doubly robust",
    "wdr": "doubly robust, weighted",
}
"""Estimator → its name in tables."""
PREFERRED = ("wdr", "wpdis", "fqe")
"""The first of these that has a number is the verdict. The order is fixed, because choosing the narrowest of several
intervals would give one that is too narrow."""


@dataclass(frozen=True)
class Judged:
    """One estimator's estimate of V^π."""

    value: float | None
    """None if the estimate is refused."""
    half_width: float | None
    """Half the width of the 95 % interval; None without one."""
    effective: float | None
    """The effective number of episodes that the estimate rests on."""
    refusal: str = ""
    """Why there is no number; empty if there is one."""

    def words(self) -> str:
        """Format as `14.0 ± 3.9`, or as a dash if there is no number."""
        if self.value is None:
            return "–"
        return number(self.value) if self.half_width is None else plus_minus(self.value, self.half_width)


@dataclass(frozen=True)
class Judgement:
    """Each estimator's estimate of V^π = E[Σ_t γ^t r_t] from episodes that another policy recorded."""

    run: str
    seed: int
    checkpoint: str
    data: str
    gamma: float
    horizon: int | None
    """The number of steps that count; None for all."""
    episodes: int
    steps: int
    truncated: int
    """The number of episodes that were cut off before the end, or before the horizon."""
    recorded: Judged
    """The mean of Σ_t γ^t r_t over the recorded steps: what the recorder itself earned."""
    estimates: dict[str, Judged]
    notes: tuple[str, ...]
    """Notes on what the numbers are based on, and on what is doubtful."""

    @property
    def verdict(self) -> str | None:
        """The estimator to quote: the first of `PREFERRED` with a number; None if none has one."""
        return next((name for name in PREFERRED if name in self.estimates and not self.estimates[name].refusal), None)

    @property
    def title(self) -> str:
        """A line that states what was judged, and on which data."""
        until = "" if self.horizon is None else f", first {counted(self.horizon, 'step')}"
        return (
            f"{self.run} · seed {self.seed} · {self.checkpoint} · judged by {counted(self.episodes, 'episode')} "
            f"({counted(self.steps, 'step')}) of {self.data} · Σ γ^t r_t, γ = {self.gamma:g}{until}"
        )

    @property
    def conclusion(self) -> str:
        """The verdict in a sentence."""
        recorded = f"The recorded episodes earned {self.recorded.words()}"
        if self.verdict is None:
            return f"{recorded}; these data cannot tell what this policy would earn."
        found = self.estimates[self.verdict]
        doubt = " without an interval" if found.half_width is None else " (95 %)"
        return f"{recorded}; this policy would earn {found.words()}{doubt}, estimated by {LABELS[self.verdict]}."

    def rows(self) -> list[list[str]]:
        """One row per estimator: its name, its value, and its effective episodes or the reason why it has no number."""
        rows = [
            [LABELS[name], found.words(), number(found.effective, 20.0) if found.effective else "", found.refusal]
            for name, found in self.estimates.items()
        ]
        return [row[: len(self.columns)] for row in rows]

    @property
    def columns(self) -> tuple[str, ...]:
        """The column titles of `rows`; the last one appears only if an estimate is refused."""
        titles = ("estimator", "value (95 %)", "effective episodes", "no number, because")
        return titles if any(found.refusal for found in self.estimates.values()) else titles[:-1]

    def to_json(self) -> dict[str, Any]:
        """Convert everything to JSON values."""
        return asdict(self) | {"verdict": self.verdict}

    def _repr_html_(self) -> str:
        shown = html.table(self.title, self.columns, self.rows())
        return shown + html.paragraph(self.conclusion) + html.items(self.notes)
