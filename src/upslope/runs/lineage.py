"""Start a run from the agent of another run: select the settings and state that it inherits, and record them.

The source is read once, before training. Everything that is inherited is stored in the new run's first checkpoint, so
the run can be resumed even if its source has been deleted.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from upslope.config.config import Config, canonical, flag_of
from upslope.config.task import MAKING
from upslope.config.trust import ROLES, require
from upslope.core.arrays import raw, rows_at
from upslope.core.messages import counted, readable
from upslope.core.storage import load_arrays
from upslope.environments.registry import EnvironmentLike, label
from upslope.errors import UpslopeError
from upslope.learning.iteration import Task, TrainState, begun_with
from upslope.learning.update import Learner
from upslope.models.agent import Agent
from upslope.models.heads import head_of
from upslope.runs.checkpoints import Content, load_checkpoint, named_leaves
from upslope.runs.directory import RunDirectory
from upslope.runs.policy import check_checkpoint_size, check_scores, spaces_of
from upslope.runs.same_settings import NETWORKS, NORMALISED, require_same_agents
from upslope.runs.same_spaces import differences_of

OF_THE_START = ("start_from", "from_seed", "fresh_normalisers", "fresh_optimiser")
NEVER_INHERITED = ("environment", "algorithm", "preset", "devices_per_seed", "precision", *OF_THE_START)


@dataclass(frozen=True)
class Source:
    """A checkpoint of a run from which another run starts."""

    text: str
    directory: RunDirectory
    checkpoint: str

    @cached_property
    def config(self) -> Config:
        """The settings of the run, with which its agents were trained."""
        config = self.directory.config()
        require_same_agents(self.directory, config, self.path)
        return config

    @property
    def path(self) -> Path:
        """The checkpoint's file."""
        return self.directory.last.with_name(f"{self.checkpoint}.npz")

    @cached_property
    def content(self) -> Content:
        """The arrays and the metadata of the checkpoint."""
        return self.read[1]

    @cached_property
    def read(self) -> tuple[str, Content]:
        """The SHA-256 of the checkpoint and its content. They are read only once, because a run in training may replace
        the checkpoint at any time."""
        if not self.path.is_file():
            known = sorted(path.stem for path in self.path.parent.glob("*.npz"))
            raise UpslopeError(
                f"{self.directory.path} has no checkpoint {readable(self.checkpoint)}; "
                + (f"it has {', '.join(map(readable, known))}." if known else "it has none yet. Train it first.")
            )
        while True:
            digest, content = self.digest(), load_arrays(self.path, "checkpoint")
            if self.digest() == digest:
                return digest, content

    def digest(self) -> str:
        """Return the SHA-256 of the checkpoint in its current state."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @property
    def prefix(self) -> str:
        """The path of the agent within the file: `best` contains only agents, but other checkpoints contain the whole
        state."""
        return ".learner.agent" if any(name.startswith("state.learner.agent") for name in self.content[0]) else ""

    def steps(self) -> list[int]:
        """Return the steps that each seed had taken at the checkpoint."""
        meta = self.content[1]
        check_scores(self.path, meta, self.config.seeds)
        steps = meta.get("steps") if self.prefix else meta["best_step"]
        if not isinstance(steps, list) or len(steps) != self.config.seeds or any(type(n) is not int for n in steps):
            raise UpslopeError(f"{self.path} is damaged: it does not record the steps of each seed.")
        return steps


def source_of(text: str, flag: str = "--from") -> Source:
    """Return the source named by `RUN` or `RUN@CHECKPOINT`; the default checkpoint is `last`.

    Raises:
        UpslopeError: there is no such run, or the checkpoint's name is invalid.
    """
    run, has_checkpoint, checkpoint = text.rpartition("@")
    if not has_checkpoint or Path(text).is_dir():
        run, checkpoint = text, "last"
    if not run.strip() or not checkpoint or Path(checkpoint).name != checkpoint or checkpoint.startswith("."):
        raise UpslopeError(
            f'{flag} "{readable(text)}" does not name a checkpoint of a run. Write RUN, RUN@best, or RUN@NAME for the '
            "file NAME.npz in its folder `checkpoints`."
        )
    return Source(text, RunDirectory(run), checkpoint.removesuffix(".npz"))


def request_from(
    environment: EnvironmentLike | None,
    algorithm: str | None,
    settings: Mapping[str, Any],
    *,
    preset: bool | str = True,
    parts: Collection[str] = (),
    trust: bool = False,
    ask: bool = False,
) -> dict[str, Any]:
    """Return the arguments of `prepare` for a run that starts from the agent of another run.

    The settings with which the agent was built are always inherited. Those used to create the environment are inherited
    if the environment stays the same, and all others if the algorithm stays the same and no preset is named. `parts`
    are the roles for which an object was passed.

    Raises:
        UpslopeError: there is no such run, or it names code that is not trusted.
    """
    asked = canonical(settings)
    source = source_of(asked["start_from"])
    config = source.config
    known = config.environment if environment is None else label(environment)
    inherited = inherited_from(config, known, algorithm or config.algorithm, preset)
    inherited = {name: value for name, value in inherited.items() if name not in asked}
    given = (set(ROLES) - inherited.keys() - {"environment"}) | set(parts)
    given |= set() if environment is None else {"environment"}
    require(config, source.directory.path, trust=trust, given=given, ask=ask)
    return {
        "environment": config.environment if environment is None else environment,
        "algorithm": algorithm or config.algorithm,
        "preset": preset,
        "settings": asked,
        "inherited": inherited,
    }


def inherited_from(config: Config, environment: str, algorithm: str, preset: bool | str) -> dict[str, Any]:
    """Return the settings that a run with this environment, algorithm and preset inherits from a run with this
    config."""
    names = {*NETWORKS, *NORMALISED, "seed", "seeds"}
    if environment == config.environment:
        names |= set(MAKING)
    if algorithm == config.algorithm and not isinstance(preset, str):
        names |= set(vars(config)) - {*MAKING, *NEVER_INHERITED} | {"preset"}
    return {name: value for name, value in vars(config).items() if name in names}


def taken_over(config: Config, task: Task, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """Return the initial state [S] with everything inherited from the source run, and the lineage for config.json.

    Raises:
        UpslopeError: the run is missing or damaged, or its agent has different spaces, networks or seeds.
    """
    source = source_of(str(config.start_from))
    require_same_agent(source, config, task)
    seeds = seeds_of(source, config)
    if source.path.is_file():  # otherwise the message lists the existing checkpoints
        check_checkpoint_size(source.path, source.config, task.model)
    index = np.asarray([source.config.seed_list().index(seed) for seed in seeds])
    keeps = tuple(
        getattr(config, name) and getattr(source.config, name) and not config.fresh_normalisers for name in NORMALISED
    )
    agent = agent_of(source, state.learner.agent, index, keeps)
    optimisers, kept = optimisers_of(source, config, state.learner.optimisers, index)
    words = ("normaliser of observations", "normaliser of rewards")
    groups = [f"optimiser of {name}" for name in kept]
    taken = ["networks", *(name for name, keep in zip(words, keeps, strict=True) if keep), *groups]
    fresh = [
        name for name, keep, setting in zip(words, keeps, NORMALISED, strict=True) if getattr(config, setting) > keep
    ]
    fresh += [f"optimiser of {name}" for name in optimisers if name not in kept]
    fresh += [] if task.intrinsic is None else ["bonus"]
    steps = source.steps()
    lineage = {
        "run": str(source.directory.path),
        "checkpoint": source.checkpoint,
        "environment": source.config.environment,
        "algorithm": source.config.algorithm,
        "seeds": seeds,
        "steps": [steps[i] for i in index.tolist()],
        "taken_over": taken,
        "begun_anew": fresh,
        "sha256": source.read[0],
        "before": source.directory.read().get("lineage"),
    }
    learner = Learner(agent, optimisers, state.learner.objective)
    return begun_with(state, learner), lineage


def different_spaces(source: Source, config: Config, task: Task) -> list[str]:
    """Describe how the spaces of the environment differ from those of the source."""
    head = head_of(task.environment.action_space, config.environment)
    pairs = zip(("observation", "action"), spaces_of(source.directory), (task.model.encoder, head), strict=True)
    return [words for role, old, new in pairs for words in differences_of(role, old, new)]


def different_settings(source: Source, config: Config, names: Iterable[str]) -> list[str]:
    """Describe which of the named settings differ from those of the source."""
    both = {name: (getattr(source.config, name), getattr(config, name)) for name in names}
    return [f"{flag_of(name)} was {old}, and is now {new}" for name, (old, new) in both.items() if old != new]


def require_same_agent(source: Source, config: Config, task: Task) -> None:
    """Raise an error if the agent of the source does not fit the environment or the networks of the run."""
    if different := different_spaces(source, config, task):
        raise UpslopeError(
            f"The agent of {source.directory.path} does not fit {config.environment}, since it needs the spaces that "
            f"it was trained with: {'; '.join(different)}. Choose an environment with the same spaces, or train "
            "a new agent without --from."
        )
    if changed := different_settings(source, config, NETWORKS):
        raise UpslopeError(
            f"The networks of {source.directory.path} cannot change: {'; '.join(changed)}. Omit these "
            "settings to continue with its agent, or omit --from to train a new one."
        )
    if source.config.normalize_observations and not config.normalize_observations:
        raise UpslopeError(
            f"The networks of {source.directory.path} read normalised observations, so --no-normalize-observations "
            "would show them numbers that they have never seen. Omit it; --fresh-normalisers restarts the statistics."
        )


def seeds_of(source: Source, config: Config) -> list[int]:
    """Return, for each seed of the run, the seed of the source from which it starts."""
    known = source.config.seed_list()
    wanted = config.seed_list() if config.from_seed is None else [config.from_seed] * config.seeds
    if missing := [seed for seed in wanted if seed not in known]:
        there = f"seed {known[0]}" if len(known) == 1 else f"the seeds {known[0]} to {known[-1]}"
        remedy = (
            "Seed k starts from seed k of the other run: change --seed and --seeds, or let every seed "
            f"start from the same agent: --from-seed {known[0]}."
        )
        remedy = remedy if config.from_seed is None else "Change --from-seed."
        raise UpslopeError(f"{source.directory.path} has {there} and no seed {missing[0]}. {remedy}")
    return wanted


def agent_of(source: Source, fresh: Agent, index: np.ndarray, keeps: tuple[bool, ...]) -> Agent:
    """Return the agents [S] in the given rows of the source. Statistics that are not inherited come from the `fresh`
    agents."""
    keeps_observations, keeps_rewards = keeps
    wanted = fresh if keeps_observations else replace(fresh, normaliser=None)
    like = jax.tree.map(lambda x: jnp.zeros((source.config.seeds, *x.shape[1:]), x.dtype), wanted)
    found, _, _ = load_checkpoint(source.path, like, source.prefix, source.content)
    found = rows_at(found, index)
    if not all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(found.model)):
        raise UpslopeError(
            f"{source.path} contains an agent whose parameters are not finite, so training cannot start "
            f"from it. Use the best checkpoint: {source.directory.path}@best."
        )
    return replace(
        found,
        normaliser=found.normaliser if keeps_observations else fresh.normaliser,
        return_statistics=found.return_statistics if keeps_rewards else fresh.return_statistics,
    )


def optimisers_of(
    source: Source, config: Config, fresh: dict[str, Any], index: np.ndarray
) -> tuple[dict[str, Any], list[str]]:
    """Return the state of each group's optimiser, and the groups whose state was inherited.

    A state is inherited if the optimiser is the same and the checkpoint contains its state."""
    if config.fresh_optimiser or not source.prefix or source.config.optimiser != config.optimiser:
        return fresh, []
    states = {name: optimiser_of(source, name, state, index) for name, state in fresh.items()}
    kept = [name for name, state in states.items() if state is not None]
    return {name: fresh[name] if state is None else state for name, state in states.items()}, kept


def optimiser_of(source: Source, group: str, fresh: Any, index: np.ndarray) -> Any:
    """Return the state [S] of a group's optimiser in the given rows, or None if the checkpoint contains no state of
    this form."""
    leaves = []
    for name, leaf in named_leaves({group: fresh}):
        found = source.content[0].get(f"state.learner.optimisers{name}")
        shape = (source.config.seeds, *leaf.shape[1:])
        if found is None or found.shape != shape or found.dtype != jax.eval_shape(raw, leaf).dtype:
            return None
        leaves.append(jax.device_put(found[index]))
    return jax.tree.unflatten(jax.tree.structure(fresh), leaves)


def lines_of_lineage(lineage: Mapping[str, Any]) -> list[str]:
    """Return the lines shown before training that describe the run's starting point."""
    seeds: Sequence[int] = lineage["seeds"]
    shared = len(seeds) > 1 and len(set(seeds)) == 1
    whose = f"all with its seed {seeds[0]}" if shared else counted(len(seeds), "agent")
    at = sorted({f"{n:,}" for n in lineage["steps"]}, key=lambda text: int(text.replace(",", "")))
    anew = f"; started afresh: {', '.join(lineage['begun_anew'])}" if lineage["begun_anew"] else ""
    return [
        f"starts from {lineage['run']}@{lineage['checkpoint']} ({lineage['algorithm']}) at step {' and '.join(at)}, "
        f"{whose}; inherited: {', '.join(lineage['taken_over'])}{anew}"
    ]
