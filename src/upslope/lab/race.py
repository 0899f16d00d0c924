"""The race up the ladder: every rung that fits, on the same seeds and the same budget.

Rungs train one after another, each with its seeds on all cores, so every one has the whole machine and times compare.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.spaces import Box

from upslope.analysis.compare import compare
from upslope.analysis.comparison import Comparison, Group
from upslope.analysis.records import read_record
from upslope.analysis.scores import is_evaluated
from upslope.analysis.statistics import returns_at
from upslope.config.config import Config, canonical, configure
from upslope.config.ladder import ALGORITHMS
from upslope.config.task import estimator_of, task_of
from upslope.diagnosis.doctor import Watch
from upslope.engines.base import Resources
from upslope.environments.registry import AnyEnvironment, EnvironmentLike, make
from upslope.environments.registry import label as label_of
from upslope.errors import UpslopeError
from upslope.lab.race_display import Standing, left_out_lines
from upslope.report.page import add_credit, write_report
from upslope.runs.directory import RunDirectory, check_name, free_name, same_run
from upslope.runs.evaluation import evaluate
from upslope.runs.panel import return_words
from upslope.runs.train import Session, begin, go_on

STEPS = 50_000
"""Environment steps per seed and rung, by default."""
SEEDS = 10
EVALUATION_EPISODES = 20
"""Of each seed in each mode, by which a rung is judged."""


@dataclass(frozen=True)
class Ladder:
    """The end of a race."""

    path: Path
    """The folder that holds a run directory for each rung."""
    comparison: Comparison
    left_out: dict[str, str]
    """Rungs that did not take part or broke, and why."""
    report: Path | None
    """The page about it, where reports can be written."""


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
    evaluation_episodes: int = EVALUATION_EPISODES,
    **settings: Any,
) -> Ladder:
    """Train every rung that fits an environment, on the same seeds and budget, and compare them.

    Each rung is set as `upslope.train(environment, rung)` sets it, published tuned settings included.

    Args:
        algorithms: rungs; by default all that act for themselves.
        steps: environment steps per seed, the same for every rung.
        name: of the folder of the race; made from the environment by default. An existing one is refused.
        resume: go on with the race of this name, if it is there: what is finished stays, what was begun goes on.
        evaluation_episodes: fresh episodes a seed and mode that judge each rung at its end, for the last training
            episodes are those of a policy that was still learning; 0 judges by these.
        settings: any field of `Config`, for every rung.

    Raises:
        UpslopeError: no rung fits, the folder is there already, or the race there had other settings.
        KeyboardInterrupt: Ctrl-C, after everything is saved.
    """
    settings = canonical(settings | {"steps": steps, "seeds": seeds})
    made_with = (settings.get("env_kwargs"), settings.get("max_episode_steps"), settings.get("wrappers", ()))
    world, label = make(environment, *made_with), label_of(environment)
    configs, left_out = fitting(label, world, algorithms, preset, settings)
    path = race_folder(Path(folder), label, name, resume)
    for rung, config in configs.items():
        if (path / rung).exists():
            same_run(path / rung, config)
    with Standing(f"the ladder on {label} · {seeds} seeds · {steps:,} steps each", list(configs), quiet) as standing:
        for line in (f"writing to {path}", *left_out_lines(left_out)):
            standing.say(line)
        try:
            for rung, config in configs.items():
                left_out |= climb(rung, config, world, path / rung, standing, workers)
                if rung not in left_out and evaluation_episodes:
                    judge(rung, path / rung, evaluation_episodes, standing, environment)
        except KeyboardInterrupt:
            words = f"Stopped and saved. Go on with the same command and: --name {path.name} --resume"
            raise KeyboardInterrupt(words) from None
    runs = [path / rung for rung in configs if rung not in left_out]
    if not runs:
        raise UpslopeError(f"No rung could be trained on {label}. {' '.join(left_out_lines(left_out))}")
    comparison = compare(runs)
    best = most_telling(comparison, configs)
    return Ladder(path, comparison, left_out, report_of(runs, best, path / "report.html", environment))


def fitting(
    label: str, world: AnyEnvironment, algorithms: Sequence[str] | None, preset: bool, settings: dict[str, Any]
) -> tuple[dict[str, Config], dict[str, str]]:
    """The config of each rung that can learn in this world, and the reason why for each that cannot."""
    configs, left_out = {}, {}
    for rung in dict.fromkeys(algorithms or ALGORITHMS):
        config = configure(
            label, rung, is_continuous=isinstance(world.action_space, Box), use_preset=preset, **settings
        )
        if ALGORITHMS[rung].source == "recorded":
            left_out[rung] = "learns from recorded data, whose steps cost nothing, so budgets do not compare"
            continue
        try:
            task_of(config, world)
        except UpslopeError as error:
            left_out[rung] = str(error)
        else:
            configs[rung] = config
    if not configs:
        raise UpslopeError(f"No rung fits {label}. {' '.join(left_out_lines(left_out))}")
    return configs, left_out


def race_folder(folder: Path, label: str, name: str | None, resume: bool) -> Path:
    """Where the rungs' run directories go."""
    if name is None:
        if resume:
            raise UpslopeError("A race is gone on with by its --name, and none is given; `ls runs` shows yours.")
        return free_name(folder, f"{label}-ladder")
    path = folder / check_name(name)
    if path.exists() and not resume:
        raise UpslopeError(
            f"{path} exists already, and nothing is overwritten. Go on with it: --resume — or choose another --name."
        )
    return path


