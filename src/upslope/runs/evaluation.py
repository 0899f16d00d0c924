"""Evaluate and record trained agents over whole episodes in fresh environments, keeping every return.

Each episode has its own column, so short episodes are not overrepresented.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray, Shaped

from upslope.config.config import Config, fresh, positive
from upslope.config.task import environment_of, refuse_missing_info
from upslope.config.trust import LEARNING, require
from upslope.core import html
from upslope.core.arrays import AnyArray as Array
from upslope.core.arrays import pytree, rows_at
from upslope.core.distributions import Distribution
from upslope.core.files import AnyPath, output_file, require_folder, safe_path, temporary_beside
from upslope.core.messages import counted, readable
from upslope.core.numbers import half_width, number, plus_minus, range_of
from upslope.core.storage import load_arrays
from upslope.core.types import Rollout
from upslope.engines.base import Placement, finite_seeds, fit_to_act
from upslope.engines.batched import columns_for
from upslope.engines.border import nothing_allowed
from upslope.engines.collect import Act, collect_host_episodes
from upslope.engines.notices import Notices, notices_to
from upslope.environments.base import CompiledEnvironment
from upslope.environments.registry import EnvironmentLike, HostEnvironment, name_of
from upslope.errors import UpslopeError
from upslope.learning.collect import collect_episodes
from upslope.learning.devices import backend, computing
from upslope.learning.iteration import QUICK, stack
from upslope.models.agent import Agent
from upslope.models.encoders import encoder_of
from upslope.models.head import ActionHead
from upslope.models.model import Carry, start_memory
from upslope.runs.datasets import save_dataset
from upslope.runs.directory import EVALUATION_LIMIT, RunDirectory
from upslope.runs.minari_datasets import is_minari, new_folder, write_minari
from upslope.runs.policy import Which, load_agents, require_finite
from upslope.runs.same_spaces import require_same_environment

Mode = Literal["stochastic", "deterministic"]
MODES: tuple[Mode, ...] = ("stochastic", "deterministic")
COLUMNS = 10
"""Number of episodes that run in parallel."""
EVALUATION_SEED = 1_000_003
"""Offset added to a run's seeds, so that evaluation episodes differ from training episodes."""
RECORDING_SEED = 500_009
"""Offset for recorded episodes. It keeps agents from being evaluated on the episodes on which they were trained."""


@pytree
class AlwaysMode:
    """A distribution that always returns its mode."""

    distribution: Distribution

    def noise(self, key: PRNGKeyArray) -> Array:
        """Return zeros: nothing is random."""
        return jnp.zeros(())

    def held_noise(self, key: PRNGKeyArray, held_key: PRNGKeyArray) -> Array:
        """Return zeros."""
        return self.noise(key)

    def choose(self, noise: Array) -> Array:
        return self.distribution.mode()

    def log_prob(self, action: Shaped[Array, "..."]) -> Array:
        return self.distribution.log_prob(action)


@pytree
class GreedyAgent:
    """An agent that takes its most probable action."""

    agent: Agent

    @property
    def model(self) -> Any:
        return self.agent.model

    @property
    def head(self) -> ActionHead:
        return self.agent.head

    def act(self, observation: Any, carry: Carry, fresh: Any, mask: Any = None) -> tuple[AlwaysMode, Carry]:
        """Return the mode of π(·|s), and the next carry."""
        policy, carry = self.agent.act(observation, carry, fresh, mask)
        return AlwaysMode(policy), carry

    def policy(self, observation: Any, mask: Any = None) -> AlwaysMode:
        """Return the mode of π(·|s), for a model without memory."""
        return AlwaysMode(self.agent.policy(observation, mask))


