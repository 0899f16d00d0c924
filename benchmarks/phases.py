"""How long does each phase of an iteration take? Stores benchmarks/results/phases.json.

    python benchmarks/phases.py

The compiled loop is a single program, so its parts are compiled and timed separately, for one seed on one core. Each
result is the median time of 15 calls, for each part, for a whole iteration, and for a hidden layer's matrix product
with a minibatch. For the host, the shares of the phases are those that the live display shows.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
from cores import stay_on_one_core
from jax import Array

from upslope.config.config import configure
from upslope.config.task import task_of
from upslope.engines.host import HostEngine, columns_of
from upslope.engines.processes import reduce_overhead
from upslope.environments.registry import HostEnvironment, make
from upslope.learning.collect import collect
from upslope.learning.iteration import QUICK, initialise, iterate, move, weigh
from upslope.learning.shuffle import shuffle

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "phases.json"
CALLS = 15
A2C = {"algorithm": "a2c", "num_envs": 16, "rollout_steps": 5}
WIDE = {"num_envs": 8, "rollout_steps": 256, "epochs": 4, "minibatches": 4}


def milliseconds(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Compile and call a function; return its result and the median time of a call in milliseconds."""
    compiled = jax.jit(function, compiler_options=QUICK)
    answer = jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(CALLS):
        started = perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(1e3 * (perf_counter() - started))
    return answer, round(statistics.median(times), 2)


def compiled() -> dict[str, float]:
    """Time the phases on the compiled CartPole with 64 environments × 128 steps and 4 epochs × 4 minibatches."""
    world: Any = make("jax:CartPole-v1")
    settings = {"num_envs": 64, "rollout_steps": 128, "normalize_rewards": False}
    task = task_of(configure("jax:CartPole-v1", is_continuous=False, use_preset=False, **settings), world)
    state, key = initialise(task, 0), jax.random.key(1)
    assert state.columns is not None
    act = partial(collect, world, num_steps=128, max_episode_steps=500)
    (_, rollout, _), act_time = milliseconds(
        lambda s, k: act(agent=s.learner.agent, columns=s.columns, key=k), state, key
    )
    (state, scaled, credit, _), weigh_time = milliseconds(partial(weigh, task), state, rollout)
    _, move_time = milliseconds(partial(move, task), state, scaled, credit, key)
    _, shuffle_time = milliseconds(lambda k: shuffle(k, 64 * 128), key)
    _, whole = milliseconds(lambda s: iterate(task, s), state)
    parts = {"act": act_time, "weigh": weigh_time, "move": move_time, "whole iteration": whole}
    return parts | {"one shuffle (8 in a move)": shuffle_time, "products, GFLOP/s": products()}


def products(rows: int = 2048, width: int = 64, times: int = 500) -> int:
    """Measure the product of a minibatch and a hidden layer's weights, in billions of operations per second."""

    def again(x: Array, _: None) -> tuple[Array, None]:
        return x @ weight, None

    weight = jnp.eye(width)
    _, milli = milliseconds(lambda x: jax.lax.scan(again, x, length=times)[0], jnp.ones((rows, width)))
    return round(times * 2 * rows * width * width / milli / 1e6)


def host(
    environment: str, is_continuous: bool, seconds: float = 10.0, seeds: int = 8, **settings: Any
) -> dict[str, float]:
    """Measure each phase's share of an iteration, with all seeds in one process that is set up like a worker."""
    world = make(environment)
    assert isinstance(world, HostEnvironment)
    config = configure(environment, is_continuous=is_continuous, use_preset=False, seeds=seeds, steps=10**9, **settings)
    task = task_of(config, world)
    engine = HostEngine(task, config.seed_list(), columns_of(task, config.seed_list()))
    state = engine.start()
    reduce_overhead()
    for _ in range(3):
        state, _ = engine.advance(state)
    engine.phases.clear()
    started = perf_counter()
    while perf_counter() - started < seconds:
        state, _ = engine.advance(state)
    whole = perf_counter() - started
    engine.close()
    shares = {name: round(spent / whole, 3) for name, spent in engine.phases.items()}
    return shares | {"the rest": round(1 - sum(engine.phases.values()) / whole, 3)}


def stopwatch(environment: str) -> dict[str, float]:
    """Time a step with random actions, with and without MuJoCo's stopwatch, each in its own process."""
    found = {}
    for name, how in {"as it comes": [], "its stopwatch stopped": ["still"]}.items():
        command = [sys.executable, HERE / "peers" / "measure_raw.py", environment, "1", *how]
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        found[name] = round(1e6 / json.loads(answer)["steps_per_second"], 1)
    return found


if __name__ == "__main__":
    stay_on_one_core()
    result = {
        "a step of HalfCheetah-v5 alone, microseconds": stopwatch("HalfCheetah-v5"),
        "compiled CartPole, milliseconds": compiled(),
        "Gymnasium CartPole-v1, shares": host("CartPole-v1", False),
        "Gymnasium CartPole-v1, A2C, 16 × 5, one seed, shares": host("CartPole-v1", False, seeds=1, **A2C),
        "HalfCheetah-v5, shares": host("HalfCheetah-v5", True),
        "HalfCheetah-v5, 8 × 256, 4 epochs × 4 minibatches, shares": host("HalfCheetah-v5", True, **WIDE),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result, indent=1))
