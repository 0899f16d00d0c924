"""The environments of `benchmarks/field.py`. Each has one peculiarity that occurred in users' environments."""

import os
import subprocess
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Plain(gymnasium.Env):
    """An environment that always returns two zeros, has two actions, and never terminates."""

    observation_space = Box(-1, 1, (2,), np.float32)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), float(np.max(action)), False, False, {}


class FloatsInAnIntegerBox(Plain):
    """Declares uint8 but returns a float in [0, 1]. The agent is rewarded for telling whether the value exceeds one
    half."""

    observation_space = Box(0, 1, (1,), np.uint8)

    def draw(self):
        self.x = np.array([self.np_random.uniform(0.05, 0.95)])
        return self.x

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.draw(), {}

    def step(self, action):
        reward = float(action == (self.x[0] > 0.5))
        return self.draw(), reward, False, False, {}


class BeyondDiscrete(Plain):
    """Declares a discrete space with three values but returns 7."""

    observation_space = Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 7, {}

    def step(self, action):
        return 7, *super().step(action)[1:]


class FarFromZero(Plain):
    """Returns float64 observations near 1.7e9 whose last digits matter."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float64)

    def draw(self):
        self.x = self.np_random.uniform(-1, 1)
        return np.array([1.7e9 + self.x])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.draw(), {}

    def step(self, action):
        reward = float(action == (self.x > 0))
        return self.draw(), reward, False, False, {}


class StrictAboutActions(Plain):
    """Rejects actions that lie outside its float64 action space, including float32(0.1)."""

    action_space = Box(-0.1, 0.1, (2,), np.float64)

    def step(self, action):
        assert self.action_space.contains(action), action
        return super().step(action)


class SmallSeedsOnly(Plain):
    """Accepts only seeds that fit into a signed 32-bit integer."""

    def reset(self, *, seed=None, options=None):
        if seed is not None and seed >= 2**31:
            raise OverflowError(f"{seed} does not fit into a signed 32-bit integer")
        return super().reset(seed=seed)


class OldReset(Plain):
    """Returns no info from `reset`, as was usual before Gymnasium 0.26."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class FailsToClose(Plain):
    """Works, but raises an error when it is closed after a step."""

    stepped = False

    def step(self, action):
        self.stepped = True
        return super().step(action)

    def close(self):
        assert not self.stepped


class CountsItsSimulators(Plain):
    """Starts a process, ends it in `close`, and logs both events to the file $CLOSE_LOG."""

    def __init__(self):
        self.program = subprocess.Popen(["sleep", "60"])
        self.note("open")

    def note(self, word):
        if "CLOSE_LOG" in os.environ:
            with Path(os.environ["CLOSE_LOG"]).open("a") as log:
                log.write(word + "\n")

    def close(self):
        self.program.kill()
        self.note("close")


class ReadsStandardInput(Plain):
    """Starts a process that reads its standard input."""

    def __init__(self):
        self.program = subprocess.Popen(["cat"])

    def close(self):
        self.program.kill()


class OneReward(Plain):
    """Returns a reward of shape (1,)."""

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, np.array([reward]), *rest


class WrongShape(Plain):
    """Declares the shape (2,) but returns (1, 2) from `step`."""

    def step(self, action):
        return np.zeros((1, 2), np.float32), *super().step(action)[1:]


class NoSpaces(gymnasium.Env):
    """Does not declare its spaces."""

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}


class Masked(Plain):
    """Forbids two of four actions at each step and puts the mask into `info`. A forbidden action raises an error."""

    action_space = Discrete(4)

    def mask(self):
        self.allowed = np.zeros(4, np.int8)
        self.allowed[self.np_random.permutation(4)[:2]] = 1
        return {"action_mask": self.allowed.copy()}

    def reset(self, *, seed=None, options=None):
        observation, _ = super().reset(seed=seed)
        return observation, self.mask()

    def step(self, action):
        if not self.allowed[action]:
            raise ValueError(f"illegal action {action}")
        observation, reward, terminated, truncated, _ = super().step(action)
        return observation, reward, terminated, truncated, self.mask()


class Cue(Plain):
    """Shows +1 or −1 in the first step only. The last of ten actions must match it."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cue, self.t = int(self.np_random.integers(2)), 0
        return np.array([2 * self.cue - 1, 0], np.float32), {}

    def step(self, action):
        self.t += 1
        over = self.t == 10
        return np.array([0, self.t / 10], np.float32), float(over and action == self.cue), over, False, {}


class Regulator(Plain):
    """A task in which a point must be kept at zero, with cost x² + 0.1 a². A solved run has rewards close to 0 and is
    healthy."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.v, self.t = self.np_random.uniform(-1, 1), 0.0, 0
        return np.array([self.x, self.v], np.float32), {}

    def step(self, action):
        a = float(np.clip(action[0], -1, 1))
        self.v = 0.9 * self.v + 0.2 * a
        self.x += 0.2 * self.v
        self.t += 1
        return np.array([self.x, self.v], np.float32), -(self.x**2 + 0.1 * a * a), False, self.t >= 60, {}
