"""Read the last checkpoint to find where training continues. Everything is checked before anything is changed."""

import math
from dataclasses import dataclass
from types import NoneType
from typing import Any

import jax
import numpy as np

from upslope.config.config import Config
from upslope.core.arrays import is_shape
from upslope.core.reading import brief
from upslope.engines.calls import calls_in
from upslope.engines.columns import NOT_RUNNING, named_observation
from upslope.errors import UpslopeError
from upslope.learning.iteration import Task, TrainState
from upslope.models.agent import Agent
from upslope.runs.checkpoint_meta import remedy_for
from upslope.runs.checkpoints import load_checkpoint
from upslope.runs.directory import RunDirectory, episodes_header
from upslope.runs.loop import WINDOW, Progress, begin_progress
from upslope.runs.policy import check_scores, is_list

MAX_COUNT, MAX_NUMBER = 2**62, 1e60
"""Upper bounds on the counts and seconds, and on the returns, in a checkpoint. No real run comes near them."""


@dataclass(frozen=True)
class ResumePoint:
    """The point at which a run continues."""

    state: TrainState
    progress: Progress
    snapshot: dict[str, np.ndarray]
    """The data that environments on the host need to continue; empty for other environments."""
    sizes: dict[str, int]
    """The sizes of the growing files at the checkpoint."""
    digests: dict[str, str]
    """Their SHA-256 up to these sizes; empty for a checkpoint of an older version."""
    step: int
    is_followed: bool = False
    """Whether a user's function was called between chunks."""
    lost_best: str = ""
    """What to say if the best agents so far are lost."""

    def is_finished(self, config: Config) -> bool:
        """Return whether every seed's budget is spent."""
        return bool((np.asarray(self.state.steps, np.int64) >= config.steps).all())


def resume_point_of(
    directory: RunDirectory, config: Config, task: Task, like: TrainState, needs_snapshot: bool
) -> ResumePoint:
    """Read the last checkpoint. A run that was killed before its first checkpoint starts from the beginning.

    Raises:
        UpslopeError: a checkpoint is missing or damaged, or belongs to another run.
    """
    if not directory.has_begun:
        sizes = {directory.metrics_path.name: 0, directory.episodes_path.name: len(episodes_header(config))}
        return ResumePoint(like, begin_progress(like, config.seed_list()), {}, sizes, {}, 0)
    state, snapshot, meta = load_checkpoint(directory.last, like)
    best, scores, lost_best = read_best(directory, config, state)
    problem = problem_of(meta, config.seeds) or snapshot_problem(snapshot, config, task, needs_snapshot)
    if problem:
        raise UpslopeError(f"{directory.last} is damaged: {problem}. {remedy_for(directory.last)}")
    progress = begin_progress(state, config.seed_list())
    progress.best = best
    progress.best_return = np.asarray([-np.inf if r is None else r for r in scores["best_return"]])
    progress.best_step = np.asarray(scores["best_step"])
    progress.elapsed, progress.iteration = meta["elapsed"], meta["iteration"]
    progress.checks = np.asarray(meta["checks"])
    progress.stopped_at = np.asarray(meta.get("stopped_at", [0] * config.seeds))
    for window, episodes in zip(progress.windows, meta["windows"], strict=True):
        window.extend((math.nan if r is None else float(r), int(n)) for r, n in episodes)
    files, is_followed = (meta["sizes"], meta.get("digests", {})), meta.get("is_followed") is True
    return ResumePoint(state, progress, snapshot, *files, max(meta["steps"]), is_followed, lost_best)


def read_best(directory: RunDirectory, config: Config, state: TrainState) -> tuple[Agent, dict[str, Any], str]:
    """Read each seed's best agent and its score. If the file was deleted, none has a score yet, and the last value says
    so."""
    path = directory.best
    if not path.exists():
        lost = (
            f"{path} is missing, so the best agents so far are lost: from now on, the best are chosen among those that "
            "follow the last checkpoint, so best.npz may differ from that of an uninterrupted run."
        )
        return state.learner.agent, {"best_return": [None] * config.seeds, "best_step": [0] * config.seeds}, lost
    best, _, scores = load_checkpoint(path, state.learner.agent, remedy=WITHOUT_BEST)
    check_scores(path, scores, config.seeds, WITHOUT_BEST)
    if not all(map(is_possible, [*scores["best_return"], *scores["best_step"]])):
        raise UpslopeError(
            f"{path} is damaged: its best_return or best_step contains a number that training cannot produce. "
            f"{WITHOUT_BEST}"
        )
    return best, scores, ""


