"""A run that trains in another process is displayed using only its directory."""

import io
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import write_run
from rich.console import Console

from upslope.cli.main import main
from upslope.errors import UpslopeError
from upslope.runs import watching
from upslope.runs.directory import RunDirectory
from upslope.runs.display import LiveDisplay, PlainDisplay
from upslope.runs.growing import GrowingTable
from upslope.runs.watching import History, is_locked, watch

STEPS = 1000


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Write a run of two seeds that has just started."""
    path = write_run(tmp_path, episodes={0: [], 1: []}, steps=STEPS)
    (path / "metrics.jsonl").write_text("")
    return path


def grow(run: Path, step: int, elapsed: float, **more: Any) -> None:
    """Write a chunk as training would: for each seed, an episode whose return is step + seed, and then a row."""
    with (run / "episodes.csv").open("a") as file:
        file.write("".join(f"{step},{seed},{float(step + seed)},{10 * seed + 5}\n" for seed in (0, 1)))
    times = {"time/elapsed": elapsed, "time/steps_per_second": 50.0}
    rows = [
        {"iteration": step // 100 - 1, "seed": seed, "step": step, "episode/return": 1.0, "policy/kl": 0.01 + seed}
        | {"critic/loss": None}
        | more
        | times
        for seed in (0, 1)
    ]
    with (run / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


class Clock:
    """A clock that `sleep` advances. Each call also triggers the next event."""

    def __init__(self, *happenings: Any):
        self.time, self.happenings = 1e9, list(happenings)

    def sleep(self, seconds: float) -> None:
        happening = self.happenings.pop(0) if self.happenings else None
        if happening is None:
            raise KeyboardInterrupt
        self.time += seconds
        if isinstance(happening, float):
            self.time += happening
        else:
            happening()


def plain(run: Path, *happenings: Any, look: Any = lambda: "") -> list[str]:
    """Return the lines that `watch` prints without a terminal."""
    stream, clock = io.StringIO(), Clock(*happenings)
    for table in ("metrics.jsonl", "config.json"):
        os.utime(run / table, (clock.time, clock.time))
    try:
        watch(run, PlainDisplay(stream), look, sleep=clock.sleep, now=lambda: clock.time)
    except KeyboardInterrupt:
        return [*stream.getvalue().splitlines(), "interrupted"]
    return stream.getvalue().splitlines()


def test_a_run_is_followed_to_its_end(run: Path):
    lines = plain(run, *(lambda k=k: grow(run, 100 * k, 2.0 * k) for k in range(1, 11)))
    assert lines[:2] == ["ppo on CartPole-v1 · 2 seeds", f"watching {run}; Ctrl-C stops watching, not the run"]
    # There is one line per tenth of the budget. After five chunks, the seeds' means are 300 and 301, so the
    # half-width of the interval is 12.71 · 0.707 / 1.414 = 6.4.
    (half,) = [line for line in lines if line.startswith(" 50 %")]
    assert "500 of 1,000 steps per seed  return 300 ± 6 (95 %) · 2 seeds" in half
    assert "after 0:10 · 0:20 left · 50 steps/s" in half  # 2 seeds × 500 steps at 50 per second
    assert sum(" % " in line for line in lines) == 10
    assert lines[-2].startswith("trained in 20.0 s; mean return of the last 100 training episodes: seed 0: 550.0")
    assert lines[-1] == f"evaluate it:  upslope evaluate {run}"


def test_a_finished_run_is_shown_and_left(run: Path):
    for k in range(1, 11):
        grow(run, 100 * k, 2.0 * k)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in run.rglob("*")}
    lines = plain(run)
    assert lines[2].startswith("100 %") and lines[-1].startswith("evaluate it") and len(lines) == 5
    assert {p: p.stat().st_size for p in run.rglob("*")} == {p: size for p, (_, size) in before.items()}


def test_a_run_whose_seeds_have_stopped_is_finished(run: Path):
    """The seeds' last rows show that they have stopped. Additional columns in the episodes file do not matter."""
    (run / "episodes.csv").write_text("step,seed,return,length,info/x\n100,0,7.0,5,0.5\n")
    grow(run, 300, 6.0, **{"stop/return": 300.5})
    lines = plain(run)
    assert lines[2].startswith("100 %  300 of 1,000") and "trained in 6.0 s" in lines[3]


def test_the_panel_is_that_of_training(run: Path):
    for k in range(1, 6):
        grow(run, 100 * k, 2.0 * k)
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=50, color_system=None)
    shown = LiveDisplay(console)
    with pytest.raises(KeyboardInterrupt):
        watch(run, shown, lambda: "a finding", sleep=Clock().sleep, now=lambda: 1e9)
    drawing = Console(record=True, width=100, file=io.StringIO())
    drawing.print(shown.render())
    text = drawing.export_text()
    assert "50 %" in text and "500 of 1,000" in text and "a finding" in text
    assert "KL" in text and "0.51" in text  # the mean of 0.01 and 1.01
    assert "100 to 300" in text  # this includes earlier values: a seed's mean was 100, 150, …, 300
    assert "where the time goes" not in text


