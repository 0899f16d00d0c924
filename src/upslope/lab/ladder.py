"""The ladder: train every rung that fits an environment, with the same seeds and budget, and compare them.

Rungs train one after another, each with its seeds spread over all cores, so that their times are comparable.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from upslope.analysis.compare import compare
from upslope.analysis.comparison import Comparison, Group
from upslope.analysis.records import read_record
from upslope.analysis.scores import Score, evaluation_of
from upslope.analysis.statistics import returns_at
from upslope.config.config import Config, canonical, configure
from upslope.config.ladder import ALGORITHMS
from upslope.config.prepare import made_for
from upslope.config.task import estimator_of, task_of
from upslope.core.messages import shell
from upslope.core.space_parts import has_box
from upslope.diagnosis.doctor import Watch
from upslope.engines.base import Placement, Resources, resources_of
from upslope.environments.registry import AnyEnvironment, EnvironmentLike, make
from upslope.environments.registry import label as label_of
from upslope.errors import UpslopeError
from upslope.lab.ladder_display import LadderDisplay, RungDisplay, left_out_lines
from upslope.report.page import add_credit, write_report
from upslope.runs.directory import RunDirectory, check_name, free_name, same_run
from upslope.runs.display import return_words
from upslope.runs.evaluation import MODES, evaluate
from upslope.runs.train import Session, begin, resume_run

STEPS = 50_000
"""Default number of environment steps per seed and rung."""
SEEDS = 10
EVALUATION_EPISODES = 20
"""Number of evaluation episodes per seed and mode on which a rung is scored."""


@dataclass(frozen=True)
class Ladder:
    """The result of `upslope.ladder`."""

    path: Path
    """The folder with a run directory for each rung."""
    comparison: Comparison
    left_out: dict[str, str]
    """Rungs that were not trained or that failed, with the reason."""
    report: Path | None
    """The report on the ladder; None without the extra `report`."""

    def __repr__(self) -> str:
        left_out = f", left out: {', '.join(self.left_out)}" if self.left_out else ""
        return f"Ladder in {self.path}{left_out}\n{self.comparison!r}"

    def _repr_html_(self) -> str:
        return self.comparison._repr_html_()


def ladder(
    environment: EnvironmentLike,
    *,
    algorithms: Sequence[str] | None = None,
    steps: int = STEPS,
    seeds: int = SEEDS,
    name: str | None = None,
    folder: str | Path = "runs",
    resume: bool = False,
    preset: bool = True,
    quiet: bool = False,
    workers: int | None = None,
    cluster: str | Placement | None = None,
    evaluation_episodes: int = EVALUATION_EPISODES,
    **settings: Any,
) -> Ladder:
    """Train every rung that fits an environment, with the same seeds and budget, and compare them.

    Each rung has the settings that `upslope.train(environment, rung)` gives it, including published tuned settings.

    Args:
        algorithms: the rungs; by default all that collect their own experience.
        steps: environment steps per seed, the same for every rung.
        name: name of the folder; by default derived from the environment. An existing folder is rejected.
        resume: continue the ladder of this name if it exists: finished rungs are kept, and the others continue.
        evaluation_episodes: number of fresh episodes per seed and mode on which each rung is scored after training.
            They replace the last training episodes, which come from a policy that was still learning. With 0, training
            episodes are used.
        cluster: where workers run, as in `train`.
        settings: any field of `Config`, for every rung.

    Raises:
        UpslopeError: no rung fits, the folder already exists, or its runs have different settings.
        KeyboardInterrupt: on Ctrl-C, after everything is saved.
    """
    settings = canonical(settings | {"steps": steps, "seeds": seeds})
    label = label_of(environment)
    resolved = make(environment, **made_for(label, settings, preset))
    configs, left_out = fitting_configs(label, resolved, algorithms, preset, settings)
    path = ladder_folder(Path(folder), label, name, resume)
    for rung, config in configs.items():
        if (path / rung).exists():
            same_run(path / rung, config)
    with LadderDisplay(
        f"the ladder on {label} · {seeds} seeds · {steps:,} steps each", list(configs), quiet
    ) as display:
        for line in (f"writing to {path}", *left_out_lines(left_out)):
            display.say(line)
        try:
            for rung, config in configs.items():
                left_out |= train_rung(rung, config, resolved, path / rung, display, resources_of(workers, cluster))
                if rung not in left_out and evaluation_episodes:
                    evaluate_rung(rung, path / rung, evaluation_episodes, display, environment, cluster)
        except KeyboardInterrupt:
            words = f"Stopped and saved. To continue, repeat the command with: {shell('--name', path.name, '--resume')}"
            raise KeyboardInterrupt(words) from None
    runs = [path / rung for rung in configs if rung not in left_out]
    if not runs:
        raise UpslopeError(f"No rung could be trained on {label}. {' '.join(left_out_lines(left_out))}")
    score = score_by(evaluation_episodes)
    comparison = compare(runs, score=score)
    best = runs_to_credit(comparison, configs)
    return Ladder(path, comparison, left_out, report_on(runs, best, path / "report.html", environment, score))


def fitting_configs(
    label: str, environment: AnyEnvironment, algorithms: Sequence[str] | None, preset: bool, settings: dict[str, Any]
) -> tuple[dict[str, Config], dict[str, str]]:
    """The config of each rung that can learn in this environment, and a reason for each rung that cannot."""
    configs, left_out = {}, {}
    if algorithms is not None and not algorithms:
        raise UpslopeError("--algorithms is empty. Name at least one rung, or leave it out to train all that fit.")
    for rung in dict.fromkeys(algorithms or ALGORITHMS):
        config = configure(label, rung, is_continuous=has_box(environment.action_space), use_preset=preset, **settings)
        if ALGORITHMS[rung].source == "recorded":
            left_out[rung] = "learns from recorded data, so its budget is not comparable"
            continue
        try:
            task_of(config, environment)
        except UpslopeError as error:
            left_out[rung] = str(error)
        else:
            configs[rung] = config
    if not configs:
        raise UpslopeError(f"No rung fits {label}. {' '.join(left_out_lines(left_out))}")
    return configs, left_out


def ladder_folder(folder: Path, label: str, name: str | None, resume: bool) -> Path:
    """The folder that holds the rungs' run directories."""
    if name is None:
        if resume:
            raise UpslopeError("--resume needs the --name of the ladder to continue. `ls runs` shows the names.")
        return free_name(folder, f"{label}-ladder")
    path = folder / check_name(name)
    if path.exists() and not resume:
        raise UpslopeError(
            f"{path} already exists and will not be overwritten. Continue it with --resume, or choose another --name."
        )
    return path


