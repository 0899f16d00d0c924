"""All settings, in one frozen dataclass that defines the defaults, flags, help texts and config.json."""

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, get_type_hints

import tyro

from upslope.config.coercion import coerce
from upslope.config.foreign_names import foreign_setting, known_algorithm
from upslope.config.ladder import (
    ALGORITHMS,
    BONUSES,
    CONTINUOUS_DEFAULTS,
    DIRECTIONS,
    DISCRETE_DEFAULTS,
    ESTIMATORS,
    MODELS,
    OBJECTIVES,
    SCHEDULES,
)
from upslope.config.presets import made_by, preset_of, presets_of
from upslope.core.fields import require_field_types
from upslope.core.messages import unknown
from upslope.core.numbers import MAX_COUNT
from upslope.errors import UpslopeError

Positional = tyro.conf.Positional


@dataclass(frozen=True)
class Config:
    """All settings that determine what is learned. Equal configs give the same run, bit for bit, on one machine."""

    environment: Annotated[Positional[str], tyro.conf.arg(metavar="ENVIRONMENT", help_behavior_hint="")]
    """A Gymnasium id (`CartPole-v1`), `module:Id`, a compiled environment (`jax:CartPole-v1`), or a batched one
    (`vector:CartPole-v1`)."""
    algorithm: str = "ppo"
    """The rung of the ladder of algorithms; `upslope list` shows all rungs."""
    estimator: str = "gae"
    """The estimator (axis 1), i.e. the weight Ψ of an action: total_return, reward_to_go, baseline, n_step, gae,
    vtrace, leave_one_out, group_mean, unit, or module:Name."""
    objective: str = "clip"
    """The objective (axis 2), i.e. how the policy moves: policy_gradient, importance_sampled, kl_penalty, clip,
    dual_clip, spo, natural_gradient, trust_region, or module:Name."""
    data: str | None = None
    """Learn from this file of recorded episodes, or from minari:NAME, instead of acting (off_policy, clone)."""
    steps: int = 500_000
    """Environment steps per seed. With recorded data, the number of recorded steps to read."""
    seeds: int = 1
    """Number of seeds to train together. 5 seeds give a confidence interval, 10 a reliable one."""
    seed: int = 0
    """The first seed. The other seeds are the integers after it."""
    stop_at_return: float | None = None
    """Stop a seed once the mean return of its last 100 training episodes is at least this; the other seeds continue."""
    start_from: Annotated[str | None, tyro.conf.arg(name="from", metavar="RUN")] = None
    """Start from the agent of another run, with its normalisers and optimiser state: RUN, or RUN@best for its best
    checkpoint. Omitted settings, including the environment, are then taken from that run."""
    from_seed: int | None = None
    """The seed of that run from which every seed starts; by default seed k starts from that run's seed k."""
    fresh_normalisers: bool = False
    """Restart the normalisers' statistics, because another environment may have different scales."""
    fresh_optimiser: bool = False
    """Start with a fresh optimiser state (momentum and scales)."""
    num_envs: int = 8
    """N, the number of environments per seed. Usual: 1 to 64, or thousands on accelerators."""
    devices_per_seed: int = 1
    """Number of devices (cores or accelerators) over which the environments of each seed are split, for wide networks
    and thousands of compiled environments. The minibatches stay the same, but sums are rounded differently."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the operands in perceptron layers: full 32 bits, or rounded to the 16 bits of bfloat16, which
    accelerators multiply faster. Sums, parameters and all other numbers keep 32 bits."""
    group_size: int = 1
    """G, the number of environments in a group. They share the reset seed of every episode, so that leave_one_out and
    group_mean can compare their returns. For estimators of whole episodes. Usual: 4 to 64."""
    rollout_steps: int = 128
    """T, the number of steps per environment per iteration, for estimators that do not need whole episodes. Usual: 5 to
    2048."""
    max_episode_steps: int | None = None
    """Steps after which an episode is truncated; by default the environment's own limit."""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for the environment, as JSON, e.g. '{"g": 9.81}'."""
    wrappers: Annotated[tuple[str, ...], tyro.conf.arg(name="wrapper"), tyro.conf.UseAppendAction] = ()
    """A wrapper for the environment; repeatable, innermost first. It is the name of a Gymnasium wrapper, or
    module:Name, with arguments as JSON after a colon, e.g. 'FrameStackObservation:{"stack_size": 4}'."""
    masks: bool = True
    """Take only allowed actions if the environment provides action masks."""
    ignore_observation: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY"), tyro.conf.UseAppendAction] = ()
    """Key of a part of the observations to ignore; repeatable. A nested key is written outer/inner. Parts of a Tuple
    and components of a vector are counted from 0."""
    log_info: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY")] = ()
    """Keys of numbers in `info` at an episode's end, e.g. is_success, to log with every episode. A nested key is
    written outer.inner."""
    learning_rate: float = 2.5e-4
    """Step size of the optimiser. Usual: 1e-5 to 1e-2."""
    learning_rate_schedule: str = "linear"
    """How the learning rate changes over the budget: constant, or falling to 0 (linear or cosine)."""
    optimiser: str = "adam"
    """Optimiser that turns gradients into updates: adam, adamw, rmsprop, or sgd."""
    weight_decay: float = 0.0
    """Weight decay of adamw: each step subtracts the product of this, the learning rate and the parameter. Usual: 0 to
    0.1."""
    gamma: float = 0.99
    """γ, the discount per step. Rewards up to about 1/(1−γ) steps away count. Usual: 0.9 to 0.9999."""
    lambda_: Annotated[float, tyro.conf.arg(name="lambda")] = 0.95
    """λ of gae and vtrace: 0 relies mostly on the critic, 1 on the sampled returns. Usual: 0.9 to 0.98."""
    rho_bar: float = 1.0
    """ρ̄ of vtrace, at which the ratio π/μ is truncated in weights and TD errors. Usual: 1."""
    c_bar: float = 1.0
    """c̄ of vtrace, at which the ratio π/μ is truncated in the traces. Usual: 1."""
    n: int = 5
    """n of n_step, the number of steps before bootstrapping from the critic. Usual: 1 to 20."""
    divide_by_deviation: bool = False
    """Divide the weights of group_mean by the standard deviation of the group's returns, as GRPO does."""
    divide_by_length: Literal["none", "episode", "batch"] = "none"
    """Divide the sum over an episode's steps by its length (episode, as in GRPO), by the total length of all
    episodes (batch, as in DAPO), or not at all (none, as in RLOO and Dr. GRPO)."""
    skip_equal_groups: bool = False
    """Exclude groups whose returns are all equal from the mean of group_mean, as DAPO does."""
    epsilon: float = 0.2
    """ε of clip, dual_clip and spo: moving the ratio outside [1−ε, 1+ε] gains nothing. Usual: 0.1 to 0.3."""
    c: float = 3.0
    """c of dual_clip: an action with negative weight costs at most c times that weight, however probable it is. Usual:
    3."""
    epsilon_high: float | None = None
    """ε of clip above 1, if it differs from ε below 1. The ratio is then clipped to [1−ε, 1+ε high]. Usual: 0.2 to
    0.3."""
    epsilon_schedule: str = "constant"
    """How ε changes over the budget: constant, linear, or cosine."""
    beta: float = 1.0
    """Initial β of kl_penalty. Usual: 0.3 to 10."""
    beta_target: float | None = 0.01
    """Target KL per iteration, in nats, to which β adapts, or none for a fixed β. Usual: 0.003 to 0.03."""
    delta: float = 0.01
    """δ of natural_gradient and trust_region: the KL, in nats, by which an update may move the policy. Usual: 0.001 to
    0.05."""
    damping: float = 0.1
    """Value added to the diagonal of the Fisher matrix of natural_gradient and trust_region. Usual: 0.001 to 0.1."""
    conjugate_gradient_iterations: int = 15
    """Number of conjugate gradient iterations that solve for the step of natural_gradient and trust_region. Usual: 10
    to 25."""
    backtracks: int = 10
    """Number of step lengths that trust_region tries until the loss falls and the KL is at most δ, each 0.8 times the
    previous one. Usual: 10."""
    reference: Annotated[str | None, tyro.conf.arg(metavar="RUN")] = None
    """Penalise deviations from the policy of another run with the same networks: RUN for its last checkpoint, or
    RUN@best. The policy is read once and stored in this run."""
    reference_seed: int | None = None
    """The seed of that run whose policy is the reference of every seed; by default seed k uses that run's seed k, or
    its only seed."""
    reference_kl: float = 0.04
    """β, the coefficient of KL(π‖π_ref) in the policy's loss; 0 only measures the KL. Usual: 0.001 to 0.1."""
    reference_estimator: Literal["exact", "k1", "k2", "k3"] = "exact"
    """How that KL is estimated: exactly, or from the sampled action with Schulman's k1, k2 or k3. As a loss, k1 only
    adds noise because its mean gradient is 0, k2 has the gradient of KL(π‖π_ref), and k3 that of KL(π_ref‖π)."""
    bonus: str = "none"
    """Exploration bonus, which is credited in addition to the reward: none, count, rnd, noveld, icm, or module:Name."""
    bonus_coefficient: float = 1.0
    """Weight of the bonus's Ψ relative to that of the environment's rewards. Usual: 0.01 to 2."""
    bonus_gamma: float = 0.99
    """γ of the bonus's returns. Usual: 0.9 to 0.999."""
    bonus_episodic: bool = False
    """End the bonus's returns with the episode; by default they continue into the next one."""
    bonus_kwargs: dict[str, Any] = field(default_factory=dict)
    """Fields of the bonus, as JSON, e.g. '{"scope": "episodic"}' for count; see docs/exploration."""
    epochs: int = 4
    """Passes over each batch for the policy. Usual: 1 for policy_gradient, 3 to 20 for ppo."""
    critic_epochs: int | None = None
    """Passes over each batch for the critic; by default the same number as for the policy. Usual: 1 to 80."""
    imitation_iterations: int = 0
    """With recorded data, the number of initial iterations in which the policy only imitates the recorded actions while
    the critic learns, so that importance weights start near 1. Usual: 5 to 20 for off_policy."""
    value_clip: float | None = None
    """Clip the critic's loss, so that moving V by more than this in an update, in the learner's reward units, gains
    nothing. By default, the loss is not clipped. Usual: 0.2 with normalised rewards."""
    rpo_alpha: float = 0.0
    """Shift the mean of each Box action randomly, by up to ± this times half its range, when the ratio is computed, so
    that σ does not shrink early (RPO). Usual: 0.01 to 0.5."""
    minibatches: int = 4
    """Number of minibatches per epoch. Usual: 32 to 4096 samples per minibatch."""
    entropy_coefficient: float = 0.01
    """Weight of the entropy bonus. Usual: 0 for continuous, 0 to 0.02 for discrete actions."""
    entropy_schedule: str = "constant"
    """How the entropy bonus changes over the budget: constant, linear, or cosine."""
    max_grad_norm: float = 0.5
    """Clip the global norm of each network's gradient. Usual: 0.5 to 5."""
    target_kl: float | None = None
    """Stop an update's policy epochs early if a minibatch's KL exceeds this. Usual: 0.01 to 0.05."""
    min_effective_sample_size: float | None = None
    """Stop an update's policy epochs early if the effective fraction of a minibatch, (Σρ)²/(n Σρ²), falls below this,
    because the data then contain little information about the policy. Usual: 0.3 to 0.7 for recorded data."""
    normalize_advantage: bool = True
    """Standardise the weights Ψ of each batch."""
    normalize_observations: bool = False
    """Normalise observations by their running mean and standard deviation, which are stored in the agent."""
    normalize_rewards: bool = False
    """Divide rewards by the running standard deviation of the discounted return, which is stored in the agent."""
    clip_rewards: float | None = None
    """Clip each reward to ± this value for learning, e.g. 1 for Atari. Training and evaluation returns are not
    clipped."""
    model: str = "perceptron"
    """The model of policy and critic: perceptron for two separate perceptrons, or your own model as module:Name."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for your own model, as JSON."""
    encoder: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NETWORK"), tyro.conf.UseAppendAction] = ()
    """Network that reads images: nature, impala, board, or perceptron; the default depends on their size. For one of
    several images, write key=network; repeatable."""
    memory: Literal["gru", "lstm", "lru"] | None = None
    """Memory within an episode, for environments that show only part of their state: a gated recurrent unit, a long
    short-term memory, or a linear recurrent unit."""
    memory_size: int = 128
    """Number of units in the memory. Usual: 32 to 512."""
    shared_trunk: bool = False
    """Let policy and critic share all layers but the last."""
    policy_reads: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="KEY")] = None
    """Keys of the parts of the observations that the policy reads; by default all. Keys are written as for
    --ignore-observation, and 2-5 means components 2 to 5 of a vector."""
    critic_reads: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="KEY")] = None
    """Keys of the parts of the observations that the critic reads; by default all. The critic may read parts that the
    policy must not, because it is needed only in training."""
    sequence_length: int | None = None
    """L, the number of steps through which gradients of a model with memory flow. By default, this is the whole
    rollout, or less if that would leave fewer sequences than minibatches."""
    value_coefficient: float = 0.5
    """Weight of the critic's loss if policy and critic share parameters. Usual: 0.25 to 1."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers of the policy and of the critic; pass no numbers for linear networks."""
    activation: Literal["tanh", "relu", "silu"] = "tanh"
    """Activation of the hidden layers."""
    head: Literal["gaussian", "squashed", "gsde"] = "gaussian"
    """Policy for Box actions: a Gaussian clipped to the bounds (gaussian), squashed into them by tanh (squashed), or
    one whose noise is a function of the state that is held over several steps (gsde)."""
    noise_every: int = 4
    """Number of steps for which gsde holds its noise; 0 for the whole rollout or episode. Usual: 4 to 64."""
    state_dependent_std: bool = False
    """Let the policy network also output log σ of Box actions. By default, log σ is a parameter that does not depend on
    the state."""
    log_std_init: float = 0.0
    """Initial log σ of a Gaussian policy, in units of half the action range. Usual: −2 to 0."""
    preset: Annotated[str | None, tyro.conf.Suppress] = None
    """Source of the environment's tuned settings; set by upslope."""

    def seed_list(self) -> list[int]:
        """The seeds of this run."""
        return list(range(self.seed, self.seed + self.seeds))

    def to_json(self) -> dict[str, Any]:
        """Return all fields as a dictionary for strict JSON, with infinity as text."""
        finite = {} if math.isfinite(self.max_grad_norm) else {"max_grad_norm": repr(self.max_grad_norm)}
        return asdict(self) | finite

    def __post_init__(self) -> None:
        require_field_types(self)
        check_ranges(self)


