"""Measure RLtools' PPO through its Python interface on a Gymnasium environment; print a JSON line.

    python measure_rltools_gymnasium.py ENVIRONMENT PROCESSES STEPS '{"N_ENVIRONMENTS": 8, …}'

The measurement runs in one or more processes. The interface compiles itself with g++ and uses a BLAS library that the
linker finds. The networks use RLtools' fast tanh.
"""

import json
import os
import sys
from time import perf_counter

from measure import at_once, peak_memory

os.environ["OPENBLAS_NUM_THREADS"] = "1"


def one(environment: str, steps: int, settings: dict) -> dict[str, float]:
    """Train in this process: first two updates as a warm-up, then the measured ones."""
    import gymnasium
    from rltools import PPO

    made = perf_counter()
    agent = PPO(
        lambda: gymnasium.make(environment),
        interface_name="speed",
        enable_evaluation=False,
        TOTAL_STEP_LIMIT=100_000_000,
        ACTOR_ACTIVATION_FUNCTION="FAST_TANH",
        CRITIC_ACTIVATION_FUNCTION="FAST_TANH",
        **settings,
    ).State(0)
    agent.step()
    agent.step()
    first = perf_counter() - made
    updates = -(-steps // (settings["N_ENVIRONMENTS"] * settings["ON_POLICY_RUNNER_STEPS_PER_ENV"]))
    started = perf_counter()
    for _ in range(updates):
        agent.step()
    taken = updates * settings["N_ENVIRONMENTS"] * settings["ON_POLICY_RUNNER_STEPS_PER_ENV"]
    return {"steps_per_second": taken / (perf_counter() - started), "first_update": first}


if __name__ == "__main__":
    environment, processes, steps, settings = sys.argv[1:]
    if int(processes) == 1:
        answer = one(environment, int(steps), json.loads(settings))
    else:
        at_once(1, __file__, environment, "1", "1", settings)  # this compiles once for all processes
        answers = at_once(int(processes), __file__, environment, "1", steps, settings)
        answer = {
            "steps_per_second": sum(a["steps_per_second"] for a in answers),
            "first_update": max(a["first_update"] for a in answers),
        }
    print(json.dumps(answer | {"peak_memory_mb": peak_memory()}))
