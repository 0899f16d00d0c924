"""Training on a Ray cluster of three nodes is training here, bit for bit, also when nodes come and go.

Each node is a raylet of its own on this machine, which starts workers of its own (extra `ray`).
"""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from run_helpers import assert_same_run

import upslope
from upslope.engines import cluster as on_ray
from upslope.engines.workers import WorkersEngine

ray = pytest.importorskip("ray")
from ray.cluster_utils import Cluster  # noqa: E402

SMALL: dict[str, Any] = {"preset": False, "num_envs": 2, "rollout_steps": 32, "minibatches": 2, "quiet": True}
AUTO = upslope.Placement("auto")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: Any):
    """A cluster of three nodes, to which this process is connected."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(2):
        made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def both(folder: Path, environment: str, **settings: Any) -> tuple[Path, Path]:
    """The run of these settings here, and on the cluster."""
    here = upslope.train(environment, folder=folder, name="here", **SMALL, **settings)
    there = upslope.train(environment, folder=folder, name="there", cluster=AUTO, **SMALL, **settings)
    return here.path, there.path


@pytest.mark.parametrize("environment", ["CartPole-v1", "jax:CartPole-v1"])
def test_seeds_on_three_nodes_are_seeds_here(environment: str, nodes: Any, tmp_path: Path):
    assert_same_run(*both(tmp_path, environment, seeds=4, steps=2_000))


def test_slices_of_one_seed_are_one_process(nodes: Any, tmp_path: Path):
    here = upslope.train("CartPole-v1", seeds=1, steps=1_024, workers=1, folder=tmp_path, name="here", **SMALL)
    options: dict[str, Any] = {"cluster": AUTO, "workers": 2, "folder": tmp_path, "name": "there"}
    there = upslope.train("CartPole-v1", seeds=1, steps=1_024, **options, **SMALL)
    assert_same_run(here.path, there.path)


def test_a_lost_node_and_a_new_one_change_no_number(nodes: Any, tmp_path: Path, monkeypatch: Any, capsys: Any):
    settings: dict[str, Any] = {"seeds": 3, "steps": 3_000, **SMALL}
    here = upslope.train("CartPole-v1", folder=tmp_path, name="here", **settings)
    advance, chunks = WorkersEngine.advance, iter(range(10**6))

    def losing(self: Any, *arguments: Any) -> Any:
        if next(chunks) == 20:
            nodes.remove_node(sorted(nodes.worker_nodes, key=str)[0], allow_graceful=False)
            nodes.add_node(num_cpus=1)
        return advance(self, *arguments)

    monkeypatch.setattr(WorkersEngine, "advance", losing)
    there = upslope.train("CartPole-v1", folder=tmp_path, name="there", cluster=AUTO, **settings)
    assert_same_run(here.path, there.path)
    assert "was lost" in capsys.readouterr().err


def test_a_worker_killed_within_an_iteration(nodes: Any, tmp_path: Path, monkeypatch: Any):
    settings: dict[str, Any] = {"seeds": 2, "steps": 3_000, **SMALL}
    here = upslope.train("CartPole-v1", folder=tmp_path, name="here", **settings)
    places: list[str] = []
    receive = on_ray.ActorChannel.receive

    def noting(self: Any, seconds: float) -> Any:
        message = receive(self, seconds)
        if self.node not in places:
            places.append(self.node)
        return message

    def kill() -> None:
        until = time.monotonic() + 60
        while not (tmp_path / "there" / "metrics.jsonl").exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.3)
        os.kill(int(places[0].rpartition(" ")[2]), signal.SIGKILL)

    monkeypatch.setattr(on_ray.ActorChannel, "receive", noting)
    threading.Thread(target=kill, daemon=True).start()
    there = upslope.train("CartPole-v1", folder=tmp_path, name="there", cluster=AUTO, **settings)
    assert_same_run(here.path, there.path)


def test_a_node_with_other_versions_is_refused_by_name(nodes: Any, tmp_path: Path, monkeypatch: Any):
    facts = on_ray.facts([])
    monkeypatch.setattr(on_ray, "facts", lambda modules: facts | {"versions": facts["versions"] | {"numpy": "1.0"}})
    with pytest.raises(upslope.UpslopeError, match=r"Node .* has other versions: numpy .* \(here 1\.0\)"):
        upslope.train("CartPole-v1", steps=64, folder=tmp_path, cluster=AUTO, **SMALL)


def test_a_sweep_on_three_nodes_is_a_sweep_here(nodes: Any, tmp_path: Path):
    space = {"learning_rate": {"choices": [0.001, 0.01]}, **{k: v for k, v in SMALL.items() if k != "quiet"}}
    del space["preset"]
    options: dict[str, Any] = {"space": space, "trials": 2, "seeds": 1, "steps": 1_024, "sampler": "bruteforce"}
    options |= {"pruner": "none", "fresh_seeds": 0, "preset": False, "quiet": True, "folder": tmp_path}
    here = upslope.sweep("CartPole-v1", "ppo", name="here", workers=1, **options)
    there = upslope.sweep("CartPole-v1", "ppo", name="there", cluster=AUTO, **options)
    assert {str(t.drawn): t.score for t in here.trials} == {str(t.drawn): t.score for t in there.trials}
    assert (tmp_path / "there" / "trials" / "0001" / "metrics.jsonl").is_file()
