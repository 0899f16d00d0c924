"""Hold what an exported file gives against what the policy itself gives."""

from typing import Any, NamedTuple

import jax
import numpy as np

from upslope.core.distributions import Bernoulli, Categorical, DiagonalGaussian, MultiCategorical
from upslope.errors import UpslopeError
from upslope.runs.export.plan import Categories, Gaussian, Plan
from upslope.runs.export.running import Found, over_time
from upslope.runs.export.samples import structured

EPISODES, STEPS = 32, 4
"""The random observations that a file is held against; a policy without memory sees all of them as first steps."""
TOLERANCE = 1e-3
"""A file that differs by more than this, relative plus absolute, is not written: then it computes something else.
Rounding is about 1e-6."""


class Agreement(NamedTuple):
    """How two policies agree."""

    largest: float
    """max |x − y| / (1 + |y|) over the parameters, and over actions that are real numbers."""
    differing: int
    """Actions that differ although no two scores tie within that."""


def expected(plan: Plan, policy: Any, arrays: list[np.ndarray], masks: np.ndarray | None) -> Found:
    """What upslope's policy gives for arrays [T, B, …] of each input; its own memory stays as it is."""
    agent, count = policy.agent, arrays[0].shape[1]
    carry = agent.model.start(count)

    def step(t: int) -> tuple[Any, dict[str, Any]]:
        nonlocal carry
        observation, mask = (
            structured(plan, policy.encoder, [x[t] for x in arrays]),
            None if masks is None else masks[t],
        )
        if policy.acts_in_numpy:
            distribution = policy.distribution(observation, mask)
        else:
            distribution, carry = policy.step(agent, observation, carry, np.full(count, t == 0), mask)
        return agent.head.to_environment(np.asarray(distribution.mode())), parameters_of(distribution)

    return over_time(step, len(arrays[0]))


def parameters_of(distribution: Any) -> dict[str, np.ndarray]:
    """The parameters of a distribution, by name."""
    if type(distribution) is DiagonalGaussian:
        mean = np.asarray(distribution.mean)
        return {"mean": mean, "log_std": np.broadcast_to(np.asarray(distribution.log_std), mean.shape)}
    if type(distribution) is MultiCategorical:
        return {"logits": np.concatenate([np.asarray(head.logits) for head in distribution.heads], axis=-1)}
    if type(distribution) in (Categorical, Bernoulli):
        return {"logits": np.asarray(jax.tree.leaves(distribution)[0])}
    raise UpslopeError(
        f"This policy gives a {type(distribution).__name__}, which cannot be exported yet. Use it from Python: "
        "upslope.load gives the policy."
    )


def agreement(plan: Plan, found: Found, wanted: Found) -> Agreement:
    """How what was found agrees with what was wanted."""
    names = [*plan.head.parameters, *(["action"] if isinstance(plan.head, Gaussian) else [])]
    for name in ("action", *plan.head.parameters):
        if found[name].shape != wanted[name].shape:
            return Agreement(np.inf, wanted["action"].size)
    largest = max(distance(found[name], wanted[name]) for name in names)
    if found["action"].dtype != wanted["action"].dtype:
        return Agreement(largest, wanted["action"].size)
    return Agreement(largest, 0 if isinstance(plan.head, Gaussian) else differing(plan, found, wanted))


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """max |x − y| / (1 + |y|); 0 where both are the same infinity, infinite where one is not a number."""
    x, y = found.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where(x == y, 0.0, np.abs(x - y) / (1 + np.abs(y)))
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))


def differing(plan: Plan, found: Found, wanted: Found, tolerance: float = 1e-5) -> int:
    """The number of choices that differ although their scores do not tie within the tolerance."""
    logits, batch = wanted["logits"].astype(np.float64), wanted["logits"].shape[:-1]
    mine, its = (np.asarray(x["action"]).astype(np.int64).reshape(*batch, -1) for x in (found, wanted))
    if not isinstance(plan.head, Categories):
        return int(((mine != its) & (np.abs(logits) > tolerance)).sum())
    count, first = 0, 0
    for k, (size, start) in enumerate(zip(plan.head.sizes, plan.head.start, strict=True)):
        part = logits[..., first : first + size]
        a, b = (chosen[..., k, None] - start for chosen in (mine, its))
        is_choice = (a >= 0) & (a < size)
        score, best = (np.take_along_axis(part, np.clip(c, 0, size - 1), axis=-1) for c in (a, b))
        count += int((~is_choice | (score < best - tolerance * (1 + np.abs(best)))).sum())
        first += size
    return count
