"""Short runs of every kind give the numbers that are stored, so that a change of structure is shown to change none."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import golden_runs
import numpy as np
import pytest

pytestmark = pytest.mark.usefixtures("compiled_for_users")

EXPECTED, NOTES = golden_runs.stored()
IS_SAME_MACHINE = golden_runs.fingerprint() == NOTES["fingerprint"]


@pytest.fixture(scope="module")
def run_of_case(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The run of a case. Each is trained once, though others learn from it."""
    folder, done = tmp_path_factory.mktemp("golden"), {}
    return lambda name: golden_runs.train_case(name, Path(folder), done)


def test_every_case_is_stored() -> None:
    assert set(NOTES["rows"]) == set(NOTES["tolerance"]) == set(golden_runs.CASES)


@pytest.mark.parametrize("name", golden_runs.CASES)
def test_a_run_gives_the_stored_numbers(name: str, run_of_case: Callable[[str], Any]) -> None:
    """Bit for bit on the machine and the versions that stored them, and within what rounding does elsewhere."""
    tolerance = NOTES["tolerance"][name]
    if not IS_SAME_MACHINE and not tolerance:
        pytest.skip("no tolerance is stored for another machine or other versions")
    found, expected = golden_runs.facts_of(run_of_case(name)), EXPECTED[name]
    if not IS_SAME_MACHINE:
        assert golden_runs.distance(found, expected) <= tolerance
        return
    assert len(found["rows"]) == len(expected["rows"])
    for mine, theirs in zip(found["rows"], expected["rows"], strict=True):
        assert {name: mine.get(name, "missing") for name in theirs} == theirs
    assert np.array_equal(found["parameters"].view(np.uint32), expected["parameters"].view(np.uint32))
