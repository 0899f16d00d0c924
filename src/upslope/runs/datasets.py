"""Recorded rollouts: episodes in a file.

To write a file of your own, use this format: a `.npz` with `meta` (JSON text) and, for M steps in E concatenated
episodes, `observation` [M, …], `action` [M, …], `reward` [M], `length` [E], `terminated` [E] (false: truncated),
`final_observation` [E, …], and, if known, `behaviour_log_prob` [M], log μ(a|s) in the environment's units, and
`action_mask` [M, K], the allowed choices, with the K choices of all components of an action concatenated. Discrete
actions are numbered from 0. A Box action is flattened and stored as sampled, before it is clipped to its bounds. An
action with several parts is one vector of floats: the parts, flattened, in the order of their keys. If `meta` has
`"squashed": true`, Box actions are stored before tanh: the environment received centre + half range · tanh(number).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from upslope.core.arrays import is_shape
from upslope.core.storage import fits_32_bits, load_arrays, save_arrays
from upslope.core.types import Rollout, host_rollout
from upslope.errors import UpslopeError
from upslope.models.encoders import ObservationEncoder, Refuse
from upslope.models.head import ActionHead
from upslope.runs.minari_datasets import is_minari, read_minari

DATASET_FORMAT = 4
"""Format 4 adds actions with several parts and squashed actions, format 3 adds action masks, which learners must
respect, and format 2 adds observations with several arrays. A file that does not use the additions of its format is
identical to one in the previous format."""
READABLE_FORMATS = (1, 2, 3, 4)
"""Formats that can be read."""
MAX_PADDING = 200
"""Episodes are padded to the longest one. The padded size may be at most about this many times the number of steps."""
MAX_PADDED, SMALL = 20, 1 << 31
"""The padded arrays may take at most 2 GiB or this many times the bytes of the arrays in the file, whichever is
more."""
MAX_LOG_PROBABILITY = 1e-4
"""The logarithm of a probability is at most 0, except for rounding."""
REQUIRED = ("action", "reward", "length", "terminated")
EVERY_STEP = ("observation", "action", "reward", "behaviour_log_prob", "action_mask")
"""Names of the arrays with one entry per step."""


def save_dataset(path: Path, rollouts: Sequence[Rollout], meta: dict[str, Any], head: ActionHead | None = None) -> None:
    """Write whole-episode rollouts [T, N] (one episode per column) of a policy with this head as one dataset."""
    parts: dict[str, list[np.ndarray]] = {}
    for rollout in rollouts:
        facts = named_facts(rollout)
        for column, length in enumerate(np.asarray(rollout.valid).sum(axis=0).tolist()):
            one = {name: facts[name][:length, column] for name in facts if name.startswith(EVERY_STEP)}
            one |= {"length": np.asarray([length]), "terminated": facts["terminated"][length - 1 : length, column]}
            for name in facts:
                if name.startswith("next_observation"):
                    final = name.replace("next_", "final_", 1)
                    one[final] = facts[name][length - 1 : length, column]
            for name, x in one.items():
                parts.setdefault(name, []).append(x)
    arrays = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    squashed = {"squashed": True} if head is not None and head.is_squashed else {}
    save_arrays(path, arrays, {"kind": "dataset", "format": DATASET_FORMAT, **meta, **squashed})


def named_facts(rollout: Rollout) -> dict[str, np.ndarray]:
    """Return every array of a rollout by name. If an observation has several arrays, the path of each is appended to
    its name."""
    return {
        f"{name}{jax.tree_util.keystr(path)}": np.asarray(x)
        for name, tree in rollout._asdict().items()
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def load_dataset(
    path: str | Path,
    encoder: ObservationEncoder,
    head: ActionHead,
    needs_behaviour: bool,
    *,
    needs_masks: bool = False,
) -> Rollout:
    """Read a dataset as a rollout [T, N], one episode per column, padded to the longest.

    Raises:
        UpslopeError: the file is not a dataset, is damaged, does not fit the spaces, contains a non-finite number, or
            lacks the log-probabilities that importance sampling needs or the masks that the environment provides.
    """
    return as_learnable(path, *read_recorded(path), encoder, head, needs_behaviour, needs_masks=needs_masks)


def read_recorded(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays and the metadata of recorded episodes, from a file or from the Minari dataset `minari:NAME`.

    Raises:
        UpslopeError: this is not a path, or the file is not a dataset.
    """
    if not isinstance(path, str | Path):
        raise UpslopeError(
            f"Recorded episodes are read from a file, so a {type(path).__name__} cannot be their source. Pass the path "
            "of a file that `upslope record` wrote, or minari:NAME."
        )
    return read_minari(path) if is_minari(path) else load_arrays(Path(path), "dataset")


