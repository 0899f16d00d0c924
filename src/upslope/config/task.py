"""Build a task from a config and an environment, and refuse combinations that cannot work."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import jax.numpy as jnp
import optax

from upslope.config.config import Config
from upslope.config.ladder import ALGORITHMS
from upslope.core.estimators import (
    GAE,
    Baseline,
    Estimator,
    GroupMean,
    LeaveOneOut,
    NStep,
    RewardToGo,
    TotalReturn,
    UnitWeight,
    VTrace,
)
from upslope.core.messages import told
from upslope.core.objectives import (
    SPO,
    Clip,
    DualClip,
    ImportanceSampled,
    KLPenalty,
    NaturalGradient,
    Objective,
    PolicyGradient,
    TrustRegion,
)
from upslope.core.types import Rollout
from upslope.core.user_modules import reach
from upslope.environments.base import CompiledEnvironment, HostEnvironment, info_shapes
from upslope.environments.registry import AnyEnvironment, EnvironmentLike, make
from upslope.errors import UpslopeError
from upslope.learning.bonuses.bonus import Bonus
from upslope.learning.bonuses.count import Count
from upslope.learning.bonuses.icm import ICM
from upslope.learning.bonuses.noveld import NovelD
from upslope.learning.bonuses.rnd import RND
from upslope.learning.intrinsic import Intrinsic
from upslope.learning.iteration import Task, pace_of
from upslope.learning.optimisers import Optimiser, Schedule, Schedules, schedule_of
from upslope.learning.own_parts import (
    check_estimator,
    check_objective,
    check_schedules,
    require_declarations,
    require_schedule,
)
from upslope.learning.update import NEEDS_OWN_PARAMETERS, Update
from upslope.models.build import ModelSpec
from upslope.models.composed import networks_of
from upslope.models.encoders import ObservationEncoder, encoder_of
from upslope.models.head import ActionHead
from upslope.models.heads import head_of, with_policy
from upslope.models.products import FULL

ESTIMATOR_TYPES: dict[str, type[Estimator]] = {
    "total_return": TotalReturn,
    "reward_to_go": RewardToGo,
    "baseline": Baseline,
    "n_step": NStep,
    "gae": GAE,
    "vtrace": VTrace,
    "leave_one_out": LeaveOneOut,
    "group_mean": GroupMean,
    "unit": UnitWeight,
}
OBJECTIVE_TYPES: dict[str, type[Objective]] = {
    "policy_gradient": PolicyGradient,
    "importance_sampled": ImportanceSampled,
    "kl_penalty": KLPenalty,
    "clip": Clip,
    "dual_clip": DualClip,
    "spo": SPO,
    "natural_gradient": NaturalGradient,
    "trust_region": TrustRegion,
}
BONUS_TYPES: dict[str, type[Bonus]] = {"count": Count, "rnd": RND, "noveld": NovelD, "icm": ICM}
AXES: dict[str, tuple[type, dict[str, Any]]] = {
    "estimator": (Estimator, ESTIMATOR_TYPES),
    "objective": (Objective, OBJECTIVE_TYPES),
}
"""Axis → its base class, and upslope's own parts by name."""


def estimator_of(config: Config) -> Estimator:
    """The estimator that a config names."""
    return build(config, "estimator")


def objective_of(config: Config) -> Objective:
    """The objective that a config names."""
    return build(config, "objective")


def intrinsic_of(config: Config, own: Bonus | None = None) -> Intrinsic | None:
    """The bonus that a config names, or the user's own bonus, and the settings for crediting it."""
    if own is None and config.bonus == "none":
        return None
    bonus = own or bonus_of(config)
    return Intrinsic(bonus, config.bonus_coefficient, config.bonus_gamma, config.bonus_episodic)


def bonus_of(config: Config) -> Bonus:
    """The bonus that a config names, with its fields.

    Raises:
        UpslopeError: there is no such bonus, or it has no such field.
    """
    name = config.bonus
    found = BONUS_TYPES[name] if name in BONUS_TYPES else imported("bonus", name)
    known = [f.name for f in fields(found)] if is_dataclass(found) else []
    has = f"It has {', '.join(known)}." if known else "It has no fields."
    return made_from(found, config.bonus_kwargs, Bonus, f"The bonus {name}", has)


