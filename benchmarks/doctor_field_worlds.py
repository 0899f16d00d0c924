"""The environments of `benchmarks/doctor_field.py`, with faults planted in them. Nothing here belongs to the library.

The six sources are Gymnasium on the host, upslope's compiled environments, gymnax, MiniGrid, and two families defined
here: regulators, whose task is to keep a quantity at a set point, and unusual environments, which are sparse, noisy,
drifting or partially observed. Every environment is wrapped so that `Now.plant` can break it. A fault is a number, so
runs with different faults can share a compiled program.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from doctor_planting import SOUND, Now, unbounded
from gymnasium import spaces

from upslope.core.types import Transition
from upslope.environments.base import CompiledEnvironment

FIELD_SOUND: dict[str, float] = SOUND | {
    "epsilon": 0.2, "rate_factor": 1.0, "act_scale": 1.0, "pay_always": 0.0, "stale": 0.0,
}  # fmt: skip
"""The values of `plant` that leave an environment intact. This bank adds three faults: a factor on actions, a constant
reward (unless 0), and an observation that never changes after the reset."""
OF_REWARDS_AND_ENDS = ("pay_scale", "pay_noise", "pay_always", "over_at", "never_over", "fake_row")
"""Faults that are removed before a policy is evaluated, so that it is scored with the intended rewards and episode
ends."""


@dataclass(frozen=True, eq=False)
class Planted(CompiledEnvironment):
    """A compiled environment with the faults in `Now.plant`. Observations are vectors; an index becomes a one-hot
    vector."""

    inner: Any
    unlimited: bool = False

    def __post_init__(self) -> None:
        space = self.inner.observation_space
        count = int(space.n) if isinstance(space, spaces.Discrete) else int(np.prod(space.shape))
        object.__setattr__(self, "observation_space", spaces.Box(-np.inf, np.inf, (count,), np.float32))
        object.__setattr__(self, "action_space", self.inner.action_space)
        object.__setattr__(self, "max_episode_steps", None if self.unlimited else self.inner.max_episode_steps)

    def observe(self, x: Any) -> Any:
        space = self.inner.observation_space
        x = jax.nn.one_hot(x, int(space.n)) if isinstance(space, spaces.Discrete) else jnp.ravel(x)
        return jnp.float32(x * Now.plant["observe_scale"] + Now.plant["observe_shift"])

    def reset(self, key: Any) -> Any:
        state, observation = self.inner.reset(key)
        observation = self.observe(observation)
        return (state, jnp.int32(0), observation), observation

    def step(self, key: Any, state: Any, action: Any) -> Any:
        inner, count, first = state
        space, p = self.action_space, Now.plant
        if isinstance(space, spaces.Discrete):
            other = jax.random.randint(key, jnp.shape(action), 0, int(space.n), jnp.int32)
        else:
            other = jax.random.uniform(key, jnp.shape(action), minval=space.low, maxval=space.high)
            action = jnp.clip(action, space.low, space.high) * p["act_scale"]
        action = jnp.where(p["random_actions"] > 0, other, action)
        inner, transition = self.inner.step(key, inner, action)
        reward = transition.reward * p["pay_scale"] + p["pay_noise"] * jax.random.normal(key)
        reward = jnp.where(jnp.asarray(p["pay_always"]) != 0, p["pay_always"], reward)
        reward = jnp.where((p["fake_row"] > 0) & (count == 0), 0.0, reward)
        over = (transition.terminated | (count + 1 >= p["over_at"])) & ~(jnp.asarray(p["never_over"]) > 0)
        observation = jnp.where(jnp.asarray(p["stale"]) > 0, first, self.observe(transition.observation))
        return (inner, count + 1, first), transition._replace(
            observation=observation, reward=jnp.float32(reward), terminated=over
        )


class HostPlanted(gymnasium.Wrapper):
    """An environment on the host with the faults in `plant`."""

    def __init__(self, env: gymnasium.Env, plant: dict[str, float]):
        super().__init__(env)
        self.observation_space = unbounded(env.observation_space)
        self.p, self.generator = plant, np.random.default_rng(0)

    def observe(self, x: Any) -> Any:
        return np.asarray(x * self.p["observe_scale"] + self.p["observe_shift"], np.float32)

    def reset(self, **options: Any) -> Any:
        self.count = 0
        first, info = self.env.reset(**options)
        self.first = self.observe(first)
        return self.first.copy(), info

    def step(self, action: Any) -> Any:
        p, self.count = self.p, self.count + 1
        if p["fake_row"] and self.count == 1:
            return self.first.copy(), 0.0, False, False, {}
        space = self.action_space
        is_box = isinstance(space, spaces.Box)
        if p["random_actions"]:
            drawn = self.generator.uniform(space.low, space.high) if is_box else self.generator.integers(space.n)
            action = np.asarray(drawn, np.float32) if is_box else int(drawn)
        elif is_box:
            action = np.asarray(action * p["act_scale"], np.float32)
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward = float(reward) * p["pay_scale"] + p["pay_noise"] * self.generator.normal()
        reward = p["pay_always"] or reward
        over = (terminated or self.count >= p["over_at"]) and not p["never_over"]
        return self.first.copy() if p["stale"] else self.observe(observation), reward, over, truncated, info


@dataclass(frozen=True, eq=False)
class Gymnax(CompiledEnvironment):
    """An adapter for gymnax environments."""

    inner: Any
    parameters: Any
    observation_space: Any
    action_space: Any
    max_episode_steps: int | None

    def reset(self, key: Any) -> Any:
        observation, state = self.inner.reset_env(key, self.parameters)
        return state, jnp.float32(observation)

    def step(self, key: Any, state: Any, action: Any) -> Any:
        observation, state, reward, terminated, _ = self.inner.step_env(key, state, action, self.parameters)
        no = jnp.zeros((), bool)
        return state, Transition(jnp.float32(observation), jnp.float32(reward), jnp.asarray(terminated, bool), no)


def of_gymnax(name: str, limit: int, make_options: dict[str, Any] | None = None, **changes: Any) -> Gymnax:
    """Return a gymnax environment with this time limit. Each has its own type, because compiled programs are cached by
    type."""
    import gymnax

    env, parameters = gymnax.make(name, **(make_options or {}))
    parameters = parameters.replace(**changes)
    action = env.action_space(parameters)
    observation = env.observation_space(parameters).shape
    is_box = hasattr(action, "low")
    kind = type(f"Gymnax{name.partition('-')[0]}", (Gymnax,), {})
    return kind(
        env, parameters, spaces.Box(-np.inf, np.inf, observation, np.float32),
        spaces.Box(*(np.broadcast_to(np.float32(x), action.shape) for x in (action.low, action.high)), dtype=np.float32)
        if is_box else spaces.Discrete(int(action.n)),
        limit,
    )  # fmt: skip


def box(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)


ENDLESS = np.zeros((), bool)


def told(observation: Any, reward: Any, terminated: Any = ENDLESS) -> Transition:
    return Transition(jnp.float32(observation), jnp.float32(reward), jnp.asarray(terminated, bool), ENDLESS)


@dataclass(frozen=True, eq=False)
class Regulator(CompiledEnvironment):
    """A regulator that must keep a point mass at zero in every dimension. The cost is x² + 0.1 a²."""

    mass: float = 1.0
    size: int = 1
    friction: float = 0.1
    pushes: int = 0
    """Number of evenly spaced discrete forces; 0 means that the force is continuous."""
    max_episode_steps: int | None = 60

    def __post_init__(self) -> None:
        object.__setattr__(self, "observation_space", box(2 * self.size))
        one = spaces.Box(-1.0, 1.0, (self.size,), np.float32)
        object.__setattr__(self, "action_space", spaces.Discrete(self.pushes) if self.pushes else one)

    def reset(self, key: Any) -> Any:
        x = jax.random.uniform(key, (self.size,), minval=-1.0, maxval=1.0)
        state = jnp.concatenate([x, jnp.zeros(self.size)])
        return state, state

    def step(self, key: Any, state: Any, action: Any) -> Any:
        x, v = state[: self.size], state[self.size :]
        a = 2 * action / (self.pushes - 1) - 1 + jnp.zeros(self.size) if self.pushes else jnp.clip(action, -1, 1)
        v = (1 - self.friction) * v + 0.2 * a / self.mass
        x = x + 0.2 * v
        state = jnp.concatenate([x, v])
        return state, told(state, -jnp.sum(x**2 + 0.1 * a**2))


@dataclass(frozen=True, eq=False)
class Unstable(CompiledEnvironment):
    """A regulator for an unstable system with noise: x' = 1.1 x + 0.4 a + noise, clipped to ±5. The cost is |x|."""

    observation_space: Any = field(default_factory=lambda: box(1))
    action_space: Any = field(default_factory=lambda: spaces.Box(-1.0, 1.0, (1,), np.float32))
    max_episode_steps: int | None = 50

    def reset(self, key: Any) -> Any:
        x = jax.random.uniform(key, (1,), minval=-0.5, maxval=0.5)
        return x, x

    def step(self, key: Any, state: Any, action: Any) -> Any:
        x = 1.1 * state + 0.4 * jnp.clip(action, -1, 1) + 0.02 * jax.random.normal(key, (1,))
        x = jnp.clip(x, -5, 5)
        return x, told(x, -jnp.abs(x[0]))


