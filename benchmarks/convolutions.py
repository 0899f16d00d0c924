"""Compare convolutions written as matrix products with XLA's own convolutions, in a compiled loop on one core.

    python benchmarks/convolutions.py       # about two minutes

For each layer of upslope's image networks, 32 steps of gradient descent on eight images, as many as are processed at a
time, are timed. The two methods are timed alternately, and each ratio is between two consecutive timings. Stores
results/convolutions.json.
"""

import json
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cores import stay_on_one_core

from upslope.learning.iteration import QUICK
from upslope.models.convolve import by_convolution, by_products

RESULTS = Path(__file__).parent / "results" / "convolutions.json"
TURNS, BATCH, STEPS = 5, 8, 32
LAYERS: dict[str, tuple[int, int, int, int, int]] = {
    "board 10 × 10": (10, 4, 16, 3, 1),
    "nature, first": (84, 4, 32, 8, 4),
    "nature, second": (20, 32, 64, 4, 2),
    "nature, third": (9, 64, 64, 3, 1),
    "impala, 16 channels": (18, 16, 16, 3, 1),
}
"""Name → image size, input and output channels, kernel size, stride."""


def descent(convolve: Callable[..., Any], kernel: Any, x: Any) -> Any:
    """Take a few steps of gradient descent on a loss of the layer's outputs, with gradients for the images as well."""

    def loss(kernel: Any, x: Any) -> Any:
        return jnp.mean(jnp.tanh(convolve(x, kernel)) ** 2)

    def step(carry: Any, _: None) -> Any:
        kernel, x = carry
        slopes = jax.grad(loss, argnums=(0, 1))(kernel, x)
        return (kernel - 1e-3 * slopes[0], x - 1e-3 * slopes[1]), None

    return jax.lax.scan(step, (kernel, x), length=STEPS)[0]


def seconds(program: Any, *arguments: Any) -> float:
    """Time one call, in seconds."""
    start = perf_counter()
    jax.block_until_ready(program(*arguments))
    return perf_counter() - start


def main() -> None:
    stay_on_one_core()
    rows = {}
    for name, (side, channels, outputs, size, stride) in LAYERS.items():
        draw = np.random.default_rng(0)
        x = jnp.asarray(draw.standard_normal((BATCH, side, side, channels)).astype(np.float32))
        kernel = jnp.asarray(draw.standard_normal((outputs, channels, size, size)).astype(np.float32) / size)
        programs = [
            jax.jit(partial(descent, partial(way, stride=stride)), compiler_options=QUICK)
            for way in (by_products, by_convolution)
        ]
        found = [program(kernel, x)[0] for program in programs]
        difference = float(jnp.abs(found[0] - found[1]).max())
        turns = [[seconds(program, kernel, x) for program in programs] for _ in range(TURNS)]
        ratios = sorted(theirs / ours for ours, theirs in turns)
        rows[name] = {
            "products_ms": 1e3 * statistics.median(ours for ours, _ in turns),
            "convolution_ms": 1e3 * statistics.median(theirs for _, theirs in turns),
            "ratio": statistics.median(ratios),
            "ratios": [ratios[0], ratios[-1]],
            "largest_difference": difference,
        }
        print(name, rows[name], flush=True)
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
