"""Runs in format 1 can still be read, but training cannot continue from them."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from helpers import same
from run_helpers import SEGMENTS

import upslope
from upslope.core.storage import load_arrays, save_arrays
from upslope.errors import UpslopeError
from upslope.report.page import write_report
from upslope.runs.evaluation import MODES
from upslope.runs.policy import Which

KINDS = {"BoxEncoder": "BoxCoding", "DiscreteEncoder": "DiscreteCoding"}
NAMES = {".model.": ".", ".normaliser.": ".observation_statistics."}
"""The names that format 1 used for the kinds of observation and for an agent's arrays."""
NEWER = {
    *("optimiser", "weight_decay", "learning_rate_schedule", "epsilon_schedule", "entropy_schedule"),
    *("model", "model_kwargs", "sequence_length", "value_coefficient"),
}
"""Settings that format 1 did not have."""
BOTH = {"normalize_observations": True, "normalize_rewards": True}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "box": ("jax:CartPole-v1", {}),
    "box normalised": ("jax:Pendulum-v1", {"max_episode_steps": 20} | BOTH),
    "box of two axes normalised": ("user_environments:TwoAxes", BOTH),
    "one-hot normalised": ("jax:GridWorld-v0", BOTH),
}


@pytest.fixture(scope="module", params=CASES)
def new_and_old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train a run, and convert a copy of it to format 1."""
    environment, settings = CASES[request.param]
    settings = SEGMENTS | {"steps": 320, "seeds": 2, "hidden_sizes": (8,), "quiet": True} | settings
    new = upslope.train(environment, "ppo", folder=tmp_path_factory.mktemp("runs"), name="new", **settings).path
    return new, as_format_1(new, new.with_name("old"))


def as_format_1(run: Path, copy: Path) -> Path:
    """Convert a copy of a run to format 1."""
    shutil.copytree(run, copy)
    path = copy / "config.json"
    description = json.loads(path.read_text())
    config, seen = description["config"], description["spaces"]["observation"]
    is_linear = config["learning_rate_schedule"] == "linear"
    description["config"] = {name: x for name, x in config.items() if name not in NEWER}
    description["config"]["learning_rate_decay"] = is_linear
    features = seen["n"] if "n" in seen else math.prod(seen["shape"])
    seen["kind"] = KINDS[seen["kind"]]
    path.write_text(json.dumps(description))
    for checkpoint in (copy / "checkpoints").iterdir():
        arrays, meta = load_arrays(checkpoint, "checkpoint")
        assert meta["format"] == 2
        for newer in ("spaces", "digests", *(("settings",) if checkpoint.stem == "best" else ())):
            meta.pop(newer, None)
        save_arrays(checkpoint, old_arrays(arrays, features), meta | {"format": 1})
    return copy


def old_arrays(arrays: dict[str, np.ndarray], features: int) -> dict[str, np.ndarray]:
    """Convert arrays to format 1, in which statistics were always present and described flat observations."""
    mean = next(name for name in arrays if name.endswith(".return_statistics.mean"))
    agent, seeds = mean.removesuffix(".return_statistics.mean"), len(arrays[mean])
    found = {
        f"{agent}.observation_statistics.mean": np.zeros((seeds, features), np.float32),
        f"{agent}.observation_statistics.variance": np.ones((seeds, features), np.float32),
        f"{agent}.observation_statistics.num_samples": np.zeros(seeds, np.float32),
    }
    for name, x in arrays.items():
        for new, old in NAMES.items():
            if name.startswith(agent + new):
                name = name.replace(new, old, 1)
        found[name] = x.reshape(found[name].shape) if name in found else x
    return found


@pytest.mark.parametrize("checkpoint", ["best", "last"])
def test_an_old_agent_is_loaded(new_and_old: tuple[Path, Path], checkpoint: Which) -> None:
    for seed in (0, 1):
        new, old = (upslope.load(run, seed=seed, checkpoint=checkpoint) for run in new_and_old)
        assert same(new.agent, old.agent)


def test_an_old_run_is_evaluated_and_reported(new_and_old: tuple[Path, Path], tmp_path: Path) -> None:
    new, old = (upslope.evaluate(run, episodes=2) for run in new_and_old)
    assert all(np.array_equal(new[mode].returns, old[mode].returns) for mode in MODES)
    assert write_report([new_and_old[1]], tmp_path / "report.html").exists()


def test_training_does_not_go_on_from_an_old_run(new_and_old: tuple[Path, Path]) -> None:
    run = new_and_old[1]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UpslopeError, match=r"last\.npz was written in format 1 .* requires format") as refusal:
        upslope.resume(run, quiet=True)
    assert "\n" not in str(refusal.value)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


class Boards(gymnasium.Env):
    """Returns boards of floats, which versions without convolutions read with perceptrons."""

    observation_space, action_space = spaces.Box(0, 1, (6, 6, 2), np.float32), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.np_random.random((6, 6, 2), np.float32), {}

    def step(self, action: Any) -> Any:
        return self.np_random.random((6, 6, 2), np.float32), 1.0, self.np_random.random() < 0.3, False, {}


def test_images_of_floats_are_read_by_perceptrons_where_nothing_else_is_said(tmp_path: Path):
    settings: dict[str, Any] = {"steps": 32, "hidden_sizes": (8,), "quiet": True, "encoder": ("perceptron",)}
    run = upslope.train(Boards, folder=tmp_path, name="boards", **(SEGMENTS | settings))
    before, observation = run.load(), Boards().reset(seed=1)[0]
    path = run.path / "config.json"
    description = json.loads(path.read_text())
    newer = {"encoder", "memory", "memory_size", "shared_trunk", "policy_reads", "critic_reads"}
    description["config"] = {name: x for name, x in description["config"].items() if name not in newer}
    path.write_text(json.dumps(description))
    after = upslope.load(run.path)
    assert after.with_log_prob(observation, True) == before.with_log_prob(observation, True)
    assert upslope.evaluate(run.path, episodes=2, environment=Boards)["stochastic"].returns.shape == (1, 2)
