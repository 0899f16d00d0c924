"""Runs with groups and with a reference policy: shared initial states, bit-for-bit resuming, and what is refused."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from run_helpers import Killed, arrays_of, assert_same_run, before_chunk, metrics_of

import upslope
from upslope.config.prepare import prepare
from upslope.engines.columns import HostColumns, reset_seed
from upslope.environments.registry import make
from upslope.errors import UpslopeError
from upslope.learning.collect import collect_episodes
from upslope.learning.iteration import initialise
from upslope.models.encoders import encoder_of
from upslope.models.heads import head_of

pytestmark = pytest.mark.usefixtures("compiled_for_users")

TOKENS: dict[str, Any] = {"env_kwargs": {"length": 3, "prompts": 2}, "num_envs": 8, "group_size": 4}
SMALL: dict[str, Any] = {"hidden_sizes": (8,), "quiet": True, "minibatches": 2, "epochs": 2}


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    """Train two seeds with leave-one-out."""
    settings = SMALL | {"epochs": 1, "minibatches": 1}
    return upslope.train(
        "jax:Tokens-v0", "rloo", folder=folder, name="source", steps=400, seeds=2, **TOKENS, **settings
    ).path


def kill() -> None:
    raise Killed


def test_a_run_with_a_reference_is_resumed_without_it(source: Path, folder: Path):
    copy = folder / "copy"
    shutil.copytree(source, copy)
    settings = {**TOKENS, **SMALL, "steps": 600, "seeds": 2, "reference": str(copy), "reference_estimator": "k3"}
    whole = upslope.train("jax:Tokens-v0", "grpo", folder=folder, name="whole", **settings).path
    with before_chunk(2, kill), pytest.raises(Killed):
        upslope.train("jax:Tokens-v0", "grpo", folder=folder, name="killed", **settings)
    shutil.rmtree(copy)
    upslope.resume(folder / "killed", quiet=True)
    assert_same_run(whole, folder / "killed")
    taken = arrays_of(source / "checkpoints" / "last.npz")
    kept = arrays_of(whole / "checkpoints" / "last.npz")
    networks = [name for name in taken if name.startswith("state.learner.agent.model")]
    for name in networks:
        assert kept[name.replace("learner.agent", "reference.agent")] == taken[name]
    assert all(row["policy/reference_kl"] > 0 for row in metrics_of(whole))


def test_the_policy_is_that_of_every_command(source: Path):
    found = upslope.evaluate(source, episodes=4)
    assert found["stochastic"].seed_means().shape == (2,)
    assert upslope.load(source, seed=1)(np.int64(0)) in range(3)


def test_compiled_groups_share_their_starts():
    settings = {"hidden_sizes": (8,), "num_envs": 6, "group_size": 3}
    config, task = prepare("jax:CartPole-v1", "rloo", settings=settings)
    agent = initialise(task, 0).learner.agent
    collect = partial(collect_episodes, task.environment, num_envs=6, max_episode_steps=4, group_size=task.group_size)
    first = np.asarray(jax.jit(collect)(agent, jax.random.key(0))[0].observation[0])
    assert (first[:3] == first[0]).all() and (first[3:] == first[3]).all() and (first[0] != first[3]).any()
    assert config.group_size == task.group_size == task.estimator.group_size == 3


def test_host_groups_share_their_starts_in_every_process():
    world = make("CartPole-v1")
    encoder, head = encoder_of(world.observation_space, world.name), head_of(world.action_space, world.name)
    columns = HostColumns(world, encoder, head, [7], 4, None, group_size=2)
    part = HostColumns(world, encoder, head, [7], 2, None, indices=[1, 2], group_size=2)  # spans two groups
    for number in range(2):
        columns.begin(range(4))
        part.begin(range(2))
        assert [episode.reset_seed for episode in columns.episodes] == [reset_seed(7, k, number) for k in (0, 0, 1, 1)]
        assert (columns.flat[0] == columns.flat[1]).all() and (columns.flat[2] == columns.flat[3]).all()
        assert (columns.flat[1] != columns.flat[2]).any()
        np.testing.assert_array_equal(part.flat, columns.flat[1:3])
        assert (
            f"environment 1 of seed 7, episode {number} (reset seed {reset_seed(7, 0, number)})"
            in columns.episodes[1].describe()
        )
    columns.close()
    part.close()


def test_host_groups_train_and_resume(folder: Path):
    settings = {**SMALL, "steps": 1200, "num_envs": 4, "group_size": 2, "max_episode_steps": 20, "preset": False}
    whole = upslope.train("CartPole-v1", "dapo", folder=folder, name="host", **settings).path
    with before_chunk(3, kill), pytest.raises(Killed):
        upslope.train("CartPole-v1", "dapo", folder=folder, name="host killed", **settings)
    upslope.resume(folder / "host killed", quiet=True)
    assert_same_run(whole, folder / "host killed")


@pytest.mark.parametrize(
    ("environment", "algorithm", "settings", "words"),
    [
        ("jax:Tokens-v0", "rloo", {"num_envs": 10, "group_size": 4}, "--num-envs 10 cannot .* Use --num-envs 8"),
        ("jax:Tokens-v0", "rloo", {"group_size": 1}, "at least 2 episodes, not 1"),
        ("jax:Tokens-v0", "ppo", {"group_size": 4}, "GAE learns from segments of 128 steps"),
        ("jax:Tokens-v0", "ppo", {"estimator": "group_mean"}, "Set --group-size"),
        ("jax:Tokens-v0", "ppo", {"divide_by_deviation": True}, "--divide-by-deviation applies only to"),
        ("jax:Tokens-v0", "rloo", {"epsilon_high": 0.3}, "--epsilon-high applies only to --objective clip"),
        ("jax:Tokens-v0", "rloo", {"reference_kl": 0.3}, "--reference-kl applies only to runs with --reference"),
        ("vector:CartPole-v1", "rloo", {}, "cannot share a reset seed"),
        ("jax:CartPole-v1", "off_policy", {"estimator": "group_mean", "data": "x.npz", "group_size": 4}, "recorded"),
    ],
)
def test_refusals(environment: str, algorithm: str, settings: dict[str, Any], words: str):
    with pytest.raises(UpslopeError, match=words):
        prepare(environment, algorithm, settings=settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reference": "nowhere"}, "nowhere"),
        ({"hidden_sizes": (4,)}, r"--hidden-sizes was \(8,\), and is now \(4,\)"),
        ({"env_kwargs": {}}, "spaces"),
        ({"seeds": 3}, "no seed 2. To use one of them .* --reference-seed 0"),
        ({"reference_seed": 9}, "no seed 9"),
        ({"reference_estimator": "k4"}, "one of exact, k1, k2, k3"),
    ],
)
def test_references_that_cannot_be(source: Path, folder: Path, settings: dict[str, Any], words: str):
    chosen = {**TOKENS, **SMALL, "steps": 600, "reference": str(source), **settings}
    with pytest.raises(UpslopeError, match=words):
        upslope.train("jax:Tokens-v0", "grpo", folder=folder, name="refused", **chosen)
    assert not (folder / "refused").exists()
