"""The tables in docs/performance.md match the stored results, and rates and times are compared the right way round."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def speed_table(monkeypatch):
    """The benchmark's module, which imports other files in its folder."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("speed_table")


def result(speed_table, unit, **measured):
    """Return a stored case with two rounds."""
    rounds = [{who: {unit: values[i]} for who, values in measured.items()} for i in range(2)]
    return speed_table.Result("case", {"title": "work", "unit": unit, "rounds": rounds})


def test_the_page_is_what_is_stored(speed_table):
    page = speed_table.PAGE.read_text("utf-8")
    for table in (speed_table.against_the_best(), speed_table.contenders()):
        assert table in page, "run: python benchmarks/speed.py --table"


def test_more_steps_per_second_are_faster(speed_table):
    rates = result(speed_table, "steps_per_second", upslope=(30, 60), slow=(10, 10), quick=(20, 30), raw=(99, 99))
    assert rates.best_other() == "quick"  # not `raw`, which does not learn
    assert rates.ratios("upslope", "quick") == [1.5, 2.0]
    assert rates.ratio_shown("upslope", "quick") == "1.75 (1.50 – 2.00)"


def test_fewer_seconds_are_faster(speed_table):
    seconds = result(speed_table, "seconds", upslope=(4, 4), slow=(8, 8), quick=(1, 2))
    assert seconds.best_other() == "quick"
    assert seconds.ratio_shown("upslope", "quick") == "**0.38 (0.25 – 0.50)**"
    assert seconds.shown("upslope") == "4.0 (4.0 – 4.0) s"


def test_every_contender_has_its_script_and_its_environment(speed_table):
    cases = importlib.import_module("speed_cases")
    for case in cases.CASES.values():
        assert len({contender.name for contender in case.contenders}) == len(case.contenders)
        for contender in case.contenders:
            assert (ROOT / "benchmarks" / "peers" / contender.script).is_file()
            assert contender.environment == "upslope" or contender.environment in cases.PEERS
