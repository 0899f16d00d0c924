"""A diverged agent yields no results: its episodes have no return, and it cannot be recorded, loaded or judged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import upslope
from upslope.analysis.episode_credit import credit_of
from upslope.errors import UpslopeError

SMALL: dict[str, Any] = {"num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 1, "hidden_sizes": (8,)}
SMALL |= {"quiet": True, "preset": False, "steps": 320, "seeds": 2, "max_episode_steps": 20}


def change_weights(path: Path, change: Callable[[np.ndarray], None]) -> None:
    """Change the weights of seed 1 in a checkpoint."""
    with np.load(path) as file:
        arrays = dict(file)
    for name, x in arrays.items():
        if ".model." in name and x.dtype == np.float32:
            change(x[1])
    np.savez(path, **arrays)


@pytest.fixture(scope="module", params=["jax:CartPole-v1", "CartPole-v1"])
def diverged(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run, and make its second seed diverge."""
    path = upslope.train(request.param, folder=tmp_path_factory.mktemp("runs"), name="run", **SMALL).path
    upslope.record(path, episodes=2)
    for name in ("last", "best"):
        change_weights(path / "checkpoints" / f"{name}.npz", lambda x: x.fill(np.nan))
    return path


def test_its_episodes_have_no_return(diverged: Path):
    for found in upslope.evaluate(diverged, episodes=2).values():
        assert np.isfinite(found.returns).all(axis=1).tolist() == [True, False]
    rows = (diverged / "evaluation.csv").read_text().splitlines()[1:]
    assert all(("nan" in row) is row.startswith("1,") for row in rows)


USES: dict[str, Callable[[Path], Any]] = {
    "load": lambda run: upslope.load(run, seed=1),
    "record": lambda run: upslope.record(run, seed=1, episodes=1, output=run / "other.npz"),
    "judge": lambda run: upslope.judge(run, data=run / "dataset.npz", seed=1),
    "credit": lambda run: credit_of(run, seed=1),
    "export": lambda run: upslope.export(run, "numpy", run / "policy.py", seed=1),
}


@pytest.mark.parametrize("use", USES)
def test_it_is_refused(use: str, diverged: Path):
    with pytest.raises(UpslopeError, match="are not finite, so it cannot act: the agent of seed 1"):
        USES[use](diverged)


def test_numbers_that_a_compiled_environment_does_not_report_are_refused(tmp_path: Path):
    path = upslope.train("jax:CartPole-v1", folder=tmp_path, name="run", **SMALL).path
    described = json.loads((path / "config.json").read_text())
    described["config"]["log_info"] = ["is_success"]
    (path / "config.json").write_text(json.dumps(described))
    with pytest.raises(UpslopeError, match="--log-info is_success is not reported"):
        upslope.evaluate(path, episodes=1)
