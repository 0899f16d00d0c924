"""One frozen dataclass: default = flag = help = config.json."""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal, get_type_hints

import tyro
import yaml

from upslope.config.coercion import coerce
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
    """All that decides what is learned. Two equal configs give the same run, bit for bit, on one machine."""

    environment: Annotated[Positional[str], tyro.conf.arg(metavar="ENVIRONMENT")]
    """A Gymnasium id (`CartPole-v1`), `module:Id`, or a compiled world (`jax:CartPole-v1`)."""
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
    """How many seeds to train at once. 5 give an interval, 10 a good one."""
    seed: int = 0
    """The first seed; the others follow it."""
    num_envs: int = 8
    """N, environments per seed. Usual: 1 to 64; thousands on accelerators."""
    rollout_steps: int = 128
    """T, steps per environment and iteration, for estimators that need no whole episodes. Usual: 5 to 2048."""
    max_episode_steps: int | None = None
    """Truncate episodes after so many steps; by default at the environment's own limit."""
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
    """n of n_step. Usual: 1 to 20."""
    epsilon: float = 0.2
    """ε of clip: the ratio earns nothing outside [1−ε, 1+ε]. Usual: 0.1 to 0.3."""
    epsilon_schedule: str = "constant"
    """How ε changes over the budget: constant, linear, or cosine."""
    beta: float = 1.0
    """β of kl_penalty, at the start. Usual: 0.3 to 10."""
    beta_target: float | None = 0.01
    """KL in nats per iteration that β adapts to; None keeps β fixed. Usual: 0.003 to 0.03."""
    epochs: int = 4
    """Passes over each batch for the policy. Usual: 1 for policy_gradient, 3 to 20 for ppo."""
    critic_epochs: int | None = None
    """Passes over each batch for the critic; by default as many as for the policy. Usual: 1 to 80."""
    imitation_iterations: int = 0
    """With recorded data: at the start, so many iterations only imitate the recorded actions while the critic learns to
    judge them, so that importance weights begin near 1. Usual: 5 to 20 for off_policy."""
    minibatches: int = 4
    """Minibatches per epoch. Usual: so many that one holds 32 to 4096 samples."""
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
    this: there the data no longer tell about the policy. Usual: 0.3 to 0.7 for recorded data."""
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
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for the environment, values that JSON can hold."""
    wrappers: Annotated[tuple[str, ...], tyro.conf.arg(name="wrapper"), tyro.conf.UseAppendAction] = ()
    """A wrapper to put around the environment, repeatable, the innermost first: one of Gymnasium's by its name, or
    module:Name; arguments as JSON after a colon, e.g. 'FrameStackObservation:{"stack_size": 4}'."""
    preset: Annotated[str | None, tyro.conf.Suppress] = None
    """Where the environment's tuned settings came from; set by upslope."""

    def seed_list(self) -> list[int]:
        """The seeds of this run."""
        return list(range(self.seed, self.seed + self.seeds))

    def to_json(self) -> dict[str, Any]:
        """A dictionary of all fields in strict JSON, which knows no infinity: it is written as text."""
        finite = {} if math.isfinite(self.max_grad_norm) else {"max_grad_norm": repr(self.max_grad_norm)}
        return asdict(self) | finite

    def __post_init__(self) -> None:
        check_ranges(self)


SCHEDULED = ("learning_rate_schedule", "epsilon_schedule", "entropy_schedule")
POSITIVE = (
    "steps",
    "seeds",
    "num_envs",
    "rollout_steps",
    "n",
    "epochs",
    "minibatches",
    "learning_rate",
    "max_grad_norm",
)
"""Fields that must be greater than zero."""
MAX_STEPS, MAX_WIDTH, MAX_LAYERS = 2**31, 2**16, 256
MOST = {"seeds": 2**16, "num_envs": 2**24, "rollout_steps": 2**24, "minibatches": 2**24}
"""What no machine could hold in memory is refused before anything is allocated."""
FRESH_SEEDS = 2000
"""Evaluation can draw so many sets of episodes, all different from those of training."""


