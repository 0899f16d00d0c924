"""The sweep: suggest settings, train trials on the same seeds, and confirm the winner on fresh ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from upslope.config.config import Config, positive
from upslope.core.numbers import number
from upslope.core.storage import write_atomically
from upslope.environments.registry import EnvironmentLike
from upslope.errors import UpslopeError
from upslope.lab.sweep.confirm import Confirmation, confirm
from upslope.lab.sweep.setup import Setup, setup_of
from upslope.lab.sweep.study import Study, Told, require_optuna, sqlite_url
from upslope.lab.sweep.trial import train_trial
from upslope.runs.directory import MAX_NAME, check_name
from upslope.runs.display import Display, choose

TRIALS, SEEDS, STEPS = 100, 3, 100_000
FRESH, EPISODES = 10, 20
"""Fresh seeds for the winner and for the default, and evaluation episodes for each of them."""
STORAGE = "study.db"


@dataclass(frozen=True)
class Sweep:
    """The result of `upslope.sweep`."""

    path: Path
    """The sweep's folder: trials, the runs on fresh seeds, the winner's settings, the report."""
    trials: tuple[Told, ...]
    winner: Told | None
    """The trial with the highest score; None if no trial finished."""
    config: Config | None
    """The winner's config, on the seeds of the trials."""
    confirmation: Confirmation | None
    """The winner against the default on fresh seeds; None if the default itself won, or without fresh seeds."""
    is_default: bool
    """Whether the winner has the default settings."""
    report: Path | None
    """The page; None without the extra `report`."""


