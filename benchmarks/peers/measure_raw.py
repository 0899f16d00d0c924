"""Measure how fast Gymnasium steps an environment with random actions and no learning; print a JSON line.

python measure_raw.py ENVIRONMENT PROCESSES          # unchanged
python measure_raw.py ENVIRONMENT PROCESSES still    # with MuJoCo's stopwatch stopped
"""

import json
import sys
from importlib import import_module
from time import perf_counter

import gymnasium
from measure import at_once

from upslope.engines.mujoco_timer import stop_stopwatch
from upslope.environments.packages import package_of

SECONDS = 5.0


def one(environment: str, is_still: bool) -> float:
    """Return the steps per second of this process."""
    if package := package_of(environment):
        import_module(package.module)
    env = gymnasium.make(environment, disable_env_checker=True)
    if is_still:
        stop_stopwatch()
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(1000)]
    env.reset(seed=0)
    steps, started = 0, perf_counter()
    while perf_counter() - started < SECONDS:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        steps += len(actions)
    return steps / (perf_counter() - started)


if __name__ == "__main__":
    environment, processes, how = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    if processes == 1:
        total = one(environment, how == ["still"])
    else:
        total = sum(a["steps_per_second"] for a in at_once(processes, __file__, environment, "1", *how))
    print(json.dumps({"steps_per_second": total}))
