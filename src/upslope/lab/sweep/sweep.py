"""Run a sweep: suggest settings, train trials on the same seeds, and confirm the winner on fresh ones."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from upslope.config.config import Config, positive
from upslope.config.prepare import missing_reader
from upslope.core import html
from upslope.core.files import safe_path
from upslope.core.messages import counted, readable, shell
from upslope.core.numbers import number as number_words
from upslope.core.storage import write_atomically
from upslope.engines.base import Placement, Resources, resources_of
from upslope.environments.registry import EnvironmentLike
from upslope.errors import UpslopeError
from upslope.lab.sweep.confirm import Confirmation, confirm, fresh_config
from upslope.lab.sweep.folder import STORAGE, TRIALS_FOLDER, claim, make_folder
from upslope.lab.sweep.on_cluster import train_on_cluster
from upslope.lab.sweep.page import write_sweep_page
from upslope.lab.sweep.processes import train_on_host
from upslope.lab.sweep.programs import Programs
from upslope.lab.sweep.pulse import was_put_back
from upslope.lab.sweep.samplers import named, pruners, refuse_endless, require_optuna, samplers
from upslope.lab.sweep.setup import Setup, setup_of
from upslope.lab.sweep.storages import is_of_storage, sqlite_url
from upslope.lab.sweep.study import Access, Study, Told
from upslope.lab.sweep.words import verdict_words
from upslope.runs.directory import MAX_NAME, RunDirectory, check_name
from upslope.runs.display import choose

TRIALS, SEEDS, STEPS = 100, 3, 100_000
FRESH, EPISODES = 10, 20
"""Default number of fresh seeds on which the winner and the default are retrained, and of evaluation episodes per
seed."""
WAIT_SECONDS = 2.0
"""Seconds between two checks of the trials of other processes."""


@dataclass(frozen=True)
class Sweep:
    """The result of `upslope.sweep`."""

    path: Path
    """The sweep's folder, with the trials, the runs on fresh seeds, the winner's settings and the report."""
    trials: tuple[Told, ...]
    winner: Told | None
    """The trial with the highest score; None if no trial finished."""
    config: Config | None
    """The winner's config, with the seeds of the trials."""
    confirmation: Confirmation | None
    """The winner compared with the default on fresh seeds; None if the default itself won or if there are no fresh
    seeds."""
    is_default: bool
    """Whether the winner has the default settings."""
    report: Path | None
    """The path of the report page; None without the extra `report`."""

    def __repr__(self) -> str:
        return "\n  ".join([f"Sweep in {self.path}", *verdict_words(self)])

    def _repr_html_(self) -> str:
        compared = "" if self.confirmation is None else self.confirmation.comparison._repr_html_()
        return f"<div>{html.items(verdict_words(self))}{compared}</div>"


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
    at_once: int | None = None,
    cluster: str | Placement | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Sweep:
    """Search an algorithm's settings, and compare the winner with the defaults on seeds that no trial has seen.

    All trials have the same environment, budget and seeds. A trial's score is the mean over seeds of the last 100
    training returns. The best trial's settings and the defaults are then retrained on fresh seeds and compared.
    Repeating the call continues a sweep that was stopped, and several processes may make the same call simultaneously.

    Args:
        environment: as in `upslope.train`.
        algorithm: a rung of the ladder.
        space: a YAML file, or a dictionary in the same form: `{"learning_rate": {"low": 1e-4, "high": 1e-2, "log":
            True}, "epochs": {"choices": [4, 10]}, "num_envs": 16}`. A plain value is fixed. The default space depends
            on the kind of action.
        trials: total number of trials.
        seeds: number of seeds of each trial.
        steps: environment steps per seed.
        sampler: name of one of Optuna's samplers: tpe, random, cmaes, gp, qmc, nsgaii, bruteforce, …
        pruner: name of one of Optuna's pruners: median, hyperband, successivehalving, wilcoxon, none.
        storage: the URL of an Optuna database; by default a SQLite file in the sweep's folder.
        name: the name of the sweep's folder and of the study; by default derived from environment and algorithm.
        fresh_seeds: number of fresh seeds on which the winner and the default are retrained; 0 skips this.
        evaluation_episodes: number of fresh episodes per seed and mode on which the two are compared; 0 compares
            training returns.
        preset: start from the environment's tuned settings, as in `upslope.train`.
        workers: number of processes that train trials of a Gymnasium environment; by default one per core.
        at_once: number of trials that one program of a compiled environment trains simultaneously; by default 8, or 64
            on an accelerator.
        cluster: where workers run, as in `upslope.train`; each trains one trial at a time.
        settings: any field of `Config`, for every trial and for the default.

    Raises:
        UpslopeError: the extra `sweep` is missing, or the space, a name or a setting is invalid.
        KeyboardInterrupt: on Ctrl-C, after everything is saved.
    """
    require_optuna()
    positive(trials=trials, seeds=seeds, steps=steps, workers=workers, at_once=at_once, fresh_seeds=fresh_seeds or None)
    positive(evaluation_episodes=evaluation_episodes or None)
    named("sampler", sampler, samplers())
    named("pruner", pruner, pruners())
    setup = setup_of(environment, algorithm, space, preset, settings | {"steps": steps, "seeds": seeds})
    refuse_endless(sampler, setup.space)
    if fresh_seeds:
        fresh_config(setup.default, setup, fresh_seeds)  # raises an error now rather than after all trials
    resources = resources_of(workers, cluster)
    check_engine(setup, resources, at_once)
    path = Path(folder) / (check_name(name) if name else default_name(setup.default))
    storage = storage or sqlite_url(path / STORAGE)
    is_old = make_folder(path, storage)
    access = Access(storage, path.name, trials, sampler, pruner, setup.default.seed)
    study = Study(setup.space, access, setup.described(), setup.space.drawn(setup.default))
    claim(path, study, is_old=is_old)
    say = no_words if quiet else choose(quiet).message
    for line in opening_lines(setup, study, path):
        say(line)
    try:
        train_trials(setup, study, path, resources, at_once, say)
        with RunDirectory(path).exclusive():  # if there are several processes, the first one does the rest
            return finish(setup, study, path, fresh_seeds, evaluation_episodes, environment, resources, quiet)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Stopped and saved. Repeat the command to continue.") from None
    except Exception as error:
        if not is_of_storage(error):
            raise
        words = f"The storage failed: {type(error).__name__}. Its contents are kept. Repeat the command to continue."
        raise UpslopeError(words) from error


