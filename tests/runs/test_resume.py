"""A run that was stopped and resumed equals an uninterrupted run, file by file and bit for bit."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from helpers import train_case
from run_helpers import EPISODES, SEGMENTS, Killed, arrays_of, assert_same_run, before_chunk, config_of, metrics_of
from user_environments import OwnRandomness, OwnRewards, Walk

import upslope
from upslope.analysis.records import read_records
from upslope.cli.main import main
from upslope.core.storage import load_arrays, save_arrays
from upslope.runs import evaluation, loop
from upslope.runs.signals import stop_on_signal

NORMALISED = {"normalize_observations": True, "normalize_rewards": True}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    # 48 steps per chunk make three iterations per program call, so a stop falls between chunks of several iterations.
    "compiled segments": ("jax:CartPole-v1", "ppo", {"steps": 4800, **SEGMENTS, **NORMALISED}),
    "compiled split": ("jax:CartPole-v1", "ppo", {"steps": 4800, "devices_per_seed": 2, **SEGMENTS, **NORMALISED}),
    "compiled episodes": (
        "jax:CartPole-v1",
        "reinforce_baseline",
        {"steps": 2000, "max_episode_steps": 60, "critic_epochs": 2, **EPISODES},
    ),
    "host segments": ("CartPole-v1", "ppo", {"steps": 1600, **SEGMENTS, **NORMALISED}),
    "host episodes": ("CartPole-v1", "reinforce", {"steps": 1000, "max_episode_steps": 60, **EPISODES}),
    "host box": ("Pendulum-v1", "ppo", {"steps": 960, "max_episode_steps": 21, **SEGMENTS}),
}
train = partial(train_case, CASES, seeds=2, hidden_sizes=(8,), quiet=True)
STOP_AT = {"compiled segments": 40, "compiled split": 40, "host segments": 45, "host box": 31}
"""The chunk before which each case is stopped."""


@pytest.fixture(scope="module")
def uninterrupted(folder: Path) -> Callable[[str], Path]:
    """Return a function that trains the uninterrupted run of a case, once."""
    return cache(lambda case: train(case, folder, f"{case} straight"))


@pytest.fixture
def straight(uninterrupted: Callable[[str], Path], trains_for_long: None) -> Callable[[str], Path]:
    """Return `uninterrupted`, but compile programs as for users, for tests that compare files bit for bit."""
    return uninterrupted


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.weekly if case == "host box" else ()) for case in CASES]
)
def test_stopped_and_resumed_is_uninterrupted(case: str, straight: Callable[[str], Path], folder: Path, capsys):
    name = f"{case} stopped"
    stop_here = before_chunk(STOP_AT.get(case, 9), lambda: signal.raise_signal(signal.SIGINT))
    with stop_here, pytest.raises(KeyboardInterrupt, match="upslope resume") as stop:
        train(case, folder, name)
    assert str(folder / name) in str(stop.value)
    half = len(metrics_of(folder / name))
    upslope.resume(folder / name, quiet=True)
    assert 0 < half < len(metrics_of(folder / name))
    # Replaying Pendulum and CartPole reproduces their episodes, so no warning may appear.
    assert "could not be replayed" not in capsys.readouterr().err
    assert_same_run(straight(case), folder / name)


def test_rows_after_the_checkpoint_are_cut(straight: Callable[[str], Path], folder: Path, monkeypatch):
    case = "compiled segments"

    def kill() -> None:
        raise Killed

    # Save a checkpoint after each of the first 30 chunks, and none after that.
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    stop_saving = before_chunk(30, lambda: monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 1e9))
    with before_chunk(60, kill), stop_saving, pytest.raises(Killed):
        train(case, folder, "killed")
    run = folder / "killed"
    assert len(metrics_of(run)) == 60 * 3 * 2
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 180, "se')  # an incomplete row
    upslope.resume(run, quiet=True)
    assert_same_run(straight(case), run)


def test_a_run_killed_before_its_first_checkpoint_is_not_lost(straight: Callable[[str], Path], folder: Path):
    def kill() -> None:
        raise Killed

    with before_chunk(3, kill), pytest.raises(Killed):
        train("compiled segments", folder, "early")
    upslope.resume(folder / "early", quiet=True)
    assert_same_run(straight("compiled segments"), folder / "early")


@pytest.mark.parametrize("case", ["compiled episodes", "host segments"])
def test_stopped_before_the_first_iteration(case: str, straight: Callable[[str], Path], folder: Path):
    def stop() -> None:
        raise RuntimeError("nothing has been done yet")

    with before_chunk(0, stop), pytest.raises(RuntimeError):
        train(case, folder, f"{case} at once")
    upslope.resume(folder / f"{case} at once", quiet=True)
    assert_same_run(straight(case), folder / f"{case} at once")


def test_resuming_a_finished_run_changes_nothing_and_says_so(straight: Callable[[str], Path], capsys: Any):
    run = straight("compiled episodes")
    before = arrays_of(run / "checkpoints" / "last.npz"), (run / "episodes.csv").read_text(), metrics_of(run)
    capsys.readouterr()
    upslope.resume(run)
    said = capsys.readouterr().out
    assert (
        "is finished: each seed has spent its 2,000 steps" in said
        and shlex.join(["upslope", "evaluate", str(run)]) in said
    )
    command = next(line for line in said.splitlines() if line.startswith("    upslope train "))
    assert config_of(shlex.split(command)[2:]) == replace(upslope.resume(run).config, steps=4000)
    assert before == (arrays_of(run / "checkpoints" / "last.npz"), (run / "episodes.csv").read_text(), metrics_of(run))


def normalised_rewards() -> gymnasium.Env:
    """The running deviation is the environment's own state, which outlives its episodes."""
    return gymnasium.wrappers.NormalizeReward(Walk())


