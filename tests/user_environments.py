"""Small Gymnasium environments for the tests, as users might write them."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium import spaces

from upslope import CompiledEnvironment, Transition
from upslope.engines.columns import reset_seed


class Walk(gymnasium.Env):
    """A noisy walk on a line, determined by its reset seed and the actions. It has no step limit.

    The observation is (position, steps so far / 10); the episode terminates outside ±1.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-10.0, 1e6, (2,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.position, self.steps = self.np_random.uniform(-0.5, 0.5), 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        self.position += (0.1 if action == 1 else -0.1) + self.np_random.normal(0, 0.1)
        return self.observe(), 1.0 - abs(self.position), abs(self.position) > 1, False, {}

    def observe(self) -> Any:
        return np.array([self.position, self.steps / 10], np.float32)


class Faulty(Walk):
    """A walk in which each instance fails at step `at` of its lifetime. `kind` selects the failure, if any."""

    kind: ClassVar[str | None] = None
    at: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.life = 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        self.life += 1
        observation, reward, terminated, truncated, info = super().step(action)
        if self.life == Faulty.at:
            if Faulty.kind == "raises":
                raise RuntimeError("the simulator is gone")
            if Faulty.kind == "observation is nan":
                observation = np.array([np.nan, 0.0], np.float32)
            if Faulty.kind == "reward is nan":
                reward = float("nan")
            if Faulty.kind == "wrong shape":
                observation = np.zeros(3, np.float32)
        return observation, reward, terminated, truncated, info


class OwnRandomness(Walk):
    """A walk that also draws from a generator not controlled by the reset seed, so episodes are not reproducible."""

    generator = np.random.default_rng()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.position += OwnRandomness.generator.normal(0, 0.01)
        return super().step(action)


class OwnRewards(Walk):
    """A walk whose observations are reproducible, but whose rewards carry noise that no reset seed controls."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward + OwnRandomness.generator.normal(), terminated, truncated, info


class TwoAxes(Walk):
    """A walk whose observation is a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-10.0, 1e6, (1, 2), np.float32)

    def observe(self) -> Any:
        return super().observe()[None]


