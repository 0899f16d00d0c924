"""The late effect takes earlier observations into account, so it detects actions that must match an earlier cue."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import rollout_of

from upslope.core.distributions import Categorical
from upslope.learning.action_effect import action_effect, late_effect

LENGTH, COLUMNS = 5, 60


def played(generator, matters, pays_late=False, cost=0.0):
    """Return (action_effect, late_effect) for random episodes of five steps that show a cue, ±1, in the first step.

    The last step is rewarded if its action matches the cue or, with `pays_late`, if the first action was 1. Unless the
    action `matters`, a random number replaces the cue in this comparison.
    """
    cue, action = generator.integers(0, 2, COLUMNS), generator.integers(0, 2, (LENGTH, COLUMNS))
    luck = generator.integers(0, 2, COLUMNS)
    observation = np.zeros((LENGTH, COLUMNS, 1), np.float32)
    observation[0, :, 0] = 2 * cue - 1
    reward = np.zeros((LENGTH, COLUMNS), np.float32)
    reward[-1] = action[0] if pays_late else (action[-1] == (cue if matters else luck))
    reward -= cost
    over = np.zeros((LENGTH, COLUMNS), bool)
    over[-1] = True
    following = np.concatenate([observation[1:], np.zeros_like(observation[:1])])
    rollout = rollout_of(reward, terminated=over)._replace(
        observation=jnp.asarray(observation), next_observation=jnp.asarray(following)
    )
    batch = SimpleNamespace(
        action=jnp.asarray(action.ravel()), old_policy=Categorical(jnp.zeros((LENGTH * COLUMNS, 2))),
        valid=jnp.ones(LENGTH * COLUMNS, bool), weight=jnp.asarray(np.tile(reward[-1] - reward[-1].mean(), LENGTH)),
    )  # fmt: skip
    return float(action_effect(batch, rollout)), float(late_effect(batch, rollout))


def mean_of(**what):
    generator = np.random.default_rng(0)
    return np.mean([played(generator, **what) for _ in range(30)], axis=0)


@pytest.mark.parametrize("cost", [0.0, 0.5], ids=["free", "a cost at every step"])
def test_an_action_that_must_match_an_earlier_cue_has_a_late_effect_and_no_other(cost):
    effect, late = mean_of(matters=True, cost=cost)
    assert effect < 1.5 and late > 8


def test_a_first_action_that_is_paid_for_at_the_end_has_a_late_effect():
    effect, late = mean_of(matters=True, pays_late=True)
    assert effect < 1.5 and late > 2.5


def test_an_action_that_is_ignored_has_none_but_by_chance():
    # The larger of two squared z-scores has mean 1 + 2/π.
    effect, late = mean_of(matters=False)
    assert effect < 1.5 and abs(late - (1 + 2 / np.pi)) < 1
