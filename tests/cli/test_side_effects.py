"""Commands cope with environments that change their process: its output, its threads and its current folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from upslope import evaluate, record, resume, train

COMMAND = "from upslope.cli.main import main; main()"
SMALL = "--steps 32 --num-envs 2 --rollout-steps 8 --minibatches 2 --epochs 1 --hidden-sizes 8 --max-episode-steps 20"


def run_command(words: str, folder: Path, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
    """Run the command in a separate process."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONIOENCODING": "utf-8"}
    arguments = [sys.executable, "-P", "-c", COMMAND, *words.split()]
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=seconds)


def test_json_is_all_that_a_command_prints(tmp_path: Path):
    done = run_command("check user_environments:Loud --json --max-episode-steps 20", tmp_path)
    assert json.loads(done.stdout)["environment"] == "user_environments:Loud"
    assert "a step {" in done.stderr and "of a simulator" in done.stderr


@pytest.mark.parametrize(("seconds", "is_told"), [(600, True), (0.1, False)])
def test_a_thread_that_was_left_does_not_keep_the_command(seconds: float, is_told: bool, tmp_path: Path):
    arguments = f'--env-kwargs {{"seconds":{seconds}}}'
    done = run_command(f"train user_environments:LeavesThread {arguments} {SMALL} --quiet --name run", tmp_path)
    assert done.returncode == 0 and (tmp_path / "runs" / "run" / "checkpoints" / "last.npz").exists()
    assert ("threads running (simulator" in done.stderr) is is_told
    assert run_command(f"check user_environments:LeavesThread {arguments}", tmp_path).returncode in (0, 1)


def test_a_refused_command_ends_too(tmp_path: Path):
    done = run_command(f"train user_environments:LeavesThread {SMALL} --quiet --algorithm off_policy", tmp_path)
    assert done.returncode == 2


def test_a_closed_output_loses_nothing(tmp_path: Path):
    done = run_command(f"train user_environments:ClosesOutput {SMALL} --quiet --name run", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "runs" / "run" / "checkpoints" / "last.npz").exists()


@pytest.mark.parametrize("at", [0, 3])
def test_an_environment_has_a_current_folder_of_its_own(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = {path.name for path in Path(__file__).parents[1].iterdir()}
    monkeypatch.chdir(tmp_path)
    small: dict = {"num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 1, "hidden_sizes": (8,)}
    small |= {"env_kwargs": {"at": at}, "max_episode_steps": 20, "quiet": True, "preset": False}
    run = train("user_environments:ChangesFolder", steps=64, name="run", **small)
    assert run.path == Path("runs/run")
    evaluate(run.path, episodes=1)
    record(run.path, episodes=1, output=Path("episodes.npz"))
    resume(run.path, quiet=True)
    assert Path.cwd() == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "episodes.npz"}
    assert {path.name for path in Path(__file__).parents[1].iterdir()} <= before | {"__pycache__"}


JAX_SETTINGS = {
    ("JAX_PLATFORMS", "tpu"): "JAX cannot use the devices set by JAX_PLATFORMS=tpu",
    ("JAX_NUMPY_DTYPE_PROMOTION", "strict"): "does not support jax_numpy_dtype_promotion=strict, and failed",
    ("JAX_NUMPY_RANK_PROMOTION", "raise"): "does not support jax_numpy_rank_promotion=raise, and failed",
}


@pytest.mark.parametrize("setting", JAX_SETTINGS, ids=lambda setting: setting[0])
def test_settings_of_jax_under_which_training_fails_are_named(setting: tuple[str, str], tmp_path: Path, monkeypatch):
    monkeypatch.setenv(*setting)
    done = run_command(f"train jax:CartPole-v1 {SMALL} --quiet", tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert JAX_SETTINGS[setting] in done.stderr
