"""The result of a comparison, as data: `compare` makes it, tables and reports show it."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from upslope.analysis.statistics import Estimate, probability_of_improvement
from upslope.core.storage import plain

BUDGET_SHARES = (0.25, 0.5, 0.75, 1.0)
"""The shares of the budget at which sample efficiency is measured."""


@dataclass(frozen=True)
class Efficiency:
    """How early a group learns: its training return after shares of the budget."""

    steps: tuple[int, ...]
    """25, 50, 75 and 100 % of the smallest budget in this environment, in environment steps per seed."""
    at: tuple[Estimate, ...]
    """The mean over seeds at each of them; nan where a seed had not finished an episode."""
    area: Estimate
    """The mean height of the learning curve up to there: the area under it over its length."""


@dataclass(frozen=True)
class Group:
    """The runs in one environment that share everything but their seeds."""

    label: str
    """The algorithm, and what sets it apart from others of the same algorithm, e.g. "ppo lambda=0.9"."""
    environment: str
    algorithm: str
    runs: tuple[Path, ...]
    differs: dict[str, Any]
    """The settings in which the groups of this environment differ, with this group's values."""
    settings: dict[str, Any]
    """All settings that make it what it is, besides the environment and the seeds."""
    budget: int
    """The environment steps per seed behind its scores: fewer than `settings["steps"]` where a run is unfinished."""
    seeds: tuple[int, ...]
    scores: np.ndarray
    """[S], one for each seed, in their order; nan for a seed without a score."""
    mean: Estimate
    median: Estimate
    iqm: Estimate
    efficiency: Efficiency | None
    """None where there are no training episodes: recorded data."""
    is_comparable: bool = True
    """False where it was evaluated before its training was finished, so that its score is that of a smaller budget."""

    def beats(self, other: "Group") -> Estimate:
        """The probability that a seed of this group scores higher; nan where the two are not comparable."""
        if not (self.is_comparable and other.is_comparable):
            return Estimate(math.nan, None)
        return probability_of_improvement(self.scores, other.scores)


@dataclass(frozen=True)
class Improvement:
    """How probable it is that a seed of `label` scores higher than one of `other`; ties count half."""

    label: str
    other: str
    environments: tuple[str, ...]
    """One, or those over which it is the mean."""
    probability: Estimate
    is_paired: bool
    """Whether both have the same seeds. The estimate and its interval do not use it."""


@dataclass(frozen=True)
class Aggregate:
    """A label over all environments, in normalised scores; every environment counts the same."""

    label: str
    mean: Estimate
    iqm: Estimate


@dataclass(frozen=True)
class Profile:
    """The performance profile of a label: which share of its seeds scores more than τ, in normalised scores."""

    label: str
    thresholds: np.ndarray
    """τ [K]."""
    share: np.ndarray
    """[K], the mean over environments of the share of seeds above τ."""
    low: np.ndarray
    high: np.ndarray
    """The pointwise interval [K]; nan where a group has one seed."""

    def share_above(self, threshold: float) -> float:
        """The share at the last of the thresholds that is not above this one: 1 below all of them."""
        place = int(np.searchsorted(self.thresholds, threshold, side="right")) - 1
        return float(self.share[place]) if place >= 0 else 1.0


@dataclass(frozen=True)
class Reference:
    """What 0 and 1 of a normalised score mean in an environment."""

    environment: str
    zero: float
    one: float
    source: str


@dataclass(frozen=True)
class Comparison:
    """The result of `upslope.compare`."""

    score: str
    """What the score of a seed is, in words."""
    groups: tuple[Group, ...]
    improvements: tuple[Improvement, ...]
    """Of each pair within an environment, and over all environments where scores are normalised."""
    references: tuple[Reference, ...]
    aggregates: tuple[Aggregate, ...]
    profiles: tuple[Profile, ...]
    """The last three are empty unless normalised scores were asked for."""
    warnings: tuple[str, ...]
    """What a reader must know before believing the numbers."""

    def to_json(self) -> dict[str, Any]:
        """All of it in strict JSON; a number that is none is null."""
        return plain(self)
