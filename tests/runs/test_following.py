"""A user's function can be called between the chunks of a run, and seeds can stop when they reach a return."""

import json
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from run_helpers import SEGMENTS, assert_same_run, before_chunk, metrics_of

import upslope
from upslope.analysis.compare import compare_records
from upslope.analysis.records import read_record
from upslope.config import trust
from upslope.engines.batched import BatchedColumns
from upslope.engines.compiled import CompiledEngine
from upslope.environments.classic.cartpole import CartPole

SMALL: dict[str, Any] = {"hidden_sizes": (8,), "quiet": True, **SEGMENTS}


class Corridor(gymnasium.Env):
    """An environment whose episodes become longer with each call of `lengthen`. Every step pays 1, and observations
    show the level."""

    observation_space, action_space = Box(0, 100, (2,)), Discrete(2)

    def __init__(self) -> None:
        self.level, self.place = 1, 0

    def lengthen(self, by: int, times: list[int]) -> None:
        self.level = self.level * times[0] + by

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = 0
        return self.seen(), {}

    def step(self, action: int) -> Any:
        self.place += 1
        return self.seen(), 1.0, self.place >= 3 * self.level, False, {}

    def seen(self) -> np.ndarray:
        return np.array([self.place, self.level + self.np_random.uniform()], np.float32)


