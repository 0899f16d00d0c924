"""CartPole variants that do the same work in Python but return vector or Dict observations, with or without a mask."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

PARTS = {"position": slice(0, 2), "angle": slice(2, 4)}
NOTHING_FORBIDDEN = np.ones(2, np.int8)


class Parted(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole that splits its observation and returns either the parts or the recombined vector."""

    shows_parts = False
    gives_mask = False

    def __init__(self) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        whole: Any = self.env.observation_space
        boxes = {name: spaces.Box(whole.low[part], whole.high[part]) for name, part in PARTS.items()}
        self.observation_space = spaces.Dict(boxes) if self.shows_parts else whole

    def seen(self, observation: np.ndarray) -> Any:
        """Return the observation as parts or as a vector."""
        parts = {name: observation[part] for name, part in PARTS.items()}
        return parts if self.shows_parts else np.concatenate([parts["position"], parts["angle"]])

    def told(self, info: dict[str, Any]) -> dict[str, Any]:
        """Add a mask to the info, either under the usual name or under a name that means nothing."""
        return info | {"action_mask" if self.gives_mask else "other": NOTHING_FORBIDDEN}

    def reset(self, **options: Any) -> Any:
        observation, info = self.env.reset(**options)
        return self.seen(observation), self.told(info)

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self.seen(observation), reward, terminated, truncated, self.told(info)


class Dicts(Parted):
    """CartPole whose observations are a Dict of two vectors."""

    shows_parts = True


class Masked(Parted):
    """CartPole whose steps return a mask that forbids nothing."""

    gives_mask = True
