"""In run directories, nothing is overwritten and damage is reported, and a trained policy is restored completely."""

import errno
import io
import json
import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from malformed import packed
from run_helpers import arrays_of

import upslope
from upslope.errors import UpslopeError
from upslope.models.choice_heads import DiscreteHead
from upslope.models.encoders import BoxEncoder
from upslope.runs import loop
from upslope.runs.datasets import load_dataset
from upslope.runs.directory import run_path, run_paths

SMALL: dict[str, Any] = {"num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 1, "hidden_sizes": (8,)}


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    options: dict[str, Any] = {"folder": folder, "quiet": True, "preset": False}
    return upslope.train("jax:CartPole-v1", steps=640, seeds=2, seed=3, name="run", **options, **SMALL).path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """Make a copy that tests may damage."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(b ^ 255 for b in content[middle : middle + 64]) + content[middle + 64 :]


def flip_compressed(content: bytes) -> bytes:
    """Compress the arrays and damage the compressed stream."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return flip(packed({name: archive.read(name) for name in archive.namelist()}, zipfile.ZIP_DEFLATED))


def with_objects(content: bytes) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, meta=np.asarray('{"kind": "checkpoint", "format": 1}'), state=np.array([{}, []], object))
    return buffer.getvalue()


def encrypted(content: bytes) -> bytes:
    """Flag a member as encrypted, both in its local header and in the directory."""
    marked = bytearray(packed({"meta.npy": b"secret"}))
    marked[6] |= 1
    marked[marked.index(b"PK\x01\x02") + 8] |= 1
    return bytes(marked)


