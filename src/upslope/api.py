"""train and resume: from a name to a run on disk."""

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from upslope.config.command import command_of
from upslope.config.config import MAX_STEPS, Config, canonical, configure, recorded_preset
from upslope.config.task import estimator_of, objective_of, settings_of, task_of
from upslope.core.estimators import Estimator
from upslope.core.objectives import Objective
from upslope.engines.base import Engine
from upslope.engines.selection import Axes, engine_of
from upslope.environments.base import CompiledEnvironment
from upslope.environments.registry import HostWorld, World, make, name_of
from upslope.errors import UpslopeError
from upslope.learning.devices import computing
from upslope.models.spaces import BoxHead, describe
from upslope.runs.directory import RunDirectory, free_name, versions
from upslope.runs.display import Display, choose
from upslope.runs.loop import Loop, Stopped, begin_progress, mean_of
from upslope.runs.policy import Policy, Which, load, spaces_of
from upslope.runs.resume_point import check_room, standstill_of
from upslope.runs.tensorboard import TensorboardWriter, require_tensorboard

Environment = str | Callable[..., gymnasium.Env] | CompiledEnvironment


@dataclass(frozen=True)
class Run:
    """A finished or interrupted training run."""

    path: Path
    config: Config
    seeds: tuple[int, ...]
    returns: np.ndarray
    """Each seed's mean return over its last 100 training episodes [S]."""

    def load(self, *, seed: int | None = None, checkpoint: Which = "best") -> Policy:
        """The trained policy; see `upslope.load`."""
        return load(self.path, seed=seed, checkpoint=checkpoint)

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return RunDirectory(self.path).metrics()

    def episodes(self) -> np.ndarray:
        """Every finished training episode, as a structured array."""
        return RunDirectory(self.path).episodes()


def train(
    environment: Environment,
    algorithm: str = "ppo",
    *,
    estimator: Estimator | str | None = None,
    objective: Objective | str | None = None,
    name: str | None = None,
    folder: str | Path = "runs",
    preset: bool | str = True,
    quiet: bool = False,
    tensorboard: bool = False,
    workers: int | None = None,
    **settings: Any,
) -> Run:
    """Train an agent, and leave a run directory `folder/name`.

    Args:
        environment: a Gymnasium id, `module:Id`, `jax:Name`, a callable that returns a Gymnasium environment, or a
            `CompiledEnvironment`.
        algorithm: a rung of the ladder; see `upslope list`.
        estimator: axis 1 instead of the rung's: a name, or any `Estimator`.
        objective: axis 2 instead of the rung's: a name, or any `Objective`.
        name: of the run; by default made from environment and algorithm. An existing one is refused.
        preset: the environment's tuned settings: True for its default preset where it has one, False for none, or the
            name of one, e.g. "paper".
        workers: processes among which the seeds of a Gymnasium environment are shared out; by default one a core, where
            the run is long enough to repay starting them. The result does not depend on it.
        settings: any field of `Config`, e.g. `steps=100_000, seeds=5, lambda_=0.9`.

    Raises:
        UpslopeError: something asked for cannot be; nothing trained is lost.
        KeyboardInterrupt: Ctrl-C, after everything is saved.
    """
    for part in (estimator, objective):
        if isinstance(part, Estimator | Objective):
            settings |= settings_of(part)
        elif part is not None and not isinstance(part, str):
            raise UpslopeError(f"Pass an estimator or objective as an object, e.g. upslope.NStep(5), not {part!r}.")
    settings |= {
        role: part for role, part in (("estimator", estimator), ("objective", objective)) if isinstance(part, str)
    }
    settings = canonical(settings)
    world = make(environment, settings.get("env_kwargs"), settings.get("max_episode_steps"))
    label = environment if isinstance(environment, str) else name_of(environment)
    config = configure(
        label, algorithm, is_continuous=isinstance(world.action_space, Box), use_preset=preset, **settings
    )
    axes = Axes(
        estimator if isinstance(estimator, Estimator) else estimator_of(config),
        objective if isinstance(objective, Objective) else objective_of(config),
    )
    return train_config(
        config, world, axes, name=name, folder=folder, quiet=quiet, tensorboard=tensorboard, workers=workers
    )


def train_config(
    config: Config,
    world: World,
    axes: Axes | None = None,
    *,
    name: str | None,
    folder: str | Path,
    quiet: bool,
    tensorboard: bool,
    workers: int | None = None,
    display: Display | None = None,
) -> Run:
    """Train from the beginning, all settings decided."""
    axes = axes or Axes(estimator_of(config), objective_of(config))
    label = f"{config.environment}-{config.algorithm}"
    directory = RunDirectory(Path(folder) / name if name else free_name(Path(folder), label))
    task = task_of(config, world, axes.estimator, axes.objective)
    display = display or choose(quiet)
    if tensorboard:
        require_tensorboard()
    is_on_host = isinstance(world, HostWorld) and config.data is None
    with computing(on_host=is_on_host), closing(engine_of(config, task, world, axes, workers, display)) as engine:
        state = engine.start()
        progress = begin_progress(state, config.seed_list())
        directory.create(config, describe(task.coding, task.head), axes.described())
        writer = TensorboardWriter(directory.path / "tensorboard", config.seed_list()) if tensorboard else None
        with directory.held():
            lines = opening_lines(config, directory)
            return run_loop(config, engine, directory, display, writer, state, progress, lines)


