"""A trained policy for use: NumPy observations in, NumPy actions out. Needs no environment."""

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from upslope.config.config import Config
from upslope.errors import UpslopeError
from upslope.learning.iteration import stack
from upslope.models.agent import Agent, initialise_agent
from upslope.models.spaces import Coding, Head, described
from upslope.runs.checkpoints import check_size, load_checkpoint
from upslope.runs.directory import RunDirectory

Which = Literal["best", "last"]


class Policy:
    """π(a|s) of one trained agent, with its normaliser.

    Call it with one observation or a batch: `policy(observation)` gives the action (deterministic unless
    `deterministic=False`) in the environment's units, clipped to its bounds.
    """

    def __init__(self, agent: Agent, seed: int, checkpoint: Which, has_critic: bool = True, random_seed: int = 0):
        self.agent, self.seed, self.checkpoint, self.has_critic = agent, seed, checkpoint, has_critic
        self.here: Agent = jax.tree.map(np.asarray, agent)
        self.key = jax.random.key(random_seed)
        self.calls = 0
        self.noise = jax.jit(lambda agent, x, key, n: agent.policy(x).noise(jax.random.fold_in(key, n)))

    def __call__(self, observation: Any, deterministic: bool = True) -> Any:
        """Observation [*shape] → action, or [B, *shape] → actions [B, …]."""
        return self.with_log_prob(observation, deterministic)[0]

    def with_log_prob(self, observation: Any, deterministic: bool = False) -> tuple[Any, Any]:
        """(action, log π(a|s)); for a Box the log-density of the action before it is clipped.

        Raises:
            UpslopeError: the observation has neither the shape of the space nor that with one batch axis.
        """
        shape = self.agent.coding.shape
        observation = np.asarray(observation)
        is_batch = observation.shape[1:] == shape and observation.ndim == len(shape) + 1
        if observation.shape != shape and not is_batch:
            raise UpslopeError(
                f"This policy reads observations of shape {shape}, or a batch [B, {', '.join(map(str, shape))}], not "
                f"{observation.shape}."
            )
        batch = observation if is_batch else observation[None]
        policy: Any = self.here.policy(batch)
        if deterministic:
            action = policy.mode()
        else:
            action = policy.choose(np.asarray(self.noise(self.agent, batch, self.key, self.calls)))
            self.calls += 1
        taken, log_prob = self.agent.actor.head.to_environment(action), policy.log_prob(action)
        return (taken, log_prob) if is_batch else (taken[0], log_prob[0])

    def value(self, observation: Any) -> np.ndarray:
        """V(s) in the environment's units of reward.

        Raises:
            UpslopeError: the estimator that it was trained with has no critic.
        """
        if not self.has_critic:
            raise UpslopeError("This policy was trained without a critic, so it has no values. Use --estimator gae.")
        return np.asarray(self.agent.value(jnp.asarray(observation)) / self.agent.reward_scale())


def load(run: str | Path, *, seed: int | None = None, checkpoint: Which = "best", random_seed: int = 0) -> Policy:
    """The policy of a run.

    Args:
        run: the run directory.
        seed: which of its seeds; by default the one with the best training return. That is a choice after the fact:
            to judge an algorithm, evaluate all seeds.
        checkpoint: `best` (highest mean return over its last 20 to 100 training episodes) or `last`.
        random_seed: for `deterministic=False`.

    Raises:
        UpslopeError: no such run, seed or checkpoint, or one that is damaged or of another version.
    """
    directory = RunDirectory(run)
    config = directory.config()
    agents, scores = load_agents(directory, config, checkpoint)
    seeds = config.seed_list()
    if seed is None:
        returns = [-np.inf if r is None else r for r in scores["best_return"]]
        seed = seeds[int(np.argmax(returns))]
    if seed not in seeds:
        raise UpslopeError(f"{run} has no seed {seed}; it has {seeds[0]} to {seeds[-1]}.")
    index = seeds.index(seed)
    has_critic = bool(directory.read()["axes"].get("needs_critic", True))
    return Policy(jax.tree.map(lambda x: x[index], agents), seed, checkpoint, has_critic, random_seed)


def load_agents(directory: RunDirectory, config: Config, checkpoint: Which) -> tuple[Agent, dict[str, Any]]:
    """All seeds' agents [S] of a checkpoint, and what it says of their returns."""
    if checkpoint not in ("best", "last"):
        raise UpslopeError(f'A checkpoint is "best" or "last", not "{checkpoint}".')
    coding, head = spaces_of(directory)
    path, prefix = (directory.best, "") if checkpoint == "best" else (directory.last, ".learner.agent")
    check_size(path, config.seeds * num_parameters(coding, head, config.hidden_sizes))
    network = config.network()
    like = stack([initialise_agent(jax.random.key(s), coding, head, **network) for s in config.seed_list()])
    agents, _, meta = load_checkpoint(path, like, prefix)
    check_scores(path, meta, config.seeds)
    return agents, meta


def spaces_of(directory: RunDirectory) -> tuple[Coding, Head]:
    """How a run reads observations and means actions."""
    return described(directory.read()["spaces"], str(directory.path / "config.json"))


def check_scores(path: Path, meta: dict[str, Any], seeds: int) -> None:
    """Refuse a checkpoint that does not say how good each seed was, and when."""
    returns, steps = meta.get("best_return"), meta.get("best_step")
    if not is_list(returns, (int, float, type(None)), seeds) or not is_list(steps, (int,), seeds):
        raise UpslopeError(
            f"{path} is damaged: it does not say each seed's best return and step. Put a copy of it back."
        )


def is_list(value: Any, kinds: tuple[type, ...], length: int) -> bool:
    """Whether it is a list of so many values of these types; a bool is no number."""
    return isinstance(value, list) and len(value) == length and all(type(x) in kinds for x in value)


def num_parameters(coding: Coding, head: Head, hidden_sizes: tuple[int, ...]) -> int:
    """How many weights policy and critic have at least."""
    sizes = (coding.num_features, *hidden_sizes)
    hidden = sum(i * o for i, o in pairwise(sizes))
    return 2 * hidden + hidden_sizes[-1] * (head.num_outputs + 1)
