"""Select the engine that trains a task: a compiled program, one process, or several."""

import pickle
from collections.abc import Callable, Sequence

from upslope.core.types import Rollout
from upslope.engines.base import Engine, Resources
from upslope.engines.compiled import CompiledEngine, RecordedEngine
from upslope.engines.host import HostEngine, columns_of
from upslope.engines.notices import notices_to
from upslope.engines.slices import SlicedColumns, num_slices
from upslope.engines.workers import WorkersEngine, num_workers
from upslope.errors import UpslopeError
from upslope.learning.iteration import Task


def engine_of(
    task: Task, seeds: Sequence[int], resources: Resources, data: Rollout | None, say: Callable[[str], None]
) -> Engine:
    """The engine for the source of the experience; `say` shows important messages."""
    workers = resources.workers
    if workers is not None and (data is not None or task.environment.is_compiled):
        raise UpslopeError(
            "--workers applies only to Gymnasium environments; this run is a compiled program, which distributes its "
            "seeds itself. Omit --workers."
        )
    if data is not None:
        return RecordedEngine(task, seeds, data)
    if task.environment.is_compiled:
        return CompiledEngine(task, seeds)
    if workers is not None and workers < 1:
        raise UpslopeError(f"--workers must be 1 or more, not {workers}.")
    if is_transferable(task):
        try:
            slices = num_slices(task, len(seeds), workers)
            if slices > 1:
                return HostEngine(task, seeds, SlicedColumns(task, seeds, slices, say))
            count = num_workers(task, len(seeds), workers)
            if count > 1:
                return WorkersEngine(task, seeds, count, say)
        except UpslopeError as error:
            say(f"training in one process: {error}")
    elif workers is not None and workers > 1:
        say(f"training in one process: {task.environment.name} cannot be sent to a worker process.")
    return HostEngine(task, seeds, columns_of(task, seeds, notices_to(say)), say)


def is_transferable(task: Task) -> bool:
    """Whether the task can be sent to another process: its environment was requested by name, and no part of it is
    defined in the user's script, which workers do not execute."""
    if not task.environment.is_named:
        return False
    try:
        return b"__main__" not in pickle.dumps(task)
    except Exception:  # a user's estimator or objective may fail in any way
        return False
