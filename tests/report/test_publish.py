"""Figures, tables and archives of runs contain the same numbers as `compare`, and untrusted files can do no harm."""

import csv
import io
import json
import re
import shlex
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import write_run

import upslope
from upslope.cli.main import main
from upslope.errors import UpslopeError
from upslope.report import print_figures, print_style
from upslope.report.print_tables import csv_text, latex_number, latex_text, markdown_text
from upslope.runs import bundles
from upslope.runs.bundles import unpacked

BUDGET = 1000
WORLDS = ("CartPole-v1", "Acrobot-v1")


def returns(seed: int, ceiling: float) -> list[tuple[int, float]]:
    """Return episodes whose return rises with the steps, differently for each seed."""
    return [(step, ceiling * step / BUDGET + 7 * np.sin(seed + step)) for step in range(50, BUDGET + 1, 50)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Write runs of three algorithms in two environments with three seeds each. ppo's seeds in CartPole-v1 are split
    over two runs."""
    folder = tmp_path_factory.mktemp("runs")
    made = []
    for world in WORLDS:
        for rung, ceiling in (("ppo", 300), ("a2c", 200), ("reinforce", 100)):
            parts = [(0, 1), (2,)] if (rung, world) == ("ppo", "CartPole-v1") else [(0, 1, 2)]
            for k, seeds in enumerate(parts):
                episodes = {seed: returns(seed, ceiling) for seed in seeds}
                name = f"{rung}-{world}-{k}"
                made.append(write_run(folder, name, episodes=episodes, steps=BUDGET, environment=world, algorithm=rung))
    return made


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Collect the Matplotlib figures that are drawn."""
    pytest.importorskip("matplotlib")
    found: list[Any] = []
    original = print_figures.laid_out

    def noted(*arguments: Any) -> Any:
        found.append(original(*arguments))
        return found[-1]

    monkeypatch.setattr(print_figures, "laid_out", noted)
    return found


# --- figures ---------------------------------------------------------------------------------------------------


def test_curves_end_in_the_numbers_of_compare(runs: list[Path], shown: list[Any], tmp_path: Path):
    drawn = upslope.figure(runs, tmp_path / "curves.pdf")
    found = upslope.compare(runs)
    legend = [text.get_text() for text in shown[0].legends[0].get_texts()]
    assert legend == ["ppo", "a2c", "reinforce"]
    for world, axes in zip(WORLDS, shown[0].axes, strict=True):
        assert axes.get_title() == world and axes.get_xlim() == (0, BUDGET)
        groups = [g for g in found.groups if g.environment == world]
        for group, line, area in zip(groups, axes.lines, axes.collections, strict=True):
            last = group.efficiency.at[-1]
            assert line.get_ydata()[-1] == pytest.approx(last.value)
            outline = area.get_paths()[0].vertices
            ends = outline[outline[:, 0] == BUDGET][:, 1]
            assert (ends.min(), ends.max()) == pytest.approx((last.interval.low, last.interval.high))
    assert drawn.path.read_bytes() == upslope.figure(runs, tmp_path / "again.pdf").path.read_bytes()


def test_a_comparison_and_a_profile_show_the_numbers_of_compare(runs: list[Path], shown: list[Any], tmp_path: Path):
    upslope.figure(runs, tmp_path / "scores.svg", kind="comparison", size="page", labels=["P", "A", "R"])
    found = upslope.compare(runs)
    for axes, world in zip(shown[0].axes, WORLDS, strict=True):
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["P", "A", "R"]
        groups = [g for g in found.groups if g.environment == world]
        lines = [line.get_xdata() for line in axes.lines]
        for group, (seeds, mean, ends) in zip(
            groups, zip(lines[0::3], lines[1::3], lines[2::3], strict=True), strict=True
        ):
            np.testing.assert_array_equal(seeds, group.scores)
            assert [*mean, *ends] == [group.mean.value, group.mean.interval.low, group.mean.interval.high]
    upslope.figure(runs, tmp_path / "profile.png", kind="profile", size="slide")
    profiles = upslope.compare(runs, normalize="range").profiles
    for profile, line, area in zip(profiles, shown[1].axes[0].lines, shown[1].axes[0].collections, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.stack([profile.thresholds, profile.share], axis=1))
        assert area.get_paths()[0].vertices[:, 1].max() == pytest.approx(profile.high.max())


def test_files_have_their_sizes_fonts_and_no_dates(runs: list[Path], tmp_path: Path):
    pytest.importorskip("matplotlib")
    pdf = upslope.figure(runs[:1], tmp_path / "one.pdf").path.read_bytes()
    width, _ = map(float, re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", pdf)[0])
    assert width == pytest.approx(3.25 * 72) and b"/FontFile2" in pdf and b"/Type3" not in pdf and b"Date" not in pdf
    svg = upslope.figure(runs[:1], tmp_path / "one.svg", size="page").path.read_text()
    assert 'width="486pt"' in svg and "<text" not in svg and "<dc:date>" not in svg
    png = upslope.figure(runs[:1], tmp_path / "one.png").path.read_bytes()
    assert int.from_bytes(png[16:20], "big") == 975  # 3.25 inches at 300 pixels per inch


@pytest.mark.parametrize("kind", ["curves", "comparison"])
def test_six_runs_with_long_names_fit_into_a_column(kind: Any, shown: list[Any], tmp_path: Path):
    widths = [(64,) * k for k in range(1, 7)]
    runs = [
        write_run(
            tmp_path, f"run-{k}", episodes={s: returns(s, 10 + 40 * k) for s in (0, 1)}, steps=BUDGET, hidden_sizes=w
        )
        for k, w in enumerate(widths)
    ]
    upslope.figure(runs, tmp_path / "column.pdf", kind=kind)
    figure, axes = shown[0], shown[0].axes[0]
    renderer = figure.canvas.get_renderer()
    page = figure.bbox
    whole = [axes.get_tightbbox(renderer), *(legend.get_window_extent(renderer) for legend in figure.legends)]
    for box in whole:
        assert box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0 and box.y1 <= page.y1
    assert kind == "comparison" or not whole[0].overlaps(whole[1])
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = [label.get_window_extent(renderer) for label in labels if label.get_text()]
        assert len(boxes) > 2 and not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])
    assert axes.get_position().width > 0.4


