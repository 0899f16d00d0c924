"""The faults that `benchmarks/doctor.py` plants, and the healthy runs beside them. Nothing here is part of the library.

A fault is in the configuration, in the environment (a wrapped world, compiled or on the host), or in a broken copy of the
estimator, the objective or the rollout. Each names the cause that a diagnosis should give.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

import upslope
from upslope.environments.base import CompiledEnvironment
from upslope.environments.make import make
from upslope.estimators import advantage_credit, discounted_sum, ends, td_error
from upslope.types import Transition

CARTPOLE, ACROBOT, PENDULUM = "jax:CartPole-v1", "jax:Acrobot-v1", "jax:Pendulum-v1"
HOST_CARTPOLE, HOST_PENDULUM, HOST_ACROBOT = "CartPole-v1", "Pendulum-v1", "Acrobot-v1"
MOUNTAIN, GRID, KEY = "jax:MountainCarContinuous-v0", "jax:GridWorld-v0", "jax:Key-v0"
SWINGS = {"num_envs": 4, "rollout_steps": 512, "epochs": 10, "minibatches": 16, "gamma": 0.95, "learning_rate": 1e-3}
"""Settings under which the pendulum learns in a short budget."""
BASE: dict[str, dict[str, Any]] = {
    CARTPOLE: {"steps": 50_000},
    ACROBOT: {"steps": 60_000, "learning_rate": 1e-3},
    PENDULUM: {"steps": 60_000, **SWINGS},
    HOST_CARTPOLE: {"steps": 30_000},
    HOST_PENDULUM: {"steps": 40_000, **SWINGS},
    HOST_ACROBOT: {"steps": 30_000, "learning_rate": 1e-3},
    MOUNTAIN: {"steps": 60_000},
    GRID: {"steps": 40_000, "learning_rate": 1e-3},
    KEY: {"steps": 40_000, "learning_rate": 1e-3},
}
Change = Callable[[Any], Any]
same: Change = lambda x: x  # noqa: E731


@dataclass(frozen=True)
class Fault:
    """One planted fault. `calibrate` and `test` are the worlds in which the two halves train it."""

    name: str
    cause: str
    calibrate: tuple[str, ...]
    test: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    test_settings: dict[str, Any] | None = None
    """Another strength of the same fault."""
    algorithm: str = "ppo"
    environment: Callable[[str], Any] = same
    estimator: Any = None
    objective: Any = None
    rollout: Callable[[Any], Any] | None = None


@dataclass(frozen=True, eq=False)
class Wrapped(CompiledEnvironment):
    """A compiled world of which something is changed. Its state carries the number of steps."""

    inner: Any
    observe: Change = same
    pay: Callable[[Any, Any], Any] = lambda reward, key: reward
    act: Callable[[Any, Any], Any] = lambda action, key: action
    over: Callable[[Any, Any], Any] = lambda terminated, step: terminated
    limit: bool = True

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "observation_space", unbounded(self.inner.observation_space))
        set_(self, "action_space", self.inner.action_space)
        set_(self, "max_episode_steps", self.inner.max_episode_steps if self.limit else None)

    def reset(self, key: Any) -> Any:
        state, observation = self.inner.reset(key)
        return (state, jnp.int32(0)), self.observe(observation)

    def step(self, key: Any, state: Any, action: Any) -> Any:
        inner, count = state
        inner, (observation, reward, terminated, truncated) = self.inner.step(key, inner, self.act(action, key))
        count = count + 1
        over = jnp.asarray(self.over(terminated, count), bool)
        reward = jnp.asarray(self.pay(reward, key), jnp.float32)
        return (inner, count), Transition(self.observe(observation), reward, over, truncated)


class HostWrapped(gymnasium.Wrapper):
    """The same on the host."""

    def __init__(self, env: gymnasium.Env, observe: Any = same, pay: Any = None, act: Any = None, over: Any = None):
        super().__init__(env)
        self.observation_space = unbounded(env.observation_space)
        self.observe, self.pay, self.act, self.over = observe, pay, act, over
        self.generator = np.random.default_rng(0)

    def reset(self, **options: Any) -> Any:
        self.count = 0
        observation, info = self.env.reset(**options)
        return np.asarray(self.observe(observation), np.float32), info

    def step(self, action: Any) -> Any:
        self.count += 1
        action = action if self.act is None else self.act(action, self.generator)
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward = reward if self.pay is None else self.pay(reward, self.generator)
        terminated = terminated if self.over is None else bool(self.over(terminated, self.count))
        return np.asarray(self.observe(observation), np.float32), float(reward), terminated, truncated, info


def unbounded(space: Any) -> spaces.Box:
    """The space with its bounds taken off."""
    return spaces.Box(-np.inf, np.inf, space.shape, np.float32)


def wrapped(
    compiled: dict[str, Any], host: dict[str, Any] | None = None, unlimited: bool = False
) -> Callable[[str], Any]:
    """How to make a changed world, compiled or on the host."""

    def create(name: str) -> Any:
        if name.startswith("jax:"):
            return Wrapped(make(name), **compiled, limit=not unlimited)

        def host_world() -> gymnasium.Env:
            env = gymnasium.make(name)
            return HostWrapped(env.unwrapped if unlimited else env, **(host if host is not None else compiled))

        return host_world

    return create


def is_random(key: Any) -> bool:
    return isinstance(key, np.random.Generator)


def noise(reward: Any, key: Any) -> Any:
    return reward + 30 * (key.normal() if is_random(key) else jax.random.normal(key))


def any_action(action: Any, key: Any) -> Any:
    return int(key.integers(2)) if is_random(key) else jax.random.randint(key, jnp.shape(action), 0, 2, jnp.int32)


def any_torque(action: Any, key: Any) -> Any:
    return key.uniform(-2, 2, 1) if is_random(key) else jax.random.uniform(key, jnp.shape(action), minval=-2, maxval=2)


@dataclass(frozen=True, eq=False)
class FakeRow(Wrapped):
    """Each episode begins with a row that belongs to no action, as next-step autoreset inserts it."""

    def step(self, key: Any, state: Any, action: Any) -> Any:
        (inner, count), transition = super().step(key, state, action)
        first = state[1] == 0
        reward = jnp.where(first, 0.0, transition.reward)
        return (inner, count), transition._replace(reward=reward)


class HostFakeRow(gymnasium.Wrapper):
    """The same on the host."""

    def reset(self, **options: Any) -> Any:
        self.fake, (self.first, info) = True, self.env.reset(**options)
        return self.first, info

    def step(self, action: Any) -> Any:
        if self.fake:
            self.fake = False
            return self.first, 0.0, False, False, {}
        return self.env.step(action)


class Slower(gymnasium.Wrapper):
    """Each step searches all that was seen before."""

    seen: ClassVar[list[float]] = []

    def step(self, action: Any) -> Any:
        Slower.seen.append(time.perf_counter())
        if len(Slower.seen) % 50 == 0:
            time.sleep(len(Slower.seen) / 4e6)
        return self.env.step(action)


def fake_row(name: str) -> Any:
    return FakeRow(make(name)) if name.startswith("jax:") else lambda: HostFakeRow(gymnasium.make(name))


@dataclass(frozen=True)
class Broken(upslope.Estimator):
    """GAE with one thing wrong."""

    kind: str = ""
    needs_critic: ClassVar[bool] = True
    whole_episodes: ClassVar[bool] = False

    def __call__(self, rollout: Any, values: Any, gamma: float) -> Any:
        if self.kind == "limit is death":
            rollout = rollout._replace(terminated=rollout.terminated | rollout.truncated)
        end, delta = ends(rollout), td_error(rollout, values, gamma)
        if self.kind in ("bootstraps", "leaks"):
            delta = rollout.reward + gamma * values.next_value - values.value
        advantage = discounted_sum(delta, end & (self.kind != "leaks"), gamma * 0.95)
        credit = advantage_credit(advantage, rollout, values)
        weight, target = credit
        changes = {
            "sign": (-weight, target),
            "late": (jnp.roll(weight, 5, axis=0), target),
            "zero": (0 * weight, target),
            "target without value": (weight, weight),
            "one reward": (rollout.reward - values.value, rollout.reward),
            "target is value": (weight, values.value),
        }
        return upslope.Credit(*changes.get(self.kind, credit))


@dataclass(frozen=True)
class BrokenClip(upslope.Objective):
    """PPO's loss with one thing wrong."""

    kind: str = ""

    def loss(self, state: Any, sample: Any) -> Any:
        loss = upslope.Clip(0.2).loss(state, sample)
        return {"sign": -loss, "no gradient": jax.lax.stop_gradient(loss)}[self.kind]


