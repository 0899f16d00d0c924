"""How often is `upslope doctor` right in unseen environments? Stores benchmarks/results/doctor_field.json.

    python benchmarks/doctor_field.py train BANK HALF [SECONDS]  # train the missing runs, for about SECONDS
    python benchmarks/doctor_field.py judge BANK calibration     # print every wrong diagnosis, and the figures
    python benchmarks/doctor_field.py judge BANK test NAME       # print only the figures; store them as NAME
    … judge BANK test NAME COMMIT                                # with upslope imported from this commit

The environments come from six sources and are split into two halves. Rules may be changed to fit `calibration`. `test`
was diagnosed once before the rules were changed for this bank, and once afterwards. Needs `pip install minigrid gymnax
six` in addition to `upslope[mujoco]`. A run counts as faulty if its fault did harm; `doctor_field_bank.py` explains how
this is decided.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from doctor import commit_of_rules
from doctor_field_bank import Job, did_harm, harm_at, jobs, place, train
from pages import fill

import upslope

RESULTS = Path(__file__).parent / "results" / "doctor_field.json"
PAGE = Path(__file__).parents[1] / "docs" / "doctor.md"
CLEAN = 2
"""Only the first two evaluations on the test half are clean tests. After that, rules were changed in response to
results on it."""
TARGETS = {
    "right cause first": (">=", 0.85),
    "right cause among the first two": (">=", 0.92),
    "right cause first, faults of environments": (">=", 0.75),
    "false alarms": ("<=", 0.03),
    "harmed runs called healthy": ("<=", 0.03),
}


def judge(bank: Path, half: str, tell: bool, commit: str = "") -> dict[str, Any]:
    """Diagnose every trained run in one half of the bank."""
    rows, untrained = [], []
    for job in jobs():
        path = place(bank, job)
        if job.half != half:
            continue
        if not (path / "harm.json").exists() or not harm_at(path):
            untrained.append(f"{job.world.name}, {job.name}")
            continue
        is_faulty = job.cause != "healthy"
        if is_faulty and not did_harm(bank, job):
            rows.append(row_of(job) | {"harmed": False})
            continue
        diagnosis = upslope.diagnose(path)
        row = row_of(job) | {"found": [f.cause for f in diagnosis.alarms], "verdict": diagnosis.to_json()["healthy"]}
        rows.append(row | ({"harmed": True} if is_faulty else {}))
        is_right = row["found"][:1] == [job.cause] if is_faulty else not row["found"]
        if tell and not is_right:
            notes = [f"{f.cause} {f.rank:.2f}" for f in diagnosis.findings][:5]
            print(f"{job.world.name:18s} {job.name:28s} {job.cause:26s} {row['verdict']!s:6s} {', '.join(notes)}")
    return {
        "commit of the rules": commit or commit_of_rules(),
        "date": time.strftime("%Y-%m-%d"),
        **figures(rows),
        "not trained": untrained,
        "runs": rows,
    }


def row_of(job: Job) -> dict[str, Any]:
    """Return the fields that identify a run, and the true cause of its fault."""
    return {
        "world": job.world.name,
        "source": job.world.source,
        "run": job.name,
        "where": job.where,
        "cause": job.cause,
    }


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Compute all figures, each as (count, total)."""
    faulty = [r for r in rows if r.get("harmed")]
    healthy = [r for r in rows if r["cause"] == "healthy"]
    of_environments = [r for r in faulty if r["where"] == "environment"]

    def count(holds: list[bool]) -> list[int]:
        return [sum(holds), len(holds)]

    def first(some: list[dict[str, Any]]) -> list[int]:
        return count([r["cause"] in r["found"][:1] for r in some])

    confusion: dict[str, Counter[str]] = {}
    for row in (*faulty, *healthy):
        confusion.setdefault(row["cause"], Counter())[(row["found"] or ["nothing"])[0]] += 1
    return {
        "planted": sum(r["cause"] != "healthy" for r in rows),
        "worlds": len({r["world"] for r in rows}),
        "right cause first": first(faulty),
        "right cause among the first two": count([r["cause"] in r["found"][:2] for r in faulty]),
        "right cause first, faults of environments": first(of_environments),
        "right cause first, faults of settings": first([r for r in faulty if r["where"] == "settings"]),
        "right cause first, faults of code": first([r for r in faulty if r["where"] == "code"]),
        "false alarms": count([bool(r["found"]) for r in healthy]),
        "harmed runs without an alarm": count([not r["found"] for r in faulty]),
        "harmed runs called healthy": count([r["verdict"] is True for r in faulty]),
        "healthy runs called healthy": count([r["verdict"] is True for r in healthy]),
        "confusion": {cause: dict(found) for cause, found in sorted(confusion.items())},
    }


