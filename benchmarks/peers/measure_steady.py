"""Measure the steady rate of one run with whichever version of upslope is on the path; print a JSON line.

python measure_steady.py ENVIRONMENT ALGORITHM STEPS '{"num_envs": 64, …}'

Only features that all versions have are used: `upslope.train`, and the times in the run's rows. The rate covers all
seeds together, from the end of the first chunk (which includes compilation) to the end of the run.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import upslope


def steady_rate(rows: list[dict[str, Any]]) -> float:
    """Return the environment steps per second after the first chunk, whose rows all have the same time as the first
    row."""
    first, last = rows[0]["time/elapsed"], rows[-1]["time/elapsed"]
    if last <= first:
        raise SystemExit("The run ended after its first chunk, so there is no steady rate. Give it more steps.")
    begun: dict[int, int] = {}
    reached: dict[int, int] = {}
    for row in rows:
        reached[row["seed"]] = row["step"]
        if row["time/elapsed"] == first:
            begun[row["seed"]] = row["step"]
    return sum(step - begun.get(seed, 0) for seed, step in reached.items()) / (last - first)


if __name__ == "__main__":
    environment, algorithm, steps, settings = sys.argv[1], sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
    with tempfile.TemporaryDirectory() as folder:
        options = {"steps": steps, "folder": folder, "quiet": True, "preset": False, **settings}
        rows = upslope.train(environment, algorithm, **options).metrics()
    print(json.dumps({"steps_per_second": steady_rate(rows), "source": str(Path(upslope.__file__).parents[1])}))
