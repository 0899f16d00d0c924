"""Seeds trained in several processes match seeds trained in one process bit for bit, even after a fault."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from helpers import train_case
from run_helpers import arrays_of, assert_same_run, before_chunk
from user_environments import Walk

import upslope
from upslope.engines import transport, workers
from upslope.engines.columns import split_snapshot
from upslope.engines.transport import Worker
from upslope.engines.workers import WorkersEngine
from upslope.learning.iteration import Task
from upslope.runs import loop

SEGMENTS: dict[str, Any] = {"num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 2, "preset": False}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "segments": ("CartPole-v1", "ppo", {"steps": 800, **SEGMENTS, "normalize_observations": True}),
    "episodes": ("CartPole-v1", "reinforce", {"steps": 700, "max_episode_steps": 60, "num_envs": 2, "preset": False}),
    "box": ("Pendulum-v1", "ppo", {"steps": 480, "max_episode_steps": 21, **SEGMENTS}),
    "mujoco": ("InvertedPendulum-v5", "ppo", {"steps": 320, **SEGMENTS}),
    "cursed": ("user_environments:Cursed", "ppo", {"steps": 400, **SEGMENTS}),
}
pytestmark = pytest.mark.usefixtures("curse")


def train(case: str, folder: Path, name: str, **options: Any) -> Path:
    """Train three seeds (two in the `cursed` case), which two workers share unequally; return the run's path."""
    options = {"seeds": 2 if case == "cursed" else 3, "hidden_sizes": (8,), "quiet": True} | options
    return train_case(CASES, case, folder, name, **options)


@pytest.fixture(scope="module")
def in_one_process(folder: Path) -> Callable[[str], Path]:
    return cache(lambda case: train(case, folder, f"{case} alone", workers=1))


@pytest.mark.parametrize("case", ["segments", "episodes", pytest.param("box", marks=pytest.mark.weekly), "mujoco"])
def test_the_result_does_not_depend_on_the_processes(case: str, in_one_process: Any, folder: Path, capsys: Any):
    several = train(case, folder, f"{case} several", workers=2)
    assert_same_run(in_one_process(case), several)
    assert "in one process" not in capsys.readouterr().err


def test_a_run_is_resumed_by_another_number_of_processes(in_one_process: Any, folder: Path, monkeypatch: Any):
    def stop() -> None:
        raise upslope.UpslopeError("Enough.")

    count = iter(range(1000))
    original = WorkersEngine.advance
    monkeypatch.setattr(
        WorkersEngine, "advance", lambda self, *arguments: stop() if next(count) == 21 else original(self, *arguments)
    )
    with pytest.raises(upslope.UpslopeError, match=r"Enough.*Everything up to step 336 is saved"):
        train("segments", folder, "resumed", workers=3)
    monkeypatch.undo()
    with before_chunk(10, stop), pytest.raises(upslope.UpslopeError, match="step 496 is saved"):
        upslope.resume(folder / "resumed", workers=1, quiet=True)
    upslope.resume(folder / "resumed", workers=2, quiet=True)
    assert_same_run(in_one_process("segments"), folder / "resumed")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("raises", r"simulator is gone — environment 0 of seed 1, episode 3.*saved"),
        ("dies", r"Worker process 1 \(process \d+, seeds 1\) ended.*3.*intact"),
    ],
)
def test_a_fault_in_one_process_is_named_and_loses_nothing(
    kind: str, words: str, in_one_process: Any, folder: Path, curse: Path
):
    whole = in_one_process("cursed")
    curse.write_text(kind)
    with pytest.raises(upslope.UpslopeError, match=words):
        train("cursed", folder, kind, workers=2)
    curse.unlink()
    upslope.resume(folder / kind, workers=2, quiet=True)
    assert_same_run(whole, folder / kind)


@pytest.fixture
def always_ahead(monkeypatch: Any) -> None:
    """Let workers begin the next chunk early even if the last one was slow, as the first one is."""
    monkeypatch.setattr(workers, "AHEAD_BELOW", np.inf)


