"""The command line and the public names, as a user sees them."""

import csv
import inspect
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from run_helpers import config_of

import upslope
from upslope.cli.main import main
from upslope.cli.train import HEADINGS, Train, parse_train
from upslope.config.config import Config, flag_of
from upslope.config.foreign_names import table
from upslope.config.ladder import ALGORITHMS
from upslope.environments.compiled import COMPILED

FLAGS = "--steps 64 --num-envs 2 --rollout-steps 8 --minibatches 2 --epochs 1 --hidden-sizes 8".split()  # noqa: SIM905 - as typed
OWN_ESTIMATOR = """
from dataclasses import dataclass
from typing import ClassVar
import jax.numpy as jnp
import upslope

@dataclass(frozen=True)
class Impatient(upslope.Estimator):
    scale: float = 2.0
    needs_critic: ClassVar[bool] = False
    whole_episodes: ClassVar[bool] = False

    def __call__(self, rollout, values, gamma):
        weight = jnp.where(rollout.valid, self.scale * rollout.reward, 0.0)
        return upslope.Credit(weight, weight)
"""


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """A small run with two seeds, trained by the command in a folder of its own. The output is saved there as well."""
    words = ["train", "jax:CartPole-v1", *FLAGS, "--seeds", "2", "--no-preset", "--name", "two"]
    done = shell(words, folder)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder / "runs" / "two"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(words: list[str], folder: Path, after: str = "pass") -> subprocess.CompletedProcess[str]:
    """Run the command in a separate process with piped output."""
    script = f"import sys\nfrom upslope.cli.main import main\ntry:\n    main()\nfinally:\n    {after}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-c", script, *words], cwd=folder, env=environment, capture_output=True, text=True
    )


def settings_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())["config"]


@pytest.mark.parametrize(
    "command", ["", "train", "resume", "evaluate", "record", "export", "compare", "ladder", "list"]
)
def test_help_answers_at_once(command: str, folder: Path):
    after = "print('HEAVY', sorted({'jax', 'gymnasium', 'optax'} & set(sys.modules)))"
    done = shell([*command.split(), "--help"], folder, after)
    assert done.returncode == 0, done.stderr
    assert "usage: upslope" in done.stdout
    assert "HEAVY []" in done.stdout
    assert done.stderr == ""


