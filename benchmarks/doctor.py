"""How often is `upslope doctor` right? Stores benchmarks/results/doctor.json.

    python benchmarks/doctor.py train BANK [PART …]    # train the missing runs in the folder BANK
    python benchmarks/doctor.py judge BANK [PART …]    # diagnose every run in these parts, and store the figures

The bank contains healthy runs and runs with planted faults, all with five seeds. Thresholds were tuned on the
`calibrate` part. The results on `test` were visible while rules were being changed. `fresh` was trained and diagnosed
only once; its two false alarms led to changes in two rules. `confirm`, which contains only healthy runs, measures the
rate of false alarms after these changes.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from doctor_bank import PARTS, jobs, place, train
from pages import fill

import upslope

RESULTS = Path(__file__).parent / "results" / "doctor.json"
PAGE = Path(__file__).parents[1] / "docs" / "doctor.md"
RULES = Path(__file__).parents[1] / "src" / "upslope" / "diagnosis"
AT_ONCE, MORE = 12, 3
"""How many runs one process trains, and its exit status if there may be more runs to train."""


def judge(bank: Path, parts: tuple[str, ...]) -> dict[str, Any]:
    """Diagnose every run in these parts of the bank."""
    results: dict[str, Any] = {}
    for part in parts:
        rows = []
        for job in jobs():
            path = place(bank, job)
            if job.part != part or not (path / "done").exists():
                continue
            found = [finding.cause for finding in upslope.diagnose(path).alarms]
            rows.append({"run": job.name, "cause": job.cause, "found": found})
            right = not found if job.cause == "healthy" else job.cause in found[:1]
            if not right:
                print(f"{part:10s} {job.name:50s} {job.cause:28s} {', '.join(found[:3]) or 'nothing'}")
        results[part] = {"commit of the rules": commit_of_rules()} | figures(rows) | {"runs": rows}
        print(part, {k: v for k, v in results[part].items() if k not in ("runs", "confusion")})
    return results


def commit_of_rules() -> str:
    """Return the last commit that changed the rules."""
    command = ["git", "log", "-1", "--format=%h", "--", str(RULES)]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=RULES).stdout.strip()


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the shares of correct diagnoses and of false alarms, and the confusion table of planted and diagnosed
    causes."""
    faulty, healthy = [r for r in rows if r["cause"] != "healthy"], [r for r in rows if r["cause"] == "healthy"]
    confusion: dict[str, Counter[str]] = {}
    for row in rows:
        confusion.setdefault(row["cause"], Counter())[(row["found"] or ["healthy"])[0]] += 1

    def share(right: list[bool]) -> float | None:
        return round(sum(right) / len(right), 3) if right else None

    return {
        "faulty runs": len(faulty),
        "right cause first": share([r["cause"] in r["found"][:1] for r in faulty]),
        "right cause among the first two": share([r["cause"] in r["found"][:2] for r in faulty]),
        "healthy runs": len(healthy),
        "false alarms": share([bool(r["found"]) for r in healthy]),
        "confusion": {cause: dict(counts) for cause, counts in sorted(confusion.items())},
    }


def write_page(results: dict[str, Any]) -> None:
    """Write the figures, and the confusion table of the `fresh` part, into the page."""
    shown = [name for name in results["fresh"] if name not in ("confusion", "runs")]
    lines = ["| | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    lines += [f"| {name} | " + " | ".join(percent(x[name]) for x in results.values()) + " |" for name in shown]
    lines += ["", "| planted (`fresh` part) | first finding: runs |", "|---|---|"]
    for cause, counts in results["fresh"]["confusion"].items():
        words = ", ".join(f"{'**' if found == cause else ''}`{found}`{'**' if found == cause else ''}: {n}"
                          for found, n in sorted(counts.items(), key=lambda item: -item[1]))  # fmt: skip
        lines.append(f"| `{cause}` | {words} |")
    fill(PAGE, "figures", "\n".join(lines))


def percent(x: float | str | None) -> str:
    """Format a share as a percentage; leave counts and words unchanged."""
    return "–" if x is None else f"{100 * x:.0f} %" if isinstance(x, float) else str(x)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("train", "some", "judge"):
        sys.exit(__doc__)
    bank, parts = Path(sys.argv[2]), tuple(sys.argv[3:]) or PARTS
    if sys.argv[1] == "train":
        while subprocess.run([sys.executable, __file__, "some", *sys.argv[2:]]).returncode == MORE:
            pass
    elif sys.argv[1] == "some":
        sys.exit(MORE if train(bank, AT_ONCE, parts) == AT_ONCE else 0)
    else:
        stored = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
        stored |= judge(bank, parts)
        RESULTS.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", "utf-8")
        write_page(stored)