def build(config: Config, role: str) -> Any:
    """Create the part that a config names, with parameters from the config."""
    name, found = getattr(config, role), named(role, getattr(config, role))
    values = {field: getattr(config, setting) for field, setting in parameters(found).items()}
    return made_from(
        found, values, AXES[role][0], name, "Give its other fields defaults, or pass the object from Python."
    )


def made_from(found: Any, values: Mapping[str, Any], base: type, label: str, advice: str) -> Any:
    """Return an instance of the type `found`, or the object `found`, with its fields set to `values`. Error messages
    use `label` and `advice`.

    Raises:
        UpslopeError: the type does not take these values, or the object is not an instance of the base class.
    """
    try:
        made = found(**values) if isinstance(found, type) else replace(found, **values) if values else found
    except TypeError as error:
        raise UpslopeError(f"{label} cannot be created from {values}: {error}. {advice}") from error
    if not isinstance(made, base):
        raise UpslopeError(f"{label} is a {type(made).__name__}, not an upslope.{base.__name__}. Subclass it.")
    return made


def named(role: str, name: str) -> Any:
    """Return one of upslope's types by name, or the user's own type or object by `module:Name`."""
    return AXES[role][1][name] if name in AXES[role][1] else imported(role, name)


def parameters(part: Any) -> dict[str, str]:
    """Map each field of a part, or of its type, that a config sets to the config's name for that field.

    A user's own part receives, as plain numbers or strings, the hyperparameters that it declares under upslope's names.
    """
    kind = part if isinstance(part, type) else type(part)
    found = {f.name: f.name for f in fields(kind)} if is_dataclass(kind) else {}
    if issubclass(kind, KLPenalty):
        found["target"] = "beta_target"
    return {
        name: setting
        for name, setting in found.items()
        if setting in HYPERPARAMETERS and isinstance(getattr(part, name, None), int | float | str | None)
    }


OF_GROUPS = ("group_size", "divide_by_deviation", "divide_by_length", "skip_equal_groups")
HYPERPARAMETERS = (
    *("lambda_", "rho_bar", "c_bar", "n", "epsilon", "epsilon_high", "c", "beta", "beta_target"),
    *("delta", "damping", "conjugate_gradient_iterations", "backtracks", *OF_GROUPS),
)
"""Settings of estimators and objectives, which do not apply to every run."""


def declared(part: Any) -> dict[str, Any]:
    """The settings declared by an object's fields, or by a type's defaults."""
    return {setting: getattr(part, name) for name, setting in parameters(part).items() if hasattr(part, name)}


def settings_of(part: Estimator | Objective | Bonus) -> dict[str, Any]:
    """The settings that describe a Python object: its name (`module:Name` for a user's own) and its parameters."""
    role = "bonus" if isinstance(part, Bonus) else "estimator" if isinstance(part, Estimator) else "objective"
    known = BONUS_TYPES if role == "bonus" else AXES[role][1]
    own = f"{type(part).__module__}:{type(part).__qualname__}"
    found = {role: next((name for name, kind in known.items() if type(part) is kind), own)}
    if isinstance(part, Bonus):
        values = {f.name: getattr(part, f.name) for f in fields(part) if f.init} if is_dataclass(part) else {}
        plain = {name: x for name, x in values.items() if isinstance(x, str | int | float | None)}
        return found | {"bonus_kwargs": plain}
    return found | declared(part)


def imported(role: str, name: str) -> Any:
    """Import a user's own part, given its name `module:Name`.

    Raises:
        UpslopeError: the part cannot be imported.
    """
    module_name, _, attribute = name.rpartition(":")
    try:
        reach(module_name)
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:
        raise UpslopeError(
            f"The {role} {name} cannot be imported: {error}. In Python, pass the object itself; in a shell, run "
            "the command from the folder that contains the module."
        ) from error


@dataclass(frozen=True)
class Parts:
    """Objects passed from Python code, which replace the parts that the config names."""

    estimator: Estimator | None = None
    objective: Objective | None = None
    bonus: Bonus | None = None
    model: Callable[..., Any] | None = None
    optimiser: optax.GradientTransformation | None = None
    schedules: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    """`learning_rate`, `epsilon` or `entropy_coefficient` → a function from progress to a factor."""


