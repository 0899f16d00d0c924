"""In an untrusted run directory, links cannot redirect writes and reading never waits for pipes or devices. What a full
disk leaves behind is repaired."""

import os
import shutil
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import upslope
from upslope.analysis import episode_credit as weighing
from upslope.cli.train import read_settings
from upslope.core.files import MAX_SETTINGS
from upslope.core.storage import write_atomically
from upslope.errors import UpslopeError
from upslope.models.choice_heads import DiscreteHead
from upslope.models.encoders import BoxEncoder
from upslope.report.output import page_path
from upslope.report.page import write_credit
from upslope.runs import evaluation
from upslope.runs.datasets import load_dataset
from upslope.runs.directory import EVALUATION_COLUMNS, RunDirectory, repaired

SMALL: dict[str, Any] = {
    "num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 1, "hidden_sizes": (8,), "preset": False,
    "quiet": True, "max_episode_steps": 9, "steps": 32,
}  # fmt: skip
Path_touch = Path.touch
HEADER = ",".join(EVALUATION_COLUMNS)
ROW = (0, "stochastic", "last", 0, 1.5, 9, 1)
NEXT = (0, "stochastic", "last", 1, 2.5, 9, 1)
LINE = "0,stochastic,last,0,1.5,9,1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run to its end."""
    return upslope.train("jax:CartPole-v1", name="run", folder=tmp_path_factory.mktemp("trained"), **SMALL).path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Copy the trained run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "episodes.csv", "checkpoints", "checkpoints/last.npz", "config.json"]
)
def test_resume_follows_no_link(name: str, run: Path, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.mkdir()
    place = outside / Path(name).name
    shutil.move(run / name, place)
    (run / name).symlink_to(place)
    if place.is_dir():
        (place / ".somebody's.tmp").write_text("kept")
    elif name != "config.json" and not name.endswith("npz"):
        place.write_bytes(place.read_bytes() + b"more than the checkpoint knows\n")
    before = contents(outside)
    with pytest.raises(UpslopeError, match="is a symbolic link, and upslope writes only into files"):
        upslope.resume(run, quiet=True)
    assert contents(outside) == before


@pytest.mark.parametrize("is_there", [True, False])
def test_evaluate_and_credit_follow_no_link(is_there: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in (evaluation, weighing):
        monkeypatch.setattr(module, "environment_of", lambda *_: pytest.fail("something was played first"))
    for name, call in (("evaluation.csv", upslope.evaluate), ("credit.npz", write_credit)):
        target = tmp_path / f"target-{name}"
        if is_there:
            target.write_text("mine\n")
        (run / name).symlink_to(target)
        with pytest.raises(UpslopeError, match="is a symbolic link"):
            call(run)
        assert target.exists() is is_there and (not is_there or target.read_text() == "mine\n")


@pytest.mark.parametrize("name", ["tensorboard", "tensorboard/seed_0"])
def test_tensorboard_follows_no_link(name: str, run: Path, tmp_path: Path):
    (tmp_path / "outside").mkdir()
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(tmp_path / "outside")
    with pytest.raises(UpslopeError, match="is a symbolic link"):
        upslope.resume(run, quiet=True, track="tensorboard")
    assert not any((tmp_path / "outside").iterdir())


def test_a_file_with_several_names_is_changed_under_one(run: Path, tmp_path: Path):
    directory = RunDirectory(run)
    for path in (directory.metrics_path, directory.episodes_path):
        with path.open("a") as file:
            file.write("rows after the checkpoint\n")
        os.link(path, tmp_path / path.name)
    before = contents(tmp_path)
    upslope.resume(run, quiet=True)
    for path in (directory.metrics_path, directory.episodes_path):
        assert (tmp_path / path.name).read_bytes() == before[path.name]
        assert path.read_bytes() + b"rows after the checkpoint\n" == before[path.name]


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "episodes.csv", "evaluation.csv", "config.json", "checkpoints/last.npz"]
)
def test_pipes_are_not_waited_for(name: str, run: Path):
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    calls = [upslope.resume] if name != "evaluation.csv" else []
    calls += [upslope.evaluate] if name not in ("metrics.jsonl", "episodes.csv") else [upslope.diagnose]
    for call in calls:
        with pytest.raises(UpslopeError, match=r"pipe|not a run directory"):
            call(run)


