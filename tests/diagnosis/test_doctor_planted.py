"""The doctor on runs that are actually trained: some have faults from `benchmarks/doctor.py`, and one is healthy."""

import subprocess
import sys
from pathlib import Path

import pytest

import upslope

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RUNS = {
    "some": ("bootstraps past death", "healthy 16 ppo"),
    "others": ("actions are ignored", "loss of the wrong sign"),
    "more": (
        "weight five steps late", "log-probabilities of others", "observations all zero", "fake rows after resets",
    ),
}  # fmt: skip
TRAIN = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(BENCHMARKS)!r})
import doctor_bank
runs = tuple(f"{{name}} in jax:CartPole-v1" for name in sys.argv[2:])
chosen = [job for job in doctor_bank.jobs() if job.part == "calibrate" and job.name in runs]
doctor_bank.jobs = lambda: iter(chosen)
bank = Path(sys.argv[1])
doctor_bank.train(bank, len(chosen))
print(*(f"{{job.cause}} {{doctor_bank.place(bank, job)}}" for job in chosen), sep="\\n")
"""
"""Trains the runs in one environment, so that most share a compiled program. This needs a separate process, because
planting a fault replaces programs."""


@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)
def test_planted_faults_are_found_first_and_a_healthy_run_is_let_alone(runs: tuple[str, ...], tmp_path: Path):
    command = [sys.executable, "-c", TRAIN, str(tmp_path), *runs]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    trained = [line.split(" ", 1) for line in said.stdout.splitlines()[-len(runs) :]]
    found = {cause: [finding.cause for finding in upslope.diagnose(path).alarms][:1] for cause, path in trained}
    assert len(found) == len(runs)
    assert found == {cause: [] if cause == "healthy" else [cause] for cause in found}
