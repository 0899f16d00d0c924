"""The environments of one seed are split between processes only if this saves time, and the run does not change."""

import itertools
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import train_case
from run_helpers import assert_same_run, before_chunk
from user_environments import Walk

import upslope
from upslope.config.config import configure
from upslope.config.task import task_of
from upslope.engines import selection, shared_steps, slices, transport
from upslope.engines.processes import HangMonitor
from upslope.engines.shared_steps import SharedSteps
from upslope.engines.slices import SlicedColumns, Slicing, slicing_of
from upslope.environments.registry import make

SMALL: dict[str, Any] = {"num_envs": 4, "hidden_sizes": (8,), "quiet": True, "preset": False}
SEGMENTS: dict[str, Any] = {"rollout_steps": 8, "minibatches": 2, "epochs": 2, **SMALL}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "segments": ("CartPole-v1", "ppo", {"steps": 960, "normalize_observations": True, **SEGMENTS}),
    "episodes": ("CartPole-v1", "reinforce", {"steps": 900, "max_episode_steps": 60, **SMALL}),
    "box": ("Pendulum-v1", "ppo", {"steps": 480, "max_episode_steps": 21, **SEGMENTS}),
    "masked": ("user_environments:Fenced", "ppo", {"steps": 480, **SEGMENTS}),
    "dict": ("user_environments:FencedByKey", "ppo", {"steps": 480, **SEGMENTS}),
    "cursed": ("user_environments:Cursed", "ppo", {"steps": 1600, "seed": 1, **SEGMENTS}),
}
train = partial(train_case, CASES)
pytestmark = pytest.mark.usefixtures("curse")


@pytest.mark.parametrize(
    ("case", "seeds", "workers"),
    [("segments", 1, 3), ("episodes", 2, 3), pytest.param("box", 1, 2, marks=pytest.mark.weekly)],
)
def test_the_result_does_not_depend_on_the_slices(case: str, seeds: int, workers: int, tmp_path: Path, capsys: Any):
    alone = train(case, tmp_path, "alone", seeds=seeds, workers=1)
    sliced = train(case, tmp_path, "sliced", seeds=seeds, workers=workers)
    assert_same_run(alone, sliced)
    assert "in one process" not in capsys.readouterr().err


@pytest.fixture
def joined(monkeypatch: Any) -> None:
    """Let the main process step the first slice and share memory with the worker that steps the second one."""
    monkeypatch.setattr(selection, "slicing_of", lambda *arguments: Slicing(2, is_joined=True))


@pytest.mark.parametrize(
    ("case", "seeds"),
    [
        *[("segments", 1), ("episodes", 2), ("masked", 2)],
        *[pytest.param(*rarely, marks=pytest.mark.weekly) for rarely in (("box", 1), ("dict", 1))],
    ],
)
def test_the_result_is_the_same_where_the_main_process_steps_a_slice(
    case: str, seeds: int, tmp_path: Path, monkeypatch: Any
):
    alone = train(case, tmp_path, "alone", seeds=seeds, workers=1)
    shared: list[Any] = []
    ask = SharedSteps.ask
    monkeypatch.setattr(SharedSteps, "ask", lambda self, action: (shared.append(0), ask(self, action))[1])
    monkeypatch.setattr(selection, "slicing_of", lambda *arguments: Slicing(2, is_joined=True))
    assert_same_run(alone, train(case, tmp_path, "joined", seeds=seeds))
    assert bool(shared) == shared_steps.is_possible()


