"""Creating Gymnasium environments by name: wrappers, arguments, images, and unregistered names."""

import importlib
import json
import os
import sys
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from user_environments import Walk, normalised_walk

import upslope
from upslope.analysis import scores
from upslope.cli.main import run as run_command
from upslope.cli.train import parse_train
from upslope.config import trust
from upslope.config.command import command_of
from upslope.config.config import canonical, configure
from upslope.environments.base import BrokenEnvironmentError, HostEnvironment
from upslope.environments.host import Maker
from upslope.environments.registry import make
from upslope.runs import evaluation

QUICK: dict[str, Any] = {"steps": 64, "num_envs": 2, "rollout_steps": 16, "quiet": True}


def host(*arguments, **settings) -> HostEnvironment:
    """Make an environment on the host."""
    environment = make(*arguments, **settings)
    assert isinstance(environment, HostEnvironment)
    return environment


class Scaled(gymnasium.RewardWrapper):
    """A user-defined wrapper."""

    def __init__(self, env, factor=2.0):
        super().__init__(env)
        self.factor = factor

    def reward(self, reward):
        return self.factor * float(reward)


SCALED = 'test_host_environments:Scaled:{"factor": 3}'


def test_wrappers_are_put_around_it_the_first_innermost():
    environment = host(
        "CartPole-v1", wrappers=('FrameStackObservation:{"stack_size": 4}', "FlattenObservation", SCALED)
    )
    assert environment.observation_space.shape == (16,)
    env = environment.create()
    env.reset(seed=0)
    assert env.step(0)[1] == 3


@pytest.mark.parametrize(
    ("wrapper", "words"),
    [
        ("Flatten", "Did you mean FlattenObservation"),
        ("test_host_environments:Nothing", "has no wrapper Nothing"),
        ("FrameStackObservation", "could not wrap CartPole-v1 with no arguments"),
        ("FrameStackObservation:{4}", "cannot be read"),
        ("builtins:id", "returned a int, not a gymnasium.Env"),
        ("nowhere:Wrapper", "cannot be imported"),
    ],
)
def test_a_wrapper_that_cannot_be_is_refused(wrapper, words):
    with pytest.raises(upslope.UpslopeError, match=words):
        make("CartPole-v1", wrappers=(wrapper,))


@pytest.mark.parametrize(
    ("create", "found"),
    [
        (Walk, ()),
        (normalised_walk, ("observations",)),
        (partial(normalised_walk, is_fixed=True), ()),
        (lambda: gymnasium.wrappers.NormalizeReward(normalised_walk()), ("rewards", "observations")),
    ],
)
def test_running_statistics_of_wrappers_are_found(create, found):
    assert host(create).normalised == found


def test_a_wrapper_that_needs_a_limit_sees_the_one_that_is_set():
    limited = host(Walk, wrappers=("TimeAwareObservation",), max_episode_steps=9)
    assert limited.create().get_wrapper_attr("max_timesteps") == 9
    with pytest.raises(BrokenEnvironmentError, match="TimeLimit"):
        host(Walk, wrappers=("TimeAwareObservation",))


