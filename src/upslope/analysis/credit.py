"""Who is blamed? The weight Ψ_t that every estimator would give to each action of one episode."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from upslope.agent import Agent
from upslope.analysis.pictures import Pictures, draw_compiled, watched
from upslope.config import Config
from upslope.devices import prepare
from upslope.distributions import Bernoulli, Categorical, DiagonalGaussian, Distribution, MultiCategorical
from upslope.environments.make import HostWorld, make
from upslope.errors import UpslopeError
from upslope.estimators import GAE, Baseline, Estimator, NStep, RewardToGo, TotalReturn, td_error
from upslope.evaluation import EVALUATION_SEED, RunSeeds, check_counts, episodes_of, take
from upslope.policy import Which, load_agents
from upslope.runs import RunDirectory
from upslope.storage import load_arrays, save_arrays
from upslope.types import Rollout, Values, host_rollout
from upslope.update import evaluate

CREDIT_FORMAT = 1
FILE_NAME = "credit.npz"


@dataclass(frozen=True)
class EpisodeCredit:
    """One episode of a trained agent, and what each estimator makes of it. T steps; rewards in the world's units.

    Every estimator is linear in the rewards and values, so a learner that scales its rewards by 1/σ has these
    weights times 1/σ. It then centres and scales them over a batch if `normalize_advantage` is set.
    """

    environment: str
    algorithm: str
    seed: int
    checkpoint: str
    episode_seed: int
    gamma: float
    """γ of the run."""
    terminated: bool
    """Whether the world ended the episode; otherwise it was truncated."""
    own: str | None
    """The name, in `weights`, of the estimator that the run was trained with."""
    reward: np.ndarray
    """r_t [T]."""
    value: np.ndarray | None
    """V(s_t) [T]; None where the run trained no critic."""
    td_error: np.ndarray | None
    """δ_t = r_t + γ V(s_{t+1}) − V(s_t) [T]; None without a critic."""
    weights: dict[str, np.ndarray]
    """Estimator → Ψ_t [T]. Without a critic only those that need none."""
    policy: dict[str, np.ndarray]
    """π(·|s_t): `probability` [T, A], or `mean` and `std` [T, K] for a Box."""
    action: np.ndarray
    """The action taken [T, …], as sampled; a discrete one is counted from 0."""
    picture_steps: np.ndarray
    """The steps that are pictured [F], increasing."""
    pictures: tuple[bytes, ...]
    """s_t at those steps, as WebP."""
    picture_note: str
    """Why there is no picture; empty where there are some."""

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.reward)

    def spread(self, estimator: str) -> float:
        """(Σ|Ψ_t|)² / ΣΨ_t², 1 … T: over how many actions the credit is spread. 1: all on one action; T: on all alike.

        The participation ratio, as an effective sample size counts samples (Kish 1965). 0 where every Ψ_t is 0.
        """
        size = np.abs(self.weights[estimator])
        return float(size.sum() ** 2 / (size**2).sum()) if size.any() else 0.0

    def most_blamed(self, estimator: str) -> int:
        """The step with the largest |Ψ_t|; the first of several."""
        return int(np.argmax(np.abs(self.weights[estimator])))


def estimators_for(config: Config) -> dict[str, Estimator]:
    """The library's estimators in the ladder's order, with the run's λ, and with its n where that is another one."""
    steps = sorted({1, 5, config.n} if config.estimator == "n_step" else {1, 5})
    several = [NStep(n) for n in steps]
    estimators = [TotalReturn(), RewardToGo(), Baseline(), *several, GAE(config.lambda_)]
    return {label(e): e for e in estimators}


def label(estimator: Estimator) -> str:
    """`NStep(5)`, `GAE(0.95)`, `TotalReturn`."""
    settings = ", ".join(f"{x:g}" for x in vars(estimator).values())
    return type(estimator).__name__ + (f"({settings})" if settings else "")


def own_label(config: Config) -> str | None:
    """The name of the estimator that a run was trained with; None for a user's own and for imitation."""
    names = {"total_return": TotalReturn(), "reward_to_go": RewardToGo(), "baseline": Baseline()}
    ours = names | {"n_step": NStep(config.n), "gae": GAE(config.lambda_)}
    return label(ours[config.estimator]) if config.estimator in ours else None


def weigh_all(
    estimators: dict[str, Estimator], rollout: Rollout, values: Values | None, gamma: float
) -> dict[str, np.ndarray]:
    """Estimator → Ψ [T, N]; without values only the estimators that need none."""
    nothing = jnp.zeros(rollout.reward.shape)
    given = values or Values(nothing, nothing)
    usable = {name: e for name, e in estimators.items() if values is not None or not e.needs_critic}
    weigh = jax.jit(lambda rollout, given: {name: e(rollout, given, gamma).weight for name, e in usable.items()})
    found = weigh(rollout, given)
    return {name: np.asarray(found[name], np.float64) for name in usable}


