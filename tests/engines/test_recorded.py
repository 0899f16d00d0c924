"""Recorded episodes are read as they were written, and the algorithms that learn from them work as documented."""

import json
import re
from pathlib import Path
from typing import Any

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import upslope
from upslope.core.types import Rollout
from upslope.environments.registry import make
from upslope.models.encoders import encoder_of
from upslope.models.heads import head_of
from upslope.runs import datasets, evaluation
from upslope.runs.datasets import load_dataset
from upslope.runs.directory import RunDirectory
from upslope.runs.policy import load_agents

SMALL: dict[str, Any] = {"hidden_sizes": (8,), "quiet": True}
CARTPOLE = make("jax:CartPole-v1")
SPACES = (encoder_of(CARTPOLE.observation_space, ""), head_of(CARTPOLE.action_space, ""))


@pytest.fixture(scope="module", params=["jax:CartPole-v1", "CartPole-v1"])
def teacher(request: pytest.FixtureRequest, folder: Path) -> Path:
    settings: dict[str, Any] = {"steps": 64, "num_envs": 2, "rollout_steps": 16, "seeds": 2, "max_episode_steps": 40}
    return upslope.train(request.param, folder=folder, minibatches=2, epochs=1, preset=False, **settings, **SMALL).path


def hand_made(path: Path, **changes: Any) -> Path:
    """Write two CartPole episodes: one with three steps that terminated, and one with two steps that was truncated."""
    observation = np.arange(20, dtype=np.float32).reshape(5, 4)
    arrays: dict[str, Any] = {
        "observation": observation,
        "action": np.array([0, 1, 1, 0, 1]),
        "reward": np.array([1.0, 2.0, 3.0, 4.0, 5.0]),
        "length": np.array([3, 2]),
        "terminated": np.array([True, False]),
        "final_observation": np.array([[-1.0] * 4, [-2.0] * 4], np.float32),
        "behaviour_log_prob": np.log(np.array([0.5, 0.6, 0.7, 0.8, 0.9])),
        "meta": json.dumps({}),
    }
    arrays |= changes
    np.savez(path, **{name: x for name, x in arrays.items() if x is not None})
    return path


def test_a_hand_written_dataset_is_read_as_its_docstring_says(tmp_path: Path):
    rollout = load_dataset(hand_made(tmp_path / "hand.npz"), *SPACES, True)
    steps = np.arange(20, dtype=np.float32).reshape(5, 4)
    zeros = np.zeros(4, np.float32)
    np.testing.assert_array_equal(rollout.valid, [[True, True], [True, True], [True, False]])
    np.testing.assert_array_equal(rollout.observation[:, 0], steps[:3])
    np.testing.assert_array_equal(rollout.observation[:, 1], [steps[3], steps[4], zeros])
    np.testing.assert_array_equal(rollout.next_observation[:, 0], [steps[1], steps[2], [-1] * 4])
    np.testing.assert_array_equal(rollout.next_observation[:2, 1], [steps[4], [-2] * 4])
    np.testing.assert_array_equal(rollout.action, [[0, 0], [1, 1], [1, 0]])
    np.testing.assert_array_equal(rollout.reward, [[1, 4], [2, 5], [3, 0]])
    np.testing.assert_array_equal(rollout.terminated, [[False, False], [False, False], [True, False]])
    np.testing.assert_array_equal(rollout.truncated, [[False, False], [False, True], [False, False]])
    np.testing.assert_allclose(np.exp(rollout.behaviour_log_prob)[rollout.valid], [0.5, 0.8, 0.6, 0.9, 0.7], rtol=1e-6)


PAGE = (Path(__file__).parents[2] / "docs" / "recorded_data.md").read_text("utf-8")


def test_the_program_of_the_page_writes_a_file_and_trains_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    short = program.replace("range(100)", "range(6)").replace(
        "steps=200_000", "steps=400, hidden_sizes=(8,), quiet=True"
    )
    found: dict[str, Any] = {}
    exec(compile(short, "recorded_data.md", "exec"), found)
    rollout = load_dataset("rule.npz", *SPACES, True)
    assert rollout.valid.shape[1] == 6 and rollout.valid.sum() == len(found["steps"]["reward"])
    assert rollout.terminated.sum() + rollout.truncated.sum() == 6
    assert found["run"].metrics()[-1]["step"] >= 400


def test_the_page_lists_the_keys_that_are_written_and_read(teacher: Path):
    listed = set(re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.M))
    assert listed == {"meta", "final_observation", *datasets.EVERY_STEP, *datasets.REQUIRED}
    written = np.load(upslope.record(teacher, episodes=2, output=teacher / "keys.npz"))
    assert set(written) == listed - {"action_mask"}


