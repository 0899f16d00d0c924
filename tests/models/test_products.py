"""Products whose operands are rounded to bfloat16 agree with NumPy in 64 bits."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers import quick_jit

import upslope
from upslope.config.prepare import prepare
from upslope.engines.compiled import CompiledEngine
from upslope.environments.registry import make
from upslope.models.products import linear, operands_in

SMALL = {"steps": 640, "num_envs": 6, "rollout_steps": 16, "minibatches": 2, "epochs": 1, "hidden_sizes": (8,)}


def rounded(x):
    """Round x to the 8 significant bits of bfloat16."""
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


def of_linear(x, weight, slopes, precision):
    """Compute x W, and its gradients along `slopes`."""

    def both(x, weight):
        with operands_in(precision):
            value, back = jax.vjp(linear, x, weight)
            return value, *back(jnp.asarray(slopes))

    return quick_jit(both)(x, weight)


@pytest.mark.parametrize("shape", [(64, 40, 3), (64, 3, 40)])
def test_operands_are_rounded_and_sums_are_not(shape):
    generator, (rows, width, outputs) = np.random.default_rng(0), shape
    x, weight, slopes = (
        generator.normal(size=size).astype(np.float32) for size in ((rows, width), (width, outputs), (rows, outputs))
    )
    full = x @ weight, slopes @ weight.T, x.T @ slopes
    # In one process, runs in the two precisions may follow each other in any order.
    before, found, after = (of_linear(x, weight, slopes, name) for name in ("float32", "bfloat16", "float32"))
    for mine, again, plain in zip(before, after, full, strict=True):
        assert np.allclose(mine, plain, rtol=1e-5, atol=1e-4) and np.array_equal(mine, again)
    a, b, g = map(rounded, (x, weight, slopes))
    for mine, exact, plain in zip(found, (a @ b, g @ b.T, a.T @ g), full, strict=True):
        assert mine.dtype == jnp.float32
        assert np.allclose(mine, exact, rtol=1e-5, atol=1e-4)  # sums in 16 bits would be off by 0.01 or more
        assert not np.allclose(mine, plain, rtol=1e-5, atol=1e-4)


def test_a_run_in_16_bits_leaves_no_trace_in_later_ones():
    generator = np.random.default_rng(1)
    x, weight, slopes = (generator.normal(size=size).astype(np.float32) for size in ((32, 24), (24, 5), (32, 5)))
    assert np.allclose(of_linear(x, weight, slopes, "bfloat16")[2], rounded(x).T @ rounded(slopes), atol=1e-4)
    assert np.allclose(of_linear(x, weight, slopes, "float32")[2], x.T @ slopes, rtol=1e-5, atol=1e-5)


def test_a_program_has_the_precision_of_its_task():
    # The policy must round in the same way when it acts and when it is updated; otherwise, the ratio would not be 1
    # before the update. Here, it acts in 6 environments whose observations have 4 numbers, and each minibatch of
    # the update has 48 steps.
    programs = {}
    for precision in ("float32", "bfloat16"):
        config, task = prepare(make("jax:CartPole-v1"), preset=False, settings=SMALL | {"precision": precision})
        engine = CompiledEngine(task, config.seed_list(), 1)
        engine.advance(engine.start())
        programs[precision] = engine.programs[0].compiled.as_text()
    assert "bf16[6,4]" in programs["bfloat16"] and "bf16[48,4]" in programs["bfloat16"]
    assert "bf16[" not in programs["float32"]


@pytest.mark.parametrize(
    ("environment", "algorithm", "settings", "words"),
    [
        ("jax:CartPole-v1", "trpo", {}, "TrustRegion solves equations"),
        ("jax:CartPole-v1", "ppo", {"memory": "gru"}, "--memory gru uses other matrix products"),
        ("CartPole-v1", "ppo", {}, "--precision applies only to compiled environments"),
        ("jax:CartPole-v1", "ppo", {"precision": "float16"}, "precision"),
    ],
)
def test_it_is_refused_where_it_has_no_effect(environment, algorithm, settings, words, tmp_path):
    settings = {"precision": "bfloat16"} | settings
    with pytest.raises(upslope.UpslopeError, match=words):
        upslope.train(environment, algorithm, folder=tmp_path, quiet=True, preset=False, **settings)
