"""Recorded rollouts: somebody's episodes in a file.

The format, so that anybody can write one: a `.npz` with `meta` (JSON text) and, for M steps in E episodes one after
another, `observation` [M, …], `action` [M, …], `reward` [M], `length` [E], `terminated` [E] (false: truncated),
`final_observation` [E, …], and, if known, `behaviour_log_prob` [M], log μ(a|s) in the environment's units.
A Discrete action is counted from 0; a Box action is flattened, and as sampled, before it is clipped to its bounds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upslope.core.storage import fits_32_bits, load_arrays, save_arrays
from upslope.core.types import Rollout, host_rollout
from upslope.errors import UpslopeError
from upslope.models.spaces import BoxHead, Coding, DiscreteCoding, Head, MultiBinaryHead, MultiDiscreteHead

DATASET_FORMAT = 1
MOST_PADDING = 200
"""Episodes are padded to the longest; not to more than so many times the steps there are."""
REQUIRED = ("observation", "action", "reward", "length", "terminated", "final_observation")


def save_dataset(path: Path, rollouts: Sequence[Rollout], meta: dict[str, Any]) -> None:
    """Write whole-episode rollouts [T, N] (a column an episode) as one dataset."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*REQUIRED, "behaviour_log_prob")}
    for rollout in rollouts:
        facts = {name: np.asarray(x) for name, x in rollout._asdict().items()}
        for column, length in enumerate(facts["valid"].sum(axis=0).tolist()):
            for name in ("observation", "action", "reward", "behaviour_log_prob"):
                parts[name].append(facts[name][:length, column])
            parts["length"].append(np.asarray([length]))
            parts["terminated"].append(facts["terminated"][length - 1 : length, column])
            parts["final_observation"].append(facts["next_observation"][length - 1 : length, column])
    arrays = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    save_arrays(path, arrays, {"kind": "dataset", "format": DATASET_FORMAT, **meta})


def load_dataset(path: Path, coding: Coding, head: Head, needs_behaviour: bool) -> Rollout:
    """Read a dataset as a rollout [T, N], one episode a column, padded to the longest.

    Raises:
        UpslopeError: the file is no dataset, is damaged, does not fit the spaces, holds a number that is not finite,
            or lacks the log-probabilities that importance sampling needs.
    """
    arrays, meta = load_arrays(path, "dataset")
    check_dataset(path, arrays, meta, coding, head)
    if needs_behaviour and "behaviour_log_prob" not in arrays:
        raise UpslopeError(
            f"{path} has no behaviour_log_prob, and an importance weight π/μ needs the probability μ with which each "
            "action was taken. Use --algorithm clone, which imitates without it, or record again with upslope record."
        )
    arrays.setdefault("behaviour_log_prob", np.full(arrays["reward"].shape, np.nan, np.float32))
    return as_rollout(arrays)


def as_rollout(arrays: dict[str, np.ndarray]) -> Rollout:
    """Episodes one after another → one episode a column."""
    length = arrays["length"].astype(np.int64)
    starts, longest, count = np.cumsum(length) - length, int(length.max()), length.shape[0]
    t = np.arange(longest)[:, None]
    valid = t < length
    index = starts + np.minimum(t, length - 1)
    last = t == length - 1

    def columns(name: str) -> np.ndarray:
        x = arrays[name][index]
        return np.where(valid.reshape(longest, count, *(1,) * (x.ndim - 2)), x, np.zeros((), x.dtype))

    observation = columns("observation")
    following = np.concatenate([observation[1:], np.zeros_like(observation[:1])])
    is_last = last.reshape(longest, count, *(1,) * (observation.ndim - 2))
    return host_rollout(
        {
            "observation": observation,
            "action": columns("action"),
            "reward": columns("reward").astype(np.float32),
            "terminated": last & arrays["terminated"].astype(bool),
            "truncated": last & ~arrays["terminated"].astype(bool),
            "next_observation": np.where(is_last, arrays["final_observation"], following),
            "behaviour_log_prob": columns("behaviour_log_prob").astype(np.float32),
            "valid": valid,
        }
    )


def check_dataset(path: Path, arrays: dict[str, np.ndarray], meta: dict[str, Any], coding: Coding, head: Head) -> None:
    """Refuse what is not a dataset for these spaces."""

    def refuse(reason: str) -> UpslopeError:
        return UpslopeError(f"{path} cannot be learned from: {reason}.")

    if meta.get("kind", "dataset") != "dataset" or meta.get("format", DATASET_FORMAT) != DATASET_FORMAT:
        raise refuse(
            f"it says that it is a {meta.get('kind')} of format {meta.get('format')}, not a dataset of format 1"
        )
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        raise refuse(f"it lacks {', '.join(missing)}")
    length = arrays["length"]
    if length.ndim != 1 or length.dtype.kind not in "iu" or length.size == 0 or int(length.min()) < 1:
        raise refuse("`length` must hold the number of steps, 1 or more, of each of at least one episode")
    # In Python's numbers, which do not overflow.
    steps, episodes, longest = sum(length.tolist()), length.shape[0], int(length.max())
    action_shape = (len(head.low),) if isinstance(head, BoxHead) else flat_shape(head)
    expected = {
        "observation": (steps, *coding.shape),
        "action": (steps, *action_shape),
        "reward": (steps,),
        "terminated": (episodes,),
        "final_observation": (episodes, *coding.shape),
        "behaviour_log_prob": (steps,),
    }
    for name, shape in expected.items():
        if name in arrays and arrays[name].shape != shape:
            raise refuse(f"`{name}` has shape {arrays[name].shape}, and {shape} is needed for this environment")
        if name in arrays and arrays[name].dtype.kind not in "biuf":
            raise refuse(f"`{name}` does not hold numbers")
        if name in arrays and not fits_32_bits(arrays[name]):
            raise refuse(f"`{name}` holds a value that is not finite, or too large for 32 bits")
    if longest * episodes > MOST_PADDING * (steps + 10_000):
        raise refuse(
            f"its longest episode has {longest:,} steps and the mean one {steps / episodes:.1f}, and all are padded to "
            "the longest. Split it into files of episodes of about one length"
        )
    if isinstance(coding, DiscreteCoding):
        for name in ("observation", "final_observation"):
            check_choices(name, arrays[name] - coding.start, coding.n, refuse)
    check_actions(arrays["action"], head, refuse)


def check_actions(action: np.ndarray, head: Head, refuse: Any) -> None:
    """Discrete actions must be among those that there are."""
    if isinstance(head, BoxHead):
        return
    sizes = np.asarray(getattr(head, "sizes", getattr(head, "n", 2)))
    check_choices("action", action, sizes, refuse)


def check_choices(name: str, x: np.ndarray, sizes: Any, refuse: Any) -> None:
    """Whole numbers from 0 to below `sizes`."""
    if x.dtype.kind not in "iub" or (x < 0).any() or (x >= sizes).any():
        raise refuse(f"`{name}` must hold integers from 0 to below {np.asarray(sizes).tolist()}")


def flat_shape(head: Head) -> tuple[int, ...]:
    """The shape of one action as the policy samples it."""
    if isinstance(head, MultiDiscreteHead):
        return (len(head.sizes),)
    return (head.num_outputs,) if isinstance(head, MultiBinaryHead) else ()