def sweep(
    environment: EnvironmentLike,
    algorithm: str = "ppo",
    *,
    space: str | Path | Mapping[str, Any] | None = None,
    trials: int = TRIALS,
    seeds: int = SEEDS,
    steps: int = STEPS,
    sampler: str = "tpe",
    pruner: str = "median",
    storage: str | None = None,
    name: str | None = None,
    folder: str | Path = "runs",
    fresh_seeds: int = FRESH,
    evaluation_episodes: int = EPISODES,
    preset: bool | str = True,
    workers: int | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Sweep:
    """Search an algorithm's settings, and hold the winner against the defaults on seeds that no trial has seen.

    All trials have the same environment, budget and seeds, and a trial's score is the mean over seeds of the last 100
    training returns. Then the best trial's settings and the defaults are trained anew on fresh seeds and compared.
    The same call continues a sweep that was stopped; several processes may call it at once.

    Args:
        environment: as in `upslope.train`.
        algorithm: a rung of the ladder.
        space: a YAML file, or a dictionary in the same form: `{"learning_rate": {"low": 1e-4, "high": 1e-2, "log":
            True}, "epochs": {"choices": [4, 10]}, "num_envs": 16}`; a plain value is fixed. By default a space for
            the kind of action.
        trials: how many trials the sweep has in all.
        seeds: seeds of each trial.
        steps: environment steps per seed.
        sampler: Optuna's sampler by its name: tpe, random, cmaes, gp, qmc, nsgaii, bruteforce, …
        pruner: Optuna's pruner by its name: median, hyperband, successivehalving, wilcoxon, none.
        storage: the URL of a database of Optuna's; by default a SQLite file in the sweep's folder.
        name: the name of the sweep's folder and of the study; by default derived from environment and algorithm.
        fresh_seeds: seeds on which winner and default are trained anew; 0 leaves that out.
        evaluation_episodes: fresh episodes per seed and mode by which these are compared; 0: by training returns.
        preset: start from the environment's tuned settings, as in `upslope.train`.
        workers: processes that train trials of a Gymnasium environment; by default one per core.
        settings: any field of `Config`, for every trial and for the default.

    Raises:
        UpslopeError: the extra `sweep` is missing, or the space, a name or a setting is invalid.
        KeyboardInterrupt: on Ctrl-C, after everything is saved.
    """
    require_optuna()
    positive(trials=trials, seeds=seeds, steps=steps, workers=workers, fresh_seeds=fresh_seeds or None)
    positive(evaluation_episodes=evaluation_episodes or None)
    setup = setup_of(environment, algorithm, space, preset, settings | {"steps": steps, "seeds": seeds})
    path = Path(folder) / (check_name(name) if name else default_name(setup.default))
    url = storage or sqlite_url(path / STORAGE)
    make_folder(path)
    study = Study(
        setup.space,
        total=trials,
        sampler=sampler,
        pruner=pruner,
        storage=url,
        name=path.name,
        seed=setup.default.seed,
        description=setup.described(),
    )
    display = choose(quiet)
    say = no_words if quiet else display.message
    for line in opening_lines(setup, study, path, sampler, pruner):
        say(line)
    try:
        begin_study(setup, study, say)
        train_trials(setup, study, path, workers, say)
        winner = study.best()
        found = None
        if winner is not None:
            write_settings(setup.config(winner.drawn), path / "winner.yaml")
            found = confirmed(setup, winner, path, fresh_seeds, evaluation_episodes, environment, workers, quiet)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped and saved. Repeat the command to continue.") from None
    config = setup.config(winner.drawn) if winner else None
    return Sweep(path, tuple(study.told()), winner, config, found, config == setup.default, None)


def default_name(config: Config) -> str:
    """The name of a sweep that was not given one. It is the same each time, so that the same command continues it."""
    label = f"{config.environment}-{config.algorithm}-sweep"
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in label).strip("-.")[: MAX_NAME // 4]


def make_folder(path: Path) -> None:
    """Create the sweep's folder, or take the existing one."""
    if (path / "config.json").exists():
        raise UpslopeError(f"{path} is a run, not a sweep. Choose another --name.")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UpslopeError(f"Could not create {path}: {error.strerror or error}. Choose another --folder.") from error


def no_words(text: str) -> None:
    """Say nothing."""


def opening_lines(setup: Setup, study: Study, path: Path, sampler: str, pruner: str) -> list[str]:
    """What is searched, and how."""
    config, before = setup.default, len(study.trials())
    title = (
        f"sweep of {config.algorithm} on {config.environment} · {study.total} trials · {config.seeds} seeds · "
        f"{config.steps:,} steps each"
    )
    searched = ", ".join(name.rstrip("_") for name in setup.space.searched)
    again = [f"continuing: {before} trials are there"] if before else []
    return [title, f"writing to {path}", f"searching {searched} with {sampler}, pruning by {pruner}", *again]


def begin_study(setup: Setup, study: Study, say: Callable[[str], None]) -> None:
    """Put back trials whose process is gone, and make the default the first trial if the space holds it."""
    if lost := study.put_back_lost():
        say(f"{lost} trials of a process that is gone are trained again")
    drawn = setup.space.drawn(setup.default)
    if drawn is not None:
        study.suggest_first(drawn)


def train_trials(setup: Setup, study: Study, path: Path, workers: int | None, say: Callable[[str], None]) -> None:
    """Train trials until all have begun."""
    while (trial := study.ask()) is not None:
        train_trial(setup, study, trial, path / "trials", workers)
        say(trial_words(study, study.told_of(study.study.trials[trial.number])))


def trial_words(study: Study, told: Told) -> str:
    """One line about a trial that has ended."""
    best = study.best()
    result = {"complete": f"return {number(told.score)}", "failed": f"failed: {told.reason}"}
    words = result.get(told.state, told.state + (f": {told.reason}" if told.reason not in ("", told.state) else ""))
    record = f" · best {number(best.score)} in trial {best.number}" if best else ""
    return f"trial {told.number}: {words}{record}"


def write_settings(config: Config, path: Path) -> None:
    """Write a config's settings as a file for `upslope train --config`."""
    plain = {name: list(x) if isinstance(x, tuple) else x for name, x in config.to_json().items()}
    left_out = ("environment", "seeds", "seed", "preset", "data")
    settings = {name: value for name, value in plain.items() if name not in left_out and value is not None}
    head = f"# upslope train {config.environment} --config {path}\n"
    write_atomically(path, (head + yaml.safe_dump(settings, sort_keys=False)).encode())


def confirmed(
    setup: Setup,
    winner: Told,
    path: Path,
    seeds: int,
    episodes: int,
    environment: EnvironmentLike,
    workers: int | None,
    quiet: bool,
) -> Confirmation | None:
    """The winner against the default on fresh seeds; None if they are the same."""
    config = setup.config(winner.drawn)
    if not seeds or config == setup.default:
        return None

    def display(name: str) -> Display:
        return choose(quiet)

    place = path / f"fresh-{winner.number:04d}"
    options: dict[str, Any] = {"environment": environment, "workers": workers, "display": display}
    return confirm(setup, config, place, seeds=seeds, episodes=episodes, **options)
