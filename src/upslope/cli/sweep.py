"""The command `sweep`, which searches for good settings."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from upslope.cli.arguments import Environment, Keys, Wrappers
from upslope.cli.cluster import HERE, OnCluster
from upslope.cli.terminal import console, say
from upslope.cli.train import Quiet
from upslope.config.config import positive
from upslope.errors import UpslopeError


@dataclass(frozen=True)
class Parts:
    """The parts of every trial that may be your own. Their defaults are those of the algorithm."""

    estimator: str | None = None
    """The estimator of every trial, or module:Name."""
    objective: str | None = None
    """The objective of every trial, or module:Name."""
    bonus: str | None = None
    """The exploration bonus of every trial, or module:Name."""
    bonus_kwargs: dict[str, Any] = field(default_factory=dict)
    """Fields of the bonus, as JSON."""
    model: str | None = None
    """The model of every trial: perceptron, or your own as module:Name."""
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for your own model, as JSON."""
    optimiser: str | None = None
    """The optimiser of every trial, or module:Name."""
    learning_rate_schedule: str | None = None
    """How the learning rate of every trial changes: constant, linear, cosine, or module:Name."""
    epsilon_schedule: str | None = None
    """How ε of every trial changes: constant, linear, cosine, or module:Name."""
    entropy_schedule: str | None = None
    """How the entropy bonus of every trial changes: constant, linear, cosine, or module:Name."""


OF_THE_ALGORITHM = Parts()
"""The default flags: the parts of the algorithm."""


def sweep(
    environment: Environment,
    algorithm: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ALGORITHM")] = "ppo",
    space: Path | None = None,
    trials: int = 100,
    seeds: int = 3,
    seed: int = 0,
    steps: int = 100_000,
    sampler: str = "tpe",
    pruner: str = "median",
    storage: str | None = None,
    name: str | None = None,
    folder: Path = Path("runs"),
    fresh_seeds: int = 10,
    evaluation_episodes: int = 20,
    preset: bool = True,
    env_kwargs: dict[str, Any] = {},  # noqa: B006 - it is only read
    max_episode_steps: int | None = None,
    wrappers: Wrappers = (),
    ignore_observation: Keys = (),
    workers: int | None = None,
    parts: Annotated[Parts, tyro.conf.OmitArgPrefixes] = OF_THE_ALGORITHM,
    cluster: OnCluster = HERE,
    at_once: int | None = None,
    quiet: Quiet = False,
) -> None:
    """Search for an algorithm's best settings, and compare the winner with the defaults on seeds that no trial has
    used.

    All trials have the same budget and the same seeds. A trial's score is the mean over its seeds of the last 100
    training returns. The same command continues a sweep that was stopped, and several processes may run it
    simultaneously. This needs the extra `sweep`.

    Args:
        environment: A Gymnasium id (`CartPole-v1`), `module:Id`, or a compiled environment (`jax:CartPole-v1`).
        algorithm: The rung of the ladder.
        space: A YAML file of the settings to search: `setting: {low: …, high: …, log: true}` or
            `setting: {choices: […]}`; `setting: value` fixes it. The default space depends on the kind of action.
        trials: Total number of trials.
        seeds: Number of seeds per trial.
        seed: The first seed. The other seeds are the integers after it, followed by the fresh seeds.
        steps: Environment steps per seed and trial.
        sampler: Optuna's sampler: tpe, random, cmaes, gp, qmc, nsgaii, nsgaiii, bruteforce.
        pruner: Optuna's pruner: median, hyperband, successivehalving, wilcoxon, none.
        storage: URL of a database that several processes or machines share, e.g. postgresql+psycopg://host/name; by
            default a SQLite file in the sweep's folder.
        name: Name of the sweep's folder and study; by default derived from environment and algorithm.
        folder: The folder in which the sweep's folder is created.
        fresh_seeds: Fresh seeds on which the winner and the defaults are retrained; 0 skips this.
        evaluation_episodes: Fresh episodes per seed and mode that score those runs; 0 uses the training episodes.
        preset: Start from the environment's tuned settings if there are any, as `upslope train` does.
        env_kwargs: Keyword arguments for the environment, as JSON.
        max_episode_steps: Steps after which an episode is truncated; by default the environment's own limit.
        wrappers: A wrapper to put around the environment, as in `upslope train`; repeatable.
        ignore_observation: Key of a part of the observations to ignore; repeatable.
        workers: Processes that train trials of a Gymnasium environment; by default one per core.
        at_once: Number of trials that one program of a compiled environment trains together; by default 8, or 64 on an
            accelerator.
        quiet: Print warnings only.
    """
    options = {key: value for key, value in locals().items() if key != "parts"} | {"cluster": cluster.placement()}
    positive(
        trials=trials, seeds=seeds, steps=steps, workers=workers, at_once=at_once, max_episode_steps=max_episode_steps
    )
    positive(fresh_seeds=fresh_seeds or None, evaluation_episodes=evaluation_episodes or None)
    given = {key: value for key, value in options.items() if key in ("env_kwargs", "wrappers", "ignore_observation")}
    options = {key: value for key, value in options.items() if key not in given}
    options |= {key: value for key, value in (given | vars(parts)).items() if value}
    if max_episode_steps is None:
        del options["max_episode_steps"]
    from upslope.cli.sweep_tables import sweep_lines, sweep_table
    from upslope.lab.sweep.sweep import sweep
    from upslope.lab.sweep.words import no_winner_words

    found = sweep(**options)
    if not quiet:
        console().print(sweep_table(found))
        for line in sweep_lines(found):
            say(line)
    if found.winner is None:
        raise UpslopeError(no_winner_words(found.trials))
