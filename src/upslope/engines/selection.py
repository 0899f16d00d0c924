"""Which engine trains a run: one program, one process, or several."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upslope.config.config import Config
from upslope.config.task import estimator_of, objective_of
from upslope.core.estimators import Estimator
from upslope.core.objectives import Objective
from upslope.engines.base import Engine
from upslope.engines.compiled import CompiledEngine, RecordedEngine
from upslope.engines.host import HostEngine, columns_of
from upslope.engines.slices import SlicedColumns, num_slices
from upslope.engines.workers import WorkersEngine, num_workers
from upslope.environments.base import CompiledEnvironment
from upslope.environments.registry import World
from upslope.errors import UpslopeError
from upslope.learning.iteration import Task
from upslope.runs.datasets import load_dataset
from upslope.runs.display import Display

CHUNKS = 100
"""A compiled world's training is cut into about so many programs' runs, between which rows are written."""
MAX_CHUNK_STEPS = 1 << 21
"""No chunk gathers more environment steps per seed, so that memory does not grow with the budget."""


@dataclass(frozen=True)
class Axes:
    """The pair."""

    estimator: Estimator
    objective: Objective

    def described(self) -> dict[str, Any]:
        """Both with their fields, for config.json."""
        for part in (self.estimator, self.objective):
            if not dataclasses.is_dataclass(part):
                raise UpslopeError(
                    f"{type(part).__name__} must be a dataclass, so that a run can say what it was trained with: put "
                    "@dataclass(frozen=True) above the class."
                )
        described = {"estimator": repr(self.estimator), "objective": repr(self.objective)}
        return described | {"needs_critic": self.estimator.needs_critic}


def engine_of(config: Config, task: Task, world: World, axes: Axes, workers: int | None, display: Display) -> Engine:
    """The engine for where the experience comes from."""
    seeds = config.seed_list()
    if workers is not None and (config.data is not None or isinstance(world, CompiledEnvironment)):
        raise UpslopeError(
            f"--workers is for Gymnasium environments, and {config.environment} runs in one program that spreads its "
            "seeds by itself. Leave it out."
        )
    if config.data is not None:
        return recorded_engine(config, task)
    if isinstance(world, CompiledEnvironment):
        per_iteration = task.num_envs * (
            (task.max_episode_steps or 1) if task.estimator.whole_episodes else task.rollout_steps
        )
        iterations = max(1, min(task.steps // CHUNKS, MAX_CHUNK_STEPS) // per_iteration)
        return CompiledEngine(task, seeds, iterations, world)
    if workers is not None and workers < 1:
        raise UpslopeError(f"--workers must be 1 or more, not {workers}.")
    # A worker knows of the run what its config says.
    is_said = world.is_named and world.name == config.environment
    try:
        slices = num_slices(config, world, workers) if is_said else 1
        if slices > 1:
            columns = SlicedColumns(config, task.coding, task.head, slices, display.message)
            return HostEngine(task, seeds, columns)
        count = num_workers(config, workers)
        if count > 1 and is_said and axes == Axes(estimator_of(config), objective_of(config)):
            return WorkersEngine(task, config, count, display.message)
    except UpslopeError as error:
        display.message(f"training in one process: {error}")
    return HostEngine(task, seeds, columns_of(task, seeds, world), display.message)


def recorded_engine(config: Config, task: Task) -> Engine:
    """The engine that reads a dataset."""
    rollout = load_dataset(Path(str(config.data)), task.coding, task.head, task.update.objective.needs_behaviour)
    count = int(rollout.valid.sum())
    if config.minibatches > count:
        raise UpslopeError(
            f"--minibatches {config.minibatches} is more than the {count} steps in {config.data}. Lower it."
        )
    return RecordedEngine(dataclasses.replace(task, num_envs=rollout.valid.shape[1]), config.seed_list(), rollout)
