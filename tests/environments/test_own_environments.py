"""Every command finds a user's own compiled environment, Python functions accept it, and the protocol is checked."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import upslope
from upslope.analysis.episode_credit import credit_of
from upslope.cli.main import run as run_command
from upslope.config import trust
from upslope.config.config import configure
from upslope.environments.base import BrokenEnvironmentError
from upslope.environments.modules import label_of, lost
from upslope.environments.registry import make
from upslope.report.page import add_credit

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK: dict[str, Any] = {"steps": 512, "num_envs": 4, "rollout_steps": 64, "quiet": True}


@pytest.fixture(autouse=True)
def catch(monkeypatch):
    """Import the example's module as if from its own folder."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import catch

    return catch


@pytest.mark.parametrize("name", ["jax:catch:Catch", "catch:Catch"])
def test_every_command_finds_it_by_name(name, tmp_path, capsys):
    words = ["--steps", "512", "--num-envs", "4", "--rollout-steps", "64", "--env-kwargs", '{"columns": 3}']
    run = str(tmp_path / "mine")
    run_command(["train", name, *words, "--folder", str(tmp_path), "--name", "mine"])
    assert upslope.resume(run, quiet=True).config.environment == name
    run_command(["evaluate", run, "--episodes", "3"])
    run_command(["record", run, "--episodes", "3"])
    run_command(["credit", run])
    run_command(["report", run, "--credit", "--output", str(tmp_path / "report.html")])
    run_command(["compare", run])
    assert "cannot be found" not in capsys.readouterr().out
    assert upslope.load(run)(np.zeros(3, np.float32)) in (0, 1, 2)


@pytest.mark.parametrize("name", ["jax:catch:Catch", "catch:Catch"])
def test_check_and_its_advice_take_the_name(name):
    found = upslope.check(name)
    assert found.worst != "error", found.checks
    assert found.command.startswith(f"upslope train {name} ")


def test_the_ladder_takes_the_name(tmp_path):
    settings = {"steps": 256, "seeds": 2, "num_envs": 4, "rollout_steps": 32, "evaluation_episodes": 2}
    found = upslope.ladder("jax:catch:Catch", algorithms=["ppo"], folder=tmp_path, quiet=True, **settings)
    assert found.comparison.groups[0].environment == "jax:catch:Catch"


def test_an_object_that_its_name_gives_again_needs_nothing_more(catch, tmp_path):
    run = upslope.train(catch.Catch(), folder=tmp_path, **QUICK)
    assert run.config.environment == "catch:Catch" and not lost(run.config.environment)
    assert set(upslope.evaluate(run.path, episodes=2)) == {"stochastic", "deterministic"}


def test_an_object_with_arguments_is_said_to_be_lost_and_can_be_passed(catch, tmp_path, capsys):
    wide = catch.Catch(columns=9)
    run = upslope.train(wide, folder=tmp_path, **(QUICK | {"quiet": False}))
    words = " ".join(capsys.readouterr().out.split())
    assert words.index("cannot be found by its name") < words.index("trained in")
    assert f'upslope.evaluate("{run.path}", environment=…)'.replace(" ", "") in words.replace(" ", "")
    for refused in (upslope.evaluate, upslope.record, credit_of, upslope.resume):
        with pytest.raises(upslope.UpslopeError, match="pass it as environment="):
            refused(run.path)
    assert upslope.evaluate(run.path, episodes=2, environment=wide)["stochastic"].returns.shape == (1, 2)
    assert upslope.record(run.path, episodes=2, environment=wide).is_file()
    assert credit_of(run.path, environment=wide).reward.shape == (10,)
    assert add_credit([run.path], environment=wide) == []
    assert upslope.resume(run.path, environment=wide, quiet=True).path == run.path


def test_names_that_are_lost_say_why(catch):
    local = type("Local", (catch.Catch,), {"__qualname__": "make.<locals>.Local", "__module__": "catch"})
    script = type("Mine", (catch.Catch,), {"__qualname__": "Mine", "__module__": "__main__"})
    assert "lambda" in lost(label_of(lambda: catch.Catch()))
    assert "inside a function" in lost(label_of(local))
    assert "script" in lost(label_of(script)) and "script" in lost(label_of(script()))
    assert "arguments" in lost(label_of(catch.Catch(rows=3)))
    assert not lost(label_of(catch.Catch)) and not lost("jax:catch:Catch") and not lost("CartPole-v1")


def test_a_factory_from_python_is_called_with_the_arguments(catch):
    assert make(catch.Catch, {"columns": 7}).columns == 7
    assert make("jax:catch:Catch", {"columns": 7}).columns == 7


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("jax:catch:Cath", "has no Cath"),
        ("jax:catch:State", "could not be created"),
        ("jax:nowhere:Catch", "cannot be imported"),
        ("jax:corridor:Corridor", "omit the prefix jax:"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name, words):
    with pytest.raises(upslope.UpslopeError, match=words):
        make(name)


def test_a_file_that_names_it_needs_trust(tmp_path, monkeypatch):
    monkeypatch.setenv(trust.STATE_VARIABLE, str(tmp_path / "state"))
    monkeypatch.setattr(trust, "GRANTED", set())
    for name in ("jax:catch:Catch", "catch:Catch"):
        config = configure(name, is_continuous=False)
        with pytest.raises(upslope.UpslopeError, match="--trust"):
            trust.require(config, "config.json")
        trust.require(config, "config.json", given={"environment"})
    trust.require(configure("jax:CartPole-v1", is_continuous=False), "config.json")


