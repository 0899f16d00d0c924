"""The stored runs: bit for bit on the machine that stored them, within the stored tolerance on others."""

from pathlib import Path

import jax
import pytest
from golden_runs import CASES, TEACHERS, distance, fingerprint, stored, train_all

GROUPS = {
    "compiled discrete, and who learns from it": ("compiled discrete", "recorded discrete"),
    "compiled, other spaces": ("compiled box", "compiled multi", "compiled one-hot", "compiled wide"),
    "host discrete": ("host discrete",),
    "host, other spaces, and who learns from it": ("host box", "host multi", "recorded box"),
}
"""How the names of a group's cases begin. Together, so that a teacher is trained once."""


def cases_of(group: str) -> list[str]:
    return [name for name in CASES if name.startswith(GROUPS[group])]


def test_every_stored_run_is_in_one_group_beside_its_teacher():
    assert sorted(name for group in GROUPS for name in cases_of(group)) == sorted(CASES)
    assert all(any({*pair} <= {*cases_of(group)} for group in GROUPS) for pair in TEACHERS.items())


@pytest.mark.timeout(1200)
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the runs were stored on a CPU")
@pytest.mark.parametrize("group", GROUPS)
def test_the_numbers_are_those_stored(group: str, tmp_path: Path):
    expected, meta = stored()
    is_same_machine = fingerprint() == meta["fingerprint"]
    names = [name for name in cases_of(group) if is_same_machine or meta["tolerance"][name] > 0]
    if not names:
        pytest.skip("no tolerance is stored for machines other than the one that stored the runs")
    found = train_all(tmp_path, names)
    for name in names:
        if is_same_machine:
            assert found[name]["rows"] == expected[name]["rows"], name
            assert found[name]["parameters"].tobytes() == expected[name]["parameters"].tobytes(), name
        assert distance(found[name], expected[name]) <= meta["tolerance"][name], name
