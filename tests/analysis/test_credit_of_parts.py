"""A run with an image, a number, masks and a memory, tested from training to the report pages."""

import dataclasses
import json

import numpy as np
import pytest

import upslope
from upslope.analysis.credit import load_credit, save_credit
from upslope.analysis.episode_credit import credit_of
from upslope.analysis.metrics import HEALTH
from upslope.report.credit import credit_view
from upslope.report.figures import Figures
from upslope.report.page import write_credit, write_report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    small = {"num_envs": 2, "rollout_steps": 8, "minibatches": 1, "epochs": 1, "hidden_sizes": (4,), "memory_size": 4}
    return upslope.train(
        "jax:user_environments:CompiledFenced", folder=tmp_path_factory.mktemp("runs"), name="fenced", steps=400,
        memory="gru", preset=False, quiet=True, **small,
    )  # fmt: skip


@pytest.fixture(scope="module")
def credit(run):
    return credit_of(run.path)


def test_training_measures_the_health_of_its_parts(run):
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    names = {"health/forbidden_mass", "health/memory_saturated", "health/memory_dead", "health/encoder_dead"}
    assert names <= rows[0].keys() <= set(rows[0]) and names <= HEALTH.keys()
    assert "health/key_share" not in rows[0]  # the image has a convolutional encoder, so only one key remains
    # Only at the two ends is one of the two actions forbidden, and the policy is nearly uniform.
    assert 0 < rows[0]["health/forbidden_mass"] < 0.5
    unchecked = upslope.diagnose(run.path).unchecked
    assert "memory_dead" not in unchecked and "encoder_dead" not in unchecked and "key_drowns_others" in unchecked


def test_credit_shows_what_the_agent_saw_may_do_and_kept(credit):
    steps = credit.num_steps
    assert credit.mask.shape == (steps, 2) and credit.mask.any(axis=1).all()
    # Forbidden actions have probability 0.
    assert (credit.policy["probability"][~credit.mask] == 0).all()
    assert list(credit.images) == ["0"] and len(credit.images["0"]) == steps == len(credit.image_steps)
    assert credit.influence.shape == (len(credit.influence_steps), steps) and (np.diag(credit.influence) > 0).all()


def test_they_are_kept_in_the_file_and_damage_is_refused(credit, tmp_path):
    path = tmp_path / "credit.npz"
    save_credit(path, credit)
    again = load_credit(path)
    np.testing.assert_array_equal(again.mask, credit.mask)
    np.testing.assert_array_equal(again.influence, credit.influence)
    assert again.images == credit.images
    for change in (
        {"mask": credit.mask[:-1]},
        {"mask": credit.mask.astype(np.float32)},
        {"influence_steps": None},
        {"influence": credit.influence[:-1]},
        {"image_steps": credit.image_steps[::-1]},
        {"images": {"0": credit.images["0"][:-1]}},
    ):
        save_credit(path, dataclasses.replace(credit, **change))
        with pytest.raises(upslope.UpslopeError, match="damaged"):
            load_credit(path)


def test_the_page_has_a_film_of_the_image_a_strip_of_masks_and_a_picture_of_the_memory(run, credit, tmp_path):
    figures = Figures()
    view = credit_view(figures, credit, "run", 10**6)
    assert [film["caption"] for film in view["data"]["films"]] == ["seen by the agent: 0"]
    assert f"{int(credit.mask[0].sum())} of 2 allowed" in view["data"]["actions"][0]
    labels = [figure["layout"]["xaxis"]["title"]["text"] for figure in figures.found]
    assert labels == ["step t of the episode", "step k of the observation"]
    html = write_credit(run.path, output=tmp_path / "credit.html").read_text("utf-8")
    assert "What the memory kept" in html and "choices that were forbidden" in html
    html = write_report(run.path, tmp_path / "report.html").read_text("utf-8")
    assert "0 read by board" in html and "gru of 4 units" in html and ">used<" in html
