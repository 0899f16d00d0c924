"""Train RLtools on its Pendulum, with the settings of its own example, until a score is reached; print a JSON line.

    python solve_rltools.py SCORE

The program is compiled unless it is in the cache folder, $XDG_CACHE_HOME.
"""

import json
import os
import sys
from pathlib import Path

from measure_rltools import compiled, run

EXAMPLE = {"envs": 4, "steps": 1024, "batch": 256, "epochs": 2, "activation": "RELU"}
BUDGET = 300_000

if __name__ == "__main__":
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    print(json.dumps(run(compiled(EXAMPLE, caches / "rltools"), 0, BUDGET, sys.argv[1])))
