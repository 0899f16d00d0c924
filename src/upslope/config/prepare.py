"""Build the config and task of a new run from a user's request. Settings that have no effect are refused."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from upslope.config.config import Config, canonical, configure, flag_of
from upslope.config.presets import made_by, preset_of
from upslope.config.task import (
    AXES,
    HYPERPARAMETERS,
    Parts,
    declared,
    made_with,
    named,
    parameters,
    settings_of,
    task_of,
)
from upslope.core.estimators import Estimator, UnitWeight
from upslope.core.messages import unknown
from upslope.core.objectives import NaturalGradient, Objective
from upslope.core.space_parts import has_box
from upslope.environments.modules import name_of
from upslope.environments.registry import AnyEnvironment, EnvironmentLike, label, make
from upslope.errors import UpslopeError
from upslope.learning.bonuses.bonus import Bonus
from upslope.learning.descent import check_chain
from upslope.learning.iteration import Task
from upslope.learning.own_parts import require_schedule
from upslope.models.box_heads import BoxHead
from upslope.models.build import ModelSpec
from upslope.models.composed import has_images
from upslope.models.model import SHARED, group_places, parameters_of
from upslope.models.model import has_memory as has_carry

NOTHING: Mapping[str, Any] = {}


def prepare(
    environment: EnvironmentLike,
    algorithm: str = "ppo",
    *,
    preset: bool | str = True,
    settings: dict[str, Any],
    inherited: Mapping[str, Any] = NOTHING,
    **parts: Any,
) -> tuple[Config, Task]:
    """Return the config and task of a new run.

    `parts` are the estimator, objective, model, optimiser and schedules. Each is a name, an object or None.
    `inherited` holds the settings of the run from which the new run starts.

    Raises:
        UpslopeError: a setting is invalid or has no effect.
    """
    request: dict[str, Any] = {"preset": preset, "settings": settings, "inherited": inherited}
    config, made, asked, objects = configured(environment, algorithm, **request, **parts)
    task = task_of(config, made, objects)
    refuse_unread(asked, config, task)
    refuse_long_sequences(config, task)
    try_optimiser(task)
    return config, task


def configured(
    environment: EnvironmentLike,
    algorithm: str = "ppo",
    *,
    preset: bool | str = True,
    settings: dict[str, Any],
    inherited: Mapping[str, Any] = NOTHING,
    **parts: Any,
) -> tuple[Config, AnyEnvironment, dict[str, Any], Parts]:
    """Return the config of a new run.

    Settings come from these sources, and later ones take precedence: the defaults, the rung, the preset,
    `inherited`, the user's own parts, and `settings`.

    Also returns the environment, the requested settings by field, and the objects among the parts.
    """
    objects, names, given = parts_of(**parts)
    asked = canonical(settings) | names
    if twice := [flag_of(name) for name in given.keys() & asked.keys() if given[name] != asked[name]]:
        own = " and ".join(str(part) for part in vars(objects).values() if part)
        raise UpslopeError(f"{', '.join(twice)} differs between the settings and {own}. Remove one of the two values.")
    for role in AXES:
        if ":" in asked.get(role, ""):
            given |= declared(named(role, asked[role]))
    made = make(environment, **made_for(label(environment), {**inherited, **asked}, preset))
    options = {"is_continuous": has_box(made.action_space), "use_preset": preset}
    config = configure(label(environment), algorithm, **options, **{**inherited, **given, **asked})
    scheduled = {SCHEDULABLE[name]: given[SCHEDULABLE[name]] for name in objects.schedules}
    return config, made, asked | scheduled, objects


def made_for(environment: str, asked: Mapping[str, Any], preset: bool | str = True) -> dict[str, Any]:
    """The settings with which `make` creates an environment: those of its preset, overridden by the requested ones."""
    return made_with(canonical(made_by(preset_of(environment, "ppo", preset), asked)))


def parts_of(
    estimator: Any = None,
    objective: Any = None,
    bonus: Any = None,
    model: Callable[..., Any] | str | None = None,
    optimiser: Any = None,
    schedules: Any = None,
) -> tuple[Parts, dict[str, Any], dict[str, Any]]:
    """Separate parts given as objects from those given as names. Also return the settings that describe the objects."""
    objects: dict[str, Any] = {}
    names: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for (role, (base, example)), part in zip(OBJECTS.items(), (estimator, objective, bonus), strict=True):
        if isinstance(part, str):
            names[role] = part
        elif isinstance(part, base):
            objects[role] = part
            given |= settings_of(part)
        elif part is not None:
            raise UpslopeError(f"Pass the {role} as a name or an object, e.g. {example}, not {part!r}.")
    for role, part in (("model", model), ("optimiser", optimiser)):
        if isinstance(part, str):
            names[role] = part
        elif part is not None:
            objects[role], given[role] = part, name_of(part)
    if not isinstance(schedules, Mapping | None):
        raise UpslopeError(
            "Pass schedules as a dictionary, e.g. {'learning_rate': lambda progress: 1 - progress}, not "
            f"{schedules!r}."
        )
    for setting, own in (schedules or {}).items():
        if setting not in SCHEDULABLE:
            raise UpslopeError(unknown("scheduled setting", setting, SCHEDULABLE))
        given[SCHEDULABLE[setting]] = name_of(require_schedule(setting, own))
    return Parts(**objects, schedules=schedules or {}), names, given


OBJECTS: dict[str, tuple[type, str]] = {
    "estimator": (Estimator, "upslope.NStep(5)"),
    "objective": (Objective, "upslope.Clip(0.1)"),
    "bonus": (Bonus, "upslope.Count()"),
}
"""Role → its base class, and an example of an object."""
SCHEDULABLE = {
    "learning_rate": "learning_rate_schedule",
    "epsilon": "epsilon_schedule",
    "entropy_coefficient": "entropy_schedule",
}
"""Schedulable setting → the config field of its schedule."""


def refuse_unread(asked: Iterable[str], config: Config, task: Task) -> None:
    """Raise an error if a requested setting has no effect in this run."""
    unread = [
        f"{flag_of(name)} applies only to {reader}" for name in asked if (reader := missing_reader(name, config, task))
    ]
    if unread:
        source = "its own experience" if config.data is None else "recorded data"
        raise UpslopeError(
            f"{', and '.join(unread)}. This run has --estimator {config.estimator} and --objective {config.objective}, "
            f"learns from {source}, and takes {type(task.environment.action_space).__name__} actions. Omit settings "
            "that do not apply to it."
        )


def refuse_long_sequences(config: Config, task: Task) -> None:
    """Raise an error if gradients are to flow through more steps than an iteration has. Iterations of whole episodes
    have no fixed number of steps, so they are not checked."""
    has_fixed_steps = config.data is None and not task.estimator.whole_episodes
    if has_fixed_steps and (config.sequence_length or 1) > config.rollout_steps:
        raise UpslopeError(
            f"--sequence-length {config.sequence_length} is more than --rollout-steps {config.rollout_steps}, but "
            "gradients flow only through the steps of one iteration. Lower the former or raise the latter."
        )


def try_optimiser(task: Task) -> None:
    """Raise an error if a user's own optimiser cannot update the parameters of the model."""
    optimiser = task.update.optimiser
    if optimiser.is_complete:
        model = task.model.build(jax.random.key(0))
        for group in group_places(model):
            check_chain(optimiser, parameters_of(model, group))


