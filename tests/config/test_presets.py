"""Presets of tuned settings: each is valid and names its source, and each can be selected by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import upslope
from upslope.cli.list_tables import list_tables
from upslope.cli.train import parse_train, prepare_arguments
from upslope.config.command import command_of
from upslope.config.config import configure, recorded_preset
from upslope.config.prepare import prepare
from upslope.config.presets import presets
from upslope.errors import UpslopeError

SMALL: dict[str, Any] = {"steps": 64, "num_envs": 2, "rollout_steps": 8, "minibatches": 1, "hidden_sizes": (8,)}
PAPER = "Schulman et al. 2017"


def config_of(arguments: list[str]) -> Any:
    """Return the config that `upslope train` creates from these arguments."""
    return prepare(**prepare_arguments(parse_train(arguments)[1]))[0]


def rows() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield (environment, name, row) for every preset."""
    for environment, row in presets().items():
        yield environment, "default", row
        yield from ((environment, name, other) for name, other in row.get("others", {}).items())


@pytest.mark.parametrize(
    ("environment", "name", "row"), [pytest.param(*row, id=f"{row[0]} {row[1]}") for row in rows()]
)
def test_each_preset_is_valid_and_names_its_source(environment: str, name: str, row: dict[str, Any]):
    assert set(row) <= {"source", "note", "making", "settings", "others"}
    config = configure(environment, is_continuous="log_std_init" in row["settings"], use_preset=name)
    assert config.preset == row["source"] and (
        "@" in config.preset or "arXiv" in config.preset or "upslope" in config.preset
    )
    samples = config.num_envs * config.rollout_steps
    assert samples % config.minibatches == 0 and config.steps >= samples
    assert row["settings"]["normalize_rewards"] is config.normalize_rewards
    assert recorded_preset(config) is not None


def test_a_preset_is_asked_for_by_true_false_or_its_name():
    def configured(preset: bool | str) -> Any:
        return configure("HalfCheetah-v5", is_continuous=True, use_preset=preset)

    default, paper, none = configured(True), configured("paper"), configured(False)
    assert default == configured("default")
    assert str(paper.preset).startswith(PAPER) and (paper.rollout_steps, paper.minibatches) == (2048, 32)
    assert none.preset is None


@pytest.mark.parametrize(
    ("environment", "algorithm", "said"),
    [
        ("HalfCheetah-v5", "ppo", ["paper", "default", "HalfCheetah-v5"]),
        ("Ant-v5", "ppo", ["Known: default"]),
        ("Unheard-v0", "ppo", ["has none"]),
        ("HalfCheetah-v5", "gae", ["has none", "gae"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(environment: str, algorithm: str, said: list[str]):
    with pytest.raises(UpslopeError) as refused:
        configure(environment, algorithm, is_continuous=True, use_preset="papre")
    assert all(word in str(refused.value) for word in ['"papre"', *said])


def test_flags_and_files_name_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(presets(), "CartPole-v1", presets()["CartPole-v1"] | {"others": {"paper": TINY}})
    file = tmp_path / "settings.yaml"
    environment = "CartPole-v1"
    assert config_of([environment, "--preset", "paper"]).preset == "a paper@1"
    assert config_of([environment, "--preset=paper", "--gamma", "0.5"]).gamma == 0.5
    for text, expected in (("paper", "a paper@1"), ("false", None), ("true", presets()[environment]["source"])):
        file.write_text(f"preset: {text}\n")
        assert config_of([environment, "--config", str(file)]).preset == expected
    file.write_text("preset: paper\n")
    assert config_of([environment, "--config", str(file), "--no-preset"]).preset is None
    assert config_of([environment, "--config", str(file), "--preset", "default"]).gamma == 0.98
    for words in (["--preset", "papre"], ["--preset", ""], ["--preset", "paper", "--no-preset"]):
        with pytest.raises(UpslopeError, match="preset"):
            config_of([environment, *words])
    file.write_text("preset: [paper]\n")
    with pytest.raises(UpslopeError, match="true, false or the name"):
        config_of([environment, "--config", str(file)])


TINY = {"source": "a paper@1", "note": "in small", "settings": SMALL | {"gamma": 0.9}}


def test_a_run_keeps_the_source_of_a_named_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(presets(), "CartPole-v1", presets()["CartPole-v1"] | {"others": {"paper": TINY}})
    run = upslope.train("jax:CartPole-v1", preset="paper", folder=tmp_path, name="run")
    assert run.config.preset == "a paper@1" and run.config.gamma == 0.9
    assert "preset: a paper@1 (in small); --no-preset disables it" in capsys.readouterr().out
    assert command_of(run.config, is_continuous=False) == "upslope train jax:CartPole-v1 --preset paper"


def test_the_command_of_a_run_whose_preset_is_gone_says_every_setting():
    config = configure("CartPole-v1", is_continuous=False, gamma=0.5, use_preset=True)
    gone = configure("Unheard-v0", is_continuous=False, gamma=0.5)
    assert command_of(config, is_continuous=False) == "upslope train CartPole-v1 --gamma 0.5"
    old = type(gone)(**vars(gone) | {"preset": "an older version"})
    assert command_of(old, is_continuous=False) == "upslope train Unheard-v0 --gamma 0.5"


def test_the_papers_settings_are_kept_for_its_seven_tasks():
    seven = [environment for environment, row in presets().items() if "paper" in row.get("others", {})]
    assert len(seven) == 7
    first, *others = (configure(e, is_continuous=True, use_preset="paper") for e in seven)
    assert all({**vars(other), "environment": ""} == {**vars(first), "environment": ""} for other in others)


def test_the_list_shows_named_presets():
    tables = {str(table.title): table for table in list_tables()}
    names = list(tables["Presets, used unless --no-preset"].columns[0].cells)
    assert "HalfCheetah-v5" in names and "HalfCheetah-v5 --preset paper" in names
