"""Environments, an estimator, an objective and rollouts in which the faults of `doctor_faults.py` can be planted.

Each fault is a number passed to the compiled program as an argument, so many faults share one program.
"""

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

import upslope
from upslope.core.estimators import advantage_credit, discounted_sum, ends, td_error
from upslope.environments.base import CompiledEnvironment

SOUND: dict[str, float] = {
    "observe_scale": 1.0, "observe_shift": 0.0, "pay_scale": 1.0, "pay_noise": 0.0, "random_actions": 0.0,
    "over_at": 1e9, "never_over": 0.0, "fake_row": 0.0, "estimator": 0.0, "loss_factor": 1.0, "rollout": 0.0,
}  # fmt: skip
"""The values of `plant` that leave a run intact."""
ESTIMATORS = (
    "sound",
    "bootstraps",
    "leaks",
    "limit is death",
    "one reward",
    "sign",
    "late",
    "target without value",
    "zero",
)
ROLLOUTS = ("sound", "log_prob", "cut actions", "reset successor", "late observation", "no ends")


class Now:
    """The faults planted in the run that is being built or traced."""

    plant: ClassVar[dict[str, Any]] = SOUND


@dataclass(frozen=True, eq=False)
class Planted(CompiledEnvironment):
    """A compiled environment with the faults in `Now.plant`. Its state includes a step counter."""

    inner: Any
    unlimited: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "observation_space", unbounded(self.inner.observation_space))
        object.__setattr__(self, "action_space", self.inner.action_space)
        object.__setattr__(self, "max_episode_steps", None if self.unlimited else self.inner.max_episode_steps)

    def reset(self, key: Any) -> Any:
        state, observation = self.inner.reset(key)
        return (state, jnp.int32(0)), observe(observation)

    def step(self, key: Any, state: Any, action: Any) -> Any:
        inner, count = state
        space, p = self.action_space, Now.plant
        if isinstance(space, spaces.Discrete):
            other = jax.random.randint(key, jnp.shape(action), 0, int(space.n), jnp.int32)
        else:
            other = jax.random.uniform(key, jnp.shape(action), minval=space.low, maxval=space.high)
        action = jnp.where(p["random_actions"] > 0, other, action)
        inner, transition = self.inner.step(key, inner, action)
        reward = transition.reward * p["pay_scale"] + p["pay_noise"] * jax.random.normal(key)
        reward = jnp.where((p["fake_row"] > 0) & (count == 0), 0.0, reward)
        over = (transition.terminated | (count + 1 >= p["over_at"])) & ~(jnp.asarray(p["never_over"]) > 0)
        return (inner, count + 1), transition._replace(
            observation=observe(transition.observation), reward=jnp.float32(reward), terminated=over
        )