@pytest.mark.parametrize("environment", [OwnRandomness, OwnRewards, normalised_rewards])
def test_an_environment_that_does_not_repeat_itself_is_named(environment: Any, tmp_path: Path, capsys):
    run = stopped_on_the_host(environment, tmp_path)
    run = upslope.resume(run, quiet=True)
    said = capsys.readouterr().err
    assert "could not be replayed" in said
    assert "not a function of its reset seed and actions" in said
    assert re.search(r"environment [01] of seed 0", said)
    assert run.metrics()[-1]["step"] == 320
    assert len(run.metrics()) == 20


def test_rewards_that_changed_between_stop_and_resume_are_noticed(tmp_path: Path, monkeypatch, capsys):
    run, step = stopped_on_the_host(Walk, tmp_path), Walk.step

    def doubled(self: Walk, action: Any) -> Any:
        observation, reward, *ends = step(self, action)
        return observation, 2 * reward, *ends

    monkeypatch.setattr(Walk, "step", doubled)
    upslope.resume(run, quiet=True)
    assert "could not be replayed" in capsys.readouterr().err


def test_a_checkpoint_without_returns_is_replayed_by_its_observations(tmp_path: Path, capsys):
    run = stopped_on_the_host(Walk, tmp_path)
    path = run / "checkpoints" / "last.npz"
    arrays, meta = load_arrays(path, "checkpoint")
    assert arrays.pop("world/episode_return").any()
    save_arrays(path, arrays, meta)
    upslope.resume(run, quiet=True)
    assert "could not be replayed" not in capsys.readouterr().err


def stopped_on_the_host(environment: Any, folder: Path) -> Path:
    """Train in a Gymnasium environment, and stop while episodes are in progress."""
    settings = {**SEGMENTS, "steps": 320, "hidden_sizes": (8,), "quiet": True}
    with before_chunk(5, lambda: signal.raise_signal(signal.SIGTERM)), pytest.raises(KeyboardInterrupt):
        upslope.train(environment, folder=folder, name="run", **settings)
    return folder / "run"


