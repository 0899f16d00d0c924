"""Read and write datasets of Minari, the Farama Foundation's format and library for recorded episodes (extra `minari`).

Only data are read. A dataset whose metadata lack its spaces is refused, since Minari would determine them by creating
the environment that the dataset names. Formats other than HDF5 are refused too. Minari stores the actions that the
environment received, but not the probabilities with which they were taken.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np

from upslope.core.arrays import is_shape, shaped_like
from upslope.core.messages import shell
from upslope.core.reading import brief
from upslope.core.types import Rollout
from upslope.errors import UpslopeError
from upslope.models.box_heads import BoxHead
from upslope.models.choice_heads import DiscreteHead, MultiDiscreteHead
from upslope.models.encoders import encoder_of
from upslope.models.head import ActionHead
from upslope.models.heads import head_of
from upslope.models.product_heads import ProductHead

PREFIX = "minari:"
MOST_EPISODES = 10_000_000


def is_minari(where: str | Path) -> bool:
    """Return whether this names a Minari dataset."""
    return str(where).startswith(PREFIX)


def minari(module: str = "minari") -> Any:
    """Import a module of the library.

    Raises:
        UpslopeError: it is not installed.
    """
    try:
        import_module("minari.dataset.minari_storage")
        import_module("h5py")
        return import_module(module)
    except ImportError as error:
        raise UpslopeError(
            f"{PREFIX}… needs the extra `minari` ({brief(error)}): pip install 'upslope[minari]'."
        ) from error


def folder_of(where: str | Path) -> tuple[str, Path]:
    """Return the name of a dataset and the path of its folder on this machine, which may not exist.

    Raises:
        UpslopeError: the name is not a valid Minari name, or the library is not installed.
    """
    name = str(where).removeprefix(PREFIX)
    try:
        minari("minari.dataset.minari_dataset").parse_dataset_id(name)
    except UpslopeError:
        raise
    except Exception as error:
        raise UpslopeError(
            f'"{name}" is not a Minari name: write {PREFIX}group/name-v0, ending in a version.'
        ) from error
    return name, Path(minari("minari.storage").get_dataset_path(name))


def read_minari(where: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the arrays of a dataset, in upslope's format, and its metadata. Nothing is downloaded.

    Raises:
        UpslopeError: the dataset is not on this machine, is damaged, or cannot be read without running code.
    """
    name, folder = folder_of(where)
    stored, data = minari("minari.dataset.minari_storage").MinariStorage, folder / "data"
    if not (data / "metadata.json").is_file():
        words = f"Minari has no dataset {name} on this machine. Download it: "
        raise UpslopeError(words + shell("minari", "download", name))
    try:
        metadata = stored.read_raw_metadata(data)
        missing = [key for key in ("observation_space", "action_space") if not isinstance(metadata.get(key), str)]
        if missing:
            raise ValueError(
                f"its metadata lack {' and '.join(missing)}, and upslope does not create the environment to find out"
            )
        if metadata.get("data_format", "hdf5") != "hdf5":
            raise ValueError(f"it is stored as {metadata['data_format']}, but only hdf5 is read")
        storage = stored.read(data)
        head, spaces = head_of(storage.action_space, name), storage.observation_space
        shapes = encoder_of(spaces, name).shapes
        count = int(storage.total_episodes)
        parts = [episode_arrays(one, shapes, head) for one in storage.get_episodes(range(min(count, MOST_EPISODES)))]
        if not parts:
            raise ValueError("it has no episodes")
        arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    except UpslopeError:
        raise
    except Exception as error:  # h5py, json and Minari raise a dozen exception types
        raise UpslopeError(
            f"The Minari dataset {name} cannot be read: {type(error).__name__}: {brief(error)}."
        ) from error
    return arrays, {"environment": environment_in(metadata)} | {"squashed": False}


def environment_in(metadata: Mapping[str, Any]) -> str | None:
    """Return the id of the environment that the metadata name, without creating the environment."""
    try:
        found = json.loads(metadata["env_spec"])["id"]
    except (KeyError, TypeError, ValueError):
        return None
    return found if isinstance(found, str) else None


