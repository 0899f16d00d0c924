"""Train one seed of Stable-Baselines3's PPO or sb3-contrib's TRPO with the zoo's settings; print a JSON line.

    python score_sb3.py hopper_zoo|hopper_trpo|… SEED

The case's name is the one that `benchmarks/learning.py` gives to the same settings. In those of TRPO, it states δ and
the damping in terms of the policy's KL, whereas sb3-contrib takes the mean over the components of an action. The scores
are defined as there: `training` is the mean return of the last 100 training episodes, and `stochastic` and
`deterministic` are mean returns of 20 fresh episodes with the last parameters. The settings are those of
DLR-RM/rl-baselines3-zoo, hyperparams/ppo.yml at 22e3ff2 and hyperparams/trpo.yml at 13a3fe7.
"""

import json
import sys
from statistics import fmean
from typing import Any

import gymnasium
import torch
from sb3_contrib import TRPO
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

STEPS = 1_000_000
WIDE = {
    "log_std_init": -2.0, "ortho_init": False, "activation_fn": torch.nn.ReLU,
    "net_arch": {"pi": [256, 256], "vf": [256, 256]},
}  # fmt: skip
TRUST_REGION = {
    "n_envs": 2, "batch_size": 128, "n_steps": 1024, "gamma": 0.99, "gae_lambda": 0.95, "sub_sampling_factor": 1,
    "cg_max_steps": 25, "cg_damping": 0.1, "n_critic_updates": 20, "learning_rate": 1e-3,
}  # fmt: skip
CASES: dict[str, tuple[str, type[PPO] | type[TRPO], dict[str, Any]]] = {
    "hopper_zoo": ("Hopper-v5", PPO, {
        "n_envs": 1, "batch_size": 32, "n_steps": 512, "gamma": 0.999, "learning_rate": 9.80828e-05,
        "ent_coef": 0.00229519, "clip_range": 0.2, "n_epochs": 5, "gae_lambda": 0.99, "max_grad_norm": 0.7,
        "vf_coef": 0.835671, "policy_kwargs": WIDE,
    }),
    "halfcheetah_trpo": ("HalfCheetah-v5", TRPO, TRUST_REGION | {"target_kl": 0.04}),
    "hopper_trpo": ("Hopper-v5", TRPO, TRUST_REGION),
    "walker2d_trpo": ("Walker2d-v5", TRPO, TRUST_REGION),
    "swimmer_trpo": ("Swimmer-v5", TRPO, TRUST_REGION | {"gamma": 0.9999}),
    "ant_trpo": ("Ant-v5", TRPO, TRUST_REGION),
}  # fmt: skip


def fresh_score(model: PPO | TRPO, environment: str, trained: VecNormalize, seed: int, deterministic: bool) -> float:
    """Return the mean return of 20 fresh episodes, with the observations' normalisation of training."""
    fresh = VecNormalize(DummyVecEnv([lambda: Monitor(gymnasium.make(environment))]), training=False, norm_reward=False)
    fresh.obs_rms = trained.obs_rms
    fresh.seed(10_000 + seed)
    returns, _ = evaluate_policy(model, fresh, 20, deterministic=deterministic, return_episode_rewards=True)
    return fmean(returns)


if __name__ == "__main__":
    environment, algorithm, settings = CASES[sys.argv[1]]
    seed = int(sys.argv[2])
    torch.set_num_threads(1)
    settings = dict(settings)
    worlds = DummyVecEnv([lambda: Monitor(gymnasium.make(environment))] * settings.pop("n_envs"))
    normalized = VecNormalize(worlds, gamma=settings["gamma"])
    model = algorithm("MlpPolicy", normalized, device="cpu", seed=seed, **settings)
    model.learn(STEPS)
    scores = {
        "training": fmean(episode["r"] for episode in model.ep_info_buffer or []),
        "stochastic": fresh_score(model, environment, normalized, seed, False),
        "deterministic": fresh_score(model, environment, normalized, seed, True),
    }
    print(json.dumps({"seed": seed} | scores))
