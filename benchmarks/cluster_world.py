"""An environment whose steps only sleep for 20 ms, so that many copies can share a few cores. Workers receive only this
file."""

import time
from typing import Any

import gymnasium
import numpy as np

SECONDS = 20e-3


class Sleeping(gymnasium.Env):
    """An environment that sleeps at each step. An episode has 100 steps."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(4, np.float32), {}

    def pass_time(self) -> None:
        """Sleep, to imitate a slow simulator."""
        time.sleep(SECONDS)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        self.pass_time()
        return np.zeros(4, np.float32), float(action), self.steps == 100, False, {}
