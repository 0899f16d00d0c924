"""A config.json that was edited after training began is refused wherever it would silently give other results."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_helpers import SEGMENTS, before_chunk, rewrite_config, rewrite_meta

import upslope
from upslope.analysis.records import read_records
from upslope.errors import UpslopeError

USES: dict[str, Callable[[Path], Any]] = {
    "load": upslope.load,
    "load last": lambda run: upslope.load(run, checkpoint="last"),
    "evaluate": lambda run: upslope.evaluate(run, episodes=1),
    "record": lambda run: upslope.record(run, episodes=1),
    "export": lambda run: upslope.export(run, "numpy", run / "policy.py"),
    "from": lambda run: upslope.train(start_from=run, folder=run.parent, name="onward", quiet=True),
    "from best": lambda run: upslope.train(start_from=f"{run}@best", folder=run.parent, name="onward", quiet=True),
    "reference": lambda run: upslope.train(
        "jax:CartPole-v1", reference=str(run), folder=run.parent, name="near", quiet=True, **SETTINGS
    ),
}
SETTINGS: dict[str, Any] = {**SEGMENTS, "steps": 320, "max_episode_steps": 9, "hidden_sizes": (8,)}
EDITS: dict[str, Any] = {
    "activation": "relu",
    "hidden_sizes": [4],
    "memory": "gru",
    "normalize_observations": True,
    "seed": 5,
    "seeds": 2,
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run, and stop it before its end."""
    folder = tmp_path_factory.mktemp("same_settings")
    with before_chunk(3, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        upslope.train("jax:CartPole-v1", folder=folder, name="run", quiet=True, **SETTINGS)
    return folder / "run"


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


@pytest.mark.parametrize("use", USES)
def test_no_command_uses_a_policy_with_other_settings(use: str, run: Path):
    rewrite_config(run, activation="relu")
    with pytest.raises(UpslopeError, match=r"config\.json was edited.*activation was 'tanh', now 'relu'.*Restore"):
        USES[use](run)


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_named_before_its_consequences(name: str, run: Path):
    rewrite_config(run, **{name: EDITS[name]})
    for use in (upslope.load, upslope.resume):
        with pytest.raises(UpslopeError, match=rf"config\.json was edited after training began: {name} was"):
            use(run)


def test_an_analysis_of_an_edited_run_says_so(run: Path):
    assert not read_records([run])[1]
    rewrite_config(run, gamma=0.5, data="moved.npz")
    (said,) = read_records([run])[1]
    assert "config.json was edited after training began: gamma was 0.99, now 0.5. The settings shown are not" in said
    rewrite_meta(run / "checkpoints" / "last.npz", lambda meta: meta.update(settings="none"))
    assert not read_records([run])[1]


def test_settings_that_do_not_change_the_policy_may_be_edited(run: Path):
    policy = upslope.load(run)
    rewrite_config(run, steps=10_000, learning_rate=0.5, num_envs=4, gamma=0.5)
    observations = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert np.array_equal(upslope.load(run)(observations), policy(observations))
    upslope.evaluate(run, episodes=1)
    with pytest.raises(UpslopeError, match="was edited after training began: steps was 320, now 10000, "):
        upslope.resume(run)


def test_edited_spaces_are_noticed(run: Path):
    path = run / "config.json"
    description = json.loads(path.read_text())
    description["spaces"]["action"]["start"] = 9
    path.write_text(json.dumps(description))
    for use in (upslope.load, upslope.evaluate, upslope.resume):
        with pytest.raises(UpslopeError, match=r"was edited after training began: spaces\.action\.start was 0, now 9"):
            use(run)


def test_a_best_checkpoint_of_an_older_version_is_checked_by_the_last_one(run: Path):
    older = lambda meta: [meta.pop(name) for name in ("settings", "spaces")]  # noqa: E731 - used twice
    rewrite_meta(run / "checkpoints" / "best.npz", older)
    upslope.load(run)
    rewrite_config(run, activation="relu")
    with pytest.raises(UpslopeError, match="activation was 'tanh'"):
        upslope.load(run)
    rewrite_meta(run / "checkpoints" / "last.npz", older)
    upslope.load(run)  # nothing records what the settings were


def test_a_missing_best_checkpoint_does_not_keep_a_run_from_being_resumed(run: Path, capsys: pytest.CaptureFixture):
    (run / "checkpoints" / "best.npz").unlink()
    upslope.resume(run, quiet=True)
    assert "best.npz is missing, so the best agents so far are lost" in capsys.readouterr().err
    assert upslope.load(run).checkpoint == "best"


def test_a_damaged_best_checkpoint_may_be_deleted(run: Path):
    best = run / "checkpoints" / "best.npz"
    best.write_bytes(best.read_bytes()[:1000])
    with pytest.raises(UpslopeError, match=r"best\.npz is not a checkpoint.*or delete it to resume without it"):
        upslope.resume(run, quiet=True)
    best.unlink()
    upslope.resume(run, quiet=True)


@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"x" * 10**5)]
)
def test_without_the_last_checkpoint_the_best_one_is_offered(damage: Callable[[Path], Any], run: Path):
    damage(run / "checkpoints" / "last.npz")
    for use in (lambda: upslope.evaluate(run, episodes=1), lambda: upslope.resume(run)):
        with pytest.raises(UpslopeError, match=r"--checkpoint best.*upslope train --from \S*run@best --name"):
            use()
    upslope.evaluate(run, checkpoint="best", episodes=1)
    upslope.train(start_from=f"{run}@best", folder=run.parent, name="onward", quiet=True, steps=16)


def test_without_any_checkpoint_no_other_is_offered(run: Path):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(
        UpslopeError, match=r"There is no checkpoint at .*last\.npz\. Restore it from a copy, or train a"
    ):
        upslope.evaluate(run)


def test_the_doctor_names_seeds_that_the_config_does_not_have(run: Path):
    rewrite_config(run, seed=5)
    with pytest.raises(
        UpslopeError, match=r"has rows of seed 0, but according to config\.json the run has only seed 5"
    ):
        upslope.diagnose(run)
