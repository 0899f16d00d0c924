"""Curves in reports: thinning keeps the extremes, and shaded areas can have gaps."""

import numpy as np
from helpers import LAWS, SEEDS
from hypothesis import given
from hypothesis import strategies as st

from upslope.analysis.curves import thin
from upslope.report.figures import area_around


@LAWS
@given(SEEDS, st.integers(1, 400), st.integers(1, 30))
def test_thinning_keeps_the_extremes_of_every_bucket(seed, n, buckets):
    generator = np.random.default_rng(seed)
    x, y = np.arange(n), generator.standard_cauchy(n)
    fewer_x, fewer_y = thin(x, y, buckets)
    assert len(fewer_x) <= 2 * buckets + 2
    assert (np.diff(fewer_x) > 0).all() and np.isin(fewer_x, x).all()
    np.testing.assert_array_equal(fewer_y, y[fewer_x])
    if n > 2 * buckets:
        size = -(-n // buckets)
        for start in range(0, n, size):
            part = y[start : start + size]
            assert {part.min(), part.max()} <= set(fewer_y.tolist())
    assert {y[0], y[-1], y.min(), y.max()} <= set(fewer_y.tolist())


def test_thinning_leaves_out_what_is_not_finite():
    x, y = thin(np.arange(6.0), np.array([np.nan, 1, np.inf, 2, np.nan, 3]), 10)
    assert (x.tolist(), y.tolist()) == ([1, 3, 5], [1, 2, 3])


def test_an_area_has_a_gap_where_there_is_no_interval():
    x, y = area_around(np.arange(4.0), np.array([0, np.nan, 2, 3.0]), np.array([1, np.nan, 3, 4.0]))
    np.testing.assert_array_equal(x, [0, 0, np.nan, 2, 3, 3, 2, np.nan])
    np.testing.assert_array_equal(y, [1, 0, np.nan, 3, 4, 3, 2, np.nan])