def test_help_shows_what_an_environment_and_a_rung_imply(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "jax:Pendulum-v1", "--algorithm", "ppo", "--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--learning-rate" in shown and "(default: 0.001)" in shown  # from the preset


def test_help_has_headings_and_fits_80_columns(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    lines = [line.strip("│╭╰╮╯─ ") for line in shown.splitlines()]
    assert [line for line in lines if line.endswith(" options")] == [f"{title} options" for title in HEADINGS.values()]
    assert lines[0].startswith("usage: upslope train") and "write a run directory" in lines[2]
    flags = [line.removeprefix("-q, ").split()[0].strip(",") for line in lines if re.match("(-q, )?--[a-z]", line)]
    known = [flag_of(f.name) for f in fields(Train)]
    assert flags[:2] == ["--algorithm", "--estimator"]
    # The flags --preset and --wrapper set `preset_name` and `wrappers`.
    assert set(flags) == set(known) - {"--environment", "--preset-name", "--wrappers"} | {"--wrapper"}
    assert max(map(len, shown.split("positional arguments")[1].splitlines())) <= 80
    assert "learns to" not in lines and "are long" not in lines  # line breaks of the source must not survive


def test_list_imports_only_what_it_shows(folder: Path):
    done = shell(["list"], folder, "print('HEAVY', sorted({'jax', 'numpy', 'gymnasium', 'scipy'} & set(sys.modules)))")
    assert "HEAVY []" in done.stdout and done.returncode == 0


def test_what_list_says_of_compiled_environments_is_their_docstring():
    told = {name: str(kind.__doc__).splitlines()[0] for name, kind in COMPILED.items()}
    assert table("compiled.yaml", "environments") == told


def test_list_shows_every_rung(capsys):
    main(["list"])
    shown = capsys.readouterr().out
    for name in (*ALGORITHMS, "jax:CartPole-v1", "reward_to_go", "importance_sampled", "HalfCheetah-v5"):
        assert name in shown, name


def test_piped_output_is_plain(trained: Path, folder: Path):
    output = (folder / "stdout.txt").read_text()
    assert "\x1b" not in output and "\r" not in output
    assert "ppo on jax:CartPole-v1 · 2 seeds" in output
    assert f"writing to {Path('runs') / 'two'}" in output
    assert f"upslope evaluate {Path('runs') / 'two'}" in output


def test_evaluate_keeps_every_episode(trained: Path, here: Path, capsys):
    main(["evaluate", str(trained), "--episodes", "12"])
    with (trained / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 12
    assert {(row["seed"], row["mode"]) for row in rows} == {
        (seed, mode) for seed in "01" for mode in ("stochastic", "deterministic")
    }
    assert all(float(row["return"]) == int(row["length"]) for row in rows)
    shown = capsys.readouterr().out
    assert "12 episodes" in shown and "\x1b" not in shown
    main(["evaluate", str(trained), "--episodes", "3", "--checkpoint", "best", "--environment-seed", "1"])
    with (trained / "evaluation.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 2 * 15


def test_record_says_what_to_do_next(trained: Path, here: Path, capsys):
    main(["record", str(trained), "--episodes", "3", "--output", "three.npz"])
    assert "--algorithm off_policy --data three.npz" in capsys.readouterr().out
    assert (here / "three.npz").exists()


def test_quiet_prints_nothing_and_tensorboard_writes(here: Path, capsys):
    pytest.importorskip("tensorboardX")
    words = [*FLAGS, "--seeds", "2", "--name", "board", "--track", "tensorboard", "--quiet"]
    main(["train", "jax:CartPole-v1", *words])
    assert capsys.readouterr().out == ""
    for seed in (0, 1):
        events = list((here / "runs" / "board" / "tensorboard" / f"seed_{seed}").glob("events*"))
        assert events and events[0].stat().st_size > 100


def test_a_flag_beats_the_file_beats_the_preset_beats_the_defaults(here: Path, capsys):
    (here / "settings.yaml").write_text("learning-rate: 0.01\ngamma: 0.5\nlambda: 0.7\nhidden_sizes: [8]\n")
    common = ["--num-envs", "2", "--rollout-steps", "8", "--epochs", "1", "--steps", "64"]
    main(["train", "jax:CartPole-v1", "--config", "settings.yaml", "--gamma", "0.25", "--name", "a", *common])
    config = settings_of(here / "runs" / "a")
    assert config["gamma"] == 0.25  # flag
    assert (config["learning_rate"], config["lambda_"], config["hidden_sizes"]) == (0.01, 0.7, [8])  # file
    assert config["minibatches"] == 8 and "benchmarks" in config["preset"]  # preset
    assert config["epsilon"] == 0.2  # default
    said = capsys.readouterr().out
    assert "preset: " in said and "--no-preset disables it" in said

    main(["train", "jax:CartPole-v1", *FLAGS, "--no-preset", "--name", "b"])
    config = settings_of(here / "runs" / "b")
    assert config["preset"] is None and (config["learning_rate"], config["gamma"]) == (2.5e-4, 0.99)
    assert "preset:" not in capsys.readouterr().out


@pytest.mark.parametrize("written", ["1e5", "100000", "100_000", "1.0e5"])
def test_whole_numbers_may_have_an_exponent_or_underscores(written: str, here: Path, capsys):
    (here / "settings.yaml").write_text(f"steps: {written}\n")
    for words in (["--steps", written], ["--config", "settings.yaml"]):
        assert config_of(["jax:CartPole-v1", *words]).steps == 100_000
    with pytest.raises(SystemExit) as end:
        main(["ladder", "jax:CartPole-v1", "--steps", "1.5"])
    assert end.value.code == 2 and "1.5 is not a whole number" in capsys.readouterr().err


def test_a_file_may_write_numbers_with_an_exponent(here: Path):
    # YAML parses 1e-3 as a string, but users always mean the number.
    (here / "settings.yaml").write_text("learning-rate: 1e-3\nsteps: 1e5\n")
    config = config_of(["CartPole-v1", "--config", "settings.yaml"])
    assert (config.learning_rate, config.steps) == (0.001, 100_000)


@pytest.mark.parametrize(
    "words",
    [
        ["--steps", "64", "--gamma", "0.5", "jax:Pendulum-v1"],
        ["--algorithm", "ppo", "jax:Pendulum-v1"],
        ["--algorithm=ppo", "--gamma=0.5", "jax:Pendulum-v1"],
    ],
)
def test_flags_may_come_before_the_environment(words: list[str]):
    config = config_of(words)
    assert config.environment == "jax:Pendulum-v1"
    assert config.preset is not None and config.learning_rate == 1e-3


def test_keyword_arguments_reach_the_environment(here: Path):
    words = ["train", "user_environments:configurable", *FLAGS, "--quiet", "--name", "k"]
    main([*words, "--env-kwargs", json.dumps({"continuous": True})])
    description = json.loads((here / "runs" / "k" / "config.json").read_text())
    assert description["config"]["env_kwargs"] == {"continuous": True}
    assert description["spaces"]["action"]["kind"] == "BoxHead"
    assert description["config"]["normalize_observations"]  # the default for Box actions


def test_the_public_names_are_few_and_documented():
    names = [name for name in dir(upslope) if not name.startswith("_")]
    assert 10 < len(names) <= 70
    for name in names:
        thing = getattr(upslope, name)
        assert inspect.getdoc(thing), name
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = upslope.no_such_name


def test_an_estimator_of_ones_own_trains(here: Path, monkeypatch, capsys):
    assert len(OWN_ESTIMATOR.strip().splitlines()) < 20
    (here / "impatient.py").write_text(OWN_ESTIMATOR)
    monkeypatch.syspath_prepend(str(here))
    import impatient  # type: ignore[import-not-found]

    options: dict[str, Any] = {"steps": 64, "num_envs": 2, "rollout_steps": 8, "hidden_sizes": (8,), "quiet": True}
    own = impatient.Impatient(scale=3.0)
    run = upslope.train("jax:CartPole-v1", "a2c", estimator=own, folder=here, name="object", **options)
    assert run.config.estimator == "impatient:Impatient"
    assert run.metrics()[-1]["step"] == 64 and "critic/loss" not in run.metrics()[-1]

    main(["train", "jax:CartPole-v1", "--algorithm", "a2c", "--estimator", "impatient:Impatient", *FLAGS,
          "--name", "shell", "-q"])  # fmt: skip
    assert (
        json.loads((here / "runs" / "shell" / "config.json").read_text())["axes"]["estimator"] == "Impatient(scale=2.0)"
    )
    main(["resume", str(here / "runs" / "shell"), "-q"])

    # An object created from the name alone would have a different scale.
    with pytest.raises(upslope.UpslopeError, match=r"Impatient\(scale=3.0\).*Impatient\(scale=2.0\)"):
        upslope.resume(run.path, quiet=True)
    with pytest.raises(upslope.UpslopeError, match="Pass the same"):
        upslope.resume(run.path, estimator=upslope.GAE(), quiet=True)
    upslope.resume(run.path, estimator=own, quiet=True)


@pytest.mark.parametrize("flag", [f.name for f in fields(Config) if get_type_hints(Config)[f.name] is bool])
def test_a_switch_is_obeyed_however_it_is_written(flag: str):
    dashed = flag.replace("_", "-")
    for no in (f"--no-{dashed}", f"--no_{flag}", f"--no-{flag}", f"--no_{dashed}"):
        assert parse_train(["jax:CartPole-v1", no])[1][flag] is False, no
    for yes in (f"--{dashed}", f"--{flag}"):
        assert parse_train(["jax:CartPole-v1", yes])[1][flag] is True, yes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: " + ":".join(["1"] * 500_000), "is not a decimal number"),
        ("epochs: !!int " + ":".join(["1"] * 400_000), "is not a decimal number"),
        ("gamma: " + ":".join(["1"] * 400_000) + ".5", "is not a decimal number"),
        ("epochs: 0x" + "F" * 5000, "is not a decimal number"),
        ("epochs: 0b11", "is not a decimal number"),
        ("epochs: 010", "is not a decimal number"),
        ("epochs: " + "9" * 5000, "Could not read the settings in file.yaml"),
        ("epochs: !!int x", "is not a decimal number"),
        ("epochs: !!int ''", "is not a decimal number"),
        ("gamma: !!float x", "Could not read the settings in file.yaml"),
        ("epochs: 3\nepochs: 4", "'epochs' is set more than once"),
        ("env_kwargs: {a: 1, a: 2}", "'a' is set more than once"),
        ("learning-rate: 0.1\nlearning_rate: 0.2", "learning-rate and learning_rate are the same setting"),
        ("lambda: 0.1\nlambda_: 0.2", "lambda and lambda_ are the same setting"),
        ("wrapper: X\nwrappers: X", "wrapper and wrappers are the same setting"),
        ("name: mine\nfolder: here", "file.yaml sets name, folder, but a file contains only the settings of a run"),
        ("environment: [a]", "environment must be text, not ['a']"),
    ],
    ids=lambda text: text[:24],
)  # fmt: skip
def test_a_settings_file_is_read_at_once_and_says_each_thing_once(text: str, said: str, here: Path):
    Path("file.yaml").write_text(text)
    start = time.monotonic()
    with pytest.raises(upslope.UpslopeError) as refused:
        parse_train(["jax:CartPole-v1", "--config", "file.yaml"])
    assert said in str(refused.value) and len(str(refused.value)) < 500 and time.monotonic() - start < 10


def test_a_settings_file_may_write_numbers_with_signs_and_underscores(here: Path):
    Path("file.yaml").write_text("steps: 1_000\nlog_std_init: -1\nbeta: +2\nseed: 0\ngamma: .5\nmax_grad_norm: .inf")
    found = parse_train(["jax:CartPole-v1", "--config", "file.yaml"])[1]
    assert [found[name] for name in ("steps", "log_std_init", "beta", "seed", "gamma")] == [1000, -1, 2, 0, 0.5]
