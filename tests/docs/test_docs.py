"""The documentation agrees with the source: line numbers, code, links, commands and stored results."""

import ast
import functools
import importlib
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from upslope.cli import main as cli
from upslope.config.ladder import ALGORITHMS

ROOT = Path(__file__).parents[2]
specification = importlib.util.spec_from_file_location("refresh_links", ROOT / "docs" / "refresh_links.py")
refresh = importlib.util.module_from_spec(specification)
specification.loader.exec_module(refresh)

PAGES = {str(page.relative_to(ROOT)): page for page in refresh.pages()}
ANY_LINK = re.compile(r"\[[^\[\]]*\]\((?!https?:|mailto:|#)([^()\s#]+)(?:#[^()\s]*)?\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
INLINE_MATHS = re.compile(r"(?<![\\$`])\$([^$\n]+)\$(?![$`])")
SHELLS = ("bash", "sh", "shell", "console")


def blocks(text, *languages):
    """Return the fenced blocks in any of these languages."""
    return [code for language, code in BLOCK.findall(text) if language in languages]


def commands(text):
    """Return every `upslope …` command shown on a page, as a list of arguments."""
    lines = [line for code in blocks(text, *SHELLS) for line in code.replace("\\\n", " ").splitlines()]
    lines += [line for line in BLOCK.sub("", text).splitlines() if line.startswith("    ")]
    pieces = [
        piece.strip().removeprefix("$ ").removeprefix(".venv/bin/") for line in lines for piece in line.split("&&")
    ]
    # In running text, a command without further arguments is only a mention, not an example.
    pieces += [code for code in INLINE_CODE.findall(BLOCK.sub("", text)) if len(code.split()) > 2]
    found = [shlex.split(piece, comments=True)[1:] for piece in pieces if piece.startswith("upslope ")]
    return [words[: words.index(">")] if ">" in words else words for words in found]


def cases(extract):
    """Return every item on every page as a test parameter with a readable id."""
    found = [(name, item) for name, page in PAGES.items() for item in extract(page.read_text("utf-8"))]
    return [pytest.param(item, id=f"{name}-{i}") for i, (name, item) in enumerate(found)]


@pytest.mark.parametrize("name", PAGES)
def test_lines_and_code_are_those_of_the_source(name):
    text = PAGES[name].read_text("utf-8")
    assert refresh.refreshed(PAGES[name], text) == text, "run: python docs/refresh_links.py"


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    missing = [
        path for path in ANY_LINK.findall(PAGES[name].read_text("utf-8")) if not (PAGES[name].parent / path).exists()
    ]
    assert not missing


@pytest.mark.parametrize("name", PAGES)
def test_inline_maths_survives_markdown(name):
    """In $…$, Markdown removes backslashes before punctuation. A ```math block keeps them."""
    prose = INLINE_CODE.sub("", BLOCK.sub("", PAGES[name].read_text("utf-8")))
    assert not [maths for maths in INLINE_MATHS.findall(prose) if re.search(r"\\[^A-Za-z]", maths)]


def noted(command, parsed):
    """Return a stand-in for a command that only records its arguments."""

    @functools.wraps(command)
    def note(*arguments, **options):
        parsed.append((arguments, options))

    return note


@pytest.mark.parametrize("arguments", cases(commands))
def test_commands_parse(arguments, monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    if "--config" in arguments:  # an earlier command creates this file
        settings = tmp_path / arguments[arguments.index("--config") + 1]
        settings.parent.mkdir(parents=True)
        settings.write_text("learning_rate: 0.001")
        monkeypatch.chdir(tmp_path)
    parsed = []
    monkeypatch.setattr("upslope.cli.train.train", lambda *asked: parsed.append(asked))
    of_name = cli.command
    monkeypatch.setattr(cli, "command", lambda name: noted(of_name(name), parsed))
    try:
        cli.run(arguments)
    except SystemExit as stop:
        assert stop.code == 0, capsys.readouterr().err  # --help
    else:
        assert len(parsed) == 1


def test_the_commands_of_the_readme_are_all_there_and_the_quick_one_runs(capsys):
    """Only `list` is executed, because it is quick: it needs no trained run and does not train."""
    found = [words[0] for words in commands(PAGES["README.md"].read_text("utf-8"))]
    assert set(found) >= set(cli.COMMANDS) - {"table", "bundle", "completion"} and len(found) > 30
    cli.main(["list"])
    assert "reinforce_baseline" in capsys.readouterr().out


@pytest.mark.parametrize("code", cases(lambda text: blocks(text, "python")))
def test_python_compiles(code):
    compile(code, "documentation", "exec")


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.ipynb")), ids=lambda path: path.name)
def test_a_notebook_is_stored_as_it_was_written(path):
    """Notebooks are stored without outputs, which are created when the site is built."""
    cells = [cell for cell in json.loads(path.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells and not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    for cell in cells:
        compile(cell["source"], path.name, "exec")


def test_the_test_in_the_guide_passes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.delitem(sys.modules, "my_estimator", raising=False)
    code = [c for c in blocks(PAGES["docs/write_an_estimator.md"].read_text("utf-8"), "python") if "def test_" in c]
    assert len(code) == 1
    names = {}
    exec(compile(code[0], "documentation", "exec"), names)
    names["test_leave_one_out"]()


def test_the_ladder_has_every_rung_in_order():
    text = PAGES["docs/ladder.md"].read_text("utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(ALGORITHMS)


def test_a_drifted_line_is_noticed(tmp_path, monkeypatch):
    """In the file, `One` is on lines 4 to 6 (including its decorator), `One.two` on line 6, and `THREE` on line 8."""
    monkeypatch.setattr(refresh, "ROOT", tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text(
        "import functools\n\n\n@functools.total_ordering\nclass One:\n    def two(self): ...\n\nTHREE = 3\n"
    )
    page = tmp_path / "page.md"
    before = "[`One`](src/a.py#L1-L2) [`One.two`](src/a.py#L9) [`THREE`](src/gone.py#L8-L8)"
    after = "[`One`](src/a.py#L4-L6) [`One.two`](src/a.py#L6-L6) [`THREE`](src/a.py#L8-L8)"
    assert refresh.refreshed(page, before) == after
    assert refresh.refreshed(page, after) == after
    for wrong in ("[`Four`](src/a.py#L1-L2)", "[here](src/a.py#L1-L2)"):
        with pytest.raises(LookupError):
            refresh.refreshed(page, wrong)


def test_every_definition_is_found_at_any_depth():
    body = ast.parse("class A:\n    x: int = 1\n    def f(self):\n        def g(): ...\n").body
    assert [name for name, _, _ in refresh.definitions(body)] == ["A", "A.x", "A.f", "A.f.g"]


def test_the_coverage_in_the_page_is_what_is_stored(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # the benchmark imports other files in its folder
    found = importlib.util.spec_from_file_location("coverage_benchmark", ROOT / "benchmarks" / "coverage.py")
    benchmark = importlib.util.module_from_spec(found)
    found.loader.exec_module(benchmark)
    stored = json.loads(benchmark.RESULTS.read_text("utf-8"))
    assert benchmark.tables(stored) in PAGES["docs/compare.md"].read_text("utf-8"), (
        "run: benchmarks/coverage.py --table"
    )


DIRECTIVE = re.compile(r"^<!-- source: (\S+) -->$", re.MULTILINE)
MATHS = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture
def code_of(monkeypatch):
    """The hook that inserts the source of a name into a page."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "hooks"))
    return importlib.import_module("code_of")


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if DIRECTIVE.search(page.read_text("utf-8"))])
def test_the_code_that_a_page_shows_exists(name, code_of):
    for symbol in DIRECTIVE.findall(PAGES[name].read_text("utf-8")):
        assert symbol.rpartition(".")[2] in code_of.block(symbol).split("\n", 1)[1]


def test_code_is_shown_as_it_stands_and_a_wrong_name_is_refused(code_of):
    shown = code_of.block("upslope.core.objectives.PolicyGradient.loss")
    assert shown.endswith("\n    return -sample.weight * sample.log_prob\n~~~~\n")
    for wrong in ("upslope.core.estimators.GAE.gone", "upslope.gone.GAE", "gone"):
        with pytest.raises(LookupError):
            code_of.block(wrong)


def test_the_ladder_has_the_same_steps_formulas_and_code_in_both_languages():
    def told(page):
        text = page.read_text("utf-8")
        formulas = [re.sub(r"&&\\text\{.*", "", formula) for formula in MATHS.findall(text)]
        return [re.sub(r"\s*(&&.*|\\\\)?$", "", f, flags=re.MULTILINE) for f in formulas], DIRECTIVE.findall(text)

    english, chinese = ((ROOT / "docs" / folder).glob("*.md") for folder in ("ladder", "zh/ladder"))
    steps = {page.name: told(page) for page in english}
    assert len(steps) == 17
    assert {page.name: told(page) for page in chinese} == steps
