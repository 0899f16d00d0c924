"""Short runs of every kind give the numbers that are stored, so that a change of structure is shown to change none."""

import json
import os
import subprocess
import sys

import golden_runs
import pytest

EXPECTED, NOTES = golden_runs.stored()
IS_SAME_MACHINE = golden_runs.fingerprint() == NOTES["fingerprint"]


@pytest.fixture(scope="module")
def distances(users_flags: str) -> dict[str, float]:
    """How far each case is from what is stored, trained in a process of its own and compiled as users have it."""
    command = [sys.executable, golden_runs.__file__, "--compare"]
    answer = subprocess.run(command, env=os.environ | {"XLA_FLAGS": users_flags}, stdout=subprocess.PIPE, check=True)
    return json.loads(answer.stdout.splitlines()[-1])


def test_every_case_is_stored() -> None:
    assert set(NOTES["rows"]) == set(NOTES["tolerance"]) == set(golden_runs.CASES)


@pytest.mark.parametrize("name", golden_runs.CASES)
def test_a_run_gives_the_stored_numbers(name: str, distances: dict[str, float]) -> None:
    """Bit for bit on the machine and the versions that stored them, and within what rounding does elsewhere."""
    tolerance = NOTES["tolerance"][name]
    if not IS_SAME_MACHINE and not tolerance:
        pytest.skip("no tolerance is stored for another machine or other versions")
    assert distances[name] <= (0 if IS_SAME_MACHINE else tolerance)
