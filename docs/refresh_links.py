"""Update the parts of the documentation that repeat the source: line numbers in links, and embedded files.

    python docs/refresh_links.py

A link such as [`GAE`](../src/upslope/core/estimators.py#L1-L2) names a symbol, and its line numbers are set to those of
the symbol's definition. Nested names are written with dots: `GAE.__call__`, `descend_both.actor_loss`. A Python block
after a comment `<!-- file: PATH -->` is replaced with the text of that file. Paths are relative to the page.
"""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?P<path>[^()\s#]+)#L(?P<first>\d+)(?:-L(?P<last>\d+))?\)")
SYMBOL = re.compile(r"`(?P<name>[\w.]+)`")
EMBEDDED = re.compile(r"(?P<marker><!-- file: (?P<path>\S+) -->)\n```python\n(?P<code>.*?)```\n", re.DOTALL)


def pages() -> list[Path]:
    """Return every page of the documentation."""
    return [*sorted((ROOT / "docs").rglob("*.md")), *sorted(ROOT.glob("*.md"))]


def definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, int, int]]:
    """Yield (dotted name, first line, last line) of every class, function and variable, at any depth."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield prefix + node.name, first, node.end_lineno or first
            yield from definitions(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    yield prefix + target.id, node.lineno, node.end_lineno or node.lineno


def lines_of(file: Path, symbol: str) -> tuple[int, int] | None:
    """Return the first and last line of a symbol's definition, including decorators, or None if it is not defined."""
    for name, first, last in definitions(ast.parse(file.read_text("utf-8")).body):
        if name == symbol:
            return first, last
    return None


def find(file: Path, symbol: str) -> tuple[Path, int, int]:
    """Find the definition of a symbol in this file or, since code may have moved, in the only other file with one."""
    others = [other for other in sorted(ROOT.glob("src/**/*.py")) if other != file]
    for candidates in ([file] if file.is_file() else [], others):
        found = [(path, *lines) for path in candidates if (lines := lines_of(path, symbol)) is not None]
        if len(found) == 1:
            return found[0]
    raise LookupError(f"{symbol} is defined neither in {file} nor in exactly one file in src")


def refreshed(page: Path, text: str) -> str:
    """Return the page's text with the current line numbers and code of the source."""

    def link(match: re.Match[str]) -> str:
        symbol = SYMBOL.search(match["text"])
        if symbol is None:
            raise LookupError(f"{page.name}: {match[0]} does not name a symbol; write [`name`](path#L1-L2)")
        file, first, last = find((page.parent / match["path"]).resolve(), symbol["name"])
        path = Path(os.path.relpath(file, page.parent)).as_posix()
        return f"[{match['text']}]({path}#L{first}-L{last})"

    def code(match: re.Match[str]) -> str:
        return f"{match['marker']}\n```python\n{(page.parent / match['path']).read_text('utf-8')}```\n"

    return EMBEDDED.sub(code, LINK.sub(link, text))


def main() -> None:
    """Update all pages, and print the names of those that changed."""
    for page in pages():
        before = page.read_text("utf-8")
        after = refreshed(page, before)
        if after != before:
            page.write_text(after, "utf-8")
            print(f"refreshed {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
