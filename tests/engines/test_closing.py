"""Environments are closed however a run ends, and programs that they start cannot read a worker's pipes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from user_environments import Simulated

import upslope
from upslope.config.config import configure
from upslope.config.task import task_of
from upslope.engines import slices
from upslope.engines.selection import is_transferable
from upslope.environments.registry import make
from upslope.errors import UpslopeError

SMALL: dict[str, Any] = {"num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 1, "hidden_sizes": (8,)}
SMALL |= {"quiet": True, "preset": False, "max_episode_steps": 20, "steps": 64}
NAME = "user_environments:Simulated"


@pytest.fixture(autouse=True)
def log(tmp_path: Path, monkeypatch: Any) -> Path:
    monkeypatch.setenv("SIMULATIONS", str(tmp_path / "log"))
    return tmp_path / "log"


@pytest.fixture(autouse=True)
def balance(log: Path) -> Any:
    """Check after every test that as many simulators were closed as opened."""
    yield
    assert Simulated.count("open") == Simulated.count("close") > 0


WAYS = {"alone": (2, 1), "seeds": (2, 2), "slices": (1, 2)}
"""The number of seeds and the number of workers for each way of training."""


def train(way: str, folder: Path, **settings: Any) -> Any:
    seeds, workers = WAYS[way]
    return upslope.train(NAME, folder=folder, seeds=seeds, workers=workers, **SMALL | settings)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_task_can_be_handed_to_another_process(schedule: str):
    settings: dict[str, Any] = {"learning_rate_schedule": schedule, "epsilon_schedule": schedule}
    config = configure(NAME, is_continuous=False, use_preset=False, **settings)
    assert is_transferable(task_of(config, make(NAME)))


@pytest.mark.parametrize("way", WAYS)
def test_a_run_closes_its_environments(way: str, tmp_path: Path, capfd: Any):
    run = train(way, tmp_path)
    # Workers must exit without any output.
    assert capfd.readouterr() == ("", "")
    upslope.evaluate(run.path, episodes=2)
    upslope.record(run.path, episodes=2)
    slices.step_seconds(make(NAME))  # type: ignore[arg-type]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", ["init", "step"])
def test_environments_are_closed_after_an_error(way: str, place: str, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("FAILS", place)
    words = {"init": "no more licences", "step": "the simulator is gone"}[place]
    with pytest.raises(UpslopeError, match=words):
        train(way, tmp_path, num_envs=4)


@pytest.mark.parametrize("way", WAYS)
def test_an_error_in_closing_loses_nothing(way: str, tmp_path: Path, monkeypatch: Any, capfd: Any):
    monkeypatch.setenv("FAILS", "close")
    run = train(way, tmp_path, name="run")
    said = capfd.readouterr().err
    assert "RuntimeError: cannot be closed" in said
    assert "Traceback" not in said
    assert np.isfinite(run.returns).all()
    returns = upslope.evaluate(run.path, episodes=2)["deterministic"].returns
    assert returns.shape == (WAYS[way][0], 2)
    assert (run.path / "evaluation.csv").exists()
    assert upslope.record(run.path, episodes=1).exists()
    assert "cannot be closed" in capfd.readouterr().err


def test_an_error_in_closing_does_not_outrank_another(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(Simulated, "fails_in", staticmethod(lambda place: place in ("step", "close")))
    with pytest.raises(UpslopeError, match="the simulator is gone"):
        train("alone", tmp_path)


SCRIPT = "import sys\nfrom upslope.cli.main import main\nmain(sys.argv[1:])"


def command(folder: Path, words: str, **more: Any) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    flags = "--num-envs 2 --rollout-steps 8 --minibatches 2 --epochs 1 --hidden-sizes 8 --max-episode-steps 20"
    arguments = [sys.executable, "-P", "-c", SCRIPT, *words.split(), *flags.split()]
    return subprocess.Popen(
        arguments, cwd=folder, env=environment | more, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def until(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("the condition never became true")


FURTHER_SIGNALS = {(signal.SIGTERM, "seeds"), (signal.SIGINT, "slices"), (signal.SIGTERM, "alone")}


@pytest.mark.parametrize(
    ("number", "way"),
    [
        pytest.param(number, way, marks=pytest.mark.weekly if (number, way) in FURTHER_SIGNALS else ())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
        for way in WAYS
    ],
)
def test_environments_are_closed_by_a_signal(way: str, number: int, tmp_path: Path):
    if way == "alone" and number == signal.SIGKILL:
        Simulated().close()  # a killed process cannot close its own environment
        return
    seeds, workers = WAYS[way]
    process = command(tmp_path, f"train {NAME} --steps 500000 --seeds {seeds} --workers {workers}")
    until(lambda: Simulated.count("step") > 20)
    process.send_signal(number)
    process.communicate(timeout=120)
    until(lambda: Simulated.count("open") == Simulated.count("close"))


@pytest.mark.parametrize("way", ["seeds", "slices"])
def test_a_program_of_an_environment_cannot_read_what_is_said_to_a_worker(way: str, tmp_path: Path):
    seeds, workers = WAYS[way]
    settings = SMALL | {"seeds": seeds, "workers": workers, "folder": tmp_path}
    assert upslope.train("user_environments:reads_its_input", **settings).path.exists()


def test_a_file_in_the_current_folder_does_not_stand_in_for_pythons_own(tmp_path: Path):
    for name in ("queue", "json", "pickle", "threading", "numpy", "upslope"):
        (tmp_path / f"{name}.py").write_text("from pathlib import Path\nPath(__file__).with_suffix('.ran').touch()\n")
    process = command(tmp_path, f"train {NAME} --steps 64 --seeds 2 --workers 2 --quiet", PYTHONWARNINGS="default")
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert list(tmp_path.glob("*.ran")) == []
    assert "ResourceWarning" not in said
    assert "leaked" not in said
