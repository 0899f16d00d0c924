"""One seed that is split over two devices matches the same seed on one device, up to rounding.

Each environment draws the same random numbers, so the episodes and the minibatches are equal. Only the order in which
the rows of a batch are summed differs, which changes a 32-bit sum of a few hundred terms by about 1e-7. In these cases,
the largest difference between parameters after four iterations was 4e-7, and the tests allow 1e-5. An error in the
split, such as a gradient that is not summed or a different minibatch, would move parameters by the learning rate in
each Adam step, which is at least 2.5e-4.
"""

from typing import Any

import jax
import numpy as np
import pytest
from helpers import quick_jit

import upslope
from upslope.config.prepare import prepare
from upslope.engines.compiled import CompiledEngine
from upslope.environments.registry import make
from upslope.learning.devices import assign_seeds
from upslope.learning.split import gathered, num_shares, own_part

TOLERANCE = 1e-5
SEGMENTS: dict[str, Any] = {"num_envs": 4, "rollout_steps": 24, "minibatches": 3, "epochs": 2, "hidden_sizes": (8,)}
EPISODES: dict[str, Any] = {"num_envs": 8, "max_episode_steps": 20, "hidden_sizes": (8,)}
SHORT = SEGMENTS | {"max_episode_steps": 10}
NATURAL: dict[str, Any] = {"num_envs": 6, "rollout_steps": 7, "max_episode_steps": 5, "hidden_sizes": (8,)}
BOTH = {"normalize_observations": True, "normalize_rewards": True}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # There are 5 minibatches of 19 steps. Neither number divides the other, and the two devices get 10 and 9 of the
    # steps.
    "segments": ("jax:CartPole-v1", "ppo", SEGMENTS | BOTH | {"minibatches": 5, "target_kl": 1e-4}),
    "seeds": ("jax:CartPole-v1", "ppo", SEGMENTS | {"seeds": 3}),
    "episodes": ("jax:CartPole-v1", "reinforce_baseline", EPISODES | {"critic_epochs": 3}),
    "groups": ("jax:CartPole-v1", "grpo", EPISODES | {"group_size": 4, "num_envs": 4}),
    "natural": ("jax:Pendulum-v1", "trpo", NATURAL),
    "memory": ("jax:CartPole-v1", "ppo", SEGMENTS | {"memory": "gru", "memory_size": 4, "sequence_length": 6}),
    "held noise": ("jax:Pendulum-v1", "ppo", SHORT | {"head": "gsde", "noise_every": 4, "rpo_alpha": 0.1}),
    "count": ("jax:GridWorld-v0", "ppo", SEGMENTS | {"bonus": "count"}),
    "rnd": ("jax:CartPole-v1", "ppo", SEGMENTS | {"bonus": "rnd", "shared_trunk": True}),
}
EXACT = ("health/broken_links", "health/reset_as_successor")
"""Metrics that test observations for exact equality. The compiler may round the two sides differently."""
PLAIN = ("segments", "groups")


def trained(case: str, devices: int) -> tuple[Any, Any, Any]:
    """Train for four iterations; return the states before and after them, and the resulting chunk."""
    environment, algorithm, settings = CASES[case]
    settings = {"steps": 4000, **settings, "devices_per_seed": devices}
    config, task = prepare(make(environment), algorithm, preset=False, settings=settings)
    engine = CompiledEngine(task, config.seed_list(), 4)
    before = engine.start()
    return before, *engine.advance(before)


