"""Analysis reads run directories, also unfinished ones, and refuses what is none."""

import numpy as np
import pytest

import upslope
from upslope.analysis.records import read_record


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
