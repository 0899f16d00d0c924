"""The Python interface of training: `train` and `resume`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optax

from upslope.config.config import Config
from upslope.config.prepare import parts_of, prepare
from upslope.config.task import environment_of, task_of
from upslope.config.trust import require
from upslope.core.estimators import Estimator
from upslope.core.files import AnyPath
from upslope.core.objectives import Objective
from upslope.diagnosis.doctor import Watch
from upslope.engines.base import Placement, resources_of
from upslope.environments.registry import EnvironmentLike
from upslope.errors import UpslopeError
from upslope.learning.bonuses.bonus import Bonus
from upslope.runs.directory import RunDirectory, check_name, free_name, versions
from upslope.runs.display import Display, choose
from upslope.runs.following import Following
from upslope.runs.lineage import request_from
from upslope.runs.same_settings import require_same_settings
from upslope.runs.train import Run, Session, begin, resume_run


def train(
    environment: EnvironmentLike | None = None,
    algorithm: str | None = None,
    *,
    start_from: str | Path | Run | None = None,
    estimator: Estimator | str | None = None,
    objective: Objective | str | None = None,
    bonus: Bonus | str | None = None,
    model: Callable[..., Any] | str | None = None,
    optimiser: optax.GradientTransformation | str | None = None,
    schedules: Mapping[str, Callable[[Any], Any]] | None = None,
    name: str | None = None,
    folder: str | Path = "runs",
    preset: bool | str = True,
    quiet: bool = False,
    track: str | Sequence[str] = (),
    track_project: str | None = None,
    workers: int | None = None,
    cluster: str | Placement | None = None,
    on_iteration: Callable[[Following], Any] | None = None,
    trust: bool = False,
    **settings: Any,
) -> Run:
    """Train an agent and write the run directory `folder/name`.

    Args:
        environment: a Gymnasium id, `module:Id`, `jax:Name`, your own class or factory as `module:Name`, a callable
            that returns an environment, or a `CompiledEnvironment`. With `start_from`, the default is the environment
            of that run.
        algorithm: a rung of the ladder; see `upslope list`. The default is `ppo`, or the algorithm of the run in
            `start_from`.
        start_from: a run whose agent, normalisers and optimiser state the new run starts with: a `Run`, its directory,
            or "RUN@best" for its best checkpoint. Omitted settings are then taken from that run, except that a
            different algorithm uses its own defaults. `from_seed`, `fresh_normalisers` and `fresh_optimiser` adjust
            what is inherited.
        estimator: the estimator (axis 1) that replaces the rung's: a name, or any `Estimator`.
        objective: the objective (axis 2) that replaces the rung's: a name, or any `Objective`.
        bonus: exploration bonus: `none`, `count`, `rnd`, `noveld`, `icm`, or any `Bonus`.
        model: your own model's class or factory, model(observation_space, action_space, *, key, **model_kwargs), or
            its name `module:Name`; see `upslope.Model`.
        optimiser: `adam`, `adamw`, `rmsprop`, `sgd`, or any complete Optax chain. The updates of a chain are applied
            unchanged, and `learning_rate` and `max_grad_norm` are not used.
        schedules: your own schedules, keyed by setting name (`learning_rate`, `epsilon`, `entropy_coefficient`). A
            schedule is a function that maps the fraction of the budget spent so far, from 0 to 1, to a factor.
        name: the name of the run; by default, it is derived from the environment and algorithm. A name that already
            exists is refused.
        preset: the environment's tuned settings: True for its default preset if it has one, False for none, or a
            preset's name, e.g. "paper".
        track: one or more experiment trackers that receive the run during training: `wandb`, `trackio`, `mlflow`,
            `tensorboard` or your own `module:Name`. Each tracker runs in its own process, so a tracker that fails or
            hangs does not affect the run; see `upslope.track`.
        track_project: the trackers' project (MLflow: experiment); by default the one in their own configuration.
        workers: the number of processes that share the seeds of a Gymnasium environment; by default, one per core if
            the run is long enough to justify starting them. Results do not depend on this number.
        cluster: where the workers run (extra `ray`): the address of a Ray cluster, "auto" for the cluster running on
            this machine or, if there is none, this machine alone, or an `upslope.Placement`, which also sets each
            worker's resources. Results do not depend on where workers run.
        on_iteration: a function called between chunks with the state of the run (`upslope.Following`). It can read the
            newest metrics, call methods of the environments, or stop the run. If it raises an exception, the run is
            saved first.
        trust: allow the code named in the config.json of the run in `start_from`.
        settings: any field of `Config`, e.g. `steps=100_000, seeds=5, lambda_=0.9`.

    Raises:
        UpslopeError: a setting is invalid or has no effect, or training failed. The last checkpoint is kept.
        KeyboardInterrupt: Ctrl-C was pressed. The run is saved first.
    """
    if name is not None:
        check_name(name)
    if isinstance(settings.get("reference"), Run):
        settings["reference"] = str(settings["reference"].path)
    parts = {
        "estimator": estimator,
        "objective": objective,
        "bonus": bonus,
        "model": model,
        "optimiser": optimiser,
        "schedules": schedules,
    }
    if start_from is not None:
        settings["start_from"] = str(start_from.path if isinstance(start_from, Run) else start_from)
        given = {role for role, part in parts.items() if part is not None}
        request = request_from(environment, algorithm, settings, preset=preset, parts=given, trust=trust)
    elif environment is None:
        raise UpslopeError('No environment was given. Pass one, e.g. upslope.train("CartPole-v1").')
    else:
        request = {"environment": environment, "algorithm": algorithm or Config.algorithm}
        request |= {"preset": preset, "settings": settings}
    config, task = prepare(**request, **parts)
    directory = run_directory(folder, name, f"{config.environment}-{config.algorithm}")
    return begin(
        config,
        task,
        directory,
        session_of(quiet, workers, track, track_project, on_iteration=on_iteration, cluster=cluster),
    )


def session_of(
    quiet: bool,
    workers: int | None,
    track: str | Sequence[str] = (),
    track_project: str | None = None,
    display: Display | None = None,
    on_iteration: Callable[[Following], Any] | None = None,
    cluster: str | Placement | None = None,
) -> Session:
    """Create a training session that is monitored by the doctor."""
    if on_iteration is not None and not callable(on_iteration):
        raise UpslopeError(f"on_iteration must be a function of the run's state, not {on_iteration!r:.60}.")
    trackers = (track,) if isinstance(track, str) else tuple(track)
    return Session(
        display or choose(quiet), resources_of(workers, cluster), Watch, trackers, track_project, on_iteration
    )


def run_directory(folder: str | Path, name: str | None, label: str) -> RunDirectory:
    """Return the run directory `folder/name`. Without a name, use an unused name based on the label."""
    if name is not None:
        check_name(name)
    return RunDirectory(Path(folder) / name if name is not None else free_name(Path(folder), label))


def resume(
    run: AnyPath,
    *,
    environment: EnvironmentLike | None = None,
    estimator: Estimator | None = None,
    objective: Objective | None = None,
    bonus: Bonus | None = None,
    model: Callable[..., Any] | None = None,
    optimiser: optax.GradientTransformation | None = None,
    schedules: Mapping[str, Callable[[Any], Any]] | None = None,
    quiet: bool = False,
    track: str | Sequence[str] = (),
    track_project: str | None = None,
    workers: int | None = None,
    cluster: str | Placement | None = None,
    display: Display | None = None,
    on_iteration: Callable[[Following], Any] | None = None,
    trust: bool = False,
) -> Run:
    """Resume a stopped run. The result is the same as if the run had not been interrupted.

    `environment`, `estimator`, `objective`, `bonus`, `model`, `optimiser` and `schedules` are needed only if the run
    was started with objects that cannot be imported by name. Compiled environments continue bit for bit. On the host,
    episodes in progress are replayed, and a message is shown if the replay of an environment diverges.

    `track` and `track_project` work as in `train`. A tracker that has already received part of the run continues it.

    `on_iteration` is not stored with a run, so pass it again. The environment calls that it made earlier are stored and
    repeated.

    `trust` allows the code named in the run's config.json, which a run from another machine may need. Objects passed
    here, registered Gymnasium ids, upslope's own names and runs trained on this machine need no trust.

    Raises:
        UpslopeError: the run does not exist, its checkpoint is damaged or was written by another version, the objects
            differ from those of the run, or the run names code that is not trusted.
    """
    directory = RunDirectory(run)
    description, config = directory.read(), directory.config()
    parts, _, named = parts_of(estimator, objective, bonus, model, optimiser, schedules)
    given = {*named, *({"environment"} if environment is not None else ())}
    require(config, directory.path, trust=trust, given=given)
    require_same_settings(directory, config)
    task = task_of(config, environment_of(config, environment), parts)
    if task.described() != description["axes"]:
        raise UpslopeError(
            f"{directory.path} was trained with {description['axes']}, but would continue with {task.described()}. "
            "Pass the same estimator and objective to upslope.resume."
        )
    now = versions(config.environment)
    changed = {k: (v, now.get(k, "none")) for k, v in description["versions"].items() if now.get(k) != v}
    words = ", ".join(f"{name} {old} → {new}" for name, (old, new) in changed.items())
    notes = (
        [f"versions changed since the run started, so results may differ in the last bits: {words}"] if changed else []
    )
    session = session_of(quiet, workers, track, track_project, display, on_iteration, cluster)
    return resume_run(config, task, directory, session, notes, trust=trust)
