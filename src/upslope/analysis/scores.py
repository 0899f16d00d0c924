"""The score of a seed: one number that says how well it did, from evaluation episodes or from the end of training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from upslope.analysis.grouping import Member
from upslope.analysis.records import Record
from upslope.analysis.statistics import WINDOW
from upslope.core.messages import counted
from upslope.errors import UpslopeError

Score = Literal["auto", "stochastic", "deterministic", "training"]


@dataclass(frozen=True)
class Scores:
    """How seeds are scored, and what of that is worth a warning."""

    words: str
    of: list[np.ndarray]
    """For each group, a score for each of its seeds [S]."""
    warnings: list[str]


def scorable(records: Sequence[Record], score: Score) -> tuple[list[Record], list[str]]:
    """Runs that can be judged in the same way, and a warning for each left out: one that learned from recorded data has
    no training episodes.

    Raises:
        UpslopeError: none is left.
    """
    if score in ("stochastic", "deterministic"):
        return list(records), []
    rest = [r for r in records if r.config.data is None or len(r.evaluations)]
    if score == "training" or not all(is_evaluated(r, "stochastic") for r in rest):
        rest = [r for r in rest if r.config.data is None]
    warnings = [
        f"left out: {r.path} learned from recorded data and has no training episodes to be scored by. To compare it, "
        "run upslope evaluate on it and on all others"
        for r in records
        if not any(r is kept for kept in rest)
    ]
    if not rest:
        raise UpslopeError(f"No run has a score. {'. '.join(warnings)}.")
    return rest, warnings


def scores_of(members: Sequence[Member], score: Score = "auto") -> Scores:
    """Score every seed of every group in the same way.

    `auto` takes evaluation episodes of the stochastic policy, the one that was trained, by the last checkpoint, where
    all runs have them, and else the end of training.

    Raises:
        UpslopeError: a run does not have what was asked for.
    """
    records = [record for member in members for record in member.records]
    without = [r for r in records if not is_evaluated(r, "stochastic" if score == "auto" else score)]
    if score in ("stochastic", "deterministic") or (score == "auto" and not without):
        return evaluated(members, "stochastic" if score == "auto" else score, without)
    warnings = []
    if score == "auto" and len(without) < len(records):
        names = ", ".join(str(r.path) for r in without)
        warnings.append(
            f"evaluation episodes are left aside, since {names} {'has' if len(without) == 1 else 'have'} none: run "
            "upslope evaluate on each"
        )
    return trained(members, warnings)


def evaluation_of(record: Record, mode: str) -> np.ndarray:
    """The evaluation episodes of a mode by the last checkpoint; the best one was chosen by its luck."""
    rows = record.evaluations
    return rows[(rows["mode"] == mode) & (rows["checkpoint"] == "last")]


def is_evaluated(record: Record, mode: str) -> bool:
    """Whether every seed has evaluation episodes of this mode."""
    return set(record.seeds) <= set(evaluation_of(record, mode)["seed"].tolist())


def evaluated(members: Sequence[Member], mode: str, without: list[Record]) -> Scores:
    """The mean of each seed's evaluation episodes."""
    if without:
        names = ", ".join(str(r.path) for r in without)
        raise UpslopeError(
            f"--score {mode} needs evaluation episodes of every run, and these have none by the last checkpoint: "
            f"{names}. Run upslope evaluate on each, or use --score training."
        )
    counts: dict[int, list[str]] = {}
    of = []
    for member in members:
        scores = []
        for record in member.records:
            rows = evaluation_of(record, mode)
            mine = [rows["return"][rows["seed"] == seed] for seed in record.seeds]
            counts.setdefault(min(map(len, mine)), []).append(str(record.path))
            scores += [float(np.mean(returns)) for returns in mine]
        of.append(np.asarray(scores))
    warnings = []
    if len(counts) > 1:
        words = "; ".join(f"{n}: {', '.join(paths)}" for n, paths in counts.items())
        warnings.append(f"different numbers of evaluation episodes a seed: {words}")
    episodes = " or ".join(counted(n, "evaluation episode") for n in sorted(counts))
    return Scores(f"mean return of {episodes}, {mode} policy, last checkpoint", of, warnings)


def trained(members: Sequence[Member], warnings: list[str]) -> Scores:
    """The mean of each seed's last training episodes."""
    of = []
    for member in members:
        scores = []
        for record in member.records:
            for seed in record.seeds:
                returns = record.episodes_of(seed)["return"][-WINDOW:]
                scores.append(float(np.mean(returns)) if len(returns) else np.nan)
                if not len(returns):
                    warnings.append(f"{record.path}, seed {seed}: no episode has ended, so it has no score")
        of.append(np.asarray(scores))
    return Scores(f"mean return of the last {WINDOW} training episodes, by the exploring policy", of, warnings)