def harder(state: Any) -> None:
    """Lengthen episodes after the 5th, 12th and 20th iteration, by amounts that depend on measurements."""
    if state.iteration in (5, 12, 20):
        state.call("lengthen", int(np.nanmean(state.episode_return) // 3), (1,))


@pytest.fixture(scope="module")
def curriculum(folder: Path) -> Path:
    run = train_corridor(folder, "whole", on_iteration=harder)
    return run.path


def train_corridor(folder: Path, name: str, **options: Any) -> upslope.Run:
    settings = {**SMALL, "steps": 640, "seeds": 2, **options}
    return upslope.train("test_following:Corridor", folder=folder, name=name, **settings)


def lengths_of(run: Path, seed: int = 0) -> list[int]:
    rows = [line.split(",") for line in (run / "episodes.csv").read_text().splitlines()[1:]]
    return [int(row[3]) for row in rows if int(row[1]) == seed]


def test_calls_are_made_at_the_next_reset(curriculum: Path):
    """By hand: at level 1, episodes have 3 steps. The call after iteration 5 (step 40 of each environment) finds a mean
    return of 3 and adds 3 // 3 = 1. The current episode still has 3 steps, and the next one has 6."""
    lengths = lengths_of(curriculum)
    assert lengths[: lengths.index(6)] == [3] * lengths.index(6) and set(lengths) > {3, 6}
    assert lengths == sorted(lengths)
    # In 40 steps, the two environments complete 2 · 13 episodes. The 14th episode of each began before the call.
    assert lengths.index(6) == 2 * 14


def test_a_stopped_curriculum_resumes_bit_for_bit(curriculum: Path, folder: Path, capsys):
    """The run stops after the first call, which has reached only some of the environments, and before the other two
    calls."""
    name = "stopped"
    stop_here = before_chunk(6, lambda: signal.raise_signal(signal.SIGINT))
    with stop_here, pytest.raises(KeyboardInterrupt, match="upslope resume"):
        train_corridor(folder, name, on_iteration=harder)
    upslope.resume(folder / name, quiet=True, on_iteration=harder)
    assert "could not be replayed" not in capsys.readouterr().err
    assert_same_run(curriculum, folder / name)


@pytest.mark.weekly
def test_workers_and_slices_give_the_same_curriculum(curriculum: Path, folder: Path):
    options = {"on_iteration": harder, "workers": 2}
    assert_same_run(curriculum, train_corridor(folder, "shared", **options).path)
    options |= {"seeds": 1, "steps": 400}  # there are more workers than seeds, so each worker steps a slice
    sliced = train_corridor(folder, "sliced", **options).path
    assert_same_run(train_corridor(folder, "one seed", **options | {"workers": 1}).path, sliced)


def test_numbers_stop_and_errors(folder: Path):
    seen: list[Any] = []

    def watch(state: Any) -> None:
        seen.append((state.iteration, state.steps.tolist(), state.rows))
        if state.iteration == 3:
            state.stop()

    run = train_corridor(folder, "watched", on_iteration=watch)
    assert [one[:2] for one in seen] == [(1, [16, 16]), (2, [32, 32]), (3, [48, 48])]
    assert [row for _, _, rows in seen for row in rows] == [
        json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()
    ]

    def fail(state: Any) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine") as error:
        upslope.resume(run.path, quiet=True, on_iteration=fail)
    assert "Everything up to step 64 is saved; resume with" in error.value.__notes__[0]
    assert len(metrics_of(run.path)) == 2 * 4
    upslope.resume(run.path, quiet=True)
    whole = train_corridor(folder, "unwatched").path
    assert_same_run(whole, run.path)


def test_what_cannot_be_called_is_refused(folder: Path):
    said: list[str] = []

    def follow(state: Any) -> None:
        for call in (("shorten",), ("_private",), ("level",), ("lengthen", np.zeros(3))):
            with pytest.raises(upslope.UpslopeError) as error:
                state.call(*call)
            said.append(str(error.value))
        state.stop()

    train_corridor(folder, "refused", on_iteration=follow, seeds=1)
    parts = ("no method shorten to call", "takes the name of a method", "no method level", "cannot store")
    assert len(said) == 4 and all(part in words for part, words in zip(parts, said, strict=True))
    compiled: Any = SimpleNamespace(data=None, task=SimpleNamespace(environment=CartPole()))
    with pytest.raises(upslope.UpslopeError, match="is compiled into the training program"):
        CompiledEngine.call(compiled, "lengthen", [1])
    batched: Any = SimpleNamespace(world=SimpleNamespace(name="vector:Some-v0"))
    with pytest.raises(upslope.UpslopeError, match="vector:Some-v0 resets its columns itself"):
        BatchedColumns.call(batched, "lengthen", [1])


def test_calls_that_a_file_asks_for_need_trust(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def once(state: Any) -> None:
        state.call("lengthen", 1, (1,))
        state.stop()

    run = train_corridor(folder, "from elsewhere", on_iteration=once, steps=64).path
    kept = {"environment": Corridor, "quiet": True}
    monkeypatch.setenv(trust.STATE_VARIABLE, str(tmp_path / "another"))
    monkeypatch.setattr(trust, "GRANTED", set())
    with pytest.raises(upslope.UpslopeError, match="asks to call the method of the environment lengthen"):
        upslope.resume(run, **kept)
    upslope.resume(run, trust=True, **kept)


CARTPOLE = {**SMALL, "steps": 40_000, "learning_rate": 3e-3, "rollout_steps": 32, "stop_at_return": 40.0}


@pytest.fixture(scope="module")
def stopped(folder: Path, compiled_for_users: None) -> Path:
    return upslope.train("jax:CartPole-v1", folder=folder, name="stopping", seeds=3, **CARTPOLE).path


@pytest.mark.usefixtures("compiled_for_users")
def test_each_seed_stops_by_its_own_window(stopped: Path, folder: Path):
    """The episodes file gives the expected stop: the first chunk after which the last 100 episodes reach this mean."""
    rows = metrics_of(stopped)
    ends = {row["seed"]: row["step"] for row in rows if "stop/return" in row}
    record = read_record(stopped)
    assert record.stopped == ends and len(set(ends.values())) >= 2
    chunk = 384  # a hundredth of the budget, in whole iterations of 64 steps
    for seed in range(3):
        episodes = record.episodes_of(seed)
        last = int(np.nanmax(record.steps[seed]))
        for step in range(chunk, last + 1, chunk):
            window = episodes["return"][episodes["step"] <= step][-100:]
            assert (len(window) == 100 and window.mean() >= 40) == (step == ends.get(seed)), (seed, step)
        if seed in ends:
            assert last == ends[seed]
    assert record.is_finished
    warnings = compare_records([record]).warnings
    assert any(f"{len(ends)} of 3 seeds stopped at a return of 40" in words for words in warnings)
    alone = upslope.train("jax:CartPole-v1", folder=folder, name="second alone", seed=1, **CARTPOLE).path
    assert [row for row in rows if row["seed"] == 1] == metrics_of(alone)
    with np.load(stopped / "checkpoints" / "last.npz") as all_seeds, np.load(alone / "checkpoints" / "last.npz") as one:
        for name in one.files:
            if name.startswith("state.learner"):
                assert np.array_equal(all_seeds[name][1], one[name][0]), name


def test_seeds_that_stop_resume_bit_for_bit_compiled_and_on_the_host(stopped: Path, folder: Path, capsys):
    ends = sorted(read_record(stopped).stopped.values())
    between = (ends[0] + ends[1]) // 2 // 384
    cases = {"jax:CartPole-v1": (stopped, CARTPOLE, between)}
    host = CARTPOLE | {"steps": 4000, "stop_at_return": 22.0}
    whole = upslope.train("CartPole-v1", folder=folder, name="on the host", seeds=3, **host).path
    ends = sorted(read_record(whole).stopped.values())
    assert len(set(ends)) >= 2
    cases["CartPole-v1"] = (whole, host, (ends[0] + ends[1]) // 2 // 64 + 1)
    for environment, (straight, settings, chunk) in cases.items():
        name = f"{straight.name} again"
        stop_here = before_chunk(chunk, lambda: signal.raise_signal(signal.SIGINT))
        with stop_here, pytest.raises(KeyboardInterrupt):
            upslope.train(environment, folder=folder, name=name, seeds=3, **settings)
        assert 1 <= len(read_record(folder / name).stopped) < len(read_record(straight).stopped)
        upslope.resume(folder / name, quiet=True)
        assert_same_run(straight, folder / name)
    capsys.readouterr()
    upslope.resume(whole)
    assert "or reached a return of 22" in capsys.readouterr().out


refused = partial(upslope.train, "jax:CartPole-v1", quiet=True)


def test_a_return_to_stop_at_needs_episodes(tmp_path: Path):
    with pytest.raises(upslope.UpslopeError, match="--stop-at-return must be a finite number"):
        refused(folder=tmp_path, stop_at_return=float("nan"))
