"""Run the code in the how-to pages and update the output that the pages show.

    python docs/printed.py                # all pages (minutes)
    python docs/printed.py recorded_data  # only these pages

The blocks of a page run in order, in a temporary folder that contains examples/. A text block after a comment
`<!-- printed: REGEX -->` is replaced with the matching lines of the previous block's output.
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
    """Run the commands of a page, and return the page with their current output."""
    printed: list[str] = []

    def visit(block: re.Match[str]) -> str:
        if block["language"] in ("bash", "python"):
            printed[:] = output(block["language"], block["code"], folder)
        if not block["mark"]:
            return block[0]
        return f"{block['mark']}```text\n{kept(printed, block['kept'])}\n```"

    return BLOCK.sub(visit, page)


def output(language: str, code: str, folder: Path) -> list[str]:
    """Run a block, and return what each of its commands prints."""
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
    """Return the printed lines that match the pattern, with an empty line between commands."""
    matching = ["\n".join(line.rstrip() for line in text.splitlines() if re.search(pattern, line)) for text in printed]
    shown = "\n\n".join(text for text in matching if text)
    if not shown:
        raise SystemExit(f"no printed line matches {pattern!r}: {printed}")
    return shown


def main() -> None:
    """Update the named pages, or all of them."""
    for name in sys.argv[1:] or PAGES:
        page = ROOT / "docs" / f"{name}.md"
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(ROOT / "examples", Path(folder) / "examples")
            page.write_text(rewritten(page.read_text("utf-8"), Path(folder)), "utf-8")


if __name__ == "__main__":
    main()
