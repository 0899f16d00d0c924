"""Every error is reported in a single message that states what was requested, why it is impossible, and what to do."""

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from run_helpers import assert_same_run, before_chunk
from user_environments import Faulty, Walk

import upslope
from upslope import CompiledEnvironment, Transition
from upslope.cli.main import main
from upslope.engines.compiled import CompiledEngine
from upslope.engines.host import HostEngine
from upslope.errors import UpslopeError
from upslope.runs.directory import RunDirectory

SMALL: dict[str, Any] = {"num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 1, "hidden_sizes": (8,)}
FLAGS = "--num-envs 2 --rollout-steps 8 --minibatches 2 --epochs 1 --hidden-sizes 8 --quiet"
KINDS = ("raises", "observation is nan", "reward is nan", "wrong shape")

Refused = Callable[[str], str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """A function that runs a command, checks that it fails with exit status 2, and returns its error message."""
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(command.split())
        assert end.value.code == 2
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert said.out == ""
        return said.err

    return run


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train CartPoll-v1", 'There is no environment "CartPoll-v1".*Did you mean .*CartPole-v1'),
        ("train jax:CartPol-v1", 'no compiled environment "jax:CartPol-v1".*jax:CartPole-v1'),
        ("train :Id", '":Id" has no valid module name before the colon'),
        ("train ../here:Id", "has no valid module name before the colon"),
        ("train no_such_module:Id", "no_such_module.*cannot be imported.*Install it"),
        ("train user_environments:Wlak", 'There is no environment "user_environments:Wlak"'),
        ("train user_environments:needs_an_argument", "user_environments:needs_an_argument.*size"),
        ("train user_environments:Walk --wrapper NormalizeObservation", "running statistics.*--normalize-observations"),
        ('train CartPole-v1 --env-kwargs {"max_episode_steps":5}', "Gymnasium takes itself. Use --max-episode-steps"),
        ("train CartPole-v1 --env-kwargs limit=5", r"--env-kwargs.*JSON.*object.*single.*quotes"),
        ("train CartPole-v1 --wrapper FrameStackObservation:3", r"must be a JSON object with their names, not 3, e.g."),
        (
            "train vector:user_environments:takes_anything",
            "is called with num_envs=.*returns a gymnasium.vector.VectorEnv",
        ),
        ("train user_environments:normalised_walk", "running statistics.*--normalize-observations"),
        ("train vector:CartPole-v1 --wrapper NormalizeObservation", "running statistics.*--normalize-observations"),
        ("train user_environments:cannot_be_made", "user_environments:cannot_be_made.*no licence found"),
        ("train user_environments:Told", "observes .*`mission` .a Text space.*--ignore-observation mission"),
        ("train user_environments:Told --ignore-observation missoin", "no `missoin`.*keys.*mission"),
        ("train user_environments:image --encoder nature", "images of at least 36 pixels.*8 × 8"),
        ("train user_environments:image --encoder image=board", "no image `image`"),
        ("train user_environments:image --encoder resnet", "resnet.*nature"),
        ("train user_environments:tuple_actions", "action space Text at `1`.*Supported"),
        (
            "train user_environments:Walk --algorithm reinforce",
            "needs whole episodes.*no step limit.*--max-episode",
        ),
        ("train CartPole-v1 --gamma 2", r"--gamma must be in \[0, 1\], not 2"),
        ("train CartPole-v1 --gamma nan", r"--gamma must be a finite number, not nan"),
        ("train CartPole-v1 --lambda 1.5", r"λ in \[0, 1\], not 1.5"),
        ("train CartPole-v1 --epsilon 0", "0 < ε < 1, not 0"),
        ("train CartPole-v1 --steps 0", "--steps must be greater than 0"),
        ("train CartPole-v1 --steps 5000000000", "--steps can be at most"),
        ("train CartPole-v1 --seeds 0", "--seeds must be greater than 0"),
        ("train CartPole-v1 --seed -1", "--seed must be between 0"),
        ("train CartPole-v1 --learning-rate inf", "--learning-rate"),
        ("train CartPole-v1 --entropy-coefficient nan", "--entropy-coefficient"),
        ("train CartPole-v1 --max-episode-steps abc", "--max-episode-steps"),
        ("train CartPole-v1 --config", "--config"),
        ("train CartPole-v1 --num-envs 2 --rollout-steps 8 --minibatches 17", "17 is more than the 16 samples"),
        (
            "train CartPole-v1 --algorithm reinforce_baseline --num-envs 1 --max-episode-steps 9 --minibatches 17",
            r"17 is more than the 9 samples .*1 environment × 9 steps.*Lower it, or raise --num-envs\.",
        ),
        ("train user_environments:Nothing", r"contains no numbers.*Discrete\(1\)"),
        ("train CartPole-v1 --encoder board", "--encoder applies only to image observations"),
        ("train CartPole-v1 --algorithm pppo", 'no algorithm "pppo".*Did you mean ppo'),
        ("train CartPole-v1 --estimator gaee", 'no estimator "gaee".*Did you mean gae'),
        ("train CartPole-v1 --objective clipp", 'no objective "clipp".*Did you mean clip'),
        ("train CartPole-v1 --objective no_such_module:Mine", "no_such_module:Mine cannot be imported"),
        ("train CartPole-v1 --estimator upslope.core.objectives:Clip", "not an upslope.Estimator.*Subclass"),
        ("train CartPole-v1 --estimator unit --no-normalize-advantage", "imitat.*--data"),
        ("train CartPole-v1 --algorithm off_policy", "off_policy learns from recorded episodes.*--data"),
        ("train CartPole-v1 --algorithm clone", "clone learns from recorded episodes.*--data"),
        ("train CartPole-v1 --algorithm gae --data some.npz", "PolicyGradient.*importance_sampled.*clone"),
        ("train CartPole-v1 --algorithm off_policy --data none.npz", "There is no dataset at none.npz"),
        ("train CartPole-v1 --no-such-flag 3", "--no-such-flag"),
        ("resume runs/none", "runs/none is not a run directory"),
        ("evaluate runs/none", "runs/none is not a run directory"),
        ("record runs/none", "runs/none is not a run directory"),
    ],
)
def test_bad_input_is_refused_with_the_reason(command: str, words: str, refused: Refused, tmp_path: Path):
    said = refused(command)
    # Line breaks depend on the width of the terminal.
    assert re.search(words, " ".join(said.split())), said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat: 0.1", 'no setting "learning_rat".*learning_rate'),
        ("- 1\n- 2", "must contain settings as `name: value` lines"),
        ("just words", "must contain settings as `name: value` lines"),
        ("", "must contain settings as `name: value` lines"),
        ("steps: [1", "Could not read the settings"),
        ("steps: many", "steps"),
        ("hidden_sizes: wide", "hidden.sizes"),
    ],
)
def test_a_settings_file_that_cannot_be_used(text: str, words: str, refused: Refused, tmp_path: Path):
    (tmp_path / "settings.yaml").write_text(text)
    assert re.search(words, " ".join(refused("train CartPole-v1 --config settings.yaml").split()))
    assert "Could not read" in refused("train CartPole-v1 --config none.yaml")


