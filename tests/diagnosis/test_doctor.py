"""The doctor on synthetic metrics: it finds each signature and reports no fault in a healthy run."""

import json

import numpy as np
import pytest
from doctor_helpers import SEEDS, alarms_and_notes, write_run
from gymnasium import spaces

import upslope
from upslope.cli.main import run as run_command
from upslope.diagnosis import findings, rules_parts
from upslope.models.description import to_json
from upslope.models.heads import head_of

BONUS_RULES = ("bonus_drowns_reward", "bonus_never_fades", "noisy_television")

SIGNATURES = {
    "rows_misaligned": {"changes": {"health/broken_links": 1.0}},
    "reset_as_successor": {"changes": {"health/reset_as_successor": 1.0}},
    "log_prob_mismatch": {"changes": {"health/log_prob_mismatch": 0.2}},
    "ends_not_recorded": {"changes": {"health/end_share": 0.0}},
    "credit_inconsistent": {"changes": {"health/weight_agreement": -1.0}},
    "ends_ignored": {"changes": {"health/terminal_error": 5.0}},
    "truncation_not_bootstrapped": {"changes": {"health/truncation_bootstrap": 0.0}},
    "truncation_misread": {"changes": {"health/truncation_error": 0.1}},
    "return_not_propagated": {"changes": {"health/target_mean": 0.2}},
    "objective_descends": {"changes": {"health/surrogate_gain": -0.01}, "rise": 0.0},
    "no_policy_signal": {"changes": {"health/weight_std": 0.0, "health/weight_mean": float("nan")}, "rise": 0.0},
    "no_reward_signal": {"changes": {"health/reward_nonzero": 0.0}, "episodes": lambda share, g: [(0.0, 40)] * 10},
    "rewards_unscaled": {"changes": {"health/target_max": 1e5}, "rise": 0.0},
    "fake_rows": {"changes": {"health/zero_after_end": 1.0}},
    "episodes_end_at_once": {"lengths": lambda g: 1, "rise": 0.0},
    "limit_as_termination": {
        "lengths": lambda g: min(50, int(g.integers(20, 80))),
        "changes": {"health/truncated_share": 0.0},
    },
    "observations_uninformative": {"changes": {"health/observation_constant": 1.0}, "rise": 0.0},
    "observations_unscaled": {"changes": {"health/observation_std_max": 400.0}},
    "actions_without_effect": {"changes": {"health/action_effect": 1.0, "health/late_effect": 1.0}, "rise": 0.0},
    "update_too_large": {"changes": {"policy/kl": 0.5, "policy/clip_fraction": 0.7}},
    "update_too_small": {"changes": {"policy/kl": 1e-9}, "rise": 0.0, "learning_rate": 1e-6},
    "entropy_dominates": {"changes": {"policy/entropy": 0.693}, "rise": 0.0, "entropy_coefficient": 1.0},
    "actions_clipped": {"changes": {"health/action_clipped": 0.98, "policy/entropy": 3.0}, "box": True},
    "no_exploration": {"changes": {"policy/entropy": -5.0}, "box": True},
    "targets_impossible": {
        "changes": {"health/target_mean": -30.0},
        "episodes": lambda share, g: [(float(n), int(n)) for n in g.integers(20, 40 + int(20 * share), 10)],
    },
    "groups_equal": {
        "changes": {"policy/equal_groups": 0.98}, "rise": 0.0, "estimator": "group_mean", "group_size": 4
    },
    "not_finite": {"changes": {"policy/loss": float("nan")}, "rise": 0.0},
    "horizon_too_short": {"gamma": 0.3},
    "memory_saturated": {"changes": {"health/memory_saturated": 0.9, "health/memory_dead": 0.95}, "rise": 0.0},
    "memory_dead": {"changes": {"health/memory_dead": 1.0, "health/memory_saturated": 0.0}, "rise": 0.0},
    "encoder_dead": {"changes": {"health/encoder_dead": 1.0}, "rise": 0.0},
    "key_drowns_others": {"changes": {"health/key_share": 0.9995, "health/key_index": 0.0}, "rise": 0.0},
    "forbidden_actions_likely": {"changes": {"health/forbidden_mass": 0.999}, "rise": 0.0},
    "batch_too_small": {"num_envs": 1, "rollout_steps": 4, "minibatches": 1},
}  # fmt: skip


