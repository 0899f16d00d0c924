"""Train Stable-Baselines3's PPO with its zoo's settings until a score is reached; print a JSON line.

    python solve_sb3.py CartPole-v1|Pendulum-v1 SCORE

The run stops when the zoo's budget is spent, or as soon as the mean return of the last 100 training episodes reaches
the score. The settings are those of DLR-RM/rl-baselines3-zoo@22e3ff2, hyperparams/ppo.yml.
"""

import json
import sys
from statistics import fmean
from typing import Any

import gymnasium
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

BUDGET = 100_000
ZOO: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "n_envs": 8, "n_steps": 32, "batch_size": 256, "n_epochs": 20, "gamma": 0.98, "gae_lambda": 0.8,
        "ent_coef": 0.0, "learning_rate": lambda left: 0.001 * left, "clip_range": lambda left: 0.2 * left,
    },
    "Pendulum-v1": {
        "n_envs": 4, "n_steps": 1024, "n_epochs": 10, "gamma": 0.9, "gae_lambda": 0.95, "ent_coef": 0.0,
        "learning_rate": 1e-3, "clip_range": 0.2, "use_sde": True, "sde_sample_freq": 4,
    },
}  # fmt: skip


class Stop(BaseCallback):
    """Stops the run when the mean return of the last 100 episodes reaches the score."""

    def __init__(self, score: float) -> None:
        super().__init__()
        self.score = score

    def _on_step(self) -> bool:
        returns = self.model.ep_info_buffer or []
        return len(returns) < 100 or fmean(episode["r"] for episode in returns) < self.score


if __name__ == "__main__":
    environment, score = sys.argv[1], float(sys.argv[2])
    torch.set_num_threads(1)
    settings = dict(ZOO[environment])
    worlds = DummyVecEnv([lambda: Monitor(gymnasium.make(environment))] * settings.pop("n_envs"))
    model = PPO("MlpPolicy", worlds, device="cpu", seed=0, **settings)
    model.learn(BUDGET, callback=Stop(score))
    last = [episode["r"] for episode in model.ep_info_buffer or []][-20:]
    print(json.dumps({"steps": model.num_timesteps, "return": fmean(last)}))