@pytest.mark.parametrize("has_memory", [True, False])
def test_shared_memory_that_has_no_room_is_not_needed(has_memory: bool, joined: None, tmp_path: Path, monkeypatch: Any):
    def full(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    alone = train("segments", tmp_path, "joined")
    if has_memory:
        monkeypatch.setattr(shared_steps, "SPIN", 0.0)  # waiting processes always sleep until they are woken
        monkeypatch.setattr(shared_steps, "PATIENCE", 0.0)
    else:
        monkeypatch.setattr(slices, "SharedSteps", full)
    assert_same_run(alone, train("segments", tmp_path, "again"))


@pytest.mark.parametrize(("kind", "words"), [("raises", "the simulator is gone"), ("dies", "ended with exit status 3")])
def test_a_fault_beside_the_main_process_is_named(kind: str, words: str, joined: None, tmp_path: Path, curse: Path):
    whole = train("cursed", tmp_path, "whole")
    curse.write_text(f"{kind} elsewhere")
    with pytest.raises(upslope.UpslopeError, match=words):
        train("cursed", tmp_path, kind)
    curse.unlink()
    upslope.resume(tmp_path / kind, quiet=True)
    assert_same_run(whole, tmp_path / kind)


def test_ctrl_c_while_the_own_slice_hangs_loses_nothing(joined: None, tmp_path: Path, monkeypatch: Any, curse: Path):
    """The other slice's answer has not arrived yet and must not be mistaken for the answer to the next request."""
    whole = train("cursed", tmp_path, "whole")
    monkeypatch.setattr(transport, "PATIENCE", 0.2)
    monkeypatch.setattr(transport, "BEAT", 0.1)
    began = HangMonitor.__init__

    def begin(self: HangMonitor, *arguments: Any) -> None:
        began(self, *arguments)
        threading.Thread(target=press_when_it_hangs, args=(self,), daemon=True).start()

    def press_when_it_hangs(monitor: HangMonitor) -> None:
        while not monitor.hangs:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(HangMonitor, "__init__", begin)
    curse.write_text("hangs")
    with pytest.raises(KeyboardInterrupt):
        train("cursed", tmp_path, "hung")
    curse.unlink()
    upslope.resume(tmp_path / "hung", quiet=True)
    assert_same_run(whole, tmp_path / "hung")


def test_a_run_is_resumed_in_other_slices(tmp_path: Path):
    def stop() -> None:
        raise upslope.UpslopeError("Enough.")

    whole = train("segments", tmp_path, "whole", workers=1)
    with before_chunk(9, stop), pytest.raises(upslope.UpslopeError, match="Enough"):
        train("segments", tmp_path, "resumed", workers=3)
    with before_chunk(10, stop), pytest.raises(upslope.UpslopeError, match="Enough"):
        upslope.resume(tmp_path / "resumed", workers=1, quiet=True)
    upslope.resume(tmp_path / "resumed", workers=2, quiet=True)
    assert_same_run(whole, tmp_path / "resumed")


@pytest.mark.parametrize(
    ("kind", "words"),
    [("raises", "the simulator is gone"), ("dies", r"environments 0 to 1 of each seed\) ended with exit status 3")],
)
def test_a_fault_in_a_slice_is_named_and_loses_nothing(kind: str, words: str, tmp_path: Path, curse: Path):
    whole = train("cursed", tmp_path, "whole", workers=1)
    curse.write_text(kind)
    with pytest.raises(upslope.UpslopeError, match=words):
        train("cursed", tmp_path, kind, workers=2)
    curse.unlink()
    upslope.resume(tmp_path / kind, workers=2, quiet=True)
    assert_same_run(whole, tmp_path / kind)


def test_a_slice_that_hangs_is_named(tmp_path: Path, curse: Path, monkeypatch: Any, capsys: Any):
    monkeypatch.setattr(transport, "PATIENCE", 0.5)
    curse.write_text("sleeps")
    train("cursed", tmp_path, "slept", workers=2)
    assert "environments 0 to 1 of each seed) has not answered for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "seeds", "asked", "expected"),
    [
        *[(1e-5, 1, None, (1, False)), (2e-3, 1, None, (4, False)), (2e-3, 4, None, (1, False))],
        *[(1e-5, 1, 3, (3, False)), (2e-3, 1, 1, (1, False)), (2e-3, 2, 8, (4, False))],
        *[(2e-4, 1, None, (4, True)), (2e-4, 1, 3, (3, False)), (2e-4, 2, None, (4, True))],
    ],
)
def test_environments_are_split_where_it_pays(seconds, seeds, asked, expected, monkeypatch: Any):
    monkeypatch.setattr(slices, "num_cores", lambda: 4)
    monkeypatch.setattr(slices, "step_seconds", lambda world: seconds)
    config = configure("CartPole-v1", is_continuous=False, steps=100_000, seeds=seeds, **{"num_envs": 4})
    task = task_of(config, make("CartPole-v1"))
    assert slicing_of(task, seeds, asked) == expected


@pytest.mark.parametrize(("takes", "expected_steps"), [(2**-6, 8), (2**-12, 1000)])
def test_a_slow_environment_is_measured(takes: float, expected_steps: int, monkeypatch: Any):
    """A fast environment is timed for a thousand steps, a slow one for a quarter of a second.

    Only steps advance the clock in this test. One step takes longer, as on a busy core, but the result is the same.
    """
    steps = itertools.count()
    now = 0.0

    class Slow(Walk):
        def step(self, action: Any) -> Any:
            nonlocal now
            now += takes * (9 if next(steps) == 3 else 1)
            return super().step(action)

    monkeypatch.setattr(slices, "perf_counter", lambda: now)
    assert slices.step_seconds(make(Slow)) == takes  # type: ignore[arg-type]
    assert next(steps) == expected_steps


def test_a_clock_that_jumps_before_the_first_step_ends_no_trial(monkeypatch: Any):
    clock = itertools.count(step=1.0)
    monkeypatch.setattr(slices, "perf_counter", lambda: next(clock))
    assert slices.step_seconds(make(Walk)) == 1.0  # type: ignore[arg-type]


def test_rows_of_several_seeds_find_their_worker(tmp_path: Path):
    config = configure("CartPole-v1", is_continuous=False, seeds=2, **{"num_envs": 3})
    world: Any = make("CartPole-v1")
    task = task_of(config, world)
    columns = SlicedColumns(task, [0, 1], Slicing(2), print)
    try:
        columns.begin(range(6))
        assert [rows.tolist() for rows in columns.rows] == [[0, 1, 3, 4], [2, 5]]
        first = columns.observation.copy()
        columns.begin([2])
        changed = np.any(columns.observation != first, axis=-1)
        assert changed.tolist() == [[False, False, True], [False, False, False]]
    finally:
        columns.close()
