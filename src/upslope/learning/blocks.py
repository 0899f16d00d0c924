"""Process rows in blocks that fit in a core's cache. The results equal those of one large batch."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from upslope.core.arrays import block_by_block
from upslope.learning.split import rows_shared

BLOCK = 1024
"""Number of samples whose activations fit in a core's cache."""


def in_blocks(function: Callable[[Any], Any], rows: Any, vmapped: bool = False) -> Any:
    """Compute `function(rows)`, block by block unless `vmapped`, for a function that acts on each row independently.

    If the seed is split over devices, each device computes a share of the rows.
    """
    return rows_shared(partial(blockwise, function, vmapped=vmapped), rows)


def blockwise(function: Callable[[Any], Any], rows: Any, *, vmapped: bool) -> Any:
    """Like `in_blocks`, but on this device alone."""
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    if vmapped or num_rows <= BLOCK or num_rows % BLOCK:
        return function(rows)
    return block_by_block(function, rows, BLOCK)
