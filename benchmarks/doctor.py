"""How often is `upslope doctor` right? Stores benchmarks/results/doctor.json.

    python benchmarks/doctor.py train BANK    # trains what is missing in the folder BANK: planted faults, healthy runs
    python benchmarks/doctor.py judge BANK    # diagnoses every run of the bank, in seconds, and stores the figures

Every run has five seeds. Thresholds were set by looking at the half `calibrate` alone; the figures that count are those
of the half `test`: other worlds, and for many faults another strength.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from doctor_bank import HALVES, jobs, place, train
from pages import fill

import upslope

RESULTS = Path(__file__).parent / "results" / "doctor.json"
PAGE = Path(__file__).parents[1] / "docs" / "doctor.md"
AT_ONCE, MORE = 30, 3
"""Runs that one process trains, and its exit status if there may be more."""


def judge(bank: Path, halves: tuple[str, ...] = HALVES, verbose: bool = True) -> dict[str, Any]:
    """Diagnose every run of the bank."""
    results: dict[str, Any] = {}
    for half in halves:
        rows = []
        for job in jobs():
            path = place(bank, job)
            if job.half != half or not (path / "done").exists():
                continue
            found = [finding.cause for finding in upslope.diagnose(path).alarms]
            rows.append({"run": job.name, "cause": job.cause, "found": found})
            right = not found if job.cause == "healthy" else job.cause in found[:1]
            if verbose and not right:
                print(f"{half:10s} {job.name:50s} {job.cause:28s} {', '.join(found[:3]) or 'nothing'}")
        results[half] = figures(rows) | {"runs": rows}
        print(half, {k: v for k, v in results[half].items() if k not in ("runs", "confusion")})
    return results


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares, and how often each planted cause was taken for what."""
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
    """Put the figures and the confusion table of the half `test` into the page."""
    shown = [name for name in results["test"] if name not in ("confusion", "runs")]
    lines = ["| | " + " | ".join(HALVES) + " |", "|---|" + "---|" * len(HALVES)]
    lines += [f"| {name} | " + " | ".join(percent(results[half][name]) for half in HALVES) + " |" for name in shown]
    lines += ["", "| planted (half `test`) | first finding: runs |", "|---|---|"]
    for cause, counts in results["test"]["confusion"].items():
        words = ", ".join(f"{'**' if found == cause else ''}`{found}`{'**' if found == cause else ''}: {n}"
                          for found, n in sorted(counts.items(), key=lambda item: -item[1]))  # fmt: skip
        lines.append(f"| `{cause}` | {words} |")
    fill(PAGE, "figures", "\n".join(lines))


def percent(x: float | None) -> str:
    """A share in percent; a count as it is."""
    return "–" if x is None else f"{100 * x:.0f} %" if isinstance(x, float) else str(x)


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("train", "some", "judge"):
        sys.exit(__doc__)
    if sys.argv[1] == "train":
        while subprocess.run([sys.executable, __file__, "some", sys.argv[2]]).returncode == MORE:
            pass
    elif sys.argv[1] == "some":
        sys.exit(MORE if train(Path(sys.argv[2]), AT_ONCE) == AT_ONCE else 0)
    else:
        halves = tuple(sys.argv[3:]) or HALVES
        results = judge(Path(sys.argv[2]), halves)
        if halves == HALVES:
            RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", "utf-8")
            write_page(results)
