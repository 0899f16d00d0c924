"""Rows in blocks that stay in a core's cache. The numbers are those of one large batch."""

from collections.abc import Callable
from typing import Any

import jax

BLOCK = 1024
"""Samples whose numbers inside a network stay in a core's cache."""


def in_blocks(function: Callable[[Any], Any], rows: Any, vmapped: bool = False) -> Any:
    """`function(rows)`, where each row's answer depends on that row alone; block after block, unless `vmapped`."""
    num_rows = jax.tree.leaves(rows)[0].shape[0]
    if vmapped or num_rows <= BLOCK or num_rows % BLOCK:
        return function(rows)
    blocks = jax.tree.map(lambda x: x.reshape(-1, BLOCK, *x.shape[1:]), rows)
    return jax.tree.map(lambda x: x.reshape(num_rows, *x.shape[2:]), jax.lax.map(function, blocks))
