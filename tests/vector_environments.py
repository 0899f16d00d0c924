"""Small vector environments for the tests, as users might write them, and helpers that step them."""

from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import batch_space

from upslope.engines.batched import BatchedColumns
from upslope.engines.collect import collect_host
from upslope.environments.registry import make
from upslope.models.encoders import encoder_of
from upslope.models.heads import head_of

LENGTHS = (3, 4, 5)
"""The episode length in each column; further columns repeat the pattern."""


class Counting(VectorEnv):
    """The observation is (episode number, step) in each column; the reward of a step is its number.

    Episodes terminate in even columns and are truncated in odd ones. `info` contains masks that forbid action 1 in
    even steps.
    """

    def __init__(self, num_envs: int, mode: str = "NextStep"):
        self.num_envs, self.mode = num_envs, AutoresetMode(mode)
        self.metadata = {"autoreset_mode": self.mode}
        self.single_observation_space = spaces.Box(0, 1000, (2,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.episode, self.count = np.full(num_envs, -1), np.zeros(num_envs, int)
        self.is_over = np.ones(num_envs, bool)
        self.lengths = np.resize(LENGTHS, num_envs)
        self.seeds: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.seeds.append(seed)
        self.start((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        return self.seen(), self.info()

    def start(self, which: np.ndarray) -> None:
        """Start the next episode in these columns."""
        self.episode[which] += 1
        self.count[which] = 0
        self.is_over[which] = False

    def step(self, actions: Any) -> tuple[Any, ...]:
        assert actions.shape == (self.num_envs,) and actions.dtype == np.int64
        resets = self.is_over.copy()
        assert self.mode is AutoresetMode.NEXT_STEP or not resets.any(), "stepped after its end"
        chosen = actions[~resets & (self.count % 2 == 0)]
        assert not chosen.any() or self.num_envs == 1, "a forbidden action"
        self.start(resets)
        self.count[~resets] += 1
        reward = np.where(resets, 0.0, self.count)
        ended = ~resets & (self.count >= self.lengths)
        self.is_over = ended.copy()
        terminated = ended & (np.arange(self.num_envs) % 2 == 0)
        info = {}
        if self.mode is AutoresetMode.SAME_STEP and ended.any():
            info = {"final_obs": self.seen(), "_final_obs": ended.copy()}
            self.start(ended)
        return self.seen(), reward, terminated, ended & ~terminated, info | self.info()

    def seen(self) -> Any:
        """Return the observations of all columns."""
        return np.stack([self.episode, self.count], axis=1).astype(np.float32)

    def info(self) -> dict[str, Any]:
        """Return the masks of all columns."""
        return {"action_mask": np.stack([np.ones(self.num_envs), self.count % 2], axis=1).astype(np.int8)}


def counting(num_envs: int, mode: str = "NextStep") -> Counting:
    """Make a counting environment."""
    return Counting(num_envs, mode)


def fixed() -> Counting:
    """Make a counting environment without an argument for the number of columns."""
    return Counting(4)


def silent(num_envs: int) -> Counting:
    """Make a counting environment that does not declare its autoreset mode."""
    made = Counting(num_envs)
    made.metadata = {}
    return made


def forgetful(num_envs: int) -> VectorEnv:
    """Make a counting environment that loses final observations."""

    class Forgetful(Counting):
        def step(self, actions: Any) -> tuple[Any, ...]:
            *answer, info = super().step(actions)
            return *answer, {"action_mask": info["action_mask"]}

    return Forgetful(num_envs, "SameStep")


class Keyed(Counting):
    """The same environment with its masks in the observations: a Dict of `at` and `action_mask`. `singly` stores final
    observations like Gymnasium's own vector environments, as an array of dictionaries."""

    def __init__(self, num_envs: int, mode: str, *, singly: bool = True):
        super().__init__(num_envs, mode)
        self.singly = singly
        parts = {"at": self.single_observation_space, "action_mask": spaces.MultiBinary(2)}
        self.single_observation_space = spaces.Dict(parts)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

    def seen(self) -> Any:
        return {"at": super().seen(), **super().info()}

    def info(self) -> dict[str, Any]:
        return {}

    def step(self, actions: Any) -> tuple[Any, ...]:
        *answer, info = super().step(actions)
        if self.singly and "final_obs" in info:
            final, ended = np.full(self.num_envs, None, object), info["_final_obs"]
            for n in np.flatnonzero(ended):
                final[n] = {name: x[n] for name, x in info["final_obs"].items()}
            info["final_obs"] = final
        return *answer, info


class Asked(Counting):
    """The same environment with its masks in the method `action_masks`."""

    def action_masks(self) -> Any:
        return super().info()["action_mask"]

    def info(self) -> dict[str, Any]:
        return {}


class Called(Asked):
    """The same environment with its masks in a tuple, like the values that Gymnasium's `call` returns, with a step
    limit, and with a reset that takes only a seed."""

    max_episode_steps = 50

    def action_masks(self) -> Any:
        return tuple(super().action_masks())

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        return super().reset(seed=seed)


def called(num_envs: int) -> VectorEnv:
    """Make a counting environment with a method that returns a tuple of masks."""
    return Called(num_envs, "NextStep")


def keyed(num_envs: int, mode: str = "NextStep", *, singly: bool = True) -> VectorEnv:
    """Make a counting environment whose observations contain its masks."""
    return Keyed(num_envs, mode, singly=singly)


def asked(num_envs: int, mode: str = "NextStep") -> VectorEnv:
    """Make a counting environment with a method for its masks, behind a wrapper."""
    return VectorWrapper(Asked(num_envs, mode))


class Script:
    """Chooses actions with a function of observation, mask and step, and records restarts."""

    memory: Any = None

    def __init__(self, action: Any):
        self.action, self.restarted = action, []

    def __call__(self, observation: Any, mask: Any, t: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.asarray(self.action(observation, mask, t))
        return chosen, np.zeros(chosen.shape[:2], np.float32)

    def restart(self, rows: np.ndarray) -> None:
        self.restarted.append(rows.tolist())


def columns_of(name: str, num_envs: int, seeds: tuple[int, ...] = (7,), **kwargs: Any) -> BatchedColumns:
    """Return the columns of a vector environment."""
    world: Any = make(name, kwargs)
    encoder, head = encoder_of(world.observation_space, name), head_of(world.action_space, name)
    return BatchedColumns(world, encoder, head, seeds, num_envs, world.max_episode_steps)


def stepped(columns: BatchedColumns, script: Script, steps: int) -> tuple[Any, Any]:
    """Collect a segment of this many steps as the engine does."""
    columns.begin(range(len(columns.episodes)))
    return collect_host(columns, script, steps, {})