PARTS_BY_NAME: dict[str, Mapping[str, Any]] = {
    "estimator": ESTIMATORS,
    "objective": OBJECTIVES,
    "bonus": BONUSES,
    "model": MODELS,
    "optimiser": DIRECTIONS,
    **dict.fromkeys(("learning_rate_schedule", "epsilon_schedule", "entropy_schedule"), SCHEDULES),
}
"""Field → the names of upslope's own parts. A user's own part is written `module:Name`."""
MAX_STEPS, MAX_WIDTH, MAX_LAYERS = 2**31, 2**16, 256
FRESH_SEEDS = 2000
"""Number of seeds that are reserved for evaluation episodes and never used in training."""
LIMITS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        (
            "steps",
            "seeds",
            "num_envs",
            "devices_per_seed",
            "group_size",
            "rollout_steps",
            "n",
            "epochs",
            "minibatches",
            "learning_rate",
            "max_grad_norm",
            "memory_size",
            "delta",
            "c",
            "rho_bar",
            "c_bar",
            "conjugate_gradient_iterations",
            "backtracks",
        ),
        ("greater than 0", lambda x: x > 0),
    ),
    **dict.fromkeys(
        ("max_episode_steps", "critic_epochs", "sequence_length", "target_kl", "value_clip", "clip_rewards"),
        ("greater than 0, or omitted", lambda x: x is None or x > 0),
    ),
    **dict.fromkeys(
        (
            *("entropy_coefficient", "imitation_iterations", "beta", "damping", "reference_kl", "weight_decay"),
            *("value_coefficient", "rpo_alpha", "bonus_coefficient", "noise_every"),
        ),
        ("0 or more", lambda x: x >= 0),
    ),
    **dict.fromkeys(("gamma", "bonus_gamma"), ("in [0, 1]", lambda x: 0 <= x <= 1)),
    "min_effective_sample_size": ("a share of the batch, from 0 to 1", lambda x: x is None or 0 < x <= 1),
    "hidden_sizes": (
        f"at most {MAX_LAYERS} widths of 1 to {MAX_WIDTH:,}, e.g. 64 64, or nothing for no hidden layer",
        lambda x: len(x) <= MAX_LAYERS and all(1 <= width <= MAX_WIDTH for width in x),
    ),
    "log_info": (
        "at most 64 different keys of plain characters without commas, e.g. is_success reward.distance",
        lambda x: len(x) <= 64 and len(set(x)) == len(x) and all(is_plain_key(key) for key in x),
    ),
}
"""Field → its valid range, as text and as a predicate."""
MOST = {
    "steps": MAX_STEPS,
    "seeds": 2**16,
    "num_envs": 2**24,
    "rollout_steps": 2**24,
    "minibatches": 2**24,
    "memory_size": MAX_WIDTH,
}
"""Limits that differ from `MAX_COUNT`. Sizes that would not fit into any machine's memory are refused early."""


