"""The doctor's rules for bonuses, applied to runs with hand-written metrics and to runs with planted faults."""

from pathlib import Path
from typing import Any

import pytest
from doctor_helpers import alarms_and_notes, write_run

import upslope
from upslope.lab.television import ENDLESS, ROOMS, Television

FADING = {"bonus/mean": lambda done: 0.5 * (1 - 0.9 * done), "bonus/share": 0.3}
CASES = {
    "healthy": (FADING, 50.0, set()),
    "drowned": (FADING | {"bonus/share": 0.97}, 0.0, {"bonus_drowns_reward"}),
    "never fades": (FADING | {"bonus/mean": 0.5}, 0.0, {"bonus_never_fades"}),
    "television": (FADING | {"bonus/mean": lambda done: 0.5 - done if done < 0.4 else done}, 0.0, {"noisy_television"}),
}
OF_BONUS = {"bonus_drowns_reward", "bonus_never_fades", "noisy_television"}


@pytest.mark.parametrize("case", CASES)
def test_a_bonus_that_goes_wrong_is_named(case: str, tmp_path: Path):
    changes, rise, expected = CASES[case]
    alarms, notes = alarms_and_notes(write_run(tmp_path, changes, rise=rise, bonus="count"))
    assert alarms & OF_BONUS == expected and not notes & OF_BONUS


def test_a_run_without_a_bonus_lacks_it_and_weights_with_one_are_not_those_of_the_rewards(tmp_path: Path):
    from upslope.diagnosis.doctor import diagnose

    none = diagnose(write_run(tmp_path / "none"))
    assert {none.unchecked[name] for name in OF_BONUS} == {"a bonus"}
    alarms, _ = alarms_and_notes(write_run(tmp_path / "one", FADING | {"health/weight_agreement": 0.2}, bonus="rnd"))
    assert "credit_inconsistent" not in alarms


COUNTS: dict[str, Any] = {"bonus": "count", "bonus_coefficient": 0.1}
KEY: dict[str, Any] = {"env_kwargs": {"length": 6}, "steps": 40_960, "bonus": "count"}
PLANTED: dict[str, tuple[Any, dict[str, Any], set[str]]] = {
    "sound": ("jax:Key-v0", KEY | {"bonus_coefficient": 0.1}, set()),
    "drowns the reward": ("jax:Key-v0", KEY | {"bonus_coefficient": 1e4}, {"bonus_drowns_reward"}),
    "never fades": (
        "jax:Pendulum-v1",
        COUNTS | {"steps": 40_960, "bonus_kwargs": {"bits": 1024, "cells": 1 << 22}, "bonus_coefficient": 0.01},
        {"bonus_never_fades"},
    ),
    "a television": (
        lambda: Television(ENDLESS, at=ROOMS - 1),
        COUNTS | {"steps": 122_880, "rollout_steps": 64, "bonus_kwargs": {"cells": 1 << 20}},
        {"noisy_television"},
    ),
}


@pytest.mark.weekly
@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_fault_is_found_and_a_sound_run_is_let_alone(case: str, tmp_path: Path):
    environment, settings, expected = PLANTED[case]
    run = upslope.train(environment, folder=tmp_path, name="run", seeds=2, preset=False, quiet=True, **settings)
    assert {finding.cause for finding in upslope.diagnose(run.path).findings} & OF_BONUS == expected