@dataclass(frozen=True, eq=False)
class Thermostat(CompiledEnvironment):
    """A regulator that must keep a room at 20 °C in changing weather by turning the heating on or off. The cost is the
    deviation in degrees, plus fuel."""

    observation_space: Any = field(default_factory=lambda: box(3))
    action_space: Any = field(default_factory=lambda: spaces.Discrete(2))
    max_episode_steps: int | None = 96

    def seen(self, state: Any) -> Any:
        return jnp.stack([(state[0] - 20) / 5, jnp.sin(state[1]), jnp.cos(state[1])])

    def reset(self, key: Any) -> Any:
        first, second = jax.random.split(key)
        state = jnp.stack([jax.random.uniform(first, minval=12.0, maxval=28.0), jax.random.uniform(second) * 6.28])
        return state, self.seen(state)

    def step(self, key: Any, state: Any, action: Any) -> Any:
        degrees, phase = state
        outside = 8 + 6 * jnp.sin(phase)
        degrees = degrees + 0.1 * (outside - degrees) + 3.0 * action + 0.1 * jax.random.normal(key)
        state = jnp.stack([degrees, phase + 2 * jnp.pi / 96])
        return state, told(self.seen(state), -jnp.abs(degrees - 20) / 5 - 0.02 * action)


@dataclass(frozen=True, eq=False)
class Inventory(CompiledEnvironment):
    """A store that orders up to five items a day to meet a random demand. The demand causes most of the reward's
    variance."""

    observation_space: Any = field(default_factory=lambda: box(2))
    action_space: Any = field(default_factory=lambda: spaces.Discrete(6))
    max_episode_steps: int | None = 50

    def reset(self, key: Any) -> Any:
        state = jnp.float32(jax.random.randint(key, (2,), 0, 8))
        return state, state / 10

    def step(self, key: Any, state: Any, action: Any) -> Any:
        stock, ordered = state
        demand = jnp.float32(jax.random.poisson(key, 2.5))
        stock = jnp.minimum(stock + ordered, 20.0)
        sold = jnp.minimum(stock, demand)
        state = jnp.stack([stock - sold, jnp.float32(action)])
        return state, told(state / 10, 3 * sold - 1.5 * action - 0.3 * (stock - sold))


