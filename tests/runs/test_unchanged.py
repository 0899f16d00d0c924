"""Files to which training appends are cut on resume only if they still begin with the rows that were written."""

import hashlib
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_helpers import SEGMENTS, before_chunk, rewrite_meta

import upslope
from upslope.analysis.records import read_records
from upslope.errors import UpslopeError
from upslope.report.page import write_report
from upslope.runs.directory import RunDirectory
from upslope.runs.unchanged import CHANGED, PrefixDigest

TABLES = ("metrics.jsonl", "episodes.csv")
SHORT = {"max_episode_steps": 9, "seeds": 1, "hidden_sizes": (8,), "quiet": True}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run, and stop it before its end."""
    folder = tmp_path_factory.mktemp("growing")
    with before_chunk(3, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        upslope.train("jax:CartPole-v1", folder=folder, name="run", steps=480, **SEGMENTS, **SHORT)
    return folder / "run"


@pytest.fixture(params=["recorded hashes", "older checkpoint"])
def run(request: pytest.FixtureRequest, stopped: Path, tmp_path: Path) -> Path:
    """Copy the run. A checkpoint of an older version has no hashes of the files."""
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    if request.param == "older checkpoint":
        rewrite_meta(run / "checkpoints" / "last.npz", lambda meta: meta.pop("digests"))
    return run


def longer(content: bytes) -> bytes:
    """Insert a few characters into the second line, as an edit by hand would."""
    first, _, rest = content.partition(b"\n")
    return first + b"\n" + b" " * 3 + rest


CHANGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "CRLF": (lambda x: x.replace(b"\n", b"\r\n"), r"lines now end in CRLF.*Convert them back to LF"),
    "longer": (longer, "was changed after training wrote it.*Restore it from a copy"),
    "shorter": (lambda x: x[:-1], "shorter than at its checkpoint.*Restore it from a copy"),
    "empty": (lambda x: b"", "shorter than at its checkpoint"),
}


def values(content: bytes) -> bytes:
    """Change a digit, as an edit that keeps the file well-formed would."""
    place = max(i for i, byte in enumerate(content) if 48 <= byte <= 56 and content[i - 1 : i].isdigit())
    return content[:place] + bytes([content[place] + 1]) + content[place + 1 :]


def without_a_row(content: bytes) -> bytes:
    """Delete a row in the middle."""
    rows = content.splitlines(keepends=True)
    return b"".join(rows[: len(rows) // 2] + rows[len(rows) // 2 + 1 :])


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    ("edit", "words"), [(values, CHANGED), (without_a_row, "is shorter than at its checkpoint: rows are missing")]
)
def test_an_analysis_of_a_changed_run_says_so(
    name: str, edit: Any, words: str, stopped: Path, tmp_path: Path, capsys: Any
):
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    assert not read_records([run])[1]
    (run / name).write_bytes(edit((run / name).read_bytes()))
    (record,), (said,) = read_records([run])
    assert f"{run / name} {words}. What is shown" in said and len(record.changes) == 1
    assert said in upslope.compare(run).warnings
    upslope.diagnose(run)
    assert said in capsys.readouterr().err
    assert f"{name} {words[:20]}" in write_report([run], tmp_path / "report.html").read_text("utf-8")
    shutil.rmtree(run / "checkpoints")
    assert not read_records([run])[1]  # nothing is known about the rows


def test_other_line_ends_change_no_number(stopped: Path, tmp_path: Path):
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    rows = run / "metrics.jsonl"
    content = rows.read_bytes()
    rows.write_bytes(content.replace(b"\n", b"\r\n"))
    assert not read_records([run])[1]
    rows.write_bytes(values(content).replace(b"\n", b"\r\n"))
    assert f"{rows} {CHANGED}" in read_records([run])[1][0]


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_was_changed_is_refused_before_any_file_is_touched(change: str, name: str, run: Path):
    edit, words = CHANGES[change]
    (run / name).write_bytes(edit((run / name).read_bytes()))
    assert_refused_untouched(run, rf"{name} .*{words}.*upslope train --from ")


@pytest.mark.parametrize("name", TABLES)
def test_an_edit_that_leaves_the_length_is_noticed_by_the_hash(name: str, stopped: Path, tmp_path: Path):
    run = Path(shutil.copytree(stopped, tmp_path / "run"))
    content = (run / name).read_bytes()
    edited = content.replace(b"9", b"7", 1)
    assert edited != content
    (run / name).write_bytes(edited)
    assert_refused_untouched(run, f"{name} was changed after training wrote it")


def test_a_missing_file_is_refused(run: Path):
    (run / "episodes.csv").unlink()
    assert_refused_untouched(run, "episodes.csv is missing, so the run cannot be resumed")


def test_a_run_whose_line_ends_are_converted_back_is_resumed(run: Path):
    whole = {name: (run / name).read_bytes() for name in TABLES}
    (run / "episodes.csv").write_bytes(whole["episodes.csv"].replace(b"\n", b"\r\n"))
    with pytest.raises(UpslopeError):
        upslope.resume(run, quiet=True)
    (run / "episodes.csv").write_bytes(whole["episodes.csv"])
    upslope.resume(run, quiet=True)
    assert all((run / name).read_bytes().startswith(before) for name, before in whole.items())
    upslope.resume(run, quiet=True)  # the hashes of the resumed run are right too


def test_the_rows_of_a_run_without_its_checkpoints_are_not_discarded(run: Path):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    (run / "metrics.jsonl").write_bytes(b"")
    assert RunDirectory(run).has_begun
    assert_refused_untouched(run, "There is no checkpoint")


def assert_refused_untouched(run: Path, words: str) -> None:
    """Resuming gives this error, and leaves every file as it was."""
    before = contents(run)
    with pytest.raises(UpslopeError, match=words):
        upslope.resume(run, quiet=True)
    assert contents(run) == before


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_hash_continues_where_it_stopped(tmp_path: Path):
    path = tmp_path / "rows"
    digest = PrefixDigest(path)
    path.write_bytes(b"one\n")
    assert digest.up_to(4) == hashlib.sha256(b"one\n").hexdigest()
    with path.open("ab") as file:
        file.write(b"two\nthree")
    assert digest.up_to(8) == hashlib.sha256(b"one\ntwo\n").hexdigest()
    path.write_bytes(b"ONE\ntwo\nthree")
    assert digest.up_to(13) == hashlib.sha256(b"one\ntwo\nthree").hexdigest(), "the first bytes are not read again"
    assert digest.up_to(3) == hashlib.sha256(b"ONE").hexdigest(), "going back starts anew"
