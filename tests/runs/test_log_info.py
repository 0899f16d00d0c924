"""Numbers from `info` at the end of an episode appear in the files, the comparison and the report."""

import signal
from pathlib import Path
from typing import Any

import gymnasium
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from run_helpers import SEGMENTS, assert_same_run, before_chunk, metrics_of

import upslope
from upslope.analysis.records import read_record
from upslope.engines.infos import found_in, found_in_column, numbers_in
from upslope.environments.classic.cartpole import CartPole
from upslope.report.page import write_report

KEYS = ("is_success", "reward.distance", "parts.1", "sometimes")
SMALL: dict[str, Any] = {"hidden_sizes": (8,), "quiet": True, **SEGMENTS}


class Dice(gymnasium.Env):
    """Episodes have 3 to 5 steps, depending on the reset seed. At the end, info contains numbers that depend on the
    length."""

    observation_space, action_space = Box(0, 10, (1,)), Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place, self.last = 0, int(self.np_random.integers(3, 6))
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> Any:
        self.place += 1
        info: dict[str, Any] = {"is_success": False, "reward": {"distance": -1.0}, "parts": [0, 0], "name": "dice"}
        is_over = self.place == self.last
        if is_over:
            info |= {"is_success": np.bool_(self.last == 4), "reward": {"distance": self.last / 2}}
            info |= {"parts": np.array([0, 2 * self.last])} | ({"sometimes": 1} if self.last == 5 else {})
        return np.full(1, self.place, np.float32), 1.0, is_over, False, info


def expected(length: int) -> tuple[float, ...]:
    return float(length == 4), length / 2, 2.0 * length, 1.0 if length == 5 else np.nan


class Balanced(CartPole):
    """A compiled environment that reports numbers through `episode_info`."""

    def episode_info(self, state: Any) -> dict[str, Any]:
        return {"place": state[0] if isinstance(state, tuple) else jnp.ravel(state)[0], "one": jnp.int32(1)}


def train(folder: Path, name: str, environment: str = "test_log_info:Dice", **options: Any) -> Path:
    settings = {**SMALL, "steps": 320, "seeds": 2, "log_info": KEYS, **options}
    return upslope.train(environment, folder=folder, name=name, **settings).path


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    path = train(folder, "dice")
    upslope.evaluate(path, episodes=12)
    return path


def assert_columns(rows: np.ndarray) -> None:
    """Assert that the numbers of each episode are those that its length implies."""
    assert len(rows) > 10 and set(rows["length"].tolist()) == {3, 4, 5}
    for row in rows:
        found = tuple(row[f"info/{key}"] for key in KEYS)
        assert np.array_equal(found, expected(row["length"]), equal_nan=True)


def test_episodes_metrics_and_evaluation(run: Path, capsys):
    record = read_record(run)
    assert_columns(record.episodes)
    assert_columns(record.evaluations)
    rows = metrics_of(run)
    for row in rows:
        before = row["step"] - 16
        mine = record.episodes_of(row["seed"])
        mine = mine[(mine["step"] > before) & (mine["step"] <= row["step"])]
        numbers = mine["info/is_success"].tolist()
        assert row["info/is_success"] == (pytest.approx(np.mean(numbers)) if numbers else None)
        known = mine["info/sometimes"][np.isfinite(mine["info/sometimes"])]
        assert row["info/sometimes"] == (1.0 if len(known) else None)


def test_a_key_that_is_missing_is_told_once(folder: Path, capsys):
    path = train(folder, "missing", log_info=("nothing", "name"), steps=64, quiet=False)
    said = " ".join("".join(capsys.readouterr()).split())
    assert said.count("no such key for --log-info nothing") == said.count("dice, which is not a number") == 1
    assert "It has is_success, reward.distance, parts.0, parts.1" in said
    assert np.isnan(read_record(path).episodes["info/nothing"]).all()


@pytest.mark.weekly
def test_workers_and_slices(run: Path, folder: Path):
    assert_same_run(run, train(folder, "workers", workers=2))
    assert_columns(read_record(train(folder, "slices", workers=2, seeds=1, steps=160)).episodes)


