"""A sweep may search its parts. A setting may then apply to some trials only, and mistakes are found before the first
trial."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import upslope
from upslope.cli.main import main
from upslope.errors import UpslopeError
from upslope.lab.sweep.confirm import existing
from upslope.lab.sweep.setup import Setup, setup_of
from upslope.runs.directory import RunDirectory

OPTIONS = {"num_envs": 2, "rollout_steps": 16, "minibatches": 1, "epochs": 2, "hidden_sizes": (8,)}
TRUNK = "own_models:SharedTrunk"


def setup(space: dict[str, Any], **settings: Any) -> Setup:
    """The setup of a small sweep."""
    return setup_of("jax:CartPole-v1", "ppo", space, False, OPTIONS | {"steps": 64, "seeds": 1} | settings)


BETA = {"objective": {"choices": ["kl_penalty", "spo"]}}


@pytest.mark.parametrize("given", [({**BETA, "beta": 3.0}, {}), (BETA, {"beta": 3.0})])
def test_a_fixed_setting_may_apply_to_a_searched_part_alone(given: Any):
    found = setup(given[0], **given[1])
    assert found.config({"objective": "kl_penalty"}).beta == 3.0
    assert found.config({"objective": "spo"}).beta == found.default.beta == 1.0, "what a trial does not use is left out"
    assert found.described()["settings"]["beta"] == 3.0, "another β is another sweep"


def test_arguments_of_a_searched_model_are_not_those_of_the_default():
    found = setup({"model": {"choices": [TRUNK, "perceptron"]}}, model_kwargs={"hidden": 3})
    assert found.config({"model": TRUNK}).model_kwargs == {"hidden": 3}
    assert found.config({"model": "perceptron"}).model_kwargs == found.default.model_kwargs == {}


def test_a_searched_setting_that_a_trial_does_not_use_keeps_its_default():
    found = setup(BETA | {"beta": {"choices": [1.0, 3.0]}})
    assert found.config({"objective": "kl_penalty", "beta": 3.0}).beta == 3.0
    assert found.config({"objective": "spo", "beta": 3.0}) == found.config({"objective": "spo", "beta": 1.0})


@pytest.mark.parametrize(
    "settings", [({"delta": 0.1}, {}), ({"delta": {"choices": [0.1, 0.2]}}, {}), ({}, {"delta": 1})]
)
def test_a_setting_that_no_combination_uses_is_refused(settings: Any):
    with pytest.raises(UpslopeError, match="--delta applies only to"):
        setup(BETA | settings[0], **settings[1])


@pytest.mark.parametrize(
    ("space", "settings", "words"),
    [
        ({"gamma": {"choices": [0.9, 0.99]}}, {"model": TRUNK, "model_kwargs": {"hiden": 3}}, "hiden"),
        ({"model": {"choices": ["perceptron", TRUNK]}}, {"model_kwargs": {"hiden": 3}}, f"model = {TRUNK}.*hiden"),
        ({"model": {"choices": ["perceptron", "nowhere:Model"]}}, {}, "model = nowhere:Model.*cannot be imported"),
        ({"model_kwargs": {"choices": [{}, {"hiden": 3}]}}, {"model": TRUNK}, "model_kwargs = .*hiden"),
        ({"policy_reads": {"choices": ["none", ["nothing"]]}}, {}, "policy_reads = .*nothing"),
        ({"bonus": {"choices": ["none", "nowhere:Bonus"]}}, {}, "bonus = nowhere:Bonus.*cannot be imported"),
        ({"optimiser": {"choices": ["adam", "nowhere:adam"]}}, {}, "optimiser = nowhere:adam.*cannot be imported"),
        ({"entropy_schedule": {"choices": ["linear", "nowhere:f"]}}, {}, "entropy_schedule = nowhere:f.*imported"),
    ],
)
def test_a_mistake_in_a_part_is_found_before_there_is_a_study(space: Any, settings: Any, words: str, tmp_path: Path):
    with pytest.raises(UpslopeError, match=words):
        upslope.sweep("jax:CartPole-v1", folder=tmp_path, space=space, preset=False, trials=1, steps=64, **settings)
    assert not list(tmp_path.iterdir())


def test_a_part_that_fits_only_another_searched_part_is_kept():
    parts = {"objective": {"choices": ["clip", "natural_gradient"]}, "shared_trunk": {"choices": [True, False]}}
    assert setup(parts).space.searched.keys() == parts.keys()
    with pytest.raises(UpslopeError, match="objective = natural_gradient"):
        setup({"objective": parts["objective"], "shared_trunk": True})


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_sweep_without_a_finished_trial_fails_and_says_why(quiet: list[str], tmp_path: Path, capsys: Any):
    (tmp_path / "space.yaml").write_text("minibatches: {choices: [1000, 2000]}\nnum_envs: 2\nrollout_steps: 16\n")
    words = ["sweep", "jax:CartPole-v1", "--space", str(tmp_path / "space.yaml"), "--folder", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--trials", "2", "--steps", "64", "--seeds", "1", "--no-preset", *quiet])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("00 is more than the 32 samples") == 1


def test_creating_agents_leaves_each_core_a_device():
    code = (
        "import jax; from upslope.lab.sweep.setup import setup_of; from upslope.learning.devices import num_cores; "
        "setup_of('jax:CartPole-v1', 'ppo', None, False, {}); assert jax.local_device_count() == num_cores()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_code_that_only_a_run_folder_names_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "unasked.py").write_text("raise SystemExit('it was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    there = setup(BETA | {"beta": {"choices": [1.0, 3.0]}})
    config = replace(there.default, estimator="unasked:Own")
    monkeypatch.setattr(RunDirectory, "config", lambda self: config)
    with pytest.raises(UpslopeError, match="estimator was unasked:Own"):
        existing(there, tmp_path, there.default)
    assert "unasked" not in sys.modules