def after_rows(do: Callable[[Any], None], monkeypatch: Any, number: int | None = None) -> None:
    """Call `do` with the engine just after the rows of chunk `number`, counted from 0, or of every chunk were
    written."""
    count, write = iter(range(1000)), loop.Loop.write

    def watched(self: Any, *arguments: Any) -> Any:
        found = write(self, *arguments)
        if next(count) == number or number is None:
            do(self.engine)
        return found

    monkeypatch.setattr(loop.Loop, "write", watched)


@pytest.mark.usefixtures("always_ahead")
def test_a_run_that_is_stopped_while_its_workers_are_ahead_loses_nothing(
    in_one_process: Any, folder: Path, monkeypatch: Any
):
    ahead: list[bool] = []

    def stop(engine: Any) -> None:
        ahead.append(engine.is_ahead)
        signal.raise_signal(signal.SIGINT)

    after_rows(stop, monkeypatch, 9)
    with pytest.raises(KeyboardInterrupt, match="upslope resume"):
        train("segments", folder, "stopped ahead", workers=2)
    monkeypatch.undo()
    assert ahead == [True]
    upslope.resume(folder / "stopped ahead", workers=1, quiet=True)
    assert_same_run(in_one_process("segments"), folder / "stopped ahead")


@pytest.mark.usefixtures("always_ahead")
def test_a_fault_in_the_next_chunk_is_named_if_it_occurs_while_the_run_is_saved(
    in_one_process: Any, folder: Path, curse: Path, monkeypatch: Any
):
    """The worker is killed because it hangs, and so cannot be asked for a snapshot."""

    def stop(engine: Any) -> None:
        monkeypatch.setenv(transport.LIMIT, "2")
        monkeypatch.setattr(transport, "PATIENCE", 0.5)
        signal.raise_signal(signal.SIGINT)

    after_rows(stop, monkeypatch, 17)  # the fault is in chunk 18
    curse.write_text("hangs")
    with pytest.raises(upslope.UpslopeError, match=r"has not answered for \d+ s.*killed.*intact; resume with"):
        train("cursed", folder, "hangs ahead", workers=2)
    curse.unlink()
    upslope.resume(folder / "hangs ahead", workers=1, quiet=True)
    assert_same_run(in_one_process("cursed"), folder / "hangs ahead")


@pytest.mark.usefixtures("always_ahead")
@pytest.mark.parametrize(
    ("settings", "is_ahead"),
    [
        ({}, True),
        ({"every_chunk_is_saved": True}, False),
        ({"stop_at_return": 1e6}, False),
        ({"on_iteration": lambda seen: None}, False),
    ],
)
def test_workers_are_ahead_unless_the_next_chunk_may_begin_otherwise(
    settings: dict[str, Any], is_ahead: bool, tmp_path: Path, monkeypatch: Any
):
    if settings.pop("every_chunk_is_saved", False):
        monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    seen: list[bool] = []
    after_rows(lambda engine: seen.append(engine.is_ahead), monkeypatch)
    train("segments", tmp_path, "run", workers=2, steps=64, **settings)
    assert seen == [is_ahead] * 3 + [False]


def test_a_process_that_hangs_is_named(folder: Path, curse: Path, monkeypatch: Any, capsys: Any):
    monkeypatch.setattr(transport, "PATIENCE", 0.5)
    curse.write_text("sleeps")
    train("cursed", folder, "slept", workers=2)
    assert "seeds 1) has not answered for" in capsys.readouterr().err


def test_no_process_outlives_the_run(folder: Path, monkeypatch: Any):
    started: list[Worker] = []
    original = Worker.__init__

    def begin(self: Worker, *arguments: Any) -> None:
        original(self, *arguments)
        started.append(self)

    monkeypatch.setattr(Worker, "__init__", begin)
    train("box", folder, "ended", workers=2)
    assert [worker.channel.process.returncode for worker in started] == [0, 0]


