"""Train the bank of runs for `benchmarks/doctor.py`. It has many runs but needs only a few compiled programs.

Short runs spend most of their time compiling. The numbers that a fault or a variant changes (learning rate, γ, entropy
coefficient, planted values) are therefore arguments of the compiled program, and runs that differ only in these numbers
share a program.
"""

import dataclasses
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
from doctor_faults import BASE, CONFIRM_HEALTHY, FAULTS, FIRST_SEED, FRESH_HEALTHY, HEALTHY, Fault, Healthy, world_of
from doctor_planting import SOUND, Now, PlantedClip, PlantedGAE, broken_rollout

import upslope
from upslope.engines import selection as choose
from upslope.engines.compiled import CompiledEngine
from upslope.engines.flat import Layout, on_flat
from upslope.engines.host import HostEngine, move_with, weigh_apart
from upslope.learning import iteration
from upslope.learning.iteration import QUICK, Task, iterate_many, learn

PARTS = ("calibrate", "test", "fresh", "confirm")
COMMON: dict[str, Any] = {"seeds": 5, "quiet": True}
PROGRAMS: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of the bank."""

    part: str
    name: str
    cause: str
    arguments: dict[str, Any]
    fault: Fault | None = None
    world: str = ""


def jobs() -> Iterator[Job]:
    """Yield every run of the bank."""
    for fault in FAULTS:
        for part in PARTS:
            for world in fault.worlds_of(part):
                settings = {**BASE[world], **fault.settings_in(part, world)}
                arguments = {"algorithm": fault.algorithm, "preset": False, **seeds_of(part), **settings}
                yield Job(part, f"{fault.name} in {world}", fault.cause, arguments, fault, world)
    for number, run in enumerate(HEALTHY):
        yield healthy(PARTS[number % 2], number, run)
    for part, runs in (("fresh", FRESH_HEALTHY), ("confirm", CONFIRM_HEALTHY)):
        for number, run in enumerate(runs):
            yield healthy(part, number, run)


def seeds_of(part: str) -> dict[str, int]:
    """Return the setting for a part's first seed, or no setting if the default applies."""
    return {"seed": FIRST_SEED[part]} if part in FIRST_SEED else {}


def healthy(part: str, number: int, run: Healthy) -> Job:
    """Return the job of a healthy run."""
    own = {} if run.preset else BASE.get(run.world, {})
    if run.algorithm not in ("ppo", "ppo_kl", "ppo_kl_fixed"):
        own = {"steps": own["steps"]} | ({"gamma": 0.95} if "Pendulum" in run.world else {})
    arguments = {"algorithm": run.algorithm, "preset": run.preset, **seeds_of(part), **own, **run.settings}
    return Job(part, f"healthy {number} {run.algorithm} in {run.world}", "healthy", arguments, None, run.world)


def place(bank: Path, job: Job) -> Path:
    """Return the run directory of a job."""
    return bank / job.part / job.name.replace(":", "-").replace("/", "-").replace(" ", "_")


def train(bank: Path, at_most: int, parts: tuple[str, ...] = PARTS) -> int:
    """Train the missing runs, one environment at a time so that programs are shared, and return how many were trained.

    The limit `at_most` is needed because compiled programs hold memory maps, and the number of maps per process is
    limited.
    """
    missing = [job for job in jobs() if job.part in parts and not (place(bank, job) / "done").exists()]
    missing.sort(key=lambda job: (-job.world.find(":"), job.world, job.arguments["algorithm"], job.fault is None))
    with (
        patch.object(choose, "CompiledEngine", Shared),
        patch.object(choose, "HostEngine", SharedHost),
        patch.object(iteration, "collect", collect),
    ):
        for job in missing[:at_most]:
            path = place(bank, job)
            train_one(job, path)
            (path / "done").touch()
            print(job.part, job.name, flush=True)
    return len(missing[:at_most])


def train_one(job: Job, path: Path) -> None:
    """Train one run. If the library raises an error, print the error and keep the partial run."""
    if path.exists():
        path.rename(path.with_name(f".{path.name}.cut.{len(list(path.parent.iterdir()))}"))
    arguments = dict(job.arguments)
    slower = arguments.pop("slower", None)
    planted = job.fault.plant_in(job.part) if job.fault else {}
    Now.plant = SOUND | {"epsilon": 0.2, "rate_factor": slower or 1.0} | planted
    environment: Any = job.world
    if job.fault is not None and job.fault.algorithm == "ppo":
        arguments |= {"estimator": PlantedGAE(), "objective": PlantedClip()}
    if job.fault is not None:
        environment = world_of(job.fault, job.world)
    try:
        upslope.train(environment, folder=path.parent, name=path.name, workers=None, **COMMON, **arguments)
    except upslope.UpslopeError as error:
        print(f"{job.name}: {error}", flush=True)
    path.mkdir(parents=True, exist_ok=True)


