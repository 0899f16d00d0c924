"""Measure one run of upslope, started the way a user would start it; print a JSON line.

python measure_upslope.py ENVIRONMENT SEEDS STEPS '{"num_envs": 64, …}'
"""

import json
import sys
import tempfile

from measure import peak_memory

import upslope

if __name__ == "__main__":
    environment, seeds, steps, settings = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
    with tempfile.TemporaryDirectory() as folder:
        settings = {"preset": False} | settings
        run = upslope.train(environment, seeds=seeds, steps=steps, folder=folder, quiet=True, **settings)
        rows = run.metrics()
    # The rate covers all seeds together and excludes the first chunk, which includes compilation.
    answer = {"steps_per_second": rows[-1]["time/steps_per_second"], "first_update": rows[0]["time/elapsed"]}
    print(json.dumps(answer | {"peak_memory_mb": peak_memory()}))
