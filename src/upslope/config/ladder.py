"""The ladder of algorithms: name → (estimator, objective, source) and default settings.

A rung is one row of data. Other pairs work as well, because `--estimator` and `--objective` each replace one element of
the pair. This module imports neither JAX nor the axes, so that the command line can list the rungs without delay.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Rung:
    """A named pair of estimator and objective, its source of experience, and its default settings."""

    estimator: str
    objective: str
    meaning: str
    source: str = "own"
    settings: Mapping[str, Any] = field(default_factory=dict)


ONE_STEP = {"epochs": 1, "minibatches": 1}
"""Plain policy gradients take one step per batch, because the batch is off-policy afterwards."""
MONTE_CARLO = {**ONE_STEP, "learning_rate": 3e-3, "entropy_coefficient": 0.0, "num_envs": 8}
PLAIN = {**MONTE_CARLO, "normalize_advantage": False, "normalize_rewards": False}
"""The textbook formula, without normalisation."""
SEGMENT_GRADIENT = {**ONE_STEP, "learning_rate": 3e-3, "entropy_coefficient": 0.0, "critic_epochs": 20}
NATURAL = {"critic_epochs": 10, "minibatches": 8, "learning_rate": 1e-3, "entropy_coefficient": 0.0}
"""The policy takes one step per batch, without a learning rate. These settings apply to the critic."""
GROUPS = {**PLAIN, "gamma": 1.0, "num_envs": 16, "group_size": 8}
"""There is no critic. An episode's return is compared with those of the other episodes in its group, which start with
the same reset."""
REUSED_GROUPS = {**GROUPS, "epochs": 4, "minibatches": 4, "learning_rate": 1e-3}
RECORDED = {
    "epochs": 1,
    "minibatches": 128,
    "learning_rate": 1e-3,
    "entropy_coefficient": 0.0,
    "normalize_observations": True,
    "steps": 3_000_000,
}
"""Recorded data can be read many times, and observation statistics are available from the start."""

ALGORITHMS: dict[str, Rung] = {
    "reinforce": Rung(
        "total_return",
        "policy_gradient",
        "Weight every action by the return of its whole episode.",
        settings={**PLAIN, "gamma": 1.0},
    ),
    "reward_to_go": Rung(
        "reward_to_go",
        "policy_gradient",
        "Weight every action only by the rewards after it.",
        settings=PLAIN,
    ),
    "reinforce_baseline": Rung(
        "baseline",
        "policy_gradient",
        "Subtract the expected return: R_t − B(s_t).",
        settings={**MONTE_CARLO, "critic_epochs": 20},
    ),
    "actor_critic": Rung(
        "n_step",
        "policy_gradient",
        "The critic judges each step: the TD error.",
        settings={**SEGMENT_GRADIENT, "n": 1, "learning_rate": 1e-3},
    ),
    "a2c": Rung(
        "n_step",
        "policy_gradient",
        "Look n = 5 steps ahead before bootstrapping from the critic.",
        settings={**ONE_STEP, "n": 5, "rollout_steps": 5, "learning_rate": 1e-3, "num_envs": 8},
    ),
    "gae": Rung(
        "gae",
        "policy_gradient",
        "Mix all n-step advantages with weights (1−λ)λ^(n−1).",
        settings=SEGMENT_GRADIENT,
    ),
    "off_policy": Rung(
        "gae",
        "importance_sampled",
        "Learn from another agent's recorded episodes, corrected by importance weights.",
        source="recorded",
        settings={
            **RECORDED,
            "critic_epochs": 5,
            "learning_rate": 3e-4,
            "imitation_iterations": 10,
            "min_effective_sample_size": 0.5,
        },
    ),
    "ppo_kl": Rung(
        "gae",
        "kl_penalty",
        "Reuse a batch, with an adaptive KL penalty on moving away.",
        settings={"beta_target": 0.01},
    ),
    "ppo_kl_fixed": Rung(
        "gae",
        "kl_penalty",
        "The KL penalty with a fixed β.",
        settings={"beta_target": None},
    ),
    "ppo": Rung("gae", "clip", "Reuse a batch, and clip the ratio instead: PPO."),
    "clone": Rung(
        "unit",
        "policy_gradient",
        "Imitate recorded actions by maximum likelihood.",
        source="recorded",
        settings={**RECORDED, "normalize_advantage": False},
    ),
    "npg": Rung(
        "gae",
        "natural_gradient",
        "Take one step per batch, whose length is set as a KL, whatever the parametrisation: the natural gradient.",
        settings=NATURAL,
    ),
    "trpo": Rung(
        "gae",
        "trust_region",
        "Shorten the natural step until the KL is at most δ and the loss falls: TRPO.",
        settings=NATURAL,
    ),
    "vtrace": Rung(
        "vtrace",
        "policy_gradient",
        "Learn from another policy's steps, with truncated importance weights in Ψ and in the critic's targets.",
        settings={**ONE_STEP, "lambda_": 1.0, "rollout_steps": 20, "num_envs": 8, "learning_rate": 1e-3},
    ),
    "spo": Rung(
        "gae",
        "spo",
        "Replace the clip with a parabola in the ratio, which pulls back a ratio that has moved too far: SPO.",
    ),
    "rloo": Rung(
        "leave_one_out",
        "policy_gradient",
        "Replace the critic with the mean return of the other episodes that share the same start.",
        settings=GROUPS,
    ),
    "grpo": Rung(
        "group_mean",
        "clip",
        "Reuse groups, divide by their deviation and by each episode's length, and clip.",
        settings={**REUSED_GROUPS, "divide_by_deviation": True, "divide_by_length": "episode"},
    ),
    "dr_grpo": Rung(
        "group_mean",
        "clip",
        "Omit GRPO's two divisions, which bias it.",
        settings=REUSED_GROUPS,
    ),
    "dapo": Rung(
        "group_mean",
        "clip",
        "Change GRPO to one mean over all steps and a wider upper clip, and omit groups with equal returns.",
        settings={
            **REUSED_GROUPS,
            "divide_by_deviation": True,
            "divide_by_length": "batch",
            "skip_equal_groups": True,
            "epsilon_high": 0.28,
        },
    ),
}

ESTIMATORS = {
    "total_return": "R(τ), whole episodes",
    "reward_to_go": "Σγ^(t'−t) r_t', whole episodes",
    "baseline": "R_t − V(s_t), whole episodes",
    "n_step": "A^n, the sum of n TD errors",
    "gae": "Σ(γλ)^b δ_{t+b}",
    "leave_one_out": "R(τ) − the mean of the others in a group, whole episodes",
    "group_mean": "R(τ) − the group's mean, optionally divided, whole episodes",
    "vtrace": "ρ (r + γ v_{t+1} − V), ρ = min(ρ̄, π/μ)",
    "unit": "1, imitation",
}
OBJECTIVES = {
    "policy_gradient": "log π · Ψ",
    "importance_sampled": "π/μ · Ψ",
    "kl_penalty": "π/μ · Ψ − β KL, fixed or adaptive β",
    "clip": "min(π/μ · Ψ, clip(π/μ) · Ψ), optionally wider upwards",
    "dual_clip": "clip, but at least c Ψ where Ψ < 0",
    "spo": "π/μ · Ψ − |Ψ| (π/μ − 1)² / 2ε",
    "natural_gradient": "π/μ · Ψ, a step along F⁻¹∇ of KL δ",
    "trust_region": "π/μ · Ψ, the natural step within KL ≤ δ",
}

BONUSES = {
    "none": "no bonus",
    "count": "1/√n(s'), visits counted exactly or by a hash",
    "rnd": "‖f̂(s') − f(s')‖², the error of predicting a random network",
    "noveld": "max(n(s') − αn(s), 0) at a first visit in the episode",
    "icm": "½‖φ̂(s') − φ(s')‖², the error of predicting the next features",
}
MODELS = {"perceptron": "a perceptron for the policy and one for the critic"}
DIRECTIONS = {
    "adam": "Kingma & Ba 2015, ε = 1e-5",
    "adamw": "adam with decoupled weight decay",
    "rmsprop": "decay 0.99, ε = 1e-5",
    "sgd": "the gradient itself",
}
SCHEDULES = {"constant": "unchanged", "linear": "to 0 in a straight line", "cosine": "to 0 along half a cosine"}

DISCRETE_DEFAULTS: dict[str, Any] = {
    "num_envs": 8,
    "rollout_steps": 128,
    "epochs": 4,
    "minibatches": 4,
    "learning_rate": 2.5e-4,
    "entropy_coefficient": 0.01,
    "normalize_observations": False,
    "normalize_rewards": True,
}
"""Defaults for Discrete, MultiDiscrete and MultiBinary actions: common practice for classic control and Atari (Huang et
al. 2022). Rewards are scaled, as Engstrom et al. 2020 found necessary, because a critic saturates if its targets are
far from 1."""
CONTINUOUS_DEFAULTS: dict[str, Any] = {
    "num_envs": 1,
    "rollout_steps": 2048,
    "epochs": 10,
    "minibatches": 32,
    "learning_rate": 3e-4,
    "entropy_coefficient": 0.0,
    "normalize_observations": True,
    "normalize_rewards": True,
}
"""Defaults for Box actions: Schulman et al. 2017, Table 3, with the normalisation listed by Huang et al. 2022."""