def test_a_hand_written_file_may_have_parts_and_other_keys_but_needs_meta(tmp_path: Path):
    arm = spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Discrete(3, start=5)])
    both = encoder_of(spaces.Dict({"arm": arm}), ""), head_of(spaces.Discrete(2, start=7), "")
    parts: dict[str, Any] = {"observation": None, "final_observation": None, "truncated": np.array([False, True])}
    for name, count in (("observation", 5), ("final_observation", 2)):
        parts |= {f"{name}['arm'][0]": np.ones((count, 2)), f"{name}['arm'][1]": np.full(count, 7)}
    rollout = load_dataset(hand_made(tmp_path / "parts.npz", **parts), *both, True)
    assert rollout.observation["arm"][1].tolist() == [[7, 7], [7, 7], [7, 0]]
    assert rollout.action.tolist() == [[0, 0], [1, 1], [1, 0]] and rollout.truncated.sum() == 1
    with pytest.raises(upslope.UpslopeError, match=r"no entry `meta`, which holds a JSON object"):
        load_dataset(hand_made(tmp_path / "bare.npz", meta=None), *SPACES, True)


def test_recorded_and_loaded_equals_the_rollouts(teacher: Path):
    directory = RunDirectory(teacher)
    path = upslope.record(teacher, episodes=13, seed=1)
    config, world = directory.config(), make(directory.config().environment, {}, 40)
    agents, _ = load_agents(directory, config, "last")
    one = evaluation.RunSeeds(config, (1,))
    second = evaluation.jax.tree.map(lambda x: x[1:2], agents)
    offset = evaluation.RECORDING_SEED
    rollouts = [evaluation.take(r, 0) for r in evaluation.episodes_of(one, world, second, "stochastic", 13, offset)]
    assert [r.valid.shape[1] for r in rollouts] == [10, 3]
    read, number = load_dataset(path, *SPACES, True), 0
    assert read.valid.shape[1] == 13
    for rollout in rollouts:
        for column in range(rollout.valid.shape[1]):
            length = int(rollout.valid[:, column].sum())
            assert int(read.valid[:, number].sum()) == length
            assert rollout.action_mask is None and read.action_mask is None
            for name in set(Rollout._fields) - {"action_mask"}:
                written, found = getattr(rollout, name)[:length, column], getattr(read, name)[:length, number]
                # If an environment reports an episode as both terminated and truncated, the file keeps only the former.
                written = written & ~rollout.terminated[:length, column] if name == "truncated" else written
                np.testing.assert_array_equal(written, found, err_msg=name)
            assert not read.valid[length:, number].any()
            number += 1
    assert number == 13
    with pytest.raises(upslope.UpslopeError, match=r"already exists.*--output"):
        upslope.record(teacher, episodes=1)


def test_recorded_probabilities_are_the_teachers(teacher: Path):
    path = upslope.record(teacher, episodes=4, output=teacher / "four.npz")
    read = load_dataset(path, *SPACES, True)
    policy = upslope.load(teacher, seed=0, checkpoint="last")
    observation, action = read.observation[read.valid], read.action[read.valid]
    distribution = policy.agent.policy(jnp.asarray(observation))
    np.testing.assert_allclose(
        distribution.log_prob(jnp.asarray(action)), read.behaviour_log_prob[read.valid], atol=1e-5
    )
    assert {0, 1} == set(action.tolist())


@pytest.mark.parametrize("teacher", ["CartPole-v1"], indirect=True)
def test_off_policy_learns_and_logs_its_effective_sample_size(teacher: Path, folder: Path):
    path = teacher / "for_off_policy.npz"
    upslope.record(teacher, episodes=20, output=path)
    steps = int(np.load(path)["length"].sum())
    run = upslope.train("jax:CartPole-v1", "off_policy", data=str(path), folder=folder, steps=3 * steps, **SMALL)
    metrics = run.metrics()
    assert [row["step"] for row in metrics] == [steps, 2 * steps, 3 * steps]
    for row in metrics:
        # (Σρ)² ≤ n Σρ², so this share is at most 1. After small updates, it is close to 1.
        assert 0.2 < row["policy/effective_sample_size"] <= 1 + 1e-6
        assert row["episode/count"] == 0
    assert run.episodes().size == 0


def test_clone_learns_the_experts_action(folder: Path):
    generator = np.random.default_rng(0)
    # The expert pushes in the direction in which the pole leans. Its 400 steps form episodes of 10 steps.
    observation = generator.normal(size=(400, 4)).astype(np.float32)
    path = hand_made(
        folder / "expert.npz",
        observation=observation,
        action=(observation[:, 2] > 0).astype(np.int64),
        reward=np.ones(400),
        length=np.full(40, 10),
        terminated=np.zeros(40, bool),
        final_observation=np.zeros((40, 4), np.float32),
        behaviour_log_prob=None,
    )
    run = upslope.train(
        "jax:CartPole-v1", "clone", data=str(path), folder=folder, steps=400 * 40, learning_rate=1e-2, **SMALL
    )
    policy = run.load(checkpoint="last")
    unseen = generator.normal(size=(500, 4)).astype(np.float32)
    assert (policy(unseen) == (unseen[:, 2] > 0)).mean() > 0.95
    found = upslope.evaluate(run.path, episodes=5)["deterministic"]
    assert found.returns.mean() > 30  # without balancing, the pole falls after about nine steps


