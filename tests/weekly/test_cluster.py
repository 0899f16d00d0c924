"""Training on a Ray cluster of three nodes matches local training bit for bit, even if nodes and workers fail.

Each node is a separate raylet on this machine that starts its own workers. The tests need the extra `ray`. The faults
come from `benchmarks/cluster_faults.py`, which injects each of them twenty times.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from run_helpers import assert_same_run, metrics_of

import upslope
from upslope.engines import cluster as on_ray
from upslope.engines import nodes

ray = pytest.importorskip("ray")
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import cluster_faults as faults  # noqa: E402

SMALL: dict[str, Any] = {"preset": False, "num_envs": 2, "rollout_steps": 32, "minibatches": 2, "quiet": True}
AUTO = upslope.Placement("auto")


@pytest.fixture(scope="module")
def place(tmp_path_factory: Any):
    """Start a cluster of three nodes, and connect this process to it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    # Sockets need a short path.
    with TemporaryDirectory(dir="/tmp") as folder, faults.place_of(Path(folder), 0) as made:
        yield made


@pytest.fixture(scope="module")
def whole(place: Any) -> tuple[Any, ...]:
    return faults.undisturbed(place)


def both(folder: Path, environment: str, **settings: Any) -> tuple[Path, Path]:
    """Train with these settings here and on the cluster."""
    here = upslope.train(environment, folder=folder, name="here", **SMALL, **settings)
    there = upslope.train(environment, folder=folder, name="there", cluster=AUTO, **SMALL, **settings)
    return here.path, there.path


@pytest.mark.parametrize("environment", ["CartPole-v1", "jax:CartPole-v1"])
def test_seeds_on_three_nodes_are_seeds_here_also_resumed_and_evaluated(environment: str, place: Any, tmp_path: Path):
    here, there = both(tmp_path, environment, seeds=4, steps=2_000)
    assert_same_run(here, there)
    for path, where in ((here, None), (there, AUTO)):
        upslope.evaluate(path, episodes=3, cluster=where)
    assert (here / "evaluation.csv").read_text() == (there / "evaluation.csv").read_text()
    parts: dict[str, Any] = {"seeds": 4, "steps": 2_000, "folder": tmp_path, "name": "parts", **SMALL}
    half = upslope.train(environment, on_iteration=lambda run: run.iteration >= 15 and run.stop(), **parts)
    assert len(metrics_of(half.path)) < len(metrics_of(here))
    upslope.resume(half.path, quiet=True, cluster=AUTO, on_iteration=lambda run: None)
    assert_same_run(here, half.path)


def test_slices_of_one_seed_are_one_process(place: Any, tmp_path: Path):
    here = upslope.train("CartPole-v1", seeds=1, steps=1_024, workers=1, folder=tmp_path, name="here", **SMALL)
    options: dict[str, Any] = {"cluster": AUTO, "workers": 2, "folder": tmp_path, "name": "there"}
    there = upslope.train("CartPole-v1", seeds=1, steps=1_024, **options, **SMALL)
    assert_same_run(here.path, there.path)


def test_a_ladder_on_three_nodes_is_a_ladder_here(place: Any, tmp_path: Path):
    rungs: dict[str, Any] = {"algorithms": ["a2c", "ppo"], "steps": 1_024, "seeds": 2, "evaluation_episodes": 2}
    for name, where in (("here", None), ("there", AUTO)):
        upslope.ladder("jax:CartPole-v1", name=name, cluster=where, folder=tmp_path, preset=False, quiet=True, **rungs)
    for rung in rungs["algorithms"]:
        assert metrics_of(tmp_path / "here" / rung) == metrics_of(tmp_path / "there" / rung)
        one, other = (tmp_path / name / rung / "evaluation.csv" for name in ("here", "there"))
        assert one.read_text() == other.read_text()


@pytest.mark.parametrize("name", list(faults.FAULTS))
def test_a_run_that_is_struck_ends_as_without_faults(name: str, place: Any, whole: tuple[Any, ...]):
    if "full disk" in name and not faults.can_mount():
        pytest.skip("needs small file systems, which only root can mount")
    tally = faults.strike_often(name, 2, place, whole)
    assert tally["faults"] == 2
    assert tally["runs with unchanged results"] == tally["runs"] and tally["lost rows"] == 0
    if "hangs" in name:
        assert any("has not answered for" in words and "process" in words for words in tally["said"])
    if "under the run" in name:
        assert any("No space left" in words for words in tally["said"])


def test_a_command_that_is_killed_and_calls_that_are_lost(place: Any, whole: tuple[Any, ...]):
    for strike in (faults.killed_often, faults.unavailable_often):
        tally = strike(2, place, whole)
        assert tally["faults"] >= 2
        assert tally["runs with unchanged results"] == tally["runs"] and tally["lost rows"] == 0


def test_a_node_with_other_versions_is_refused_by_name(place: Any, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(nodes, "version", lambda name: "1.0" if name == "numpy" else version(name))
    monkeypatch.setattr(on_ray, "connected", {})
    with pytest.raises(upslope.UpslopeError, match=r"Node .* has different versions: numpy .* \(here 1\.0\)"):
        upslope.train("CartPole-v1", steps=64, folder=tmp_path, cluster=AUTO, **SMALL)


def sweeps(folder: Path, environment: str, **more: Any) -> tuple[upslope.Sweep, upslope.Sweep]:
    """Run the same sweep here and on the cluster."""
    space = {"learning_rate": {"choices": [0.001, 0.01, 0.1]}, "num_envs": 2, "rollout_steps": 32, "minibatches": 2}
    options: dict[str, Any] = {"space": space, "trials": 3, "seeds": 1, "steps": 1_024, "sampler": "bruteforce"}
    options |= {"pruner": "none", "fresh_seeds": 0, "preset": False, "quiet": True, "folder": folder} | more
    here = upslope.sweep(environment, "ppo", name="here", **options)
    return here, upslope.sweep(environment, "ppo", name="there", cluster=AUTO, **options)


@pytest.mark.parametrize("environment", ["CartPole-v1", "jax:CartPole-v1"])
def test_a_sweep_on_three_nodes_is_a_sweep_here(environment: str, place: Any, tmp_path: Path):
    here, there = sweeps(tmp_path, environment)
    assert {str(t.drawn): t.score for t in here.trials} == {str(t.drawn): t.score for t in there.trials}
    assert all(t.state == "complete" for t in there.trials)
    is_run = (tmp_path / "there" / "trials" / "0001" / "metrics.jsonl").is_file()
    assert is_run == (environment == "CartPole-v1")