def test_returns_that_a_wrapper_scales_are_announced(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--steps", "32", "--num-envs", "2", "--rollout-steps", "16", "--no-preset"]
    run_command(["train", "CartPole-v1", "--wrapper", "NormalizeReward", *small])
    assert "the wrapper NormalizeReward scales rewards" in " ".join(capsys.readouterr().out.split())


def test_a_run_keeps_its_wrappers_and_every_command_uses_them(tmp_path, capsys):
    words = ["--steps", "64", "--num-envs", "2", "--rollout-steps", "16", "--folder", str(tmp_path), "--name", "run"]
    wrappers = ["--wrapper", 'FrameStackObservation:{"stack_size": 2}', "--wrapper", "FlattenObservation"]
    run_command(["train", "CartPole-v1", *words, *wrappers, "--wrapper", SCALED])
    run, kept = str(tmp_path / "run"), (wrappers[1], wrappers[3], SCALED)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["config"]["wrappers"] == list(kept)
    found = upslope.evaluate(run, episodes=2)["stochastic"]
    assert (found.returns == 3 * found.lengths).all()
    assert upslope.load(run)(np.zeros(8, np.float32)) in (0, 1)
    run_command(["credit", run])
    assert upslope.resume(run, quiet=True).config.wrappers == kept
    run_command(["record", run, "--episodes", "2"])
    assert f"--wrapper {SCALED.split(':')[0]}" in capsys.readouterr().out.replace("'", "")
    assert upslope.train("CartPole-v1", wrappers="TimeAwareObservation", folder=tmp_path, **QUICK).config.wrappers == (
        "TimeAwareObservation",
    )


def test_the_command_of_a_config_repeats_its_wrappers(tmp_path):
    config = configure("CartPole-v1", is_continuous=False, wrappers=["FlattenObservation", SCALED])
    command = command_of(config, is_continuous=False)
    assert "--wrapper FlattenObservation --wrapper 'test_host_environments:Scaled:{" in command
    (tmp_path / "settings.yaml").write_text("wrappers: [FlattenObservation]\n")
    words = ["CartPole-v1", "--config", str(tmp_path / "settings.yaml")]
    assert parse_train(words)[1]["wrappers"] == ("FlattenObservation",)
    assert parse_train([*words, "--wrapper", SCALED])[1]["wrappers"] == (SCALED,)
    with pytest.raises(upslope.UpslopeError, match="list of strings"):
        canonical({"wrappers": 3})


@pytest.mark.parametrize(
    ("wrapper", "needs_trust"),
    [
        ("FlattenObservation", False),
        ('FrameStackObservation:{"stack_size": 4}', False),
        ('RecordVideo:{"video_folder": "/somewhere"}', True),
        ("os:system", True),
    ],
)
def test_a_wrapper_that_only_a_file_names_needs_trust(wrapper, needs_trust, tmp_path, monkeypatch):
    monkeypatch.setenv(trust.STATE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(trust, "GRANTED", set())
    config = configure("CartPole-v1", is_continuous=False, wrappers=(wrapper,))
    assert bool(trust.requested(config)) == needs_trust
    assert trust.requested(config, {"wrappers"}) == []
    if needs_trust:
        with pytest.raises(upslope.UpslopeError, match="asks to run the wrapper"):
            trust.require(config, "config.json")
    trust.require(config, "config.json", trust=True)


def test_nothing_is_set_for_drawing_where_nothing_is_drawn(monkeypatch):
    for name in ("MUJOCO_GL", "SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    made = host("CartPole-v1")
    made.create().close()
    assert "MUJOCO_GL" not in os.environ and "SDL_VIDEODRIVER" not in os.environ
    drawn = made.drawing().create()
    assert drawn.render_mode == "rgb_array"
    if sys.platform == "linux":
        assert os.environ["MUJOCO_GL"] == "egl" and os.environ["SDL_VIDEODRIVER"] == "dummy"


class Drawn(Walk):
    """A walk that can be rendered."""

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode


def plain():
    return Drawn()


def always_drawn():
    return Drawn("rgb_array")


@pytest.mark.parametrize(("create", "draws"), [(Drawn, True), (plain, False), (always_drawn, True)])
def test_render_mode_is_given_only_to_what_takes_it(create, draws):
    for environment in (create, f"test_host_environments:{create.__name__}"):
        made = host(environment)
        if draws:
            assert made.drawing().create().render_mode == "rgb_array"
        else:
            with pytest.raises(upslope.UpslopeError, match="accept the argument render_mode"):
                made.drawing()


MODULES = {
    "asks_first": "import gymnasium\ndef register_envs():\n    gymnasium.register('AsksFirst-v0', 'asks_first:Env')\n",
    "registers": "import gymnasium\nclass MyWalk(gymnasium.Env): pass\n",
}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("asks_first:AsksFirst-v0", r"Call asks_first.register_envs\(\) in your own module"),
        ("registers:MyWlak", "Did you mean registers:MyWalk"),
        ("somebody/Their-v0", "module:somebody/Their-v0"),
        ("CartPole-v9", "Did you mean CartPole-v1"),
    ],
)
def test_a_name_that_is_not_registered_has_a_hint(name, words, tmp_path, monkeypatch):
    for module, text in MODULES.items():
        (tmp_path / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(upslope.UpslopeError, match=words) as refusal:
        make(name)
    assert not isinstance(refusal.value, BrokenEnvironmentError)


class Endless(Walk):
    """A walk that never ends."""

    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        self.position = float(np.clip(self.position, -1, 1))
        return observation, reward, False, truncated, info


def test_an_episode_that_is_cut_is_told_and_the_limit_can_be_set(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "EVALUATION_LIMIT", 30)
    monkeypatch.setattr(scores, "EVALUATION_LIMIT", 30)
    run = upslope.train("test_host_environments:Endless", folder=tmp_path, **QUICK).path
    upslope.evaluate(run, episodes=2)
    told = capsys.readouterr().err
    assert "2 stochastic episodes cut off at 30 steps" in told and "2 deterministic episodes cut" in told
    assert "--max-episode-steps" in told
    (caveat,) = [words for words in upslope.compare(run, score="stochastic").warnings if "cut off" in words]
    assert "2 of its 2 evaluation episodes were cut off at 30 steps" in caveat
    found = upslope.evaluate(run, episodes=2, max_episode_steps=50)["stochastic"]
    assert (found.lengths == 50).all() and "cut" not in capsys.readouterr().err
    upslope.record(run, episodes=3)
    assert "3 episodes cut off at 30 steps" in capsys.readouterr().err
    limited = upslope.train("CartPole-v1", folder=tmp_path, **QUICK).path
    assert upslope.evaluate(limited, episodes=2, max_episode_steps=5)["stochastic"].lengths.max() <= 5
    assert "cut" not in capsys.readouterr().err


def test_a_maker_can_be_sent_to_another_process():
    import pickle

    made = host("CartPole-v1", wrappers=("FlattenObservation",))
    assert isinstance(made.create, Maker)
    assert pickle.loads(pickle.dumps(made)).create().reset(seed=3)[0].shape == (4,)