WITHOUT_BEST = (
    "Restore it from a copy, or delete it to resume without it: the best agents are then chosen among those that "
    "follow the last checkpoint."
)
"""Advice on a damaged best checkpoint of a run to be resumed."""


def problem_of(meta: dict[str, Any], seeds: int) -> str:
    """Describe the problem with a checkpoint's metadata, or return an empty string if there is none."""
    names = ("metrics.jsonl", "episodes.csv")
    windows, sizes, digests = meta.get("windows"), meta.get("sizes"), meta.get("digests", {})
    sound = {
        "elapsed": type(meta.get("elapsed")) in (int, float) and 0 <= meta["elapsed"] <= MAX_COUNT,
        "iteration": is_count(meta.get("iteration")),
        "checks": is_counts(meta.get("checks"), seeds),
        "steps": is_counts(meta.get("steps"), seeds),
        "stopped_at": "stopped_at" not in meta or is_counts(meta["stopped_at"], seeds),
        "settings": isinstance(meta.get("settings", {}), dict),
        "sizes": isinstance(sizes, dict) and all(is_count(sizes.get(n)) for n in names),
        "digests": isinstance(digests, dict) and all(isinstance(digests.get(n, ""), str) for n in names),
        "windows": is_list(windows, (list,), seeds) and all(map(is_window, windows or [])),
    }
    wrong = [name for name, is_sound in sound.items() if not is_sound]
    return f"its metadata has no valid {', '.join(wrong)}" if wrong else ""


def is_window(window: list[Any]) -> bool:
    """Return whether the value is a valid list of a seed's most recent returns and lengths."""
    return len(window) <= WINDOW and all(
        isinstance(row, list)
        and len(row) == 2
        and type(row[0]) in (int, float, NoneType)
        and is_possible(row[0])
        and is_count(row[1])
        for row in window
    )


def is_possible(value: float | int | None) -> bool:
    """Return whether training could have produced this count or sum; None represents a number that is not finite."""
    return value is None or abs(value) <= MAX_NUMBER


def is_count(value: Any) -> bool:
    """Return whether the value is a non-negative integer within the bound on counts."""
    return type(value) is int and 0 <= value <= MAX_COUNT


def is_counts(value: Any, length: int) -> bool:
    """Return whether the value is a list of `length` counts."""
    return is_list(value, (int,), length) and all(map(is_count, value))


def snapshot_problem(snapshot: dict[str, np.ndarray], config: Config, task: Task, needed: bool) -> str:
    """Describe the problem with the snapshot of environments on the host, or return an empty string if there is
    none."""
    if not needed:
        return ""
    shapes, head = task.model.encoder.shapes, task.model.head
    named = named_observation(jax.tree.map(lambda shape: np.broadcast_to(0, shape), shapes, is_leaf=is_shape))
    missing = {"episode", "length", "actions", *named} - set(snapshot)
    if missing:
        return f"it lacks the environments' {', '.join(sorted(missing))}"
    count = config.seeds * config.num_envs
    episode, length, actions = (snapshot[n] for n in ("episode", "length", "actions"))
    for name, numbers, minimum in (("episode", episode, -1), ("length", length, NOT_RUNNING)):
        if numbers.shape != (count,) or numbers.dtype.kind != "i" or numbers.min() < minimum:
            return f"`{name}` must contain one integer for each of {count} environments"
    returns = snapshot.get("episode_return")  # older checkpoints do not have it
    if returns is not None and (returns.shape != (count,) or returns.dtype.kind != "f"):
        return f"`episode_return` must contain one number for each of {count} environments"
    for name, leaf in named.items():
        shown = snapshot[name]
        if shown.shape != (config.seeds, config.num_envs, *leaf.shape) or shown.dtype.kind not in "biuf":
            return "the observations do not fit their space"
    taken = sum(n for n in length.tolist() if n > 0)
    if len(actions) != taken or (taken and actions.shape[1:] != head.kept_shape) or actions.dtype.kind not in "biuf":
        return "the actions do not fit the episodes"
    try:
        calls_in(snapshot)
    except (ValueError, TypeError) as error:
        return brief(error)
    return ""
