"""Train, resume and evaluate on environments from third-party packages, with a single command each and no extra files.

    python benchmarks/packages.py FOLDER             # all of package_list.py, each in a virtual environment in FOLDER
    python benchmarks/packages.py FOLDER ID …        # some of them; other stored results are kept
    python benchmarks/packages.py --table            # write docs/host_packages.md's table from the stored results

Training is interrupted with Ctrl-C after its first iterations, so that `upslope resume` has something left to do. If
upslope refuses a command, its message is stored; if the list contains the remedy that the message suggests, the command
is tried again with this remedy. Stores benchmarks/results/packages.json. Virtual environments are created with uv if it
is installed, and otherwise with venv and pip.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from package_list import ENTRIES, Entry
from pages import fill

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "packages.json", HERE.parent / "docs" / "host_packages.md"
LIMIT = 1_200
"""Seconds after which a command is considered to hang."""
PROGRAM = "import sys; from upslope.cli.main import main; main(sys.argv[1:])"


def python_of(entry: Entry, folder: Path) -> Path:
    """Return the interpreter of a virtual environment with this entry's packages, creating the environment if
    necessary."""
    name = re.sub(r"\W+", "-", (entry.no_dependencies or entry.install)[0]).strip("-")
    python = folder / name / "bin" / "python"
    if (folder / name / "ok").exists():
        return python
    uv = shutil.which("uv")
    make = [uv, "venv", "-q", "--clear"] if uv else [sys.executable, "-m", "venv", "--clear"]
    install = (
        [uv, "pip", "install", "-q", "--python", str(python)] if uv else [str(python), "-m", "pip", "install", "-q"]
    )
    subprocess.run([*make, str(folder / name)], check=True)
    subprocess.run([*install, "-e", str(HERE.parent), *entry.install], check=True)
    if entry.no_dependencies:
        subprocess.run([*install, "--no-deps", *entry.no_dependencies], check=True)
    (folder / name / "ok").touch()
    return python


def command(python: Path, words: list[str], folder: Path, *, stop_at: Path | None = None) -> tuple[int, str]:
    """Run an upslope command, and return its exit status and its output. It is interrupted with Ctrl-C once the file
    `stop_at` has rows."""
    log = folder / f"{words[0]}.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(python), "-c", PROGRAM, *words],
            cwd=folder,
            env=os.environ | {"UPSLOPE_STATE": str(folder / "state"), "COLUMNS": "400"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        until, is_asked = time.monotonic() + LIMIT, False
        while process.poll() is None:
            if time.monotonic() > until:
                process.kill()
                return -1, f"hangs: stopped after {LIMIT} s"
            if stop_at is not None and not is_asked and stop_at.exists() and stop_at.stat().st_size:
                process.send_signal(signal.SIGINT)
                is_asked = True
            time.sleep(0.1)
    return process.returncode, log.read_text(errors="replace")


def trained(entry: Entry, python: Path, flags: tuple[str, ...]) -> dict[str, Any]:
    """Train, resume and evaluate once; return the messages and the results."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = ["train", entry.environment, *entry.flags, *flags, "--steps", str(entry.steps)]
        found: dict[str, Any] = {"command": shlex.join(["upslope", *words])}
        started = time.monotonic()
        status, said = command(python, [*words, "--name", "run"], folder, stop_at=folder / "runs/run/metrics.jsonl")
        found["chose"] = [line for line in said.splitlines() if is_choice(line)]
        found["warnings"] = [line for line in said.splitlines() if line.startswith("warning:")]
        if status not in (0, 130):
            refusal = next((line for line in said.splitlines() if line.startswith("upslope: ")), "")
            return found | {"result": "refused" if refusal else "failed", "words": refusal or said[-2000:]}
        for step in (["resume", "runs/run"], ["evaluate", "runs/run", "--episodes", "2"]):
            status, said = command(python, step, folder)
            if status:
                return found | {"result": "failed", "words": f"{step[0]}: {said[-2000:]}"}
            found[step[0]] = [line for line in said.splitlines() if line.startswith(("resuming", "warning:"))]
        found["evaluate"] = returns_in(folder / "runs/run/evaluation.csv")
        versions = json.loads((folder / "runs/run/config.json").read_text())["versions"]
        return found | {"result": "works", "seconds": round(time.monotonic() - started, 1), "versions": versions}


