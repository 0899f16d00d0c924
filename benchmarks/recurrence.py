"""Compare a GRU over time with the same Equinox cell in a plain scan, on one core.

    python benchmarks/recurrence.py       # about a minute

The layer's gradient is computed over 128 steps, for 1 and for 16 sequences of a minibatch. The two versions are timed
alternately, and each ratio is between two consecutive timings. The two products with the recurrent weights that a step
needs, one forwards and one backwards, are also timed alone, because nothing can remove them from the loop. Stores
results/recurrence.json.
"""

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
from cores import stay_on_one_core
from equinox.nn import GRUCell

from upslope.learning.iteration import QUICK
from upslope.models.recurrences import gated_over_time

RESULTS = Path(__file__).parent / "results" / "recurrence.json"
STEPS, UNITS, TURNS, CALLS = 128, 128, 9, 50


def ours(layer: GRUCell, x: Any, fresh: Any) -> Any:
    """Run the cell as upslope does."""
    return gated_over_time(layer, x, jnp.zeros((x.shape[1], UNITS)), fresh)


def plain(layer: GRUCell, x: Any, fresh: Any) -> Any:
    """Run Equinox's cell in a scan."""

    def one(hidden: Any, now: Any) -> Any:
        arrives, begins = now
        hidden = jax.vmap(layer)(arrives, jnp.where(begins[:, None], 0.0, hidden))
        return hidden, hidden

    return jax.lax.scan(one, jnp.zeros((x.shape[1], UNITS)), (x, fresh))[1]


def descent(over_time: Callable[..., Any], layer: GRUCell, x: Any, fresh: Any) -> Any:
    """Take steps of gradient descent on a loss of the outputs."""

    def step(layer: Any, _: None) -> Any:
        slope = jax.grad(lambda layer: jnp.mean(over_time(layer, x, fresh) ** 2))(layer)
        return jax.tree.map(lambda w, s: w - 1e-3 * s, layer, slope), None

    return jax.lax.scan(step, layer, length=CALLS)[0]


def products(layer: GRUCell, x: Any, fresh: Any) -> Any:
    """Compute only the two products with the recurrent weights, where each step depends on the previous one."""

    def one(hidden: Any, _: Any) -> Any:
        return jnp.tanh(hidden @ layer.weight_hh.T) @ layer.weight_hh * 1e-2, None

    return jax.lax.scan(one, x[0], length=CALLS * STEPS)[0]


def microseconds(program: Any, *arguments: Any) -> float:
    """Time one step of one call, in microseconds."""
    start = perf_counter()
    jax.block_until_ready(program(*arguments))
    return 1e6 * (perf_counter() - start) / CALLS / STEPS


def main() -> None:
    stay_on_one_core()
    layer, rows = GRUCell(UNITS, UNITS, key=jax.random.key(0)), {}
    for sequences in (1, 16):
        x = jax.random.normal(jax.random.key(1), (STEPS, sequences, UNITS))
        given = layer, x, jnp.zeros(x.shape[:2], bool)
        ways = (lambda *a: descent(ours, *a), lambda *a: descent(plain, *a), products)
        programs = [jax.jit(way, compiler_options=QUICK) for way in ways]
        for program in programs:
            jax.block_until_ready(program(*given))
        turns = [[microseconds(program, *given) for program in programs] for _ in range(TURNS)]
        ratios = sorted(theirs / mine for mine, theirs, _ in turns)
        names = ("step_us", "plain_scan_us", "products_us")
        rows[f"{sequences} sequences"] = {
            **{name: statistics.median(times) for name, times in zip(names, zip(*turns, strict=True), strict=True)},
            "ratio": statistics.median(ratios),
            "ratios": [ratios[0], ratios[-1]],
        }
        print(sequences, rows[f"{sequences} sequences"], flush=True)
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