@pytest.fixture(scope="module")
def faultless(folder: Path) -> Path:
    """A run in the faulty environment without its fault."""
    Faulty.kind = None
    return upslope.train(Faulty, steps=320, folder=folder, name="faultless", quiet=True, **SMALL).path


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_in_the_environment_is_located_and_loses_no_progress(
    kind: str, folder: Path, faultless: Path, monkeypatch
):
    # Each environment reaches step 83 in iteration 11 of 20, so the earlier iterations could be lost.
    monkeypatch.setattr(Faulty, "kind", kind)
    monkeypatch.setattr(Faulty, "at", 83)
    with pytest.raises(upslope.UpslopeError) as fault:
        upslope.train(Faulty, steps=320, folder=folder, name=kind, quiet=True, **SMALL)
    said = str(fault.value)
    assert "user_environments:Faulty" in said
    assert re.search(r"environment 0 of seed 0, episode \d+ \(reset seed \d+\), step \d+", said), said
    essential = {
        "raises": "raised RuntimeError in step.*the simulator is gone",
        "observation is nan": "observation that is not finite.*Correct the environment",
        "reward is nan": "reward that is not finite, nan.*Correct the environment",
        "wrong shape": r"shape \(3,\).*requires \(2,\).*Correct the environment",
    }
    assert re.search(essential[kind], said), said
    # Everything learned before the fault, in ten iterations of 16 steps, is kept.
    assert RunDirectory(folder / kind).metrics()[-1]["step"] == 160
    assert upslope.load(folder / kind, checkpoint="last")(np.zeros(2, np.float32)) in (0, 1)


