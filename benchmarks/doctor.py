"""How often is `upslope doctor` right? Stores benchmarks/results/doctor.json.

    python benchmarks/doctor.py train BANK    # trains what is missing in the folder BANK: planted faults, healthy runs
    python benchmarks/doctor.py judge BANK    # diagnoses every run of the bank, in seconds, and stores the figures

Every run has five seeds. Thresholds were set by looking at the half `calibrate` alone; the figures that count are those of
the half `test`: other worlds, and for many faults another strength.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch
from zlib import crc32

import upslope
from upslope import engines, iteration

sys.path.insert(0, str(Path(__file__).parent))
from doctor_faults import BASE, FAULTS, HEALTHY, Fault

RESULTS = Path(__file__).parent / "results" / "doctor.json"
HALVES = ("calibrate", "test")
COMMON: dict[str, Any] = {"seeds": 5, "quiet": True}


def jobs() -> Iterator[tuple[str, str, str, dict[str, Any], Fault | None]]:
    """(half, name, cause, arguments of train, the fault) of every run of the bank."""
    for fault in FAULTS:
        for half in HALVES:
            settings = fault.settings if half == "calibrate" or fault.test_settings is None else fault.test_settings
            for world in getattr(fault, half):
                arguments = {"environment": fault.environment(world), "algorithm": fault.algorithm, "preset": False}
                arguments |= {"estimator": fault.estimator, "objective": fault.objective, **BASE[world], **settings}
                yield half, f"{fault.name} in {world}", fault.cause, arguments, fault
    for number, run in enumerate(HEALTHY):
        own = {} if run.preset else BASE.get(run.world, {})
        if run.algorithm not in ("ppo", "ppo_kl", "ppo_kl_fixed"):
            own = {"steps": own["steps"]} | ({"gamma": 0.95} if "Pendulum" in run.world else {})
        arguments = {"environment": run.world, "algorithm": run.algorithm, "preset": run.preset, **own, **run.settings}
        yield HALVES[number % 2], f"healthy {number} {run.algorithm} in {run.world}", "healthy", arguments, None


def place(bank: Path, half: str, name: str) -> Path:
    """The run directory of a job."""
    return bank / half / name.replace(":", "-").replace("/", "-").replace(" ", "_")


def train(bank: Path, only: str = "") -> None:
    """Train what is missing, in an order in which every part of the work is a fair sample of all."""
    for half, name, _, arguments, fault in sorted(jobs(), key=lambda job: crc32(job[1].encode())):
        path = place(bank, half, name)
        if (path / "done").exists() or only not in name:
            continue
        if path.exists():
            path.rename(path.with_name(f"{path.name}.cut-{os.getpid()}-{len(list(path.parent.iterdir()))}"))
        with ExitStack() as stack:
            if fault is not None and fault.rollout is not None:
                break_rollout(stack, fault.rollout)
            try:
                upslope.train(folder=path.parent, name=path.name, **COMMON, **arguments)
            except upslope.UpslopeError as error:
                print(f"{name}: {error}", flush=True)
        (path / "done").touch()
        print(half, name, flush=True)


def break_rollout(stack: ExitStack, change: Any) -> None:
    """Let both ways of collecting give a changed rollout."""
    collect, collect_host = iteration.collect, engines.collect_host

    def compiled(*arguments: Any, **options: Any) -> Any:
        columns, rollout, finished = collect(*arguments, **options)
        return columns, change(rollout), finished

    def host(*arguments: Any, **options: Any) -> Any:
        rollout, finished = collect_host(*arguments, **options)
        return change(rollout), finished

    stack.enter_context(patch.object(iteration, "collect", compiled))
    stack.enter_context(patch.object(engines, "collect_host", host))


def judge(bank: Path, verbose: bool = True) -> dict[str, Any]:
    """Diagnose every run of the bank."""
    results: dict[str, Any] = {}
    for half in HALVES:
        rows = []
        for of, name, cause, _, _ in jobs():
            path = place(bank, of, name)
            if of != half or not (path / "done").exists():
                continue
            found = [finding.cause for finding in upslope.diagnose(path).findings if finding.is_alarm]
            rows.append({"run": name, "cause": cause, "found": found})
            right = not found if cause == "healthy" else cause in found[:1]
            if verbose and not right:
                print(f"{half:10s} {name:50s} {cause:28s} {', '.join(found[:3]) or 'nothing'}")
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


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in ("train", "judge"):
        sys.exit(__doc__)
    if sys.argv[1] == "train":
        train(Path(sys.argv[2]), *sys.argv[3:])
    else:
        RESULTS.write_text(json.dumps(judge(Path(sys.argv[2])), indent=1, ensure_ascii=False) + "\n", "utf-8")
