"""Compare the winner of a sweep with the defaults after retraining both on seeds that no trial has seen.

The best of many trials is partly the luckiest, so its score in the sweep is optimistic, unlike its score on fresh
seeds.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from upslope.analysis.compare import compare
from upslope.analysis.comparison import Comparison, Group
from upslope.analysis.scores import Score
from upslope.analysis.statistics import Estimate, difference_of_means
from upslope.config.config import Config
from upslope.core.files import safe_path
from upslope.diagnosis.doctor import Watch
from upslope.engines.base import Resources
from upslope.environments.registry import EnvironmentLike
from upslope.lab.ladder import has_evaluated, is_finished, score_by
from upslope.lab.sweep.setup import Setup
from upslope.runs.directory import RunDirectory, same_run
from upslope.runs.display import Display
from upslope.runs.evaluation import evaluate
from upslope.runs.train import Session, begin, resume_run

WINNER, DEFAULT = "winner", "default"


@dataclass(frozen=True)
class Confirmation:
    """The winner and the default on fresh seeds."""

    comparison: Comparison
    winner: Group
    default: Group
    probability: Estimate
    """The probability that a seed of the winner scores higher than a seed of the default."""
    difference: Estimate
    """The winner's mean score minus the default's."""

    @property
    def verdict(self) -> str:
        """better, worse or undecided, according to the 95 % interval of the probability."""
        interval = self.probability.interval
        if interval is None:
            return "undecided"
        return "better" if interval.low > 0.5 else "worse" if interval.high < 0.5 else "undecided"


def fresh_config(config: Config, setup: Setup, seeds: int) -> Config:
    """A config with the seeds that follow those of the trials."""
    return replace(config, seed=setup.default.seed + setup.default.seeds, seeds=seeds)


def confirm(
    setup: Setup,
    winner: Config,
    folder: Path,
    *,
    seeds: int,
    episodes: int,
    environment: EnvironmentLike,
    resources: Resources,
    display: Callable[[], Display],
) -> Confirmation:
    """Train and evaluate the winner and the default on fresh seeds, or continue what was started, and compare them.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; everything is saved.
    """
    runs = {}
    for name, config in ((DEFAULT, setup.default), (WINNER, winner)):
        runs[name] = safe_path(folder, folder / name, is_folder=True)
        session = Session(display(), resources, watch=Watch)
        train_or_resume(setup, fresh_config(config, setup, seeds), RunDirectory(runs[name]), session)
        if episodes and not has_evaluated(runs[name], episodes):
            options = {"environment": environment, "cluster": resources.cluster, "trust": True}
            evaluate(runs[name], episodes=episodes, **options)
    return confirmation_of(runs[WINNER], runs[DEFAULT], score_by(episodes))


def train_or_resume(setup: Setup, config: Config, directory: RunDirectory, session: Session) -> None:
    """Train a run, or resume it if it exists."""
    if directory.path.exists():
        same_run(directory.path, config)
        if not is_finished(directory.path):
            resume_run(config, setup.task(config), directory, session, [])
    else:
        begin(config, setup.task(config), directory, session)


def confirmation_of(winner: Path, default: Path, score: Score) -> Confirmation:
    """Compare the two runs."""
    comparison = compare([winner, default], score=score)
    groups = {group.runs[0]: group for group in comparison.groups}
    first, second = groups[winner], groups[default]
    return Confirmation(
        comparison, first, second, first.beats(second), difference_of_means(first.scores, second.scores)
    )
