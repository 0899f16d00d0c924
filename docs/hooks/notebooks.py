"""Execute the notebooks in docs/ when the site is built: `NAME.ipynb` becomes the page `NAME.md` with all outputs.

If a cell fails, the build fails. `mkdocs serve` executes a notebook again only if it has changed.
"""

from __future__ import annotations

import os
import tempfile
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

DOCS = Path(__file__).resolve().parents[1]
SOURCE = DOCS.parent / "src"
CELL_SECONDS = 300
"""Time limit for each cell, in seconds."""


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each notebook."""
    for path in sorted(DOCS.glob("*.ipynb")):
        files.append(File.generated(config, f"{path.stem}.md", content=page_of(path.read_text("utf-8"), path.name)))
    return files


@cache
def page_of(text: str, name: str) -> str:
    """Execute a notebook, and return its page as Markdown."""
    notebook = nbformat.reads(text, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(notebook, timeout=CELL_SECONDS, resources={"metadata": {"path": folder}})
        before = os.environ.get("PYTHONPATH", "")
        path = os.pathsep.join(filter(None, (str(SOURCE), before)))
        try:
            client.execute(env=os.environ | {"PYTHONPATH": path})
        except CellExecutionError as error:
            raise PluginError(f"docs/{name} failed: {error}") from error
    return "\n\n".join(part for cell in notebook.cells for part in parts_of(cell)) + "\n"


def parts_of(cell: Any) -> list[str]:
    """Convert a cell to Markdown: its text, or its code with the outputs."""
    if cell.cell_type == "markdown":
        return [cell.source]
    if cell.cell_type != "code" or not cell.source.strip():
        return []
    shown = []
    for is_printed, group in groupby(cell.outputs, key=lambda output: output.output_type == "stream"):
        outputs = list(group)
        shown += [block("".join(o.text for o in outputs))] if is_printed else map(markdown_of, outputs)
    return [f"~~~~python\n{cell.source}\n~~~~", *filter(None, shown)]


def markdown_of(output: Any) -> str:
    """Convert a result or a display to Markdown."""
    data = output.get("data", {})
    if "text/html" in data:
        return f'<div class="notebook-output" markdown="0">\n{data["text/html"]}\n</div>'
    return block(data.get("text/plain", ""))


def block(text: str) -> str:
    """Return printed text as a fenced block."""
    return f"~~~~text\n{text.rstrip()}\n~~~~" if text.strip() else ""
