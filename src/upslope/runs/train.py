"""Train a task from scratch or from its last checkpoint: combine an engine, a run directory and the loop."""

import math
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from upslope.config.command import command_of
from upslope.config.config import MAX_STEPS, Config, recorded_preset
from upslope.config.trust import allow, requested
from upslope.core.numbers import number, range_of
from upslope.core.types import Rollout
from upslope.engines.base import EVERYTHING, Engine, Resources
from upslope.engines.selection import engine_of
from upslope.environments.registry import lost
from upslope.errors import UpslopeError
from upslope.learning.devices import computing
from upslope.learning.iteration import Task
from upslope.models.build import unusual_parts
from upslope.models.heads import head_of
from upslope.runs.datasets import load_dataset
from upslope.runs.directory import RunDirectory
from upslope.runs.display import Display
from upslope.runs.loop import Loop, Stopped, Watch, begin_progress, mean_of
from upslope.runs.policy import Policy, Which, check_room, described_spaces, load, spaces_of
from upslope.runs.resume_point import resume_point_of
from upslope.runs.same_spaces import require_same_spaces
from upslope.runs.tensorboard import TensorboardWriter, require_tensorboard


@dataclass(frozen=True)
class Session:
    """The display of a training session and the resources it may use. They never change results."""

    display: Display
    resources: Resources = EVERYTHING
    tensorboard: bool = False
    watch: Callable[[Path], Watch] | None = None
    """Creates the diagnosis of the running training, given the run directory; the display shows its findings."""


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


def begin(config: Config, task: Task, directory: RunDirectory, session: Session) -> Run:
    """Train from scratch, with all settings decided."""
    if session.tensorboard:
        require_tensorboard()
    with computing(on_host=is_on_host(config, task)), closing(engine_for(config, task, session)) as engine:
        state = engine.start()
        progress = begin_progress(state, config.seed_list())
        head = head_of(task.environment.action_space, config.environment)
        spaces = described_spaces(task.model.encoder, head, has_masks=task.environment.gives_masks)
        directory.create(config, spaces, task.described())
        allow(requested(config))  # a run trained on this machine is trusted
        with directory.held():
            lines = [*opening_lines(config, directory), *lines_of_networks(task), *lines_of_one_sample(task)]
            return run_loop(config, engine, directory, session, state, progress, lines)


def go_on(config: Config, task: Task, directory: RunDirectory, session: Session, notes: list[str]) -> Run:
    """Train from the last checkpoint; `notes` are shown once it is clear that there is something left to train."""
    head = head_of(task.environment.action_space, config.environment)
    require_same_spaces(directory, task.model.encoder, head, task.environment)
    if directory.has_begun:
        check_room(directory.last, config, task.model, task.num_envs)
    with (
        directory.held(),
        computing(on_host=is_on_host(config, task)),
        closing(engine_for(config, task, session)) as engine,
    ):
        point = resume_point_of(directory, config, task, engine.start(), is_on_host(config, task))
        directory.cut(point.sizes)
        if point.is_finished(config):
            with session.display as display:
                display.finish(None, finished_lines(config, directory))
            return Run(directory.path, config, tuple(config.seed_list()), np.asarray(mean_of(point.progress, 0)))
        lines = [f"going on with {directory.path} at step {point.step:,} of {config.steps:,}", *notes]
        if point.snapshot:
            engine.restore(point.snapshot, session.display.message)
        return run_loop(config, engine, directory, session, point.state, point.progress, lines)


def is_on_host(config: Config, task: Task) -> bool:
    """Whether environments are stepped in Python, by this process or its workers."""
    return config.data is None and not task.environment.is_compiled


def engine_for(config: Config, task: Task, session: Session) -> Engine:
    """The engine for the source of the experience."""
    data = None if config.data is None else read_data(config, task)
    return engine_of(task, config.seed_list(), session.resources, data, session.display.message)


def read_data(config: Config, task: Task) -> Rollout:
    """Read the recorded episodes to learn from."""
    rollout = load_dataset(
        Path(str(config.data)),
        task.model.encoder,
        task.model.head,
        task.update.objective.needs_behaviour,
        needs_masks=task.environment.gives_masks,
    )
    count = int(rollout.valid.sum())
    if config.minibatches > count:
        raise UpslopeError(
            f"--minibatches {config.minibatches} is more than the {count} steps in {config.data}. Lower it."
        )
    return rollout


