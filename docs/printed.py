"""Rewrite what commands print in the how-to pages, by running the pages.

    python docs/printed.py                # minutes
    python docs/printed.py recorded_data  # these pages only

A page's blocks run in order, in a folder of their own that holds examples/. A block of text after a comment
`<!-- printed: REGEX -->` becomes the lines that match, of what the block before it printed.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("own_environment", "run_directory", "compare_two", "recorded_data")
BLOCK = re.compile(
    r"(?P<mark><!-- printed: (?P<kept>[^\n]*) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
END = "--- the end of a command ---"
WIDTH = "100"


def rewritten(page: str, folder: Path) -> str:
    """The page, with what its commands print now."""
    printed: list[str] = []

    def visit(block: re.Match[str]) -> str:
        if block["language"] in ("bash", "python"):
            printed[:] = output(block["language"], block["code"], folder)
        if not block["mark"]:
            return block[0]
        return f"{block['mark']}```text\n{kept(printed, block['kept'])}\n```"

    return BLOCK.sub(visit, page)


def output(language: str, code: str, folder: Path) -> list[str]:
    """What each command of a block prints."""
    program = [sys.executable, "-c", code]
    if language == "bash":
        lines = code.replace("\\\n", " ").splitlines()
        program = ["bash", "-c", "\n".join(f"{line}\necho '{END}'" for line in lines)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "COLUMNS": WIDTH}
    done = subprocess.run(
        program, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    print(done.stdout.replace(END, ""), flush=True)
    return done.stdout.split(f"{END}\n")


def kept(printed: list[str], pattern: str) -> str:
    """The lines that match, an empty one between commands."""
    matching = ["\n".join(line.rstrip() for line in text.splitlines() if re.search(pattern, line)) for text in printed]
    shown = "\n\n".join(text for text in matching if text)
    if not shown:
        raise SystemExit(f"nothing that was printed matches {pattern!r}: {printed}")
    return shown


def main() -> None:
    """Rewrite the pages that are named, or all."""
    for name in sys.argv[1:] or PAGES:
        page = ROOT / "docs" / f"{name}.md"
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(ROOT / "examples", Path(folder) / "examples")
            page.write_text(rewritten(page.read_text("utf-8"), Path(folder)), "utf-8")


if __name__ == "__main__":
    main()
