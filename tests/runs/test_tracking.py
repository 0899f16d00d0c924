"""Trackers receive the content of a run's files exactly once, and a tracker that fails or hangs causes only
messages."""

import contextlib
import json
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import write_run
from run_helpers import SEGMENTS, assert_same_run, before_chunk

import upslope
from upslope.cli.main import main
from upslope.errors import UpslopeError
from upslope.runs.directory import RunDirectory
from upslope.runs.tracking import process, sending
from upslope.runs.tracking.process import Tracking

SEEDS = (0, 1)
OWN = "own_trackers"


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[list[Any]]]:
    """Return a function that reads what the tracker `Noting` has recorded so far."""
    path = tmp_path / "notes"
    monkeypatch.setenv("NOTES", str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Write a half-finished run of two seeds with one row each."""
    path = write_run(tmp_path, episodes={0: [(10, 5.0), (30, 9.0)], 1: [(20, 7.0)]}, steps=100)
    description = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(description | {"lineage": {"from": "runs/elder"}}))
    (path / "metrics.jsonl").write_text("")
    add_rows(path, 50)
    return path


def add_rows(run: Path, *steps: int, value: float = 0.0) -> None:
    """Add a row for each step and seed. As in training, it contains null, counts and real numbers."""
    rows = [
        {"iteration": step // 10, "seed": seed, "step": step, "policy/kl": seed + step / 1000 + value}
        | {"critic/loss": None, "episode/count": 2, "time/elapsed": step / 10}
        for step in steps
        for seed in SEEDS
    ]
    with (run / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def values(seed: int, step: int) -> dict[str, float]:
    """Return what a tracker gets from such a row: the finite values, without the row's seed, iteration and step."""
    return {"policy/kl": seed + step / 1000, "episode/count": 2.0, "time/elapsed": step / 10}


def rows_in(noted: list[list[Any]]) -> list[list[Any]]:
    """Return all rows that the tracker recorded."""
    return [row for what, rows in noted if what == "log" for row in rows]


def test_everything_is_sent_once(run: Path, notes, capsys):
    main(["track", str(run), "--to", f"{OWN}:Noting"])
    (_, told), *rest = notes()
    assert told["known"] == {} and told["seeds"] == [0, 1] and told["project"] is None
    assert told["parameters"]["gamma"] == 0.99 and told["parameters"]["lineage/from"] == "runs/elder"
    assert told["parameters"]["versions/numpy"]
    assert rest[0] == ["log", [[0, 50, values(0, 50)], [1, 50, values(1, 50)]]]
    # The mean return of seed 0 is (5 + 9) / 2. Each of these episodes has one step.
    results = {
        "0": {"training/return": 7.0, "training/length": 1.0},
        "1": {"training/return": 7.0, "training/length": 1.0},
    }
    assert rest[1:] == [["summarise", [50, results]], ["end", False]]
    assert "sent 2 rows and the results to own_trackers:Noting; noted" in capsys.readouterr().out

    main(["track", str(run), "--to", f"{OWN}:Noting"])
    assert len(notes()) == 4 and "own_trackers:Noting already has everything" in capsys.readouterr().out

    add_rows(run, 75, 100)
    RunDirectory(run).add_evaluation([(1, "stochastic", "last", 0, r, 3, 1) for r in (10.0, 20.0)])
    upslope.track(run, f"{OWN}:Noting")
    begun, sent, results, ended = notes()[4:]
    assert begun[1]["known"] == {"id": "first", "where": "noted"}
    assert [row[:2] for row in sent[1]] == [[0, 75], [1, 75], [0, 100], [1, 100]]
    assert results[1][0] == 100 and ended == ["end", True]
    assert results[1][1]["1"] == {
        "training/return": 7.0,
        "training/length": 1.0,
        "evaluation/last/stochastic/return": 15.0,
        "evaluation/last/stochastic/length": 3.0,
        "evaluation/last/stochastic/episodes": 2.0,
    }


def test_rows_that_a_resumed_run_repeats_are_not_sent_again(run: Path, notes):
    add_rows(run, 75, 100)
    upslope.track(run, f"{OWN}:Noting")
    # The run was killed after 100 steps and resumed from the checkpoint at 50, so the file is truncated and grows
    # again.
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(lines[:2]))
    upslope.track(run, f"{OWN}:Noting")
    add_rows(run, 75, 100, 125)
    upslope.track(run, f"{OWN}:Noting")
    assert [row[:2] for row in rows_in(notes())] == [[s, step] for step in (50, 75, 100, 125) for s in SEEDS]