def credit_of(
    run: str | Path, *, seed: int | None = None, episode_seed: int = 0, checkpoint: Which = "last"
) -> EpisodeCredit:
    """Play one fresh episode of a run's agent, its actions sampled as in training, and weigh every action of it.

    Args:
        run: the run directory.
        seed: which of its seeds; by default the first.
        episode_seed: another number gives another episode.
        checkpoint: `last` or `best`.

    Raises:
        UpslopeError: no such run, seed or checkpoint, or the environment cannot be made.
    """
    check_counts(1, episode_seed)
    directory = RunDirectory(run)
    config = directory.config()
    seeds = config.seed_list()
    seed = config.seed if seed is None else seed
    if seed not in seeds:
        raise UpslopeError(f"{run} has no seed {seed}; it has {seeds[0]} to {seeds[-1]}.")
    world = make(config.environment, config.env_kwargs, config.max_episode_steps)
    prepare(on_host=isinstance(world, HostWorld))
    agents, _ = load_agents(directory, config, checkpoint)
    agent: Agent = jax.tree.map(lambda x: x[seeds.index(seed)], agents)
    pictures = Pictures()
    played = watched(config, world, pictures) if isinstance(world, HostWorld) else world
    rollout = play(config, played, agent, seed, episode_seed)
    if not isinstance(world, HostWorld):
        draw_compiled(config, world, rollout, pictures)
    has_critic = bool(directory.read()["axes"].get("needs_critic", True))
    values = values_of(agent, rollout) if has_critic else None
    return EpisodeCredit(
        environment=config.environment,
        algorithm=config.algorithm,
        seed=seed,
        checkpoint=checkpoint,
        episode_seed=episode_seed,
        gamma=config.gamma,
        terminated=bool(np.asarray(rollout.terminated)[-1, 0]),
        own=own_label(config),
        reward=np.asarray(rollout.reward, np.float64)[:, 0],
        value=None if values is None else np.asarray(values.value, np.float64)[:, 0],
        td_error=None if values is None else np.asarray(td_error(rollout, values, config.gamma), np.float64)[:, 0],
        weights={n: w[:, 0] for n, w in weigh_all(estimators_for(config), rollout, values, config.gamma).items()},
        policy=describe(agent.policy(jnp.asarray(rollout.observation[:, 0]))),
        action=np.asarray(rollout.action)[:, 0],
        picture_steps=np.asarray([s for s in pictures.steps if s < len(rollout.reward)], np.int64),
        pictures=tuple(x for s, x in zip(pictures.steps, pictures.images, strict=True) if s < len(rollout.reward)),
        picture_note=pictures.note,
    )


def play(config: Config, world: Any, agent: Agent, seed: int, episode_seed: int) -> Rollout:
    """One whole episode [T, 1] without padding."""
    alone = RunSeeds(config, (seed,))
    stacked = jax.tree.map(lambda x: x[None], agent)
    offset = EVALUATION_SEED * (1 + episode_seed)
    rollout = take(next(iter(episodes_of(alone, world, stacked, "stochastic", 1, offset))), 0)
    length = int(np.asarray(rollout.valid).sum())
    return host_rollout({name: np.asarray(x)[:length] for name, x in rollout._asdict().items()})


def values_of(agent: Agent, rollout: Rollout) -> Values:
    """The critic's values in the world's units of reward; the learner's are scaled."""
    scale = agent.reward_scale()
    return Values(*(v / scale for v in evaluate(agent, jax.tree.map(jnp.asarray, rollout))))


def describe(policy: Distribution) -> dict[str, np.ndarray]:
    """The parameters of π(·|s_t) that a person reads, each [T, …]."""
    if isinstance(policy, DiagonalGaussian):
        return {"mean": np.asarray(policy.mean), "std": np.asarray(jnp.exp(policy.log_std))}
    if isinstance(policy, Categorical):
        return {"probability": np.asarray(jnp.exp(policy.log_probs()))}
    if isinstance(policy, Bernoulli):
        return {"probability of 1": np.asarray(jax.nn.sigmoid(policy.logits))}
    assert isinstance(policy, MultiCategorical)
    heads = [np.asarray(jnp.exp(head.log_probs())) for head in policy.heads]
    return {f"probability of choice {k}": p for k, p in enumerate(heads)}


NUMBERS = ("environment", "algorithm", "seed", "checkpoint", "episode_seed", "gamma", "terminated", "own")
PLAIN = ("reward", "action", "picture_steps")


def save_credit(path: Path, credit: EpisodeCredit) -> None:
    """Write it into one file, atomically; it replaces one that was there, since it can be computed again."""
    arrays = {name: getattr(credit, name) for name in PLAIN}
    arrays |= {f"weight/{name}": x for name, x in credit.weights.items()}
    arrays |= {f"policy/{name}": x for name, x in credit.policy.items()}
    if credit.value is not None and credit.td_error is not None:
        arrays |= {"value": credit.value, "td_error": credit.td_error}
    arrays["picture_bytes"] = np.frombuffer(b"".join(credit.pictures), np.uint8)
    arrays["picture_sizes"] = np.asarray([len(x) for x in credit.pictures], np.int64)
    meta = {"kind": "credit", "format": CREDIT_FORMAT, "picture_note": credit.picture_note}
    save_arrays(path, arrays, meta | {name: getattr(credit, name) for name in NUMBERS})


def load_credit(path: Path) -> EpisodeCredit:
    """Read what `save_credit` wrote.

    Raises:
        UpslopeError: the file is missing, damaged, or of another kind.
    """
    arrays, meta = load_arrays(path, "credit file")
    try:
        if (meta["kind"], meta["format"]) != ("credit", CREDIT_FORMAT):
            raise ValueError(f"it is a {meta['kind']} of format {meta['format']}")
        cuts = np.cumsum(arrays["picture_sizes"])[:-1]
        pictures = np.split(arrays["picture_bytes"], cuts) if len(arrays["picture_sizes"]) else []
        return EpisodeCredit(
            **{name: meta[name] for name in (*NUMBERS, "picture_note")},
            **{name: arrays[name] for name in PLAIN},
            value=arrays.get("value"),
            td_error=arrays.get("td_error"),
            weights={n.removeprefix("weight/"): x for n, x in arrays.items() if n.startswith("weight/")},
            policy={n.removeprefix("policy/"): x for n, x in arrays.items() if n.startswith("policy/")},
            pictures=tuple(x.tobytes() for x in pictures),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UpslopeError(
            f"{path} is damaged or of another version: {error}. Make it anew: upslope credit {path.parent}"
        ) from error