class Counting(gymnasium.Env):
    """The observation is (episode number, step), which makes fake transitions and wrong successors visible.

    The reward of step t is t. Every episode that terminates is added to `finished` as (return, length).
    """

    finished: ClassVar[list[tuple[float, int]]] = []

    def __init__(self, length: int = 7) -> None:
        self.observation_space = spaces.Box(-1.0, 1e6, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.episode, self.length = -1, length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.episode, self.steps, self.total = self.episode + 1, 0, 0.0
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        self.total += self.steps
        terminated = self.steps >= self.length
        if terminated:
            Counting.finished.append((self.total, self.steps))
        return np.array([self.episode, self.steps], np.float32), float(self.steps), terminated, False, {}


class Spaced(Walk):
    """A walk that declares other spaces and returns samples of its observation space."""

    def __init__(self, observation_space: spaces.Space | None = None, action_space: spaces.Space | None = None):
        super().__init__()
        self.observation_space = observation_space or self.observation_space
        self.action_space = action_space or self.action_space

    def observe(self) -> Any:
        return self.observation_space.sample()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self.steps += 1
        return self.observe(), 1.0, self.steps >= 5, False, {}


def double_precision() -> Spaced:
    return Spaced(spaces.Box(-1.0, 1.0, (3,), np.float64))


def several_choices() -> Spaced:
    return Spaced(action_space=spaces.MultiDiscrete([2, 3]))


class Levers(Walk):
    """A reproducible walk with several levers: it moves right if their settings have an odd sum, and left otherwise."""

    def __init__(self, action_space: spaces.Space):
        super().__init__()
        self.action_space = action_space

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return super().step(int(np.sum(action) % 2))


def many_choices() -> Levers:
    return Levers(spaces.MultiDiscrete([2, 3]))


def switches() -> Levers:
    return Levers(spaces.MultiBinary(3))


def image() -> Spaced:
    return Spaced(spaces.Box(0, 255, (8, 8, 3), np.uint8))


def tuple_actions() -> Spaced:
    return Spaced(action_space=spaces.Tuple([spaces.Discrete(2), spaces.Text(3)]))


def configurable(continuous: bool = False) -> Spaced:
    return Spaced(action_space=spaces.Box(-1.0, 1.0, (2,), np.float32) if continuous else None)


def needs_an_argument(size: int) -> Walk:
    return Walk()


def normalised_walk(*, is_fixed: bool = False) -> gymnasium.Env:
    """Create a walk whose observations a wrapper scales, by running or by fixed statistics."""
    env = gymnasium.wrappers.NormalizeObservation(gymnasium.wrappers.TimeLimit(Walk(), 20))
    env.update_running_mean = not is_fixed
    return gymnasium.wrappers.RecordEpisodeStatistics(env)


def takes_anything(**options: Any) -> Walk:
    """Pass its arguments on to a class that takes none."""
    return Walk(**options)


def cannot_be_made() -> Walk:
    raise ValueError("no licence found")


class Cursed(Walk):
    """A walk that fails in the second step of seed 1's fourth episode if a file exists.

    The file contains the kind of failure, which occurs in the first environment or, with "elsewhere", in the fourth.
    """

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        self.place = {reset_seed(1, 0, 3): "", reset_seed(1, 3, 3): " elsewhere"}.get(seed)
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        answer = super().step(action)
        curse = Path(os.environ["CURSE"])
        if self.place is not None and self.steps == 2 and curse.exists():
            kind = curse.read_text().removesuffix(" elsewhere")
            if curse.read_text() != kind + self.place:
                return answer
            if kind == "raises":
                raise RuntimeError("the simulator is gone")
            if kind == "dies":
                os._exit(3)
            if kind == "hangs":
                time.sleep(600)
            if kind == "sleeps":
                time.sleep(2)
        return answer


class Still(gymnasium.Env):
    """Returns zeros as observations, rewards action 1, and never ends; most subclasses change one of these."""

    observation_space: spaces.Space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space: spaces.Space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.show(), {}

    def step(self, action: Any) -> Any:
        return self.show(), float(sum(np.sum(part) for part in jax.tree.leaves(action))), False, False, {}

    def show(self) -> Any:
        return np.zeros(2, np.float32)


class Shows(Still):
    """Declares an observation space and returns `draw(generator)` as its observations."""

    def __init__(self, space: spaces.Space, draw: Any):
        self.observation_space, self.draw = space, draw

    def show(self) -> Any:
        return self.draw(self.np_random)


class Answers(Still):
    """Passes the correct results of `reset` and `step` through functions that may change them."""

    def __init__(self, change: Any, change_reset: Any = lambda answer: answer):
        self.change, self.change_reset = change, change_reset

    def reset(self, **arguments: Any) -> Any:
        return self.change_reset(super().reset(**arguments))

    def step(self, action: Any) -> Any:
        return self.change(super().step(action))


class Strict(Still):
    """Accepts only actions that its action space contains, and does not modify them."""

    def __init__(self, action_space: spaces.Space):
        self.action_space = action_space

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        if isinstance(self.action_space, spaces.Box):
            assert isinstance(action, np.ndarray)
            assert action.dtype == self.action_space.dtype
            action = np.array(action)
        return super().step(action)


def narrow_doubles() -> Strict:
    return Strict(spaces.Box(-0.1, 0.1, (2,), np.float64))


def matrix() -> Strict:
    return Strict(spaces.Box(-1.0, 1.0, (2, 3), np.float32))


def scalar() -> Strict:
    return Strict(spaces.Box(-1.0, 1.0, (), np.float32))


class Simulated(Still):
    """Starts another program, which runs until the environment is closed.

    Events are recorded in the file $SIMULATIONS. $FAILS selects where the environment fails: init, step or close.
    """

    def __init__(self, reads: bool = False) -> None:
        if self.fails_in("init") and self.count("open") >= 3:
            raise RuntimeError("no more licences")
        wait = "import sys; sys.stdin.read()" if reads else "import time; time.sleep(60)"
        self.program = subprocess.Popen([sys.executable, "-c", wait])
        self.note("open")

    def note(self, word: str) -> None:
        with Path(os.environ["SIMULATIONS"]).open("a") as log:
            log.write(word + "\n")

    @staticmethod
    def count(word: str) -> int:
        log = Path(os.environ["SIMULATIONS"])
        return log.read_text().split().count(word) if log.exists() else 0

    @staticmethod
    def fails_in(place: str) -> bool:
        return os.environ.get("FAILS") == place

    def step(self, action: Any) -> Any:
        if self.fails_in("step"):
            raise RuntimeError("the simulator is gone")
        self.note("step")
        return super().step(action)

    def close(self) -> None:
        self.program.kill()
        self.program.wait()
        self.note("close")
        if self.fails_in("close"):
            raise RuntimeError("cannot be closed")


def reads_its_input() -> Simulated:
    return Simulated(reads=True)


class Senses(Walk):
    """A walk whose observation is a dictionary of arrays of every kind, some of them nested."""

    def __init__(self) -> None:
        super().__init__()
        inner = spaces.Dict({"bits": spaces.MultiBinary(3), "digits": spaces.MultiDiscrete([3, 4], start=[1, 0])})
        self.observation_space = spaces.Dict(
            {
                "position": spaces.Box(-10.0, 10.0, (1,), np.float64),
                "side": spaces.Discrete(2, start=5),
                "more": spaces.Tuple([inner, spaces.Box(0, 1000, (), np.float32)]),
            }
        )

    def observe(self) -> Any:
        count = min(self.steps, 7)
        bits = np.array([count & 1, count >> 1 & 1, count >> 2 & 1], np.int8)
        inner = {"bits": bits, "digits": np.array([1 + count % 3, count % 4])}
        position = np.array([np.clip(self.position, -10, 10)])
        return {"side": 5 + int(self.position > 0), "more": (inner, np.float32(self.steps)), "position": position}


class Told(Senses):
    """`Senses` with two more entries that no network can read: one at the top level, and one in a nested space."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict(
            {
                **self.observation_space.spaces,
                "mission": spaces.Text(20),
                "deep": spaces.Dict({"a/b": spaces.Sequence(spaces.Discrete(2))}),
            }
        )

    def observe(self) -> Any:
        return super().observe() | {"mission": "go right", "deep": {"a/b": (0, 1)}}


class Pictures(Walk):
    """A walk whose observation is a picture with a bright bar, a board with a mark, and the number of steps."""

    def __init__(self) -> None:
        super().__init__()
        picture, board = spaces.Box(0, 255, (3, 20, 18), np.uint8), spaces.Box(0, 255, (7, 7), np.uint8)
        self.observation_space = spaces.Dict(
            {"picture": picture, "boards": spaces.Tuple([board]), "steps": spaces.Box(0, 100, (1,), np.float32)}
        )

    def observe(self) -> Any:
        picture, board = np.zeros((3, 20, 18), np.uint8), np.zeros((7, 7), np.uint8)
        place = int(np.clip(self.position, -8, 8)) + 9
        picture[:, :, place] = 255
        board[place // 3, place % 3] = 2
        return {"picture": picture, "boards": (board,), "steps": np.array([self.steps], np.float32)}


class CompiledPictures(CompiledEnvironment):
    """A corridor in which moving right is rewarded. The observation is a board with the position, and a flag."""

    observation_space = spaces.Tuple([spaces.Box(0, 255, (6, 6, 2), np.uint8), spaces.Discrete(2)])
    action_space = spaces.Discrete(2)
    max_episode_steps = 8

    def reset(self, key: Any) -> tuple[Any, Any]:
        place = jax.random.randint(key, (), 1, 4)
        return place, self.observe(place)

    def step(self, key: Any, state: Any, action: Any) -> tuple[Any, Transition]:
        place = jnp.clip(state + 2 * action - 1, 0, 5)
        return place, Transition(
            self.observe(place), jnp.float32(2 * action - 1), jnp.zeros((), bool), jnp.zeros((), bool)
        )

    def observe(self, place: Any) -> Any:
        return jnp.zeros((6, 6, 2), jnp.uint8).at[place, 2, 0].set(1), jnp.int32(place > 2)


class CompiledSenses(CompiledEnvironment):
    """A corridor in which moving right is rewarded. The observation is a dictionary of arrays of several kinds."""

    observation_space = spaces.Dict(
        {
            "position": spaces.Box(-5.0, 5.0, (1,), np.float32),
            "inner": spaces.Tuple([spaces.Discrete(11), spaces.MultiBinary(2)]),
            "far": spaces.MultiDiscrete([2, 2]),
        }
    )
    action_space = spaces.Discrete(2)
    max_episode_steps = 8

    def reset(self, key: Any) -> tuple[Any, Any]:
        place = jax.random.randint(key, (), -2, 3)
        return place, self.observe(place)

    def step(self, key: Any, state: Any, action: Any) -> tuple[Any, Transition]:
        place = state + 2 * action - 1
        over = jnp.abs(place) >= 5
        reward = jnp.float32(2 * action - 1)
        return place, Transition(self.observe(place), reward, over, jnp.zeros((), bool))

    def observe(self, place: Any) -> Any:
        bits = jnp.stack([place > 0, place < 0]).astype(jnp.int8)
        far = jnp.stack([place > 2, place < -2]).astype(jnp.int32)
        return {"position": place[None].astype(jnp.float32), "inner": (place + 5, bits), "far": far}


class Fenced(Walk):
    """A walk with three actions. In each step, either the move away from the centre or the third action is forbidden.

    A forbidden action raises an error. `info["action_mask"]` contains the mask, except at the end of an episode.
    """

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(3)

    def allowed(self) -> np.ndarray:
        forbidden = 2 if self.steps % 3 == 0 else 1 if self.position > 0 else 0
        return (np.arange(3) != forbidden).astype(np.int8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        return super().reset(seed=seed)[0], {"action_mask": self.allowed()}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        if not self.allowed()[action]:
            raise ValueError(f"action {action} is forbidden")
        observation, reward, terminated, truncated, _ = super().step(action)
        return observation, reward, terminated, truncated, {} if terminated else {"action_mask": self.allowed()}


class FencedByMethod(Fenced):
    """`Fenced` with the mask provided by a method, as sb3-contrib expects it."""

    def reset(self, **options: Any) -> tuple[Any, dict]:
        return super().reset(**options)[0], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        return *super().step(action)[:-1], {}

    def action_masks(self) -> np.ndarray:
        return self.allowed().astype(bool)


class FencedByKey(Fenced):
    """`Fenced` with the mask as part of the observation."""

    def __init__(self) -> None:
        super().__init__()
        parts = {"action_mask": spaces.MultiBinary(3), "walk": self.observation_space}
        self.observation_space = spaces.Dict(parts)

    def reset(self, **options: Any) -> tuple[Any, dict]:
        observation, _ = super().reset(**options)
        return {"walk": observation, "action_mask": self.allowed()}, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        observation, *between, _ = super().step(action)
        return {"walk": observation, "action_mask": self.allowed()}, *between, {}


class Stuck(Fenced):
    """Allows no action in its fourth step."""

    def allowed(self) -> np.ndarray:
        return np.zeros(3, np.int8) if self.steps == 3 else super().allowed()


class Walk3(Walk):
    """A walk with three actions and no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(3)


class Nothing(Walk):
    """A walk whose observation space contains only an empty array."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(-1, 1, (0,), np.float32)


class CompiledFenced(CompiledPictures):
    """`CompiledPictures` with masks: action 0 is forbidden at the left end, and action 1 at the right end."""

    def action_mask(self, state: Any) -> Any:
        return jnp.stack([state > 0, state < 5])


HYBRID: spaces.Dict = spaces.Dict(
    {
        "tool": spaces.Discrete(3, start=1),
        "arm": spaces.Tuple([spaces.Box(-2.0, 4.0, (2,), np.float64), spaces.MultiBinary(2)]),
        "keys": spaces.MultiDiscrete([2, 3]),
    }
)
"""An action space with parts of every kind, in a Dict with a nested Tuple."""


class Hybrid(Walk):
    """A reproducible walk whose actions have several parts; the tool used in the previous step is forbidden."""

    def __init__(self, masks: bool = True) -> None:
        super().__init__()
        self.action_space, self.masks = HYBRID, masks

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self.last = 0
        observation, _ = super().reset(seed=seed)
        return observation, self.allowed()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        arm, bits = action["arm"]
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        assert arm.dtype == np.float64 and type(action["tool"]) is np.int64 and bits.dtype == np.int8
        assert not self.masks or action["tool"] != self.last
        self.last = int(action["tool"])
        push = arm.sum() + action["tool"] + bits.sum() + action["keys"].sum()
        observation, reward, terminated, truncated, _ = super().step(int(push > 4))
        action["arm"][0][:] = 0  # the environment has its own copy, so this must have no effect elsewhere
        return observation, reward, terminated, truncated, self.allowed()

    def allowed(self) -> dict[str, Any]:
        tools = np.array([tool != self.last for tool in (1, 2, 3)], np.int8)
        keys = (np.ones(2, np.int8), np.array([1, 0, 1], np.int8))
        return (
            {"action_mask": {"tool": tools, "arm": (None, np.array([2, 2], np.int8)), "keys": keys}}
            if self.masks
            else {}
        )


class CompiledHybrid(CompiledEnvironment):
    """A corridor whose actions have several parts that affect the reward; the tool used last is forbidden."""

    observation_space: spaces.Space = spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space: spaces.Space = HYBRID
    max_episode_steps = 8

    def reset(self, key: Any) -> tuple[Any, Any]:
        state = jax.random.randint(key, (2,), -3, 3).at[1].set(-1)
        return state, state.astype(jnp.float32)

    def step(self, key: Any, state: Any, action: Any) -> tuple[Any, Transition]:
        arm, bits = action["arm"]
        assert arm.shape == bits.shape == action["keys"].shape == (2,) and action["tool"].shape == ()
        paid = action["keys"].sum() + bits.sum() - jnp.abs(arm - 1).sum() - 100.0 * (action["tool"] == state[1])
        state = jnp.stack([jnp.clip(state[0] + 2 * bits[0] - 1, -9, 9), action["tool"]])
        over = jnp.zeros((), bool)
        return state, Transition(state.astype(jnp.float32), paid.astype(jnp.float32), over, over)

    def action_mask(self, state: Any) -> Any:
        tools = jnp.arange(3) != state[1]
        keys = (jnp.ones(2, bool), jnp.array([True, False, True]))
        return {"tool": tools, "arm": (None, jnp.full(2, 2)), "keys": keys}


class Amount(Still):
    """Has episodes of one step. Each of two amounts has a best value; the bounds of the second are not centred on 0."""

    action_space: spaces.Space = spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 10.0]), (2,), np.float64)

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        return self.show(), -float(np.abs(action - [0.5, 2.0]).sum()), True, False, {}


class Endless(Still):
    """Has a Dict action space in which one amount is unbounded."""

    action_space: spaces.Space = spaces.Dict(
        {"far": spaces.Box(-np.inf, np.inf, (1,), np.float32), "near": spaces.Discrete(2)}
    )


def only_choices() -> Spaced:
    return Spaced(action_space=spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(2)]))


class Panic(BaseException):
    """Stands in for exceptions that `except Exception` does not catch, such as those of some Rust libraries."""


class Panics(Still):
    """Raises `Panic`, SystemExit or KeyboardInterrupt in a given place."""

    def __init__(self, place: str, kind: str = "Panic") -> None:
        self.place, self.kind = place, kind
        self.reach("__init__")

    def reach(self, place: str) -> None:
        if place == self.place:
            kinds = {"Panic": Panic, "SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}
            raise kinds[self.kind]("called unwrap() on None")

    def __getattribute__(self, name: str) -> Any:
        if name == "observation_space":
            self.reach(name)
        return super().__getattribute__(name)

    def reset(self, **options: Any) -> Any:
        self.reach("reset")
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        self.reach("step")
        return super().step(action)

    def close(self) -> None:
        self.reach("close")


class Loud(Still):
    """Writes to standard output, both from Python and as a C library would."""

    def step(self, action: Any) -> Any:
        print("a step {")
        os.write(1, b"of a simulator\n")
        return super().step(action)


class LeavesThread(Still):
    """Starts a thread that keeps running for `seconds`, and a pool with an idle thread."""

    def __init__(self, seconds: float = 600.0) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.pool.submit(int).result()
        threading.Thread(target=time.sleep, args=(seconds,), name="simulator").start()


class ClosesOutput(Still):
    """Closes standard output."""

    def __init__(self) -> None:
        sys.stdout.close()


class ChangesFolder(Still):
    """Changes the current folder, on creation or in a later step, and relies on the new folder from then on."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.steps = at, 0
        self.reach(0)

    def reach(self, step: int) -> None:
        if step == self.at:
            os.chdir(Path(__file__).parent)

    def step(self, action: Any) -> Any:
        self.steps += 1
        self.reach(self.steps)
        assert self.steps < self.at or Path("user_environments.py").exists()
        return super().step(action)
