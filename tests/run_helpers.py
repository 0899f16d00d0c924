"""Helpers for tests of runs: small settings, interruptions at a given chunk, and checks that two runs are equal."""

import contextlib
import itertools
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import upslope
from upslope.cli.train import parse_train, prepare_arguments
from upslope.config.config import Config
from upslope.config.prepare import prepare
from upslope.core.storage import load_arrays, save_arrays
from upslope.engines.compiled import ProgramEngine
from upslope.engines.host import HostEngine
from upslope.runs.display import Snapshot

SEGMENTS: dict[str, Any] = {"num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 2, "preset": False}
EPISODES: dict[str, Any] = {"num_envs": 2, "preset": False}
TINY: dict[str, Any] = {"num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 1, "hidden_sizes": (8,)}


def tiny_run(folder: Path) -> Path:
    """Train for two iterations in a compiled environment; return the run's path."""
    options = {"preset": False, "quiet": True, "steps": 32, "max_episode_steps": 9, **TINY}
    return upslope.train("jax:CartPole-v1", name="run", folder=folder, **options).path


def rewrite_config(run: Path, **settings: Any) -> None:
    """Change settings in the run's config.json."""
    path = run / "config.json"
    description = json.loads(path.read_text())
    description["config"] |= settings
    path.write_text(json.dumps(description))


def rewrite_meta(checkpoint: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the metadata of a checkpoint in place."""
    arrays, meta = load_arrays(checkpoint, "checkpoint")
    change(meta)
    save_arrays(checkpoint, arrays, meta)


def config_of(words: list[str]) -> Config:
    """Return the config that `upslope train` creates from these arguments."""
    return prepare(**prepare_arguments(parse_train(words)[1]))[0]


class Killed(BaseException):
    """Simulates `kill -9`: nothing catches this exception, so nothing is saved."""


@contextlib.contextmanager
def before_chunk(number: int, do: Callable[[], None]) -> Iterator[None]:
    """Call `do` just before an engine computes chunk `number`, counted from 0."""
    count = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        for kind in (ProgramEngine, HostEngine):

            def advance(self: Any, *arguments: Any, original: Callable = kind.advance) -> Any:
                if next(count) == number:
                    do()
                return original(self, *arguments)

            patch.setattr(kind, "advance", advance)
        yield


def arrays_of(path: Path) -> dict[str, bytes]:
    """Return every array in a checkpoint as bytes."""
    with np.load(path) as archive:
        return {name: archive[name].tobytes() for name in archive.files if name != "meta"}


def one_seed(path: Path, index: int, count: int) -> dict[str, bytes]:
    """Return one seed's part of every array in a checkpoint. The leading axis runs over seeds."""
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "meta"}
    parts = {}
    for name, x in arrays.items():
        if name in ("world/actions", "world/episode", "world/length", "world/episode_return"):
            continue  # [S·N] and ragged: compared through the rows and `observation`
        assert x.shape[0] == count, name
        parts[name] = x[index].tobytes()
    return parts


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl without their time columns."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def assert_same_run(one: Path, other: Path) -> None:
    for name in ("last.npz", "best.npz"):
        assert arrays_of(one / "checkpoints" / name) == arrays_of(other / "checkpoints" / name), name
    assert metrics_of(one) == metrics_of(other)
    assert (one / "episodes.csv").read_text() == (other / "episodes.csv").read_text()
    assert len(metrics_of(one)) > 10


def assert_stops_and_resumes(environment: Any, whole: Path, **settings: Any) -> None:
    """Check that a run stopped in its tenth chunk and then resumed equals the uninterrupted run."""
    stopped = whole.with_name(f"{whole.name} stopped")
    stop_here = before_chunk(9, lambda: signal.raise_signal(signal.SIGINT))
    with stop_here, pytest.raises(KeyboardInterrupt, match="upslope resume"):
        upslope.train(environment, folder=stopped.parent, name=stopped.name, **settings)
    assert 0 < len(metrics_of(stopped)) < len(metrics_of(whole))
    upslope.resume(stopped, quiet=True)
    assert_same_run(whole, stopped)


def make_snapshot(returns=(10.0, 12.0, 14.0, 16.0, 18.0), **changes) -> Snapshot:
    """Return the state of a run after a quarter of its budget, as a display receives it."""
    returns = list(returns)
    fields = {
        "iteration": 7,
        "steps": [25_000] * len(returns),
        "total_steps": 100_000,
        "episode_return": returns,
        "episode_length": returns,
        "metrics": {"policy/kl": [0.01, 0.03] + [0.02] * (len(returns) - 2), "policy/private": [1.0]},
        "phases": {"environment": 6.0, "act": 3.0, "learn": 1.0},
        "elapsed": 10.0,
        "steps_per_second": 12_500.0,
    }
    return Snapshot(**{**fields, **changes})