def as_learnable(
    path: str | Path,
    arrays: dict[str, np.ndarray],
    meta: dict[str, Any],
    encoder: ObservationEncoder,
    head: ActionHead,
    needs_behaviour: bool = False,
    *,
    needs_masks: bool = False,
) -> Rollout:
    """Check what `read_recorded` returned and convert it to a rollout; see `load_dataset`."""
    if not needs_masks:
        arrays.pop("action_mask", None)
    elif "action_mask" not in arrays:
        raise UpslopeError(
            f"{path} has no action_mask, but the environment masks actions. Record it again with upslope "
            "record, or ignore masks with --no-masks."
        )
    check_dataset(path, arrays, meta, encoder, head)
    arrays["action"] = as_the_head_samples(path, arrays["action"], head, was_squashed=meta.get("squashed", False))
    if needs_behaviour and "behaviour_log_prob" not in arrays:
        raise UpslopeError(
            f"{path} has no behaviour_log_prob, but the importance weight π/μ needs the probability μ with which each "
            "action was taken. Use --algorithm clone, which imitates without it, or record again with upslope record."
        )
    arrays.setdefault("behaviour_log_prob", np.full(arrays["reward"].shape, np.nan, np.float32))
    return as_rollout(arrays, encoder)


def as_the_head_samples(path: str | Path, action: np.ndarray, head: ActionHead, *, was_squashed: bool) -> np.ndarray:
    """Convert recorded actions [M, …] to the form in which this head would have sampled them.

    The environment received the same actions, and densities are in its units, so `behaviour_log_prob` stays valid.

    Raises:
        UpslopeError: squashing cannot produce these actions, since they are not strictly within the bounds.
    """
    if was_squashed == head.is_squashed:
        return action
    if was_squashed:
        return head.squashed(action)
    found = head.unsquashed(action)
    is_lost = ~np.isfinite(found).reshape(len(found), -1).all(axis=1)
    if is_lost.any():
        raise UpslopeError(
            f"{path} cannot be learned from with --head squashed: {is_lost.sum():,} of its {len(found):,} actions are "
            "on or outside the bounds of the action space, which tanh never reaches. Use --head gaussian, or record a "
            "policy with --head squashed."
        )
    return found