def test_another_process_runs_it(tmp_path):
    """The command runs as if from a shell in the module's folder."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    words = ["train", "jax:catch:Catch", "--steps", "256", "--num-envs", "4", "--rollout-steps", "32"]
    command = [sys.executable, "-c", "from upslope.cli.main import main; main()", *words, "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=EXAMPLES, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_learns(catch, tmp_path):
    run = upslope.train(catch.Catch, steps=100_000, learning_rate=1e-3, folder=tmp_path, quiet=True)
    assert run.returns[0] > 0.8  # a random policy's return is about −0.6


@dataclass(frozen=True, eq=False)
class Own(upslope.CompiledEnvironment):
    """A correct environment, unless `wrong` names a fault."""

    wrong: str = ""
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, key):
        if self.wrong == "raises":
            raise RuntimeError("no licence")
        if self.wrong == "alone":
            return jnp.zeros(2)
        shape = (3,) if self.wrong == "shape at reset" else (2,)
        return jnp.zeros(2, jnp.int32 if self.wrong == "state dtype" else jnp.float32), jnp.zeros(shape)

    def step(self, key, state, action):
        if self.wrong == "if" and state[0] > 0:
            return None
        observation = {"shape": jnp.zeros(3), "dtype": jnp.zeros(2, jnp.int32)}.get(self.wrong, jnp.zeros(2))
        reward = {"reward": jnp.ones(2), "whole reward": jnp.int32(1)}.get(self.wrong, jnp.float32(1))
        over = jnp.int32(0) if self.wrong == "terminated" else jnp.bool_(False)
        after = (state, state) if self.wrong == "structure" else state + 0.5
        if self.wrong == "tuple":
            return after, (observation, reward, over, jnp.bool_(False))
        return after, upslope.Transition(observation, reward, over, jnp.bool_(False))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("raises", r"raised RuntimeError: no licence \(test_own_environments.py, line \d+\)"),
        ("alone", r"returned float32\[2\]; it must return \(state, observation\)"),
        ("shape at reset", r"returned the observation float32\[3\], but the observation space is Box"),
        ("state dtype", r"changed state from int32\[2\] to float32\[2\]"),
        ("if", "jnp.where or jax.lax.cond instead of `if`"),
        ("shape", r"step\(\) returned the observation float32\[3\]"),
        ("dtype", r"step\(\) returned the observation int32\[2\]"),
        ("reward", r"returned the reward float32\[2\]; it must be a float of shape \(\)"),
        ("whole reward", r"returned the reward int32\[\]; it must be a float"),
        ("terminated", r"returned the terminated int32\[\]; it must be a bool"),
        ("structure", "state whose structure differs"),
        ("tuple", "upslope.Transition"),
    ],
)
def test_what_breaks_the_protocol_is_said_before_it_is_compiled(wrong, words):
    with pytest.raises(BrokenEnvironmentError, match=words):
        make(Own(wrong))
    assert "environment" in [c.name for c in upslope.check(Own(wrong)).checks if c.status == "error"]


@pytest.mark.parametrize("limit", [0, -1, 7.5, True, 2**31, "7"])
def test_a_limit_that_is_no_number_of_steps_is_refused(limit):
    with pytest.raises(BrokenEnvironmentError, match=r"max_episode_steps = .* must be an integer from 1"):
        make(type("Limited", (Own,), {"max_episode_steps": limit})("nothing"))


class Bandit(upslope.CompiledEnvironment):
    """An environment without a state: the second of two arms pays 1."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, state):
        self.state = state

    def reset(self, key):
        return self.state, jnp.zeros(1)

    def step(self, key, state, action):
        after = upslope.Transition(jnp.zeros(1), action.astype(jnp.float32), jnp.bool_(True), jnp.bool_(False))
        return state, after

    def episode_info(self, state):
        return {"arms": 2}


@pytest.mark.parametrize("state", [None, ()])
def test_an_environment_without_a_state_is_trained(state, tmp_path):
    settings = {"steps": 32, "num_envs": 2, "rollout_steps": 8, "minibatches": 1, "epochs": 1, "quiet": True}
    run = upslope.train(Bandit(state), log_info=("arms",), hidden_sizes=(4,), folder=tmp_path, **settings)
    assert len(run.metrics()) == 2


def test_a_space_that_is_missing_or_none_is_said():
    nothing = type("Nothing", (Own,), {"observation_space": None})
    text = type("Text", (Own,), {"action_space": "Discrete(2)"})
    for kind, words in ((nothing, "has no observation_space"), (text, "a str as its action_space")):
        with pytest.raises(BrokenEnvironmentError, match=words):
            make(kind())
    make(Own())


def double(environment, factor=2):
    """A user-defined wrapper for compiled environments."""

    class Doubled(type(environment)):
        def step(self, key, state, action):
            state, transition = super().step(key, state, action)
            return state, transition._replace(reward=factor * transition.reward)

    return Doubled()


def test_a_wrapper_of_ones_own_wraps_it():
    doubled = make(Own(), wrappers=('test_own_environments:double:{"factor": 3}',))
    state, _ = doubled.reset(jax.random.key(0))
    assert doubled.step(jax.random.key(0), state, 0)[1].reward == 3
    with pytest.raises(upslope.UpslopeError, match="wraps Gymnasium environments"):
        make(Own(), wrappers=("FlattenObservation",))
