"""More kinds of trials in one program, each held against the trial alone."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "engines"))
from test_trials import compare_with_alone


@pytest.mark.usefixtures("compiled_for_users")
def test_trials_with_a_penalty_a_shared_trunk_and_decay_are_bit_for_bit_those_alone():
    compare_with_alone("ppo_kl")