def test_faults_name_the_same_place(folder: Path, monkeypatch):
    places = set()
    monkeypatch.setattr(Faulty, "at", 3)
    for kind in KINDS:
        monkeypatch.setattr(Faulty, "kind", kind)
        with pytest.raises(upslope.UpslopeError) as fault:
            upslope.train(Faulty, steps=64, folder=folder, quiet=True, **SMALL)
        places.add(re.search(r"environment .*?\), step \d+", str(fault.value)).group())  # type: ignore[union-attr]
    assert len(places) == 1, places


@pytest.mark.parametrize("kind", ["raises", "reward is nan"])
@pytest.mark.parametrize("at", [3, 83])
def test_a_repaired_environment_goes_on_as_if_nothing_had_happened(
    kind: str, at: int, folder: Path, faultless: Path, monkeypatch, capsys
):
    name = f"{kind} at {at}"
    monkeypatch.setattr(Faulty, "kind", kind)
    monkeypatch.setattr(Faulty, "at", at)
    with pytest.raises(upslope.UpslopeError):
        upslope.train(Faulty, steps=320, folder=folder, name=name, quiet=True, **SMALL)
    monkeypatch.setattr(Faulty, "kind", None)
    capsys.readouterr()
    upslope.resume(folder / name, quiet=True)
    # The environment is reproducible, so there must be no warning and no lost episode.
    assert capsys.readouterr().err == ""
    assert_same_run(faultless, folder / name)


def test_a_fault_through_the_command_line(refused: Refused, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Faulty, "kind", "raises")
    monkeypatch.setattr(Faulty, "at", 20)
    said = refused(f"train user_environments:Faulty --steps 320 --name faulty {FLAGS}")
    assert said.startswith("upslope: user_environments:Faulty raised RuntimeError")
    assert (tmp_path / "runs" / "faulty" / "checkpoints" / "last.npz").exists()


class NeverFinite(CompiledEnvironment):
    """Returns an observation or a reward that is not a number, at every third step."""

    observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)

    def __init__(self, where: str):
        self.where = where

    def reset(self, key: Any) -> Any:
        return jnp.int32(0), jnp.zeros(1)

    def step(self, key: Any, state: Any, action: Any) -> Any:
        broken = jnp.where(state % 3 == 2, jnp.nan, 0.5)
        observation, reward = (broken[None], 0.5) if self.where == "observations" else (jnp.full(1, 0.5), broken)
        return state + 1, Transition(observation, reward, state == 7, jnp.bool_(False))


@pytest.mark.parametrize("where", ["observations", "rewards"])
def test_an_environment_whose_numbers_are_not_finite_is_named_instead_of_the_learning_rate(where: str, tmp_path: Path):
    settings: dict[str, Any] = {"steps": 320, "seeds": 2, "quiet": True, "folder": tmp_path, "name": "broken", **SMALL}
    with pytest.raises(UpslopeError, match=f"The environment returned {where} that are not finite"):
        upslope.train(NeverFinite(where), **settings)
    found = {finding.cause: finding for finding in upslope.diagnose(tmp_path / "broken").findings}
    assert where in found["not_finite"].likely and "learning-rate" not in found["not_finite"].remedy