def train_rung(
    rung: str,
    config: Config,
    environment: AnyEnvironment,
    path: Path,
    display: LadderDisplay,
    resources: Resources,
) -> dict[str, str]:
    """Train one rung to completion, resuming where it stopped. If it fails, show and return the reason."""
    try:
        session = Session(RungDisplay(display, rung), resources, watch=Watch)
        directory = RunDirectory(path)
        if not path.exists():
            begin(config, task_of(config, environment), directory, session)
        elif is_finished(path):
            display.mark(rung, "finished before", returns_at(read_record(path), np.asarray([np.inf]))[:, 0].tolist())
        else:
            resume_run(config, task_of(config, environment), directory, session, [])
    except UpslopeError as error:
        display.mark(rung, "failed")
        display.warn(f"{rung}: {error}")
        return {rung: str(error)}
    return {}


def evaluate_rung(
    rung: str,
    path: Path,
    episodes: int,
    display: LadderDisplay,
    environment: EnvironmentLike,
    cluster: str | Placement | None = None,
) -> None:
    """Evaluate a finished rung, unless it has already been evaluated with at least this number of episodes."""
    if has_evaluated(path, episodes):
        return
    display.mark(rung, "evaluating")
    try:
        found = evaluate(path, episodes=episodes, environment=environment, cluster=cluster, trust=True)["stochastic"]
    except UpslopeError as error:
        display.warn(f"{rung} is scored on its training episodes: {error}")
        return
    display.mark(rung, f"evaluated: {return_words(found.seed_means().tolist())[0]}")


def has_evaluated(path: Path, episodes: int) -> bool:
    """Whether every seed has at least this number of evaluation episodes in both modes. A later evaluation with fewer
    episodes keeps the existing ones. Episodes that `upslope evaluate` added with other environment seeds do not
    count."""
    record = read_record(path)
    for rows in (evaluation_of(record, mode) for mode in MODES):
        own = rows["seed"][rows["environment_seed"] == 0]
        if any((own == seed).sum() < episodes for seed in record.seeds):
            return False
    return True


def score_by(episodes: int) -> Score:
    """How runs are scored if this number of evaluation episodes is requested. With 0, training episodes are used, even
    if an earlier call has evaluated the runs."""
    return "auto" if episodes else "training"


def is_finished(path: Path) -> bool:
    """Whether every seed has spent its budget."""
    if not RunDirectory(path).has_begun or not RunDirectory(path).metrics():
        return False
    record = read_record(path)
    return record.reached >= record.config.steps


def runs_to_credit(comparison: Comparison, configs: Mapping[str, Config]) -> Sequence[Path]:
    """The runs of the best rung that has a critic, since some estimators need one, or of the best rung if none has a
    critic."""

    def rank(group: Group) -> tuple[bool, float]:
        return estimator_of(configs[group.algorithm]).needs_critic, float(np.nan_to_num(group.mean.value, nan=-np.inf))

    return max(comparison.groups, key=rank).runs


def report_on(
    runs: Sequence[Path], best: Sequence[Path], output: Path, environment: EnvironmentLike, score: Score
) -> Path | None:
    """Write a report on the ladder, with the credit view of the rung `best`; None without the extra `report`."""
    if not find_spec("plotly"):
        return None
    add_credit(best, environment=environment, trust=True)
    return write_report(runs, output, score=score)