def check_engine(setup: Setup, resources: Resources, at_once: int | None) -> None:
    """Reject options that are meant for the other kind of environment."""
    is_compiled = setup.environment.is_compiled
    if setup.default.devices_per_seed > 1 or "devices_per_seed" in setup.space.searched:
        raise UpslopeError(
            "The trials of a sweep share the devices, so no trial can use several. Omit --devices-per-seed."
        )
    if resources.cluster is not None and at_once is not None:
        raise UpslopeError("On a cluster each worker trains one trial at a time, and --workers sets their number.")
    if resources.workers is not None and is_compiled and resources.cluster is None:
        raise UpslopeError("--workers applies only to Gymnasium environments; here --at-once sets how many trials run.")
    if at_once is not None and not is_compiled:
        raise UpslopeError("--at-once applies only to compiled environments; here --workers sets how many trials run.")


def default_name(config: Config) -> str:
    """The default name of a sweep. It is deterministic, so that repeating the command continues the sweep."""
    label = f"{config.environment}-{config.algorithm}-sweep"
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in label).strip("-.")[: MAX_NAME // 4]


def no_words(text: str) -> None:
    """Print nothing."""


def opening_lines(setup: Setup, study: Study, path: Path) -> list[str]:
    """Lines that describe what is searched, and how. The study records how, so that a later call can tell a change."""
    config, access, before = setup.default, study.access, len(study.trials())
    title = (
        f"sweep of {config.algorithm} on {config.environment} · {counted(study.total, 'trial')} · "
        f"{counted(config.seeds, 'seed')} · {config.steps:,} steps each"
    )
    searched = ", ".join(name.rstrip("_") for name in setup.space.searched)
    again = [f"continuing: {counted(before, 'trial')} so far"] if before else []
    again += [changed] if (changed := study.continued_with()) else []
    search = f"searching {searched} with {access.sampler}, pruning by {access.pruner}"
    all_of = study.combinations
    size = [] if all_of is None else [f"{counted(all_of.size, 'combination')} in the space, each tried once"]
    return [title, f"writing to {path}", search, *size, *again]


def train_trials(
    setup: Setup, study: Study, path: Path, resources: Resources, at_once: int | None, say: Callable[[str], None]
) -> None:
    """Train trials until all have ended, including those of other processes."""

    def ended(number: int) -> None:
        say(trial_words(study, number))

    told = False
    while True:
        if lost := study.put_back_lost():
            say(f"{counted(lost, 'trial')} of a process that died will be trained again")
        if study.left():
            if resources.cluster is not None:
                place = path / TRIALS_FOLDER, resources.cluster
                train_on_cluster(setup, study, *place, resources.workers, ended, say)
            elif setup.environment.is_compiled:
                programs = Programs(setup, study, at_once, ended)
                try:
                    programs.run()
                finally:
                    programs.close()
            else:
                train_on_host(setup, study, path / TRIALS_FOLDER, resources.workers, ended, say)
        others = study.running()
        if not others and not study.left():
            return
        if others and not told:
            say(f"waiting for {counted(len(others), 'trial')} of other processes")
            told = True
        time.sleep(WAIT_SECONDS)


def finish(
    setup: Setup,
    study: Study,
    path: Path,
    fresh_seeds: int,
    evaluation_episodes: int,
    environment: EnvironmentLike,
    resources: Resources,
    quiet: bool,
) -> Sweep:
    """Confirm the winner, and write its settings and the page."""
    winner, confirmation, config = study.best(), None, None
    if winner is not None:
        config = setup.config(winner.drawn)
        write_settings(setup, config, path / "winner.yaml")
        if fresh_seeds and config != setup.default:
            place = safe_path(path, path / f"fresh-{winner.number:04d}", is_folder=True)
            options: dict[str, Any] = {"environment": environment, "resources": resources}
            options |= {"seeds": fresh_seeds, "episodes": evaluation_episodes}
            confirmation = confirm(setup, config, place, display=lambda: choose(quiet), **options)
    found = Sweep(path, tuple(study.told()), winner, config, confirmation, config == setup.default, None)
    if not find_spec("plotly"):
        return found
    page = write_sweep_page(path / "report.html", setup, found, study.importances())
    return replace(found, report=page)


def trial_words(study: Study, number: int) -> str:
    """One line about a trial that has ended."""
    trial, best = study.study.trials[number], study.best()
    if was_put_back(trial):
        return f"trial {number}: another process took it over"
    told = study.told_of(trial)
    result = {"complete": f"return {number_words(told.score)}", "failed": f"failed: {told.reason}"}
    words = result.get(told.state, told.state + (f": {told.reason}" if told.reason not in ("", told.state) else ""))
    record = f" · best {number_words(best.score)} in trial {best.number}" if best else ""
    return f"trial {told.number}: {words}{record}"


def write_settings(setup: Setup, config: Config, path: Path) -> None:
    """Write the settings that a config's run uses to a file for `upslope train --config`."""
    plain = {name: list(x) if isinstance(x, tuple) else x for name, x in config.to_json().items()}
    left_out, task = ("environment", "seeds", "seed", "preset", "data"), setup.task(config)
    settings = {n: x for n, x in plain.items() if n not in left_out and not missing_reader(n, config, task)}
    head = f"# {readable(shell('upslope', 'train', config.environment, '--config', path))}\n"
    write_atomically(path, (head + yaml.safe_dump({"preset": False} | settings, sort_keys=False)).encode())