@dataclass(frozen=True)
class Evaluation:
    """The episodes of one mode: returns, lengths and termination flags, each [S, E]."""

    mode: Mode
    seeds: tuple[int, ...]
    returns: np.ndarray
    lengths: np.ndarray
    terminated: np.ndarray
    info: dict[str, np.ndarray] = field(default_factory=dict)
    """For each key of the run's --log-info, the numbers at the ends of the episodes, [S, E]."""

    def seed_means(self) -> np.ndarray:
        """Return each seed's mean return [S]; the seed is the unit of replication."""
        return self.returns.mean(axis=1)

    def _repr_html_(self) -> str:
        return page_of_evaluations({self.mode: self})


class Evaluations(dict[str, Evaluation]):
    """The evaluation of each mode, keyed by the mode's name."""

    def _repr_html_(self) -> str:
        return page_of_evaluations(self)


def page_of_evaluations(found: Mapping[str, Evaluation]) -> str:
    """Return a table for a notebook: each seed's mean return in each mode, and the mean over seeds."""
    first = next(iter(found.values()), None)
    if first is None:
        return ""
    means = {mode: e.seed_means() for mode, e in found.items()}
    rows = [[seed, *(number(float(x[s]), range_of(x)) for x in means.values())] for s, seed in enumerate(first.seeds)]
    if len(first.seeds) > 1:
        intervals = [(float(x.mean()), half_width(x)) for x in means.values()]
        rows.append(["mean", *(f"{plus_minus(x, half)} (95 %)" if half > 0 else number(x) for x, half in intervals)])
    title = f"Mean return of {counted(first.returns.shape[1], 'episode')} per seed"
    return html.table(title, ["seed", *found], rows)


def evaluate(
    run: AnyPath,
    *,
    episodes: int = 20,
    checkpoint: Which = "last",
    environment_seed: int = 0,
    max_episode_steps: int | None = None,
    environment: EnvironmentLike | None = None,
    model: Callable[..., Any] | None = None,
    cluster: str | Placement | None = None,
    trust: bool = False,
) -> Evaluations:
    """Run every seed's agent for `episodes` fresh episodes in both modes and store the episodes in `evaluation.csv`.

    Returns `{"stochastic": …, "deterministic": …}`. If more episodes are already stored, the additional ones are kept.
    An episode is truncated after `max_episode_steps`, by default the limit of the run or of the environment. If neither
    has a limit, it is truncated after 10,000 steps, with a notice. A different limit leads to different returns, so
    such episodes are returned but not stored with the run. `environment` and `model` are needed only if those of the
    run cannot be found by name, as in `upslope.resume`. As in `upslope.train`, `cluster` determines where workers run;
    each worker evaluates some of the seeds. `trust` allows the code named by the run's config.json; registered
    Gymnasium ids, upslope's own environments and runs trained on this machine do not need it.

    Raises:
        UpslopeError: there is no such run or checkpoint, or the environment cannot be created or is not trusted.
    """
    positive(episodes=episodes, max_episode_steps=max_episode_steps)
    fresh(environment_seed=environment_seed)
    directory = RunDirectory(run)
    own = directory.config()
    config = with_limit(own, max_episode_steps)
    require(config, directory.path, trust=trust, given=trusted_settings(environment, model))
    safe_path(directory.path, directory.evaluation_path)
    env = environment_of(config, environment)
    require_same_environment(directory, env)
    refuse_missing_info(config, env)
    foreign = lines_of_limit(own, config, env, environment)
    found, lines, notices = Evaluations(), [], notices_to()
    with evaluating(cluster, env) as on, computing(on_host=not env.is_compiled):
        agents, meta = load_agents(directory, config, checkpoint, model)
        place = partial(file_of_rows, directory, checkpoint, played_steps(meta, checkpoint))
        for mode in MODES:
            offset = EVALUATION_SEED * (1 + environment_seed)
            found[mode], cut = on(config, env, agents, mode, episodes, offset, notices)
            rows = rows_of(found[mode], checkpoint, environment_seed)
            lines += foreign or store(directory, rows, place)
            lines += cut_lines(config, cut, mode)
    for line in dict.fromkeys(lines):
        print_line(line)
    return found