def resume(
    run: str | Path,
    *,
    environment: Environment | None = None,
    estimator: Estimator | None = None,
    objective: Objective | None = None,
    quiet: bool = False,
    tensorboard: bool = False,
    workers: int | None = None,
    display: Display | None = None,
) -> Run:
    """Go on with a run that was stopped. The result is the one that the uninterrupted run would have had.

    `environment`, `estimator` and `objective` are needed only where the run was started with objects that cannot be
    found again by their name. Compiled worlds continue bit for bit; on the host, episodes in progress are replayed, and
    where the environment does not repeat itself a message says so.

    Raises:
        UpslopeError: no such run, a damaged checkpoint, another version, or objects other than the run's.
    """
    directory = RunDirectory(run)
    description, config = directory.read(), directory.config()
    world = make(environment or config.environment, config.env_kwargs, config.max_episode_steps)
    axes = Axes(estimator or estimator_of(config), objective or objective_of(config))
    if axes.described() != description["axes"]:
        raise UpslopeError(
            f"{run} was trained with {description['axes']}, and this would go on with {axes.described()}. Pass the "
            "same estimator and objective to upslope.resume."
        )
    display = display or choose(quiet)
    changed = {k: (v, versions()[k]) for k, v in description["versions"].items() if versions().get(k) != v}
    return go_on(config, world, axes, directory, display, tensorboard, changed, workers)


def go_on(
    config: Config,
    world: World,
    axes: Axes,
    directory: RunDirectory,
    display: Display,
    tensorboard: bool,
    changed: dict[str, tuple[str, str]],
    workers: int | None,
) -> Run:
    """Train from the last checkpoint."""
    task = task_of(config, world, axes.estimator, axes.objective)
    check_room(directory, config, task)
    is_on_host = isinstance(world, HostWorld) and config.data is None
    with (
        directory.held(),
        computing(on_host=is_on_host),
        closing(engine_of(config, task, world, axes, workers, display)) as engine,
    ):
        stand = standstill_of(directory, config, task, engine.start(), is_on_host)
        directory.cut(stand.sizes)
        if stand.is_finished(config):
            with display:
                display.finish(None, finished_lines(config, directory))
            returns = np.asarray(mean_of(stand.progress, 0))
            return Run(directory.path, config, tuple(config.seed_list()), returns)
        lines = [f"going on with {directory.path} at step {stand.step:,} of {config.steps:,}"]
        if changed:
            words = ", ".join(f"{name} {old} → {new}" for name, (old, new) in changed.items())
            lines.append(f"versions changed since it was started, so the bits may differ: {words}")
        if stand.snapshot:
            engine.restore(stand.snapshot, display.message)
        writer = TensorboardWriter(directory.path / "tensorboard", config.seed_list()) if tensorboard else None
        return run_loop(config, engine, directory, display, writer, stand.state, stand.progress, lines)


def run_loop(
    config: Config,
    engine: Engine,
    directory: RunDirectory,
    display: Display,
    writer: TensorboardWriter | None,
    state: Any,
    progress: Any,
    lines: list[str],
) -> Run:
    """Run the loop inside the display, and say how to go on when it is stopped."""
    seeds = config.seed_list()
    loop = Loop(engine, directory, seeds, config.steps, display, writer, config.data is not None)
    try:
        with display:
            with suppress(BrokenPipeError):  # the first update notices it, when there is something to save
                display.start(title_of(config), lines)
            state, progress = loop.run(state, progress)
            display.finish(None, closing_lines(config, directory, progress))
    except Stopped:
        raise KeyboardInterrupt(f"Stopped and saved. Go on with: upslope resume {directory.path}") from None
    except KeyboardInterrupt:
        words = f"Stopped at once; go on from the last checkpoint with: upslope resume {directory.path}"
        raise KeyboardInterrupt(words) from None
    finally:
        if writer is not None:
            writer.close()
    return Run(directory.path, config, tuple(seeds), np.asarray(mean_of(progress, 0)))


def title_of(config: Config) -> str:
    """One line that says what is trained."""
    seeds = "1 seed" if config.seeds == 1 else f"{config.seeds} seeds"
    return f"{config.algorithm} on {config.environment} · {seeds}"


def opening_lines(config: Config, directory: RunDirectory) -> list[str]:
    """What is worth knowing before it begins."""
    lines = [f"writing to {directory.path}"]
    if config.preset is not None:
        recorded = recorded_preset(config)
        note = recorded[1].get("note") if recorded else None
        lines.append(f"preset: {config.preset}" + (f" ({note})" if note else "") + "; --no-preset turns it off")
    if config.seeds == 1:
        lines.append("one seed gives no interval: --seeds 5 shows how far the result can be trusted")
    return lines


def finished_lines(config: Config, directory: RunDirectory) -> list[str]:
    """That there is nothing to go on with, and how to train longer."""
    longer = replace(config, steps=min(2 * config.steps, MAX_STEPS))
    is_continuous = isinstance(spaces_of(directory)[1], BoxHead)
    return [
        f"{directory.path} is finished: each seed has spent its {config.steps:,} steps, so there is nothing to go on "
        "with, and nothing was changed. The budget belongs to a run, since the learning rate may fall over it. To "
        "train longer, begin a new run with more --steps:",
        f"    {command_of(longer, is_continuous=is_continuous)}",
        f"judge this one:  upslope evaluate {directory.path}",
    ]


def closing_lines(config: Config, directory: RunDirectory, progress: Any) -> list[str]:
    """What was reached, by seed, and what to do next."""
    if config.data is not None:
        return [f"trained in {progress.elapsed:.1f} s", f"judge it:  upslope evaluate {directory.path}"]
    returns = mean_of(progress, 0)
    shown = [f"seed {s}: {r:.1f}" for s, r in zip(config.seed_list(), returns, strict=True)]
    return [
        f"trained in {progress.elapsed:.1f} s; mean return of the last 100 training episodes: " + ", ".join(shown),
        f"judge it:  upslope evaluate {directory.path}",
    ]