def as_rollout(arrays: dict[str, np.ndarray], encoder: ObservationEncoder) -> Rollout:
    """Convert concatenated episodes to one episode per column."""
    length = arrays["length"].astype(np.int64)
    starts, longest, count = np.cumsum(length) - length, int(length.max()), length.shape[0]
    t = np.arange(longest)[:, None]
    valid = t < length
    index = starts + np.minimum(t, length - 1)
    last = t == length - 1

    def columns(name: str) -> np.ndarray:
        x = arrays[name][index]
        return np.where(valid.reshape(longest, count, *(1,) * (x.ndim - 2)), x, np.zeros((), x.dtype))

    def observed(path: Any, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        name = jax.tree_util.keystr(path)
        observation = columns(f"observation{name}")
        following = np.concatenate([observation[1:], np.zeros_like(observation[:1])])
        is_last = last.reshape(longest, count, *(1,) * len(shape))
        return observation, np.where(is_last, arrays[f"final_observation{name}"], following)

    leaves, structure = jax.tree_util.tree_flatten_with_path(encoder.shapes, is_leaf=is_shape)
    both = [observed(path, shape) for path, shape in leaves]
    return host_rollout(
        {
            "observation": jax.tree.unflatten(structure, [x for x, _ in both]),
            "action": columns("action"),
            "reward": columns("reward").astype(np.float32),
            "terminated": last & arrays["terminated"].astype(bool),
            "truncated": last & ~arrays["terminated"].astype(bool),
            "next_observation": jax.tree.unflatten(structure, [x for _, x in both]),
            "behaviour_log_prob": columns("behaviour_log_prob").astype(np.float32),
            "valid": valid,
            "action_mask": columns("action_mask").astype(bool) if "action_mask" in arrays else None,
        }
    )


def check_dataset(
    path: str | Path, arrays: dict[str, np.ndarray], meta: dict[str, Any], encoder: ObservationEncoder, head: ActionHead
) -> None:
    """Raise an error if this is not a valid dataset for the spaces."""

    def refuse(reason: str) -> UpslopeError:
        return UpslopeError(f"{path} cannot be learned from: {reason}.")

    if meta.get("kind", "dataset") != "dataset" or meta.get("format", DATASET_FORMAT) not in READABLE_FORMATS:
        raise refuse(
            f"it is a {meta.get('kind')} of format {meta.get('format')}, not a dataset of format "
            f"{' or '.join(map(str, READABLE_FORMATS))}"
        )
    if not isinstance(meta.get("squashed", False), bool):
        raise refuse("`squashed` in its meta must be true or false")
    leaves = jax.tree_util.tree_leaves_with_path(encoder.shapes, is_leaf=is_shape)
    shapes = {jax.tree_util.keystr(path): shape for path, shape in leaves}
    observed = [f"{which}{name}" for which in ("observation", "final_observation") for name in shapes]
    missing = [name for name in (*observed, *REQUIRED) if name not in arrays]
    if missing:
        raise refuse(f"it lacks {', '.join(missing)}")
    length = arrays["length"]
    if length.ndim != 1 or length.dtype.kind not in "iu" or length.size == 0 or int(length.min()) < 1:
        raise refuse("`length` must contain the number of steps, at least 1, of one or more episodes")
    # Python integers do not overflow.
    steps, episodes = sum(length.tolist()), length.shape[0]
    expected = {
        "action": (steps, *head.sample_shape),
        "reward": (steps,),
        "terminated": (episodes,),
        "behaviour_log_prob": (steps,),
        "action_mask": (steps, head.num_choices),
    }
    expected |= {f"observation{name}": (steps, *shape) for name, shape in shapes.items()}
    expected |= {f"final_observation{name}": (episodes, *shape) for name, shape in shapes.items()}
    for name, shape in expected.items():
        if name in arrays and arrays[name].shape != shape:
            raise refuse(f"`{name}` has shape {arrays[name].shape}, but this environment needs {shape}")
        if name in arrays and arrays[name].dtype.kind not in "biuf":
            raise refuse(f"`{name}` does not contain numbers")
        if name in arrays and not fits_32_bits(arrays[name]):
            raise refuse(f"`{name}` contains a value that is not finite, or too large for 32 bits")
    check_padding([arrays[name] for name in expected if name in arrays], length, refuse)
    for which in ("observation", "final_observation"):
        encoder.check(which, arrays, refuse)
    head.check(arrays["action"], refuse)
    if "behaviour_log_prob" in arrays and not head.is_continuous:
        check_log_probabilities(arrays["behaviour_log_prob"], refuse)
    if "action_mask" in arrays:
        check_masks(arrays["action_mask"], arrays["action"], head, refuse)


def check_log_probabilities(log_prob: np.ndarray, refuse: Refuse) -> None:
    """Raise an error if a probability of discrete actions would exceed 1. The density of a Box action may."""
    impossible = np.flatnonzero(log_prob > MAX_LOG_PROBABILITY)
    if len(impossible):
        raise refuse(
            f"`behaviour_log_prob` is {log_prob[impossible[0]]:.4g} at step {impossible[0]}, but the logarithm of a "
            "probability is at most 0. Store log μ(a|s), not μ(a|s)"
        )


def check_padding(arrays: list[np.ndarray], length: np.ndarray, refuse: Refuse) -> None:
    """Raise an error if padding each episode to the longest would take far more memory than the episodes themselves."""
    steps, episodes, longest = sum(length.tolist()), length.shape[0], int(length.max())
    size = sum(x.nbytes for x in arrays)
    padded = 2 * longest * episodes * size // steps  # an observation is stored with its successor
    if longest * episodes > MAX_PADDING * (steps + 10_000) or padded > max(SMALL, MAX_PADDED * size):
        raise refuse(
            f"its longest episode has {longest:,} steps but the mean is {steps / episodes:.1f}, and all are padded to "
            f"the longest: {size / 2**20:,.1f} MB of arrays would take {padded / 2**20:,.0f} MB of memory. "
            "Remove the longest episodes, or split it into files of episodes of similar length"
        )


def check_masks(mask: np.ndarray, action: np.ndarray, head: ActionHead, refuse: Refuse) -> None:
    """Raise an error if a mask has values other than 0 and 1, or forbids an action that was taken."""
    if not ((mask == 0) | (mask == 1)).all():
        raise refuse("`action_mask` must contain only 0 and 1")
    forbidden = np.flatnonzero(~head.permits(mask.astype(bool), action))
    if len(forbidden):
        raise refuse(f"the action of step {forbidden[0]} is forbidden by its `action_mask`")
