"""Check that the built site is self-contained: no internal link is dead, and nothing is loaded from other sites."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mkdocs.exceptions import PluginError

FETCHED = {("script", "src"), ("img", "src"), ("iframe", "src"), ("link", "href"), ("source", "src")}
"""Attributes whose targets a browser loads automatically."""


class Page(HTMLParser):
    """A parser that collects the anchors and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[tuple[str, str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value is not None:
                self.links.append((tag, name, value))


def on_post_build(config: Any, **_: Any) -> None:
    """Fail the build if a link is dead or a page would need the network."""
    site = Path(config.site_dir)
    pages = {path.resolve(): Page(path.read_text("utf-8")) for path in site.rglob("*.html") if path.name != "404.html"}
    wrong = [
        f"{path.relative_to(site.resolve())}: {fault}"
        for path, page in pages.items()
        for fault in faults(path, page, pages)
    ]
    if wrong:
        raise PluginError("\n".join(["The built site has dead or external links:", *wrong[:20]]))


def faults(path: Path, page: Page, pages: dict[Path, Page]) -> list[str]:
    """List the faults in the links of a page."""
    found = []
    for tag, name, link in page.links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            if (tag, name) in FETCHED and parts.scheme != "data":
                found.append(f"fetches {link} from the network")
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not target.is_file():
            found.append(f"{link} is a dead link")
        elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
            found.append(f"{link} refers to a missing anchor")
    return found