def test_a_signal_stops_the_command_cleanly(tmp_path: Path):
    script = "from upslope.cli.main import main; main()"
    words = ["train", "jax:CartPole-v1", "--no-preset", "--steps", "8000000", "--hidden-sizes", "8", "--name"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    signals = (signal.SIGINT, signal.SIGTERM)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *words, number.name], cwd=tmp_path, env=environment, text=True,
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        )
        for number in signals
    ]  # fmt: skip
    for number, process in zip(signals, processes, strict=True):
        rows = tmp_path / "runs" / number.name / "metrics.jsonl"
        while not (rows.exists() and rows.stat().st_size) and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(number)
        process.send_signal(number)  # like `timeout`: once to the process, once to its group
    for number, process in zip(signals, processes, strict=True):
        said = process.communicate()[1]
        assert process.returncode == 130, said
        assert f"Stopped and saved. Resume with: upslope resume {Path('runs') / number.name}" in said
        assert "Traceback" not in said
        assert (tmp_path / "runs" / number.name / "checkpoints" / "last.npz").exists()


def test_a_second_wish_to_stop_does_not_wait(monkeypatch):
    clock = iter([0.0, 0.1, 0.6])
    monkeypatch.setattr("upslope.runs.signals.monotonic", lambda: next(clock))
    noted: list[bool] = []
    with stop_on_signal(lambda: False, lambda: noted.append(True)) as stop:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        assert stop.is_set() and noted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_train_resume_goes_on_with_the_same_config_only(tmp_path: Path, capsys):
    # A preset is in use. Its settings come from a different file than the config's.
    words = f"train jax:CartPole-v1 --folder {tmp_path} --name run --resume --steps 512 -q".split()
    main(words)
    main(words)
    with pytest.raises(SystemExit) as end:
        main([*words, "--gamma", "0.5"])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert re.search(r"gamma was 0\.\d+, now 0\.5", said) and "--name" in said
    assert "hidden_sizes" not in said


def test_a_config_that_was_edited_after_training_began_is_refused(tmp_path: Path):
    small = {"seeds": 1, "quiet": True, "hidden_sizes": (8,), "folder": tmp_path, "name": "run"}
    run = upslope.train("jax:CartPole-v1", steps=160, **SEGMENTS, **small).path
    description = json.loads((run / "config.json").read_text())
    for name, value, words in (("learning_rate", 0.5, "now 0.5"), ("steps", 99_999, "160, now 99999")):
        edited = description | {"config": description["config"] | {name: value}}
        (run / "config.json").write_text(json.dumps(edited))
        with pytest.raises(upslope.UpslopeError, match=rf"config.json was edited.*{name} was .*{words}.*--name"):
            upslope.resume(run, quiet=True)
    (run / "config.json").write_text(json.dumps(description))
    assert upslope.resume(run, quiet=True).path == run


