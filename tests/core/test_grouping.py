"""Rows of several groups are arranged in one padded array."""

import numpy as np
from numpy.testing import assert_array_equal

from upslope.core.grouping import in_groups


def test_each_groups_rows_keep_their_order_and_shorter_groups_are_padded():
    rows = np.asarray([10.0, 20.0, 11.0, 21.0, 12.0])
    found = in_groups(rows, np.asarray([0, 2, 0, 2, 0]), 3, np.nan)
    assert_array_equal(found, [[10.0, 11.0, 12.0], [np.nan, np.nan, np.nan], [20.0, 21.0, np.nan]])


def test_rows_may_be_arrays_of_any_type():
    rows = np.asarray([[1, 2], [3, 4], [5, 6]], np.uint8)
    found = in_groups(rows, np.asarray([1, 0, 1]), 2, 9)
    assert_array_equal(found, [[[3, 4], [9, 9]], [[1, 2], [5, 6]]])
    assert found.dtype == np.uint8
