"""The score of a seed: one number for its performance, from evaluation episodes or from the end of training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from upslope.analysis.grouping import Member
from upslope.analysis.records import Record
from upslope.analysis.statistics import WINDOW
from upslope.core.messages import counted, listed
from upslope.errors import UpslopeError
from upslope.runs.directory import EVALUATION_LIMIT

Score = Literal["auto", "stochastic", "deterministic", "training"]


@dataclass(frozen=True)
class Scores:
    """The scores of all groups, with a description of how they were computed, and warnings."""

    words: str
    of: list[np.ndarray]
    """For each group, the scores of its seeds [S]."""
    warnings: list[str]
    at: dict[str, int] = field(default_factory=dict)
    """The step at which seeds were scored, for each environment that has several groups and an unfinished run."""
    unfinished: dict[str, list[str]] = field(default_factory=dict)
    """For each environment, the labels of groups that were evaluated before training had finished."""


def common_budget(environment: str, members: Sequence[Member]) -> int | None:
    """The number of steps that every run in an environment has completed, ignoring runs on recorded data."""
    records = [r for m in members if m.environment == environment for r in m.records if r.config.data is None]
    return min((record.spent for record in records), default=None)


def unfinished_of(members: Sequence[Member]) -> dict[str, list[str]]:
    """For each environment with several groups, the labels of the groups that have an unfinished run."""
    found: dict[str, list[str]] = {}
    for member in members:
        has_rivals = sum(m.environment == member.environment for m in members) > 1
        if has_rivals and not all(record.is_finished for record in member.records):
            found.setdefault(member.environment, []).append(member.label)
    return found


def scorable(records: Sequence[Record], score: Score) -> tuple[list[Record], list[str]]:
    """The runs that can be scored in the same way, and a warning for each that is left out: a run on recorded data has
    no training episodes.

    Raises:
        UpslopeError: no run is left.
    """
    if score in ("stochastic", "deterministic"):
        return list(records), []
    rest = [r for r in records if r.config.data is None or len(r.evaluations)]
    if score == "training" or not all(is_evaluated(r, "stochastic") for r in rest):
        rest = [r for r in rest if r.config.data is None]
    warnings = [
        f"left out: {r.path} learned from recorded data and has no training episodes to score. To compare it, "
        "run upslope evaluate on all runs"
        for r in records
        if not any(r is kept for kept in rest)
    ]
    if not rest:
        raise UpslopeError(f"No run has a score. {'. '.join(warnings)}.")
    return rest, warnings


def scores_of(members: Sequence[Member], score: Score = "auto") -> Scores:
    """Score every seed of every group in the same way.

    If all runs have been evaluated, `auto` uses evaluation episodes of the last checkpoint with the stochastic policy,
    which is the policy that was trained. Otherwise it uses the 100 most recent training episodes.

    Raises:
        UpslopeError: a run does not have the requested episodes.
    """
    records = [record for member in members for record in member.records]
    without = [r for r in records if not is_evaluated(r, "stochastic" if score == "auto" else score)]
    if score in ("stochastic", "deterministic") or (score == "auto" and not without):
        return evaluated(members, "stochastic" if score == "auto" else score, without)
    warnings = []
    if score == "auto" and any(len(evaluation_of(record, "stochastic")) for record in records):
        warnings.append(
            f"evaluation episodes are ignored, since {lacking(without, 'stochastic')}. To use them, run upslope "
            "evaluate on each"
        )
    return trained(members, warnings)


def records_metric(members: Sequence[Member]) -> str:
    """The metric that is measured for each episode."""
    return next((record.metric for member in members for record in member.records), "return")


def evaluation_of(record: Record, mode: str) -> np.ndarray:
    """The evaluation episodes that were played in a mode from the last checkpoint. The best checkpoint is not used,
    since it was selected partly by chance."""
    rows = record.evaluations
    return rows[(rows["mode"] == mode) & (rows["checkpoint"] == "last")]


def is_evaluated(record: Record, mode: str) -> bool:
    """Whether every seed has evaluation episodes in this mode."""
    return not seeds_without(record, mode)


def seeds_without(record: Record, mode: str) -> list[int]:
    """The seeds that have no evaluation episodes in this mode."""
    found = set(evaluation_of(record, mode)["seed"].tolist())
    return [seed for seed in record.seeds if seed not in found]


def lacking(records: Sequence[Record], mode: str) -> str:
    """Say which runs, or which of their seeds, have no evaluation episodes in this mode."""
    words = []
    for record in records:
        seeds = seeds_without(record, mode)
        some = "" if len(seeds) == len(record.seeds) else f" for seed{'s' * (len(seeds) > 1)} {listed(seeds, 5)}"
        words.append(f"{record.path} has none{some}")
    return ", ".join(words)


def evaluated(members: Sequence[Member], mode: str, without: list[Record]) -> Scores:
    """Score each seed by the mean of its evaluation episodes."""
    if without:
        raise UpslopeError(
            f"--score {mode} needs evaluation episodes of the last checkpoint for every seed of every run, but "
            f"{lacking(without, mode)}. Run upslope evaluate on each, or use --score training."
        )
    counts: dict[tuple[int, int], list[str]] = {}
    of, warnings = [], []
    for member in members:
        scores = []
        for record in member.records:
            rows = evaluation_of(record, mode)
            by_seed = [rows["return"][rows["seed"] == seed] for seed in record.seeds]
            lengths = [len(returns) for returns in by_seed]
            counts.setdefault((min(lengths), max(lengths)), []).append(str(record.path))
            scores += [float(np.mean(returns)) if np.isfinite(returns).all() else np.nan for returns in by_seed]
            if cut := num_cut(record, rows):
                warnings.append(
                    f"{record.path}: {cut} of its {len(rows)} evaluation episodes were cut off at "
                    f"{EVALUATION_LIMIT:,} steps, the limit of evaluation if there is no other; their returns cover "
                    "only these steps"
                )
            warnings += [
                f"{record.path}, seed {seed}: not every evaluation return is finite, so it has no score"
                for seed, returns in zip(record.seeds, by_seed, strict=True)
                if not np.isfinite(returns).all()
            ]
        of.append(np.asarray(scores))
    fewest, most = min(low for low, _ in counts), max(high for _, high in counts)
    if fewest < most:
        words = "; ".join(f"{span(low, high)}: {', '.join(paths)}" for (low, high), paths in counts.items())
        warnings.append(f"different numbers of evaluation episodes per seed: {words}")
    unfinished = unfinished_of(members)
    warnings += [
        f"{', '.join(labels)} on {environment}: evaluated before the budget was spent, so they are not compared with "
        "other groups. Finish the run and evaluate it again, or compare at equal steps: --score training"
        for environment, labels in unfinished.items()
    ]
    episodes = counted(fewest, "evaluation episode") if fewest == most else f"{fewest} to {most} evaluation episodes"
    words = f"mean {records_metric(members)} of {episodes}, {mode} policy, last checkpoint"
    return Scores(words, of, warnings, unfinished=unfinished)


def num_cut(record: Record, rows: np.ndarray) -> int:
    """The number of evaluation episodes that were cut off at the limit that applies if neither the run nor the
    environment has one."""
    if record.config.max_episode_steps is not None:
        return 0
    return int(np.sum((rows["length"] == EVALUATION_LIMIT) & (rows["terminated"] == 0)))


def span(low: int, high: int) -> str:
    """A number, or the two ends of a range."""
    return str(low) if low == high else f"{low} to {high}"


def trained(members: Sequence[Member], warnings: list[str]) -> Scores:
    """Score each seed by its mean over the last 100 training episodes, up to the common budget if a run is
    unfinished."""
    at = {environment: common_budget(environment, members) or 0 for environment in unfinished_of(members)}
    warnings += [
        f"not every run in {environment} is finished: all are scored on the episodes that ended within {steps:,} "
        "steps, the budget that all have spent"
        for environment, steps in at.items()
    ]
    of = []
    for member in members:
        scores = []
        for record, seed in member.seeds_of_records():
            episodes = record.episodes_of(seed)
            returns = episodes["return"][episodes["step"] <= at.get(member.environment, np.inf)][-WINDOW:]
            scores.append(float(np.mean(returns)) if len(returns) else np.nan)
            if not len(returns):
                warnings.append(f"{record.path}, seed {seed}: no episode has ended, so it has no score")
        of.append(np.asarray(scores))
    words = f"mean {records_metric(members)} of the last {WINDOW} training episodes, with the exploring policy"
    return Scores(words, of, warnings, at)
