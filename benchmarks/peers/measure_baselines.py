"""Measure Stable-Baselines3 or a related library on a Gymnasium environment in one or more processes; print JSON.

python measure_baselines.py sb3|atari|a2c|sbx|recurrent ENVIRONMENT PROCESSES STEPS '{"n_envs": 8, "n_steps": 128, …}'

The algorithm is PPO from Stable-Baselines3 (sb3; atari with its convolutions and preprocessing), A2C from
Stable-Baselines3 (a2c), PPO from SBX (sbx), or PPO with an LSTM from sb3-contrib (recurrent).
"""

import json
import os
import sys
from time import perf_counter

from measure import at_once, peak_memory

HIDDEN = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}}


def one(library: str, environment: str, steps: int, settings: dict) -> dict:
    """Train in this process: first two iterations as a warm-up, then the measured ones."""
    import gymnasium
    from stable_baselines3.common.vec_env import DummyVecEnv

    if library in ("sb3", "a2c", "atari"):
        import torch
        from stable_baselines3 import A2C, PPO

        Algorithm = A2C if library == "a2c" else PPO
        is_atari = library == "atari"
        torch.set_num_threads(len(os.sched_getaffinity(0)) if is_atari else 1)  # only convolutions gain from threads
        extra = {"device": "cpu"} | ({} if is_atari else {"policy_kwargs": HIDDEN})
    elif library == "recurrent":
        import torch
        from sb3_contrib import RecurrentPPO as Algorithm

        torch.set_num_threads(1)
        extra = {"device": "cpu", "policy_kwargs": {"lstm_hidden_size": 128, "net_arch": {"pi": [128], "vf": [128]}}}
    else:
        import sbx

        Algorithm = sbx.PPO

        extra = {"policy_kwargs": HIDDEN}
    num_envs = settings.pop("n_envs")
    policy = {"atari": "CnnPolicy", "recurrent": "MlpLstmPolicy"}.get(library, "MlpPolicy")
    if library == "atari":
        import ale_py
        from stable_baselines3.common.env_util import make_atari_env
        from stable_baselines3.common.vec_env import VecFrameStack

        gymnasium.register_envs(ale_py)
        worlds = VecFrameStack(make_atari_env(environment, num_envs), 4)
    else:
        worlds = DummyVecEnv([lambda: gymnasium.make(environment)] * num_envs)
    started = perf_counter()
    model = Algorithm(policy, worlds, **settings, **extra)
    model.learn(2 * num_envs * settings["n_steps"])
    first = perf_counter() - started
    started = perf_counter()
    model.learn(steps)
    return {"steps_per_second": model.num_timesteps / (perf_counter() - started), "first_update": first}


if __name__ == "__main__":
    library, environment, processes, steps, settings = sys.argv[1:]
    if int(processes) == 1:
        answer = one(library, environment, int(steps), json.loads(settings))
    else:
        answers = at_once(int(processes), __file__, library, environment, "1", steps, settings)
        answer = {
            "steps_per_second": sum(a["steps_per_second"] for a in answers),
            "first_update": max(a["first_update"] for a in answers),
        }
    print(json.dumps(answer | {"peak_memory_mb": peak_memory()}))
