"""Compare runs: find out which one is better, and how certain that is."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from upslope.analysis.comparison import BUDGET_SHARES, Comparison, Efficiency, Group, Improvement
from upslope.analysis.grouping import Member, environments_of, group, settings_of, warnings_of
from upslope.analysis.normalization import Normalize, normalised
from upslope.analysis.records import Record, read_records
from upslope.analysis.scores import Score, Scores, common_budget, scorable, scores_of
from upslope.analysis.statistics import agreement, iqm_of, mean_of, median_of, returns_at
from upslope.config.coercion import coerce
from upslope.config.trust import PARTS, require
from upslope.core.files import AnyPath
from upslope.errors import UpslopeError

AREA_POINTS = 200
"""Number of points at which a learning curve is evaluated to compute its area."""


def compare(
    runs: AnyPath | Sequence[AnyPath],
    *,
    score: Score = "auto",
    normalize: Normalize | None = None,
    trust: bool = False,
    metric: str = "return",
) -> Comparison:
    """Compare runs. The seed is the unit of replication, and runs that differ only in their seeds form one group.

    Folders without a run and repeated seeds are left out, with a warning. If one of several runs in an environment is
    unfinished, training scores are compared at the budget that all runs have spent, and no probability is computed from
    evaluation scores.

    Args:
        runs: run directories, in any environments.
        score: how a seed is scored: on "stochastic" or "deterministic" evaluation episodes of the last checkpoint, or
            on its last 100 "training" episodes. "auto" uses stochastic evaluation if all runs have it, and training
            otherwise.
        normalize: how scores are made comparable across environments: "threshold" (0 is a random policy, 1 the
            environment's reward threshold) or "range" (0 and 1 are the lowest and highest scores among all these runs).
            Without it, nothing is averaged over environments.
        trust: allow the code that a run's config.json names; used only for "threshold", which creates each environment.
            Registered Gymnasium ids, upslope's own environments and runs trained on this machine do not need it.
        metric: the quantity to compare, measured once per episode, where higher is better: "return", "length", or a key
            that every run logged with --log-info.

    Raises:
        UpslopeError: a folder is missing, no run can be read, a run cannot be scored, or an option is unknown.
    """
    records, doubts = read_records(runs, with_evaluations=True, with_metrics=False)
    found = compare_records(records, score=score, normalize=normalize, trust=trust, metric=metric)
    return replace(found, warnings=(*doubts, *found.warnings))


def compare_records(
    records: Sequence[Record],
    *,
    score: Score = "auto",
    normalize: Normalize | None = None,
    trust: bool = False,
    metric: str = "return",
) -> Comparison:
    """`compare` for runs that have already been read."""
    coerce("score", score, Score)
    coerce("normalize", normalize, Normalize | None)
    if normalize == "threshold" and metric != "return":
        raise UpslopeError(f"--normalize threshold applies to returns, not to {metric}. Use --normalize range.")
    rest, unscored = scorable([record.measured_by(metric) for record in records], score)
    members, repeated = group(rest)
    scored = scores_of(members, score)
    groups = tuple(
        group_of(member, scores, common_budget(member.environment, members), scored)
        for member, scores in zip(members, scored.of, strict=True)
    )
    warnings = [*unscored, *repeated, *warnings_of(members), *scored.warnings]
    warnings += [f"{g.label} on {g.environment}: {agreed}" for g in groups if (agreed := agreement(g.scores))]
    environments = environments_of(members)
    if len(environments) > 1 and normalize is None:
        warnings.append(
            f"{len(environments)} environments, {', '.join(environments)}: their returns have no common unit, so "
            "they are not averaged. --normalize threshold or --normalize range makes them comparable"
        )
    improvements = tuple(i for e in environments for i in improvements_in([g for g in groups if g.environment == e]))
    if normalize == "threshold":
        for member in members:
            # Any run's config may be used to create the environment, so all of them are checked.
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
        metric,
    )


def group_of(member: Member, scores: np.ndarray, common: int | None, scored: Scores) -> Group:
    """Compute the statistics of one group; `common` is the budget that every run of its environment has spent."""
    config = member.records[0].config
    return Group(
        label=member.label,
        environment=member.environment,
        algorithm=config.algorithm,
        runs=tuple(record.path for record in member.records),
        differs=member.differs,
        settings=settings_of(member.records[0]),
        budget=scored.at.get(member.environment, min(record.spent for record in member.records)),
        seeds=member.seeds,
        scores=scores,
        mean=mean_of(scores),
        median=median_of(scores),
        iqm=iqm_of(scores),
        efficiency=None if common is None or config.data is not None else efficiency_of(member, common),
        is_comparable=member.label not in scored.unfinished.get(member.environment, ()),
    )


def efficiency_of(member: Member, budget: int) -> Efficiency:
    """The training return at fixed fractions of the budget, and the mean height of the learning curve."""
    steps = np.asarray([int(share * budget) for share in BUDGET_SHARES])
    at = np.concatenate([returns_at(record, steps) for record in member.records])
    grid = np.linspace(0, budget, AREA_POINTS + 1)[1:]
    curves = np.concatenate([returns_at(record, grid) for record in member.records])
    known = np.isfinite(curves)
    heights = np.where(known, curves, 0.0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)
    return Efficiency(tuple(int(s) for s in steps), tuple(mean_of(column) for column in at.T), mean_of(heights))


def improvements_in(groups: Sequence[Group]) -> list[Improvement]:
    """All pairs of groups in one environment; in each pair, the group with the higher mean comes first."""
    ranked = sorted(groups, key=lambda g: -np.nan_to_num(g.mean.value, nan=-np.inf))
    return [
        Improvement(
            a.label,
            b.label,
            (a.environment,),
            a.beats(b),
            sorted(a.seeds) == sorted(b.seeds),
        )
        for a, b in combinations(ranked, 2)
    ]