class HostPlanted(gymnasium.Wrapper):
    """An environment on the host with the faults in `Now.plant`."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.observation_space = unbounded(env.observation_space)
        self.p, self.generator = dict(Now.plant), np.random.default_rng(0)

    def observe(self, x: Any) -> Any:
        return np.asarray(x * self.p["observe_scale"] + self.p["observe_shift"], np.float32)

    def reset(self, **options: Any) -> Any:
        self.count = 0
        self.first, info = self.env.reset(**options)
        return self.observe(self.first), info

    def step(self, action: Any) -> Any:
        p, self.count = self.p, self.count + 1
        if p["fake_row"] and self.count == 1:
            return self.observe(self.first), 0.0, False, False, {}
        if p["random_actions"]:
            space = self.action_space
            is_box = isinstance(space, spaces.Box)
            action = self.generator.uniform(space.low, space.high) if is_box else int(self.generator.integers(space.n))
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward = float(reward) * p["pay_scale"] + p["pay_noise"] * self.generator.normal()
        over = (terminated or self.count >= p["over_at"]) and not p["never_over"]
        return self.observe(observation), reward, over, truncated, info


class Slower(gymnasium.Wrapper):
    """An environment that becomes slower over time, as if each step searched all previous observations."""

    seen: ClassVar[list[float]] = []

    def step(self, action: Any) -> Any:
        Slower.seen.append(time.perf_counter())
        if len(Slower.seen) % 50 == 0:
            time.sleep(len(Slower.seen) / 4e6)
        return self.env.step(action)


def observe(x: Any) -> Any:
    return jnp.float32(x * Now.plant["observe_scale"] + Now.plant["observe_shift"])


def unbounded(space: Any) -> spaces.Box:
    """Return the space without its bounds."""
    return spaces.Box(-np.inf, np.inf, space.shape, np.float32)


@dataclass(frozen=True)
class PlantedGAE(upslope.Estimator):
    """GAE with the mistake that `Now.plant` selects by its index in `ESTIMATORS`."""

    needs_critic: ClassVar[bool] = True
    whole_episodes: ClassVar[bool] = False

    def __call__(self, rollout: Any, values: Any, gamma: float) -> Any:
        def is_(name: str) -> Any:
            return jnp.asarray(Now.plant["estimator"]) == ESTIMATORS.index(name)

        died = jnp.where(is_("limit is death"), rollout.terminated | rollout.truncated, rollout.terminated)
        rollout = rollout._replace(terminated=died)
        through = rollout.reward + gamma * values.next_value - values.value
        delta = jnp.where(is_("bootstraps") | is_("leaks"), through, td_error(rollout, values, gamma))
        advantage = discounted_sum(delta, ends(rollout) & ~is_("leaks"), gamma * 0.95)
        weight, target = advantage_credit(advantage, rollout, values)
        for name, other in {
            "sign": (-weight, target),
            "late": (jnp.roll(weight, 5, axis=0), target),
            "zero": (0 * weight, target),
            "target without value": (weight, weight),
            "one reward": (rollout.reward - values.value, rollout.reward),
        }.items():
            weight, target = jnp.where(is_(name), other[0], weight), jnp.where(is_(name), other[1], target)
        return upslope.Credit(weight, target)


@dataclass(frozen=True)
class PlantedClip(upslope.Objective):
    """PPO's loss times a factor: −1 gives it the wrong sign, and 0 removes its gradient. ε is planted too."""

    def loss(self, state: Any, sample: Any) -> Any:
        ratio, epsilon = jnp.exp(sample.log_prob - sample.behaviour_log_prob), Now.plant["epsilon"]
        clipped = jnp.clip(ratio, 1 - epsilon, 1 + epsilon)
        return -jnp.minimum(ratio * sample.weight, clipped * sample.weight) * Now.plant["loss_factor"]


def broken_rollout(rollout: Any) -> Any:
    """Break a rollout [T, N] with the mistake that `Now.plant` selects by its index in `ROLLOUTS`."""

    def is_(name: str) -> Any:
        return jnp.asarray(Now.plant["rollout"]) == ROLLOUTS.index(name)

    o, over = rollout.observation, rollout.terminated | rollout.truncated
    action = rollout.action
    if jnp.issubdtype(jnp.asarray(action).dtype, jnp.floating):
        action = jnp.where(is_("cut actions"), jnp.clip(action, -0.8, 0.8), action)
    first = jnp.where(over[..., None], jnp.roll(o, -1, axis=0), rollout.next_observation)
    mu = rollout.behaviour_log_prob
    return rollout._replace(
        action=action,
        observation=jnp.where(is_("late observation"), jnp.roll(o, 2, axis=0), o),
        next_observation=jnp.where(is_("reset successor"), first, rollout.next_observation),
        behaviour_log_prob=jnp.where(is_("log_prob"), jnp.roll(mu, 1, axis=-1), mu),
        terminated=rollout.terminated & ~is_("no ends"),
        truncated=rollout.truncated & ~is_("no ends"),
    )
