"""The folders of tests mirror the packages they test, and test files import only helpers, not each other."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "src" / "upslope"
FILES = sorted(TESTS.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    direct = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return direct | {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}


def test_each_folder_of_tests_is_that_of_a_package():
    folders = {path.parent.name for path in TESTS.glob("*/test_*.py")} - {"docs", "weekly"}
    assert folders == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_test_imports_helpers_and_no_other_test_and_only_the_labs_own_import_the_lab(path: Path):
    imported = imports_of(path)
    assert not {name for name in imported if name.split(".")[-1].startswith("test_")}
    if path.parent.name != "lab":
        assert not {name for name in imported if name.startswith("upslope.lab")}