def climb(
    rung: str,
    config: Config,
    world: AnyEnvironment,
    path: Path,
    standing: Standing,
    workers: int | None,
) -> dict[str, str]:
    """Train one rung to the end, from where it was left. One that breaks is told, and returned with its reason."""
    try:
        lane = standing.lane(rung)
        session, directory = Session(lane, Resources(workers), watch=Watch), RunDirectory(path)
        if not path.exists():
            begin(config, task_of(config, world), directory, session)
        elif is_finished(path):
            standing.mark(rung, "finished before", returns_at(read_record(path), np.asarray([np.inf]))[:, 0].tolist())
        else:
            go_on(config, task_of(config, world), directory, session, [])
    except UpslopeError as error:
        standing.mark(rung, "broke")
        standing.warn(f"{rung}: {error}")
        return {rung: str(error)}
    return {}


def judge(rung: str, path: Path, episodes: int, standing: Standing, environment: EnvironmentLike) -> None:
    """Evaluate a rung that is finished, unless it was before."""
    if is_evaluated(read_record(path), "stochastic"):
        return
    standing.mark(rung, "evaluating")
    try:
        found = evaluate(path, episodes=episodes, environment=environment, trust=True)["stochastic"]
    except UpslopeError as error:
        standing.warn(f"{rung} is judged by its training episodes: {error}")
        return
    standing.mark(rung, f"evaluated: {return_words(found.seed_means().tolist())[0]}")


def is_finished(path: Path) -> bool:
    """Whether every seed has spent its budget."""
    if not RunDirectory(path).has_begun or not RunDirectory(path).metrics():
        return False
    record = read_record(path)
    return record.reached >= record.config.steps


def most_telling(comparison: Comparison, configs: Mapping[str, Config]) -> Sequence[Path]:
    """The runs of the best rung whose critic lets every estimator weigh its actions; without any such, of the best."""

    def rank(group: Group) -> tuple[bool, float]:
        return estimator_of(configs[group.algorithm]).needs_critic, float(np.nan_to_num(group.mean.value, nan=-np.inf))

    return max(comparison.groups, key=rank).runs


def report_of(runs: Sequence[Path], best: Sequence[Path], output: Path, environment: EnvironmentLike) -> Path | None:
    """A page about the race, with the credit in an episode of the best, where what draws it is installed."""
    if not find_spec("plotly"):
        return None
    add_credit(best, environment=environment, trust=True)
    return write_report(runs, output)
