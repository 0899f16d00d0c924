"""Check that a run's files were not edited after training began. Every checkpoint records the settings and the spaces
with which its agents were trained, and the digests of the files to which rows are appended (`unchanged.py`)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from upslope.config.config import Config
from upslope.errors import UpslopeError
from upslope.runs.checkpoint_meta import meta_or_nothing, read_meta, remedy_for
from upslope.runs.directory import RunDirectory
from upslope.runs.unchanged import CRLF, PrefixDigest, change_in

NETWORKS = (
    *("model", "model_kwargs", "encoder", "memory", "memory_size", "shared_trunk", "policy_reads", "critic_reads"),
    *("hidden_sizes", "activation", "head", "state_dependent_std", "log_std_init"),
)
"""Settings that determine how an agent is built."""
NORMALISED = ("normalize_observations", "normalize_rewards")
OF_AGENTS = {*NETWORKS, *NORMALISED, "noise_every", "ignore_observation", "seed", "seeds"}
"""Settings that determine what a run's agents compute, and which of them belongs to a seed."""
MOVABLE = {"data"}
"""Settings that may change while a run is stopped: the path of the recorded data."""


def require_same_settings(directory: RunDirectory, config: Config) -> None:
    """Raise an error if config.json was edited, so that training would continue with other settings.

    Raises:
        UpslopeError: a setting or a space differs from the last checkpoint's, or this checkpoint is missing or damaged.
    """
    if not directory.has_begun:
        return
    if changed := edits(directory, config, directory.last, read_meta(directory.last), lambda name: name not in MOVABLE):
        raise UpslopeError(
            f"{directory.path}/config.json was edited after training began: {', '.join(changed)}. A run can be "
            "resumed only with its original settings. Restore them, or train a new run under another --name."
        )


def require_same_agents(directory: RunDirectory, config: Config, checkpoint: Path) -> None:
    """Raise an error if config.json was edited, so that the agents in a checkpoint would compute something else.

    Edits of all other settings, such as the budget, are allowed. A checkpoint that is missing or damaged is not
    checked, since it cannot be loaded anyway.

    Raises:
        UpslopeError: a setting that determines what agents compute, or a space, differs from the checkpoint's.
    """
    for path in (checkpoint, directory.last):  # `best` records no settings if an older version wrote it
        meta = meta_or_nothing(path)
        if "settings" in meta:
            break
    else:
        return
    if changed := edits(directory, config, path, meta, OF_AGENTS.__contains__):
        raise UpslopeError(
            f"{directory.path}/config.json was edited after training began: {', '.join(changed)}. With these "
            f"settings, the agents in {checkpoint.name} would not compute what they were trained to compute. Restore "
            "the original settings, or train a new run with these under another --name."
        )


def changes_since_training(directory: RunDirectory, config: Config) -> list[str]:
    """Describe how the files of a run differ from those that training wrote, as far as its last checkpoint tells: its
    settings and spaces, and the rows of training, with what follows for what is shown. A run without a readable
    checkpoint is not checked."""
    meta = meta_or_nothing(directory.last)
    try:
        edited = edits(directory, config, directory.last, meta, lambda name: name not in MOVABLE)
    except UpslopeError:  # without valid settings, the metadata is damaged
        return []
    sizes, digests = (x if isinstance(x, dict) else {} for x in (meta.get("sizes"), meta.get("digests")))
    found = []
    if edited:
        words = f"{directory.path}/config.json was edited after training began: {', '.join(edited)}"
        found.append(f"{words}. The settings shown are not those of training")
    for path, header in directory.headers(config).items():
        size, before = sizes.get(path.name), digests.get(path.name)
        if not isinstance(size, int):
            continue
        digest = (PrefixDigest(path), before) if isinstance(before, str) else None
        change = change_in(path, size, header, digest)
        if change and change != CRLF:  # other line ends do not change a number
            found.append(f"{path} {change}. What is shown is not what training produced")
    return found


def edits(
    directory: RunDirectory, config: Config, path: Path, meta: dict[str, Any], is_checked: Callable[[str], bool]
) -> list[str]:
    """Describe how the checked settings and the spaces in config.json differ from those in a checkpoint's metadata.

    Older versions recorded fewer settings, and no spaces."""
    now, before = json.loads(json.dumps(config.to_json())), meta.get("settings", {})
    if not isinstance(before, dict):
        raise UpslopeError(f"{path} is damaged: its metadata has no valid settings. {remedy_for(path)}")
    changed = [
        f"{name} was {before[name]!r:.80}, now {now[name]!r:.80}"
        for name in now
        if is_checked(name) and name in before and before[name] != now[name]
    ]
    return changed + ([] if "spaces" not in meta else differing(meta["spaces"], directory.read()["spaces"], "spaces"))


def differing(before: Any, now: Any, place: str) -> list[str]:
    """Describe where two JSON values differ; `place` is where they are in their file."""
    if isinstance(before, dict) and isinstance(now, dict):
        pairs = [(before.get(key), now.get(key), f"{place}.{key}") for key in {**before, **now}]
        return [words for pair in pairs for words in differing(*pair)]
    return [] if before == now else [f"{place} was {before!r:.80}, now {now!r:.80}"]