def test_a_tracker_that_fails_on_the_way_gets_the_rest_later(run: Path, notes, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sending, "BATCH", 1)
    with pytest.raises(SystemExit):
        main(["track", str(run), "--to", f"{OWN}:FailingLater"])
    assert "1 row of" in (told := capsys.readouterr().err) and "the server is gone" in told
    monkeypatch.setattr(sending, "BATCH", 200)
    upslope.track(run, f"{OWN}:FailingLater")
    assert [row[0] for row in rows_in(notes())] == [0, 1]


def test_another_project_needs_a_word(run: Path, notes):
    upslope.track(run, f"{OWN}:Noting", project="one")
    add_rows(run, 75)
    upslope.track(run, f"{OWN}:Noting")  # continues where it left off
    assert [told["project"] for what, told in notes() if what == "begin"] == ["one", "one"]
    with pytest.raises(UpslopeError, match="in the project one, not in two"):
        upslope.track(run, f"{OWN}:Noting", project="two")


@pytest.mark.parametrize(
    ("to", "told"),
    [
        ("wandbb", "Did you mean wandb"),
        ("own_trackers:Incomplete", "has no method log, summarise, end"),
        ("own_trackers:Gone", "cannot be imported"),
        ("no_such_module:Gone", "cannot be imported"),
        (["tensorboard", "tensorboard"], "names tensorboard twice"),
    ],
)
def test_what_is_no_tracker_is_refused(to: Any, told: str, run: Path):
    with pytest.raises(UpslopeError, match=told):
        upslope.track(run, to)
    with pytest.raises(UpslopeError, match=told):
        upslope.train("jax:CartPole-v1", track=to, folder=run.parent, name="never")
    assert not (run.parent / "never").exists()


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("tensorboard", "tensorboardX")])
def test_a_missing_package_is_refused_with_the_command(name: str, package: str, run: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UpslopeError, match=rf'needs the package {package}: pip install "upslope\[{name}\]"'):
        upslope.track(run, name)


def test_nothing_to_send_and_nothing_to_write(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    (run / "metrics.jsonl").write_text("")
    main(["track", str(run), "--to", f"{OWN}:Noting"])
    assert "no rows yet" in capsys.readouterr().out
    with pytest.raises(UpslopeError, match="is not a run directory"):
        upslope.track(tmp_path / "gone", f"{OWN}:Noting")
    with pytest.raises(SystemExit):
        main(["track", str(run)])
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UpslopeError, match="cannot be written, but what was sent must be recorded there"):
        upslope.track(run, f"{OWN}:Noting")


@pytest.mark.parametrize("text", ["", "{}", '{"rows": "many"}', "[1]"])
def test_a_damaged_memory_is_told(text: str, run: Path, notes):
    upslope.track(run, f"{OWN}:Noting")
    (run / "tracking" / "own_trackers-Noting.json").write_text(text)
    with pytest.raises(UpslopeError, match="is damaged or was not written by upslope"):
        upslope.track(run, f"{OWN}:Noting")


def test_nothing_is_written_through_a_link(run: Path, tmp_path: Path):
    (tmp_path / "outside").mkdir()
    (run / "tracking").symlink_to(tmp_path / "outside")
    with pytest.raises(UpslopeError, match="is a symbolic link"):
        upslope.track(run, f"{OWN}:Noting")
    said: list[str] = []
    Tracking(run, [f"{OWN}:Noting"], None, said.append).close()
    assert "is a symbolic link" in said[0] and not any((tmp_path / "outside").iterdir())


def test_a_process_follows_a_run_that_grows(run: Path, notes):
    said: list[str] = []
    tracking = Tracking(run, [f"{OWN}:Noting"], "mine", said.append, said.append)
    wait_until(lambda: len(rows_in(notes())) == 2)
    tracking.tell()
    add_rows(run, 75)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 9, "seed": 0')  # an incomplete row
    wait_until(lambda: len(rows_in(notes())) == 4)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(', "step": 100}\n')
    tracking.close()  # the last rows are sent before the tracker ends
    assert rows_in(notes())[4:] == [[0, 100, {}]]
    assert notes()[-1] == ["end", False] and said == ["own_trackers:Noting: noted"]
    assert notes()[0][1]["project"] == "mine"


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never became true"
        time.sleep(0.05)