def test_it_resumes(run: Path, folder: Path):
    with before_chunk(9, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        train(folder, "stopped")
    upslope.resume(folder / "stopped", quiet=True)
    assert_same_run(run, folder / "stopped")


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_vector_environments(folder: Path, mode: str):
    path = train(folder, mode, f"vector:test_log_info:dice_{mode.lower()}", seeds=1, steps=160)
    assert_columns(read_record(path).episodes)


def dice(mode: gymnasium.vector.AutoresetMode, num_envs: int) -> gymnasium.vector.VectorEnv:
    return gymnasium.vector.SyncVectorEnv([Dice] * num_envs, autoreset_mode=mode)


def dice_nextstep(num_envs: int) -> gymnasium.vector.VectorEnv:
    return dice(gymnasium.vector.AutoresetMode.NEXT_STEP, num_envs)


def dice_samestep(num_envs: int) -> gymnasium.vector.VectorEnv:
    return dice(gymnasium.vector.AutoresetMode.SAME_STEP, num_envs)


def test_compiled_environments_have_a_method_for_it(folder: Path):
    settings = {"seeds": 2, "steps": 1600, "log_info": ("place", "one")}
    path = train(folder, "compiled", "jax:test_log_info:Balanced", **settings)
    upslope.evaluate(path, episodes=3)
    record = read_record(path)
    for rows in (record.episodes, record.evaluations):
        assert (rows["info/one"] == 1).all() and len(set(rows["info/place"].tolist())) > 3
        assert (np.abs(rows["info/place"]) < 3).all()  # the cart's final position is within its bounds
    with pytest.raises(upslope.UpslopeError, match=r"--log-info other is not reported .* It has one, place"):
        train(folder, "refused", "jax:test_log_info:Balanced", log_info=("other",))
    with pytest.raises(upslope.UpslopeError, match=r"It has no such numbers: .*episode_info"):
        train(folder, "refused", "jax:CartPole-v1", log_info=("other",))


def test_it_is_compared_and_reported(run: Path, folder: Path, tmp_path: Path):
    record = read_record(run)
    found = upslope.compare([run], metric="is_success", score="training")
    share = [np.mean(record.episodes_of(seed)["info/is_success"][-100:]) for seed in (0, 1)]
    assert found.groups[0].scores.tolist() == pytest.approx(share) and "mean is_success of the last" in found.score
    by_evaluation = upslope.compare([run], metric="sometimes").groups[0].scores
    assert by_evaluation.tolist() == [1.0, 1.0]  # averaged over the episodes that have the key
    lengths = upslope.compare([run], metric="length", score="training").groups[0].scores
    assert ((lengths > 3) & (lengths < 5)).all()
    with pytest.raises(upslope.UpslopeError, match="has no colour for its episodes, only return, length, is_success"):
        upslope.compare([run], metric="colour")
    with pytest.raises(upslope.UpslopeError, match="applies to returns"):
        upslope.compare([run], metric="is_success", normalize="threshold")
    page = write_report([run], tmp_path / "report.html", metric="is_success").read_text()
    assert page.count("Mean of `reward.distance` of info") or "reward.distance" in page


def test_check_finds_and_proposes_it():
    found = upslope.check("test_log_info:Dice")
    assert "--log-info is_success" in found.command
    words = {choice.what: choice.why for choice in found.choices}
    assert "parts.0 parts.1 reward.distance" in next(what for what in words if "parts" in what)


@pytest.mark.parametrize("keys", [("a,b",), ("a", "a"), ("",), ("é",), ('"',)])
def test_keys_that_cannot_head_a_column_are_refused(keys: tuple[str, ...], tmp_path: Path):
    with pytest.raises(upslope.UpslopeError, match="--log-info must be at most 64 different keys"):
        upslope.train("CartPole-v1", folder=tmp_path, log_info=keys)


def test_keys():
    info = {"a": {"b": 1, "c.d": 2}, "a.b.e": 3, "list": [4, {"x": 5}], "s": "text", "_m": [1], "big": np.zeros(99)}
    found = {key: found_in(info, key) for key in ("a.b", "a.c.d", "a.b.e", "list.0", "list.1.x")}
    assert list(found.values()) == [1, 2, 3, 4, 5]
    assert numbers_in(info) == {"a.b": 1, "a.c.d": 2, "a.b.e": 3, "list.0": 4}
    batch = {"x": np.array([1, 2]), "_x": np.array([True, False]), "n": {"y": np.array([3, 4])}}
    assert found_in_column(batch, "x", 0) == 1 and found_in_column(batch, "n.y", 1) == 4
    assert not isinstance(found_in_column(batch, "x", 1), int | np.integer)
