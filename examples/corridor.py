"""A corridor: five steps to the right reach the goal, and each step costs 1."""

import gymnasium
import numpy as np


class Corridor(gymnasium.Env):
    """Observation: the position, 0 to 5. Actions: 0 is left, 1 is right."""

    observation_space = gymnasium.spaces.Discrete(6)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = 0
        return self.position, {}

    def step(self, action):
        self.position = int(np.clip(self.position + (1 if action == 1 else -1), 0, 5))
        return self.position, -1.0, self.position == 5, False, {}


gymnasium.register("Corridor-v0", entry_point=Corridor, max_episode_steps=50)
