"""Text from files and arguments is never interpreted as rich markup or as terminal control sequences."""

import io
import json
import shlex
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import ending
from rich.table import Table
from rich.text import Text

import upslope
from upslope.cli.main import main
from upslope.cli.terminal import answer
from upslope.core.consoles import PlainTextConsole
from upslope.core.messages import readable
from upslope.errors import UpslopeError
from upslope.report.page import write_report
from upslope.runs.directory import check_name, free_name
from upslope.runs.display import LiveDisplay, PlainDisplay, QuietDisplay

HOSTILE = "a\x1b[31mb\x9b2Jc\u202ed\x07e\u2066f\ng[b]h[/b]i\ud800j\x7fk\x00l</script>m"
CONTROLS = "\x1b\x9b\u202e\u2066\x07\x7f\x00\ud800"


def is_clean(text: str) -> bool:
    """Return whether the text is free of control characters."""
    return not set(text) & set(CONTROLS)


def test_readable_text_is_printable_and_keeps_what_can_be_read():
    assert readable("x\x1b[0m\n\t\u202ey\U000e0001") == "x\\x1b[0m\\n\\t\\u202ey\\U000e0001"
    assert readable("größer 漢字 [b]") == "größer 漢字 [b]"
    assert readable(HOSTILE).isprintable()


def test_a_console_shows_markup_and_escapes_as_they_are_written():
    out = io.StringIO()
    console = PlainTextConsole(file=out, width=200, force_terminal=False)
    table = Table(title=HOSTILE, caption=HOSTILE)
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    for one in (table, HOSTILE, Text(HOSTILE), "mark[/b]up", ":smile:"):
        console.print(one)
    shown = out.getvalue()
    assert is_clean(shown) and "mark[/b]up" in shown and ":smile:" in shown and "g[b]h[/b]i" in shown


def test_displays_show_no_escapes(capsys: pytest.CaptureFixture):
    for display in (PlainDisplay(), QuietDisplay(), LiveDisplay()):
        display.start(HOSTILE, [HOSTILE])
        display.message(HOSTILE)
        display.finish(None, [HOSTILE])
    found = capsys.readouterr()
    assert is_clean(found.out.replace("\x1b[?25", "")) and is_clean(found.err) and "[b]h[/b]" in found.err


def test_json_for_programs_is_what_it_says_and_holds_no_escapes(capsys: pytest.CaptureFixture):
    answer(True, {"name": HOSTILE, "漢": 1}, ())
    shown = capsys.readouterr().out
    assert is_clean(shown) and json.loads(shown) == {"name": HOSTILE, "漢": 1} and "漢" in shown


@pytest.fixture
def hostile(run_of, tmp_path: Path) -> list[Path]:
    """Runs with malicious text in their folder names and files."""
    name = HOSTILE.replace("/", "|").replace("\x00", "").replace("\ud800", "")
    first = run_of(
        name="first", episodes=ending(1.0, 2.0), steps=100, evaluations=[(0, "stochastic", "last", 0, 1, 2, 1)]
    )
    description = json.loads((first / "config.json").read_text())
    description["config"]["environment"] = HOSTILE
    description["created"] = description["versions"]["numpy"] = HOSTILE
    description["versions"][HOSTILE] = HOSTILE
    description["config"]["preset"] = HOSTILE
    description["config"]["env_kwargs"] = {HOSTILE: HOSTILE}
    (first / "config.json").write_text(json.dumps(description))
    rows = [json.loads(line) | {HOSTILE: 1.0} for line in (first / "metrics.jsonl").read_text().splitlines()]
    (first / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    moved = first.rename(tmp_path / name)
    return [moved, Path(shutil.copytree(moved, tmp_path / "mark[b]up"))]


def test_every_command_that_reads_keeps_them_from_the_terminal(hostile: list[Path], capsys, tmp_path: Path):
    page = str(tmp_path / "page.html")
    paths = list(map(str, hostile))
    for words in (
        ["compare", *paths], ["compare", "--json", *paths], ["report", *paths, "-o", page], ["doctor", *paths],
        ["doctor", "--json", paths[0]], ["evaluate", paths[0]], ["resume", paths[0]], ["credit", paths[1]],
        ["record", paths[1]], ["train", paths[0]], ["train", "CartPole-v1", "--name", HOSTILE],
        ["train", "CartPole-v1", "--config", paths[0]], ["compare", paths[0] + "nowhere"],
    ):  # fmt: skip
        with suppress(SystemExit):
            main(words)
        said = capsys.readouterr()
        assert is_clean(said.out) and is_clean(said.err), words
        assert "Traceback" not in said.err
    html = Path(page).read_text()
    assert is_clean(html) and "<b>h</b>" not in html and "l</script>m" not in html and "&lt;/script&gt;" in html


def test_two_hostile_runs_make_a_page(hostile: list[Path], tmp_path: Path):
    assert write_report(hostile, tmp_path / "page.html").stat().st_size > 1e6


NAMES = (
    "../x", ".", "..", "", " ", "/x", "a/b", "a\\b", "C:\\x", "x" * 300, "ü" * 150, "a\nb", "a\x1b[31m", "con",
    "NUL.txt", "com1", ".hidden", " a", "a ", "a\u202eb", "mark[/b]up", "\ud800",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_that_is_no_name_of_a_folder_is_refused(name: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UpslopeError, match="--name"):
        check_name(name)
    for call in (upslope.train, upslope.ladder):
        with pytest.raises(UpslopeError, match="cannot be the name of a folder"):
            call("jax:CartPole-v1", name=name, quiet=True)
    if name.isprintable():
        for command in ("train", "ladder"):
            with pytest.raises(SystemExit) as end:
                main([command, "jax:CartPole-v1", *shlex.split(f"--name={shlex.quote(name)}")])
            assert end.value.code == 2 and "cannot be the name of a folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_other_names_are_taken_and_long_ones_of_environments_are_cut(tmp_path: Path):
    for name in ("a", "ppo-2", "größer", "漢字", "a b", "x.y", "mark[b]up", "-x", "x" * 200):
        assert check_name(name) == name
    assert len(free_name(tmp_path, "module:" + "x" * 500).name) < 60
    assert free_name(tmp_path, "...").name == "run"
