"""Check that a run's config.json was not edited after training began. Every checkpoint records the settings and the
spaces with which its agents were trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from upslope.config.config import Config
from upslope.errors import UpslopeError
from upslope.runs.checkpoints import read_meta, remedy_for
from upslope.runs.directory import RunDirectory

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


def meta_or_nothing(path: Path) -> dict[str, Any]:
    """Read a checkpoint's metadata, or return an empty dictionary if the file is missing or damaged."""
    try:
        return read_meta(path)
    except UpslopeError:
        return {}


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
