"""Runs with a bonus can be stopped and resumed without changes, their seeds are independent, and every command reads
them."""

import signal
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import train_case
from run_helpers import SEGMENTS, assert_same_run, before_chunk, metrics_of, one_seed

import upslope
from upslope.config.prepare import prepare
from upslope.config.task import BONUS_TYPES
from upslope.config.trust import requested
from upslope.engines.host import HostEngine, columns_of
from upslope.errors import UpslopeError
from upslope.report.page import write_report
from upslope.runs.directory import RunDirectory

pytestmark = pytest.mark.usefixtures("compiled_for_users")
COUNTS: dict[str, Any] = {"bonus": "count", "bonus_kwargs": {"scope": "both"}, "env_kwargs": {"size": 4}}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "compiled": ("jax:DeepSea-v0", "ppo", {"steps": 3200, **SEGMENTS, **COUNTS}),
    "host": ("CartPole-v1", "ppo", {"steps": 800, **SEGMENTS, "bonus": "noveld", "bonus_kwargs": {"cells": 512}}),
}
train = partial(train_case, CASES, seeds=2, hidden_sizes=(8,), quiet=True)


@pytest.fixture(scope="module")
def straight(folder: Path) -> Any:
    """Return a function that trains the uninterrupted run of a case, once."""
    return cache(lambda case: train(case, folder, f"{case} straight"))


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_resumed_is_uninterrupted(case: str, straight: Any, folder: Path):
    stop_here = before_chunk(12, lambda: signal.raise_signal(signal.SIGINT))
    with stop_here, pytest.raises(KeyboardInterrupt, match="upslope resume"):
        train(case, folder, f"{case} stopped")
    upslope.resume(folder / f"{case} stopped", quiet=True)
    assert_same_run(straight(case), folder / f"{case} stopped")


def test_a_seed_is_as_if_alone(straight: Any, folder: Path):
    alone = train("compiled", folder, "alone", seeds=1, seed=1)
    mine = [row for row in metrics_of(straight("compiled")) if row["seed"] == 1]
    assert mine == metrics_of(alone)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="an accelerator runs all compiled seeds together")
@pytest.mark.parametrize(
    "bonus", ["none", *(pytest.param(name, marks=() if name == "icm" else pytest.mark.weekly) for name in BONUS_TYPES)]
)
def test_a_seed_has_the_same_bits_alone_and_among_others(bonus: str, folder: Path):
    # Dividing by 30 rows is not exact, so a product with 1/30 would have other bits.
    settings: dict[str, Any] = {"num_envs": 3, "rollout_steps": 10, "epochs": 1, "minibatches": 1, "steps": 240}
    settings |= {"bonus": bonus, "normalize_observations": True, "hidden_sizes": (8,), "preset": False}
    settings |= {"quiet": True, "folder": folder}
    among = upslope.train("jax:CartPole-v1", name=f"{bonus} among", seeds=2, **settings).path
    alone = upslope.train("jax:CartPole-v1", name=f"{bonus} alone", seed=1, **settings).path
    assert [row for row in metrics_of(among) if row["seed"] == 1] == metrics_of(alone)
    last = "checkpoints/last.npz"
    assert one_seed(alone / last, 0, 1) == one_seed(among / last, 1, 2)


@pytest.mark.parametrize("environment", ["FrozenLake-v1", "vector:FrozenLake-v1"])
def test_only_the_first_states_of_episodes_are_visits_beside_the_steps(environment: str):
    """On the host, a rollout of 16 steps may cut an episode in two, but its second part does not begin a new
    episode."""
    settings = {"steps": 320, "num_envs": 3, "rollout_steps": 16, "minibatches": 1, "hidden_sizes": (8,), "seeds": 1}
    _, task = prepare(environment, settings=settings, bonus="count", preset=False)
    engine = HostEngine(task, [0], columns_of(task, [0]))
    try:
        state, ended = engine.start(), 0
        while int(state.steps[0]) < 320:
            state, chunk = engine.advance(state)
            ended += len(chunk.episodes[0])
    finally:
        engine.close()
    begun = 3 + ended - int(np.sum(state.memory.fresh))  # episodes that start after the last step do not count yet
    assert ended > 5 and int(np.sum(state.stream.bonus.visits)) == int(state.steps[0]) + begun


def test_rows_tell_what_was_paid_and_what_was_visited(straight: Any):
    rows = [row for row in metrics_of(straight("compiled")) if row["seed"] == 0]
    visited = [row["bonus/states_visited"] for row in rows]
    # The states are the 10 cells on or below the diagonal, and the terminal state.
    assert visited == sorted(visited) and 8 <= visited[-1] <= 11
    paid = np.asarray([row["bonus/mean"] for row in rows])
    assert paid[0] > 0.2 > 0.1 > paid[-1] > 0 and all(0 < row["bonus/share"] <= 1 for row in rows)
    host = metrics_of(straight("host"))
    assert all(row["bonus/scale"] > 0 and np.isfinite(row["bonus/explained_variance"]) for row in host)


