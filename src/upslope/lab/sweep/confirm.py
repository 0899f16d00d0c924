"""Compare the winner of a sweep with the defaults after retraining both on seeds that no trial has seen.

The best of many trials is partly the luckiest, so its score in the sweep is optimistic, unlike its score on fresh
seeds.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from upslope.analysis.compare import compare_records
from upslope.analysis.comparison import Comparison, Group
from upslope.analysis.records import read_records
from upslope.analysis.scores import Score
from upslope.analysis.statistics import Estimate, difference_of_means
from upslope.config.config import Config
from upslope.config.trust import ROLES
from upslope.core.files import safe_path
from upslope.diagnosis.doctor import Watch
from upslope.engines.base import Resources
from upslope.environments.registry import EnvironmentLike
from upslope.errors import UpslopeError
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
    runs: dict[str, list[Path]] = {}
    for name, config in ((DEFAULT, setup.default), (WINNER, winner)):
        runs[name] = []
        for path, block in blocks_of(setup, folder, name, fresh_config(config, setup, seeds)):
            train_or_resume(setup, block, RunDirectory(path), Session(display(), resources, watch=Watch))
            if episodes and not has_evaluated(path, episodes):
                options = {"environment": environment, "cluster": resources.cluster, "trust": True}
                evaluate(path, episodes=episodes, **options)
            runs[name].append(path)
    seed_list = fresh_config(setup.default, setup, seeds).seed_list()
    return confirmation_of(runs[WINNER], runs[DEFAULT], score_by(episodes), seed_list)


def blocks_of(setup: Setup, folder: Path, name: str, config: Config) -> list[tuple[Path, Config]]:
    """The runs that together have the seeds of a config: those that exist, which a call with fewer or more fresh seeds
    may have begun, and one more for the seeds that are missing. The runs of later seeds have the first of them in their
    names. A seed's results do not depend on the other seeds of its run.

    Raises:
        UpslopeError: an existing run has other settings.
    """
    found, first, last = [], config.seed, config.seed + config.seeds
    seed = first
    while seed < last:
        place = folder / (name if seed == first else f"{name}-{seed}")
        path = safe_path(folder, place, is_folder=True)
        block = replace(config, seed=seed, seeds=last - seed)
        if path.exists():
            # Further runs take over settings without an effect too, so that all runs are one group when compared.
            config = block = existing(setup, path, block)
        found.append((path, block))
        seed += block.seeds
    return found


def existing(setup: Setup, path: Path, config: Config) -> Config:
    """The config of a run that exists, which may differ from the given one in the number of seeds and in settings that
    have no effect.

    Raises:
        UpslopeError: it has other settings.
    """
    there = RunDirectory(path).config()
    config = replace(config, seeds=there.seeds, preset=there.preset)
    # `used` creates the parts, and code that only a file names must not be imported.
    if any(getattr(there, role) != getattr(config, role) for role in ROLES) or setup.used(there) != setup.used(config):
        same_run(path, config)
    return there


def train_or_resume(setup: Setup, config: Config, directory: RunDirectory, session: Session) -> None:
    """Train a run, or resume it if it exists."""
    if not directory.path.exists():
        begin(config, setup.task(config), directory, session)
    elif not is_finished(directory.path):
        resume_run(config, setup.task(config), directory, session, [])


def confirmation_of(
    winner: Sequence[Path], default: Sequence[Path], score: Score, seeds: Collection[int]
) -> Confirmation:
    """Compare the two groups of runs on these seeds."""
    records, doubts = read_records([*winner, *default], with_evaluations=True, with_metrics=False)
    chosen = [record.with_seeds(tuple(seed for seed in record.seeds if seed in seeds)) for record in records]
    comparison = compare_records(chosen, score=score)
    comparison = replace(comparison, warnings=(*doubts, *comparison.warnings))
    groups = {run: group for group in comparison.groups for run in group.runs}
    if missing := [str(runs[0]) for runs in (winner, default) if runs[0] not in groups]:
        raise UpslopeError(f"{', '.join(missing)} cannot be compared. {' '.join(comparison.warnings)}")
    first, second = groups[winner[0]], groups[default[0]]
    return Confirmation(
        comparison, first, second, first.beats(second), difference_of_means(first.scores, second.scores)
    )
