"""What resetting costs beside stepping. Stores benchmarks/results/library_resets.json.

    python benchmarks/library_resets.py [NAME …]   # needs the extras gymnax, navix, craftax

Without `costly_reset`, all columns are reset together whenever one of them ended, and only what is needed is kept; with
it, those that ended one after another. The second pays where a reset of all columns, times how often any column ends,
costs more than a single reset times how many columns end. Milliseconds, the best of some calls, on this machine.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from upslope.environments.registry import make

RESULTS = Path(__file__).parent / "results" / "library_resets.json"
NAMES = ("gymnax:Breakout-MinAtar", "navix:Navix-DoorKey-5x5-v0", "craftax:Craftax-Classic-Symbolic-v1")
COLUMNS = 16


def best(function: Callable[..., Any], *arguments: Any, seconds: float = 2.0) -> float:
    """Milliseconds of a compiled function, the best of its calls within some seconds."""
    jax.block_until_ready(function(*arguments))
    times, started = [], time.perf_counter()
    while time.perf_counter() - started < seconds:
        before = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - before)
    return round(1e3 * min(times), 3)


def measured(name: str) -> dict[str, float]:
    """The costs of one environment."""
    world: Any = make(name)
    keys = jax.random.split(jax.random.key(0), COLUMNS)
    together = jax.jit(jax.vmap(world.reset))
    states, _ = together(keys)
    actions = jnp.asarray([world.action_space.sample() for _ in range(COLUMNS)])
    return {
        "reset of all": best(together, keys),
        "reset of one": best(jax.jit(world.reset), keys[0]),
        "step of all": best(jax.jit(jax.vmap(world.step)), keys, states, actions),
    }


if __name__ == "__main__":
    found = {name: measured(name) for name in sys.argv[1:] or NAMES}
    RESULTS.write_text(json.dumps({"jax": jax.__version__, "columns": COLUMNS, "milliseconds": found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))