def run_loop(
    config: Config,
    engine: Engine,
    directory: RunDirectory,
    session: Session,
    state: Any,
    progress: Any,
    lines: list[str],
) -> Run:
    """Run the loop inside the display, and say how to continue if it is stopped."""
    seeds, display = config.seed_list(), session.display
    writer = TensorboardWriter(directory.path / "tensorboard", seeds) if session.tensorboard else None
    watch = None if session.watch is None or display.is_quiet else session.watch(directory.path)
    loop = Loop(engine, directory, config, display, writer, watch)
    try:
        with display:
            with suppress(BrokenPipeError):  # the first update notices it, when there is something to save
                display.start(title_of(config), lines)
            state, progress = loop.run(state, progress)
            display.finish(None, closing_lines(config, directory, progress))
    except Stopped:
        raise KeyboardInterrupt(f"Stopped and saved. Go on with: {call_of('resume', config, directory)}") from None
    except KeyboardInterrupt:
        words = f"Stopped at once; go on from the last checkpoint with: {call_of('resume', config, directory)}"
        raise KeyboardInterrupt(words) from None
    finally:
        if writer is not None:
            writer.close()
    return Run(directory.path, config, tuple(seeds), np.asarray(mean_of(progress, 0)))


def call_of(command: str, config: Config, directory: RunDirectory) -> str:
    """How to run a command on this run: in the shell, or in Python if its environment has to be passed."""
    if lost(config.environment):
        return f'upslope.{command}("{directory.path}", environment=…)'
    return f"upslope {command} {directory.path}"


def title_of(config: Config) -> str:
    """One line that names what is trained."""
    seeds = "1 seed" if config.seeds == 1 else f"{config.seeds} seeds"
    return f"{config.algorithm} on {config.environment} · {seeds}"


def opening_lines(config: Config, directory: RunDirectory) -> list[str]:
    """Notes to show before training begins."""
    lines = [f"writing to {directory.path}"]
    if config.preset is not None:
        recorded = recorded_preset(config)
        note = recorded[1].get("note") if recorded else None
        lines.append(f"preset: {config.preset}" + (f" ({note})" if note else "") + "; --no-preset turns it off")
    if reason := lost(config.environment):
        lines.append(
            f"{config.environment} cannot be found again by its name: {reason}. Commands such as `upslope evaluate` "
            "refuse this run; in Python, pass environment= to upslope.resume, evaluate and record. To use commands, "
            "define it at the top of a module and train it as module:Name"
        )
    if config.seeds == 1:
        lines.append("one seed gives no interval: --seeds 5 shows how far the result can be trusted")
    return lines


def lines_of_networks(task: Task) -> list[str]:
    """The note on what the networks are made of, if they are more than two perceptrons."""
    parts = unusual_parts(task.model)
    return [f"networks: {', '.join(parts)}"] if parts else []


def lines_of_one_sample(task: Task) -> list[str]:
    """The note that weights are not standardised if a batch holds a single step."""
    is_single = not task.estimator.whole_episodes and task.num_envs * task.rollout_steps == 1
    if not (is_single and task.update.normalize_advantage):
        return []
    return ["a batch is one step, whose weight cannot be standardised: it is taken as it is"]


def finished_lines(config: Config, directory: RunDirectory) -> list[str]:
    """The note that the run is finished, and how to train longer."""
    longer = replace(config, steps=min(2 * config.steps, MAX_STEPS))
    is_continuous = spaces_of(directory)[1].is_continuous
    return [
        f"{directory.path} is finished: each seed has spent its {config.steps:,} steps, so there is nothing to go on "
        "with, and nothing was changed. The budget belongs to a run, since the learning rate may fall over it. To "
        "train longer, begin a new run with more --steps:",
        f"    {command_of(longer, is_continuous=is_continuous)}",
        f"judge this one:  {call_of('evaluate', config, directory)}",
    ]


def closing_lines(config: Config, directory: RunDirectory, progress: Any) -> list[str]:
    """The results by seed, and what to do next."""
    if config.data is not None:
        return [f"trained in {progress.elapsed:.1f} s", f"judge it:  {call_of('evaluate', config, directory)}"]
    returns = mean_of(progress, 0)
    spread = range_of(returns)
    told = [number(r, spread) if math.isfinite(r) else "no episode ended" for r in returns]
    shown = [f"seed {s}: {words}" for s, words in zip(config.seed_list(), told, strict=True)]
    return [
        f"trained in {progress.elapsed:.1f} s; mean return of the last 100 training episodes: " + ", ".join(shown),
        f"judge it:  {call_of('evaluate', config, directory)}",
    ]
