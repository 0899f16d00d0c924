"""Insert stored results into the pages of docs/."""

from pathlib import Path


def fill(page: Path, name: str, content: str) -> None:
    """Replace the text between the markers with this name in the page."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, rest = page.read_text("utf-8").split(begin)
    after = rest.split(end)[1]
    page.write_text(f"{before}{begin}\n{content.rstrip()}\n{end}{after}", "utf-8")