def test_devices_and_absurd_sizes_are_refused(tmp_path: Path, run: Path):
    with pytest.raises(UpslopeError, match="/dev/zero is a device or socket, not a plain file"):
        read_settings(Path("/dev/zero"))
    with pytest.raises(UpslopeError, match="/dev/zero is a device or socket, not a dataset"):
        load_dataset(Path("/dev/zero"), BoxEncoder((1,)), DiscreteHead(2), needs_behaviour=False)
    with pytest.raises(UpslopeError, match="is not an upslope page"):
        page_path(link(tmp_path / "page.html", Path("/dev/zero")), "report.html")
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(MAX_SETTINGS + 1)
    with pytest.raises(UpslopeError, match="is 1,048,577 bytes long"):
        read_settings(large)
    for name in ("metrics.jsonl", "config.json"):
        kept = (run / name).read_bytes()
        with (run / name).open("r+b") as file:
            file.truncate(1 << 40)
        with pytest.raises(UpslopeError, match="is 1,099,511,627,776 bytes long"):
            upslope.diagnose(run)
        (run / name).write_bytes(kept)
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to("/dev/zero")
    with pytest.raises(UpslopeError, match="is a device or socket"):
        upslope.diagnose(run)


def link(path: Path, target: Path) -> Path:
    """Create a symbolic link."""
    path.symlink_to(target)
    return path


def test_a_temporary_file_is_a_new_one(tmp_path: Path):
    """An attacker could guess the name of a temporary file and place a link there."""
    target = tmp_path / "target"
    target.write_text("mine")
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to(target)
    write_atomically(tmp_path / "file", b"new")
    assert target.read_text() == "mine" and (tmp_path / "file").read_text() == "new"
    link(tmp_path / "link", target)
    write_atomically(tmp_path / "link", b"new")
    assert target.read_text() == "mine" and not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    ("content", "rows", "is_kept"),
    [
        ("", 0, False),
        (HEADER[:7], 0, False),
        (HEADER, 0, False),
        (f"{HEADER}\n", 0, False),
        (f"{HEADER}\n{LINE}\n{LINE[:9]}", 1, False),
        (f"{HEADER}\n{LINE}\n{LINE}", 2, False),
        (f"{HEADER}\n{LINE[:9]}{LINE}\n{LINE}\n", 1, True),
        (f"{HEADER}\n{LINE}\nnot a row\n\n{LINE}\n", 2, True),
        (f"{HEADER[:9]}{HEADER}\n{LINE}\n", 1, True),
        ("another file\n", 0, True),
    ],
)
def test_what_a_full_disk_left_is_healed_at_the_next_use(content: str, rows: int, is_kept: bool, run: Path):
    directory = RunDirectory(run)
    directory.evaluation_path.write_text(content)
    if not is_kept:
        assert len(directory.evaluations()) <= rows
    directory.add_evaluation([NEXT])
    new = ",".join(map(str, NEXT))
    assert directory.evaluation_path.read_text() == f"{HEADER}\n" + f"{LINE}\n" * rows + f"{new}\n"
    assert len(directory.evaluations()) == rows + 1
    kept = run / "evaluation.csv.damaged"
    assert kept.exists() is is_kept and (not is_kept or kept.read_text() == content)
    assert repaired(directory.evaluation_path.read_text()) == (directory.evaluation_path.read_text(), True)


def test_the_same_episodes_are_not_counted_twice(run: Path):
    directory = RunDirectory(run)
    for rows in ([ROW, ROW], [NEXT], [(*ROW[:4], 3.5, 9, 1)]):
        directory.add_evaluation(rows)
    assert directory.evaluations()["return"].tolist() == [2.5, 3.5, 1.5], "the first is replaced, and the second stays"
    directory.add_evaluation([(*ROW[:4], r, 9, 1) for r in (4.5, 5.5, 6.5)])
    assert directory.evaluations()["return"].tolist() == [2.5, 4.5, 5.5, 6.5]


