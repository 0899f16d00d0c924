"""The faults that `benchmarks/doctor.py` plants, and the healthy runs. Nothing in this file belongs to the library.

A fault is planted in the configuration, in the environment (by a wrapper, compiled or on the host), or in a broken copy
of the estimator, the objective or the rollout (`doctor_planting.py`). Each fault names the cause that a diagnosis
should report.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
from doctor_planting import ESTIMATORS, ROLLOUTS, HostPlanted, Planted, Slower

from upslope.environments.base import CompiledEnvironment

CARTPOLE, ACROBOT, PENDULUM = "jax:CartPole-v1", "jax:Acrobot-v1", "jax:Pendulum-v1"
HOST_CARTPOLE, HOST_PENDULUM, HOST_ACROBOT = "CartPole-v1", "Pendulum-v1", "Acrobot-v1"
MOUNTAIN, GRID, KEY = "jax:MountainCarContinuous-v0", "jax:GridWorld-v0", "jax:Key-v0"
SWINGS = {"num_envs": 4, "rollout_steps": 512, "epochs": 10, "minibatches": 16, "gamma": 0.95, "learning_rate": 1e-3}
"""Settings with which PPO learns the pendulum within a short budget."""
BASE: dict[str, dict[str, Any]] = {
    CARTPOLE: {"steps": 50_000},
    ACROBOT: {"steps": 50_000, "learning_rate": 1e-3},
    PENDULUM: {"steps": 60_000, **SWINGS},
    HOST_CARTPOLE: {"steps": 30_000},
    HOST_PENDULUM: {"steps": 30_000, **SWINGS},
    HOST_ACROBOT: {"steps": 30_000, "learning_rate": 1e-3},
    MOUNTAIN: {"steps": 60_000},
    GRID: {"steps": 40_000, "learning_rate": 1e-3},
    KEY: {"steps": 40_000, "learning_rate": 1e-3},
}


@dataclass(frozen=True)
class Fault:
    """One planted fault. `calibrate`, `test` and `fresh` list the environments in which each of these parts of the bank
    trains with it."""

    name: str
    cause: str
    calibrate: tuple[str, ...]
    test: tuple[str, ...]
    fresh: tuple[str, ...]
    """If there are two environments, the first also occurs in `calibrate`, and the second occurs in neither `calibrate`
    nor `test`."""
    settings: dict[str, Any] = field(default_factory=dict)
    test_settings: dict[str, Any] | None = None
    """Settings that give the same fault a different strength."""
    plant: dict[str, float] = field(default_factory=dict)
    algorithm: str = "ppo"
    unlimited: bool = False
    slower: bool = False

    def worlds_of(self, part: str) -> tuple[str, ...]:
        """Return the environments in which a part trains with the fault."""
        return getattr(self, part, ())

    def settings_in(self, part: str, world: str) -> dict[str, Any]:
        """Return the fault's settings. In the environments of `calibrate`, `fresh` uses the settings of `test`, and
        vice versa."""
        is_other = part == "test" or (part == "fresh" and world in self.calibrate)
        return self.test_settings if is_other and self.test_settings is not None else self.settings

    def plant_in(self, part: str) -> dict[str, float]:
        """Return the planted numbers, which are slightly weaker or stronger in `fresh`."""
        return {name: MILDER.get((name, x), x) if part == "fresh" else x for name, x in self.plant.items()}


MILDER = {
    ("observe_scale", 1000.0): 300.0,
    ("observe_shift", 300.0): 100.0,
    ("pay_scale", 1e4): 2e3,
    ("pay_noise", 30.0): 20.0,
    ("over_at", 20.0): 25.0,
}
"""Strength in the other parts → strength in the part `fresh`."""


def estimator(name: str) -> dict[str, float]:
    return {"estimator": float(ESTIMATORS.index(name))}


def rollout(name: str) -> dict[str, float]:
    return {"rollout": float(ROLLOUTS.index(name))}


C, A, P, HC, HP = (CARTPOLE,), (ACROBOT,), (PENDULUM,), (HOST_CARTPOLE,), (HOST_PENDULUM,)
M, HA = (MOUNTAIN,), (HOST_ACROBOT,)
RAW, PLAIN = {"normalize_rewards": False}, {"normalize_observations": False}
RATE, BONUS, BETA = "learning_rate", "entropy_coefficient", "beta"
SCALE, LIMIT = "observe_scale", "limit is death"
TINY = {"num_envs": 1, "rollout_steps": 4, "minibatches": 1, RATE: 1e-3}
FAULTS = (
    Fault("learning rate far too high", "update_too_large", C + P, A + HC, C, {RATE: 1.0}, {RATE: 0.5}),
    Fault("learning rate too high", "update_too_large", C, A + HP, C + P, {RATE: 0.3}, {RATE: 0.2}),
    Fault("too many epochs", "update_too_large", P, HC, P + C, {"epochs": 60, RATE: 3e-3}),
    Fault("learning rate too low", "update_too_small", C + P, A + HC, P, {RATE: 1e-6}, {RATE: 3e-7}),
    Fault("KL limit too strict", "update_too_small", P, C, P + A, {"target_kl": 1e-7}),
    Fault("KL penalty too strong", "update_too_small", C, A, C + P, {BETA: 3e4}, {BETA: 1e5}, algorithm="ppo_kl_fixed"),
    Fault("entropy bonus too strong", "entropy_dominates", C, A + HC, C + HA, {BONUS: 2.0}, {BONUS: 1.0}),
    Fault("discount too short", "horizon_too_short", P + C, HC + HP, C + A, {"gamma": 0.2}, {"gamma": 0.1}),
    Fault("σ too large", "actions_clipped", P, HP, P, {"log_std_init": 2.5}, {"log_std_init": 3.0}),
    Fault("σ too small", "no_exploration", P, HP, P, {"log_std_init": -6.0}, {"log_std_init": -5.0}),
    Fault("batch too small", "batch_too_small", C, A, C, TINY),
    Fault("observations × 1000", "observations_unscaled", C + P, A + HC, P, PLAIN, plant={SCALE: 1000.0}),
    Fault("observations + 300", "observations_unscaled", C, HC + HP, C + A, PLAIN, plant={"observe_shift": 300.0}),
    Fault("observations all zero", "observations_uninformative", C + P, A + HC, C, plant={"observe_scale": 0.0}),
    Fault("rewards × 10⁴", "rewards_unscaled", C + P, A + HC, C, RAW, plant={"pay_scale": 1e4}),
    Fault("rewards all zero", "no_reward_signal", C + P, A + HC, P + HA, plant={"pay_scale": 0.0}),
    Fault("reward is noise", "reward_noise", C, A + HC, C, plant={"pay_noise": 30.0}),
    Fault("actions are ignored", "actions_without_effect", C + P, HC + HP, C + A, plant={"random_actions": 1.0}),
    Fault("time limit told as death", "limit_as_termination", C, HC, C, plant={"over_at": 20.0}),
    Fault("fake rows after resets", "fake_rows", C, A + HC, C, plant={"fake_row": 1.0}),
    Fault("episodes never end", "episodes_never_end", C, HC, C + A, plant={"never_over": 1.0}, unlimited=True),
    Fault("episodes end at once", "episodes_end_at_once", C, A + HC, C, plant={"over_at": 1.0}),
    Fault("bootstraps past death", "ends_ignored", C, A + HC, C, plant=estimator("bootstraps")),
    Fault("leaks across resets", "ends_ignored", C, HC, C + A, plant=estimator("leaks")),
    Fault("no bootstrap at limits", "truncation_not_bootstrapped", P, HP + A, P + HA, plant=estimator(LIMIT)),
    Fault("return not propagated", "return_not_propagated", C + P, A + HC, P, plant=estimator("one reward")),
    Fault("weight of the wrong sign", "credit_inconsistent", C + P, A, C, plant=estimator("sign")),
    Fault("weight five steps late", "credit_inconsistent", C, HC + HP, C + A, plant=estimator("late")),
    Fault("target without V", "credit_inconsistent", C, A + HP, C + P, plant=estimator("target without value")),
    Fault("weight always zero", "no_policy_signal", C + P, A + HC, P, plant=estimator("zero")),
    Fault("loss of the wrong sign", "objective_descends", C + P, A + HC, C, plant={"loss_factor": -1.0}),
    Fault("loss without gradient", "no_policy_signal", C, HP, C + A, plant={"loss_factor": 0.0}),
    Fault("log-probabilities of others", "log_prob_mismatch", C + P, A + HC, P, plant=rollout("log_prob")),
    Fault("clipped actions stored", "log_prob_mismatch", P, HP, P, plant=rollout("cut actions")),
    Fault("successor is the next reset", "reset_as_successor", P, HC + HP, P + C, plant=rollout("reset successor")),
    Fault("observations two steps late", "rows_misaligned", C + P, A + HC, C, plant=rollout("late observation")),
    Fault("ends are not recorded", "ends_not_recorded", C, HC, C + A, plant=rollout("no ends")),
    Fault("reward never found", "no_reward_signal", M, M, M, {"log_std_init": -1.0}, {"log_std_init": -2.0}),
    Fault("environment slows down", "slows_down", HC, HA, (), slower=True),
)  # fmt: skip


@dataclass(frozen=True)
class Healthy:
    """A run without a fault, though it may learn slowly or have a hard task."""

    world: str
    algorithm: str
    settings: dict[str, Any] = field(default_factory=dict)
    preset: bool = False


def variants(world: str, *rungs: str) -> tuple[Healthy, ...]:
    """Return each rung twice: unchanged, and with different seeds, a lower learning rate and a different discount."""
    other = {"seed": 10, "slower": 0.6, "gamma": 0.98 if "Pendulum" not in world else 0.9}
    return tuple(Healthy(world, rung, s) for rung in rungs for s in ({}, other))


OWN = ("reinforce", "reward_to_go", "reinforce_baseline", "actor_critic", "a2c", "gae", "ppo_kl", "ppo_kl_fixed", "ppo")
WIDE = {"log_std_init": 1.0, "steps": 100_000, "gamma": 0.999, "num_envs": 8, "rollout_steps": 256}
BANDIT = {"steps": 20_000, "num_envs": 16, "rollout_steps": 8, "gamma": 0.9, RATE: 1e-3}
FIRST_SEED = {"fresh": 100, "confirm": 200}
"""The first seed of each part. No two parts share a seed."""
HEALTHY = (
    *variants(CARTPOLE, *OWN),
    *variants(HOST_CARTPOLE, "reward_to_go", "gae", "ppo"),
    *variants(PENDULUM, "gae", "ppo_kl", "ppo"),
    *variants(HOST_PENDULUM, "ppo"),
    *variants(ACROBOT, "actor_critic", "gae", "ppo_kl_fixed", "ppo"),
    *variants(GRID, "gae", "ppo"),
    *variants(KEY, "ppo"),
    *(Healthy(CARTPOLE, "ppo", s) for s in (
        {"seed": 20, "entropy_coefficient": 0.0}, {"seed": 30, "gamma": 0.95}, {"seed": 40, "learning_rate": 1e-3},
        {"activation": "relu"}, {"hidden_sizes": (32,)}, {"num_envs": 32},
    )),
    *(Healthy(PENDULUM, "ppo", s) for s in ({"seed": 20, "learning_rate": 5e-4}, {"seed": 30, "log_std_init": -0.5})),
    *(Healthy(ACROBOT, "ppo", s) for s in ({"seed": 20, RATE: 5e-4}, {"seed": 30, BONUS: 0.0})),
    *(Healthy(CARTPOLE, "ppo", {"seed": s}, preset=True) for s in (0, 5)),
    Healthy(MOUNTAIN, "ppo", WIDE),
    *(Healthy(f"jax:probe/{name}", "ppo", BANDIT)
      for name in ("both", "delay", "continuous")),
)  # fmt: skip

SLOWER = {"slower": 0.8}
FRESH_HEALTHY = (
    *(Healthy(CARTPOLE, rung, SLOWER) for rung in OWN),
    *(Healthy(PENDULUM, rung, {**SLOWER, "gamma": 0.97}) for rung in ("gae", "ppo_kl", "ppo")),
    *(Healthy(ACROBOT, rung, SLOWER) for rung in ("reinforce_baseline", "a2c", "ppo")),
    *(Healthy(HOST_ACROBOT, rung) for rung in ("gae", "ppo")),
    *(Healthy(GRID, rung) for rung in ("actor_critic", "ppo_kl")),
    *(Healthy(KEY, rung, SLOWER) for rung in ("gae", "ppo")),
    *(Healthy(CARTPOLE, "ppo", s) for s in (
        {"hidden_sizes": (16,)}, {"gamma": 0.999}, {RATE: 1e-4}, {"epochs": 10}, {BONUS: 0.02}, {"steps": 20_000},
    )),
    *(Healthy(PENDULUM, "ppo", s) for s in ({"log_std_init": 0.3}, {"num_envs": 8, "rollout_steps": 256})),
    *(Healthy(f"jax:probe/{name}", "ppo", {**BANDIT, "minibatches": 4})
      for name in ("both", "continuous", "multidiscrete", "multibinary")),
    Healthy(MOUNTAIN, "ppo", WIDE),
)  # fmt: skip


SLOW = {"slower": 0.7}
CONFIRM_HEALTHY = (
    *(Healthy(CARTPOLE, rung, {"slower": 0.9}) for rung in OWN),
    *(Healthy(HOST_CARTPOLE, rung) for rung in ("reinforce_baseline", "actor_critic", "a2c", "gae", "ppo_kl", "ppo")),
    *(Healthy(PENDULUM, rung, {**SLOW, "gamma": 0.93}) for rung in ("gae", "ppo_kl", "ppo")),
    *(Healthy(HOST_PENDULUM, rung) for rung in ("gae", "ppo")),
    *(Healthy(ACROBOT, rung, SLOW) for rung in ("actor_critic", "gae", "ppo_kl_fixed", "ppo")),
    *(Healthy(HOST_ACROBOT, rung) for rung in ("a2c", "ppo_kl")),
    *(Healthy(GRID, rung) for rung in ("actor_critic", "a2c", "gae", "ppo_kl", "ppo")),
    *(Healthy(KEY, rung, SLOW) for rung in ("reward_to_go", "gae", "ppo_kl", "ppo")),
    *(Healthy(CARTPOLE, "ppo", s) for s in (
        {"hidden_sizes": (128,)}, {"gamma": 0.97}, {RATE: 2e-4}, {"epochs": 6}, {BONUS: 0.005}, {"steps": 30_000},
        {"activation": "relu", "gamma": 0.995}, {"num_envs": 16}, {"minibatches": 8}, {"lambda_": 0.9},
    )),
    *(Healthy(PENDULUM, "ppo", s) for s in ({"log_std_init": -0.3}, {"rollout_steps": 256}, {"lambda_": 0.9})),
    *(Healthy(ACROBOT, "ppo", s) for s in ({"num_envs": 16}, {"lambda_": 0.9}, {"epochs": 6})),
    *(Healthy(f"jax:probe/{name}", "ppo", {**BANDIT, "minibatches": 2})
      for name in ("both", "delay", "continuous", "multidiscrete", "multibinary")),
    *(Healthy(CARTPOLE, "ppo", {"steps": n}, preset=True) for n in (60_000, 100_000)),
    Healthy(MOUNTAIN, "ppo", WIDE),
)  # fmt: skip


def world_of(fault: Fault, name: str) -> str | Callable[[], gymnasium.Env] | CompiledEnvironment:
    """Return the environment with the fault planted in it."""
    if name.startswith("jax:"):
        from upslope.environments.registry import make

        return Planted(make(name), fault.unlimited)

    def create() -> gymnasium.Env:
        env = gymnasium.make(name)
        env = env.unwrapped if fault.unlimited else env
        return Slower(HostPlanted(env)) if fault.slower else HostPlanted(env)

    return create