class Huge(Walk):
    """Its observations are finite, but their squares overflow in 32 bits."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(-1e38, 1e38, (2,), np.float32)

    def observe(self):
        return np.float32([1e38, -1e38 * self.np_random.random()])


def test_observations_that_are_too_large_are_not_said_to_be_infinite(tmp_path: Path):
    settings: dict[str, Any] = {
        "steps": 320,
        "quiet": True,
        "folder": tmp_path,
        **SMALL,
        "normalize_observations": True,
    }
    with pytest.raises(
        UpslopeError, match="that are not finite, or so large that sums of their squares overflow in 32 bits"
    ) as caught:
        upslope.train(Huge, name="huge", **settings)
    assert "--learning-rate" not in str(caught.value)


@dataclass(frozen=True)
class Divides(upslope.Estimator):
    """Divides by 0."""

    needs_critic: ClassVar[bool] = False
    whole_episodes: ClassVar[bool] = False

    def __call__(self, rollout: Any, values: Any, gamma: float) -> Any:
        return upslope.Credit(rollout.reward / 0.0, rollout.reward)


def test_a_users_own_estimator_is_named_before_the_learning_rate(tmp_path: Path):
    settings: dict[str, Any] = {"steps": 320, "quiet": True, "folder": tmp_path, **SMALL}
    with pytest.raises(
        UpslopeError, match=r"such numbers do not come from your own estimator test_faults:Divides\. Lower"
    ):
        upslope.train("jax:CartPole-v1", estimator=Divides(), **settings)


def test_a_loss_that_is_not_a_number_is_reported(refused: Refused, tmp_path: Path):
    said = refused(f"train user_environments:Walk --steps 320 --learning-rate 1e30 --name broken {FLAGS}")
    assert "seed 0: the agent's parameters are no longer finite" in said
    assert "in any seed, so training stopped" in said
    best = tmp_path / "runs" / "broken" / "checkpoints" / "best.npz"
    assert "best.npz" not in said or best.exists()
    with np.load(best) as archive:
        assert all(np.isfinite(archive[name]).all() for name in archive.files if name != "meta")


@pytest.mark.parametrize(("environment", "engine"), [("jax:Pendulum-v1", CompiledEngine), ("Pendulum-v1", HostEngine)])
def test_a_diverged_seed_harms_neither_the_others_nor_the_files(environment, engine, tmp_path: Path, monkeypatch):
    start = engine.start

    def broken(self: Any) -> Any:
        state = start(self)
        model = jax.tree.map(lambda x: x.at[1].set(jnp.nan), state.learner.agent.model)
        return state._replace(learner=state.learner._replace(agent=replace(state.learner.agent, model=model)))

    settings = {"seeds": 2, "steps": 480, "max_episode_steps": 20, "folder": tmp_path, "quiet": True, "preset": False}
    settings |= {"workers": 1} if engine is HostEngine else {}
    alone = upslope.train(environment, name="alone", **settings, **SMALL)
    monkeypatch.setattr(engine, "start", broken)
    with before_chunk(20, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        upslope.train(environment, name="broken", **settings, **SMALL)
    run = upslope.resume(tmp_path / "broken", quiet=True)
    healthy, lost = ([row for row in run.metrics() if row["seed"] == seed] for seed in (0, 1))
    assert healthy[-1]["step"] == lost[-1]["step"] == 480
    for mine, other in zip(healthy, [row for row in alone.metrics() if row["seed"] == 0], strict=True):
        assert {k: v for k, v in mine.items() if "time" not in k} == {k: v for k, v in other.items() if "time" not in k}
    returns = upslope.evaluate(run.path, episodes=2)["stochastic"].returns
    assert np.isfinite(returns[0]).all() and np.isnan(returns[1]).all()
    assert "not_finite" in {finding.cause for finding in upslope.diagnose(run.path).findings}


@pytest.mark.parametrize("part", ["estimator", "objective"])
def test_a_class_instead_of_an_object_is_not_ignored(part: str, tmp_path: Path):
    # Silently training with the rung's default would not be the experiment that was requested.
    given: Any = {"estimator": upslope.NStep, "objective": upslope.KLPenalty}[part]
    train = getattr(upslope.train, "__wrapped__", upslope.train)
    with pytest.raises(Exception, match=part):
        train("jax:CartPole-v1", steps=16, folder=tmp_path, quiet=True, preset=False, **{part: given}, **SMALL)


PLACES = ("__init__", "observation_space", "reset", "step", "close")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["Panic", "SystemExit"])
def test_every_exception_of_an_environment_is_its_failure(kind: str, place: str, tmp_path: Path, capsys: Any):
    """Some exceptions derive only from BaseException. They must not cause more data loss than other exceptions do."""
    environment = {"env_kwargs": {"place": place, "kind": kind}, "max_episode_steps": 20}
    train = partial(upslope.train, "user_environments:Panics", steps=32, folder=tmp_path, **SMALL, **environment)
    words = f"{kind}.*called unwrap"
    if place == "close":
        train(quiet=True)
        assert re.search(words, capsys.readouterr().err)
    else:
        with pytest.raises(UpslopeError, match=words):
            train(quiet=True)
    found = upslope.check("user_environments:Panics", **environment)
    assert any(re.search(words, check.found) for check in found.checks)


@pytest.mark.parametrize(
    ("kind", "words"), [("Panic", "raised Panic in step"), ("KeyboardInterrupt", "Worker process")]
)
def test_a_worker_says_why_it_does_not_answer(kind: str, words: str, tmp_path: Path, capsys: Any):
    settings: dict[str, Any] = {"env_kwargs": {"place": "step", "kind": kind}, "max_episode_steps": 20, "quiet": True}
    with pytest.raises(UpslopeError, match=words):
        upslope.train("user_environments:Panics", steps=32, seeds=2, workers=2, folder=tmp_path, **SMALL, **settings)


def test_a_module_that_ends_the_process_is_named(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a_script_that_ends.py").write_text("import sys\nsys.exit('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = refused("train a_script_that_ends:World")
    assert re.search("a_script_that_ends, which cannot be imported: it raised SystemExit: no licence", said)