def distance(x: Any, y: Any) -> float:
    """Return the largest relative difference between two trees of floats, which must have nans in the same places."""
    leaves = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    pairs = [(np.asarray(a, float), np.asarray(b, float)) for a, b in leaves if np.size(a)]
    assert all((np.isnan(a) == np.isnan(b)).all() for a, b in pairs)
    return max(float(np.nanmax(np.abs(a - b) / (1 + np.abs(a)), initial=0.0)) for a, b in pairs)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in PLAIN else pytest.mark.weekly) for case in CASES]
)
def test_a_seed_on_two_devices_is_that_seed_on_one(case: str):
    (start, one, of_one), (_, two, of_two) = trained(case, 1), trained(case, 2)
    returns = [np.asarray([row[2] for rows in chunk.episodes for row in rows]) for chunk in (of_one, of_two)]
    assert ends_of(of_one) == ends_of(of_two)
    assert len(returns[0]) > 0
    assert distance(*returns) < TOLERANCE
    assert distance(one.learner, two.learner) < TOLERANCE
    assert distance(start.learner, one.learner) > 10 * TOLERANCE  # otherwise, equal parameters would prove little
    assert set(of_one.metrics) == set(of_two.metrics)
    far = {name: distance(of_one.metrics[name], of_two.metrics[name]) for name in of_one.metrics if name not in EXACT}
    assert {name: gap for name, gap in far.items() if gap > 1e-2} == {}


@pytest.mark.weekly
def test_seeds_at_once_may_be_split_too(monkeypatch: pytest.MonkeyPatch):
    # On CPUs, do what several accelerators would do.
    for module in ("upslope.learning.iteration", "upslope.engines.compiled"):
        monkeypatch.setattr(f"{module}.is_vmapped", lambda mesh: True)
    (_, one, of_one), (_, two, of_two) = trained("seeds", 1), trained("seeds", 2)
    assert ends_of(of_one) == ends_of(of_two)
    assert distance(one.learner, two.learner) < TOLERANCE


def ends_of(chunk: Any) -> list[list[tuple[int, int]]]:
    """Return when each seed's episodes ended, and how long they were."""
    return [[(row[0], row[3]) for row in rows] for rows in chunk.episodes]


def test_the_work_is_split():
    # No device holds the activations of all 1,536 rows of a minibatch or steps all 64 environments.
    settings = {"num_envs": 64, "rollout_steps": 24, "minibatches": 1, "hidden_sizes": (37,), "steps": 4000}
    config, task = prepare(make("jax:CartPole-v1"), preset=False, settings=settings | {"devices_per_seed": 2})
    engine = CompiledEngine(task, config.seed_list(), 1)
    state, _ = engine.advance(engine.start())
    program = engine.programs[0].compiled.as_text()
    assert "f32[768,37]" in program and "f32[1536,37]" not in program
    assert "f32[32,37]" in program and "f32[64,37]" not in program
    assert state.columns.length.sharding.shard_shape((1, 64)) == (1, 32)


def test_nothing_happens_without_such_devices():
    x = np.arange(6.0)
    assert num_shares() == 1
    assert own_part(x) is x
    assert gathered(x) is x
    assert quick_jit(own_part)(x).tolist() == x.tolist()


def test_seeds_take_devices_in_groups():
    # The tests use two devices.
    ((share, mesh),) = assign_seeds(3, True, 2)
    assert share == slice(0, 3)
    assert dict(mesh.shape) == {"seeds": 1, "environments": 2}


@pytest.mark.parametrize(
    ("environment", "settings", "words"),
    [
        ("jax:CartPole-v1", {"num_envs": 6, "devices_per_seed": 4}, "--num-envs 6 cannot .* Use --num-envs 4, or"),
        ("jax:CartPole-v1", {"devices_per_seed": 8}, "--devices-per-seed 8 .* only 2 processor cores"),
        ("jax:CartPole-v1", {"devices_per_seed": 0}, "--devices-per-seed must be greater than 0"),
        ("CartPole-v1", {"devices_per_seed": 2}, "--devices-per-seed applies only to compiled environments"),
        ("jax:CartPole-v1", {"devices_per_seed": 2, "cluster": "auto"}, "a worker has 1. Set --worker-cpus 2"),
    ],
)
def test_what_cannot_be_split_is_refused(environment: str, settings: dict[str, Any], words: str, tmp_path):
    with pytest.raises(upslope.UpslopeError, match=words):
        upslope.train(environment, folder=tmp_path, quiet=True, preset=False, **settings)
    assert not list(tmp_path.iterdir())
