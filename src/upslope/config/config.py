"""One frozen dataclass: default = flag = help = config.json."""

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from upslope.config.coercion import coerce
from upslope.config.foreign_names import foreign_setting, known_algorithm, table
from upslope.config.ladder import (
    ALGORITHMS,
    CONTINUOUS_DEFAULTS,
    DIRECTIONS,
    DISCRETE_DEFAULTS,
    ESTIMATORS,
    MODELS,
    OBJECTIVES,
    SCHEDULES,
)
from upslope.core.messages import unknown
from upslope.errors import UpslopeError

Positional = tyro.conf.Positional


@dataclass(frozen=True)
class Config:
    """Everything that decides what is learned. Two equal configs give the same run, bit for bit, on one machine."""

    environment: Annotated[Positional[str], tyro.conf.arg(metavar="ENVIRONMENT", help_behavior_hint="")]
    """A Gymnasium id (`CartPole-v1`), `module:Id`, or a compiled environment (`jax:CartPole-v1`)."""
    algorithm: str = "ppo"
    """The rung of the ladder; `upslope list` shows them."""
    estimator: str = "gae"
    """Axis 1, the weight Ψ of an action: total_return, reward_to_go, baseline, n_step, gae, unit, or module:Name."""
    objective: str = "clip"
    """Axis 2, how the policy moves: policy_gradient, importance_sampled, kl_penalty, clip, or module:Name."""
    data: str | None = None
    """Learn from this recorded file instead of acting (off_policy, clone)."""
    steps: int = 500_000
    """Environment steps per seed. With recorded data: recorded steps read."""
    seeds: int = 1
    """Number of seeds to train at once. 5 give an interval, 10 a good one."""
    seed: int = 0
    """The first seed; the others follow it."""
    num_envs: int = 8
    """N, environments per seed. Usual: 1 to 64; thousands on accelerators."""
    rollout_steps: int = 128
    """T, steps per environment and iteration, for estimators that do not need whole episodes. Usual: 5 to 2048."""
    max_episode_steps: int | None = None
    """Steps after which an episode is truncated; by default the environment's own limit."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for the environment, as JSON, e.g. '{"g": 9.81}'."""
    wrappers: Annotated[tuple[str, ...], tyro.conf.arg(name="wrapper"), tyro.conf.UseAppendAction] = ()
    """A wrapper to put around the environment, repeatable, the innermost first: one of Gymnasium's by its name, or
    module:Name; arguments as JSON after a colon, e.g. 'FrameStackObservation:{"stack_size": 4}'."""
    masks: bool = True
    """Take only actions that the environment allows, where it says so by an action mask."""
    ignore_observation: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY"), tyro.conf.UseAppendAction] = ()
    """A part of the observations that is left out, by its key, repeatable: a key inside another one is outer/inner, and
    parts of a Tuple are counted from 0."""
    learning_rate: float = 2.5e-4
    """Adam's step size. Usual: 1e-5 to 1e-2."""
    learning_rate_schedule: str = "linear"
    """How the learning rate falls to 0 over the budget: constant, linear, or cosine."""
    optimiser: str = "adam"
    """The direction of a gradient: adam, adamw, rmsprop, or sgd."""
    weight_decay: float = 0.0
    """Of adamw: the share of each parameter, times the learning rate, that a step takes away. Usual: 0 to 0.1."""
    gamma: float = 0.99
    """γ, discount per step: rewards 1/(1−γ) steps away still count. Usual: 0.9 to 0.9999."""
    lambda_: Annotated[float, tyro.conf.arg(name="lambda")] = 0.95
    """λ of GAE: 0 trusts the critic alone, 1 the sampled return alone. Usual: 0.9 to 0.98."""
    n: int = 5
    """n of n_step, the steps before the critic is asked. Usual: 1 to 20."""
    epsilon: float = 0.2
    """ε of clip: the ratio earns nothing outside [1−ε, 1+ε]. Usual: 0.1 to 0.3."""
    epsilon_schedule: str = "constant"
    """How ε changes over the budget: constant, linear, or cosine."""
    beta: float = 1.0
    """Initial β of kl_penalty. Usual: 0.3 to 10."""
    beta_target: float | None = 0.01
    """KL in nats per iteration that β adapts to; none keeps β fixed. Usual: 0.003 to 0.03."""
    epochs: int = 4
    """Passes over each batch for the policy. Usual: 1 for policy_gradient, 3 to 20 for ppo."""
    critic_epochs: int | None = None
    """Passes over each batch for the critic; by default as many as for the policy. Usual: 1 to 80."""
    imitation_iterations: int = 0
    """With recorded data: iterations at the start that only imitate the recorded actions while the critic learns to
    judge them, so that importance weights begin near 1. Usual: 5 to 20 for off_policy."""
    minibatches: int = 4
    """Number of minibatches per epoch. Usual: minibatches of 32 to 4096 samples."""
    entropy_coefficient: float = 0.01
    """Weight of the entropy bonus. Usual: 0 for continuous, 0 to 0.02 for discrete actions."""
    entropy_schedule: str = "constant"
    """How the entropy bonus changes over the budget: constant, linear, or cosine."""
    max_grad_norm: float = 0.5
    """Clip the global norm of each network's gradient. Usual: 0.5 to 5."""
    target_kl: float | None = None
    """End an update's policy epochs early once a minibatch's KL exceeds this. Usual: 0.01 to 0.05."""
    min_effective_sample_size: float | None = None
    """End an update's policy epochs early once the share of a minibatch that still counts, (Σρ)²/(n Σρ²), falls below
    this: beyond that the data say little about the policy. Usual: 0.3 to 0.7 for recorded data."""
    normalize_advantage: bool = True
    """Centre and scale the weights Ψ of each batch."""
    normalize_observations: bool = False
    """Scale observations by their running mean and standard deviation, kept in the agent."""
    normalize_rewards: bool = False
    """Scale rewards by the running standard deviation of the discounted return, kept in the agent."""
    model: str = "perceptron"
    """What acts and judges: perceptron, two networks as the next flags say, or your own by module:Name."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of your own model, values that JSON can hold."""
    sequence_length: int | None = None
    """L, steps in a row through which the gradient of a model with memory flows; by default the whole rollout."""
    value_coefficient: float = 0.5
    """Weight of the critic's loss where policy and critic share parameters. Usual: 0.25 to 1."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, of policy and critic each."""
    activation: Literal["tanh", "relu", "silu"] = "tanh"
    """Activation of the hidden layers."""
    log_std_init: float = 0.0
    """Initial log σ of a Gaussian policy, in units of half the action range. Usual: −2 to 0."""
    preset: Annotated[str | None, tyro.conf.Suppress] = None
    """Where the environment's tuned settings came from; set by upslope."""

    def seed_list(self) -> list[int]:
        """The seeds of this run."""
        return list(range(self.seed, self.seed + self.seeds))

    def to_json(self) -> dict[str, Any]:
        """A dictionary of all fields in strict JSON, where infinity is written as text."""
        finite = {} if math.isfinite(self.max_grad_norm) else {"max_grad_norm": repr(self.max_grad_norm)}
        return asdict(self) | finite

    def __post_init__(self) -> None:
        check_ranges(self)