def test_names_are_shortened_and_stay_apart():
    long = [f"ppo hidden_sizes=({'64, ' * 20}{k})" for k in (1, 2)] + [f"a{k}{'b' * 60}" for k in (1, 2)]
    found = print_style.shortened([*long, "ppo"], 24)
    assert len(set(found)) == 5 and max(map(len, found)) <= 24 and found[-1] == "ppo"
    assert print_style.shortened(["x" * 30, "x" * 31], 24) == [f"{'x' * 15}…{'x' * 8}", f"{'x' * 13}…{'x' * 6} (2)"]


def test_a_metric_is_drawn_as_the_report_draws_it(runs: list[Path], shown: list[Any], tmp_path: Path):
    run = write_run(tmp_path, episodes={0: [(9, 1.0)], 1: [(9, 1.0)]}, steps=8)
    rows = [{"iteration": i, "seed": s, "step": 2 + 2 * i, "policy/kl": i + s} for s in (0, 1) for i in range(4)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    upslope.figure([run], tmp_path / "kl.pdf", metric="policy/kl")
    (line,) = shown[0].axes[0].lines
    np.testing.assert_allclose(line.get_xydata(), [(2, 0.5), (4, 1.5), (6, 2.5), (8, 3.5)])
    assert shown[0].axes[0].get_ylabel() == "KL divergence of an update (nats)"
    for settings, words in (
        ({"metric": "policy/kll"}, 'no metric in these runs "policy/kll". Did you mean policy/kl'),
        ({"metric": "policy/kl", "kind": "profile"}, "--metric applies to --kind curves"),
        ({"normalize": "range"}, "--normalize apply to --kind comparison"),
        ({"labels": ["a", "b"]}, "2 labels for 1 group"),
    ):
        with pytest.raises(UpslopeError, match=words):
            upslope.figure([run], tmp_path / "kl.pdf", **settings)


def test_a_strangers_style_sheet_runs_nothing_and_reads_nothing(runs: list[Path], shown: list[Any], tmp_path: Path):
    ran = tmp_path / "ran"
    sheet = tmp_path / "theirs.mplstyle"
    sheet.write_text(
        f"""
# fonts
lines.linewidth: 3.5  # thick
axes.prop_cycle: cycler('color', ['#123456', '654321']) + cycler('ls', ['-', '--'])
axes.prop_cycle: cycler("color", [str(open({str(ran)!r}, "w"))])
figure.hooks: planted:run
text.usetex: True
text.latex.preamble: \\input{{/etc/passwd}}
backend: module://planted
animation.ffmpeg_path: /bin/sh
"""
    )
    drawn = upslope.figure(runs[:3], tmp_path / "styled.pdf", style=sheet)
    lines = shown[0].axes[0].lines
    assert [line.get_color() for line in lines] == ["#123456", "#654321"] and lines[0].get_linewidth() == 3.5
    assert not ran.exists() and "planted" not in sys.modules
    left_out = "axes.prop_cycle, figure.hooks, text.usetex, text.latex.preamble, backend, animation.ffmpeg_path"
    assert any(left_out in note for note in drawn.notes)
    for text, words in (("no setting", "line 1: no setting"), ("font.size: big", "'big'"), ("a.b: 1", "is not a")):
        sheet.write_text(text)
        with pytest.raises(UpslopeError, match=words):
            upslope.figure(runs[:1], tmp_path / "styled.pdf", style=sheet)
    with pytest.raises(UpslopeError, match="no style sheet"):
        upslope.figure(runs[:1], tmp_path / "styled.pdf", style="ggplot")


def test_names_are_text_and_other_files_are_kept(runs: list[Path], tmp_path: Path, capsys: Any, monkeypatch: Any):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    names = ["$\\frac{", "_hidden", "中"]
    main(["figure", *map(str, runs), "-o", "odd.pdf", "--labels", *names])
    assert "the font has no glyph for 1 character" in capsys.readouterr().out
    Path("mine.pdf").write_bytes(b"%PDF-1.4")
    for output, words in (
        ("mine.pdf", "not an upslope figure"),
        ("a.jpg", ".pdf, .svg, .png"),
        ("no/a.pdf", "no folder"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["figure", str(runs[0]), "-o", output])
        assert words in " ".join(capsys.readouterr().err.split())
    assert Path("mine.pdf").read_bytes() == b"%PDF-1.4"
    monkeypatch.setattr(print_style, "find_spec", lambda name: None)
    with pytest.raises(UpslopeError, match=r"pip install \"upslope\[figure\]\""):
        upslope.figure(runs[0])
    assert not Path("figure.pdf").exists()


# --- tables ----------------------------------------------------------------------------------------------------


def test_tables_have_the_numbers_of_compare(tmp_path: Path):
    """By hand, the mean of 1, 2, 3 is 2, and the half-width of its interval is 4.303 · 1/√3 = 2.48."""
    run = write_run(tmp_path, episodes={s: [(9, 1.0 + s)] for s in range(3)}, steps=1234, environment="A_b-v0")
    latex, markdown = upslope.table(run, "latex"), upslope.table([run], "markdown")
    assert r"A\_b-v0 & ppo & $2.0 \pm 2.5$ & " in latex and r" & $3$ & $1{,}234$ \\" in latex
    assert "| A\\_b-v0 | ppo | 2.0 ± 2.5 | " in markdown
    (row,) = csv.DictReader(io.StringIO(upslope.table(run, "csv")))
    numbers = {name: float(row[name]) for name in ("mean", "mean_low", "mean_high", "iqm", "median", "seeds", "steps")}
    by_hand = {
        "mean": 2,
        "mean_low": 2 - 2.4841,
        "mean_high": 2 + 2.4841,
        "iqm": 2,
        "median": 2,
        "seeds": 3,
        "steps": 1234,
    }
    assert numbers == pytest.approx(by_hand, abs=1e-4)


def test_each_format_shows_text_as_it_is():
    assert latex_text(r"a_b \x {50%} $x$ #1 & ~^ [1]*--c<|") == (
        r"a\_b \textbackslash{}x \{50\%\} \$x\$ \#1 \& \textasciitilde{}\textasciicircum{} {[}1]{*}-{-}c"
        r"\textless{}\textbar{}"
    )
    assert latex_number("1,234.5 [-1,000.0, 2,000.0]") == r"$1{,}234.5\;[-1{,}000.0,\,2{,}000.0]$"
    assert latex_number("–") == "--"
    assert markdown_text("a|b <i> *x* [y](z) `c` & d_e") == r"a\|b &lt;i&gt; \*x\* \[y\](z) \`c\` &amp; d\_e"
    for text in ("=1+1", "+1", "-1", "@SUM(A1)", " =1", "＝1"):
        assert csv_text(text) == f"'{text}"
    assert csv_text("\t=1") == "\\t=1" and csv_text("ppo lambda=0.9") == "ppo lambda=0.9"


# --- archives --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return upslope.bundle(runs, tmp_path_factory.mktemp("archive") / "runs.zip")


def test_an_archive_is_read_as_the_runs_in_it(runs: list[Path], archive: Path, tmp_path: Path):
    mine, its = upslope.compare(runs), upslope.compare(archive)
    assert [(g.label, g.seeds, g.mean) for g in its.groups] == [(g.label, g.seeds, g.mean) for g in mine.groups]
    (place,) = {path.parent for group in its.groups for path in group.runs}
    assert place.name == "runs.zip" and stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert upslope.table(archive, "csv") == upslope.table(runs, "csv")
    code = f"from upslope.report.page import write_report; import sys; write_report([{str(archive)!r}], "
    code += f"{str(tmp_path / 'r.html')!r}); assert 'jax' not in sys.modules; from upslope.runs.bundles import HELD; "
    code += "print(HELD[0].name)"
    folder = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert not Path(folder).exists() and "upslope-" in folder
    page = (tmp_path / "r.html").read_text()
    assert all(run.name in page for run in runs) and "ppo-CartPole-v1-0" in page


def test_what_needs_a_folder_says_how_to_unpack_an_archive(archive: Path):
    for command in (upslope.load, upslope.evaluate, upslope.resume):
        with pytest.raises(UpslopeError, match=r"unpack it: python -m zipfile -e .*runs\.zip"):
            command(archive)


def test_a_command_in_a_message_is_quoted_for_a_shell(tmp_path: Path):
    archive = tmp_path / "b ü; ls.zip"
    archive.touch()
    with pytest.raises(UpslopeError) as caught:
        upslope.evaluate(archive)
    words = shlex.split(str(caught.value).partition("unpack it: ")[2])
    assert words == ["python", "-m", "zipfile", "-e", str(archive), str(archive.with_suffix(""))]


def test_an_archive_has_the_commands_and_the_same_bytes(runs: list[Path], archive: Path, tmp_path: Path):
    assert upslope.bundle(runs, tmp_path).read_bytes() == archive.read_bytes()
    with zipfile.ZipFile(archive) as file:
        contents = json.loads(file.read("bundle.json"))
        text = file.read("REPEAT.md").decode()
        assert file.read(f"{runs[0].name}/config.json") == (runs[0] / "config.json").read_bytes()
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    first = contents["runs"][0]
    assert first["command"] == "upslope train CartPole-v1 --no-preset --steps 1000 --seeds 2 --name ppo-CartPole-v1-0"
    assert f"    {first['command']}\n" in text and first["versions"]["upslope"] in text
    with pytest.raises(UpslopeError, match="already exists"):
        upslope.bundle(runs, tmp_path)
    twins = [write_run(tmp_path / k, "same", episodes={0: [(9, 1.0)]}, steps=10) for k in "ab"]
    with zipfile.ZipFile(upslope.bundle(twins, tmp_path / "twins")) as file:
        assert {name.split("/")[0] for name in file.namelist()} == {"bundle.json", "REPEAT.md", "same", "same-2"}


def test_only_what_belongs_to_a_run_is_packed(tmp_path: Path):
    run = write_run(tmp_path, episodes={0: [(9, 1.0)]}, steps=10)
    (run / "notes.txt").write_text("mine")
    with zipfile.ZipFile(upslope.bundle([run], tmp_path / "one.zip")) as file:
        assert "run/notes.txt" not in file.namelist() and "run/episodes.csv" in file.namelist()
    (tmp_path / "secret").write_text("secret")
    (run / "evaluation.csv").symlink_to(tmp_path / "secret")
    with pytest.raises(UpslopeError, match=r"evaluation\.csv is a link"):
        upslope.bundle([run], tmp_path / "two.zip")
    with pytest.raises(UpslopeError, match="is not a run directory"):
        upslope.bundle([tmp_path / "nothing"], tmp_path / "two.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.zip", "run", "secret"]


def hostile(path: Path, *entries: tuple[Any, bytes], contents: str = '{"format": 1}') -> Path:
    """Write an archive with these entries, each given by its name or as a complete entry."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        if contents:
            file.writestr("bundle.json", contents)
        for entry, data in entries:
            file.writestr(entry, data)
    return path


def entry_with(name: str, **fields: Any) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    for key, value in fields.items():
        setattr(entry, key, value)
    return entry


LINK = entry_with("run/config.json", external_attr=(stat.S_IFLNK | 0o777) << 16)
HOSTILE: dict[str, tuple[tuple[Any, bytes], ...]] = {
    "is not part of a run": (("../run/config.json", b"{}"),),
    "'/elsewhere/config.json', which": (("/elsewhere/config.json", b"{}"),),
    "'run/../../config.json'": (("run/../../config.json", b"{}"),),
    "'../config.json'": (("../config.json", b"{}"),),
    "'./config.json'": (("./config.json", b"{}"),),
    "'C:/config.json'": (("C:/config.json", b"{}"),),
    "which is not part of a run": (("..\\..\\run/config.json", b"{}"),),
    "'run/own.py'": (("run/own.py", b"{}"),),
    "'run/checkpoints/last.npz/'": (("run/checkpoints/last.npz/", b""),),
    "is not a plain file": ((LINK, b"/etc/passwd"),),
    "contains run/CONFIG.json twice": (("run/config.json", b"{}"), ("run/CONFIG.json", b"{}")),
    "declares": (("run/metrics.jsonl", bytes(80 << 20)),),
    "another compression method": ((entry_with("run/config.json", compress_type=zipfile.ZIP_LZMA), b"{}"),),
}


@pytest.mark.parametrize("words", HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_is_left(words: str, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(bundles, "HELD", [])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = hostile(tmp_path / "theirs.zip", *HOSTILE[words])
    with pytest.raises(UpslopeError, match=re.escape(words).replace("CONFIG", "(?i:config)")):
        upslope.compare(path)
    assert not list((tmp_path / "temporary").iterdir()) and not bundles.HELD
    assert sorted(p.name for p in tmp_path.iterdir()) == ["temporary", "theirs.zip"]


def test_what_is_no_archive_of_upslope_is_refused(tmp_path: Path, archive: Path, monkeypatch: Any):
    cut, foreign = tmp_path / "cut.zip", tmp_path / "text.zip"
    cut.write_bytes(archive.read_bytes()[:-200])
    foreign.write_text("text")
    other = hostile(tmp_path / "other.zip", ("run/config.json", b"{}"), contents="")
    later = hostile(tmp_path / "later.zip", ("run/config.json", b"{}"), contents='{"format": 2}')
    spoiled = tmp_path / "spoiled.zip"
    middle = bytearray(archive.read_bytes())
    middle[len(middle) // 3] ^= 255
    spoiled.write_bytes(middle)
    for path, words in (
        (cut, "not a zip"),
        (foreign, "not a zip"),
        (other, "bundle.json"),
        (later, "format 2"),
        (spoiled, ""),
    ):
        with pytest.raises(UpslopeError, match=f"(?s)not an upslope archive.*{words}"):
            unpacked(path)
    monkeypatch.setattr(bundles, "MAX_ENTRIES", 3)
    with pytest.raises(UpslopeError, match="more than 3 files"):
        unpacked(archive)
    run = write_run(tmp_path, episodes={0: [(9, 1.0)]}, steps=10)
    found = upslope.compare([run, foreign])
    assert any("text.zip" in warning for warning in found.warnings)
    with pytest.raises(UpslopeError, match="unpack it"):
        upslope.evaluate(archive)


def test_a_run_in_an_archive_needs_trust_like_any_other(tmp_path: Path, monkeypatch: Any):
    """`--normalize threshold` creates the environment that the run names, so the run must be trusted."""
    monkeypatch.setenv("UPSLOPE_STATE", str(tmp_path / "state"))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "planted.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    run = write_run(tmp_path, episodes={0: [(9, 1.0)], 1: [(9, 2.0)]}, steps=10)
    description = json.loads((run / "config.json").read_text())
    description["config"] |= {"environment": "planted:make"}
    (run / "config.json").write_text(json.dumps(description))
    archive = upslope.bundle(run, tmp_path / "theirs.zip")
    with pytest.raises(UpslopeError, match="trust=True"):
        upslope.compare(archive, normalize="threshold")
    assert not (tmp_path / "ran").exists()


def test_the_commands_say_what_they_wrote(runs: list[Path], tmp_path: Path, capsys: Any, monkeypatch: Any):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    main(["bundle", *map(str, runs), "--no-checkpoints"])
    assert "wrote runs.zip" in capsys.readouterr().out
    main(["figure", "runs.zip", "--kind", "comparison"])
    assert "wrote figure.pdf" in capsys.readouterr().out
    main(["table", "runs.zip", "--format", "csv"])
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 7 and "no common unit" in said.err
    main(["doctor", "runs.zip", "--json"])
    assert len(json.loads(capsys.readouterr().out)) == len(runs)