@dataclass(frozen=True, eq=False)
class Corridor(CompiledEnvironment):
    """Eight cells in a row with a single reward at the far end. Occasionally, a step goes in the opposite direction."""

    cells: int = 8
    observation_space: Any = field(default_factory=lambda: box(8))
    action_space: Any = field(default_factory=lambda: spaces.Discrete(2))
    max_episode_steps: int | None = 60

    def reset(self, key: Any) -> Any:
        return jnp.int32(0), jax.nn.one_hot(0, self.cells)

    def step(self, key: Any, state: Any, action: Any) -> Any:
        right = jnp.where(jax.random.uniform(key) < 0.1, 1 - action, action)
        state = jnp.clip(state + 2 * right - 1, 0, self.cells - 1)
        over = state == self.cells - 1
        return state, told(jax.nn.one_hot(state, self.cells), over, over)


@dataclass(frozen=True, eq=False)
class Cue(CompiledEnvironment):
    """A task that needs memory: a cue is shown only in the first step, and the last action must match it."""

    length: int = 10
    choices: int = 2
    distractors: int = 0
    cost: float = 0.0
    """The cost of each step."""
    max_episode_steps: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "observation_space", box(self.choices + 1 + self.distractors))
        object.__setattr__(self, "action_space", spaces.Discrete(self.choices))
        object.__setattr__(self, "max_episode_steps", self.length)

    def seen(self, key: Any, cue: Any, t: Any) -> Any:
        shown = jax.nn.one_hot(cue, self.choices) * (t == 0)
        noise = jax.random.normal(key, (self.distractors,))
        return jnp.concatenate([shown, jnp.float32(t / self.length)[None], noise])

    def reset(self, key: Any) -> Any:
        cue = jax.random.randint(key, (), 0, self.choices, jnp.int32)
        return (cue, jnp.int32(0)), self.seen(key, cue, 0)

    def step(self, key: Any, state: Any, action: Any) -> Any:
        cue, t = state
        t = t + 1
        over = t == self.length
        return (cue, t), told(self.seen(key, cue, t), over * jnp.float32(action == cue) - self.cost, over)


