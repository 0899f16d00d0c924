"""How well does Stable-Baselines3 learn with the same settings? Stores benchmarks/results/learning_rivals.json.

    python benchmarks/learning_rivals.py hopper_zoo --python BASELINES/bin/python   # a quarter of an hour per seed
    python benchmarks/learning.py --table                                           # write docs/learning.md

A published score comes from one agent on an older version of the environment. These scores come from the same version,
with `peers/score_sb3.py`. `BASELINES` is the virtual environment `baselines` of `speed_cases.PEERS`. Seeds that are
stored already are not trained again.
"""

import argparse
import json
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "learning_rivals.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", help="the name of a case of learning.py that peers/score_sb3.py knows")
    parser.add_argument("--python", required=True, help="the interpreter of an environment with sb3-contrib")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    stored = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    found = stored.setdefault(asked.case, [])
    for seed in range(asked.seeds):
        if any(score["seed"] == seed for score in found):
            continue
        command = [asked.python, HERE / "peers" / "score_sb3.py", asked.case, str(seed)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found.append(json.loads(said.splitlines()[-1]))
        RESULTS.write_text(json.dumps(stored, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
