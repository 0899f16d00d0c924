"""The reference policy of a run. It is read once from another run and then stored in the run's own checkpoints."""

import numpy as np

from upslope.config.config import Config
from upslope.core.messages import readable
from upslope.errors import UpslopeError
from upslope.learning.iteration import Task, TrainState
from upslope.runs.lineage import NETWORKS, Source, agent_of, different_settings, different_spaces, source_of
from upslope.runs.policy import check_checkpoint_size


def with_reference(config: Config, task: Task, state: TrainState) -> tuple[TrainState, str]:
    """Return the initial state [S] with the reference policies that the config names, and a note about them.

    Raises:
        UpslopeError: the run is missing or damaged, or its agent has different spaces, networks or seeds.
    """
    assert state.reference is not None
    source = source_of(str(config.reference), "--reference")
    require_same_networks(source, config, task)
    seeds = seeds_of(source, config)
    if source.path.is_file():  # otherwise the message lists the existing checkpoints
        check_checkpoint_size(source.path, source.config, task.model)
    index = np.asarray([source.config.seed_list().index(seed) for seed in seeds])
    keeps = config.normalize_observations, False
    agent = agent_of(source, state.reference.agent, index, keeps)
    whose = f"its seed {seeds[0]} for all seeds" if len(set(seeds)) < len(seeds) else "seed by seed"
    line = (
        f"reference policy: {source.directory.path}@{source.checkpoint}, {whose}; each nat of KL from it costs "
        f"{config.reference_kl:g}"
    )
    if config.reference_estimator == "k1" and config.reference_kl:
        line += ". The mean gradient of k1 is 0, so it only adds noise; use k2, k3 or exact"
    return state._replace(reference=state.reference._replace(agent=agent)), line


def require_same_networks(source: Source, config: Config, task: Task) -> None:
    """Refuse a reference whose policy does not fit the environment or whose networks differ from those of this run."""
    if different := different_spaces(source, config, task):
        raise UpslopeError(
            f"The policy of {source.directory.path} cannot be the reference in {config.environment}, since it needs "
            f"the spaces that it was trained with: {'; '.join(different)}. Name a run in an environment with the same "
            "spaces."
        )
    if changed := different_settings(source, config, (*NETWORKS, "normalize_observations")):
        raise UpslopeError(
            "A reference policy must have the same networks as the run that uses it, but in "
            f"{source.directory.path} {'; '.join(changed)}. Train with its settings, or start from its agent: --from "
            f"{readable(str(source.directory.path))}."
        )


def seeds_of(source: Source, config: Config) -> list[int]:
    """Return, for each seed of the run, the seed of the source whose policy is its reference."""
    known = source.config.seed_list()
    one = known[0] if len(known) == 1 and config.reference_seed is None else config.reference_seed
    wanted = config.seed_list() if one is None else [one] * config.seeds
    if missing := [seed for seed in wanted if seed not in known]:
        there = f"seed {known[0]}" if len(known) == 1 else f"the seeds {known[0]} to {known[-1]}"
        raise UpslopeError(
            f"{source.directory.path} has {there} and no seed {missing[0]}. To use one of them for every seed"
            f": --reference-seed {known[0]}."
        )
    return wanted
