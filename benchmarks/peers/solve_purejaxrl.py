"""Train PureJaxRL's PPO on gymnax's CartPole with the settings of upslope's preset; print a JSON line.

    python solve_purejaxrl.py CLONE

The budget is twice the preset's, since PureJaxRL does not always reach the score within the preset's budget. The run
always spends all of it, since PureJaxRL cannot stop at a score. Compiled programs are kept in the cache folder,
$XDG_CACHE_HOME.
"""

import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
from measure_purejaxrl import DEFAULTS, imported

PRESET = {
    "ENV_NAME": "CartPole-v1", "TOTAL_TIMESTEPS": 147_456, "NUM_ENVS": 32, "NUM_STEPS": 64, "UPDATE_EPOCHS": 6,
    "NUM_MINIBATCHES": 8, "LR": 2e-3, "GAMMA": 0.98, "GAE_LAMBDA": 0.9, "ENT_COEF": 0.0,
}  # fmt: skip

if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", str(Path(os.environ["XDG_CACHE_HOME"]) / "purejaxrl"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config = DEFAULTS | PRESET
    train = jax.jit(imported(Path(sys.argv[1]), "ppo").make_train(config))
    metrics = jax.block_until_ready(train(jax.random.PRNGKey(0)))["metrics"]
    ended = np.asarray(metrics["returned_episode"])
    last = np.asarray(metrics["returned_episode_returns"])[ended][-20:]
    print(json.dumps({"steps": config["TOTAL_TIMESTEPS"], "return": float(last.mean())}))
