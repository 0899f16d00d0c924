"""Notebooks show results as HTML in which all text is escaped, and a single panel that is redrawn."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import ending, write_run
from run_helpers import make_snapshot

import upslope
from upslope.diagnosis.check import Checked
from upslope.diagnosis.check_results import Check, Choice
from upslope.errors import UpslopeError
from upslope.runs import notebooks
from upslope.runs.directory import RunDirectory
from upslope.runs.evaluation import Evaluation, Evaluations
from upslope.runs.notebooks import NotebookDisplay
from upslope.runs.train import Run

HOSTILE = "<script>alert(1)</script>&"
VOID = {"br"}


class Elements(HTMLParser):
    """Collects the elements and the text of HTML, and checks that every opened element is closed."""

    def __init__(self, html: str):
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.names.append(tag)
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def shown(result: Any) -> Elements:
    found = Elements(result._repr_html_())
    assert "script" not in found.names
    return found


def run_of(path: Path) -> Run:
    config = RunDirectory(path).config()
    return Run(path, config, tuple(config.seed_list()), np.asarray([20.0, 30.0, 43.0])[: config.seeds])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write a run of three seeds. Each seed's returns rise by 10 per episode, starting from 10 plus the seed."""
    episodes = {seed: [(10 * k, float(10 * k + seed)) for k in range(1, 4)] for seed in range(3)}
    return write_run(tmp_path, name=HOSTILE.replace("/", "|"), episodes=episodes, steps=100)


def test_a_check_shows_what_it_found_and_the_command():
    checks = (Check("rewards", "warning", HOSTILE, "Shape the reward."),)
    found = shown(Checked(HOSTILE, checks, "upslope train …", (Choice("--seeds 5", HOSTILE),)))
    words = " ".join(found.words)
    assert words.count(HOSTILE) == 3 and "Shape the reward." in words and "upslope train …" in words


def test_a_run_shows_its_returns_and_a_curve_per_seed(path: Path):
    found = shown(run_of(path))
    assert found.names.count("polyline") == 3
    words = " ".join(found.words)
    # 20, 30 and 43 have mean 31 and s = 11.53, and t = 4.303, so 4.303 · 11.53 / √3 = 28.6.
    assert "ppo on CartPole-v1 · 3 seeds" in words and "31 ± 29 (95 %)" in words
    assert "<script>" in words
    points = re.findall(r"points='([^']*)'", run_of(path)._repr_html_())
    assert [len(line.split()) for line in points] == [3, 3, 3]
    heights = [float(point.split(",")[1]) for point in points[0].split()]
    assert heights == sorted(heights, reverse=True)  # a rising mean is drawn upwards


def test_runs_without_intervals_episodes_or_experience_show_themselves(tmp_path: Path):
    one = write_run(tmp_path, name="one", episodes=ending(7.0), steps=100)
    assert "95 %" not in " ".join(shown(run_of(one)).words)
    none = write_run(tmp_path, name="none", episodes={0: [], 1: []}, steps=100)
    nothing = Run(none, RunDirectory(none).config(), (0, 1), np.asarray([np.nan, np.nan]))
    assert "svg" not in shown(nothing).names
    recorded = write_run(tmp_path, name="recorded", episodes={0: []}, steps=100, algorithm="clone", data=HOSTILE)
    assert "learned from recorded data" in " ".join(shown(run_of(recorded)).words)
    (one / "episodes.csv").write_text("damaged")
    assert any("damaged" in word for word in shown(run_of(one)).words)


def test_comparison_diagnosis_and_evaluation_show_themselves(path: Path, tmp_path: Path):
    other = write_run(tmp_path, name="other", episodes=ending(1.0, 2.0, 3.0), steps=100, algorithm="a2c")
    comparison = upslope.compare([path, other])
    words = " ".join(shown(comparison).words)
    assert "ppo" in words and "a2c" in words and "Probability" in words
    assert all(warning in words for warning in comparison.warnings) and comparison.warnings
    diagnosis = upslope.diagnose(path)
    assert "Not enough evidence" in " ".join(shown(diagnosis).words)

    returns = np.asarray([[1.0, 3.0], [5.0, 7.0]])
    mode = Evaluation("stochastic", (0, 4), returns, returns.astype(int), returns > 0)
    both = Evaluations(stochastic=mode, deterministic=mode)
    words = shown(both).words
    # The means 2 and 6 have mean 4 and s = 2.83, and t = 12.71, so 12.71 · 2.83 / √2 = 25.4.
    assert "Mean return of 2 episodes per seed" in words and words.count("4 ± 25 (95 %)") == 2
    assert shown(mode).words.count("stochastic") == 1
    assert both == {"stochastic": mode, "deterministic": mode}
    assert Evaluations()._repr_html_() == ""


def test_findings_are_escaped(path: Path):
    from upslope.diagnosis.doctor import Diagnosis
    from upslope.diagnosis.findings import Evidence, Finding

    evidence = Evidence(HOSTILE, (1.0,), (0, 10))
    finding = Finding(HOSTILE, HOSTILE, HOSTILE, HOSTILE, 0.9, 1.0, (HOSTILE,), HOSTILE, (evidence,))
    words = shown(Diagnosis(HOSTILE, (finding,), ("a",), {}, HOSTILE)).words
    assert sum("<script>" in word for word in words) == 8


def test_tables_as_data_frames(path: Path):
    pytest.importorskip("pandas")
    run = run_of(path)
    metrics, episodes = run.frame(), run.frame("episodes")
    assert list(metrics.columns) == ["iteration", "seed", "step"] and len(metrics) == 12
    assert episodes.groupby("seed")["return"].mean().tolist() == [20.0, 21.0, 22.0]
    assert len(run.frame("evaluation")) == 0


def test_a_table_that_is_not_there_and_a_missing_pandas(path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UpslopeError, match="metrics, episodes, evaluation"):
        notebooks.frame_of(RunDirectory(path), "curves")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UpslopeError, match=r'pip install "upslope\[pandas\]"'):
        run_of(path).frame()


def test_a_notebook_has_one_panel(monkeypatch: pytest.MonkeyPatch, capsys):
    drawn: list[str] = []
    handle = SimpleNamespace(update=drawn.append)
    module = SimpleNamespace(HTML=lambda html: html, display=lambda html, display_id: drawn.append(html) or handle)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    times = iter(np.arange(0.0, 1000.0, 0.01))
    monkeypatch.setattr(notebooks.time, "monotonic", lambda: float(next(times)))
    with NotebookDisplay() as display:
        display.start("ppo", ["writing"])
        for percent in range(1, 101):  # takes less than two seconds on this clock
            display.update(make_snapshot(steps=[percent * 1000] * 5))
        display.finish(None, ["the end"])
    assert len(drawn) <= 4
    assert "100 %" in " ".join(Elements(drawn[-1]).words)  # the last state is drawn even if no redraw was due
    assert capsys.readouterr().out == "writing\nthe end\n"
