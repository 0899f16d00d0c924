"""The result of a comparison as data: `compare` returns it, and tables and reports display it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upslope.analysis.statistics import HUNDREDTHS, Estimate, probability_of_improvement
from upslope.core import html
from upslope.core.messages import counted
from upslope.core.storage import plain

BUDGET_SHARES = (0.25, 0.5, 0.75, 1.0)
"""Fractions of the budget at which sample efficiency is measured."""


@dataclass(frozen=True)
class Efficiency:
    """How quickly a group learns: its training return at fixed fractions of the budget."""

    steps: tuple[int, ...]
    """25, 50, 75 and 100 % of the smallest budget in this environment, in environment steps per seed."""
    at: tuple[Estimate, ...]
    """The mean over seeds at each of `steps`; nan where a seed had not finished an episode."""
    area: Estimate
    """The mean height of the learning curve up to the last step: the area under it divided by its length."""


@dataclass(frozen=True)
class Group:
    """The runs in one environment that differ only in their seeds."""

    label: str
    """The algorithm, plus the settings that distinguish this group from others with the same algorithm, e.g.
    "ppo lambda=0.9"."""
    environment: str
    algorithm: str
    runs: tuple[Path, ...]
    differs: dict[str, Any]
    """The settings in which the groups of this environment differ, with this group's values."""
    settings: dict[str, Any]
    """All settings that define the group, apart from the environment and the seeds."""
    budget: int
    """The environment steps per seed at which the group is scored: fewer than `settings["steps"]` if a run is
    unfinished."""
    seeds: tuple[int, ...]
    scores: np.ndarray
    """One score per seed [S], in the order of `seeds`; nan for a seed without a score."""
    mean: Estimate
    median: Estimate
    iqm: Estimate
    efficiency: Efficiency | None
    """None for runs on recorded data, which have no training episodes."""
    is_comparable: bool = True
    """False if the group was evaluated before training had finished, in which case its scores reflect a smaller
    budget."""

    def beats(self, other: "Group") -> Estimate:
        """The probability that a seed of this group scores higher than a seed of the other; nan if the two groups
        are not comparable."""
        if not (self.is_comparable and other.is_comparable):
            return Estimate(math.nan, None)
        return probability_of_improvement(self.scores, other.scores)


@dataclass(frozen=True)
class Improvement:
    """The probability that a seed of `label` scores higher than a seed of `other`; ties count half."""

    label: str
    other: str
    environments: tuple[str, ...]
    """The environment, or all environments over which the probability is averaged."""
    probability: Estimate
    is_paired: bool
    """Whether both groups have the same seeds. This does not affect the estimate or its interval."""


@dataclass(frozen=True)
class Aggregate:
    """Normalised scores of a label over all environments; every environment has the same weight."""

    label: str
    mean: Estimate
    iqm: Estimate


@dataclass(frozen=True)
class Profile:
    """The performance profile of a label: the share of its seeds whose normalised score exceeds τ."""

    label: str
    thresholds: np.ndarray
    """τ [K]."""
    share: np.ndarray
    """The share of seeds above each τ, averaged over environments [K]."""
    low: np.ndarray
    high: np.ndarray
    """The upper end of the pointwise interval [K]; `low` is the lower end. Both are nan if a group has only one
    seed."""

    def share_above(self, threshold: float) -> float:
        """The share at the largest of `thresholds` that does not exceed the given one; 1 if they all exceed it; nan if
        a seed has no score."""
        if np.isnan(self.share).any():
            return float("nan")
        place = int(np.searchsorted(self.thresholds, threshold, side="right")) - 1
        return float(self.share[place]) if place >= 0 else 1.0


@dataclass(frozen=True)
class Reference:
    """The two scores in an environment that are mapped to 0 and 1."""

    environment: str
    zero: float
    one: float
    source: str


@dataclass(frozen=True)
class Comparison:
    """The result of `upslope.compare`."""

    score: str
    """A description of how seeds are scored."""
    groups: tuple[Group, ...]
    improvements: tuple[Improvement, ...]
    """One for each pair of groups within an environment. If scores are normalised, also one for each pair of labels
    over all environments."""
    references: tuple[Reference, ...]
    aggregates: tuple[Aggregate, ...]
    profiles: tuple[Profile, ...]
    """`references`, `aggregates` and `profiles` are empty unless normalised scores were requested."""
    warnings: tuple[str, ...]
    """Caveats that a reader should know before trusting the numbers."""
    metric: str = "return"
    """The quantity that is measured for each episode."""

    def to_json(self) -> dict[str, Any]:
        """Convert to strict JSON; nan becomes null."""
        return plain(self)

    def __repr__(self) -> str:
        lines = [f"Comparison by the {self.score}:"]
        lines += [
            f"{g.label} on {g.environment}: {g.mean.words()} ({counted(len(g.seeds), 'seed')})" for g in self.groups
        ]
        lines += [f"{counted(len(self.warnings), 'caveat')} in .warnings"] if self.warnings else []
        return "\n  ".join(lines)

    def _repr_html_(self) -> str:
        return f"<div>{''.join(html_parts(self))}</div>"


def html_parts(found: Comparison) -> Iterator[str]:
    """The parts of a comparison shown in a notebook: scores by environment, probabilities of improvement, and
    caveats."""
    yield html.paragraph(f"The score of a seed: {found.score}. Intervals are 95 %, over seeds.")
    for environment in dict.fromkeys(g.environment for g in found.groups):
        groups = [g for g in found.groups if g.environment == environment]
        groups.sort(key=lambda g: -g.mean.value if math.isfinite(g.mean.value) else math.inf)
        rows = [(g.label, len(g.seeds), *(e.words() for e in (g.mean, g.iqm, g.median))) for g in groups]
        yield html.table(environment, ("", "seeds", "mean", "interquartile mean", "median"), rows)
    if found.aggregates:
        rows = [(a.label, a.mean.words(HUNDREDTHS), a.iqm.words(HUNDREDTHS)) for a in found.aggregates]
        yield html.table("All environments, normalised scores", ("", "mean", "interquartile mean"), rows)
    if found.improvements:
        title = "Probability that a seed of the first beats a seed of the second"
        pairs = [(", ".join(i.environments), i.label, i.other, i.probability) for i in found.improvements]
        rows = [(*names, p.words(HUNDREDTHS)) for *names, p in pairs]
        yield html.table(title, ("", "first", "second", "P"), rows)
    yield html.items(found.warnings)
