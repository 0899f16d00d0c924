"""What users call: train, resume, and the rest of the public interface gathered in one place."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optax

from upslope.config.prepare import parts_of, prepare
from upslope.config.task import environment_of, task_of
from upslope.config.trust import require
from upslope.core.estimators import Estimator
from upslope.core.objectives import Objective
from upslope.diagnosis.doctor import Watch
from upslope.engines.base import Resources
from upslope.environments.registry import EnvironmentLike
from upslope.errors import UpslopeError
from upslope.runs.directory import RunDirectory, check_name, free_name, versions
from upslope.runs.display import Display, choose
from upslope.runs.train import Run, Session, begin, go_on


def train(
    environment: EnvironmentLike,
    algorithm: str = "ppo",
    *,
    estimator: Estimator | str | None = None,
    objective: Objective | str | None = None,
    model: Callable[..., Any] | str | None = None,
    optimiser: optax.GradientTransformation | str | None = None,
    schedules: Mapping[str, Callable[[Any], Any]] | None = None,
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
        environment: a Gymnasium id, `module:Id`, `jax:Name`, your own class or factory as `module:Name`, a callable
            that returns an environment, or a `CompiledEnvironment`.
        algorithm: a rung of the ladder; see `upslope list`.
        estimator: axis 1 instead of the rung's: a name, or any `Estimator`.
        objective: axis 2 instead of the rung's: a name, or any `Objective`.
        model: your own model's class or factory, model(observation_space, action_space, *, key, **model_kwargs), or
            its name `module:Name`; see `upslope.Model`.
        optimiser: `adam`, `adamw`, `rmsprop`, `sgd`, or any Optax chain, which is complete: its updates are added as
            they are, and `learning_rate` and `max_grad_norm` are not read.
        schedules: own schedules by the name of the setting (`learning_rate`, `epsilon`, `entropy_coefficient`): from
            the share of the budget that is spent, 0 to 1, to a factor.
        name: of the run; by default made from environment and algorithm. An existing one is refused.
        preset: the environment's tuned settings: True for its default preset where it has one, False for none, or the
            name of one, e.g. "paper".
        workers: processes among which the seeds of a Gymnasium environment are shared out; by default one a core, where
            the run is long enough to repay starting them. The result does not depend on it.
        settings: any field of `Config`, e.g. `steps=100_000, seeds=5, lambda_=0.9`.

    Raises:
        UpslopeError: something asked for cannot be, or nothing reads a setting; nothing trained is lost.
        KeyboardInterrupt: Ctrl-C, after everything is saved.
    """
    if name is not None:
        check_name(name)
    config, task = prepare(
        environment,
        algorithm,
        estimator=estimator,
        objective=objective,
        model=model,
        optimiser=optimiser,
        schedules=schedules,
        preset=preset,
        settings=settings,
    )
    directory = run_directory(folder, name, f"{config.environment}-{config.algorithm}")
    return begin(config, task, directory, session_of(quiet, tensorboard, workers))


def session_of(quiet: bool, tensorboard: bool, workers: int | None, display: Display | None = None) -> Session:
    """A training session watched by the doctor."""
    return Session(display or choose(quiet), Resources(workers), tensorboard, Watch)


def run_directory(folder: str | Path, name: str | None, label: str) -> RunDirectory:
    """`folder/name`, or a free name made of the label."""
    if name is not None:
        check_name(name)
    return RunDirectory(Path(folder) / name if name is not None else free_name(Path(folder), label))


def resume(
    run: str | Path,
    *,
    environment: EnvironmentLike | None = None,
    estimator: Estimator | None = None,
    objective: Objective | None = None,
    model: Callable[..., Any] | None = None,
    optimiser: optax.GradientTransformation | None = None,
    schedules: Mapping[str, Callable[[Any], Any]] | None = None,
    quiet: bool = False,
    tensorboard: bool = False,
    workers: int | None = None,
    display: Display | None = None,
    trust: bool = False,
) -> Run:
    """Go on with a run that was stopped. The result is the one that the uninterrupted run would have had.

    `environment`, `estimator`, `objective`, `model`, `optimiser` and `schedules` are needed only where the run was
    started with objects that cannot be found again by their name. Compiled environments continue bit for bit; on the
    host, episodes in progress are replayed, and where the environment does not repeat itself a message says so.

    `trust` allows the code that the run's config.json names, as a run of another machine may need; what is passed here,
    registered Gymnasium ids and upslope's own names need none, and neither does a run that this machine trained.

    Raises:
        UpslopeError: no such run, a damaged checkpoint, another version, objects other than the run's, or code of the
            run's own that is not trusted.
    """
    directory = RunDirectory(run)
    description, config = directory.read(), directory.config()
    parts, _, named = parts_of(estimator, objective, model, optimiser, schedules)
    given = {*named, *({"environment"} if environment is not None else ())}
    require(config, directory.path, trust=trust, given=given)
    task = task_of(config, environment_of(config, environment), parts)
    if task.described() != description["axes"]:
        raise UpslopeError(
            f"{run} was trained with {description['axes']}, and this would go on with {task.described()}. Pass the "
            "same estimator and objective to upslope.resume."
        )
    changed = {k: (v, versions()[k]) for k, v in description["versions"].items() if versions().get(k) != v}
    words = ", ".join(f"{name} {old} → {new}" for name, (old, new) in changed.items())
    notes = [f"versions changed since it was started, so the bits may differ: {words}"] if changed else []
    return go_on(config, task, directory, session_of(quiet, tensorboard, workers, display), notes)