def episode_arrays(episode: Mapping[str, Any], shapes: Any, head: ActionHead) -> dict[str, np.ndarray]:
    """Convert a Minari episode to the arrays of `upslope.runs.datasets`.

    Raises:
        ValueError: it has no steps, or continues after its end.
    """
    reward = np.asarray(episode["rewards"], np.float32)
    length, terminated = len(reward), np.asarray(episode["terminations"], bool)
    if not length or terminated[:-1].any():
        raise ValueError(f"episode {episode['id']} has no steps, or continues after its end")
    found = {
        "action": sampled(head, episode["actions"]),
        "reward": reward,
        "length": np.asarray([length]),
        "terminated": terminated[-1:],
    }
    seen = shaped_like(shapes, episode["observations"])
    for path, shape in jax.tree_util.tree_leaves_with_path(shapes, is_leaf=is_shape):
        x = seen
        for key in path:
            x = x[key.key if hasattr(key, "key") else key.idx]
        x = np.asarray(x)
        x = (x.astype(np.float32) if x.dtype.kind == "f" else x).reshape(-1, *shape)
        if len(x) != length + 1:
            raise ValueError(f"episode {episode['id']} has {length} steps and {len(x)} observations")
        key = jax.tree_util.keystr(path)
        found |= {f"observation{key}": x[:-1], f"final_observation{key}": x[-1:]}
    return found


def sampled(head: ActionHead, taken: Any) -> np.ndarray:
    """Convert actions [T, …] that the environment received to the form in which a policy samples them.

    Choices are numbered from 0, and parts are concatenated. Clipping is not undone."""
    if isinstance(head, ProductHead):
        parts = [sampled(part, taken[key]) for key, part in head.children]
        return np.concatenate([x.reshape(len(x), -1).astype(np.float32) for x in parts], axis=-1)
    x = np.asarray(taken)
    if isinstance(head, BoxHead):
        return x.reshape(len(x), -1).astype(np.float32)
    if isinstance(head, DiscreteHead):
        return (x - head.start).astype(np.int32).reshape(-1)
    flat = x.reshape(len(x), -1)
    if isinstance(head, MultiDiscreteHead):
        return (flat - np.asarray(head.start)).astype(np.int32)
    return flat.astype(np.int8)


def write_minari(
    where: str | Path,
    rollouts: Sequence[Rollout],
    observation_space: gymnasium.Space,
    action_space: gymnasium.Space,
    head: ActionHead,
    meta: Mapping[str, Any],
) -> Path:
    """Write whole-episode rollouts [T, N] as a Minari dataset, and return its folder.

    Raises:
        UpslopeError: a dataset of this name exists, or Minari cannot store these spaces.
    """
    name, folder = new_folder(where)
    library, buffer = minari(), minari("minari.data_collector").EpisodeBuffer
    episodes = [buffer(**one) for rollout in rollouts for one in buffers(rollout, head)]
    described = f"recorded by upslope in {meta['environment']}: {meta['algorithm']}, seed {meta['seed']}"
    try:
        with warnings.catch_warnings():  # Minari warns about a missing author and link
            warnings.simplefilter("ignore")
            library.create_dataset_from_buffers(
                name,
                episodes,
                observation_space=observation_space,
                action_space=action_space,
                algorithm_name=str(meta["algorithm"]),
                description=described,
                jpeg_encoding=False,
            )
    except Exception as error:
        raise UpslopeError(
            f"Minari cannot store {name}: {type(error).__name__}: {brief(error)}. Without {PREFIX} the episodes are "
            "written to a file in upslope's own format."
        ) from error
    return folder


def new_folder(where: str | Path) -> tuple[str, Path]:
    """Return the name and the folder of a new dataset; it must not exist yet."""
    name, folder = folder_of(where)
    if folder.exists():
        raise UpslopeError(
            f"Minari already has a dataset {name}, which will not be overwritten. Choose another --output."
        )
    return name, folder


def buffers(rollout: Rollout, head: ActionHead) -> Iterator[dict[str, Any]]:
    """Yield the fields of Minari's `EpisodeBuffer` for each column."""
    for column, length in enumerate(np.asarray(rollout.valid).sum(axis=0).tolist()):
        rows = slice(0, length)

        def joined(now: Any, after: Any, rows: slice = rows, column: int = column) -> np.ndarray:
            return np.concatenate([np.asarray(now)[rows, column], np.asarray(after)[rows, column][-1:]])

        terminated = np.asarray(rollout.terminated)[rows, column]
        yield {
            "observations": jax.tree.map(joined, rollout.observation, rollout.next_observation),
            "actions": head.to_environment(np.asarray(rollout.action)[rows, column]),
            "rewards": np.asarray(rollout.reward)[rows, column],
            "terminations": terminated,
            "truncations": np.asarray(rollout.truncated)[rows, column] & ~terminated,
        }
