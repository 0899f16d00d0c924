"""Evaluate on a cluster, where each worker plays the episodes of some of the seeds."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from upslope.config.config import Config
from upslope.engines.base import Placement, resources_of
from upslope.engines.notices import Notices
from upslope.engines.transport import MAX_LOSSES, WorkerLostError, answers_of, close_workers
from upslope.engines.workers import InProgram
from upslope.errors import UpslopeError
from upslope.models.agent import Agent
from upslope.runs.evaluation import Evaluation, Mode, RunSeeds, evaluate_seeds, print_line

Evaluate = Callable[..., tuple[Evaluation, int]]
"""The type of `upslope.runs.evaluation.evaluate_seeds`."""


@contextmanager
def on_cluster(placement: str | Placement, environment: Any) -> Iterator[Evaluate]:
    """Yield a counterpart of `evaluate_seeds` that runs in workers on a cluster.

    Raises:
        UpslopeError: the environment cannot be sent to the cluster, or a node's setup differs.
    """
    from upslope.engines.cluster import connect

    if not (environment.is_compiled or environment.is_named):
        raise UpslopeError(
            "The environment cannot be sent to a cluster. Refer to it as module:Name, or omit --cluster."
        )
    where = resources_of(None, placement).cluster
    assert where is not None
    cluster = connect(where)

    def evaluate(config: Config, environment: Any, agents: Agent, *arguments: Any) -> tuple[Evaluation, int]:
        losses = 0
        while True:
            cluster.require(agents, environment)
            try:
                return evaluate_shares(cluster, config, environment, agents, *arguments)
            except WorkerLostError as error:
                losses += 1
                if losses > MAX_LOSSES:
                    raise
                print_line(f"{error} Evaluating all seeds again.")

    try:
        yield evaluate
    finally:
        cluster.release()


def evaluate_shares(
    cluster: Any, config: Config, environment: Any, agents: Agent, mode: Mode, episodes: int, offset: int, notices: Any
) -> tuple[Evaluation, int]:
    """Evaluate all seeds, giving each worker of a `Cluster` a share of them."""
    seeds = config.seed_list()
    shares = np.array_split(np.arange(len(seeds)), min(len(seeds), cluster.capacity()))
    names = [f"seeds {', '.join(str(seeds[i]) for i in share)}" for share in shares]
    workers = []
    try:
        for i, (name, share) in enumerate(zip(names, shares, strict=True)):
            workers.append(cluster.start_worker("upslope.runs.evaluation_on_cluster", i, name, notices))
            mine = jax.tree.map(lambda x, share=share: np.asarray(x)[share], agents)
            some = RunSeeds(config, tuple(seeds[i] for i in share))
            workers[-1].ask("evaluate", some, environment, mine, mode, episodes, offset)
        parts = answers_of(workers, print_line)
    finally:
        close_workers(workers)
    return joined(mode, [part for part, _ in parts]), sum(count for _, count in parts)


def joined(mode: Mode, parts: list[Evaluation]) -> Evaluation:
    """Combine the evaluations of the shares into one for all seeds."""
    arrays = {name: np.concatenate([getattr(p, name) for p in parts]) for name in ("returns", "lengths", "terminated")}
    info = {key: np.concatenate([part.info[key] for part in parts]) for key in parts[0].info}
    return Evaluation(mode, tuple(seed for part in parts for seed in part.seeds), info=info, **arrays)


class Server:
    """Runs in a worker and evaluates its seeds."""

    notices: Notices | None = None
    columns = InProgram()

    def evaluate(
        self, config: RunSeeds, environment: Any, agents: Agent, mode: Mode, episodes: int, offset: int
    ) -> tuple[Evaluation, int]:
        """See `evaluate_seeds`."""
        return evaluate_seeds(config, environment, agents, mode, episodes, offset, self.notices)

    def close(self) -> None:
        """Do nothing: environments are closed after each evaluation."""