def test_observations_that_overflow_are_told(tmp_path):
    changes = {"health/observation_max": 1e38, "health/observation_constant": 1.0}
    lost = {"health/observation_max": float("nan"), "health/observation_mean": float("nan")}
    for number, is_normalised in enumerate((False, True)):
        metrics = (lost if is_normalised else changes) | {"policy/loss": float("nan")}
        path = write_run(tmp_path / str(number), metrics, rise=0.0, normalize_observations=is_normalised)
        found = {finding.cause: finding for finding in upslope.diagnose(path).findings}
        assert "overflow" in found["not_finite"].likely
    unscaled = write_run(tmp_path / "unscaled", changes, rise=0.0)
    found = {finding.cause: finding for finding in upslope.diagnose(unscaled).findings}
    assert "overflow" in found["observations_unscaled"].symptom and "Scale the" in found["observations_unscaled"].remedy
    constant = write_run(tmp_path / "constant", changes, rise=0.0, normalize_observations=True)
    found = {finding.cause: finding for finding in upslope.diagnose(constant).findings}
    assert "overflow" in found["observations_uninformative"].rivals[0]


@pytest.mark.parametrize("cause", SIGNATURES)
def test_a_signature_is_found_first(cause, tmp_path):
    found = upslope.diagnose(write_run(tmp_path, **SIGNATURES[cause]))
    assert [f.cause for f in found.alarms][:1] == [cause], [(f.cause, f.rank) for f in found.findings]
    first = found.alarms[0]
    assert first.symptom and first.likely and first.remedy and first.evidence
    assert all(len(one.values) in (SEEDS, 8) for one in first.evidence)


HOLDING = ({"learning_rate": 1e-6}, {"epsilon": 1e-3}, {"target_kl": 1e-6}, {"min_effective_sample_size": 0.9999},
           {"objective": "kl_penalty", "beta": 1e4})  # fmt: skip


@pytest.mark.parametrize("settings", [{}, *HOLDING])
def test_a_policy_that_stands_still_is_an_alarm_only_where_a_setting_holds_it(settings, tmp_path):
    # With the default settings, the explanation may be that the run started with an optimal policy.
    path = write_run(tmp_path, {"policy/kl": 1e-9}, rise=0.0, **settings)
    alarms, notes = alarms_and_notes(path)
    assert "update_too_small" in (alarms if settings else notes)
    (found,) = (f for f in upslope.diagnose(path).findings if f.cause == "update_too_small")
    name = list(settings)[-1] if settings else "learning_rate"
    assert f"--{name.replace('_', '-')} (now " in found.remedy


@pytest.mark.parametrize(
    ("world", "second", "is_alarm"),
    [("World-v0", 1.0, True), ("World-v0", 0.1, False), ("jax:CartPole-v1", 1.0, False)],
)
def test_only_an_environment_of_ones_own_can_be_what_slows_down_and_not_in_seconds(world, second, is_alarm, tmp_path):
    alarms, notes = alarms_and_notes(write_run(tmp_path, slowing=0.1, world=world, second=second))
    assert "slows_down" in (alarms if is_alarm else notes)


@pytest.mark.parametrize("rise", [50.0, 0.0])
def test_a_healthy_run_gets_a_clean_bill_if_it_rises(rise, tmp_path):
    found = upslope.diagnose(write_run(tmp_path, rise=rise))
    assert found.alarms == () and bool(found.too_little) == (rise == 0)
    assert found.unchecked == {
        "actions_clipped": "action_clipped", "modes_disagree": "10 evaluation episodes of each mode",
        "forbidden_actions_likely": rules_parts.MASKS, "memory_saturated": rules_parts.MEMORY,
        "memory_dead": rules_parts.MEMORY, "encoder_dead": rules_parts.IMAGES, "key_drowns_others": rules_parts.KEYS,
        **dict.fromkeys(BONUS_RULES, rules_parts.BONUS),
    }  # fmt: skip
    assert len(found.checked) == len(findings.RULES) - len(found.unchecked) > 20
    assert found.to_json()["healthy"] is (True if rise else None)
    assert [f.cause for f in found.findings] == ([] if rise else ["not_learning"])


def test_parts_in_health_are_no_alarm(tmp_path):
    parts = {"forbidden_mass": 0.6, "memory_saturated": 0.02, "memory_dead": 0.1, "encoder_dead": 0.4, "key_share": 0.8}
    found = upslope.diagnose(write_run(tmp_path, {f"health/{name}": x for name, x in parts.items()}))
    assert found.alarms == () and [f.cause for f in found.findings] == ["forbidden_actions_likely"]
    assert set(found.unchecked) == {"actions_clipped", "modes_disagree", *BONUS_RULES}