NO_PARTS = Parts()


def environment_of(config: Config, given: EnvironmentLike | None = None) -> AnyEnvironment:
    """Create the environment that a config names, or the `given` one, with the config's settings."""
    return make(config.environment if given is None else given, **made_with(vars(config)))


def made_with(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that `make` takes in addition to the environment's name."""
    return {name: settings[name] for name in MAKING if name in settings}


MAKING = ("env_kwargs", "max_episode_steps", "wrappers", "ignore_observation", "masks")
"""Settings that `make` takes."""


def task_of(config: Config, environment: AnyEnvironment, parts: Parts = NO_PARTS) -> Task:
    """Build the task that a config describes, in the given environment."""
    estimator = parts.estimator or estimator_of(config)
    objective = parts.objective or objective_of(config)
    require_declarations(estimator)
    limit = config.max_episode_steps or environment.max_episode_steps
    check_pair(config, estimator, objective, limit)
    check_groups(config, estimator, environment)
    if environment.is_compiled:
        check_devices(config)
    update = Update(
        objective=objective,
        needs_critic=estimator.needs_critic,
        epochs=config.epochs,
        critic_epochs=config.critic_epochs or config.epochs,
        minibatches=config.minibatches,
        optimiser=optimiser_of(config, parts.optimiser),
        target_kl=config.target_kl,
        min_effective_sample_size=config.min_effective_sample_size,
        normalize_advantage=config.normalize_advantage,
        value_coefficient=config.value_coefficient,
        value_clip=config.value_clip,
        rpo_alpha=config.rpo_alpha,
        sequence_length=config.sequence_length,
        reference_kl=None if config.reference is None else config.reference_kl,
        reference_estimator=config.reference_estimator,
    )
    if config.data is None:  # with recorded data, sizes are known only after the data have been read
        steps = (limit or 1) if estimator.whole_episodes else config.rollout_steps
        longer = "raise --num-envs" if estimator.whole_episodes else "raise --rollout-steps"
        update.check_minibatches(steps, config.num_envs, has_memory=config.memory is not None, longer=longer)
    refuse_missing_info(config, environment)
    encoder = encoder_of(environment.observation_space, config.environment)
    check_precision(config, objective, encoder)
    head = head_of(environment.action_space, config.environment)
    task = Task(
        environment=environment,
        estimator=estimator,
        update=update,
        model=model_of(config, encoder, head, parts.model),
        normalize_observations=config.normalize_observations,
        normalize_rewards=config.normalize_rewards,
        gamma=config.gamma,
        steps=config.steps,
        num_envs=config.num_envs if config.data is None else 0,
        rollout_steps=config.rollout_steps,
        max_episode_steps=limit,
        learning_rate=config.learning_rate,
        entropy_coefficient=config.entropy_coefficient,
        imitation_iterations=config.imitation_iterations,
        schedules=schedules_of(config, parts.schedules),
        clip_rewards=config.clip_rewards,
        log_info=config.log_info,
        group_size=size_of_groups(config, estimator),
        intrinsic=intrinsic_of(config, parts.bonus),
        precision=config.precision,
        devices_per_seed=config.devices_per_seed,
    )
    if config.data is None:
        check_own_parts(task, task.rollout_like())
    return task


def check_own_parts(task: Task, rollout: Rollout) -> None:
    """Trace the user's own estimator, schedules and objective once, so that mistakes are reported before training.

    `rollout` has the shapes and dtypes of the rollouts in training. An own bonus and model are checked when they are
    created."""
    check_estimator(task.estimator, rollout, task.gamma)
    check_schedules(task.schedules)
    size = max(1, rollout.reward.size // task.update.minibatches)
    check_objective(task.update.objective, lambda progress: pace_of(task, progress, jnp.int32(0)).objective, size)


def refuse_missing_info(config: Config, environment: AnyEnvironment) -> None:
    """Raise an error if a compiled environment does not report a key of --log-info.

    The keys of other environments are known only at the end of an episode."""
    if not config.log_info or not isinstance(environment, CompiledEnvironment):
        return
    known = info_shapes(environment)
    if missing := [key for key in config.log_info if key not in known]:
        has = f"It has {', '.join(known)}" if known else "It has no such numbers"
        raise UpslopeError(
            f"--log-info {' '.join(missing)} is not reported by {config.environment} at an episode's end. "
            f"{has}: a compiled environment returns them in the dictionary from its method episode_info(state)."
        )


def model_of(
    config: Config, encoder: ObservationEncoder, head: ActionHead, own: Callable[..., Any] | None = None
) -> ModelSpec:
    """Return the specification of a config's model for these spaces."""
    if own is None and config.model == "perceptron":
        settings = {name: getattr(config, name) for name in OF_NETWORKS} | {"encoders": config.encoder}
        chosen = {name: getattr(config, name) for name in ("log_std_init", "hidden_sizes", "noise_every")}
        chosen |= {"kind": config.head, "state_std": config.state_dependent_std}
        acts = with_policy(head, config.environment, **chosen)
        return ModelSpec(encoder, acts, settings)
    return ModelSpec(encoder, head, dict(config.model_kwargs), own or imported("model", config.model))


OF_NETWORKS = (
    *("hidden_sizes", "activation", "log_std_init", "memory", "memory_size", "shared_trunk"),
    *("policy_reads", "critic_reads"),
)
"""Settings of upslope's own networks."""


def optimiser_of(config: Config, own: optax.GradientTransformation | None = None) -> Optimiser:
    """The optimiser that a config names, or the user's own optimiser."""
    if own is None and ":" in config.optimiser:
        found = imported("optimiser", config.optimiser)
        try:
            own = found if isinstance(found, optax.GradientTransformation) else found()
        except TypeError as error:
            is_of_optax = isinstance(found, type) and issubclass(found, optax.GradientTransformation)
            words = (
                "The optimiser of this run was passed as an object, which a file cannot describe"
                if is_of_optax
                else f"The optimiser {config.optimiser} cannot be created without arguments: {told(error)}"
            )
            raise UpslopeError(f"{words}. Pass the object from Python: optimiser=optax.…") from error
    if own is not None and not isinstance(own, optax.GradientTransformation):
        call = " Call it, and pass the result, e.g. optimiser=optax.adam(1e-3)." if callable(own) else ""
        raise UpslopeError(
            f"A custom optimiser must be an optax.GradientTransformation, not {type(own).__name__}.{call}"
        )
    return Optimiser(config.optimiser, config.max_grad_norm, config.weight_decay, own)


def schedules_of(config: Config, own: Mapping[str, Callable[[Any], Any]]) -> Schedules:
    """The schedules that a config names, or the user's own schedules."""
    names = {"learning_rate": "learning_rate", "epsilon": "epsilon", "entropy_coefficient": "entropy"}

    def one(field_name: str, prefix: str) -> Schedule | None:
        name = getattr(config, f"{prefix}_schedule")
        if field_name in own or ":" not in name:
            return schedule_of(own.get(field_name, name))
        return require_schedule(field_name, imported("schedule", name))

    return Schedules(**{field_name: one(field_name, prefix) for field_name, prefix in names.items()})


def check_pair(config: Config, estimator: Estimator, objective: Objective, limit: int | None) -> None:
    """Raise an error that gives the reason and the remedy if this combination cannot work."""
    if config.shared_trunk and isinstance(objective, NaturalGradient):
        raise UpslopeError(NEEDS_OWN_PARAMETERS.format(type(objective).__name__))
    name, is_recorded = type(estimator).__name__, config.data is not None
    if ALGORITHMS[config.algorithm].source == "recorded" and not is_recorded:
        raise UpslopeError(
            f"{config.algorithm} learns from recorded episodes, but none were given. Record some with `upslope record "
            "RUN --episodes 100`, then pass the file with --data."
        )
    if is_recorded and config.bonus != "none":
        raise UpslopeError(
            f"--bonus {config.bonus} rewards an agent for the states that it visits, but with --data it does not "
            "act. Omit one of the two."
        )
    if estimator.whole_episodes and not is_recorded and limit is None:
        raise UpslopeError(
            f'{name} needs whole episodes, but "{config.environment}" has no step limit: R_t is known only when an '
            "episode ends. Use --estimator gae, or set --max-episode-steps."
        )
    if not estimator.is_advantage and config.normalize_advantage:
        raise UpslopeError(
            f"{name} gives every action the same weight, and centring makes it 0, so nothing would be learned. "
            "Add --no-normalize-advantage."
        )
    if not estimator.is_advantage and not is_recorded:
        raise UpslopeError(
            f"{name} imitates the policy that acted, and an agent learns nothing from imitating itself: E[∇log π] = 0. "
            "Pass recorded episodes with --data, or use --estimator gae."
        )
    if is_recorded and estimator.corrects and objective.needs_behaviour:
        raise UpslopeError(
            f"{name} already weights recorded actions by π/μ, and {type(objective).__name__} would do so again. Use "
            "--objective policy_gradient, or --estimator gae."
        )
    if is_recorded and estimator.is_advantage and not (objective.needs_behaviour or estimator.corrects):
        raise UpslopeError(
            f"{type(objective).__name__} weights recorded actions as if the learner had taken them, which gives the "
            "gradient of another policy's return. Use --objective importance_sampled (or clip, kl_penalty), or "
            "--algorithm clone to imitate."
        )


def check_groups(config: Config, estimator: Estimator, environment: AnyEnvironment) -> None:
    """Raise an error if the episodes of a group cannot begin with the same reset."""
    name, size = type(estimator).__name__, size_of_groups(config, estimator)
    if config.data is not None and hasattr(estimator, "group_size"):
        raise UpslopeError(
            f"{name} compares episodes that share their start, but a recorded file does not show which ones do. Use "
            "--estimator baseline, which needs no groups."
        )
    if size == 1 or config.data is not None:
        return
    if not estimator.whole_episodes:
        raise UpslopeError(
            f"--group-size {size} makes whole episodes start with the same reset, but {name} learns from segments of "
            f"{config.rollout_steps} steps. Use --estimator leave_one_out, group_mean, baseline, reward_to_go or "
            "total_return, or omit --group-size."
        )
    if config.num_envs % size:
        fitting = max(size, config.num_envs - config.num_envs % size)
        raise UpslopeError(
            f"--num-envs {config.num_envs} cannot be divided into groups of --group-size {size}. Use --num-envs "
            f"{fitting}, or another multiple of {size}."
        )
    if isinstance(environment, HostEnvironment) and environment.batch is not None:
        raise UpslopeError(
            f"{config.environment} starts its own episodes, so those of a group cannot share a reset seed. "
            "Train on the single environments instead of the batched ones, or omit --group-size."
        )


def check_devices(config: Config) -> None:
    """Raise an error if the environments cannot be divided evenly among the devices of a seed."""
    count = config.devices_per_seed
    if config.num_envs % count:
        fitting = max(count, config.num_envs - config.num_envs % count)
        raise UpslopeError(
            f"--num-envs {config.num_envs} cannot be split evenly over --devices-per-seed {count}. Use --num-envs "
            f"{fitting}, or another multiple of {count}."
        )


def check_precision(config: Config, objective: Objective, encoder: ObservationEncoder) -> None:
    """Raise an error for 16-bit products if the model contains products other than those of perceptron layers, or if
    16-bit products would be used to solve equations."""
    if config.precision == FULL or config.model != "perceptron":
        return
    others = {
        f"--memory {config.memory} uses other matrix products": config.memory is not None,
        "images are read by convolutions": bool(networks_of(encoder, config.encoder)),
        f"{type(objective).__name__} solves equations with them": isinstance(objective, NaturalGradient),
    }
    if reasons := [reason for reason, holds in others.items() if holds]:
        raise UpslopeError(
            f"--precision {config.precision} rounds the products of perceptrons, but {' and '.join(reasons)}. Omit "
            "--precision."
        )


def size_of_groups(config: Config, estimator: Estimator) -> int:
    """G, from the estimator if it defines one, otherwise from the config."""
    return getattr(estimator, "group_size", config.group_size)