def played_steps(meta: Mapping[str, Any], checkpoint: Which) -> Any:
    """Return the steps of each seed's agent, from a checkpoint's metadata, or None if an old version did not record
    them."""
    return meta.get("steps" if checkpoint == "last" else "best_step")


def file_of_rows(directory: RunDirectory, checkpoint: Which, steps: Any) -> Path:
    """Return the file that stores the episodes of agents with the given numbers of steps.

    This is evaluation.csv only if the checkpoint still contains the same agents, since training may have replaced it in
    the meantime."""
    path = directory.last if checkpoint == "last" else directory.best
    if played_steps(load_arrays(path, "checkpoint")[1], checkpoint) == steps:
        return directory.evaluation_path
    return directory.evaluations_at(max(steps or [0]))


def store(directory: RunDirectory, rows: Iterator[tuple[Any, ...]], place: Callable[[], Path]) -> list[str]:
    """Store evaluation episodes with the run. Return a notice if they cannot be written, or if their agent has been
    trained further in the meantime."""
    try:
        path = directory.add_evaluation(rows, place)
    except (UpslopeError, OSError) as error:  # the results took a long time to compute, so show them anyway
        return [f"not stored: {str(error).rstrip('.')}. The results are only shown."]
    if path == directory.evaluation_path:
        return []
    return [
        f"the run was trained further during this evaluation, so its episodes are stored in {path.name} "
        "and do not count as the run's. Evaluate it again when it has finished."
    ]


def evaluating(cluster: str | Placement | None, environment: Any) -> AbstractContextManager[Callable[..., Any]]:
    """Return a context manager that yields the function for evaluating seeds: `evaluate_seeds`, or its counterpart on a
    cluster."""
    if cluster is None:
        return nullcontext(evaluate_seeds)
    from upslope.runs.evaluation_on_cluster import on_cluster

    return on_cluster(cluster, environment)


def trusted_settings(environment: EnvironmentLike | None, model: Callable[..., Any] | None = None) -> set[str]:
    """Return the settings of a run that need no trust: those used only for learning, and those passed by the user."""
    passed = {"environment": environment, "model": model}
    return {*LEARNING, *(name for name, part in passed.items() if part is not None)}


def with_limit(config: Config, max_episode_steps: int | None) -> Config:
    """Return the config, with another step limit if one is given."""
    return config if max_episode_steps is None else replace(config, max_episode_steps=max_episode_steps)


def limit_of(config: "Config | RunSeeds", environment: Any) -> int:
    """Return the number of steps after which an episode is truncated."""
    return config.max_episode_steps or environment.max_episode_steps or EVALUATION_LIMIT


def lines_of_limit(own: Config, config: Config, environment: Any, given: EnvironmentLike | None) -> list[str]:
    """Return the notice that these episodes have a different step limit from `own`, the run's config, or no lines if
    the limits are the same."""
    if config == own:
        return []
    # If the environment is given by its id, its limit is replaced on creation.
    as_trained = environment if own.max_episode_steps is not None else environment_of(own, given)
    limits = limit_of(config, environment), limit_of(own, as_trained)
    if len(set(limits)) == 1:
        return []
    return [
        f"not stored: these episodes are truncated after {limits[0]:,} steps and the run's after {limits[1]:,}, so "
        "their returns are not comparable with the run's score. Omit --max-episode-steps to store an evaluation."
    ]


def evaluate_seeds(
    config: "Config | RunSeeds",
    environment: Any,
    agents: Agent,
    mode: Mode,
    episodes: int,
    offset: int,
    notices: Notices | None = None,
) -> tuple[Evaluation, int]:
    """Evaluate the seeds in one mode. Also return how many of the episodes were cut short."""
    infos: list[np.ndarray] = []
    # The images of all steps of all episodes would not fit into memory.
    seen = dict.fromkeys(("observation", "next_observation", "action", "behaviour_log_prob", "action_mask"))
    batches = episodes_of(config, environment, agents, mode, episodes, offset, notices, infos)
    rollouts = [rollout._replace(**seen) for rollout in batches]
    return summarise(mode, config, rollouts, infos), num_cut(config, environment, rollouts)


