"""A separate thread dispatches chunks, so that slow dispatching does not delay the creation of metric rows."""

import time
from dataclasses import replace
from itertools import pairwise

import jax
import numpy as np
import pytest

from upslope.config.prepare import prepare
from upslope.engines import compiled
from upslope.engines.compiled import CompiledEngine, Program, default_length
from upslope.environments.registry import make

SETTINGS = {"steps": 640, "num_envs": 4, "rollout_steps": 16, "minibatches": 2, "epochs": 1, "hidden_sizes": (8,)}
SECONDS = 0.2


@pytest.fixture
def task():
    return prepare(make("jax:CartPole-v1"), preset=False, settings=SETTINGS)[1]


@pytest.fixture
def engine(task):
    engine = CompiledEngine(replace(task, steps=1280), [0, 1, 2], 2)
    yield engine
    engine.close()


def test_rows_are_made_while_the_next_chunk_is_dispatched(engine, monkeypatch):
    # This simulates an accelerator, on which a call returns only after it has launched all kernels.
    state = engine.start()
    for _ in range(2):  # this also compiles the programs
        state, _ = engine.advance(state, lambda: True)
    dispatched, made = [], []
    dispatch, rows = Program.__call__, engine.rows

    def slow_dispatch(program, state):
        started = time.perf_counter()
        answer = dispatch(program, state)
        time.sleep(SECONDS)
        dispatched.append((started, time.perf_counter()))
        return answer

    def slow_rows(*arguments):
        started = time.perf_counter()
        time.sleep(SECONDS)
        made.append((started, time.perf_counter()))
        return rows(*arguments)

    monkeypatch.setattr(Program, "__call__", slow_dispatch)
    monkeypatch.setattr(engine, "rows", slow_rows)
    for _ in range(3):
        state, _ = engine.advance(state, lambda: True)
    at_once = [min(end, other_end) - max(start, other) for start, end in made for other, other_end in dispatched]
    # The last dispatch is still running.
    assert sum(seconds for seconds in at_once if seconds > 0) > 0.9 * SECONDS * (len(made) - 1)
    assert all(end <= start for (_, end), (start, _) in pairwise(sorted(dispatched)))  # no two dispatches overlap


def test_what_fails_in_the_background_is_raised_where_its_result_is_asked_for(engine, monkeypatch):
    state, _ = engine.advance(engine.start(), lambda: True)
    state, _ = engine.advance(state)
    expected, _ = engine.advance(state)
    dispatch = Program.__call__

    def failing(program, state):
        raise MemoryError("the device is full")

    monkeypatch.setattr(Program, "__call__", failing)
    with pytest.raises(MemoryError, match="device is full"):
        engine.advance(state)
    monkeypatch.setattr(Program, "__call__", dispatch)
    again, _ = engine.advance(state)
    for x, y in zip(jax.tree.leaves(again.learner), jax.tree.leaves(expected.learner), strict=True):
        assert np.array_equal(x, y)


def test_a_chunk_that_was_begun_for_another_state_is_not_used(engine):
    first = engine.start()
    after, _ = engine.advance(first, lambda: True)
    _, again = engine.advance(first)
    assert again.before[:, 0].tolist() == [0, 0, 0]
    assert engine.advance(after)[1].before[:, 0].tolist() == [128, 128, 128]


def test_on_an_accelerator_chunks_are_longer(task, monkeypatch):
    # The budgets of the three tasks are 10, 1,000 and 100 iterations.
    assert default_length(task) == 1
    monkeypatch.setattr(compiled, "has_accelerator", lambda: True)
    assert default_length(task) == 1
    longer = prepare(make("jax:CartPole-v1"), preset=False, settings=SETTINGS | {"steps": 64_000})[1]
    assert default_length(longer) == 10
    middle = prepare(make("jax:CartPole-v1"), preset=False, settings=SETTINGS | {"steps": 6_400})[1]
    assert default_length(middle) == 8