def missing_reader(name: str, config: Config, task: Task) -> str:
    """Describe what would read a setting that has no effect in this run; empty if this run reads it."""
    estimator, objective, is_recorded = task.estimator, task.update.objective, config.data is not None
    if name in HYPERPARAMETERS and name != "group_size":
        is_read = name in (*parameters(estimator).values(), *parameters(objective).values())
        return "" if is_read else parts_where(lambda kind: name in parameters(kind).values())
    has_networks, is_box = task.model.own is None, task.model.head.is_continuous
    of_boxes = has_networks and is_box, "--model perceptron" if is_box else "policies with Box actions"
    is_unit = isinstance(estimator, UnitWeight)
    critics = parts_where(lambda kind: getattr(kind, "needs_critic", False))
    two = "--model perceptron without --shared-trunk"
    has_two = has_networks and not config.shared_trunk
    is_one_network, has_memory = config.shared_trunk, config.memory is not None
    if not has_networks and name in ("critic_epochs", "sequence_length", "value_coefficient"):
        is_one_network, has_memory = traits(task.model)
    # The policy takes one natural step per batch, whose length is determined by δ, so these settings apply only to the
    # critic.
    is_natural = isinstance(objective, NaturalGradient)
    optimised = not is_natural or estimator.needs_critic
    steps_often = parts_where(lambda kind: issubclass(kind, Objective) and not issubclass(kind, NaturalGradient))
    is_named = not task.update.optimiser.is_complete
    of_optimisers = f"{critics}, or {steps_often}" if is_named else "upslope's own optimisers"
    segments = parts_where(lambda kind: getattr(kind, "whole_episodes", None) is False)
    readers = {
        "critic_epochs": (
            estimator.needs_critic and not is_one_network,
            "a separate critic (a critic that shares the policy's layers uses --epochs)" if is_one_network else critics,
        ),
        "rollout_steps": (not (estimator.whole_episodes or is_recorded), f"{segments} without --data"),
        "num_envs": (not is_recorded, "runs without --data"),
        "group_size": (not is_recorded, "runs without --data"),
        "precision": (
            task.environment.is_compiled and not is_recorded and has_networks,
            "compiled environments with --model perceptron",
        ),
        "devices_per_seed": (task.environment.is_compiled and not is_recorded, "compiled environments"),
        "imitation_iterations": (is_recorded, "runs with --data"),
        "stop_at_return": (not is_recorded, "runs without --data"),
        **dict.fromkeys(
            ("bonus_coefficient", "bonus_gamma", "bonus_episodic", "bonus_kwargs"),
            (task.intrinsic is not None, "runs with --bonus"),
        ),
        **dict.fromkeys(
            ("from_seed", "fresh_normalisers", "fresh_optimiser"), (bool(config.start_from), "runs with --from")
        ),
        **dict.fromkeys(
            ("reference_seed", "reference_kl", "reference_estimator"),
            (config.reference is not None, "runs with --reference"),
        ),
        **dict.fromkeys(("head", "state_dependent_std", "log_std_init"), of_boxes),
        "noise_every": (of_boxes[0] and config.head == "gsde", "--head gsde"),
        "hidden_sizes": (has_networks, "--model perceptron"),
        "activation": (has_networks, "--model perceptron"),
        "model_kwargs": (not has_networks, "a custom --model"),
        "encoder": (
            has_networks and has_images(task.model.encoder),
            "image observations" if has_networks else "--model perceptron",
        ),
        "memory": (has_networks, "--model perceptron"),
        "shared_trunk": (has_networks, "--model perceptron"),
        "policy_reads": (has_two, two),
        "critic_reads": (has_two and estimator.needs_critic, critics if has_two else two),
        "memory_size": (has_networks and config.memory is not None, "runs with --memory"),
        "sequence_length": (has_memory, "runs with --memory, or with a custom --model that has memory"),
        "value_coefficient": (
            is_one_network,
            "runs with --shared-trunk, or with a custom --model that has one group of parameters",
        ),
        "weight_decay": (config.optimiser == "adamw", "--optimiser adamw"),
        **dict.fromkeys(
            ("learning_rate", "learning_rate_schedule", "max_grad_norm"), (is_named and optimised, of_optimisers)
        ),
        **dict.fromkeys(("optimiser", "minibatches"), (optimised, f"{critics}, or {steps_often}")),
        "epochs": (not is_natural, f"{steps_often} (the critic uses --critic-epochs)"),
        **dict.fromkeys(("target_kl", "min_effective_sample_size"), (not is_natural, steps_often)),
        "epsilon_schedule": (hasattr(objective, "epsilon"), parts_where(lambda kind: hasattr(kind, "epsilon"))),
        "entropy_schedule": (config.entropy_coefficient > 0, "runs with --entropy-coefficient above 0"),
        "value_clip": (estimator.needs_critic, critics),
        "rpo_alpha": (isinstance(task.model.head, BoxHead) and not is_natural, f"Box actions with {steps_often}"),
        "gamma": (not is_unit, "estimators of returns"),
        "normalize_rewards": (not is_unit, "estimators of returns"),
        "clip_rewards": (not is_unit, "estimators of returns"),
    }
    is_read, reader = readers.get(name, (True, ""))
    return "" if is_read else reader


def traits(model: ModelSpec) -> tuple[bool, bool]:
    """Whether a user's model has one group of parameters for policy and critic, and whether it has memory."""
    made = model.build(jax.random.key(0))
    return SHARED in group_places(made), has_carry(made)


def parts_where(holds: Callable[[Any], bool]) -> str:
    """Return the flags that select the parts of upslope for which a condition holds."""
    found = {role: [name for name, kind in known.items() if holds(kind)] for role, (_, known) in AXES.items()}
    return " or ".join(f"--{role} {', '.join(names)}" for role, names in found.items() if names)