BEYOND = 10**400
"""A number that is larger than any float."""


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("last.npz", {"elapsed": BEYOND}),
        ("last.npz", {"windows": [[[BEYOND, 1]]]}),
        ("last.npz", {"windows": [[[1.0, BEYOND]]]}),
        ("last.npz", {"windows": [[[1.0, -1]]]}),
        ("last.npz", {"settings": 5}),
        ("last.npz", {"settings": ["gamma"]}),
        ("last.npz", {"stopped_at": [BEYOND]}),
        ("last.npz", {"checks": [BEYOND]}),
        ("last.npz", {"steps": [BEYOND]}),
        ("last.npz", {"sizes": {"metrics.jsonl": BEYOND, "episodes.csv": 1}}),
        ("best.npz", {"best_return": [BEYOND]}),
        ("best.npz", {"best_step": [BEYOND]}),
    ],
)
def test_numbers_that_training_cannot_produce_are_refused(
    file: str, changes: dict[str, Any], begun: Path, tmp_path: Path
):
    run = Path(shutil.copytree(begun, tmp_path / "run"))
    with np.load(run / "checkpoints" / file) as archive:
        arrays = {name: archive[name] for name in archive.files}
    meta = json.loads(str(arrays.pop("meta")[()]))
    np.savez(run / "checkpoints" / file, meta=np.asarray(json.dumps(meta | changes)), **arrays)
    with pytest.raises(upslope.UpslopeError, match=rf"{file} is damaged: .*{next(iter(changes))}.* Restore it"):
        upslope.resume(run, quiet=True)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run, and stop it before its end."""
    folder = tmp_path_factory.mktemp("begun")
    settings = {**SEGMENTS, "steps": 320, "seeds": 1, "hidden_sizes": (8,), "quiet": True}
    with before_chunk(3, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        upslope.train("jax:CartPole-v1", folder=folder, name="run", **settings)
    return folder / "run"


def test_an_evaluation_of_the_agent_before_is_set_aside(tmp_path: Path):
    settings = {**SEGMENTS, "steps": 320, "seeds": 1, "hidden_sizes": (8,), "preset": False, "quiet": True}
    with before_chunk(3, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        upslope.train("jax:CartPole-v1", folder=tmp_path, name="run", **settings)
    run = tmp_path / "run"
    upslope.evaluate(run, episodes=1)
    upslope.resume(run, quiet=True)
    assert not (run / "evaluation.csv").exists(), "its agent has been trained further"
    (aside,) = run.glob("evaluation-at-step-*.csv")
    assert len(aside.read_text().splitlines()) == 3
    upslope.evaluate(run, episodes=1)
    with suppress(upslope.UpslopeError):
        upslope.resume(run, quiet=True)  # the run is already finished
    assert (run / "evaluation.csv").exists()
    upslope.compare(run, score="stochastic")


def test_an_evaluation_made_during_training_is_not_that_of_the_finished_run(tmp_path: Path, capsys: Any):
    run = tmp_path / "run"

    def evaluate_early(following: upslope.Following) -> None:
        if following.iteration == 2:
            upslope.evaluate(run, episodes=2)

    settings = {**SEGMENTS, "steps": 320, "seeds": 1, "hidden_sizes": (8,)}
    upslope.train("jax:CartPole-v1", folder=tmp_path, name="run", on_iteration=evaluate_early, **settings)
    assert not (run / "evaluation.csv").exists(), "its agent has been trained further"
    (aside,) = run.glob("evaluation-up-to-step-*.csv")
    assert len(aside.read_text().splitlines()) == 5
    assert aside.name in capsys.readouterr().out.replace("\n", "")
    assert not any(len(record.evaluations) for record in read_records(run)[0])


def test_an_evaluation_of_a_run_that_is_stopped_meanwhile_is_set_aside(tmp_path: Path):
    run = tmp_path / "run"

    def evaluate_and_stop() -> None:
        upslope.evaluate(run, episodes=1)
        signal.raise_signal(signal.SIGINT)

    settings = {**SEGMENTS, "steps": 320, "seeds": 1, "hidden_sizes": (8,), "quiet": True}
    with before_chunk(3, evaluate_and_stop), pytest.raises(KeyboardInterrupt):
        upslope.train("jax:CartPole-v1", folder=tmp_path, name="run", **settings)
    assert not (run / "evaluation.csv").exists() and list(run.glob("evaluation-up-to-step-*.csv"))


def test_episodes_of_an_agent_that_is_trained_further_while_they_are_played_are_not_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    settings = {**SEGMENTS, "steps": 320, "seeds": 1, "hidden_sizes": (8,), "quiet": True}
    with before_chunk(3, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        upslope.train("jax:CartPole-v1", folder=tmp_path, name="run", **settings)
    run, play = tmp_path / "run", evaluation.evaluate_seeds

    def play_while_it_trains(*arguments: Any) -> Any:
        upslope.resume(run, quiet=True)
        return play(*arguments)

    monkeypatch.setattr(evaluation, "evaluate_seeds", play_while_it_trains)
    upslope.evaluate(run, episodes=1)
    assert not (run / "evaluation.csv").exists()
    (aside,) = run.glob("evaluation-at-step-*.csv")
    assert len(aside.read_text().splitlines()) == 3
    assert capsys.readouterr().err.count("trained further") == 1, "one message covers both modes"