PARTS_BY_NAME: dict[str, Mapping[str, Any]] = {
    "estimator": ESTIMATORS,
    "objective": OBJECTIVES,
    "model": MODELS,
    "optimiser": DIRECTIONS,
    **dict.fromkeys(("learning_rate_schedule", "epsilon_schedule", "entropy_schedule"), SCHEDULES),
}
"""Field → upslope's own parts by name; `module:Name` is the user's own."""
MAX_STEPS, MAX_WIDTH, MAX_LAYERS = 2**31, 2**16, 256
DEFAULT_PRESET = "default"
"""The name of the preset that is used where none is asked for."""
FRESH_SEEDS = 2000
"""Sets of episodes that evaluation can draw, all different from those of training."""
LIMITS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        ("steps", "seeds", "num_envs", "rollout_steps", "n", "epochs", "minibatches", "learning_rate", "max_grad_norm"),
        ("greater than 0", lambda x: x > 0),
    ),
    **dict.fromkeys(
        ("max_episode_steps", "critic_epochs", "sequence_length", "target_kl"),
        ("greater than 0, or left out", lambda x: x is None or x > 0),
    ),
    **dict.fromkeys(
        ("entropy_coefficient", "imitation_iterations", "beta", "weight_decay", "value_coefficient"),
        ("0 or more", lambda x: x >= 0),
    ),
    "gamma": ("in [0, 1]", lambda x: 0 <= x <= 1),
    "min_effective_sample_size": ("a share of the batch, from 0 to 1", lambda x: x is None or 0 < x <= 1),
    "hidden_sizes": (
        f"1 to {MAX_LAYERS} widths of 1 to {MAX_WIDTH:,}, e.g. 64 64",
        lambda x: 1 <= len(x) <= MAX_LAYERS and min(x) >= 1 and max(x) <= MAX_WIDTH,
    ),
}
"""Field → what it must be, in words and as a rule."""
MOST = {"steps": MAX_STEPS, "seeds": 2**16, "num_envs": 2**24, "rollout_steps": 2**24, "minibatches": 2**24}
"""Steps are counted in 32 bits; what no machine could hold in memory is refused before anything is allocated."""


