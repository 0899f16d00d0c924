"""Each seed starts training as if it were alone."""

import jax
import numpy as np
import pytest

from upslope.config.config import Config
from upslope.config.task import environment_of, task_of
from upslope.core.arrays import raw
from upslope.learning.iteration import initialise_all

pytestmark = pytest.mark.usefixtures("compiled_for_users")


def test_a_seed_begins_alike_alone_and_among_others():
    # Only two of the four components are observed, so the result of reset is used twice: as the state, and in part as
    # the observation. A program that loops over seeds may round one of the two differently from a program without a
    # loop.
    config = Config("jax:CartPole-v1", num_envs=32, hidden_sizes=(8,), ignore_observation=("1", "3"))
    task = task_of(config, environment_of(config))
    among = initialise_all(task, [0, 1, 2])
    for place in range(3):
        alone = initialise_all(task, [place])
        for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(among), strict=True):
            np.testing.assert_array_equal(raw(one)[0], raw(other)[place])
