"""Statistics of too few numbers, or of numbers that are all equal, must do no harm."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import upslope
from upslope.learning.update import standardise
from upslope.models.agent import RunningStatistics, returns_seen


def scale_after(*batches: Any) -> float:
    """Return 1/σ after batches of rewards from episodes of one step."""
    statistics = RunningStatistics.start(())
    for batch in batches:
        rewards = jnp.asarray(batch, jnp.float32).reshape(-1, 1)
        statistics = returns_seen(statistics, rewards, rewards, jnp.ones(rewards.shape, bool))
    return float(1 / np.sqrt(statistics.variance)) if statistics.variance > 0 else 1.0


def test_one_valid_sample_is_taken_as_it_is():
    one = jnp.asarray([False, True, False])
    np.testing.assert_array_equal(standardise(jnp.asarray([1.0, 3.0, jnp.nan]), one), [0, 3, 0])
    np.testing.assert_array_equal(standardise(jnp.asarray([2.5]), jnp.asarray([True])), [2.5])
    np.testing.assert_allclose(standardise(jnp.asarray([1.0, 3.0]), jnp.asarray([True, True])), [-1, 1], rtol=1e-6)


def test_rewards_that_never_differ_have_a_unit_of_their_size():
    assert scale_after(np.zeros(100)) == 1.0
    for size in (1e-3, 1.0, 250.0):
        assert scale_after(np.full(100, size)) * size == pytest.approx(4)
    assert scale_after(np.full(100, -5.0) + np.linspace(0, 1e-4, 100)) * 5 == pytest.approx(4, rel=1e-3)


@pytest.mark.parametrize("empty", [1, 100, 10_000])
def test_the_first_reward_after_many_steps_without_one_is_no_explosion(empty: int):
    last = np.zeros(100)
    last[-1] = 3.0
    batches = [np.zeros(100)] * (empty // 100) + [last]
    assert 1.0 <= scale_after(*batches) * 3.0 <= 10 * (1 + 1e-5)


def test_returns_that_differ_have_their_deviation():
    returns = np.random.default_rng(0).normal(1.0, 2.0, (4, 500))
    assert scale_after(*returns) == pytest.approx(1 / returns.std(), rel=1e-4)


def test_a_constant_reward_is_learned_with_the_defaults(tmp_path: Path):
    run = upslope.train("jax:probe/constant", steps=40_000, folder=tmp_path, quiet=True)
    policy = run.load(checkpoint="last")
    assert policy.value(np.zeros(policy.encoder.shapes, np.float32)) == pytest.approx(1.0, rel=0.1)
    assert run.metrics()[-1]["critic/loss"] < 1


def test_an_online_actor_critic_learns(tmp_path: Path, capsys: Any):
    settings: dict[str, Any] = {"num_envs": 1, "rollout_steps": 1, "steps": 400, "folder": tmp_path}
    run = upslope.train("jax:CartPole-v1", "actor_critic", **settings)
    losses = [row["policy/loss"] for row in run.metrics() if "policy/loss" in row]
    assert np.mean(np.asarray(losses) != 0) > 0.9
    assert capsys.readouterr().out.count("a batch is a single step") == 1