def is_choice(line: str) -> bool:
    """Whether a line of the output reports a choice that upslope made."""
    starts = ("preset:", "networks:", "masks:", "training in", "a batch")
    return line.startswith(starts) or "imported because of its id" in line or "frames" in line[:40]


def returns_in(path: Path) -> dict[str, float]:
    """Return the mean return of the evaluation episodes in each mode."""
    names, *rows = (line.split(",") for line in path.read_text().splitlines())
    mode, value = names.index("mode"), names.index("return")
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row[mode], []).append(float(row[value]))
    return {name: round(sum(values) / len(values), 3) for name, values in found.items()}


def version_of(entry: Entry, python: Path) -> str:
    """Return the name and version of the entry's first package."""
    name = re.split(r"[\[<>=]", (entry.no_dependencies or entry.install)[0])[0]
    ask = f"from importlib.metadata import version; print(version({name!r}))"
    done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True)
    return f"{name} {done.stdout.strip() or '?'}"


def attempt(entry: Entry, folder: Path) -> dict[str, Any]:
    """Try an entry, and return everything to be stored about it."""
    row: dict[str, Any] = {"environment": entry.environment, "steps": entry.steps, "entry": asdict(entry)}
    try:
        python = python_of(entry, folder)
    except subprocess.CalledProcessError as error:
        return row | {"result": "not installed", "words": str(error)}
    row |= {"package": version_of(entry, python)} | trained(entry, python, ())
    if row["result"] == "refused" and entry.remedy:
        row["remedied"] = trained(entry, python, entry.remedy)
    return row


def table(rows: list[dict[str, Any]], date: str) -> str:
    """Format the Markdown table for the page."""
    lines = ["| environment | package | steps | result |", "|---|---|---|---|"]
    for row in rows:
        lines.append(f"| `{row['environment']}` | {row.get('package', '')} | {row['steps']:,} | {result_of(row)} |")
    works = sum(row["result"] == "works" for row in rows)
    remedied = sum(row.get("remedied", {}).get("result") == "works" for row in rows)
    tried = {row["environment"] for row in rows}
    untried = [f"`{entry.environment}`" for entry in ENTRIES if entry.environment not in tried]
    left = f" Not tried yet, of the {len(ENTRIES)} in the list: {', '.join(untried)}." if untried else ""
    words = (
        f"Of {len(rows)}, {works} can be trained, resumed and evaluated without changes, and {remedied} more with the "
        f"suggested remedy.{left}"
    )
    return "\n".join([*lines, "", f"{words} Tried on {date}."])


def result_of(row: dict[str, Any]) -> str:
    """Format the table cell that describes the result."""
    if row["result"] == "works":
        shown = ", ".join(f"{mode} {value:g}" for mode, value in row["evaluate"].items())
        return f"works; evaluated {shown}"
    words = " ".join(row["words"].removeprefix("upslope: ").split()).replace("|", "/")
    remedied = row.get("remedied", {})
    if remedied.get("result") == "works":
        flags = shlex.join(row["entry"]["remedy"]).replace("|", "/")
        return f"refused: {words[:260]} Works with `{flags}`"
    return f"{row['result']}: {words[:400]}"


def main(words: list[str]) -> None:
    """Try the environments, store the results, and write the table."""
    stored = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {"rows": []}
    known = {row["environment"]: row for row in stored["rows"]}
    if words != ["--table"]:
        folder, names = Path(words[0]).resolve(), words[1:]
        for entry in ENTRIES:
            if not names or entry.environment in names:
                row = known[entry.environment] = attempt(entry, folder)
                print(f"{row['result']:8} {entry.environment}: {row.get('words', row.get('chose'))}", flush=True)
                rows = [known[one.environment] for one in ENTRIES if one.environment in known]
                stored = {"date": time.strftime("%Y-%m-%d"), "rows": rows}
                RESULTS.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if PAGE.exists():
        fill(PAGE, "packages", table(stored["rows"], stored["date"]))


if __name__ == "__main__":
    main(sys.argv[1:])
