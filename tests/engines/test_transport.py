"""Training does not depend on the kind of channel to the workers: a cluster of local processes gives the same run."""

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import pytest
from run_helpers import assert_same_run

import upslope
from upslope.cli.cluster import ClusterFlags
from upslope.engines import actors, nodes
from upslope.engines import cluster as on_ray
from upslope.engines.notices import Notices
from upslope.engines.processes import PipeChannel
from upslope.engines.transport import Stragglers, Worker, WorkerLostError
from upslope.engines.workers import WorkersEngine
from upslope.runs import train as training

SMALL: dict[str, Any] = {"preset": False, "num_envs": 2, "rollout_steps": 16, "minibatches": 2, "quiet": True}


class LosableChannel(PipeChannel):
    """A channel to a local process, which stands in for a remote actor."""

    error = WorkerLostError


class Nowhere(PipeChannel):
    """A channel without a process."""

    place = "nowhere"

    def __init__(self) -> None:
        pass


class Processes:
    """Stands in for a cluster, with workers in processes on this machine."""

    more = 0

    def require(self, part: Any, environment: Any) -> None:
        """Check nothing, because every process is on this machine."""

    def capacity(self) -> int:
        return 2 + self.more

    def room(self, part: Any, environment: Any, say: Any) -> int:
        return self.more

    def words(self, workers: int) -> str:
        return f"{workers} workers"

    def start_worker(self, module: str, index: int, share: str, notices: Notices) -> Worker:
        return Worker(LosableChannel(module), index, share, notices)


@pytest.fixture
def processes(monkeypatch: Any) -> Processes:
    made = Processes()
    monkeypatch.setattr(on_ray, "connect", lambda placement: made)
    return made


def test_a_lost_worker_and_a_grown_cluster_change_no_number(
    processes: Processes, tmp_path: Path, monkeypatch: Any, capsys: Any
):
    settings: dict[str, Any] = {"seeds": 3, "steps": 640, "folder": tmp_path, **SMALL}
    here = upslope.train("CartPole-v1", name="here", workers=1, **settings)
    advance, chunks, counts = WorkersEngine.advance, iter(range(10**6)), []

    def changing(self: WorkersEngine, *arguments: Any) -> Any:
        chunk = next(chunks)
        counts.append(len(self.workers))
        if chunk == 5:
            self.workers[1].channel.kill()
        if chunk == 10:
            processes.more, self.looked = 1, -1e9
        return advance(self, *arguments)

    monkeypatch.setattr(WorkersEngine, "advance", changing)
    there = upslope.train("CartPole-v1", name="there", cluster="auto", **settings)
    assert_same_run(here.path, there.path)
    assert counts[0] == 2 and counts[-1] == 3
    assert "ended with exit status -9" in capsys.readouterr().err


def test_other_processors_are_recorded_also_on_resume(processes: Processes, tmp_path: Path):
    settings: dict[str, Any] = {"seeds": 1, "steps": 1_600, "folder": tmp_path, **SMALL}
    run = upslope.train("jax:CartPole-v1", name="later", on_iteration=lambda now: now.stop(), **settings)
    config = tmp_path / "later" / "config.json"
    for is_mixed, stops in ((False, True), (True, True), (False, False)):
        where = upslope.Placement("auto", mixed=is_mixed)
        upslope.resume(run.path, on_iteration=lambda now, stops=stops: stops and now.stop(), cluster=where, quiet=True)
        assert json.loads(config.read_text()).get("mixed_processors", False) == (is_mixed or not stops)
    plain = upslope.train("jax:CartPole-v1", name="plain", **settings)
    upslope.resume(plain.path, cluster=upslope.Placement("auto", mixed=True), quiet=True)  # already finished
    assert "mixed_processors" not in json.loads((plain.path / "config.json").read_text())


def test_a_worker_that_is_lost_again_and_again_ends_the_run(processes: Processes, tmp_path: Path, monkeypatch: Any):
    def lost(self: WorkersEngine, *arguments: Any) -> Any:
        raise WorkerLostError("Worker process 0 was lost.")

    monkeypatch.setattr(WorkersEngine, "advance", lost)
    monkeypatch.setattr(training, "MAX_LOSSES", 1)
    with pytest.raises(upslope.UpslopeError, match=r"was lost.*resume with: upslope resume"):
        upslope.train("jax:CartPole-v1", steps=640, folder=tmp_path, name="lost", cluster="auto", **SMALL)