def num_cut(config: "Config | RunSeeds", environment: Any, rollouts: Sequence[Rollout]) -> int:
    """Return the number of episodes that were truncated because neither the run nor the environment has a limit."""
    if config.max_episode_steps or environment.max_episode_steps:
        return 0
    return sum(int((np.asarray(r.valid).sum(axis=-2) >= EVALUATION_LIMIT).sum() - ended_at_limit(r)) for r in rollouts)


def cut_lines(config: Config, count: int, mode: str = "") -> list[str]:
    """Return the notice that this many episodes were cut short."""
    if not count:
        return []
    return [
        f"{counted(count, f'{mode} episode'.strip())} cut off at {EVALUATION_LIMIT:,} steps, since "
        f"{config.environment} has no limit "
        "of its own; the returns cover only these steps. Set another limit with --max-episode-steps."
    ]


def ended_at_limit(rollout: Rollout) -> int:
    """Return the number of episodes that terminated exactly on step `EVALUATION_LIMIT`."""
    terminated = np.asarray(rollout.terminated & rollout.valid)
    return int(terminated[..., EVALUATION_LIMIT - 1 : EVALUATION_LIMIT, :].sum())


def print_line(line: str) -> None:
    """Print a line to standard error."""
    print(readable(line), file=sys.stderr)


def record(
    run: AnyPath,
    *,
    episodes: int = 100,
    output: str | Path | None = None,
    checkpoint: Which = "last",
    seed: int | None = None,
    environment_seed: int = 0,
    max_episode_steps: int | None = None,
    environment: EnvironmentLike | None = None,
    model: Callable[..., Any] | None = None,
    trust: bool = False,
) -> Path:
    """Record fresh episodes of one seed's agent, sampled from its policy, together with their log-probabilities.

    Returns the path of the dataset, by default `dataset.npz` in the run directory. An existing file is not overwritten.
    With `output="minari:NAME"`, a Minari dataset without log-probabilities is written instead, and its folder is
    returned. `max_episode_steps`, `environment`, `model` and `trust` are the same as in `evaluate`.
    """
    positive(episodes=episodes, max_episode_steps=max_episode_steps)
    fresh(environment_seed=environment_seed)
    directory = RunDirectory(run)
    config = with_limit(directory.config(), max_episode_steps)
    seed = config.seed if seed is None else seed
    if seed not in config.seed_list():
        raise UpslopeError(f"{directory.path} has no seed {seed}; it has {config.seed_list()}.")
    if output is None:
        path = directory.path / "dataset.npz"
    else:
        path = Path(output) if is_minari(output) else output_file(output, "dataset.npz")
    require_free(path)
    require(config, directory.path, trust=trust, given=trusted_settings(environment, model))
    env = environment_of(config, environment)
    require_same_environment(directory, env)
    with computing(on_host=not env.is_compiled):
        agents, _ = load_agents(directory, config, checkpoint, model)
        index = config.seed_list().index(seed)
        require_finite(agents, index, seed, directory)
        one = rows_at(agents, slice(index, index + 1))
        run_seed = RunSeeds(config, (seed,))
        offset = RECORDING_SEED + EVALUATION_SEED * environment_seed
        rollouts = [take(r, 0) for r in episodes_of(run_seed, env, one, "stochastic", episodes, offset)]
    for line in cut_lines(config, num_cut(config, env, rollouts)):
        print_line(line)
    meta = {
        "environment": config.environment,
        "algorithm": config.algorithm,
        "seed": seed,
        "checkpoint": checkpoint,
    }
    if is_minari(path):
        return write_minari(path, rollouts, env.observation_space, env.action_space, agents.head, meta)
    save_dataset(path, rollouts, meta | {"episodes": episodes}, agents.head)
    return path