def test_data_without_probabilities_is_for_clone_only(tmp_path: Path):
    path = hand_made(tmp_path / "no_mu.npz", behaviour_log_prob=None)
    with pytest.raises(upslope.UpslopeError, match=r"no behaviour_log_prob.*--algorithm clone"):
        upslope.train("jax:CartPole-v1", "off_policy", data=str(path), folder=tmp_path, **SMALL)
    run = upslope.train("jax:CartPole-v1", "clone", data=str(path), folder=tmp_path, steps=10, minibatches=1, **SMALL)
    assert np.isfinite(run.metrics()[-1]["policy/loss"])


def test_more_minibatches_than_recorded_steps_is_refused(tmp_path: Path):
    path = hand_made(tmp_path / "short.npz")
    with pytest.raises(upslope.UpslopeError, match="minibatches"):
        upslope.train("jax:CartPole-v1", "clone", data=str(path), folder=tmp_path, steps=10, minibatches=8, **SMALL)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward": None}, "lacks reward"),
        ({"observation": np.zeros((5, 3), np.float32)}, r"`observation` has shape \(5, 3\), but .* needs \(5, 4\)"),
        ({"final_observation": np.zeros((1, 4))}, r"`final_observation` has shape \(1, 4\)"),
        ({"action": np.array([0, 1, 2, 0, 1])}, "integers that are at least 0 and below 2"),
        ({"action": np.array([0.0, 1.0, 1.0, 0.0, 1.0])}, "integers that are at least 0 and below 2"),
        ({"reward": np.array([1.0, np.nan, 3.0, 4.0, 5.0])}, "`reward` contains a value that is not finite"),
        ({"length": np.array([3, 0, 2])}, "number of steps, at least 1"),
        ({"length": np.array([3, 3])}, "has shape .* needs"),
        ({"length": np.array([], int)}, "one or more episodes"),
        ({"length": np.array(5)}, "`length` must contain"),
        ({"length": np.array(["three", "two"])}, "`length` must contain"),
        ({"length": np.array([3.0, 2.0])}, "`length` must contain"),
        ({"action": np.array(list("abcde"))}, "does not contain numbers"),
        ({"behaviour_log_prob": np.array([0.5, 0.6, 0.7, 0.8, 0.9])}, r"is 0.5 at step 0, .* Store log μ\(a\|s\), not"),
        ({"meta": json.dumps({"kind": "checkpoint", "format": 1})}, "it is a checkpoint"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(changes: dict[str, Any], words: str, tmp_path: Path):
    path = hand_made(tmp_path / "bad.npz", **changes)
    with pytest.raises(upslope.UpslopeError, match=words) as refusal:
        load_dataset(path, *SPACES, False)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("data", [None, 5, {"reward": np.zeros(3)}])
def test_what_is_no_path_is_refused(data: Any):
    read = getattr(datasets.read_recorded, "__wrapped__", datasets.read_recorded)  # without the tests' type checks
    with pytest.raises(upslope.UpslopeError, match=f"a {type(data).__name__} cannot be their source"):
        read(data)


def pictures_of(path: Path, lengths: list[int]) -> Path:
    """Write black images in episodes of these lengths; compression keeps the file small."""
    steps, episodes = sum(lengths), len(lengths)
    arrays: dict[str, Any] = {
        "observation": np.zeros((steps, 84, 84, 4), np.uint8),
        "action": np.zeros(steps, int),
        "reward": np.zeros(steps, np.float32),
        "length": np.array(lengths),
        "terminated": np.ones(episodes, bool),
        "final_observation": np.zeros((episodes, 84, 84, 4), np.uint8),
        "meta": json.dumps({}),
    }
    np.savez_compressed(path, **arrays)
    return path


def test_pictures_of_one_long_episode_are_refused_before_they_are_padded(tmp_path: Path, monkeypatch: Any):
    pictures = gymnasium.spaces.Box(0, 255, (84, 84, 4), np.uint8), gymnasium.spaces.Discrete(2)
    spaces = encoder_of(pictures[0], ""), head_of(pictures[1], "")
    rollout = load_dataset(pictures_of(tmp_path / "alike.npz", [20] * 30), *spaces, False)
    assert rollout.valid.shape == (20, 30)
    monkeypatch.setattr(datasets, "as_rollout", lambda *_: pytest.fail("it would allocate 34 GB"))
    with pytest.raises(upslope.UpslopeError, match=r"longest episode has 1,200 steps.* Remove the longest episodes"):
        load_dataset(pictures_of(tmp_path / "long.npz", [1200, *[1] * 500]), *spaces, False)


@pytest.mark.parametrize("teacher", ["CartPole-v1", "jax:CartPole-v1"], indirect=True)
def test_recording_nothing_is_refused(teacher: Path):
    with pytest.raises(upslope.UpslopeError, match="--episodes must be 1 or more"):
        upslope.record(teacher, episodes=0, output=teacher / "none.npz")
