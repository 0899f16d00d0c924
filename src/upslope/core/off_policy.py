"""Off-policy evaluation: estimate the value of a policy π from episodes that another policy μ recorded.

Every estimator here is a mean over N episodes of sums over T steps, computed in NumPy with 64 bits. With the ratios
ρ_t = π(a_t|s_t) / μ(a_t|s_t), step t has the weight w_t = ρ_0 ρ_1 ⋯ ρ_t, whose expectation is 1. An episode that has
ended keeps its last weight, as if it stayed in a state without rewards.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from upslope.core.numbers import t_quantile

PerStep = Float[np.ndarray, "T N"]
PerEpisode = Float[np.ndarray, "N"]


class Estimated(NamedTuple):
    """An estimate of V^π, as a mean over episodes."""

    value: float
    influence: PerEpisode
    """For each episode, N − 1 times the change in the estimate when the episode is added to the others (the jackknife's
    influence)."""
    effective: float
    """The effective number of episodes that the estimate rests on; see `effective_number`."""

    def half_width(self) -> float:
        """Half the width of the 95 % interval: t_ν √(Σψ² / (N (N−1))), with the influences ψ of the N episodes.

        For a plain mean, √… is the usual standard error; otherwise it is the jackknife's (Tukey 1958). ν is the
        effective number of episodes minus 1, because a few heavily weighted episodes dominate.
        `benchmarks/off_policy.py` measures the interval's coverage.
        """
        n = len(self.influence)
        if n < 2 or not self.effective > 1:
            return float("nan")
        return float(t_quantile(self.effective - 1) * np.sqrt(np.sum(self.influence**2) / (n * (n - 1))))


def log_weights(log_ratio: PerStep, valid: Bool[np.ndarray, "T N"]) -> PerStep:
    """log w_t = Σ_{k≤t} log ρ_k; after the end of an episode, its last value."""
    return np.cumsum(np.where(valid, log_ratio, 0.0), axis=0, dtype=np.float64)


def normalised(log_weight: Float[np.ndarray, "... N"]) -> Float[np.ndarray, "... N"]:
    """w / mean(w) over the episodes, computed without overflow; nan where every weight is 0."""
    largest = np.max(log_weight, axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        scaled = np.exp(log_weight - largest)
        return scaled / scaled.mean(axis=-1, keepdims=True)


def kish(log_weight: Float[np.ndarray, "... N"]) -> Any:
    """(Σw)² / Σw²: the number of equally weighted episodes that carry the same information (Kish 1965)."""
    w = normalised(log_weight)
    return w.shape[-1] / np.mean(w**2, axis=-1)


def effective_number(size: Float[np.ndarray, "K"], number: Float[np.ndarray, "K"]) -> float:
    """Σ size / Σ (size / number): the size-weighted harmonic mean of the effective numbers of an estimate's terms."""
    total = float(np.sum(size))
    return total / float(np.sum(size / number)) if total > 0 else float(np.max(number))


def by_trajectory(gain: PerStep, log_weight: PerStep, gamma: float, *, weighted: bool) -> Estimated:
    """Importance sampling by trajectory: the mean of w_{T−1} Σ_t γ^t r_t; `weighted` divides by the sum of the weights.

    The plain estimate is unbiased; the weighted estimate is consistent and varies less. Source: Precup, Sutton & Singh
    2000, Eligibility Traces for Off-Policy Policy Evaluation, eq. 1 and 2.
    """
    last = log_weight[-1]
    weight = normalised(last) if weighted else plain(last)
    returns = discounts(gain, gamma).sum(axis=0)
    term = weight * returns
    value = float(term.mean())
    influence = without(weight) * weight * (returns - value) if weighted else term - value
    return Estimated(value, influence, float(kish(last)))


def without(weight: Float[np.ndarray, "... N"]) -> Float[np.ndarray, "... N"]:
    """(N − 1) / (N − w): the jackknife's factor for a ratio of means, 1 for an episode of average weight w = 1."""
    n = weight.shape[-1]
    rest = n - weight
    return np.where(rest > 0, (n - 1) / np.maximum(rest, 1e-12), 0.0)


def per_decision(
    gain: PerStep, log_weight: PerStep, gamma: float, *, weighted: bool, start: PerEpisode | None = None
) -> Estimated:
    """Per-decision importance sampling: the mean of Σ_t γ^t w_t r_t, in which no reward is weighted by later actions.

    `weighted` divides w_t at each step by its mean over the episodes. Source: Precup, Sutton & Singh 2000, section 3;
    for weighting at each step, Thomas 2015, Safe Reinforcement Learning, section 3.7 (consistent weighted
    per-decision). `start` is added for each episode, with the weight 1.
    """
    weight = normalised(log_weight) if weighted else plain(log_weight)
    parts = discounts(weight * gain, gamma)
    mean = parts.mean(axis=1, keepdims=True)
    moved = without(weight) * (parts - weight * mean) if weighted else parts - mean
    value, influence = float(mean.sum()), moved.sum(axis=0)
    if start is not None:
        value, influence = value + float(start.mean()), influence + start - start.mean()
    return Estimated(value, influence, effective_number(np.abs(parts).mean(axis=1), kish(log_weight)))


def doubly_robust(
    surprise: PerStep, start: PerEpisode, log_weight: PerStep, gamma: float, *, weighted: bool
) -> Estimated:
    """The mean of V̂(s_0) + Σ_t γ^t w_t δ_t, with the surprise δ_t = r_t + γ V̂(s_{t+1}) − Q̂(s_t, a_t).

    The estimate is correct if at least one of the weights and Q̂ is correct. Source: Jiang & Li 2016,
    Doubly Robust Off-policy Value Evaluation for Reinforcement Learning, eq. 10, unrolled; `weighted`: Thomas &
    Brunskill 2016, Data-Efficient Off-Policy Policy Evaluation for Reinforcement Learning, eq. 9.
    """
    return per_decision(surprise, log_weight, gamma, weighted=weighted, start=start)


def plain(log_weight: Float[np.ndarray, "... N"]) -> Float[np.ndarray, "... N"]:
    """The weights themselves; infinite where they exceed the range of 64 bits."""
    with np.errstate(over="ignore"):
        return np.exp(log_weight)


def discounts(x: PerStep, gamma: float) -> PerStep:
    """γ^t x_t."""
    return gamma ** np.arange(len(x), dtype=np.float64)[:, None] * x


class RatioTest(NamedTuple):
    """A test of whether the ratios ρ_t = π/μ are consistent with the recorded policy; see `ratio_test`."""

    mean: float
    z: float


def ratio_test(log_ratio: PerStep, valid: Bool[np.ndarray, "T N"]) -> RatioTest:
    """The mean of the ratios of all steps, and its distance from 1 in standard errors.

    E_μ[ρ_t | s_t] is the probability under π of the actions that μ can take, which is 1 if μ can take them all. Then
    ρ_t − 1 over successive steps are martingale differences, whose sum has the variance Σ(ρ_t − 1)². A mean below 1
    indicates actions that μ never takes, or recorded probabilities that are not μ's. A mean above 1 can only indicate
    the latter.
    """
    excess = np.exp(np.minimum(log_ratio[valid].astype(np.float64), 700.0)) - 1
    spread = float(np.sqrt(np.sum(excess**2)))
    return RatioTest(1 + float(excess.mean()), float(excess.sum()) / spread if spread > 0 else 0.0)