def require_free(path: Path) -> None:
    """Refuse to write a dataset where one exists, or into a folder that does not exist."""
    if is_minari(path):
        new_folder(path)
        return
    if path.suffix.lower() not in ("", ".npz"):
        raise UpslopeError(
            f"Episodes are recorded as an NPZ archive, but {path} has another suffix. Pass --output a name that ends "
            "in .npz, or minari:NAME."
        )
    if path.exists():
        raise UpslopeError(f"{path} already exists and will not be overwritten. Choose another --output.")
    require_folder(path)
    require_writable(path.parent)


def require_writable(folder: Path) -> None:
    """Refuse a folder in which no file can be created, before any episode is played."""
    probe = temporary_beside(folder / "probe")
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise UpslopeError(
            f"No file can be created in {folder}: {error.strerror or error}. Make it writable, or choose "
            "an --output in another folder."
        ) from error


@dataclass(frozen=True)
class RunSeeds:
    """A config restricted to some of its seeds."""

    config: Config
    seeds: tuple[int, ...]

    def seed_list(self) -> list[int]:
        """Return the selected seeds."""
        return list(self.seeds)

    @property
    def max_episode_steps(self) -> int | None:
        return self.config.max_episode_steps

    @property
    def log_info(self) -> tuple[str, ...]:
        return self.config.log_info


def episodes_of(
    config: Config | RunSeeds,
    environment: Any,
    agents: Agent,
    mode: Mode,
    episodes: int,
    offset: int,
    notices: Notices | None = None,
    infos: list[np.ndarray] | None = None,
) -> Iterator[Rollout]:
    """Yield whole-episode rollouts [S, T, N] until every seed has `episodes` episodes.

    If `infos` is given, the numbers from info at the ends of the episodes, [S, N, K], are appended to it."""
    is_finite = finite_seeds(agents)
    agents = fit_to_act(agents, is_finite)  # the episodes of a diverged agent are played, but have no return
    actors = GreedyAgent(agents) if mode == "deterministic" else agents
    limit = limit_of(config, environment)
    seeds = [offset + s for s in config.seed_list()]
    keys = stack([jax.random.key(s) for s in seeds])
    batches = [min(COLUMNS, episodes - start) for start in range(0, episodes, COLUMNS)]
    if environment.is_compiled:
        keys_of_info = () if infos is None else config.log_info
        play = partial(compiled_episodes, environment, min(COLUMNS, episodes), limit, keys_of_info)
        run = jax.jit(play, compiler_options=QUICK if backend() == "cpu" else None)
        for number, n in enumerate(batches):
            rollout, info = jax.tree.map(np.asarray, run(actors, keys, number))
            rollout = jax.tree.map(lambda x, n=n: x[:, :, :n], rollout)
            if infos is not None and info is not None:
                infos.append(info[:, :n])
            refuse_stuck(environment, agents.head, rollout)
            yield without_returns(rollout, is_finite)
    else:
        log_info = () if infos is None else config.log_info
        for rollout, info in host_episodes(environment, actors, seeds, keys, batches, limit, notices, log_info):
            if infos is not None:
                infos.append(info)
            yield without_returns(rollout, is_finite)


def without_returns(rollout: Rollout, is_finite: np.ndarray) -> Rollout:
    """Return episodes [S, T, N] with the rewards replaced by nan for seeds whose agent has diverged."""
    if is_finite.all():
        return rollout
    return rollout._replace(reward=np.where(is_finite[:, None, None], rollout.reward, np.nan))


