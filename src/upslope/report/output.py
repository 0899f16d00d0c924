"""Render a Jinja2 template as a self-contained page: one file that needs neither a network nor a server."""

import base64
import gzip
import json
import re
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from upslope.core.files import output_file, require_folder
from upslope.core.messages import escaped, shell
from upslope.core.storage import write_atomically
from upslope.errors import UpslopeError
from upslope.report.figures import Figures
from upslope.runs.directory import versions

MARK = "<!-- a page of upslope -->"
"""A mark in every page. Existing files without it are not overwritten."""
UNREADABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters not allowed in a page: control characters, direction marks and overrides, lone surrogates."""
SUFFIXES = (".html", ".htm")
WORDS = {
    "language": "en",
    "no_script": "The charts are drawn by JavaScript, which is disabled in this browser; the tables still show all "
    "results.",
    "old_browser": "The charts need a browser from 2023 or later; the tables still show all results.",
}


def page_path(output: str | Path, default: str) -> Path:
    """The file to write a page to: `default` if `output` is a folder; a name without a suffix gets `.html`.

    Raises:
        UpslopeError: the suffix is not for HTML, the folder is missing, or an existing file is not an upslope page.
    """
    path = output_file(output, default)
    if path.suffix.lower() not in SUFFIXES:
        raise UpslopeError(
            f"A page is an HTML file, but {path} has a different suffix. Pass --output a name that ends in "
            ".html, or a folder."
        )
    require_folder(path)
    if path.exists() and not is_page(path):
        raise UpslopeError(f"{path} exists and is not an upslope page, so it is not replaced. Choose another --output.")
    return path


def is_page(path: Path) -> bool:
    """Whether a file is a page written by upslope."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return MARK.encode() in file.read(500)


def plotly_script() -> str:
    """Plotly's script, read from its Python package."""
    for package in ("Plotly", "Jinja2"):
        if find_spec(package.lower()) is None:
            raise UpslopeError(f'A page needs {package}, which is not installed: pip install "upslope[report]"')
    return (files("plotly") / "package_data" / "plotly.min.js").read_text("utf-8")


@cache
def templates(package: str = "upslope.report") -> Any:
    """A Jinja2 environment with the templates of a package and of the report. It escapes text, and templates may call
    `shell`."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loaders = [PackageLoader(name, "assets") for name in dict.fromkeys((package, "upslope.report"))]
    made = Environment(
        loader=ChoiceLoader(loaders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["shell"] = shell
    return made


def render(template: str, figures: Figures, *, package: str = "upslope.report", **fields: Any) -> str:
    """Render a page as HTML, with Plotly's script and the figures' data compressed."""
    try:
        numbers = json.dumps(figures.found, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise UpslopeError(
            "The page cannot be rendered, since some of its numbers are not finite: the agent's parameters, or the "
            "rewards, are too large. To find out why, run: upslope doctor RUN."
        ) from error
    fields = {
        "mark": MARK,
        "written": f"upslope {versions()['upslope']}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "plotly": compress(plotly_script()),
        "data": compress(numbers),
        **WORDS,
        **fields,
    }
    page = templates(package).get_template(template).render(fields)
    return UNREADABLE.sub(lambda found: escaped(found[0]), page)


def compress(text: str) -> str:
    """Compress text with gzip and encode it in base64, which reduces it to about a third of its size and leaves no HTML
    syntax such as `</script>`."""
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def write_page(path: Path, html: str) -> Path:
    """Write a page atomically."""
    write_atomically(path, html.encode())
    return path