def test_report_doctor_and_evaluation_read_such_a_run(straight: Any, folder: Path):
    run = straight("compiled")
    page = write_report(run, folder / "page.html").read_text()
    assert "States visited" in page and "Share of the bonus in Ψ" in page
    assert "credit_inconsistent" not in {finding.cause for finding in upslope.diagnose(run).findings}
    assert np.isfinite(next(iter(upslope.evaluate(run, episodes=2).values())).returns).all()


@pytest.mark.weekly
def test_a_next_stage_begins_its_bonus_anew(straight: Any, folder: Path):
    run = straight("compiled")
    next_stage = upslope.train(start_from=run, folder=folder, name="next", steps=160, quiet=True)
    assert next_stage.config.bonus == "count" and next_stage.config.bonus_kwargs == {"scope": "both"}
    lineage = RunDirectory(next_stage.path).read()["lineage"]
    assert "bonus" in lineage["begun_anew"] and "networks" in lineage["taken_over"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bonus_coefficient": 2.0}, "--bonus-coefficient applies only to runs with --bonus"),
        ({"bonus": "curiosity"}, "count, icm, none"),
        ({"bonus": "count", "bonus_kwargs": {"size": 3}}, "scope, cells, bits"),
        ({"bonus": "upslope:GAE"}, "not an upslope.Bonus"),
        ({"bonus": "count", "bonus_gamma": 1.5}, "--bonus-gamma must be in"),
        ({"bonus": "count", "bonus_coefficient": -1.0}, "--bonus-coefficient must be 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], words: str, tmp_path: Path):
    with pytest.raises(UpslopeError, match=words):
        upslope.train("jax:DeepSea-v0", folder=tmp_path, steps=100, quiet=True, **settings)


def test_an_object_is_recorded_by_its_name_and_fields_and_a_file_may_not_name_one():
    config, task = prepare("jax:DeepSea-v0", settings={}, bonus=upslope.NovelD(alpha=0.3))
    assert config.bonus == "noveld" and config.bonus_kwargs["alpha"] == 0.3 and task.intrinsic is not None
    assert "alpha=0.3" in task.described()["bonus"]
    named = replace(config, bonus="their_module:Theirs", bonus_kwargs={"size": 3})
    (request,) = requested(named)
    assert (request.role, request.name, request.arguments) == ("bonus", "their_module:Theirs", {"size": 3})


def test_recorded_data_and_a_bonus_exclude_each_other(tmp_path: Path):
    with pytest.raises(UpslopeError, match="does not act"):
        upslope.train("jax:DeepSea-v0", "clone", folder=tmp_path, data="any.npz", bonus="count", quiet=True)


KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a dictionary": ("jax:probe/dict", "ppo", {"bonus": "rnd"}),
    "a memory": ("jax:probe/memory", "ppo", {"bonus": "icm", "memory": "gru", "memory_size": 8}),
    "an image": ("jax:probe/image", "ppo", {"bonus": "rnd"}),
    "a mask": ("jax:probe/mask", "ppo", {"bonus": "icm"}),
    "actions of two kinds": ("jax:probe/hybrid", "ppo", {"bonus": "icm"}),
    "a squashed Box": ("jax:Pendulum-v1", "ppo", {"bonus": "icm", "head": "squashed", "normalize_observations": True}),
    "whole episodes": ("jax:probe/delay", "reinforce_baseline", {"bonus": "count", "bonus_kwargs": {"scope": "both"}}),
    "no critic": ("jax:DeepSea-v0", "reinforce", {"bonus": "rnd", "env_kwargs": {"size": 4}}),
    "a shared trunk": ("jax:DeepSea-v0", "ppo", {"bonus": "noveld", "shared_trunk": True}),
    "whole episodes on the host": ("CartPole-v1", "reinforce_baseline", {"bonus": "noveld", "max_episode_steps": 30}),
    "a batched environment": ("vector:CartPole-v1", "ppo", {"bonus": "count", "bonus_kwargs": {"scope": "both"}}),
}


@pytest.mark.weekly
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_run_takes_a_bonus(kind: str, folder: Path):
    environment, rung, settings = KINDS[kind]
    sizes = {"num_envs": 2, "preset": False} if "reinforce" in rung else SEGMENTS
    options = {"steps": 160, "seeds": 2, "hidden_sizes": (8,), "folder": folder, "name": kind, "quiet": True}
    rows = metrics_of(upslope.train(environment, rung, **sizes, **settings, **options).path)
    assert all(np.isfinite([row["bonus/mean"], row["bonus/share"], row["policy/loss"]]).all() for row in rows)
    assert rows[0]["bonus/mean"] > 0
