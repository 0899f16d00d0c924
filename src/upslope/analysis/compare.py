"""compare: runs → what can be said about which is better."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from upslope.analysis.comparison import BUDGET_SHARES, Comparison, Efficiency, Group, Improvement
from upslope.analysis.grouping import Member, environments_of, group, settings_of, warnings_of
from upslope.analysis.normalization import Normalize, normalised
from upslope.analysis.records import Record, read_records
from upslope.analysis.scores import Score, scorable, scores_of
from upslope.analysis.statistics import (
    agreement,
    iqm_of,
    mean_of,
    median_of,
    probability_of_improvement,
    returns_at,
)
from upslope.config.coercion import coerce
from upslope.config.trust import PARTS, require

AREA_POINTS = 200
"""Points at which the height of a learning curve is read for its area."""


def compare(
    runs: str | Path | Sequence[str | Path],
    *,
    score: Score = "auto",
    normalize: Normalize | None = None,
    trust: bool = False,
) -> Comparison:
    """Compare runs. The seed is the unit of replication, and runs that share everything but their seeds are one group.

    A folder that holds no run is left out, and so are seeds that are there twice; warnings say so.

    Args:
        runs: run directories, in any environments.
        score: what a seed is judged by: "stochastic" or "deterministic" evaluation episodes of the last checkpoint,
            "training" for its last 100 training episodes, or "auto": evaluation, where all runs have it, else training.
        normalize: over several environments nothing is averaged unless this says how scores are made comparable:
            "threshold" (0 is a random policy, 1 the environment's reward threshold) or "range" (0 and 1 are the lowest
            and highest score of all these runs).
        trust: for "threshold", which makes each environment: allow the code that a run's config.json names. Registered
            Gymnasium ids, upslope's own worlds and runs that this machine trained need none.

    Raises:
        UpslopeError: there is no such folder, no run at all, a run that cannot be scored, or another score or unit.
    """
    records, left_out = read_records(runs, with_evaluations=True)
    found = compare_records(records, score=score, normalize=normalize, trust=trust)
    return replace(found, warnings=(*left_out, *found.warnings))


def compare_records(
    records: Sequence[Record], *, score: Score = "auto", normalize: Normalize | None = None, trust: bool = False
) -> Comparison:
    """`compare` of runs that are read already."""
    coerce("score", score, Score)
    coerce("normalize", normalize, Normalize | None)
    rest, unscored = scorable(records, score)
    members, repeated = group(rest)
    scored = scores_of(members, score)
    groups = tuple(
        group_of(member, scores, budget_of(member.environment, members))
        for member, scores in zip(members, scored.of, strict=True)
    )
    warnings = [*unscored, *repeated, *warnings_of(members), *scored.warnings]
    warnings += [f"{g.label} on {g.environment}: {agreed}" for g in groups if (agreed := agreement(g.scores))]
    environments = environments_of(members)
    if len(environments) > 1 and normalize is None:
        warnings.append(
            f"{len(environments)} environments, {', '.join(environments)}: their returns have no common unit, so "
            "nothing is averaged over them. --normalize threshold or --normalize range makes them comparable"
        )
    improvements = tuple(i for e in environments for i in improvements_in([g for g in groups if g.environment == e]))
    if normalize == "threshold":
        for member in members:
            # Of one environment any run's config may be the one that is made.
            for record in member.records:
                require(record.config, record.path, trust=trust, given=PARTS)
    over = normalised(groups, {m.environment: m.records[0].config for m in members}, normalize)
    return Comparison(
        scored.words,
        groups,
        improvements + over.improvements,
        over.references,
        over.aggregates,
        over.profiles,
        (*warnings, *over.warnings),
    )


def group_of(member: Member, scores: np.ndarray, budget: int | None) -> Group:
    """The statistics of one group."""
    config = member.records[0].config
    return Group(
        label=member.label,
        environment=member.environment,
        algorithm=config.algorithm,
        runs=tuple(record.path for record in member.records),
        differs=member.differs,
        settings=settings_of(member.records[0]),
        budget=config.steps,
        seeds=member.seeds,
        scores=scores,
        mean=mean_of(scores),
        median=median_of(scores),
        iqm=iqm_of(scores),
        efficiency=None if budget is None or config.data is not None else efficiency_of(member, budget),
    )


def budget_of(environment: str, members: Sequence[Member]) -> int | None:
    """The steps to which every run of an environment has got, besides those that read recorded data."""
    records = [r for m in members if m.environment == environment for r in m.records if r.config.data is None]
    return min((min(r.config.steps, r.reached) for r in records), default=None)


def efficiency_of(member: Member, budget: int) -> Efficiency:
    """The training return after shares of the budget, and the mean height of the learning curve."""
    steps = np.asarray([int(share * budget) for share in BUDGET_SHARES])
    at = np.concatenate([returns_at(record, steps) for record in member.records])
    grid = np.linspace(0, budget, AREA_POINTS + 1)[1:]
    curves = np.concatenate([returns_at(record, grid) for record in member.records])
    known = np.isfinite(curves)
    heights = np.where(known, curves, 0.0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)
    return Efficiency(tuple(int(s) for s in steps), tuple(mean_of(column) for column in at.T), mean_of(heights))


def improvements_in(groups: Sequence[Group]) -> list[Improvement]:
    """Every pair of groups in one environment, the one with the higher mean first."""
    ranked = sorted(groups, key=lambda g: -np.nan_to_num(g.mean.value, nan=-np.inf))
    return [
        Improvement(
            a.label,
            b.label,
            (a.environment,),
            probability_of_improvement(a.scores, b.scores),
            sorted(a.seeds) == sorted(b.seeds),
        )
        for a, b in combinations(ranked, 2)
    ]