@dataclass(frozen=True, eq=False)
class Chase(CompiledEnvironment):
    """A task in which the agent follows a drifting target whose position it observes two steps late."""

    observation_space: Any = field(default_factory=lambda: box(3))
    action_space: Any = field(default_factory=lambda: spaces.Discrete(3))
    max_episode_steps: int | None = 80

    def reset(self, key: Any) -> Any:
        x, target = jax.random.uniform(key, (2,), minval=-2.0, maxval=2.0)
        state = jnp.stack([x, target, target, target, 0.0])
        return state, self.seen(state)

    def seen(self, state: Any) -> Any:
        return jnp.stack([state[0], state[3], state[3] - state[0]])

    def step(self, key: Any, state: Any, action: Any) -> Any:
        x, target, before, _, drift = state
        drift = 0.9 * drift + 0.05 * jax.random.normal(key)
        x = jnp.clip(x + 0.2 * (action - 1), -4, 4)
        state = jnp.stack([x, jnp.clip(target + drift, -4, 4), target, before, drift])
        return state, told(self.seen(state), 1 - jnp.abs(x - state[1]))


class Drifting(gymnasium.Wrapper):
    """CartPole with a motor that wears out: over 20,000 steps, its force falls to one half."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.taken = 0

    def step(self, action: Any) -> Any:
        self.taken += 1
        force = 10.0 * (1 - 0.5 * min(1.0, self.taken / 20_000))
        self.unwrapped.force_mag = force  # type: ignore[attr-defined]  # CartPole's own attribute
        return self.env.step(action)


class Pixels(gymnasium.ObservationWrapper):
    """MiniGrid's image as a vector of numbers of order 1, without the mission."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.observation_space = box(int(np.prod(env.observation_space["image"].shape)))  # type: ignore[index]  # a Dict

    def observation(self, observation: Any) -> Any:
        return np.float32(observation["image"].ravel()) / 5


def of_gymnasium(name: str, **options: Any) -> Callable[[], gymnasium.Env]:
    """Return a function that creates a Gymnasium environment with vector observations."""

    def create() -> gymnasium.Env:
        if name.startswith("MiniGrid"):
            import minigrid  # noqa: F401  # registers its environments with Gymnasium

            return Pixels(gymnasium.make(name, **options))
        env = gymnasium.make(name, **options)
        return env if isinstance(env.observation_space, spaces.Box) else gymnasium.wrappers.FlattenObservation(env)

    return create


def of_upslope(name: str) -> CompiledEnvironment:
    from upslope.environments.registry import make

    world = make(f"jax:{name}")
    assert isinstance(world, CompiledEnvironment)
    return world


DISCRETE = {"learning_rate": 1e-3}
RAW = {"normalize_rewards": False}
"""Settings for environments in which some runs have a planted reward scale. Normalisation would hide the fault, so it
is off in all runs."""
CONTROL = {"num_envs": 8, "rollout_steps": 128, "epochs": 10, "minibatches": 8, "learning_rate": 1e-3, "gamma": 0.95,
           "normalize_observations": False}  # fmt: skip


@dataclass(frozen=True)
class World:
    """An environment of the bank, with settings chosen to learn it well."""

    name: str
    source: str
    half: str
    make: Callable[[], Any]
    """Creates the compiled environment, or a function that creates one on the host."""
    settings: dict[str, Any]
    seeds: int = 1

    @property
    def is_compiled(self) -> bool:
        return self.source != "Gymnasium" and self.source != "MiniGrid" and self.name != "worn cart"


