"""Select the engine that trains a task: a compiled program, one process, or several workers on this machine or a
cluster."""

import pickle
from collections.abc import Callable, Sequence

from upslope.core.types import Rollout
from upslope.engines.base import Engine, Placement, Resources
from upslope.engines.compiled import CompiledEngine, RecordedEngine
from upslope.engines.host import HostEngine, columns_of
from upslope.engines.notices import notices_to
from upslope.engines.slices import SlicedColumns, Slicing, slicing_of
from upslope.engines.stored_programs import StoredPrograms
from upslope.engines.workers import WorkersEngine, num_workers
from upslope.errors import UpslopeError
from upslope.learning.iteration import Task


def engine_of(
    task: Task,
    seeds: Sequence[int],
    resources: Resources,
    data: Rollout | None,
    say: Callable[[str], None],
    stored: StoredPrograms | None = None,
) -> Engine:
    """Create the engine for the run's source of experience; `say` shows important messages."""
    workers = resources.workers
    if workers is not None and workers < 1:
        raise UpslopeError(f"--workers must be 1 or more, not {workers}.")
    if resources.cluster is not None:
        return engine_on_cluster(task, seeds, workers, resources.cluster, data, say)
    if workers is not None and (data is not None or task.environment.is_compiled):
        raise UpslopeError(
            "--workers applies only to Gymnasium environments; this run is a compiled program, which distributes its "
            "seeds itself. Omit --workers."
        )
    if data is not None:
        return RecordedEngine(task, seeds, data)
    if task.environment.is_compiled:
        return CompiledEngine(task, seeds, stored=stored)
    if is_transferable(task):
        try:
            slicing = slicing_of(task, len(seeds), workers)
            if slicing.slices > 1:
                return HostEngine(task, seeds, SlicedColumns(task, seeds, slicing, say), say)
            count = num_workers(task, len(seeds), workers)
            if count > 1:
                return WorkersEngine(task, seeds, count, say)
        except UpslopeError as error:
            say(f"training in one process: {error}")
    elif workers is not None and workers > 1:
        say(f"training in one process: {task.environment.name} cannot be sent to a worker process.")
    return HostEngine(task, seeds, columns_of(task, seeds, notices_to(say)), say)


def engine_on_cluster(
    task: Task,
    seeds: Sequence[int],
    workers: int | None,
    placement: Placement,
    data: Rollout | None,
    say: Callable[[str], None],
) -> Engine:
    """Create the engine whose workers are actors on a cluster."""
    from upslope.engines.cluster import connect  # Ray is an optional dependency

    if data is not None:
        raise UpslopeError("A run that learns from recorded data trains on the machine with the data. Omit --cluster.")
    if not is_transferable(task):
        raise UpslopeError(
            "The environment or a part of it cannot be sent to a cluster, since a node could not import "
            "it. Define it in a module, refer to it as module:Name, and send the module with "
            "--py-module. Or omit --cluster."
        )
    if task.devices_per_seed > placement.worker_devices:
        raise UpslopeError(
            f"--devices-per-seed {task.devices_per_seed} splits each seed over that many devices of one worker, but a "
            f"worker has {placement.worker_devices}. Set --worker-cpus {task.devices_per_seed}, or --worker-gpus "
            f"{task.devices_per_seed} if nodes have accelerators."
        )
    cluster = connect(placement)
    cluster.require(task, task.environment)
    capacity = cluster.capacity()
    most = capacity if workers is None else min(workers, capacity)
    requested = None if workers is None else most
    slicing = Slicing() if task.environment.is_compiled else slicing_of(task, len(seeds), requested, capacity)
    count = slicing.slices if slicing.slices > 1 else min(len(seeds), most)
    say(cluster.words(count))
    if slicing.slices > 1:
        return HostEngine(task, seeds, SlicedColumns(task, seeds, slicing, say, cluster.start_worker))

    def has_room() -> int:
        return min(cluster.room(task, task.environment, say), (workers or len(seeds)) - count)

    return WorkersEngine(task, seeds, count, say, cluster.start_worker, has_room)


def is_transferable(task: Task) -> bool:
    """Return whether the task can be sent to another process.

    Its environment must have been given by name, and no part of the task may be defined in the user's script, which
    workers do not execute."""
    if not (task.environment.is_compiled or task.environment.is_named):
        return False
    try:
        return b"__main__" not in pickle.dumps(task)
    except Exception:  # pickling a user's estimator or objective may fail in any way
        return False