def test_a_fault_in_two_of_five_seeds_is_no_alarm_but_one_in_most_is(tmp_path):
    path = write_run(tmp_path)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]

    def planted(seeds):
        text = "".join(
            json.dumps(r | ({"health/broken_links": 1.0} if r["seed"] in seeds else {})) + "\n" for r in rows
        )
        (path / "metrics.jsonl").write_text(text)
        return [f.cause for f in upslope.diagnose(path).alarms]

    assert planted((0, 1)) == [] and planted((0, 1, 2, 3)) == ["rows_misaligned"]


def test_a_run_without_health_metrics_is_diagnosed_by_what_it_has(tmp_path):
    path = write_run(tmp_path, changes={"policy/kl": 0.5})
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: x for name, x in row.items() if not name.startswith("health/")} for row in rows]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert [f.cause for f in upslope.diagnose(path).alarms] == ["update_too_large"]


def test_too_little_to_judge_is_no_clean_bill(tmp_path, capsys):
    path = write_run(tmp_path)
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    short = [{n: x for n, x in row.items() if n != "health/end_share"} for row in rows if row["iteration"] < 3]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in short))
    found = upslope.diagnose(path)
    assert found.too_little == "it has 3 iterations, but 10 are needed" and found.to_json()["healthy"] is None
    assert found.unchecked["ends_not_recorded"] == "end_share" and "ends_not_recorded" not in found.checked
    assert found.unchecked["slows_down"] == "24 iterations"
    run_command(["doctor", str(path)])
    words = " ".join(capsys.readouterr().out.split())
    assert "not enough evidence: it has 3 iterations, but 10 are needed" in words
    assert "ends not recorded (end_share)" in words

    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "episodes.csv").write_text("step,seed,return,length\n" + "10,0,1.0,5\n" * 9)
    found = upslope.diagnose(path)
    assert "no seed has finished 10 episodes" in found.too_little
    assert found.unchecked["late_collapse"] == "100 finished episodes of a seed"


def test_a_run_on_recorded_data_is_not_called_healthy(tmp_path):
    path = write_run(tmp_path, data="data.npz", estimator="gae")
    (path / "episodes.csv").write_text("step,seed,return,length\n")
    found = upslope.diagnose(path)
    assert "recorded data" in found.too_little and f"upslope evaluate {path}" in found.too_little
    assert found.unchecked["update_too_large"] == findings.ACTING and found.to_json()["healthy"] is None


def test_several_runs_are_diagnosed_one_after_another(tmp_path, capsys):
    paths = [str(write_run(tmp_path / name)) for name in ("a", "b")]
    run_command(["doctor", *paths, str(tmp_path)])
    said = capsys.readouterr()
    assert said.out.count("run: nothing wrong was found") == 2 and f"left out: {tmp_path} is not a run" in said.err
    run_command(["doctor", *paths, "--json"])
    assert [one["healthy"] for one in json.loads(capsys.readouterr().out)] == [True, True]


def test_the_command_answers_a_person_and_a_program(tmp_path, capsys):
    path = write_run(tmp_path, changes={"health/broken_links": 1.0})
    run_command(["doctor", str(path)])
    words = capsys.readouterr().out
    assert "Rows do not continue" in words and "health/broken_links" in words and "remedy" in words
    run_command(["doctor", str(path), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert not found["healthy"] and found["findings"][0]["cause"] == "rows_misaligned"


def test_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(upslope.UpslopeError, match=r"not a run directory: it has no config\.json"):
        upslope.diagnose(tmp_path)
    (tmp_path / "config.json").mkdir()
    with pytest.raises(upslope.UpslopeError, match=r"not a run directory: its config\.json is not a file"):
        upslope.diagnose(tmp_path)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5),
        spaces.MultiDiscrete([2, 3]),
        spaces.MultiBinary((2, 2)),
        spaces.Box(-1, 1, (2,), np.float32),
        spaces.Dict({"tool": spaces.Discrete(3), "bits": spaces.Tuple([spaces.MultiBinary(2)])}),
        spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (1,), np.float32)]),
    ],
)
def test_the_largest_entropy_from_a_description_is_that_of_the_head(space):
    head = head_of(space, "an environment")
    assert findings.max_entropy(to_json(head)) == head.max_entropy