def test_fewer_episodes_leave_the_others(run: Path):
    upslope.evaluate(run, episodes=12)
    rows = RunDirectory(run).evaluations()
    upslope.evaluate(run, episodes=3)
    assert np.array_equal(RunDirectory(run).evaluations(), rows), "repeating three of twelve episodes changes nothing"
    upslope.evaluate(run, episodes=14)
    assert len(RunDirectory(run).evaluations()) == 28


def test_episodes_under_another_limit_are_not_the_runs(run: Path, capsys: Any):
    upslope.evaluate(run, episodes=3, max_episode_steps=9)  # equals the run's own limit
    assert not capsys.readouterr().err
    before = RunDirectory(run).evaluation_path.read_bytes()
    found = upslope.evaluate(run, episodes=5, max_episode_steps=4)
    assert found["stochastic"].lengths.max() <= 4
    assert RunDirectory(run).evaluation_path.read_bytes() == before
    err = capsys.readouterr().err
    assert err.count("not stored") == 1 and "4 steps" in err and "9" in err


def test_the_limit_of_an_id_is_that_of_a_run_without_its_own(tmp_path: Path, capsys: Any):
    settings = SMALL | {"max_episode_steps": None}
    run = upslope.train("CartPole-v1", name="run", folder=tmp_path, **settings).path
    upslope.evaluate(run, episodes=1, max_episode_steps=20)
    assert not RunDirectory(run).evaluation_path.exists() and "run's after 500" in capsys.readouterr().err
    upslope.evaluate(run, episodes=1, max_episode_steps=500)
    assert len(RunDirectory(run).evaluations()) == 2


def no_writing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make the creation of files in a folder fail as on a read-only disk, even for a user with all permissions."""

    def refuse(self: Path, *arguments: Any, original: Any, **options: Any) -> Any:
        mode = arguments[0] if arguments else "r"
        if folder in self.parents and (original is Path_touch or set(str(mode)) & set("wax")):
            raise OSError(30, "Read-only file system")
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", partialmethod(refuse, original=Path.open))
    monkeypatch.setattr(Path, "touch", partialmethod(refuse, original=Path_touch))


def test_the_results_of_a_run_that_cannot_be_written_are_shown(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    no_writing(monkeypatch, run)
    found = upslope.evaluate(run, episodes=2)
    assert found["stochastic"].returns.shape == found["deterministic"].returns.shape == (1, 2)
    err = capsys.readouterr().err
    assert err.count("not stored") == 1 and "Read-only" in err and not RunDirectory(run).evaluation_path.exists()


def test_no_episode_is_recorded_where_no_file_can_be_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    no_writing(monkeypatch, run)
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "load_agents", lambda *_: pytest.fail("episodes that cannot be saved were played"))
        with pytest.raises(UpslopeError, match=r"Read-only file system\. Make it writable, or choose an --output"):
            upslope.record(run, episodes=2)
    assert upslope.record(run, episodes=2, output=tmp_path / "elsewhere.npz").exists()


def test_a_full_disk_changes_no_evaluation(run: Path, monkeypatch: pytest.MonkeyPatch):
    directory = RunDirectory(run)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UpslopeError, match="No space left on device"):
        directory.add_evaluation([ROW])
    assert not directory.evaluation_path.exists()
    monkeypatch.undo()
    directory.add_evaluation([ROW])
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UpslopeError, match="No space left on device"):
        directory.add_evaluation([ROW, ROW])
    assert len(directory.evaluations()) == 1
    assert not list(run.glob("*.tmp")) and not list(run.glob(".*.tmp"))


def test_episodes_of_a_disk_that_was_full_at_the_header_are_none(run: Path):
    directory = RunDirectory(run)
    directory.episodes_path.write_text("step,se")
    assert np.shape(directory.episodes()) == (0,)


@pytest.mark.parametrize("name", ["episodes.csv", "episodes.h5", "episodes.npy"])
def test_episodes_are_not_recorded_under_the_suffix_of_another_format(name: str, tmp_path: Path):
    with pytest.raises(UpslopeError, match=r"NPZ archive.*another suffix.*\.npz"):
        evaluation.require_free(tmp_path / name)
    evaluation.require_free(tmp_path / "episodes.NPZ")
    evaluation.require_free(tmp_path / "episodes")
