"""Whatever the files of a run contain, every command that reads them gives either a result or a single message, and a
bad run does not affect other runs."""

import io
import json
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import LAWS
from hypothesis import given
from malformed import VALUES, spoiled_json

import upslope
from upslope.analysis.credit import FILE_NAME
from upslope.cli.comparison_tables import comparison_page
from upslope.cli.diagnosis_tables import diagnosis_view
from upslope.cli.main import main
from upslope.core.consoles import PlainTextConsole
from upslope.errors import UpslopeError
from upslope.report.page import write_report
from upslope.runs.directory import RunDirectory
from upslope.runs.policy import spaces_from

SMALL: dict[str, Any] = {
    "num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 1, "hidden_sizes": (8,), "preset": False,
    "quiet": True, "seeds": 2, "steps": 160, "max_episode_steps": 9,
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train and evaluate two runs, `discrete` and `box`."""
    folder = tmp_path_factory.mktemp("trained")
    for name, environment in (("discrete", "jax:CartPole-v1"), ("box", "jax:Pendulum-v1")):
        run = upslope.train(environment, name=name, folder=folder, **SMALL).path
        upslope.evaluate(run, episodes=2)
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """Copy the trained runs."""
    return Path(shutil.copytree(trained, tmp_path / "runs"))


def answers(run: Path, beside: Path, page: Path) -> list[str]:
    """Return the error message, or "", of each command that reads a run. Some commands also read the run `beside`."""

    def shown(picture: Any) -> None:
        PlainTextConsole(file=io.StringIO(), width=150).print(picture)

    commands: list[Callable[[], Any]] = [
        lambda: upslope.load(run),
        lambda: shown(diagnosis_view(upslope.diagnose(run))),
        lambda: shown(comparison_page(upslope.compare([run, beside], normalize="range"))),
        lambda: write_report([run, beside], page),
    ]
    said = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for command in commands:
            try:
                command()
                said.append("")
            except UpslopeError as error:
                said.append(str(error))
    return said


NUMBERS = ("1e308", "-1e308", "inf", "-inf", "nan", "-1", "9223372036854775807", "-9223372036854775808", "1.5", "")


@pytest.mark.parametrize("name", ["episodes.csv", "evaluation.csv"])
@pytest.mark.parametrize("number", NUMBERS)
def test_any_number_in_a_table(name: str, number: str, runs: Path, tmp_path: Path):
    path = runs / "discrete" / name
    header, *rows = path.read_text().splitlines()
    for title in ("step", "seed", "return", "length"):
        if title not in header.split(","):
            continue
        cells = [row.split(",") for row in rows]
        for row in cells[:1] if title == "seed" else cells:
            row[header.split(",").index(title)] = number
        path.write_text("\n".join([header, *map(",".join, cells)]) + "\n")
        said = answers(runs / "discrete", runs / "box", tmp_path / "page.html")
        assert said[0] == "" and said[-1] == "", (title, said)  # the page is written with the other run
        is_wrong = number == "-1" if title != "return" else number in ("1e308", "-1e308")
        if is_wrong:
            with pytest.raises(UpslopeError, match=f"{name} is damaged"):
                upslope.compare(runs / "discrete")


@pytest.mark.parametrize("value", [1e308, -1, 2**63, 10**400, None, True, "x", [[1]]], ids=ascii)
def test_any_value_in_the_metrics(value: Any, runs: Path, tmp_path: Path):
    path = runs / "discrete" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for key in ("step", "policy/kl"):
        path.write_text("".join(json.dumps(row | {key: value}) + "\n" for row in rows))
        said = answers(runs / "discrete", runs / "box", tmp_path / "page.html")
        assert said[0] == "" and said[-1] == "", (key, said)


FOREIGN: list[Any] = [
    None, "x", [], {}, [[1]], -1, 1e308, True, 2**40, 10**400, [2**31, 2**31], [None], ["nan"], [1] * 100,
    {"kind": "BoxHead"}, "BoxCoding",
]  # fmt: skip


@pytest.mark.parametrize("run", ["discrete", "box"])
def test_any_value_in_the_description_of_spaces(run: str, runs: Path):
    path = runs / run / "config.json"
    whole = json.loads(path.read_text())
    places = [("spaces",), *(("spaces", role) for role in ("observation", "action"))]
    places += [("spaces", role, field) for role in ("observation", "action") for field in whole["spaces"][role]]
    for place in places:
        for value in FOREIGN:
            changed = json.loads(json.dumps(whole))
            inner = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            path.write_text(json.dumps(changed))
            for command in (upslope.load, upslope.diagnose):
                try:
                    command(runs / run)
                except UpslopeError as error:
                    assert "config.json" in str(error) or "checkpoint" in str(error), error


SPACES = {
    "observation": {"kind": "DiscreteCoding", "n": 3, "start": 0},
    "action": {"kind": "BoxHead", "shape": [2], "low": ["-1.0", "-inf"], "high": ["1.0", "inf"]},
}


@LAWS
@given((spoiled_json(SPACES) | VALUES).filter(lambda x: isinstance(x, dict)))
def test_spaces_are_described_or_refused(spaces: Any):
    try:
        coding, head = spaces_from(spaces, "config.json")
    except UpslopeError:
        return
    assert coding.num_features >= 1 and head.num_outputs >= 1


def test_random_changes_of_any_file(runs: Path, tmp_path: Path):
    generator = random.Random(0)
    for k in range(12):
        run = Path(shutil.copytree(runs / generator.choice(["discrete", "box"]), tmp_path / f"run-{k}"))
        path = run / generator.choice(["config.json", "metrics.jsonl", "episodes.csv", "evaluation.csv"])
        content = path.read_bytes()
        place = generator.randrange(len(content))
        head, tail = content[:place], content[place:]
        changes = (head, head + b"[" * 50_000, head + generator.randbytes(5) + tail, head + tail[1:])
        path.write_bytes(generator.choice(changes))
        assert answers(run, runs / "discrete", tmp_path / "page.html")[-1] == "", (path, place)


def test_one_bad_run_costs_no_other_run_its_answer(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (runs / "box" / "episodes.csv").write_text("nonsense\n")
    (runs / "discrete" / FILE_NAME).write_bytes(b"nonsense")
    page = tmp_path / "page.html"
    both = [str(runs / "discrete"), str(runs / "box")]
    for words in (["doctor", *both], ["compare", *both], ["report", *both, "-o", str(page)]):
        main(words)
        said = capsys.readouterr()
        assert "box" in (page.read_text() if words[0] == "report" else said.out + said.err)
    assert "left out" in page.read_text() and "credit.npz is not a credit file" in page.read_text()
    shutil.rmtree(runs / "discrete")
    for words in (["doctor", both[1]], ["compare", both[1]], ["report", both[1], "-o", str(page)]):
        with pytest.raises(SystemExit) as end:
            main(words)
        assert end.value.code == 2 and capsys.readouterr().err.startswith("upslope: ")


def test_episodes_of_seeds_that_the_run_does_not_have_are_not_counted(runs: Path):
    directory = RunDirectory(runs / "discrete")
    before = upslope.compare([runs / "discrete"], score="training")
    with directory.episodes_path.open("a") as file:
        file.write("5,77,1000.0,3\n")
    after = upslope.compare([runs / "discrete"], score="training")
    assert np.array_equal(before.groups[0].scores, after.groups[0].scores)