def wilson(right: int, of: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval for a share."""
    z, p = 1.96, right / of
    centre, half = p + z**2 / (2 * of), z * (p * (1 - p) / of + z**2 / (4 * of**2)) ** 0.5
    return max(0.0, centre - half) / (1 + z**2 / of), min(1.0, (centre + half) / (1 + z**2 / of))


def words(count: list[int]) -> str:
    """Format a figure, for example as `46 of 56, 82 % [70, 90]`."""
    right, of = count
    if not of:
        return "–"
    low, high = wilson(right, of)
    return f"{right} of {of}, {100 * right / of:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def lines_of(found: dict[str, Any]) -> list[str]:
    """Format the figures, one per line."""
    return [
        f"{name}: {words(x)}"
        for name, x in found.items()
        if isinstance(x, list) and name not in ("runs", "not trained")
    ]


def write_page(stored: dict[str, Any]) -> None:
    """Write the results of all evaluations on the test half, and the confusion table of the last one, into the page."""
    judged = stored["test"]
    lines = ["| test half | goal | " + " | ".join(judged) + " |", "|---|---|" + "---|" * len(judged)]
    lines.append("| commit of the rules | | " + " | ".join(x["commit of the rules"] for x in judged.values()) + " |")
    for name in [
        n for n, x in next(iter(judged.values())).items() if isinstance(x, list) and n not in ("runs", "not trained")
    ]:
        sign, bound = TARGETS.get(name, ("", 0.0))
        wanted = f"{'≥' if sign == '>=' else '≤'} {100 * bound:.0f} %" if sign else ""
        lines.append(f"| {name} | {wanted} | " + " | ".join(words(x[name]) for x in judged.values()) + " |")
    name, last = list(judged.items())[:CLEAN][-1]
    lines += ["", f"| planted fault that did harm | first alarm under “{name}”: runs |", "|---|---|"]
    for cause, counts in last["confusion"].items():
        right = "nothing" if cause == "healthy" else cause
        lines.append(f"| `{cause}` | " + ", ".join(
            f"{'**' if found == right else ''}`{found}`{'**' if found == right else ''}: {n}"
            for found, n in sorted(counts.items(), key=lambda item: -item[1])) + " |")  # fmt: skip
    fill(PAGE, "field", "\n".join(lines))


def main() -> None:
    """Train for a limited time, or diagnose one half."""
    if len(sys.argv) < 4 or sys.argv[1] not in ("train", "judge"):
        sys.exit(__doc__)
    what, bank, half, *rest = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    if what == "train":
        until = time.perf_counter() + float(rest[0] if rest else 1e9)
        chosen = sorted((job for job in jobs() if job.half == half), key=lambda job: job.is_dear)
        while time.perf_counter() < until and train(bank, chosen, 1):
            pass
        left = sum(not (place(bank, job) / "harm.json").exists() for job in chosen)
        print(f"{len(chosen) - left} of {len(chosen)} runs are trained")
        return
    found = judge(bank, half, half == "calibration", rest[1] if len(rest) > 1 else "")
    print("\n".join(lines_of(found)))
    stored = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    stored.setdefault(half, {})[rest[0] if rest else "now"] = found
    RESULTS.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", "utf-8")
    if "test" in stored:
        write_page(stored)


if __name__ == "__main__":
    main()
