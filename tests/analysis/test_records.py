"""Analysis reads run directories, including those of unfinished runs, and refuses anything else."""

import json
import tracemalloc
from unittest import mock

import numpy as np
import pytest

import upslope
from upslope.analysis.records import read_record
from upslope.core.reading import read_rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return upslope.train(
        "jax:CartPole-v1", "reinforce", seeds=2, seed=5, steps=3000, folder=folder, quiet=True, preset=False
    )


def test_arrays_hold_what_the_rows_say(run):
    record = read_record(run.path)
    rows = run.metrics()
    assert record.seeds == (5, 6) and record.config.algorithm == "reinforce"
    for s, seed in enumerate(record.seeds):
        mine = [row for row in rows if row["seed"] == seed]
        np.testing.assert_array_equal(record.steps[s, : len(mine)], [row["step"] for row in mine])
        np.testing.assert_array_equal(
            record.metrics["policy/entropy"][s, : len(mine)], [row["policy/entropy"] for row in mine]
        )
        assert np.isnan(record.steps[s, len(mine) :]).all()
    assert sum(len(record.episodes_of(seed)) for seed in record.seeds) == len(run.episodes())
    assert len(record.evaluations) == 0


def test_the_rest_of_a_line_that_was_being_written_is_not_read_as_a_row(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    rows = read_rows(path)
    assert next(rows) == [{"step": 1}]
    with path.open("a") as file:
        file.write('ep": 2}\n{"step": 3}\n')
    assert list(rows) == []


def test_numbers_keep_all_their_bits(run, tmp_path):
    """A metric is held in 32 bits only if no row needs more, not even a row in a later block."""
    values = {0: 0.5, 1: None, 2: float(np.float32(0.1)), 3: 0.1, 4: 2.0**24 + 1, 5: 1e39}
    rows = [
        {"iteration": k, "seed": 5, "step": 2**40 + k} | ({} if x is None else {"mine": x}) | {"half": k / 2}
        for k, x in values.items()
    ]
    copy = copy_of(run.path, tmp_path)
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for rows_at_once in (1, 2000):
        with mock.patch("upslope.core.reading.ROWS_AT_ONCE", rows_at_once):
            found = read_record(copy)
        np.testing.assert_array_equal(found.metrics["mine"][0], [np.nan if x is None else x for x in values.values()])
        np.testing.assert_array_equal(found.metrics["half"][0], np.arange(6) / 2)
        np.testing.assert_array_equal(found.steps[0], 2**40 + np.arange(6))
        assert {name: x.dtype for name, x in found.metrics.items()} == {"mine": float, "half": float}


def test_without_metrics_the_steps_and_episodes_are_the_same(run):
    whole, part = read_record(run.path), read_record(run.path, with_metrics=False)
    assert len(whole.metrics) > 5 and len(part.metrics) == 0
    np.testing.assert_array_equal(whole.steps, part.steps)
    np.testing.assert_array_equal(whole.episodes, part.episodes)
    assert whole.reached == part.reached and whole.stopped == part.stopped


def test_evaluations_are_read_with_their_modes(run):
    upslope.evaluate(run.path, episodes=3)
    found = read_record(run.path).evaluations
    assert len(found) == 2 * 3 * 2
    assert set(found["mode"]) == {"stochastic", "deterministic"}


def test_a_row_cut_off_by_a_kill_is_left_out(run, tmp_path):
    copy = copy_of(run.path, tmp_path)
    whole = read_record(run.path).steps.shape
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 99, "se')
    assert read_record(copy).steps.shape == whole


@pytest.mark.parametrize(
    "text", ["not json\n", '{"iteration": 1}\n', '{"iteration": 1, "seed": 5, "step": 3, "x": []}\n']
)
def test_a_damaged_file_is_named(run, tmp_path, text):
    copy = copy_of(run.path, tmp_path)
    (copy / "metrics.jsonl").write_text(text)
    with pytest.raises(upslope.UpslopeError, match=r"metrics\.jsonl is damaged"):
        read_record(copy)


def with_rows(path, folder, rows, **settings):
    """Copy a run, replacing its metric rows and some settings."""
    copy = copy_of(path, folder)
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    description = json.loads((copy / "config.json").read_text())
    description["config"] |= settings
    (copy / "config.json").write_text(json.dumps(description))
    return copy


def test_a_table_that_would_be_almost_empty_is_refused_while_it_is_read(run, tmp_path):
    count = {"iteration": 1, "seed": 5, "step": 2}
    wide = count | {f"m/{k}": 1.0 for k in range(1990)}
    copy = with_rows(run.path, tmp_path, [wide, *[count] * 100_000])
    tracemalloc.start()
    with pytest.raises(upslope.UpslopeError, match=r"metrics\.jsonl is damaged.*a table of all its columns"):
        read_record(copy)
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20, "it would take 800 MB for each copy"
    tracemalloc.stop()


def test_rare_columns_of_a_table_padded_for_many_seeds_are_refused(run, tmp_path):
    count = {"iteration": 1, "seed": 5, "step": 2}
    rows = [count | {f"m/{k}": 1.0 for k in range(500)}, *[count] * 6_000]
    copy = with_rows(run.path, tmp_path, rows, seeds=190)
    with pytest.raises(upslope.UpslopeError, match=r"metrics\.jsonl is damaged.*a table of all its columns"):
        read_record(copy)


def test_metrics_that_few_rows_have_are_read(run, tmp_path):
    usual, rare = {f"m/{k}": 0.5 for k in range(30)}, {f"health/{k}": 0.1 for k in range(60)}
    rows = [{"iteration": k, "seed": 5, "step": k} | usual | (rare if k % 200 == 0 else {}) for k in range(16_000)]
    found = read_record(with_rows(run.path, tmp_path, rows))
    assert np.isfinite(found.metrics["health/7"][0]).sum() == 80 and np.isfinite(found.metrics["m/3"][0]).all()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(upslope.UpslopeError, match="not a run directory"):
        read_record(tmp_path)


def copy_of(path, folder):
    import shutil

    return shutil.copytree(path, folder / "copy")


def test_a_record_of_some_seeds_holds_nothing_of_the_others(run_of):
    path = run_of(episodes={3: [(10, 1.0)], 4: [(20, 2.0), (30, 3.0)], 5: [(40, 4.0)]}, steps=100)
    part = read_record(path).with_seeds((5, 4))
    assert part.seeds == (5, 4) and part.steps.shape == (2, 4)
    assert sorted(part.episodes["return"].tolist()) == [2.0, 3.0, 4.0]
    assert part.episodes_of(3).size == 0 and part.episodes_of(5)["return"].tolist() == [4.0]
