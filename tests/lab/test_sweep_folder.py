"""A sweep changes only its own folder: it never overwrites or deletes other files, not even through a link."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import upslope
from upslope.errors import UpslopeError
from upslope.lab.sweep.folder import MARK, make_folder, trial_folder
from upslope.lab.sweep.on_cluster import Trials
from upslope.lab.sweep.storages import sqlite_url

HOST: dict[str, Any] = {"num_envs": 2, "rollout_steps": 16, "minibatches": 1, "epochs": 1, "hidden_sizes": (8,)}
HOST |= {"space": {"learning_rate": {"choices": [1e-3, 3e-3]}}, "trials": 1, "seeds": 1, "steps": 64, "workers": 1}
HOST |= {"preset": False, "quiet": True, "fresh_seeds": 0, "name": "exp"}


def sweep(folder: Path, **options: Any) -> Any:
    """Run a sweep, by default with one short trial on the host."""
    return upslope.sweep("CartPole-v1", folder=folder, **HOST | options)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, except databases, which change when they are read."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".db"}


@pytest.mark.parametrize("name", ["trials/0000/data.txt", "winner.yaml", "report.html", "fresh-0000/winner/notes.txt"])
@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_folder_that_is_not_a_sweeps_is_left_alone(name: str, is_elsewhere: bool, tmp_path: Path):
    mine = tmp_path / "exp" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    storage = {"storage": sqlite_url(tmp_path / "elsewhere.db")} if is_elsewhere else {}
    with pytest.raises(UpslopeError, match="do not belong to this sweep's study"):
        sweep(tmp_path, **storage)
    assert contents(tmp_path / "exp") == {name: b"precious"}


@pytest.mark.parametrize("name", ["trials", "study.db", "winner.yaml", MARK])
def test_nothing_is_written_through_a_link(name: str, tmp_path: Path):
    other, path = tmp_path / "other", tmp_path / "exp"
    (other / "0000").mkdir(parents=True)
    (other / "0000" / "data.txt").write_text("precious")
    sweep(tmp_path, trials=1)
    (path / name).rename(tmp_path / "moved")
    (path / name).symlink_to(other if name == "trials" else other / "file")
    with pytest.raises(UpslopeError, match="is a symbolic link"):
        sweep(tmp_path, trials=2)
    assert contents(other) == {"0000/data.txt": b"precious"}


def test_a_sweep_goes_on_in_its_own_folder_alone(tmp_path: Path):
    elsewhere = {"storage": sqlite_url(tmp_path / "elsewhere.db")}
    sweep(tmp_path / "a", **elsewhere)
    before = contents(tmp_path / "a")
    assert f"exp/{MARK}" in before and "exp/trials/0000/config.json" in before
    with pytest.raises(UpslopeError, match="pass the same --storage"):
        sweep(tmp_path / "a")  # the trials would be numbered from 0 again
    assert contents(tmp_path / "a") == before
    found = sweep(tmp_path / "b", **elsewhere, trials=2)  # another machine, with its own disk
    assert [trial.number for trial in found.trials] == [0, 1]
    assert [p.name for p in (tmp_path / "b" / "exp" / "trials").iterdir()] == ["0001"]
    assert len(sweep(tmp_path / "a", **elsewhere, trials=3).trials) == 3
    (tmp_path / "a" / "exp" / MARK).write_text("nonsense")
    with pytest.raises(UpslopeError, match="do not belong to this sweep's study"):
        sweep(tmp_path / "a", **elsewhere, trials=3)


def test_a_sweep_of_an_earlier_version_goes_on(tmp_path: Path):
    sweep(tmp_path)
    (tmp_path / "exp" / MARK).unlink()
    assert len(sweep(tmp_path, trials=2).trials) == 2 and (tmp_path / "exp" / MARK).exists()
    (tmp_path / "exp" / MARK).unlink()
    (tmp_path / "exp" / "study.db").rename(tmp_path / "moved")
    (tmp_path / "exp" / "study.db").touch()
    with pytest.raises(UpslopeError, match="do not belong to this sweep's study"):  # this study is new
        sweep(tmp_path)
    assert (tmp_path / "exp" / "trials" / "0001").exists()


def test_a_process_joins_one_that_is_about_to_begin(tmp_path: Path):
    storage = sqlite_url(tmp_path / "study.db")
    for name in ("study.db", "study.db-journal", f".{MARK}.1.2.tmp"):
        (tmp_path / name).touch()
        assert not make_folder(tmp_path, storage)
    (tmp_path / "study.db").unlink()
    (tmp_path / "study.db-journal").unlink()
    assert not make_folder(tmp_path, "postgresql+psycopg://host/name")


def test_only_a_run_is_replaced_by_a_trial(tmp_path: Path):
    trials = tmp_path / "trials"
    for name in ("0000/config.json", "0001/data.txt"):
        (trials / name).parent.mkdir(parents=True)
        (trials / name).write_text("{}")
    assert not trial_folder(trials, 0).exists()
    with pytest.raises(UpslopeError, match="something other than a run"):
        trial_folder(trials, 1)
    (trials / "0002").symlink_to(trials / "0001")
    with pytest.raises(UpslopeError, match="symbolic link"):
        trial_folder(trials, 2)
    said: list[str] = []
    cluster: Any = SimpleNamespace(folder=trials, say=said.append)
    for number in (1, 3):
        Trials.keep(cluster, number, {"config.json": b"{}"})
    assert "run of trial 1 is not kept" in said[0] and contents(trials)["0003/config.json"] == b"{}"
    assert contents(trials)["0001/data.txt"] == b"{}"


def test_a_trial_whose_place_is_taken_fails_alone(tmp_path: Path):
    sweep(tmp_path)
    taken = tmp_path / "exp" / "trials" / "0001" / "data.txt"
    taken.parent.mkdir()
    taken.write_text("precious")
    found = sweep(tmp_path, trials=3)
    assert [trial.state for trial in found.trials] == ["complete", "failed", "complete"]
    assert "something other than a run" in found.trials[1].reason and taken.read_text() == "precious"


def test_the_fresh_runs_are_not_written_through_a_link(tmp_path: Path):
    space = {"learning_rate": {"choices": [1e-3]}}
    sweep(tmp_path, space=space)
    (tmp_path / "other").mkdir()
    (tmp_path / "exp" / "fresh-0000").symlink_to(tmp_path / "other")
    with pytest.raises(UpslopeError, match="symbolic link"):
        sweep(tmp_path, space=space, fresh_seeds=1)
    assert not list((tmp_path / "other").iterdir())
