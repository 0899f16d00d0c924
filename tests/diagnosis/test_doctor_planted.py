"""The doctor on a few runs that are really trained: planted faults of `benchmarks/doctor.py`, and a healthy one."""

import subprocess
import sys
from pathlib import Path

import upslope

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUNS = (
    "actions are ignored", "bootstraps past death", "weight five steps late", "loss of the wrong sign",
    "log-probabilities of others", "observations all zero", "fake rows after resets", "healthy 16 ppo",
)  # fmt: skip
TRAIN = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(BENCHMARKS)!r})
import doctor_bank
runs = tuple(f"{{name}} in jax:CartPole-v1" for name in {RUNS!r})
chosen = [job for job in doctor_bank.jobs() if job.part == "calibrate" and job.name in runs]
doctor_bank.jobs = lambda: iter(chosen)
bank = Path(sys.argv[1])
doctor_bank.train(bank, len(chosen))
print(*(f"{{job.cause}} {{doctor_bank.place(bank, job)}}" for job in chosen), sep="\\n")
"""
"""In one world, where most share one compiled program; in a process of its own, since programs are replaced in it."""


def test_planted_faults_are_found_first_and_a_healthy_run_is_let_alone(tmp_path: Path):
    said = subprocess.run([sys.executable, "-c", TRAIN, str(tmp_path)], capture_output=True, text=True, check=True)
    runs = [line.split(" ", 1) for line in said.stdout.splitlines()[-len(RUNS) :]]
    found = {cause: [finding.cause for finding in upslope.diagnose(path).alarms][:1] for cause, path in runs}
    assert len(found) == len(RUNS)
    assert found == {cause: [] if cause == "healthy" else [cause] for cause in found}
