"""Measure rejax's PPO on a compiled gymnax environment, with vmapped seeds; print a JSON line.

    python measure_rejax.py SEEDS STEPS [ENVIRONMENTS [ID [MINIBATCHES [WIDTH]]]]

The defaults are CartPole, a batch of 64 × 128, 4 epochs × 4 minibatches, and separate 64-64 tanh networks, as in
upslope. rejax's evaluation is turned off.
"""

import json
import sys
from time import perf_counter

import jax
import rejax
from measure import peak_memory

if __name__ == "__main__":
    given = dict(enumerate(sys.argv))
    seeds, steps, num_envs = int(given[1]), int(given[2]), int(given.get(3, 64))
    algorithm = rejax.get_algo("ppo").create(
        env=given.get(4, "CartPole-v1"), num_envs=num_envs, num_steps=128, num_epochs=4,
        num_minibatches=int(given.get(5, 4)), total_timesteps=steps, eval_freq=steps,
        learning_rate=2.5e-4, max_grad_norm=0.5, gamma=0.99, gae_lambda=0.95, clip_eps=0.2,
        ent_coef=0.01, vf_coef=0.5, skip_initial_evaluation=True,
        agent_kwargs={"hidden_layer_sizes": (int(given.get(6, 64)),) * 2, "activation": "tanh"},
    ).replace(eval_callback=lambda *_: ())  # fmt: skip
    train = jax.jit(jax.vmap(type(algorithm).train, in_axes=(None, 0)))
    keys = jax.random.split(jax.random.key(0), seeds)
    started = perf_counter()
    jax.block_until_ready(train(algorithm, keys))
    first = perf_counter() - started
    started = perf_counter()
    jax.block_until_ready(train(algorithm, keys))
    seconds = perf_counter() - started
    answer = {"steps_per_second": seeds * steps / seconds, "first_update": first - seconds}
    print(json.dumps(answer | {"peak_memory_mb": peak_memory()}))
