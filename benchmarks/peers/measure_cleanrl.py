"""Measure CleanRL's ppo.py with torch.compile in one or more simultaneous processes; print a JSON line.

    python measure_cleanrl.py CLONE ENVIRONMENT PROCESSES STEPS ENVIRONMENTS ROLLOUT

CLONE is a clone of github.com/vwxyzjn/cleanrl (fe8d8a0). Its `ppo.py` runs unchanged except in two places: the agent's
functions are compiled, and the time of every iteration is reported instead of the rate since the start. Its TensorBoard
files go to a temporary folder.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from types import ModuleType

from measure import at_once, peak_memory

COMPILED = """    agent.get_action_and_value = torch.compile(agent.get_action_and_value)
    agent.get_value = torch.compile(agent.get_value)
"""
CHANGES = {
    "    agent = Agent(envs).to(device)\n": "    agent = Agent(envs).to(device)\n" + COMPILED,
    'print("SPS:", int(global_step / (time.time() - start_time)))': "iteration_ended(global_step)",
}
NOT_COUNTED = 3
"""Number of iterations at the start, during which PyTorch compiles."""


def one(clone: Path, environment: str, steps: int, num_envs: int, rollout: int) -> dict[str, float]:
    """Train in this process, and return the rate, excluding the first iterations."""
    import torch

    torch.set_num_threads(1)
    path = clone / "cleanrl" / "ppo.py"
    source = path.read_text("utf-8")
    for old, new in CHANGES.items():
        if old not in source:
            raise SystemExit(f"{path} has no line {old!r}: it is from a different commit.")
        source = source.replace(old, new)
    module = sys.modules["__main__"] = ModuleType("__main__")
    times: list[tuple[int, float]] = []
    module.__dict__.update(__file__=str(path), iteration_ended=lambda step: times.append((step, perf_counter())))
    steps += NOT_COUNTED * num_envs * rollout
    sys.argv = [
        str(path), "--env-id", environment, "--total-timesteps", str(steps), "--num-envs", str(num_envs),
        "--num-steps", str(rollout), "--no-cuda",
    ]  # fmt: skip
    started = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        exec(compile(source, str(path), "exec"), module.__dict__)
    (begun, first), (ended, last) = times[NOT_COUNTED - 1], times[-1]
    return {"steps_per_second": (ended - begun) / (last - first), "first_update": times[0][1] - started}


if __name__ == "__main__":
    script, clone, environment, processes, *numbers = sys.argv
    if int(processes) == 1:
        answer = one(Path(clone).resolve(), environment, *(int(n) for n in numbers))
    else:
        answers = at_once(int(processes), script, clone, environment, "1", *numbers)
        answer = {
            "steps_per_second": sum(a["steps_per_second"] for a in answers),
            "first_update": max(a["first_update"] for a in answers),
        }
    print(json.dumps(answer | {"peak_memory_mb": peak_memory()}))