def is_plain_key(key: str) -> bool:
    """Whether a key of `info` can be the header of a column in a CSV file."""
    return 0 < len(key) <= 100 and key.isascii() and key.isprintable() and not {",", '"', "'"} & {*key}


def flag_of(name: str) -> str:
    """The flag that sets a field."""
    return "--from" if name == "start_from" else f"--{name.rstrip('_').replace('_', '-')}"


def positive(**counts: int | None) -> None:
    """Raise an error that names the flag if a count is below 1 or exceeds 32 bits. None stands for the default."""
    for name, count in counts.items():
        if count is not None and count < 1:
            raise UpslopeError(f"{flag_of(name)} must be 1 or more, not {reprlib.repr(count)}.")
        if count is not None and count > MOST.get(name, MAX_COUNT):
            raise UpslopeError(too_many(name, count))


def too_many(name: str, count: Any) -> str:
    """The message for an integer above its limit."""
    return f"{flag_of(name)} can be at most {MOST.get(name, MAX_COUNT):,}, not {reprlib.repr(count)}."


def fresh(**seeds: int) -> None:
    """Raise an error that names the flag if an evaluation seed is outside the reserved range."""
    for name, seed in seeds.items():
        if not 0 <= seed < FRESH_SEEDS:
            raise UpslopeError(f"{flag_of(name)} must be from 0 to {FRESH_SEEDS - 1}, not {reprlib.repr(seed)}.")


