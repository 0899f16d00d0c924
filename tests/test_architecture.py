"""The rooms: a file may import only from files above it in ARCHITECTURE.md's list."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "upslope"


def rooms() -> list[str]:
    """The files in the order of ARCHITECTURE.md."""
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    listed = text.split("<!-- rooms: begin -->")[1].split("<!-- rooms: end -->")[0]
    return re.findall(r"^\| `([\w/]+\.py)`", listed, re.MULTILINE)


def imports_of(path: Path) -> set[str]:
    """The rooms that a file imports, at its top or inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("upslope"):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith("upslope.")]
        for name in names:
            relative = name.removeprefix("upslope").lstrip(".").replace(".", "/")
            found |= {f for f in (f"{relative}.py", f"{relative}/__init__.py") if (SOURCE / f).is_file()}
    return found


def test_every_file_is_a_room_and_every_room_a_file() -> None:
    files = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py")}
    assert sorted(rooms()) == sorted(files)


def test_a_room_imports_only_from_rooms_above_it() -> None:
    order = rooms()
    wrong = [
        f"{room} imports {imported}"
        for place, room in enumerate(order)
        for imported in imports_of(SOURCE / room)
        if imported != "__init__.py" and order.index(imported) >= place
    ]
    assert wrong == []


def test_the_reader_of_imports_sees_them() -> None:
    assert {"estimators.py", "update.py"} <= imports_of(SOURCE / "iteration.py")
    assert "evaluation.py" in imports_of(SOURCE / "cli.py")
