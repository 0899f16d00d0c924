"""Does every rung solve the probe environments that it should be able to solve?

    python benchmarks/probes.py            # all
    python benchmarks/probes.py ppo gae …  # only these; other stored results are kept

Each rung is trained with five seeds. The criteria are those of `upslope probe`: for every seed, the deterministic
return must be within 5 % of the best possible, and the critic's values within 10 % of the exact ones. The results are
stored.
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
    """Run all rungs, or those named, on every probe."""
    results: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text("utf-8")) if only and RESULTS.exists() else {}
    for rung in only or RUNGS:
        found = upslope.probe(rung, seeds=5, steps=STEPS)
        results[rung] = {f"probe/{probed.name}": kept(asdict(probed)) for probed in found}
        print(rung, {probed.name: probed.solved for probed in found}, flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    solved = [found["solved"] for row in results.values() for found in row.values()]
    print(f"{sum(solved)} of {len(solved)} solved")


def kept(probed: dict[str, Any]) -> dict[str, Any]:
    """Convert the result of a probe to the form that is stored."""
    rounded = {name: None if probed[name] is None else round(probed[name], 4) for name in ("return_gap", "value_error")}
    return rounded | {"solved": probed["solved"]}


if __name__ == "__main__":
    main(sys.argv[1:])
