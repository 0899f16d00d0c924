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
    config, world, asked = configured(environment, algorithm, preset=preset, settings=settings, **axes)
    task = task_of(config, world, **{role: part for role, part in axes.items() if not isinstance(part, str)})
    refuse_unread(asked, config, task)
    return config, task


def configured(
    environment: EnvironmentLike, algorithm: str = "ppo", *, preset: bool = True, settings: dict[str, Any], **axes: Any
) -> tuple[Config, AnyEnvironment, dict[str, Any]]:
    """The config: defaults < the rung's < the preset's < an own part's < what is asked for; with it, the environment
    and what is asked for, by field."""
    asked, given = canonical(settings), {}
    for role, (kind, _) in PARTS.items():
        part = axes.get(role)
        if isinstance(part, str):
            asked[role] = part
        elif isinstance(part, kind):
            given |= settings_of(part)
            refuse_twice(asked, given, part)
        elif part is not None:
            raise UpslopeError(f"Pass an estimator or objective as an object, e.g. upslope.NStep(5), not {part!r}.")
        if ":" in asked.get(role, ""):
            given |= declared(named(role, asked[role]))
    world = make(environment, asked.get("env_kwargs"), asked.get("max_episode_steps"))
    label = environment if isinstance(environment, str) else name_of(environment)
    is_continuous = isinstance(world.action_space, Box)
    return (
        configure(label, algorithm, is_continuous=is_continuous, use_preset=preset, **(given | asked)),
        world,
        asked,
    )


def refuse_twice(asked: dict[str, Any], given: dict[str, Any], part: Any) -> None:
    """Refuse a setting that an object has already, with another value."""
    for name in asked.keys() & given.keys():
        if asked[name] != given[name]:
            raise UpslopeError(f"{name} is given twice: {asked[name]}, and {given[name]} by {part}. Leave one out.")


def refuse_unread(asked: Iterable[str], config: Config, task: Task) -> None:
    """Refuse settings that were asked for and that nothing in this run reads."""
    readers = {name: reader for name in asked if (reader := missing_reader(name, config, task))}
    if readers:
        flags = ", and ".join(f"{flag_of(name)} is read by {reader} only" for name, reader in readers.items())
        source = "its own experience" if config.data is None else "recorded data"
        raise UpslopeError(
            f"{flags}. This run has --estimator {config.estimator} and --objective {config.objective}, learns from "
            f"{source}, and takes {type(task.environment.action_space).__name__} actions. Leave out what it does not "
            "read."
        )


def missing_reader(name: str, config: Config, task: Task) -> str:
    """Who reads a setting, where this run has nobody who does; empty where it is read."""
    estimator, objective, is_recorded = task.estimator, task.update.objective, config.data is not None
    if name in HYPERPARAMETERS:
        is_read = name in (*parameters(estimator).values(), *parameters(objective).values())
        return "" if is_read else parts_where(lambda kind: name in parameters(kind).values())
    is_unit = isinstance(estimator, UnitWeight)
    conditions: dict[str, tuple[bool, str]] = {
        "critic_epochs": (estimator.needs_critic, parts_where(lambda kind: getattr(kind, "needs_critic", False))),
        "rollout_steps": (
            not (estimator.whole_episodes or is_recorded),
            f"{parts_where(lambda kind: not getattr(kind, 'whole_episodes', True))} without --data",
        ),
        "num_envs": (not is_recorded, "runs without --data"),
        "imitation_iterations": (is_recorded, "runs with --data"),
        "log_std_init": (isinstance(task.environment.action_space, Box), "policies of Box actions"),
        "gamma": (not is_unit, "estimators of returns"),
        "normalize_rewards": (not is_unit, "estimators of returns"),
    }
    is_read, reader = conditions.get(name, (True, ""))
    return "" if is_read else reader


def parts_where(is_so: Callable[[Any], bool]) -> str:
    """The flags that choose one of upslope's parts with a property."""
    found = {role: [name for name, kind in known.items() if is_so(kind)] for role, (_, known) in PARTS.items()}
    return " or ".join(f"--{role} {', '.join(names)}" for role, names in found.items() if names)
