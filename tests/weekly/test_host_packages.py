"""Environments from third-party packages can be trained, resumed and evaluated by id alone, with their presets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vector_environments import Script, columns_of, stepped

import upslope
from upslope.core.types import Rollout
from upslope.engines.columns import reset_seed
from upslope.environments.registry import make
from upslope.errors import UpslopeError
from upslope.runs.directory import RunDirectory

SMALL: dict[str, Any] = {"num_envs": 2, "rollout_steps": 16, "minibatches": 2, "epochs": 1, "steps": 64}


def trained(folder: Path, name: str, **settings: Any) -> Any:
    """Train and evaluate a short run."""
    run = upslope.train(name, folder=folder, name="run", **{**SMALL, **settings})
    assert upslope.evaluate(run.path, episodes=1, max_episode_steps=20)["stochastic"].lengths.max() <= 20
    return run


@pytest.mark.parametrize("memory", [None, "gru"])
def test_minigrid(memory: Any, tmp_path: Path, capsys: pytest.CaptureFixture):
    package = pytest.importorskip("minigrid")
    run = trained(tmp_path, "MiniGrid-DoorKey-5x5-v0", memory=memory)
    said = capsys.readouterr().out
    assert f"comes from minigrid {package.__version__}" in said and "--ignore-observation mission" in said
    assert run.config.ignore_observation == ("mission",) and "rl-baselines3-zoo" in str(run.config.preset)
    assert RunDirectory(run.path).read()["versions"]["minigrid"] == package.__version__


def test_minigrid_with_a_wrapper_of_its_own(tmp_path: Path):
    pytest.importorskip("minigrid")
    run = trained(tmp_path, "BabyAI-GoToLocal-v0", wrappers=("minigrid.wrappers:FlatObsWrapper",))
    assert run.config.ignore_observation == ()


def test_atari_is_preprocessed_as_usual(tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    run = trained(tmp_path, "ALE/Breakout-v5", clip_rewards=1)
    assert run.config.env_kwargs == {"frameskip": 1} and "AtariPreprocessing" in capsys.readouterr().out
    made: Any = make("ALE/Breakout-v5", run.config.env_kwargs, wrappers=run.config.wrappers)
    assert made.observation_space.shape == (4, 84, 84) and made.observation_space.dtype == np.uint8
    env = made.create()
    env.reset(seed=0)
    before = env.unwrapped.ale.getEpisodeFrameNumber()
    env.step(0)
    assert env.unwrapped.ale.getEpisodeFrameNumber() - before == 4
    assert 0 < before <= 30, "no-ops at the start"
    env.close()


def test_a_lost_life_ends_an_episode_only_on_request(tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    wrappers = (
        'AtariPreprocessing:{"terminal_on_life_loss": true}',
        'FrameStackObservation:{"stack_size": 4}',
    )
    trained(tmp_path, "ALE/Breakout-v5", wrappers=wrappers)
    assert "each lost life ends an episode" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["FetchReach-v4", "PointMaze_UMaze-v3"])
def test_robotics_dictionaries_need_no_word(name: str, tmp_path: Path):
    pytest.importorskip("gymnasium_robotics")
    run = trained(tmp_path, name)
    policy = run.load()
    made: Any = make(name)
    env = made.create()
    observation, _ = env.reset(seed=0)
    assert env.action_space.contains(policy(observation))
    env.close()


@pytest.mark.parametrize("name", ["Blackjack-v1", "Taxi-v4"])
def test_gymnasiums_toy_texts_need_no_word(name: str, tmp_path: Path):
    assert trained(tmp_path, name).config.environment == name


def test_rewards_that_are_vectors_are_refused_with_the_wrapper_that_works(tmp_path: Path):
    pytest.importorskip("mo_gymnasium")
    with pytest.raises(UpslopeError, match="--wrapper 'WeightedReward") as refused:
        upslope.train("deep-sea-treasure-v0", folder=tmp_path, **SMALL)
    wrapper = str(refused.value).split("--wrapper '")[1].split("'")[0]
    trained(tmp_path, "deep-sea-treasure-v0", wrappers=(wrapper,))


def test_envpool_steps_as_it_does_by_hand():
    envpool = pytest.importorskip("envpool")

    def action(observation: Any, mask: Any, t: int) -> Any:
        return np.random.default_rng(t).integers(0, 2, (1, 3))

    columns = columns_of("envpool:CartPole-v1", 3)
    rollout: Rollout = stepped(columns, Script(action), 60)[0]
    assert columns.limit == 500
    columns.close()
    pool = envpool.make("CartPole-v1", env_type="gymnasium", num_envs=3, seed=reset_seed(7, 0, 0))
    observation, over = pool.reset()[0], np.zeros(3, bool)
    for t in range(60):
        following, reward, terminated, truncated, _ = pool.step(action(None, None, t)[0])
        assert np.array_equal(rollout.valid[0, t], ~over)
        for n in np.flatnonzero(~over):
            assert np.array_equal(rollout.observation[0, t, n], observation[n])
            assert np.array_equal(rollout.next_observation[0, t, n], following[n])
            assert rollout.reward[0, t, n] == reward[n] and rollout.terminated[0, t, n] == terminated[n]
        observation, over = following, terminated | truncated
    assert not np.asarray(rollout.valid).all(), "an episode ended"


def test_envpool_trains(tmp_path: Path):
    pytest.importorskip("envpool")
    trained(tmp_path, "envpool:CartPole-v1")