def test_silence_is_judged_by_the_runs_own_pauses(run: Path):
    for k in (1, 2, 3):
        grow(run, 100 * k, 20.0 * k)
    lines = plain(run, 150.0, lambda: None, 100.0, lambda: None, lambda: grow(run, 400, 80.0), 150.0)
    notices = [line for line in lines if line.startswith("notice")]
    # A notice appears after ten times the longest pause, which is 20 s. A new row resets the count.
    assert notices == [
        "notice: no new row for more than 3:20, and the longest pause before that was 0:20: it seems to have stopped. "
        f"If it has: upslope resume {run}"
    ]
    assert lines.index(notices[0]) < next(n for n, line in enumerate(lines) if line.startswith(" 40 %"))
    assert lines[-1] == "interrupted"


def test_the_first_rows_may_take_long(run: Path):
    assert not any("notice" in line for line in plain(run, 500.0))
    assert any("no new row for more than 10:00: it seems" in line for line in plain(run, 700.0, lambda: None))


@pytest.mark.skipif(not watching.LOCKS.exists(), reason="only Linux lists its locks")
def test_a_process_that_trains_on_this_machine_is_known(run: Path):
    grow(run, 100, 1.0)
    lock = RunDirectory(run).locked()
    assert not is_locked(run / "config.json")
    lock.__enter__()
    assert is_locked(run / "config.json")
    lines = plain(run, 700.0, lambda: None, lambda: lock.__exit__(None, None, None), lambda: None)
    assert [line for line in lines if "notice" in line] == [
        "notice: no new row for more than 10:00. Its process is still running: an environment may be hanging",
        f"notice: its process ended before the budget was spent. Resume it: upslope resume {run}",
    ]


def test_a_resumed_run_is_read_anew(run: Path):
    for k in range(1, 6):
        grow(run, 100 * k, 2.0 * k)
    history = History(RunDirectory(run))
    assert history.read()[-1].steps == [500, 500]
    for name, keep in (("metrics.jsonl", 4), ("episodes.csv", 5)):
        lines = (run / name).read_text().splitlines(keepends=True)
        (run / name).write_text("".join(lines[:keep]))
    for k in range(3, 8):  # the files are longer than before by the next time they are read
        grow(run, 100 * k, 3.0 * k)
    last = history.read()[-1]
    assert last.steps == [700, 700] and last.elapsed == 21.0
    assert last.episode_return == [400.0, 401.0]  # each episode once


def test_lines_are_read_whole_and_once(tmp_path: Path):
    table = GrowingTable(tmp_path / "table")
    assert table.read() == []
    for written, read in (("a\nb", ["a"]), ("c\n", ["bc"]), ("", []), ("\n", [""]), ("é\n", ["é"])):
        with table.path.open("a", encoding="utf-8") as file:
            file.write(written)
        assert table.read() == read and not table.has_restarted
    table.path.write_text("x\ny\n")
    assert table.read() == ["x", "y"] and table.has_restarted and table.count == 2
    assert table.read() == [] and not table.has_restarted


def test_what_cannot_be_watched_is_told(run: Path, tmp_path: Path, capsys):
    def told(path: Path) -> str:
        with pytest.raises(SystemExit) as end:
            main(["watch", str(path)])
        assert end.value.code == 2
        return capsys.readouterr().err

    assert "is not a run directory" in told(tmp_path / "gone")
    (run / "metrics.jsonl").write_text('{"seed": 7, "step": 1}\n')
    assert "metrics.jsonl is damaged" in told(run)
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    assert "is a pipe" in told(run)
    (run / "metrics.jsonl").unlink()
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(SystemExit) as end:
        main(["watch", str(run)])
    assert end.value.code == 130 and "No longer watching" in capsys.readouterr().err


def test_a_share_that_is_away_for_a_moment_is_no_error(run: Path, monkeypatch: pytest.MonkeyPatch):
    grow(run, 100, 1.0)
    history = History(RunDirectory(run))
    monkeypatch.setattr(GrowingTable, "content", lambda self: (_ for _ in ()).throw(OSError("stale file handle")))
    assert history.read() == []
    monkeypatch.undo()
    with pytest.raises(UpslopeError, match="is damaged"):
        (run / "metrics.jsonl").write_text("nothing\n")
        history.read()


@pytest.mark.parametrize("name", ["time/elapsed", "time/steps_per_second", "iteration"])
@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_numbers_beyond_any_clock_are_not_shown(name: str, value: int, run: Path):
    grow(run, 100, 1.0)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 1, "seed": 0, "step": 200, name: value}) + "\n")
    with (run / "episodes.csv").open("a") as file:
        file.write(f"150,0,1.0,{10**400}\n")
    state = History(RunDirectory(run)).read()[-1]
    assert state.steps == [200, 100] and state.elapsed == 1.0 and state.iteration <= 2
    assert plain(run, lambda: None)[-1] == "interrupted"


@pytest.mark.parametrize("step", [10**400, -1])
def test_a_step_that_no_training_reaches_is_told(step: int, run: Path):
    (run / "metrics.jsonl").write_text(json.dumps({"iteration": 1, "seed": 0, "step": step}) + "\n")
    with pytest.raises(UpslopeError, match=r"metrics\.jsonl is damaged.*a row is at step"):
        History(RunDirectory(run)).read()