real_collect = iteration.collect


def collect(world: Any, *arguments: Any, **options: Any) -> Any:
    """Call the library's `collect`, and plant the run's fault in the rollout, if it has one."""
    columns, rollout, finished = real_collect(world, *arguments, **options)
    return columns, broken_rollout(rollout) if hasattr(world, "unlimited") else rollout, finished


def numbers_of(task: Task) -> dict[str, Any]:
    """Return the numbers of a task that are passed to its program as arguments."""
    rate = task.learning_rate * Now.plant["rate_factor"]
    own = {"learning_rate": rate, "gamma": task.gamma, "entropy_coefficient": task.entropy_coefficient}
    return {name: jnp.float32(x) for name, x in (own | Now.plant).items()}


def with_numbers(task: Task, numbers: dict[str, Any]) -> Task:
    """Return the task with these numbers in its settings. Planted values are read from `Now` instead."""
    own = {name: numbers[name] for name in ("learning_rate", "gamma", "entropy_coefficient")}
    return dataclasses.replace(task, **own)


class Planting:
    """A context in which `Now` holds a program's traced numbers. It takes a lock, since several threads may trace
    programs."""

    lock = threading.RLock()

    def __init__(self, numbers: dict[str, Any]):
        self.numbers = numbers

    def __enter__(self) -> None:
        self.lock.acquire()
        self.before, Now.plant = Now.plant, self.numbers

    def __exit__(self, *_: object) -> None:
        Now.plant = self.before
        self.lock.release()


def key_of(task: Task, *more: Any) -> str:
    """Return a key for everything that a program depends on, apart from its numbers."""
    return repr((with_numbers(task, dict.fromkeys(("learning_rate", "gamma", "entropy_coefficient"), 0.0)), more))


class Shared(CompiledEngine):
    """A compiled engine that keeps its program for later runs with the same structure."""

    def __init__(self, task: Task, seeds: Any, **_: Any):
        super().__init__(task, seeds)
        world = task.environment
        # The engine passes this attribute to its program as an argument; it normally holds the rollout of recorded
        # data.
        self.data = numbers_of(task)  # type: ignore[assignment]  # numbers instead of a rollout
        self.key = key_of(task, self.iterations, len(seeds), type(getattr(world, "inner", world)), type(world))
        if self.key in PROGRAMS:
            self.programs, self.split_state, self.join_state = PROGRAMS[self.key]
            self.is_compiled = True
            for program in self.programs:
                program.data = jax.device_put(self.data, program.replicated)

    def one_seed(self, task: Task, data: Any, state: Any) -> Any:
        with Planting(data):
            return iterate_many(with_numbers(task, data), state, self.iterations)

    def advance(self, state: Any, *more: Any) -> Any:
        answer = super().advance(state, *more)
        PROGRAMS[self.key] = self.programs, self.split_state, self.join_state
        return answer


class SharedHost(HostEngine):
    """Like `Shared`, but for the host engine, which has separate programs for learning and acting."""

    def __init__(self, task: Task, seeds: Any, columns: Any, *more: Any):
        super().__init__(task, seeds, columns, *more)
        self.is_planted, self.numbers = isinstance(task.estimator, PlantedGAE), numbers_of(task)
        self.shared = PROGRAMS.setdefault(key_of(task, "host", self.is_planted, self.iterations, len(seeds)), {})
        self.act = self.shared.setdefault("act", self.act)
        self.keys = self.shared.setdefault("keys", self.keys)
        self.split, self.stack = self.shared.setdefault("states", (self.split, self.stack))

    def learning(self, layout: Layout) -> Any:
        task, is_planted = self.task, self.is_planted

        def learn_one(numbers: Any, flat: Any, rollout: Any, key: Any) -> Any:
            def weigh_planted(state: Any, rollout: Any) -> Any:
                return weigh_apart(
                    with_numbers(task, numbers), state, broken_rollout(rollout) if is_planted else rollout
                )

            with Planting(numbers):
                both = partial(learn, weigh_planted, partial(move_with, with_numbers(task, numbers)))
                return on_flat(both, layout)(flat, rollout, key)

        if "learn" not in self.shared:
            self.shared["learn"] = jax.jit(learn_one, compiler_options=QUICK)
        return partial(self.shared["learn"], self.numbers)
