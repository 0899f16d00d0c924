"""Add pages from outside docs/: the pages in the root of the repository, and a listing of every code file that a page
links to.

This makes the site self-contained: links that lead out of docs/ are rewritten so that they lead to pages of the site.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ROOT_PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(
    r"(?P<text>\[[^\[\]]*\])\((?P<path>(?!https?:|mailto:|#)[^()\s#]+)"
    r"(?:#L(?P<line>\d+)(?:-L\d+)?|(?P<heading>#[\w-]+))?\)"
)
FENCE = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)$)", re.DOTALL | re.MULTILINE)
PAGE_OF = {".ipynb": ".md"}  # docs/hooks/notebooks.py
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages in the root of the repository, and the code files that any page links to."""
    wanted = {page: DOCS / page for page in files.src_uris if page.endswith(".md")}
    for name, uri in ROOT_PAGES.items():
        wanted[uri] = ROOT / name
    linked: set[Path] = set()
    for uri, source in wanted.items():
        rewritten = rewrite(source.read_text("utf-8"), uri, source, linked)
        if source.parent == ROOT:
            files.append(File.generated(config, uri, content=rewritten))
    for path in sorted(linked):
        files.append(File.generated(config, code_uri(path), content=listing(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links that leave docs/ so that they lead to pages of the site."""
    uri = page.file.src_uri
    return rewrite(with_counterpart(markdown, uri), uri, DOCS / uri, set()) if (DOCS / uri).is_file() else markdown


def with_counterpart(markdown: str, uri: str) -> str:
    """Below the heading, add a link to the same page in the other language."""
    other, name = (uri.removeprefix("zh/"), "English") if uri.startswith("zh/") else (f"zh/{uri}", "中文")
    if not (DOCS / other).is_file():
        return markdown
    heading, rest = markdown.split("\n", 1)
    return f"{heading}\n\n[{name}]({relative(other, uri)})\n{rest}"


def rewrite(markdown: str, uri: str, source: Path, linked: set[Path]) -> str:
    """Rewrite the links of a page for the site, and add the code files among their targets to `linked`."""
    to_site = partial(link, uri=uri, source=source, linked=linked)
    return outside_fences(markdown, partial(LINK.sub, to_site))


def outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    """Apply `change` to the text of a page, but leave its fenced blocks unchanged."""
    parts = FENCE.split(markdown)
    return "".join(part if place % 2 else change(part) for place, part in enumerate(parts))


def link(found: re.Match[str], uri: str, source: Path, linked: set[Path]) -> str:
    """Rewrite one link for the site."""
    target = (source.parent / found["path"]).resolve()
    if not target.is_relative_to(ROOT) or not target.is_file():
        raise PluginError(
            f"{source.relative_to(ROOT)} links to {found['path']}, which is not a file in the repository."
        )
    if target.is_relative_to(DOCS) and source.is_relative_to(DOCS) and target.suffix != ".py":
        return found[0]
    anchor = f"#__codelineno-0-{found['line']}" if found["line"] else found["heading"] or ""
    return f"{found['text']}({relative(site_uri(target, linked), uri)}{anchor})"


def site_uri(target: Path, linked: set[Path]) -> str:
    """Return the path of a file's page in the site. Code files are added to `linked`."""
    if target.parent == ROOT and target.name in ROOT_PAGES:
        return ROOT_PAGES[target.name]
    if target.is_relative_to(DOCS) and target.suffix != ".py":
        return target.with_suffix(PAGE_OF.get(target.suffix, target.suffix)).relative_to(DOCS).as_posix()
    linked.add(target)
    return code_uri(target)


def code_uri(path: Path) -> str:
    """Return the path of a code file's page: `code/src/a.py.md` for `src/a.py`."""
    return f"code/{path.relative_to(ROOT).as_posix()}.md"


def listing(path: Path) -> str:
    """Return a page that lists the lines of a file, each with an anchor."""
    name = path.relative_to(ROOT).as_posix()
    language = LANGUAGES.get(path.suffix, "text")
    text = path.read_text("utf-8").rstrip()
    head = f"---\ntitle: {path.name}\nhide: [toc]\nsearch:\n  exclude: true\n---\n\n# `{name}`\n\n"
    return f'{head}~~~~{language} linenums="1"\n{text}\n~~~~\n'


def relative(target: str, page: str) -> str:
    """Return the relative path from a page to a target."""
    return Path(os.path.relpath(target, Path(page).parent)).as_posix()