def check_ranges(config: Config) -> None:
    """Raise an error that names the flag if a value is invalid."""
    for name, value in vars(config).items():
        if isinstance(value, float) and not math.isfinite(value) and (name, value) != ("max_grad_norm", math.inf):
            raise UpslopeError(f"{flag_of(name)} must be a finite number, not {value}.")
        limit, is_within = LIMITS.get(name, ("", lambda _: True))
        if not is_within(value):
            raise UpslopeError(f"{flag_of(name)} must be {limit}, not {reprlib.repr(value)}.")
        if isinstance(value, int) and value > MOST.get(name, MAX_COUNT):
            raise UpslopeError(too_many(name, value))
    if config.seed < 0 or config.seed + config.seeds > 2**31:
        raise UpslopeError(f"--seed must be between 0 and 2³¹ − seeds, not {reprlib.repr(config.seed)}.")
    known_algorithm(config.algorithm)
    for role, known in PARTS_BY_NAME.items():
        value = getattr(config, role)
        if value not in known and ":" not in value:
            raise UpslopeError(unknown(role, value, known))


def recorded_preset(config: Config) -> tuple[str, dict[str, Any]] | None:
    """The name and row of the preset on which a config is based, identified by its source."""
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
    """Return the config of a run.

    Later settings take precedence: the action space's defaults, the rung's settings, the preset's, and `overrides`."""
    rung = ALGORITHMS[known_algorithm(algorithm)]
    settings: dict[str, Any] = dict(CONTINUOUS_DEFAULTS if is_continuous else DISCRETE_DEFAULTS)
    settings |= {"estimator": rung.estimator, "objective": rung.objective} | dict(rung.settings)
    preset = preset_of(environment, algorithm, use_preset)
    if preset is not None:
        settings |= canonical(preset["settings"]) | {"preset": preset["source"]}
    settings |= canonical(made_by(preset, canonical(overrides)))
    return Config(environment=environment, algorithm=algorithm, **settings)


SHORT_NAMES = {"lambda": "lambda_", "from": "start_from", "wrapper": "wrappers"}
"""Flag name → the field that the flag sets, if the names differ."""


def canonical(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings keyed by field name and converted to the fields' types.

    Spellings such as `learning-rate` and `lambda` are accepted too."""
    kinds = get_type_hints(Config)
    result, said = {}, {}
    for name, value in settings.items():
        key = SHORT_NAMES.get(str(name)) or str(name).replace("-", "_")
        if key == "learning_rate_decay" and isinstance(value, bool):  # the name in older runs and in presets
            key, value = "learning_rate_schedule", "linear" if value else "constant"
        if key not in kinds:
            raise UpslopeError(
                foreign_setting(str(name)) or unknown("setting", str(name), kinds, "upslope train --help")
            )
        if key in result:
            raise UpslopeError(f"{said[key]} and {name} are the same setting. Pass it only once.")
        result[key], said[key] = coerce(str(name), value, kinds[key]), name
    return result
