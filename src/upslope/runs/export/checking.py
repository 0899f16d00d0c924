"""Compare the outputs of an exported file with those of the policy itself."""

from typing import Any, NamedTuple

import jax
import numpy as np

from upslope.core.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    Product,
    SquashedGaussian,
    StateDependentNoise,
)
from upslope.errors import UpslopeError
from upslope.runs.export.plan import Categories, Gaussian, Head, Part, Plan
from upslope.runs.export.running import Found, actions_of, over_time
from upslope.runs.export.samples import structured

EPISODES, STEPS = 32, 4
"""Number of random episodes on which a file is checked, and number of steps in each. For a policy without memory, every
step is the first of an episode."""
TOLERANCE = 1e-3
"""Tolerance, relative plus absolute. A file that differs by more than this computes something else and is not written.
Rounding errors are about 1e-6."""


class Agreement(NamedTuple):
    """How closely two policies agree."""

    largest: float
    """max |x − y| / (1 + |y|) over the parameters and the real-valued actions."""
    differing: int
    """Number of actions that differ although no scores tie within the tolerance."""


def expected(plan: Plan, policy: Any, arrays: list[np.ndarray], masks: np.ndarray | None) -> Found:
    """Return the output of upslope's policy for arrays [T, B, …] of each input, without changing the policy's own
    memory."""
    agent, count = policy.agent, arrays[0].shape[1]
    carry = agent.model.start(count)

    def step(t: int) -> dict[str, Any]:
        nonlocal carry
        observation, mask = (
            structured(plan, policy.encoder, [x[t] for x in arrays]),
            None if masks is None else masks[t],
        )
        if policy.acts_in_numpy:
            distribution = policy.distribution(observation, mask)
        else:
            distribution, carry = policy.step(agent, observation, carry, np.full(count, t == 0), mask)
        taken = agent.head.to_environment(np.asarray(distribution.mode()))
        pairs = zip(plan.parts, leaves_of(distribution), strict=True)
        found = [zip(part.parameters, parameters_of(leaf), strict=True) for part, leaf in pairs]
        return actions_of(plan, taken) | {name: x for each in found for name, x in each}

    return over_time(step, len(arrays[0]))


def leaves_of(distribution: Any) -> list[Any]:
    """Return the distributions of the parts of an action, in order."""
    if type(distribution) is Product:
        return [leaf for part in distribution.parts for leaf in leaves_of(part)]
    return [distribution]


def parameters_of(distribution: Any) -> tuple[np.ndarray, ...]:
    """Return the parameters of a distribution without parts, in the order of the plan."""
    if type(distribution) in (DiagonalGaussian, SquashedGaussian, StateDependentNoise):
        mean = np.asarray(distribution.mean)
        return mean, np.broadcast_to(np.asarray(distribution.log_std), mean.shape)
    if type(distribution) is MultiCategorical:
        return (np.concatenate([np.asarray(head.logits) for head in distribution.heads], axis=-1),)
    if type(distribution) in (Categorical, Bernoulli):
        return (np.asarray(jax.tree.leaves(distribution)[0]),)
    raise UpslopeError(
        f"This policy returns a {type(distribution).__name__}, which cannot be exported yet. Use it from Python: "
        "upslope.load returns the policy."
    )


def agreement(plan: Plan, found: Found, wanted: Found) -> Agreement:
    """Measure how closely the result agrees with the expected one, over all parts of the action."""
    parts = [agreement_of(part, found, wanted) for part in plan.parts]
    return Agreement(max(part.largest for part in parts), sum(part.differing for part in parts))


def agreement_of(part: Part, found: Found, wanted: Found) -> Agreement:
    """Measure how closely one part of the action agrees."""
    mine, its = found[part.action], wanted[part.action]
    names = [*part.parameters, *([part.action] if isinstance(part.head, Gaussian) else [])]
    for name in (part.action, *part.parameters):
        if found[name].shape != wanted[name].shape:
            return Agreement(np.inf, its.size)
    largest = max(distance(found[name], wanted[name]) for name in names)
    if mine.dtype != its.dtype:
        return Agreement(largest, its.size)
    if isinstance(part.head, Gaussian):
        return Agreement(largest, 0)
    return Agreement(largest, differing(part.head, mine, its, wanted[part.name("logits")]))


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """Compute max |x − y| / (1 + |y|). A pair of equal infinities counts as 0, and a nan in either array as
    infinity."""
    x, y = found.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where(x == y, 0.0, np.abs(x - y) / (1 + np.abs(y)))
    return float(np.nan_to_num(apart, nan=np.inf).max(initial=0.0))


def differing(head: Head, found: Any, wanted: Any, logits: np.ndarray, tolerance: float = 1e-5) -> int:
    """Count the choices that differ although their scores do not tie within the tolerance."""
    logits, batch = logits.astype(np.float64), logits.shape[:-1]
    mine, its = (np.asarray(x).astype(np.int64).reshape(*batch, -1) for x in (found, wanted))
    if not isinstance(head, Categories):
        return int(((mine != its) & (np.abs(logits) > tolerance)).sum())
    count, first = 0, 0
    for k, (size, start) in enumerate(zip(head.sizes, head.start, strict=True)):
        part = logits[..., first : first + size]
        a, b = (chosen[..., k, None] - start for chosen in (mine, its))
        is_choice = (a >= 0) & (a < size)
        score, best = (np.take_along_axis(part, np.clip(c, 0, size - 1), axis=-1) for c in (a, b))
        count += int((~is_choice | (score < best - tolerance * (1 + np.abs(best)))).sum())
        first += size
    return count
