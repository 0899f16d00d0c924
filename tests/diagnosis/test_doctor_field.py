"""The bank of runs in `benchmarks/doctor_field.py`: split by environment, labels, and definition of harm."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import doctor_field
import doctor_field_bank
from doctor_field_worlds import WORLDS


def test_the_halves_share_no_world_and_the_test_half_is_large_enough():
    jobs = list(doctor_field_bank.jobs())
    assert len({world.source for world in WORLDS.values()}) >= 6 and len(WORLDS) >= 20
    assert set(doctor_field_bank.PLANTED) <= set(WORLDS)
    tested = [job for job in jobs if job.half == "test"]
    faults = [job for job in tested if job.cause != "healthy"]
    assert len(faults) >= 60 and sum(job.where == "environment" for job in faults) >= 30
    assert len(tested) - len(faults) >= 80
    places = [doctor_field_bank.place(Path("bank"), job) for job in jobs]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ("mine", "theirs", "is_harm"),
    [
        ([0.0, 1.0], [99.0, 101.0], True),
        ([99.0, 100.0], [99.0, 101.0], False),
        ([80.0, 82.0], [99.0, 101.0], False),  # the run lost only a fifth of the possible gain
        ([-9.0, -8.0], [0.0, 2.0], False),  # the run's twin gained nothing either
    ],
)
def test_a_fault_did_harm_if_the_run_lost_much_of_what_its_twin_gained(mine, theirs, is_harm, tmp_path):
    jobs = {job.name: job for job in doctor_field_bank.jobs() if job.world.name == "chase"}
    for job, trained in ((jobs["as it is"], theirs), (jobs["actions are ignored"], mine)):
        path = doctor_field_bank.place(tmp_path, job)
        path.mkdir(parents=True)
        found = {"trained": [trained] * 20, "untrained": [[0.0, 2.0]] * 20}
        (path / "harm.json").write_text(json.dumps(found))
    assert doctor_field_bank.did_harm(tmp_path, jobs["actions are ignored"]) == is_harm


def test_figures_count_harmed_runs_alone_and_wilsons_interval_is_his():
    fault = {"world": "chase", "where": "environment", "cause": "reward_noise", "harmed": True}
    rows = [
        fault | {"found": ["reward_noise"], "verdict": False},
        fault | {"found": ["no_exploration", "reward_noise"], "verdict": False},
        fault | {"found": [], "verdict": True},
        {"world": "chase", "where": "code", "cause": "ends_ignored", "harmed": False},
        {"world": "chase", "where": "", "cause": "healthy", "found": [], "verdict": True},
    ]
    found = doctor_field.figures(rows)
    assert found["right cause first"] == [1, 3] and found["right cause among the first two"] == [2, 3]
    assert found["harmed runs called healthy"] == [1, 3] and found["false alarms"] == [0, 1]
    assert found["planted"] == 4
    assert doctor_field.wilson(8, 10) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert doctor_field.words([0, 4]).startswith("0 of 4, 0 % [0, ")
