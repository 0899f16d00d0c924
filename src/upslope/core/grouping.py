"""Rows of several groups in one array with an axis of groups."""

from typing import Any

import numpy as np


def in_groups(rows: np.ndarray, group: np.ndarray, num_groups: int, padding: Any) -> np.ndarray:
    """Rows [R, …] and the group of each [R] → [G, K, …]: each group's rows in their order, then padding up to the K
    rows of the largest group. `padding` is a value of the rows' dtype."""
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group, minlength=num_groups)
    place = np.empty(len(group), int)
    place[order] = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts)
    found = np.full((num_groups, counts.max(), *rows.shape[1:]), padding, rows.dtype)
    found[group, place] = rows
    return found