def test_an_environment_that_only_this_process_knows(folder: Path, capsys: Any):
    gymnasium.register("OnlyHere-v0", lambda: Walk())
    upslope.train("OnlyHere-v0", seeds=2, steps=64, workers=2, quiet=True, folder=folder, name="only", **SEGMENTS)
    assert "training in one process" in capsys.readouterr().err
    assert (folder / "only" / "checkpoints" / "last.npz").exists()


def test_a_worker_makes_the_environment_that_was_passed_not_the_configs(folder: Path, monkeypatch: Any):
    gymnasium.register("OtherName-v0", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=500)
    run = train("segments", folder, "renamed", workers=1)
    begun: list[str] = []
    ask = Worker.ask

    def asked(self: Worker, what: str, *arguments: Any) -> None:
        begun.extend(part.environment.name for part in arguments if isinstance(part, Task))
        ask(self, what, *arguments)

    monkeypatch.setattr(Worker, "ask", asked)
    assert upslope.resume(run, environment="OtherName-v0", workers=2, quiet=True).path == run
    assert begun == ["OtherName-v0", "OtherName-v0"]


def test_a_script_without_a_main_guard(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(
        "import upslope\n"
        "run = upslope.train('CartPole-v1', seeds=2, steps=256, workers=2, quiet=True, preset=False, num_envs=2,\n"
        "                    rollout_steps=16, minibatches=2)\n"
        "print('trained', run.returns.shape)\n"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == "trained (2,)\n", done.stderr


@pytest.mark.parametrize(("environment", "count"), [("jax:CartPole-v1", 2), ("CartPole-v1", 0)])
def test_workers_that_cannot_be(environment: str, count: int, folder: Path):
    with pytest.raises(upslope.UpslopeError, match="--workers"):
        upslope.train(environment, steps=64, seeds=2, workers=count, quiet=True, folder=folder)


def test_mujoco_measures_no_times_in_a_worker():
    """MuJoCo's own timers show whether timing is switched on. The switch is global, so the test uses a separate
    process."""
    script = (
        "import gymnasium\n"
        "from upslope.engines.mujoco_timer import stop_stopwatch\n"
        "env = gymnasium.make('InvertedPendulum-v5')\n"
        "def spent():\n"
        "    env.reset(seed=0)\n"
        "    shown = env.step(env.action_space.high)[0].tolist()\n"
        "    return max(t.duration for t in env.unwrapped.data.timer), shown\n"
        "before, shown = spent()\n"
        "stop_stopwatch()\n"
        "after, again = spent()\n"
        "print(before > 0, after, shown == again)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["True 0.0 True"], done.stderr


def test_a_split_snapshot_holds_each_share():
    snapshot = {
        "episode": np.arange(6),
        "length": np.array([2, -1, 0, 1, -2, 3]),
        "actions": np.array([10, 11, 40, 60, 61, 62]),
        "observation": np.arange(6.0).reshape(3, 2, 1),
    }
    one, two = split_snapshot(snapshot, [1, 2])
    assert one["actions"].tolist() == [10, 11] and one["length"].tolist() == [2, -1]
    assert two["actions"].tolist() == [40, 60, 61, 62] and two["episode"].tolist() == [2, 3, 4, 5]
    assert one["observation"].shape == (1, 2, 1) and two["observation"].ravel().tolist() == [2, 3, 4, 5]


def test_the_sums_of_long_products_do_not_depend_on_the_workers(tmp_path: Path):
    # XLA divides the sum over 4,096 rows among its threads, so workers must have as many threads as the main process.
    settings: dict[str, Any] = {"num_envs": 16, "rollout_steps": 256, "minibatches": 1, "epochs": 1, "steps": 4096}
    settings |= {"seeds": 2, "quiet": True, "preset": False, "folder": tmp_path}
    one, two = (upslope.train("CartPole-v1", workers=n, name=str(n), **settings).path for n in (1, 2))
    assert arrays_of(one / "checkpoints" / "last.npz") == arrays_of(two / "checkpoints" / "last.npz")