def test_trackers_that_go_wrong_are_told_once_and_waited_for_briefly(run: Path, notes, monkeypatch):
    monkeypatch.setattr(process, "PATIENCE", 2.0)
    kinds = ("FailingAtOnce", "Dying", "Hanging", "HangingAtTheEnd", "Noting")
    said: list[str] = []
    tracking = Tracking(run, [f"{OWN}:{kind}" for kind in kinds], None, said.append)
    assert not any("no response" in line for line in said)  # nothing has waited for a tracker
    failed, died = tracking.processes[:2]
    wait_until(lambda: (failed.is_over and died.is_over) or bool(tracking.tell()))
    tracking.tell()
    tracking.close()
    about = {kind: [line for line in said if line.startswith(f"{OWN}:{kind} failed")] for kind in kinds}
    assert {kind: len(lines) for kind, lines in about.items()} == dict.fromkeys(kinds, 1) | {"Noting": 0}
    assert "ConnectionError: no server" in about["FailingAtOnce"][0]
    assert "exit status 7" in about["Dying"][0] and f"upslope track {run} --to {OWN}:Dying" in about["Dying"][0]
    assert all("no response" in about[kind][0] for kind in ("Hanging", "HangingAtTheEnd"))
    assert all(one.process.poll() is not None for one in tracking.processes)


def test_ctrl_c_ends_the_wait(run: Path, notes):
    said: list[str] = []
    tracking = Tracking(run, [f"{OWN}:Hanging"], None, said.append, said.append)
    threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    tracking.close()
    assert "it was stopped by Ctrl-C" in said[-1]
    assert any("waiting for own_trackers:Hanging" in line for line in said)


def read_scalars(file: Path) -> list[tuple[str, int, float]]:
    """Read the points in an event file, whose records consist of a length (8 bytes), a checksum (4), an event, and a
    checksum (4)."""
    from tensorboardX.proto.event_pb2 import Event

    content, points = file.read_bytes(), []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + size])
        points += [
            (v.tag, event.step, v.simple_value) for v in event.summary.value if v.WhichOneof("value") == "simple_value"
        ]
        content = content[16 + size :]
    return points


def test_tensorboard_has_one_folder_per_seed(run: Path):
    pytest.importorskip("tensorboardX")
    upslope.track(run, "tensorboard")
    for seed in SEEDS:
        (file,) = (run / "tensorboard" / f"seed_{seed}").iterdir()
        points = read_scalars(file)
        assert ("policy/kl", 50, pytest.approx(seed + 0.05)) in points  # null makes a gap in the curve, not a point
        assert {name for name, _, _ in points} == {*values(0, 0), "training/return", "training/length"}
    upslope.track(run, "tensorboard")
    assert len(list((run / "tensorboard" / "seed_0").iterdir())) == 1


def test_numbers_of_info_are_among_the_results():
    kinds = [("return", float), ("length", int), ("info/is_success", float)]
    rows = np.array([(1.0, 2, 1.0), (3.0, 4, np.nan), (2.0, 3, 0.0)], kinds)
    found = sending.means_of("training", rows)
    assert found == {"training/return": 2.0, "training/length": 3.0, "training/info/is_success": 0.5}
    assert sending.means_of("training", rows[:0]) == {}


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """Train a run without trackers."""
    return upslope.train(
        "jax:CartPole-v1", steps=480, seeds=2, folder=folder, name="whole", quiet=True, **SEGMENTS
    ).path


def test_a_run_is_the_same_whatever_its_trackers_do(whole: Path, tmp_path: Path, notes, monkeypatch, capsys):
    """One tracker records, one hangs, and one fails. Training is stopped with Ctrl-C and resumed."""
    monkeypatch.setattr(process, "PATIENCE", 2.0)
    names = [f"{OWN}:{kind}" for kind in ("Noting", "Hanging", "FailingAtOnce")]
    stop = before_chunk(9, lambda: signal.raise_signal(signal.SIGINT))
    with stop, pytest.raises(KeyboardInterrupt, match="upslope resume"):
        upslope.train(
            "jax:CartPole-v1", steps=480, seeds=2, folder=tmp_path, name="run", quiet=True, track=names, **SEGMENTS
        )
    told = capsys.readouterr().err
    assert told.count("Hanging failed") == told.count("FailingAtOnce failed") == 1
    upslope.resume(tmp_path / "run", quiet=True, track=names[0])
    assert_same_run(whole, tmp_path / "run")
    kept = [(row["seed"], row["step"]) for row in RunDirectory(tmp_path / "run").metrics()]
    assert [(seed, step) for seed, step, _ in rows_in(notes())] == kept
    assert [is_finished for what, is_finished in notes() if what == "end"] == [False, True]
    begun = [told["known"] for what, told in notes() if what == "begin"]
    assert begun == [{}, {"id": "first", "where": "noted"}]
    # A finished run is sent to a tracker that does not have it yet.
    (memory,) = (tmp_path / "run" / "tracking").glob("*Noting.json")
    memory.unlink()
    upslope.resume(tmp_path / "run", quiet=True, track=names[0])
    assert [(seed, step) for seed, step, _ in rows_in(notes())] == 2 * kept and notes()[-1] == ["end", True]
    with contextlib.suppress(FileNotFoundError):
        assert "Traceback" not in (tmp_path / "run" / "tracking" / "output.log").read_text()