def positive(**counts: int | None) -> None:
    """Refuse counts below 1, each by the name of its flag; None was left to a default."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UpslopeError(f"--{name.replace('_', '-')} must be 1 or more, not {count}.")


def fresh(**seeds: int) -> None:
    """Refuse numbers of fresh episodes beyond those set aside for them, each by the name of its flag."""
    for name, seed in seeds.items():
        if not 0 <= seed < FRESH_SEEDS:
            raise UpslopeError(f"--{name.replace('_', '-')} must be from 0 to {FRESH_SEEDS - 1}, not {seed}.")


def check_ranges(config: Config) -> None:
    """Refuse values that cannot be, each with its reason."""
    for name, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value) and (name, value) != ("max_grad_norm", math.inf):
            raise UpslopeError(f"--{name.replace('_', '-')} must be a finite number, not {value}.")
    for name in POSITIVE:
        value = getattr(config, name)
        if not value > 0:
            raise UpslopeError(f"--{name.replace('_', '-')} must be greater than 0, not {value}.")
    for name, most in MOST.items():
        if getattr(config, name) > most:
            raise UpslopeError(
                f"--{name.replace('_', '-')} can be at most {most:,}, not {reprlib.repr(getattr(config, name))}."
            )
    for name in ("max_episode_steps", "critic_epochs", "sequence_length", "target_kl", "min_effective_sample_size"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise UpslopeError(
                f"--{name.replace('_', '-')} must be greater than 0, not {value}; leave it out for none."
            )
    share = config.min_effective_sample_size
    if share is not None and share > 1:
        raise UpslopeError(f"--min-effective-sample-size is a share of the batch, from 0 to 1, not {share}.")
    if config.seed < 0 or config.seed + config.seeds > 2**31:
        raise UpslopeError(f"--seed must be between 0 and 2³¹ − seeds, not {config.seed}.")
    if config.steps > MAX_STEPS:
        raise UpslopeError(f"--steps can be at most {MAX_STEPS:,}, not {config.steps:,}: they are counted in 32 bits.")
    if not 0 <= config.gamma <= 1:
        raise UpslopeError(f"--gamma must be in [0, 1], not {config.gamma}: it is a discount per step.")
    for name in ("entropy_coefficient", "imitation_iterations", "beta", "weight_decay", "value_coefficient"):
        if getattr(config, name) < 0:
            raise UpslopeError(f"--{name.replace('_', '-')} must be 0 or more, not {getattr(config, name)}.")
    if not config.hidden_sizes or min(config.hidden_sizes) < 1:
        raise UpslopeError(f"--hidden-sizes needs positive widths, e.g. 64 64, not {config.hidden_sizes}.")
    if max(config.hidden_sizes) > MAX_WIDTH or len(config.hidden_sizes) > MAX_LAYERS:
        raise UpslopeError(
            f"--hidden-sizes can have at most {MAX_LAYERS} layers of {MAX_WIDTH:,}, not "
            f"{reprlib.repr(config.hidden_sizes)}."
        )
    if config.algorithm not in ALGORITHMS:
        raise UpslopeError(unknown("algorithm", config.algorithm, ALGORITHMS))
    for name in SCHEDULED:
        if getattr(config, name) not in SCHEDULES and ":" not in getattr(config, name):
            raise UpslopeError(unknown("schedule", getattr(config, name), SCHEDULES))
    if config.optimiser not in DIRECTIONS and ":" not in config.optimiser:
        raise UpslopeError(unknown("optimiser", config.optimiser, DIRECTIONS))
    for role, known in (("estimator", ESTIMATORS), ("objective", OBJECTIVES), ("model", MODELS)):
        value = getattr(config, role)
        if value not in known and ":" not in value:
            raise UpslopeError(unknown(role, value, known))


@cache
def presets() -> dict[str, Any]:
    """Tuned settings by environment id, from published sources."""
    return yaml.safe_load(resources.files("upslope.config").joinpath("presets.yaml").read_text("utf-8"))


def preset_of(environment: str, algorithm: str) -> dict[str, Any] | None:
    """The preset of an environment for a rung; a compiled world without one of its own has its Gymnasium twin's."""
    if algorithm not in ("ppo", "ppo_kl", "ppo_kl_fixed"):
        return None
    return presets().get(environment) or presets().get(environment.removeprefix("jax:"))


def configure(
    environment: str,
    algorithm: str = "ppo",
    *,
    is_continuous: bool,
    use_preset: bool = True,
    **overrides: Any,
) -> Config:
    """The config of a run: the action space's defaults < the rung's < the preset's < yours."""
    if algorithm not in ALGORITHMS:
        raise UpslopeError(unknown("algorithm", algorithm, ALGORITHMS))
    rung = ALGORITHMS[algorithm]
    settings: dict[str, Any] = dict(CONTINUOUS_DEFAULTS if is_continuous else DISCRETE_DEFAULTS)
    settings |= {"estimator": rung.estimator, "objective": rung.objective} | dict(rung.settings)
    preset = preset_of(environment, algorithm) if use_preset else None
    if preset is not None:
        settings |= canonical(preset["settings"]) | {"preset": preset["source"]}
    settings |= canonical(overrides)
    return Config(environment=environment, algorithm=algorithm, **settings)


def canonical(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by field name: `learning-rate` and `lambda` are accepted too, and lists become tuples."""
    kinds = get_type_hints(Config)
    result = {}
    for name, value in settings.items():
        key = str(name).replace("-", "_")
        key = "lambda_" if key == "lambda" else key
        if key == "learning_rate_decay" and isinstance(value, bool):  # what older runs and presets call it
            key, value = "learning_rate_schedule", "linear" if value else "constant"
        if key not in kinds:
            raise UpslopeError(unknown("setting", str(name), kinds))
        result[key] = coerce(str(name), value, kinds[key])
    return result
