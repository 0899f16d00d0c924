"""Run every experiment of the lab, store the results, and write them into docs/lab.md.

python benchmarks/lab.py            # minutes
python benchmarks/lab.py groups     # only these experiments; other stored results are kept
python benchmarks/lab.py --table    # write docs/lab.md from the stored results
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from pages import fill

from upslope.lab.experiments import EXPERIMENTS
from upslope.lab.finding import Estimate
from upslope.lab.texts import measured, region, texts

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "lab.json"
PAGE = ROOT / "docs" / "lab.md"
HEADING = "| claim | number | predicted | measured | verdict |\n|---|---|---|---|---|"


def run(names: list[str]) -> None:
    """Run `upslope lab --json`, and store its output. If names are given, only the results of these experiments are
    replaced."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "from upslope.cli.main import main; main()", "lab", "--json", "--output"]
        command += [f"{folder}/lab.html", *(["--only", *names] if names else [])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    now = json.loads(done.stdout)
    if names:
        stored = json.loads(RESULT.read_text("utf-8"))
        found = {experiment["name"]: experiment for experiment in (*stored["experiments"], *now["experiments"])}
        order = [experiment.name for experiment in EXPERIMENTS]
        now = stored | {"experiments": sorted(found.values(), key=lambda one: order.index(one["name"]))}
    RESULT.write_text(json.dumps(now, indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_page() -> None:
    """Write the findings into docs/lab.md."""
    fill(PAGE, "findings", findings(json.loads(RESULT.read_text("utf-8"))))


def findings(found: dict[str, Any]) -> str:
    """Format each experiment as its question and a table. Only numbers come from the stored results; texts are the
    current ones."""
    parts = []
    for experiment in found["experiments"]:
        words, numbers = texts("en")["experiments"][experiment["name"]], experiment["numbers"]
        parts += [f"### {words['title']}\n", f"`{experiment['name']}` · {words['source']}\n"]
        parts += [f"{words['asks'].format(**numbers)}\n", HEADING]
        parts += [row(finding, words["claims"][finding["name"]], numbers) for finding in experiment["findings"]]
        parts.append("")
    parts.append(f"Seed {found['seed']}, upslope {found['versions']['upslope']}.\n")
    return "\n".join(parts)


def row(finding: dict[str, Any], words: dict[str, str], numbers: dict[str, float]) -> str:
    """Format one row of the table."""
    low, high = finding["interval"]
    least, most = finding["predicted"]
    predicted = (float("-inf") if least is None else least, float("inf") if most is None else most)
    value = " ".join(measured(Estimate(finding["measured"], (low, high)))).strip()
    said = [words[key].format(**numbers) for key in ("claim", "number")]
    cells = [*said, region(predicted), value, finding["verdict"]]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    """Run the experiments, unless only the table is requested, and write the page."""
    if sys.argv[1:] != ["--table"]:
        run(sys.argv[1:])
    write_page()


if __name__ == "__main__":
    main()