def compiled_episodes(
    environment: CompiledEnvironment,
    num_envs: int,
    limit: int,
    log_info: tuple[str, ...],
    agents: Any,
    keys: Array,
    number: Any,
) -> tuple[Rollout, Any]:
    """Run a batch of episodes for every seed in a compiled environment. Also return the numbers from info at their ends
    [S, N, K]."""

    def one_seed(inputs: tuple[Any, Array]) -> tuple[Rollout, Any]:
        agent, key = inputs
        key = jax.random.fold_in(key, number)
        rollout, finished = collect_episodes(environment, agent, key, num_envs, limit, log_info)
        if finished.info is None:
            return rollout, None
        # Every episode ends exactly once, no later than the limit.
        return rollout, jnp.sum(jnp.where(finished.done[..., None], finished.info, 0.0), axis=0)

    return jax.lax.map(one_seed, (agents, keys))


def refuse_stuck(environment: CompiledEnvironment, head: ActionHead, rollout: Rollout) -> None:
    """Raise an error if a compiled environment forbade every action at a step that required one."""
    if rollout.action_mask is not None:
        stuck = np.argwhere(np.asarray(rollout.valid) & ~np.asarray(head.allows_some(rollout.action_mask)))
        if len(stuck):
            raise UpslopeError(nothing_allowed(name_of(environment), f"step {stuck[0][1]} of an episode"))


def host_episodes(
    environment: HostEnvironment,
    agents: Any,
    seeds: list[int],
    keys: Array,
    batches: list[int],
    limit: int,
    notices: Notices | None = None,
    log_info: tuple[str, ...] = (),
) -> Iterator[tuple[Rollout, np.ndarray]]:
    """Yield batches of episodes for every seed in Gymnasium environments, and the numbers from info at their ends
    [S, N, K]."""
    encoder = encoder_of(environment.observation_space, environment.name)
    head = agents.head.in_space(environment.action_space)
    memory = jax.vmap(lambda model: start_memory(model, batches[0]))(agents.model)
    act, active = Act(), np.ones(len(seeds), bool)
    columns = columns_for(environment, encoder, head, seeds, batches[0], limit, notices, log_info)
    try:
        for number, n in enumerate(batches):
            now = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            rollout, ends = collect_host_episodes(columns, act.bind(agents, now, memory), active, {})
            info = np.full((*columns.shape, len(log_info)), np.nan)
            info[ends.seed_index, ends.column] = ends.info
            yield jax.tree.map(lambda x, n=n: x[:, :, :n], rollout), info[:, :n]
    finally:
        columns.close()


def summarise(
    mode: Mode, config: "Config | RunSeeds", rollouts: list[Rollout], infos: Sequence[np.ndarray] = ()
) -> Evaluation:
    """Collect the returns, lengths, termination flags and numbers from info of all episodes."""
    returns = np.concatenate([np.sum(r.reward * r.valid, axis=1, dtype=np.float64) for r in rollouts], axis=1)
    lengths = np.concatenate([np.asarray(r.valid).sum(axis=1) for r in rollouts], axis=1)
    terminated = np.concatenate([np.asarray(r.terminated & r.valid).any(axis=1) for r in rollouts], axis=1)
    numbers = np.concatenate(infos, axis=1) if infos else np.zeros((*returns.shape, 0))
    info = {key: numbers[..., k] for k, key in enumerate(config.log_info)}
    return Evaluation(mode, tuple(config.seed_list()), returns, lengths, terminated, info)


def rows_of(evaluation: Evaluation, checkpoint: Which, environment_seed: int) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of evaluation.csv."""
    for s, seed in enumerate(evaluation.seeds):
        for e in range(evaluation.returns.shape[1]):
            numbers = (
                float(evaluation.returns[s, e]),
                int(evaluation.lengths[s, e]),
                int(evaluation.terminated[s, e]),
            )
            info = (float(x[s, e]) for x in evaluation.info.values())
            yield (seed, evaluation.mode, checkpoint, environment_seed, *numbers, *info)


def take(rollout: Rollout, s: int) -> Rollout:
    """Select one seed's arrays [T, N]."""
    return jax.tree.map(lambda x: np.asarray(x)[s], rollout)
