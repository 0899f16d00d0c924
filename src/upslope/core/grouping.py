"""Arrange the rows of several groups in one array with a group axis."""

from typing import Any

import numpy as np


def place_in_group(group: np.ndarray) -> np.ndarray:
    """The position of each row among the rows of its group: [3, 5, 3, 3] → [0, 0, 1, 2]."""
    _, group, counts = np.unique(group, return_inverse=True, return_counts=True)
    place = np.empty(len(group), int)
    place[np.argsort(group, kind="stable")] = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    return place


def in_groups(rows: np.ndarray, group: np.ndarray, num_groups: int, padding: Any) -> np.ndarray:
    """Arrange rows [R, …], given the group of each row [R], as [G, K, …].

    The rows of each group keep their order and are padded to K, the number of rows in the largest group. `padding` is a
    value of the rows' dtype.
    """
    place = place_in_group(group)
    found = np.full((num_groups, place.max() + 1, *rows.shape[1:]), padding, rows.dtype)
    found[group, place] = rows
    return found
