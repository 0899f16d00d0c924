"""Ranges of Box actions that 32-bit floats cannot resolve are refused or reported; all others are accepted silently."""

import re
import warnings
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction
from user_environments import Strict

import upslope
from upslope.errors import UpslopeError
from upslope.models.box_limits import warnings_of
from upslope.models.heads import head_of, with_policy

LARGEST = float(np.finfo(np.float32).max)


def box(low: Any, high: Any, dtype: Any = np.float64) -> spaces.Box:
    return spaces.Box(np.array([low, -1], dtype), np.array([high, 1], dtype), (2,), dtype)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (box(1e9, 1e9 + 1), "component 0 between 1000000000 and 1000000001, where two 32-bit floats are 64 apart"),
        (box(1e9, np.inf), "component 0 between 1000000000 and 1000000002, where two 32-bit floats are 64 apart"),
        (box(-np.inf, -1e9), "between -1000000002 and -1000000000, where two 32-bit floats are 64 apart"),
        (box(0, 1e-300), "component 0 between 0 and 1e-300, a range too narrow for the 32-bit floats"),
        (box(0, 1e-40, np.float32), "a range too narrow for the 32-bit floats"),
    ],
)
def test_a_range_without_a_choice_is_refused(space: spaces.Box, words: str):
    with pytest.raises(UpslopeError, match=rf"It takes actions with .*{words}.* between -1 and 1, and shift and scale"):
        head_of(space, "It")
    with pytest.raises(UpslopeError, match=rf"It takes actions at `a/0` with .*{words}"):
        head_of(spaces.Dict({"a": spaces.Tuple([space])}), "It")


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (box(1e7, 1e7 + 1), "32-bit floats are 1 apart, so the agent can choose only among 2 values"),
        (box(1e6, 1e6 + 1), "32-bit floats are 0.0625 apart, so the agent can choose only among 17 values"),
        (box(-1e6, -1e6 + 1), "only among 17 values"),
        (box(1e6, 1e6 + 1, np.float32), "only among 17 values"),
        (box(1000, 1001, np.float16), "16-bit floats are 0.5 apart, so the agent can choose only among 3 values"),
        (box(-1e300, 1e300), r"the bound -1e\+300. Bounds of at least 1e\+30 count as infinite"),
        (box(0, 1e300), r"the bound 1e\+300"),
        (box(-1e35, 1e35, np.float32), r"the bound -1e\+35"),
    ],
)
def test_a_range_that_is_coarse_or_counts_as_infinite_is_reported(space: spaces.Box, words: str):
    (told,) = warnings_of(head_of(spaces.Dict({"a": space})), "It")
    assert told.startswith("warning: It takes actions at `a` with ")
    assert re.search(words, told), told


@pytest.mark.parametrize(
    "space",
    [
        box(-1, 1, np.float16),
        box(0, 65504, np.float16),
        box(0, 255),
        box(0, 1e-20),
        box(-1e12, 1e12),
        box(-np.inf, np.inf),
        box(-LARGEST, LARGEST),
        box(-LARGEST, LARGEST, np.float32),
        box(1e9, 1e9),
        box(1e4, 1e4 + 1),
    ],
)
def test_other_ranges_are_not_mentioned(space: spaces.Box):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head = head_of(space)
        assert list(warnings_of(head, "It")) == []


def test_bounds_beyond_32_bits_are_cast_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head = head_of(box(-1e300, 1e300))
        action = jnp.asarray([[1e20, 2.0]])
        outside = head.outside(action)
        assert outside is not None and outside.tolist() == [0.5]
        assert head.to_compiled(action).tolist() == [[np.float32(1e20), 1.0]]
    with pytest.raises(UpslopeError, match=r"into finite bounds \(below 1e\+30\)"):
        with_policy(head, "It", kind="squashed")


def test_training_reports_it_and_the_suggested_wrapper_is_the_remedy(tmp_path, capsys):
    settings: dict[str, Any] = {"steps": 16, "num_envs": 2, "rollout_steps": 8, "minibatches": 1, "epochs": 1}
    settings |= {"quiet": True, "max_episode_steps": 4, "folder": tmp_path, "hidden_sizes": (4,)}
    upslope.train(lambda: Strict(box(1e6, 1e6 + 1)), name="coarse", **settings)
    assert capsys.readouterr().err.count("can choose only among 17 values") == 1
    for low, high in ((1e9, 1e9 + 1), (0, 1e-300)):
        space = spaces.Box(low, high, (2,), np.float64)
        wrapped = lambda space=space: RescaleAction(Strict(space), -1, 1)  # noqa: E731 - a named expression
        upslope.train(wrapped, name=f"rescaled {high}", **settings)
        assert capsys.readouterr().err == ""