def flag_of(name: str) -> str:
    """The flag that sets a field."""
    return f"--{name.rstrip('_').replace('_', '-')}"


def positive(**counts: int | None) -> None:
    """Refuse counts below 1, each by the name of its flag; None was left to a default."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UpslopeError(f"{flag_of(name)} must be 1 or more, not {count}.")


def fresh(**seeds: int) -> None:
    """Refuse seeds of evaluation episodes beyond those set aside for them, each by the name of its flag."""
    for name, seed in seeds.items():
        if not 0 <= seed < FRESH_SEEDS:
            raise UpslopeError(f"{flag_of(name)} must be from 0 to {FRESH_SEEDS - 1}, not {seed}.")


def check_ranges(config: Config) -> None:
    """Refuse values that cannot be, each by the name of its flag."""
    for name, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value) and (name, value) != ("max_grad_norm", math.inf):
            raise UpslopeError(f"{flag_of(name)} must be a finite number, not {value}.")
        limit, is_within = LIMITS.get(name, ("", lambda _: True))
        if not is_within(value):
            raise UpslopeError(f"{flag_of(name)} must be {limit}, not {reprlib.repr(value)}.")
        if name in MOST and value > MOST[name]:
            raise UpslopeError(f"{flag_of(name)} can be at most {MOST[name]:,}, not {reprlib.repr(value)}.")
    if config.seed < 0 or config.seed + config.seeds > 2**31:
        raise UpslopeError(f"--seed must be between 0 and 2³¹ − seeds, not {config.seed}.")
    known_algorithm(config.algorithm)
    for role, known in PARTS_BY_NAME.items():
        value = getattr(config, role)
        if value not in known and ":" not in value:
            raise UpslopeError(unknown(role, value, known))


def presets() -> dict[str, Any]:
    """Tuned settings by environment id: a row is the default preset, and `others` holds further ones by name."""
    return table("presets.yaml")


def presets_of(environment: str, algorithm: str) -> dict[str, Any]:
    """The presets of an environment for a rung by name, "default" first; a compiled environment without a row of its
    own has its Gymnasium twin's."""
    if algorithm not in ("ppo", "ppo_kl", "ppo_kl_fixed"):
        return {}
    row = presets().get(environment) or presets().get(environment.removeprefix("jax:")) or {}
    return {DEFAULT_PRESET: row} | row.get("others", {}) if row else {}


def preset_of(environment: str, algorithm: str, wanted: bool | str = True) -> dict[str, Any] | None:
    """The preset wanted: True is the default one where there is any, False is none, and a name is the preset of that
    name, which is refused where there is none."""
    if wanted is False:
        return None
    known = presets_of(environment, algorithm)
    if wanted is True:
        return known.get(DEFAULT_PRESET)
    if wanted not in known:
        names = f"Known: {', '.join(known)}." if known else "It has none; leave --preset out."
        raise UpslopeError(f'There is no preset "{wanted}" for {algorithm} on {environment}. {names}')
    return known[wanted]


def recorded_preset(config: Config) -> tuple[str, dict[str, Any]] | None:
    """The name and the row of the preset that a config was made with, found by its source."""
    rows = presets_of(config.environment, config.algorithm).items()
    return next(((name, row) for name, row in rows if row["source"] == config.preset), None)


def configure(
    environment: str,
    algorithm: str = "ppo",
    *,
    is_continuous: bool,
    use_preset: bool | str = True,
    **overrides: Any,
) -> Config:
    """The config of a run: the action space's defaults < the rung's < the preset's < yours."""
    rung = ALGORITHMS[known_algorithm(algorithm)]
    settings: dict[str, Any] = dict(CONTINUOUS_DEFAULTS if is_continuous else DISCRETE_DEFAULTS)
    settings |= {"estimator": rung.estimator, "objective": rung.objective} | dict(rung.settings)
    preset = preset_of(environment, algorithm, use_preset)
    if preset is not None:
        settings |= canonical(preset["settings"]) | {"preset": preset["source"]}
    settings |= canonical(overrides)
    return Config(environment=environment, algorithm=algorithm, **settings)


def canonical(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by field name: `learning-rate` and `lambda` are accepted too, and lists become tuples."""
    kinds = get_type_hints(Config)
    result = {}
    for name, value in settings.items():
        key = "lambda_" if name == "lambda" else str(name).replace("-", "_")
        if key == "learning_rate_decay" and isinstance(value, bool):  # what older runs and presets call it
            key, value = "learning_rate_schedule", "linear" if value else "constant"
        if key not in kinds:
            raise UpslopeError(
                foreign_setting(str(name)) or unknown("setting", str(name), kinds, "upslope train --help")
            )
        result[key] = coerce(str(name), value, kinds[key])
    return result
