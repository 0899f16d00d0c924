"""The parts of a diagnosis: findings with evidence, and the view of a run that rules use.

A rule is a function `(Signs) → Finding | None` decorated with `@rule`. To add one, write it, give its source, and plant
its fault in `benchmarks/doctor_faults.py`, which measures how often the rule is right.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from upslope.analysis.records import Record
from upslope.config.config import Config
from upslope.core.messages import PREFIX

ALARM = 0.5
"""A finding with at least this certainty is an alarm; all others are notes."""
UNTRAINED = 20
"""Number of finished episodes that a seed needs so that its return before learning can be estimated."""
PARTS = 10
"""Number of segments into which a run is cut to see when its return rose or fell; all have the same number of steps."""
ENDS = 10
"""Number of finished episodes that a seed needs to show whether its return rises."""
FEW = 16
"""Smallest number of samples per iteration for which a standard deviation is meaningful."""
CRITIC, ACTING = "a critic", "a policy that acts while it learns"
"""What a run may lack because of its settings."""
RULES: list[Callable[["Signs"], "Finding | None"]] = []


@dataclass(frozen=True)
class Evidence:
    """A metric's value in each seed, over a range of steps."""

    metric: str
    values: tuple[float, ...]
    """One value per seed; nan for a seed without one."""
    steps: tuple[int, int]
    """The first and last environment step of the range that the values summarise."""
    expected: str = ""

    def words(self) -> str:
        """The evidence as one line."""
        shown = ", ".join(f"{x:.3g}" for x in self.values[:10])
        expected = f"; expected {self.expected}" if self.expected else ""
        return f"{self.metric} = {shown} (steps {self.steps[0]:,} to {self.steps[1]:,}{expected})"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong or worth knowing."""

    cause: str
    """A short identifier for use in programs, such as `rows_misaligned`."""
    symptom: str
    likely: str
    """A description of the probable cause."""
    remedy: str
    """The flag or the line of code to change."""
    certainty: float
    """From 0 to 1: how often this is the cause of the symptom; reduced if only some seeds show it."""
    harm: float = 1.0
    """From 0 to 1: how strongly it prevents a run from learning."""
    rivals: tuple[str, ...] = ()
    experiment: str = ""
    """An experiment that would tell the possible causes apart."""
    evidence: tuple[Evidence, ...] = ()

    @property
    def is_alarm(self) -> bool:
        """Whether it is certain enough to act on."""
        return self.certainty >= ALARM and self.harm >= ALARM

    @property
    def rank(self) -> float:
        """The sort key of findings, which combines certainty and severity."""
        return self.certainty * self.harm


@dataclass
class Signs:
    """A run as the rules see it: each metric as one number per seed [S], over part of the run."""

    record: Record
    lacking: set[str] = field(default_factory=set)
    """Data that rules needed but the run lacks, collected since this set was last cleared."""

    def lacks(self, what: str, is_missing: bool) -> bool:
        """Record `what` if it is missing, and return `is_missing`."""
        if is_missing:
            self.lacking.add(what)
        return is_missing

    @property
    def config(self) -> Config:
        return self.record.config

    @property
    def needs_critic(self) -> bool:
        return not self.lacks(CRITIC, not self.record.description["axes"].get("needs_critic"))

    @property
    def is_recorded(self) -> bool:
        return self.lacks(ACTING, self.config.data is not None)

    @property
    def is_whole(self) -> bool:
        """Whether the estimator sums rewards to the end of the episode instead of bootstrapping."""
        return self.config.estimator in ("total_return", "reward_to_go", "baseline", "leave_one_out", "group_mean")

    @property
    def horizon(self) -> float:
        """1/(1 − γ), in steps."""
        return 1 / (1 - self.config.gamma) if self.config.gamma < 1 else math.inf

    @property
    def action(self) -> dict[str, Any]:
        """The description of the action space."""
        return self.record.description["spaces"]["action"]

    @property
    def batch(self) -> int | float:
        """Samples per iteration; infinite if whole episodes are collected."""
        return math.inf if self.is_whole else self.config.num_envs * self.config.rollout_steps

    @property
    def samples(self) -> int:
        """Samples per gradient step of the policy, for an estimator that collects segments."""
        parts = 1 if self.is_natural else self.config.minibatches
        return self.config.num_envs * self.config.rollout_steps // parts

    @property
    def is_natural(self) -> bool:
        """Whether the policy takes natural steps, whose size is set by the KL δ and not by a learning rate."""
        return self.config.objective in ("natural_gradient", "trust_region")

    @property
    def step_size(self) -> str:
        """The name of the setting that scales the policy's steps."""
        return "KL δ" if self.is_natural else "learning rate"

    @property
    def step_flag(self) -> str:
        """The flag that scales the policy's steps, with its value."""
        flag, value = ("delta", self.config.delta) if self.is_natural else ("learning-rate", self.config.learning_rate)
        return f"--{flag} (now {value:g})"

    def taken(
        self, name: str, start: float = 0.0, stop: float = 1.0, how: Callable[..., Any] = np.nanmedian
    ) -> np.ndarray:
        """A metric's median (or another summary) per seed over a part of the run; nan if it has no value there."""
        values = self.record.metrics.get(name, self.record.metrics.get(PREFIX + name))
        if values is None or not np.isfinite(values).any():
            self.lacking.add(name)
            return np.full(len(self.record.seeds), np.nan)
        done = self.record.steps / np.nanmax(self.record.steps)
        inside = (done >= start) & (done <= stop) & np.isfinite(values)
        return np.asarray([how(v[m]) if m.any() else np.nan for v, m in zip(values, inside, strict=True)])

    def whole(self, name: str) -> np.ndarray:
        """A health metric over the whole run [S, I]; nan where it was not measured."""
        values = self.record.metrics.get(PREFIX + name, np.full(self.record.steps.shape, np.nan))
        self.lacks(name, not np.isfinite(values).any())
        return values

    def late(self, name: str) -> np.ndarray:
        """A metric's median per seed over the second half of the run."""
        return self.taken(name, 0.5)

    def early(self, name: str) -> np.ndarray:
        """A metric's median per seed over the first fifth of the run."""
        return self.taken(name, 0.0, 0.2)

    def evidence(
        self, name: str, values: np.ndarray, expected: str = "", start: float = 0.0, stop: float = 1.0
    ) -> Evidence:
        """Build the evidence of a finding."""
        last = float(np.nanmax(self.record.steps))
        full = PREFIX + name if PREFIX + name in self.record.metrics else name
        return Evidence(full, tuple(float(x) for x in values), (int(start * last), int(stop * last)), expected)

    @cached_property
    def relative_entropy(self) -> np.ndarray | None:
        """Entropy over its maximum [S, I] for discrete actions; None for a Box, or if masks lower the maximum."""
        most = max_entropy(self.action)
        has_masks = self.record.description["spaces"].get("has_masks", False)
        if most is None or has_masks or "policy/entropy" not in self.record.metrics:
            return None
        return self.record.metrics["policy/entropy"] / (most or math.nan)

    @cached_property
    def sigma(self) -> np.ndarray | None:
        """Geometric mean of σ over action components, in units of half the range [S, I]; None unless all actions are
        one Box with a Gaussian policy, whose entropy gives σ."""
        is_gaussian = self.action["kind"] == "BoxHead" and self.config.head != "squashed"
        if not is_gaussian or "policy/entropy" not in self.record.metrics:
            return None
        low, high = (np.asarray([float(x) for x in self.action[name]]) for name in ("low", "high"))
        half = np.where(np.isfinite(low) & np.isfinite(high) & (high > low), (high - low) / 2, 1.0)
        log_sigma = self.record.metrics["policy/entropy"] / len(low) - 0.5 * math.log(2 * math.pi * math.e)
        return np.exp(log_sigma - np.log(half).mean())

    @property
    def returns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean return per seed at the beginning and at the end (last fifth), and the deviation at the beginning [S].

        The beginning is the first iteration if enough episodes end in it, since easy tasks are learned within a few
        iterations; otherwise it is the first tenth of the episodes.
        """
        self.lacks(f"{ENDS} finished episodes of a seed", not np.isfinite(self.known_returns[0]).any())
        first, last, spread, *_ = self.known_returns
        return first, last, spread

    @cached_property
    def known_returns(self) -> np.ndarray:
        """`returns` and the standard error of their rise, followed by the rise from the first to the last fifth, which
        is smaller but more precisely known, and its standard error [6, S]. nan for seeds with too few episodes."""
        parts = []
        for seed, steps in zip(self.record.seeds, self.record.steps, strict=True):
            episodes = self.record.episodes_of(seed)
            r, n, untrained = episodes["return"], len(episodes), int((episodes["step"] <= steps[0]).sum())
            first = r[: untrained if untrained >= UNTRAINED else max(5, n // 10)]
            fifth, last = r[: max(5, n // 5)], r[-max(5, n // 5) :]
            known = (np.mean(first), np.mean(last), np.std(first), standard_error(first, last))
            known += (np.mean(last) - np.mean(fifth), standard_error(fifth, last))
            parts.append(known if n >= ENDS else (np.nan,) * 6)
        return np.asarray(parts).T

    @property
    def improved(self) -> np.ndarray:
        """Whether the return of each seed rose by more than chance [S].

        If returns depend mostly on luck, as in Blackjack, even the best policy gains less than half of their standard
        deviation. A small rise therefore counts too, if it amounts to many standard errors.
        """
        first, last, spread = self.returns
        spread, (_, _, _, error, later_rise, later_error) = np.maximum(spread, 1e-9), self.known_returns
        is_large = last - first > np.maximum(0.5 * spread, 3 * error)
        return is_large | (later_rise > np.maximum(0.1 * spread, 4 * later_error))

    @property
    def worsened(self) -> np.ndarray:
        """Whether the return of each seed ended below that of the untrained policy by more than chance [S]."""
        first, last, spread = self.returns
        return first - last > np.maximum(np.maximum(spread, 1e-9), 4 * self.known_returns[3])

    @cached_property
    def stretches(self) -> list[list[np.ndarray]]:
        """The returns of each seed in `PARTS` segments with equal numbers of steps; a segment may be empty."""
        edges = np.linspace(0, np.nanmax(self.record.steps), PARTS + 1)[1:-1]
        found = []
        for seed in self.record.seeds:
            episodes = self.record.episodes_of(seed)
            found.append(np.split(episodes["return"], np.searchsorted(episodes["step"], edges, side="right")))
        return found

    @property
    def is_flat(self) -> bool:
        """Whether most of the seeds whose return is known did not improve; False if none is known."""
        known = np.isfinite(self.returns[0])
        return bool(known.any()) and float(np.mean(self.improved[known])) < 0.5

    @cached_property
    def descends(self) -> np.ndarray:
        """Whether updates of each seed lower E[Ψ (ρ − 1)] more often than chance would, by two standard errors [S]."""
        gain = self.whole("surrogate_gain")
        count = np.isfinite(gain).sum(axis=1)
        return (gain < 0).sum(axis=1) / count > 0.5 + 1 / np.sqrt(count)

    @cached_property
    def lengths(self) -> np.ndarray:
        """The lengths of all finished episodes."""
        return self.record.episodes["length"]


def standard_error(left: np.ndarray, right: np.ndarray) -> float:
    """The standard error of the difference of two means."""
    return float(np.sqrt(np.var(left) / len(left) + np.var(right) / len(right))) if len(left) and len(right) else np.nan


def share(holds: np.ndarray) -> float:
    """The weight of a sign: 0 if fewer than half of the seeds show it, 0.75 if half of them do, and 1 if all do."""
    part = float(np.mean(holds))
    return 0.5 + 0.5 * part if part >= 0.5 else 0.0


def rule(source: str) -> Callable[[Callable[[Signs], Finding | None]], Callable[[Signs], Finding | None]]:
    """Register a rule. `source` cites a description of the fault's signature; other thresholds are from
    benchmarks/doctor.py."""

    def enter(function: Callable[[Signs], Finding | None]) -> Callable[[Signs], Finding | None]:
        function.source = source  # type: ignore[attr-defined]  # functions may have attributes
        RULES.append(function)
        return function

    return enter


def max_entropy(action: dict[str, Any]) -> float | None:
    """The entropy of the uniform policy over a described action space, in nats; None if one of the actions is a Box.

    It equals `ActionHead.max_entropy`, but does not import JAX, which would take a large share of a report's time.
    """
    kind = action["kind"]
    if kind == "DiscreteHead":
        return math.log(action["n"])
    if kind == "MultiDiscreteHead":
        return sum(math.log(n) for n in action["sizes"])
    if kind == "MultiBinaryHead":
        return math.prod(action["shape"]) * math.log(2)
    if "parts" not in action:
        return None
    parts = action["parts"].values() if isinstance(action["parts"], dict) else action["parts"]
    entropies = [max_entropy(part) for part in parts]
    return None if None in entropies else sum(x for x in entropies if x is not None)