def shifted_log_prob(rollout: Any) -> Any:
    return rollout._replace(behaviour_log_prob=jnp.roll(jnp.asarray(rollout.behaviour_log_prob), 1, axis=-1))


def cut_actions(rollout: Any) -> Any:
    return rollout._replace(action=jnp.clip(jnp.asarray(rollout.action), -0.8, 0.8))


def reset_successor(rollout: Any) -> Any:
    o = jnp.asarray(rollout.observation)
    axis = o.ndim - 3 if o.ndim == 4 else 0
    following = jnp.roll(o, -1, axis=axis)
    over = (jnp.asarray(rollout.terminated) | jnp.asarray(rollout.truncated))[..., None]
    return rollout._replace(next_observation=jnp.where(over, following, jnp.asarray(rollout.next_observation)))


def late_observation(rollout: Any) -> Any:
    o = jnp.asarray(rollout.observation)
    return rollout._replace(observation=jnp.roll(o, 2, axis=o.ndim - 3 if o.ndim == 4 else 0))


def no_terminations(rollout: Any) -> Any:
    return rollout._replace(terminated=jnp.zeros_like(rollout.terminated), truncated=jnp.zeros_like(rollout.truncated))


C, A, P, HC, HP = (CARTPOLE,), (ACROBOT,), (PENDULUM,), (HOST_CARTPOLE,), (HOST_PENDULUM,)
scaled = wrapped({"observe": lambda o: 1000 * o})
offset = wrapped({"observe": lambda o: o + 300})
blind = wrapped({"observe": lambda o: 0 * o})
rich = wrapped({"pay": lambda r, key: 10_000 * r})
poor = wrapped({"pay": lambda r, key: 0.0 * r})
constant_torque = wrapped({"pay": lambda r, key: 0.0 * r - 1})
early = wrapped({"over": lambda over, step: over | (step >= 20)})
RAW = {"normalize_rewards": False}
PLAIN = {"normalize_observations": False}

