"""Save and load pytrees of arrays: leaves are keyed by path and checked against the state that the config describes."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from upslope.config.trust import own_parts
from upslope.core.arrays import raw, typed
from upslope.core.storage import load_arrays, save_arrays
from upslope.errors import UpslopeError
from upslope.runs.checkpoint_meta import read_meta, remedy_for

CHECKPOINT_FORMAT = 2
OLD_NAMES = {".model.": ".", ".normaliser.": ".observation_statistics."}
"""Array names of an agent in format 1, which had no model. Agents can be read from that format, but states cannot."""


def save_checkpoint(path: Path, tree: Any, snapshot: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Atomically write a state and the snapshot of the environments on the host."""
    arrays = {f"state{name}": np.asarray(raw(leaf)) for name, leaf in named_leaves(tree)}
    arrays |= {f"world/{name}": x for name, x in snapshot.items()}
    save_arrays(path, arrays, {"kind": "checkpoint", "format": CHECKPOINT_FORMAT, **meta})


Content = tuple[dict[str, np.ndarray], dict[str, Any]]
"""The arrays and the metadata of a file."""


def load_checkpoint(
    path: Path, like: Any, prefix: str = "", content: Content | None = None, remedy: str = ""
) -> tuple[Any, dict[str, np.ndarray], dict[str, Any]]:
    """Read a state with the structure, shapes and dtypes of `like`, or only the part under a path `prefix`.

    If the file was read before, pass its `content` to avoid reading it again. `remedy` replaces the advice of
    `remedy_for` in messages about a missing or damaged file.

    Raises:
        UpslopeError: the file is missing or damaged, was written by another version, or contains a different state.
    """
    remedy = remedy or remedy_for(path)
    arrays, meta = load_arrays(path, "checkpoint", remedy) if content is None else content
    is_old = meta.get("kind") == "checkpoint" and meta.get("format") == 1
    is_old_agent = is_old and not hasattr(like, "learner")
    if is_old and not is_old_agent:
        raise UpslopeError(
            f"{path} was written in format 1 by an earlier version. Its agents can be loaded, evaluated and reported, "
            f"but resuming training requires format {CHECKPOINT_FORMAT}. Resume it with the version that started it, "
            "or train a new run under another --name."
        )
    if meta.get("kind") != "checkpoint" or (meta.get("format") != CHECKPOINT_FORMAT and not is_old_agent):
        raise UpslopeError(
            f"{path} is a {meta.get('kind')} of format {meta.get('format')}; a checkpoint of format "
            f"{CHECKPOINT_FORMAT} is needed. Was it written by another version of upslope?"
        )
    leaves = []
    for name, leaf in named_leaves(like):
        expected = jax.eval_shape(raw, leaf)
        found = arrays.get(f"state{prefix}{old_name(name) if is_old_agent else name}")
        if is_old_agent and found is not None and found.size == np.size(leaf):
            found = found.reshape(np.shape(leaf))
        if found is None or found.shape != expected.shape or found.dtype != expected.dtype:
            said = "missing" if found is None else f"{found.dtype}{list(found.shape)}"
            words = f"its {name} is {said}, but {expected.dtype}{list(expected.shape)} is needed"
            raise UpslopeError(mismatch(path, words, meta, remedy))
        leaves.append(typed(jax.device_put(found), leaf))
    snapshot = {name.removeprefix("world/"): x for name, x in arrays.items() if name.startswith("world/")}
    return jax.tree.unflatten(jax.tree.structure(like), leaves), snapshot, meta


def mismatch(path: Path, words: str, meta: dict[str, Any], remedy: str) -> str:
    """Say that a checkpoint does not hold the arrays that its run needs, and why. `words` say which array differs."""
    settings = meta.get("settings")
    own = own_parts(settings, ("model", "optimiser", "bonus")) if isinstance(settings, dict) else []
    if not own:
        return f"{path} does not match this run's config: {words}. One of the two was edited or replaced. {remedy}"
    return (
        f"{path} does not match this run: {words}. Either the {' or the '.join(own)} has changed since the run was "
        "trained, or another object was passed instead. Use the code with which it was trained. If it is the same, the "
        f"file was edited or replaced. {remedy}"
    )


def old_name(name: str) -> str:
    """Return the name of an agent's array in format 1."""
    for new, old in OLD_NAMES.items():
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def check_size(path: Path, numbers: int) -> None:
    """Refuse a checkpoint that is too small to hold the given number of 32-bit numbers, before memory for them is
    allocated.

    Raises:
        UpslopeError: the file is missing or too small.
    """
    if not path.is_file():
        read_meta(path)  # raises the error for what is there instead
    if path.stat().st_size < 4 * numbers:
        raise UpslopeError(
            f"{path} does not match this run's config, which describes at least {numbers:,} numbers: it has "
            f"{path.stat().st_size:,} bytes. One of the two is damaged. {remedy_for(path)}"
        )


def named_leaves(tree: Any) -> list[tuple[str, Any]]:
    """Return each array of a pytree with its path, e.g. `.learner.agent.actor.log_std`."""
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