def not_an_array(content: bytes) -> bytes:
    """Keep all members, but replace one of the arrays with text."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    first = next(name for name in members if name != "meta.npy")
    return packed({name: b"hello" if name == first else text for name, text in members.items()})


def promises_too_much(content: bytes) -> bytes:
    """Return an archive with an array whose short header declares a petabyte."""
    array = b"{'descr': '<f8', 'fortran_order': False, 'shape': (140737488355328,), }".ljust(117) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + len(array).to_bytes(2, "little") + array
    return packed({"meta.npy": npy, "reward.npy": npy})


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": cut,
    "flipped": flip,
    "flipped in a compressed stream": flip_compressed,
    "empty": lambda content: b"",
    "text": lambda content: b"hello, this is text",
    "another zip": lambda content: packed({"word/document.xml": b"<w/>"}),
    "pickled objects": with_objects,
    "a pickle": lambda content: b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00]\x94.",
    "encrypted": encrypted,
    "a member that is no array": not_an_array,
    "promises too much": promises_too_much,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name(damage: str, run: Path):
    path = run / "checkpoints" / "last.npz"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(upslope.UpslopeError, match=r"last\.npz") as refusal:
        upslope.resume(run, quiet=True)
    assert "damaged" in str(refusal.value) or "does not match" in str(refusal.value)
    with pytest.raises(upslope.UpslopeError, match=r"last\.npz"):
        upslope.load(run, checkpoint="last")
    assert (run / "metrics.jsonl").read_bytes() == before
    assert upslope.load(run, checkpoint="best").seed in (3, 4)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_dataset_is_refused_by_name(damage: str, tmp_path: Path):
    buffer = io.BytesIO()
    steps = {"observation": np.zeros((200, 4)), "action": np.zeros(200, int), "reward": np.zeros(200)}
    ends = {"length": np.array([200]), "terminated": np.array([True]), "final_observation": np.zeros((1, 4))}
    np.savez(buffer, meta=np.asarray("{}"), **steps, **ends)
    path = tmp_path / "data.npz"
    path.write_bytes(DAMAGES[damage](buffer.getvalue()))
    with pytest.raises(upslope.UpslopeError, match=r"data\.npz"):
        load_dataset(path, BoxEncoder((4,)), DiscreteHead(2), False)


def test_the_wrong_checkpoint_is_refused(run: Path):
    shutil.copy(run / "checkpoints" / "best.npz", run / "checkpoints" / "last.npz")
    with pytest.raises(upslope.UpslopeError, match=r"does not match this run's config.*is missing"):
        upslope.resume(run, quiet=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d | {"format": 99}, "in format 99.*reads format 1"),
        (lambda d: d | {"config": d["config"] | {"no_such": 1}}, "no_such"),
        (lambda d: d | {"config": d["config"] | {"steps": "many"}}, "config"),
        (lambda d: {k: v for k, v in d.items() if k != "config"}, "damaged or was not written by upslope"),
        (lambda d: {k: v for k, v in d.items() if k != "axes"}, "config.json"),
        (lambda d: {k: v for k, v in d.items() if k != "versions"}, "config.json"),
        (lambda d: {k: v for k, v in d.items() if k != "spaces"}, None),
        (lambda d: [d], "damaged or was not written by upslope"),
    ],
)
def test_a_config_of_another_kind_is_refused(change: Callable[[Any], Any], words: str | None, run: Path):
    path = run / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    if words is None:
        with pytest.raises(upslope.UpslopeError, match="spaces"):
            upslope.load(run)
        return
    with pytest.raises(upslope.UpslopeError, match=words):
        upslope.resume(run, quiet=True)


def test_a_damaged_config_is_refused(run: Path):
    (run / "config.json").write_text('{"format": 1, "con')
    with pytest.raises(upslope.UpslopeError, match=r"config\.json is damaged"):
        upslope.load(run)


def test_lost_rows_are_told(run: Path):
    (run / "episodes.csv").write_text("step,seed,return,length\n")
    with pytest.raises(upslope.UpslopeError, match=r"episodes\.csv is shorter"):
        upslope.resume(run, quiet=True)


def test_an_existing_run_is_not_overwritten(trained: Path):
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    with pytest.raises(upslope.UpslopeError, match=r"already exists.*upslope resume .*--name"):
        upslope.train("jax:CartPole-v1", folder=trained.parent, name="run", quiet=True, **SMALL)
    assert before == {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}


def test_a_full_disk_leaves_the_last_checkpoint(folder: Path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    original, count = pathlib.Path.open, 0

    def full(self: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        nonlocal count
        count += mode == "a" and self.name == "metrics.jsonl"
        if mode[0] in "aw" and count > 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, mode, *rest, **options)

    options: dict[str, Any] = {"folder": folder, "quiet": True, "preset": False, "steps": 320}
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", full)
        with pytest.raises(upslope.UpslopeError, match="No space left") as refusal:
            upslope.train("jax:CartPole-v1", name="full", **options, **SMALL)
    assert f"upslope resume {folder / 'full'}" in str(refusal.value)
    upslope.resume(folder / "full", quiet=True)
    whole = upslope.train("jax:CartPole-v1", name="whole", **options, **SMALL).path
    assert arrays_of(whole / "checkpoints" / "last.npz") == arrays_of(folder / "full" / "checkpoints" / "last.npz")
    assert (whole / "episodes.csv").read_text() == (folder / "full" / "episodes.csv").read_text()
    assert not list((folder / "full").rglob("*.tmp"))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(upslope.UpslopeError, match=r"Could not create .*Choose another folder"):
        upslope.train("jax:CartPole-v1", folder=tmp_path / "file", name="x", quiet=True, **SMALL)

    def refuse(self: Path, *rest: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(pathlib.Path, "mkdir", refuse)
    with pytest.raises(upslope.UpslopeError, match=r"Permission denied.*Choose another folder"):
        upslope.train("jax:CartPole-v1", folder=tmp_path, name="x", quiet=True, **SMALL)


@pytest.fixture(scope="module")
def trained_run(trained: Path) -> Any:
    return upslope.resume(trained, quiet=True)


@pytest.mark.parametrize(
    "use",
    [
        upslope.load,
        upslope.compare,
        upslope.diagnose,
        lambda run: upslope.compare([run]),
        lambda run: upslope.evaluate(run, episodes=1),
        lambda run: upslope.table([run]),
        lambda run: upslope.resume(run, quiet=True),
        lambda run: upslope.bundle([run], f"{run.path}-of-run.zip"),
    ],
)
def test_the_result_of_training_is_taken_wherever_a_folder_is(use, trained_run):
    use(trained_run)


@pytest.mark.parametrize("wrong", [None, 3, b"runs/x", {"run": 1}])
def test_what_is_no_path_is_refused_with_what_to_pass(wrong):
    with pytest.raises(
        UpslopeError, match=r"A run is given by its folder, e\.g\. runs/CartPole-v1-ppo, or as the result"
    ):
        run_path(wrong)
    with pytest.raises(UpslopeError, match="A run is given by its folder"):
        run_paths([wrong])
    with pytest.raises(UpslopeError, match="No run was given"):
        run_paths([])


def test_a_star_import_gives_the_public_names():
    names: dict = {}
    exec("from upslope import *", names)
    assert names["Clip"] is upslope.Clip and set(upslope.__all__) <= set(names)
    assert "import_module" not in names and "config" not in names


def test_results_have_short_texts(trained_run):
    assert (
        repr(trained_run)
        == f"Run({str(trained_run.path)!r}: ppo on jax:CartPole-v1, 2 seeds, mean return "
        + repr(trained_run).rpartition(" ")[2]
    )
    assert repr(trained_run.load(seed=3)).startswith("Policy(seed 3, checkpoint best: Box(-inf, inf, (4,), float32) → ")
    first, second, *_ = repr(upslope.compare(trained_run, score="training")).splitlines()
    assert first.startswith("Comparison by the mean return of the last 100") and "ppo on jax:CartPole-v1: " in second
