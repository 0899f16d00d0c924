"""What a user asks for → the config and the task of a new run, with nothing asked for in vain."""

from collections.abc import Callable, Iterable
from typing import Any

from gymnasium.spaces import Box

from upslope.config.config import Config, canonical, configure, flag_of
from upslope.config.task import HYPERPARAMETERS, PARTS, declared, named, parameters, settings_of, task_of
from upslope.core.estimators import Estimator, UnitWeight
from upslope.core.objectives import Objective
from upslope.environments.registry import AnyEnvironment, EnvironmentLike, make, name_of
from upslope.errors import UpslopeError
from upslope.learning.iteration import Task


def prepare(
    environment: EnvironmentLike,
    algorithm: str = "ppo",
    *,
    estimator: Estimator | str | None = None,
    objective: Objective | str | None = None,
    preset: bool = True,
    settings: dict[str, Any],
) -> tuple[Config, Task]:
    """The config and the task of a new run.

    Raises:
        UpslopeError: something asked for cannot be, or nothing would read it.
    """
    axes = {"estimator": estimator, "objective": objective}
    config, made, asked = configured(environment, algorithm, preset=preset, settings=settings, **axes)
    task = task_of(config, made, **{role: part for role, part in axes.items() if not isinstance(part, str)})
    refuse_unread(asked, config, task)
    return config, task


def configured(
    environment: EnvironmentLike, algorithm: str = "ppo", *, preset: bool = True, settings: dict[str, Any], **axes: Any
) -> tuple[Config, AnyEnvironment, dict[str, Any]]:
    """The config: defaults < the rung's < the preset's < an own part's < what is asked for.

    With it come the environment and what is asked for, by field.
    """
    asked, given = canonical(settings), {}
    for role, (kind, _) in PARTS.items():
        part: Any = axes.get(role)
        if isinstance(part, str):
            asked[role] = part
        elif isinstance(part, kind):
            given |= settings_of(part)
            if twice := [flag_of(name) for name in given.keys() & asked.keys() if given[name] != asked[name]]:
                raise UpslopeError(f"{', '.join(twice)} differs between the settings and {part}. Leave one out.")
        elif part is not None:
            raise UpslopeError(f"Pass an estimator or objective as an object, e.g. upslope.NStep(5), not {part!r}.")
        if ":" in asked.get(role, ""):
            given |= declared(named(role, asked[role]))
    made = make(environment, asked.get("env_kwargs"), asked.get("max_episode_steps"))
    label = environment if isinstance(environment, str) else name_of(environment)
    options = {"is_continuous": isinstance(made.action_space, Box), "use_preset": preset}
    return configure(label, algorithm, **options, **(given | asked)), made, asked


def refuse_unread(asked: Iterable[str], config: Config, task: Task) -> None:
    """Refuse settings that were asked for and that nothing in this run reads."""
    unread = [
        f"{flag_of(name)} is read only by {reader}" for name in asked if (reader := missing_reader(name, config, task))
    ]
    if unread:
        source = "its own experience" if config.data is None else "recorded data"
        raise UpslopeError(
            f"{', and '.join(unread)}. This run has --estimator {config.estimator} and --objective {config.objective}, "
            f"learns from {source}, and takes {type(task.environment.action_space).__name__} actions. Leave out what "
            "it does not read."
        )


def missing_reader(name: str, config: Config, task: Task) -> str:
    """What would read a setting that nothing in this run reads; empty where it is read."""
    estimator, objective, is_recorded = task.estimator, task.update.objective, config.data is not None
    if name in HYPERPARAMETERS:
        is_read = name in (*parameters(estimator).values(), *parameters(objective).values())
        return "" if is_read else parts_where(lambda kind: name in parameters(kind).values())
    is_unit = isinstance(estimator, UnitWeight)
    segments = parts_where(lambda kind: getattr(kind, "whole_episodes", None) is False)
    readers = {
        "critic_epochs": (estimator.needs_critic, parts_where(lambda kind: getattr(kind, "needs_critic", False))),
        "rollout_steps": (not (estimator.whole_episodes or is_recorded), f"{segments} without --data"),
        "num_envs": (not is_recorded, "runs without --data"),
        "imitation_iterations": (is_recorded, "runs with --data"),
        "log_std_init": (isinstance(task.environment.action_space, Box), "policies with Box actions"),
        "gamma": (not is_unit, "estimators of returns"),
        "normalize_rewards": (not is_unit, "estimators of returns"),
    }
    is_read, reader = readers.get(name, (True, ""))
    return "" if is_read else reader


def parts_where(holds: Callable[[Any], bool]) -> str:
    """The flags that choose one of upslope's parts for which something holds."""
    found = {role: [name for name, kind in known.items() if holds(kind)] for role, (_, known) in PARTS.items()}
    return " or ".join(f"--{role} {', '.join(names)}" for role, names in found.items() if names)
