"""Padding after short episodes has no effect, and a shift of the mean does not count as a change of the policy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from user_environments import Still

import upslope

SMALL: dict[str, Any] = {"num_envs": 2, "hidden_sizes": (8,), "preset": False, "quiet": True}


class Narrow(Still):
    """Has 16 action components with narrow bounds, so the density at 0 is huge, and episodes of different lengths."""

    action_space = spaces.Box(-1e-3, 1e-3, (16,))
    count = length = 0

    def reset(self, **options: Any) -> Any:
        self.count, self.length = 0, self.length % 7 + 3
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        self.count += 1
        observation, reward, _, truncated, info = super().step(action)
        return observation, 1e3 * reward, self.count >= self.length, truncated, info


@pytest.mark.parametrize("objective", ["clip", "trust_region"])
def test_padding_where_actions_are_improbable_is_not_nan(objective: str, tmp_path: Path):
    settings = {"estimator": "baseline", "objective": objective, "max_episode_steps": 32, "steps": 300}
    run = upslope.train(Narrow, "ppo", folder=tmp_path, name="run", **settings, **SMALL)
    rows = run.metrics()
    assert all(np.isfinite(row["policy/loss"]) and row["policy/kl"] > 0 for row in rows)


def test_a_shift_of_the_mean_does_not_count_as_the_policys_distance(tmp_path: Path):
    shifts = {"rpo_alpha": 0.5, "min_effective_sample_size": 0.5, "log_std_init": -1.0, "epochs": 3}
    run = upslope.train("jax:Pendulum-v1", "ppo", folder=tmp_path, name="run", steps=2048, **shifts, **SMALL)
    assert all(row["policy/kl"] > 0 for row in run.metrics())