C, T = "calibration", "test"
WORLDS = {world.name: world for world in (
    World("cartpole", "upslope", C, lambda: of_upslope("CartPole-v1"), {**DISCRETE, "steps": 40_000}, 2),
    World("pendulum", "upslope", C, lambda: of_upslope("Pendulum-v1"), {**CONTROL, "steps": 40_000}, 2),
    World("catch", "gymnax", C, lambda: of_gymnax("Catch-bsuite", 9), {**DISCRETE, "steps": 40_000}, 2),
    World("frozen lake", "Gymnasium", C, lambda: of_gymnasium("FrozenLake-v1"), {**DISCRETE, "steps": 20_000}),
    World("mountain car", "Gymnasium", C, lambda: of_gymnasium("MountainCar-v0"), {**DISCRETE, "steps": 20_000}),
    World("empty room", "MiniGrid", C, lambda: of_gymnasium("MiniGrid-Empty-5x5-v0"), {**DISCRETE, "steps": 15_000}),
    World("light mass", "regulators", C, lambda: Regulator(), {**CONTROL, "steps": 40_000}, 2),
    World("pushed mass", "regulators", C, lambda: Regulator(0.7, pushes=3), {**DISCRETE, **RAW, "steps": 40_000}),
    World("cue", "odd", C, lambda: Cue(), {**DISCRETE, "steps": 30_000}, 2),
    World("corridor", "odd", C, lambda: Corridor(), {**DISCRETE, "steps": 30_000}),
    World("gridworld", "upslope", T, lambda: of_upslope("GridWorld-v0"), {**DISCRETE, "steps": 30_000}, 2),
    World("inverted pendulum", "Gymnasium", T, lambda: of_gymnasium("InvertedPendulum-v5"),
          {**CONTROL, "gamma": 0.99, "steps": 25_000}),
    World("blackjack", "Gymnasium", T, lambda: of_gymnasium("Blackjack-v1"), {**DISCRETE, "steps": 20_000}),
    World("taxi", "Gymnasium", T, lambda: of_gymnasium("Taxi-v4"), {**DISCRETE, "steps": 20_000}),
    World("deep sea", "gymnax", T, lambda: of_gymnax("DeepSea-bsuite", 6, {"size": 6}, randomize_actions=False),
          {**DISCRETE, "steps": 30_000}, 2),
    World("discounting chain", "gymnax", T, lambda: of_gymnax("DiscountingChain-bsuite", 40),
          {**DISCRETE, "steps": 30_000}),
    World("point robot", "gymnax", T, lambda: of_gymnax("PointRobot-misc", 50, dense_reward=True),
          {**CONTROL, "steps": 40_000}, 2),
    World("valley", "gymnax", T, lambda: of_gymnax("MountainCar-v0", 200), {**DISCRETE, "steps": 30_000}, 2),
    World("moving obstacles", "MiniGrid", T, lambda: of_gymnasium("MiniGrid-Dynamic-Obstacles-5x5-v0"),
          {**DISCRETE, "steps": 12_000}),
    World("two masses", "regulators", T, lambda: Regulator(2.0, 2, 0.05), {**CONTROL, **RAW, "steps": 40_000}, 2),
    World("unstable", "regulators", T, lambda: Unstable(), {**CONTROL, "steps": 40_000}),
    World("thermostat", "regulators", T, lambda: Thermostat(), {**DISCRETE, **RAW, "steps": 40_000}, 2),
    World("inventory", "odd", T, lambda: Inventory(), {**DISCRETE, "steps": 40_000}, 2),
    World("long cue", "odd", T, lambda: Cue(25, 3, 2, 0.02), {**DISCRETE, "steps": 40_000}),
    World("chase", "odd", T, lambda: Chase(), {**DISCRETE, **RAW, "steps": 40_000}),
    World("worn cart", "odd", T, lambda: lambda: Drifting(gymnasium.make("CartPole-v1")),
          {**DISCRETE, "steps": 20_000}),
)}  # fmt: skip
"""Name → environment. Rules may be changed to fit the environments whose `half` is "calibration"."""
