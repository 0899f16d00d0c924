"""Runs are sent to the real trackers without a network, and read back with the trackers' own tools."""

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SETTINGS = {"steps": 480, "seeds": 2, "num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 2, "quiet": True}
TRAIN = f"""
import json, os, upslope
names = json.loads(os.environ["TRACKERS"])
upslope.train("jax:CartPole-v1", preset=False, name="run", folder=".", track=names, **{SETTINGS!r})
"""
PACKAGES = {"wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}
LAST = "policy/entropy"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracked")


def python(code: str, here: Path, **environment: str | None) -> str:
    """Run code in a separate process, offline and with its own home folder, and return what it printed. A value of None
    unsets a variable."""
    own = {"HOME": str(here), "TRACKIO_DIR": str(here / "trackio"), "WANDB_MODE": "offline"}
    path = {"PYTHONPATH": os.pathsep.join(sys.path)}
    variables = {name: value for name, value in (os.environ | own | path | environment).items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=here, env=variables, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(here: Path) -> Path:
    """Train a run that all trackers follow, then evaluate it and send it twice more."""
    for package in PACKAGES.values():
        pytest.importorskip(package)
    said = python(TRAIN, here, TRACKERS=json.dumps(list(PACKAGES)))
    assert "failed" not in said, said
    later = 'import upslope; upslope.evaluate("run", episodes=3)\nfor _ in range(2): upslope.track("run", to={!r})'
    python(later.format(list(PACKAGES)), here)
    return here / "run"


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def expected(run: Path, seed: int) -> list[tuple[int, float]]:
    """Return the (step, value) pairs of a metric, from the run's own file."""
    return [(row["step"], row[LAST]) for row in rows_of(run) if row["seed"] == seed]


def gamma_of(run: Path) -> float:
    return json.loads((run / "config.json").read_text())["config"]["gamma"]


def evaluation_of(run: Path, seed: int) -> float:
    """Compute the mean return of a seed's stochastic evaluation from its file."""
    rows = [line.split(",") for line in (run / "evaluation.csv").read_text().splitlines()[1:]]
    returns = [float(row[4]) for row in rows if row[0] == str(seed) and row[1] == "stochastic"]
    return sum(returns) / len(returns)


def test_mlflow_has_a_parent_and_a_run_per_seed(run: Path):
    store = sqlite3.connect(run.parent / "mlflow.db")

    def query(text: str, *values: Any) -> list[tuple[Any, ...]]:
        return store.execute(text, values).fetchall()

    runs = dict(query("select name, run_uuid from runs"))
    assert set(runs) == {"run", "run-seed0", "run-seed1"}
    assert {status for (status,) in query("select status from runs")} == {"FINISHED"}
    for seed in (0, 1):
        own = runs[f"run-seed{seed}"]
        found = query("select step, value from metrics where run_uuid = ? and key = ? order by step", own, LAST)
        assert found == expected(run, seed)
        parent = query("select value from tags where run_uuid = ? and key = 'mlflow.parentRunId'", own)
        assert parent == [(runs["run"],)]
        parameters = dict(query("select key, value from params where run_uuid = ?", own))
        assert parameters["gamma"] == str(gamma_of(run)) and parameters["seed"] == str(seed)
        assert parameters["versions/jax"]
        ((value,),) = query(
            "select value from latest_metrics where run_uuid = ? and key = 'evaluation/last/stochastic/return'", own
        )
        assert value == pytest.approx(evaluation_of(run, seed))
    ((mean,),) = query(
        "select value from latest_metrics where run_uuid = ? and key = 'evaluation/last/stochastic/return'", runs["run"]
    )
    assert mean == pytest.approx((evaluation_of(run, 0) + evaluation_of(run, 1)) / 2)


def test_trackio_has_a_run_per_seed_in_a_group(run: Path):
    (path,) = list((run.parent / "trackio").glob("*.db"))
    store = sqlite3.connect(path)
    found = store.execute("select run_name, step, metrics from metrics order by step").fetchall()
    for seed in (0, 1):
        mine = [(step, json.loads(metrics)) for name, step, metrics in found if name == f"run-seed{seed}"]
        assert [(step, values[LAST]) for step, values in mine if LAST in values] == expected(run, seed)
        scores = [values for _, values in mine if "evaluation/last/stochastic/return" in values]
        assert len(scores) == 1
        assert scores[0]["evaluation/last/stochastic/return"] == pytest.approx(evaluation_of(run, seed))
    configs = [json.loads(config) for (config,) in store.execute("select config from configs")]
    assert {config["_Group"] for config in configs} == {"run"} and configs[0]["gamma"] == gamma_of(run)


def records_in(path: Path) -> Iterator[bytes]:
    """Yield the records of a `.wandb` file, which is seven bytes followed by LevelDB's log format.

    Its blocks of 32 KiB hold pieces with a checksum (4 bytes), a length (2) and a type (1): 1 whole, 2 first, 3 middle,
    4 last. https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 2**15 - place % 2**15 < 7:
            place += 2**15 - place % 2**15
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_wandb_has_a_run_per_seed_in_a_group(run: Path):
    from wandb.proto import wandb_internal_pb2

    histories: dict[str, list[tuple[int, float]]] = {}
    summaries: dict[str, dict[str, Any]] = {}
    groups, gammas = set(), set()
    for path in sorted((run.parent / "wandb").glob("offline-run-*/*.wandb")):
        name = ""
        for data in records_in(path):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                name = record.run.display_name
                groups.add(record.run.run_group)
                gammas |= {item.value_json for item in record.run.config.update if item.key == "gamma"}
            elif kind == "history":
                items = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
                if LAST in items:
                    histories.setdefault(name, []).append((record.history.step.num, items[LAST]))
            elif kind == "summary":
                summaries.setdefault(name, {}).update(
                    {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.summary.update}
                )
    assert groups == {"run"} and gammas == {str(gamma_of(run))}
    for seed in (0, 1):
        assert histories[f"run-seed{seed}"] == expected(run, seed)
        value = summaries[f"run-seed{seed}"]["evaluation/last/stochastic/return"]
        assert value == pytest.approx(evaluation_of(run, seed))


def test_wandb_without_an_account_writes_offline(run: Path, here: Path):
    code = 'import upslope; upslope.track("run", to="wandb")'
    python(code, here, WANDB_MODE=None)  # everything has been sent already, so wandb asks no question
    (run / "tracking" / "wandb.json").unlink()
    python(code, here, WANDB_MODE=None, WANDB_API_KEY=None)
    assert "offline" in json.loads((run / "tracking" / "wandb.json").read_text())["known"]["where"]