FAULTS = (
    Fault("learning rate far too high", "update_too_large", C + P, A + HC, {"learning_rate": 0.05}, {"learning_rate": 0.1}),
    Fault("learning rate too high", "update_too_large", C, A + HP, {"learning_rate": 0.02, "learning_rate_decay": False}),
    Fault("too many epochs", "update_too_large", P, HC, {"epochs": 60, "learning_rate": 3e-3}),
    Fault("learning rate too low", "update_too_small", C + P, A + HC, {"learning_rate": 1e-6}, {"learning_rate": 3e-7}),
    Fault("clip range too narrow", "update_too_small", C, HC, {"epsilon": 0.0005}, {"epsilon": 0.0002}),
    Fault("KL limit too strict", "update_too_small", P, C, {"target_kl": 1e-7}),
    Fault("KL penalty too strong", "update_too_small", C, A, {"beta": 3000.0}, {"beta": 10_000.0}, "ppo_kl_fixed"),
    Fault("entropy bonus too strong", "entropy_dominates", C, A + HC, {"entropy_coefficient": 2.0}, {"entropy_coefficient": 1.0}),
    Fault("discount too short", "horizon_too_short", P, C + HP, {"gamma": 0.2}, {"gamma": 0.1}),
    Fault("σ too large", "actions_clipped", P, HP, {"log_std_init": 2.5}, {"log_std_init": 3.0}),
    Fault("σ too small", "no_exploration", P, HP, {"log_std_init": -6.0}, {"log_std_init": -5.0}),
    Fault("batch too small", "batch_too_small", C, A, {"num_envs": 1, "rollout_steps": 4, "minibatches": 1, "learning_rate": 1e-3}),
    Fault("observations × 1000", "observations_unscaled", C + P, A + HC, PLAIN, environment=scaled),
    Fault("observations + 300", "observations_unscaled", C, HC + HP, PLAIN, environment=offset),
    Fault("observations all zero", "observations_uninformative", C + P, A + HC, environment=blind),
    Fault("rewards × 10⁴", "rewards_unscaled", C + P, A + HC, RAW, environment=rich),
    Fault("rewards all zero", "no_reward_signal", C + P, A + HC, environment=poor),
    Fault("reward is noise", "reward_noise", C, A + HC, environment=wrapped({"pay": noise})),
    Fault("actions are ignored", "actions_without_effect", C, HC, environment=wrapped({"act": any_action})),
    Fault("torques are ignored", "actions_without_effect", P, HP, environment=wrapped({"act": any_torque})),
    Fault("time limit told as death", "limit_as_termination", C, HC, environment=early),
    Fault("fake rows after resets", "fake_rows", C, A + HC, environment=fake_row),
    Fault("episodes never end", "episodes_never_end", C, HC, environment=wrapped({"over": lambda over, step: False}, unlimited=True)),
    Fault("episodes end at once", "episodes_end_at_once", C, A + HC, environment=wrapped({"over": lambda over, step: True})),
    Fault("bootstraps past death", "ends_ignored", C, A + HC, estimator=Broken("bootstraps")),
    Fault("leaks across resets", "ends_ignored", C, HC, estimator=Broken("leaks")),
    Fault("no bootstrap at limits", "truncation_not_bootstrapped", P, HP, estimator=Broken("limit is death")),
    Fault("return not propagated", "return_not_propagated", C + P, A + HC, estimator=Broken("one reward")),
    Fault("weight of the wrong sign", "credit_inconsistent", C + P, A, estimator=Broken("sign")),
    Fault("weight five steps late", "credit_inconsistent", C, HC + HP, estimator=Broken("late")),
    Fault("target without V", "credit_inconsistent", C, A + HP, estimator=Broken("target without value")),
    Fault("weight always zero", "no_policy_signal", C + P, A + HC, estimator=Broken("zero")),
    Fault("loss of the wrong sign", "objective_descends", C + P, A + HC, objective=BrokenClip("sign")),
    Fault("loss without gradient", "no_policy_signal", C, HP, objective=BrokenClip("no gradient")),
    Fault("log-probabilities of others", "log_prob_mismatch", C + P, A + HC, rollout=shifted_log_prob),
    Fault("clipped actions stored", "log_prob_mismatch", P, HP, rollout=cut_actions),
    Fault("successor is the next reset", "reset_as_successor", P, HC + HP, rollout=reset_successor),
    Fault("observations two steps late", "rows_misaligned", C + P, A + HC, rollout=late_observation),
    Fault("ends are not recorded", "ends_not_recorded", C, HC, rollout=no_terminations),
    Fault("reward never found", "no_reward_signal", (MOUNTAIN,), (MOUNTAIN,), {"log_std_init": -1.0}, {"log_std_init": -2.0}),
    Fault("environment slows down", "slows_down", HC, (HOST_ACROBOT,), environment=lambda name: lambda: Slower(gymnasium.make(name))),
)  # fmt: skip


