"""Does every rung solve the probe environments that it can solve in theory?

    python benchmarks/probes.py            # all
    python benchmarks/probes.py ppo gae …  # only these; other stored results are kept

Each rung is trained with five seeds. The criteria are those of `upslope probe`: the deterministic return of every seed
must be within 5 % of the best, and the critic's values within 10 % of the exact ones. The result is stored.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import upslope
from upslope.config.ladder import ALGORITHMS

RESULTS = Path(__file__).parent / "results" / "probes.json"
RUNGS = [name for name, rung in ALGORITHMS.items() if rung.source == "own"]
STEPS = 100_000


def main(only: list[str]) -> None:
    """Run every rung, or the named ones, on every probe."""
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text("utf-8")) if only and RESULTS.exists() else {}
    for rung in only or RUNGS:
        found = upslope.probe(rung, seeds=5, steps=STEPS)
        results[rung] = {f"probe/{probed.name}": kept(asdict(probed)) for probed in found}
        print(rung, {probed.name: probed.solved for probed in found}, flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    solved = [found["solved"] for row in results.values() for found in row.values()]
    print(f"{sum(solved)} of {len(solved)} solved")


def kept(probed: dict[str, Any]) -> dict[str, Any]:
    """The result of a probe in the form in which it is stored."""
    rounded = {name: None if probed[name] is None else round(probed[name], 4) for name in ("return_gap", "value_error")}
    return rounded | {"solved": probed["solved"]}


if __name__ == "__main__":
    main(sys.argv[1:])