def test_what_cannot_be_sent_and_flags_without_a_cluster_are_refused(processes: Processes, tmp_path: Path):
    with pytest.raises(upslope.UpslopeError, match="cannot be sent to a cluster"):
        upslope.train(lambda: gymnasium.make("CartPole-v1"), folder=tmp_path, cluster="auto", **SMALL)
    with pytest.raises(upslope.UpslopeError, match=r"--mixed only matters on a cluster"):
        ClusterFlags(mixed=True).placement()
    with pytest.raises(upslope.UpslopeError, match="worker_cpus must be more than 0"):
        upslope.Placement("auto", worker_cpus=0)


def test_other_versions_processors_and_missing_modules_are_told():
    mine = {"versions": {"numpy": "2.4"}, "processor": "avx2", "missing": []}
    assert nodes.difference(mine, dict(mine), mixed=False) == ""
    assert "numpy 2.3 (here 2.4)" in nodes.difference(mine, mine | {"versions": {"numpy": "2.3"}}, mixed=True)
    assert "lacks mine" in nodes.difference(mine, mine | {"missing": ["mine"]}, mixed=False)
    assert "--mixed" in nodes.difference(mine, mine | {"processor": "neon"}, mixed=False)
    assert nodes.difference(mine, mine | {"processor": "neon"}, mixed=True) == ""


class Lossy:
    """Stands in for Ray. About every other time, the call or its answer is lost."""

    class RayError(Exception):
        """Base class of Ray's errors."""

    class ActorUnavailableError(RayError):
        """An actor is currently unreachable."""

    class GetTimeoutError(RayError):
        """No answer arrived in time."""

    def __init__(self) -> None:
        self.exceptions, self.calls, self.fate = self, [], iter(["call", "", "answer", "", "answer", "call", ""] * 9)
        self.actor = actors.Actor(nodes.facts([]), False, 1)
        self.answer = SimpleNamespace(remote=lambda *arguments: partial(self.actor.answer, *arguments))

    def get(self, call: Any, timeout: float) -> bytes:
        fate = next(self.fate)
        self.calls.append(fate)
        answer = b"" if fate == "call" else call()
        if fate:
            raise self.ActorUnavailableError
        return answer


class CountingServer:
    """Counts requests and sends a notice for each."""

    count = 0

    def add(self, number: int) -> int:
        self.count += 1
        self.notices(f"kind {number}", f"request {number}")
        return self.count


def test_a_call_whose_answer_is_lost_is_repeated_and_done_once(monkeypatch: Any):
    monkeypatch.setitem(sys.modules, "counting", SimpleNamespace(Server=CountingServer))
    monkeypatch.setattr(actors, "place", lambda: "here")
    monkeypatch.setattr(actors.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(actors, "use_cores", lambda count: None)
    lossy, shown = Lossy(), []
    channel = actors.ActorChannel(lossy, lossy, "counting", print)
    worker = Worker(channel, 0, "seed 0", Notices(lambda kind, words: shown.append(words)))
    for number in range(6):
        worker.ask("add", number)
        assert worker.answer(print) == number + 1
    assert shown == [f"request {number}" for number in range(6)]
    assert lossy.calls.count("call") >= 3 and lossy.calls.count("answer") >= 3
    lossy.fate = iter(["call"] * 500)
    worker.ask("add", 6)
    with pytest.raises(WorkerLostError, match="was lost: ActorUnavailableError"):
        worker.answer(print)


def test_a_straggler_is_told_once():
    said: list[str] = []
    workers = [Worker(Nowhere(), i, f"seed {i}", Notices(print)) for i in range(3)]
    stragglers = Stragglers()
    for _ in range(60):
        stragglers.look([1.0, 1.0, 3.0], workers, said.append)
    assert len(said) == 1 and "Worker process 2 (nowhere, seed 2) is slow: 3.00 s" in said[0]