@dataclass(frozen=True)
class Healthy:
    """A run with nothing wrong, though it may be slow or hard."""

    world: str
    algorithm: str
    settings: dict[str, Any] = field(default_factory=dict)
    preset: bool = False


OWN = ("reinforce", "reward_to_go", "reinforce_baseline", "actor_critic", "a2c", "gae", "ppo_kl", "ppo_kl_fixed", "ppo")
FAST = {"learning_rate": 1e-3}
HEALTHY = (
    *(Healthy(CARTPOLE, rung) for rung in OWN),
    *(Healthy(HOST_CARTPOLE, rung) for rung in OWN),
    *(Healthy(PENDULUM, rung) for rung in ("gae", "ppo_kl", "ppo_kl_fixed", "ppo")),
    *(Healthy(HOST_PENDULUM, rung) for rung in ("ppo_kl", "ppo")),
    *(Healthy(ACROBOT, rung) for rung in ("actor_critic", "gae", "ppo_kl", "ppo_kl_fixed", "ppo")),
    *(Healthy(GRID, rung) for rung in ("actor_critic", "gae", "ppo_kl", "ppo")),
    *(Healthy(KEY, rung) for rung in ("gae", "ppo")),
    Healthy(HOST_ACROBOT, "ppo"),
    *(Healthy(CARTPOLE, "ppo", s) for s in (
        {"seed": 10}, {"seed": 20}, {"num_envs": 32}, {"learning_rate": 1e-3}, {"learning_rate": 1e-4},
        {"gamma": 0.95}, {"gamma": 0.999}, {"epochs": 10}, {"entropy_coefficient": 0.0}, {"activation": "relu"},
        {"hidden_sizes": (32,)}, {"hidden_sizes": (256, 256)}, {"normalize_observations": True}, {"lambda_": 0.8},
    )),
    *(Healthy(CARTPOLE, "ppo", {"seed": s}, preset=True) for s in (0, 5)),
    *(Healthy(PENDULUM, "ppo", s) for s in (
        {"seed": 10}, {"log_std_init": -0.5}, {"lambda_": 0.9}, {"learning_rate": 5e-4}, {"activation": "relu"},
        {"gamma": 0.9},
    )),
    *(Healthy(ACROBOT, "ppo", s) for s in ({"seed": 10}, {"num_envs": 16}, {"epochs": 8}, {"normalize_observations": True})),
    Healthy(MOUNTAIN, "ppo", {"log_std_init": 1.0, "steps": 100_000, "gamma": 0.999, "num_envs": 8, "rollout_steps": 256}),
    Healthy(MOUNTAIN, "ppo", {"steps": 100_000}, preset=True),
    *(Healthy(f"jax:probe/{name}", "ppo", {"steps": 20_000, "num_envs": 16, "rollout_steps": 8, "gamma": 0.9, **FAST})
      for name in ("both", "delay", "action", "continuous", "multidiscrete", "multibinary")),
)  # fmt: skip
