"""Runs survive external events: kills, a second process, a full or read-only disk, a clock that jumps, a worker that
hangs. `benchmarks/stress.py` kills runs many more times."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_helpers import Killed, assert_same_run

import upslope
from upslope.config.config import configure
from upslope.engines import transport
from upslope.models.choice_heads import DiscreteHead
from upslope.models.encoders import BoxEncoder
from upslope.runs import display, loop
from upslope.runs.directory import RunDirectory
from upslope.runs.policy import described_spaces

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import stress_kills

SMALL: dict[str, Any] = {
    "num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 1, "hidden_sizes": (8,), "quiet": True,
    "preset": False,
}  # fmt: skip
PARTS = described_spaces(BoxEncoder((4,)), DiscreteHead(2)), {"needs_critic": True}


def train(folder: Path, name: str, **settings: Any) -> Path:
    options: dict[str, Any] = {"steps": 800, "seeds": 2, **SMALL, **settings}
    return upslope.train("CartPole-v1", folder=folder, name=name, **options).path


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs"), "straight")


def test_three_kills_lose_nothing(tmp_path: Path):
    words = "CartPole-v1 --no-preset --num-envs 4 --rollout-steps 32 --hidden-sizes 8 --steps 20000 --workers 1"
    case = stress_kills.Case("small", ["train", *words.split(), "--folder", str(tmp_path)], tmp_path)
    stress_kills.train_uninterrupted(case, ["straight"])
    case.took = case.began  # kill soon after the first rows, so that no run finishes first
    tally = stress_kills.Tally()
    draw = np.random.default_rng(1)
    for number in range(3):
        stress_kills.train_through_kills(case, number, 3 - tally.counts["kills"], draw, tally)
        if tally.counts["kills"] == 3:
            break
    assert tally.faults == []
    assert tally.counts["runs"] == tally.counts["identical ends"] > 0
    assert tally.counts["kills"] > 0
    assert tally.counts["lost rows"] == tally.counts["corrupt files"] == tally.counts["left-over temporary files"] == 0


def killed(*_: Any) -> None:
    """Stop as if the process had been killed before saving anything."""
    raise Killed


def test_a_run_that_was_killed_when_it_was_made_begins_anew(straight: Path, tmp_path: Path, monkeypatch: Any):
    with monkeypatch.context() as patch:
        patch.setattr("upslope.runs.train.run_loop", killed)
        with pytest.raises(Killed):
            train(tmp_path, "early")
    assert not list((tmp_path / "early" / "checkpoints").iterdir())
    (tmp_path / "early" / "checkpoints" / ".last.npz.1.tmp").write_bytes(b"half a checkpoint")
    upslope.resume(tmp_path / "early", quiet=True)
    assert_same_run(straight, tmp_path / "early")
    assert {p.name for p in (tmp_path / "early" / "checkpoints").iterdir()} == {"last.npz", "best.npz"}


def test_a_checkpoint_that_was_deleted_is_not_taken_for_a_run_that_has_not_begun(tmp_path: Path):
    run = train(tmp_path, "deleted", steps=64)
    rows = (run / "metrics.jsonl").read_bytes()
    (run / "checkpoints" / "last.npz").unlink()
    with pytest.raises(upslope.UpslopeError, match="There is no checkpoint"):
        upslope.resume(run, quiet=True)
    assert (run / "metrics.jsonl").read_bytes() == rows


def test_of_two_runs_with_one_name_one_is_made(tmp_path: Path):
    config = configure("CartPole-v1", is_continuous=False)
    for number in range(20):
        outcomes: list[str] = []
        both = threading.Barrier(2)

        def create(place: Path = tmp_path / str(number), outcomes: Any = outcomes, both: Any = both) -> None:
            both.wait()
            try:
                RunDirectory(place).create(config, *PARTS)
                outcomes.append("made")
            except upslope.UpslopeError as error:
                outcomes.append("refused" if "already exists" in str(error) else str(error))

        threads = [threading.Thread(target=create) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["made", "refused"]
        assert RunDirectory(tmp_path / str(number)).config() == config
    assert not list(tmp_path.glob(".*"))


HOLD = """
import sys, time
from upslope.runs.directory import RunDirectory
with RunDirectory(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_that_another_process_trains_is_left_alone(tmp_path: Path):
    run = train(tmp_path, "held", steps=64)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", HOLD, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(upslope.UpslopeError, match=r"being trained by another process.*--name"):
            upslope.resume(run, quiet=True)
        assert before == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
        process.kill()
    upslope.resume(run, quiet=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Mount a separate file system at `tmp_path/disk`, and return a function that remounts it with other options.
    Requires permission to mount file systems."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("not permitted to mount a file system")

    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("not permitted to mount a file system")
    yield mount
    subprocess.run(["umount", disk], check=False)


def test_a_disk_that_is_full_and_then_read_only(
    small_disk: Callable[[str], None], straight: Path, tmp_path: Path, capsys: Any
):
    small_disk("size=60k")
    with pytest.raises(upslope.UpslopeError, match=r"No space left on device.*upslope resume .*disk/run"):
        train(tmp_path / "disk", "run")
    run = tmp_path / "disk" / "run"
    assert not list(run.rglob("*.tmp"))
    saved = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    small_disk("remount,ro")
    for what, words in (
        (lambda: upslope.resume(run, quiet=True), "Read-only file system.*upslope resume"),
        (lambda: train(tmp_path / "disk", "other"), "Read-only file system.*Choose another folder"),
        (lambda: upslope.record(run, episodes=1), "Read-only file system.*Make it writable"),
    ):
        with pytest.raises(upslope.UpslopeError, match=words):
            what()
    assert len(upslope.evaluate(run, episodes=1)) == 2  # results are returned although they cannot be stored
    assert re.search(r"not stored:.*Read-only file system", " ".join(capsys.readouterr().err.split()))
    assert saved == {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    small_disk("remount,rw,size=10m")
    upslope.resume(run, quiet=True)
    assert_same_run(straight, run)


@pytest.mark.parametrize("jump", [-1e9, 1e9, 0.0])
def test_a_clock_that_jumps_or_stands_still(jump: float, straight: Path, tmp_path: Path, monkeypatch: Any):
    reads = iter(range(10**9))

    def clock() -> float:
        read = next(reads)
        return 100.0 if not jump else 0.01 * read + jump * (read % 7 == 3)

    monkeypatch.setattr(loop, "perf_counter", clock)
    monkeypatch.setattr(time, "time", lambda: 1e9 + clock())
    run = train(tmp_path, "jumped")
    assert_same_run(straight, run)
    rows = RunDirectory(run).metrics()
    elapsed = [row["time/elapsed"] for row in rows]
    assert elapsed == sorted(elapsed) and elapsed[0] >= 0
    assert all(0 <= row["time/steps_per_second"] < 1e12 for row in rows)


def test_an_environment_that_hangs_in_the_only_process_is_named_and_an_interrupt_saves(
    tmp_path: Path, monkeypatch: Any
):
    monkeypatch.setenv("CURSE", str(tmp_path / "curse"))
    settings: dict[str, Any] = {"seeds": 2, "steps": 400, "folder": tmp_path, **SMALL}
    whole = upslope.train("user_environments:Cursed", name="whole", **settings).path
    (tmp_path / "curse").write_text("hangs")
    monkeypatch.setattr(transport, "PATIENCE", 0.9)
    monkeypatch.setattr(transport, "BEAT", 0.3)
    said: list[str] = []

    def message(self: Any, text: str) -> None:
        said.append(text)
        if len(said) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(display.QuietDisplay, "message", message)
    with pytest.raises(KeyboardInterrupt, match="Stopped and saved"):
        upslope.train("user_environments:Cursed", name="hung", **settings)
    assert "user_environments:Cursed is in step(), environment 0 of seed 1, episode 3" in said[0]
    assert "step 2, has not returned for 1 s" in said[0] and "Ctrl-C" in said[0] and "for 2 s" in said[1]
    (tmp_path / "curse").unlink()
    rows = RunDirectory(tmp_path / "hung").metrics()
    assert rows and max(row["step"] for row in rows) < 400
    upslope.resume(tmp_path / "hung", quiet=True)
    assert_same_run(whole, tmp_path / "hung")


def test_a_worker_that_hangs_is_ended_and_its_environment_named(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("CURSE", str(tmp_path / "curse"))
    settings: dict[str, Any] = {"seeds": 2, "steps": 400, "folder": tmp_path, **SMALL}
    whole = upslope.train("user_environments:Cursed", name="whole", **settings).path
    (tmp_path / "curse").write_text("hangs")
    monkeypatch.setenv(transport.LIMIT, "3")
    with pytest.raises(upslope.UpslopeError) as fault:
        upslope.train("user_environments:Cursed", name="hung", workers=2, **settings)
    said = str(fault.value)
    assert "seeds 1) has not answered for 3 s: user_environments:Cursed is in step(), environment 0 of seed 1" in said
    assert "It was killed" in said and transport.LIMIT in said and f"upslope resume {tmp_path / 'hung'}" in said
    (tmp_path / "curse").unlink()
    monkeypatch.delenv(transport.LIMIT)
    upslope.resume(tmp_path / "hung", workers=1, quiet=True)
    assert_same_run(whole, tmp_path / "hung")
