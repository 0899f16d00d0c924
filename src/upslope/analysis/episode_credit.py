"""Play an episode of a trained agent, and compute the weight that each estimator gives to each action."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from upslope.analysis.credit import EpisodeCredit
from upslope.analysis.episode_pictures import Pictures, draw_compiled, watched
from upslope.analysis.influence import influence_of
from upslope.analysis.observation_pictures import observed_pictures
from upslope.config.config import Config, fresh
from upslope.config.task import environment_of
from upslope.config.trust import require
from upslope.core.arrays import rows_at
from upslope.core.distributions import (  # fmt: skip
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
    Product,
    SquashedGaussian,
)
from upslope.core.estimators import (
    GAE,
    Baseline,
    Estimator,
    GroupMean,
    LeaveOneOut,
    NStep,
    RewardToGo,
    TotalReturn,
    td_error,
)
from upslope.core.files import AnyPath
from upslope.core.types import Rollout, Values
from upslope.environments.registry import EnvironmentLike
from upslope.errors import UpslopeError
from upslope.learning.devices import computing
from upslope.learning.evaluation import evaluate
from upslope.learning.iteration import QUICK, with_clipped_rewards
from upslope.models.agent import Agent
from upslope.models.head import ActionHead
from upslope.models.model import unroll
from upslope.models.product_heads import ProductHead
from upslope.runs.directory import RunDirectory
from upslope.runs.evaluation import (  # fmt: skip
    EVALUATION_SEED,
    RunSeeds,
    cut_lines,
    episodes_of,
    num_cut,
    print_line,
    take,
    trusted_settings,
    with_limit,
)
from upslope.runs.policy import Which, load_agents, require_finite, spaces_of
from upslope.runs.same_spaces import require_same_environment


def estimators_for(config: Config) -> dict[str, Estimator]:
    """The library's estimators in the order of the ladder, with the run's λ and, if it uses n-step returns, its n."""
    steps = sorted({1, 5, config.n} if config.estimator == "n_step" else {1, 5})
    several = [NStep(n) for n in steps]
    estimators = [TotalReturn(), RewardToGo(), Baseline(), *several, GAE(config.lambda_)]
    return {label(e): e for e in estimators}


def label(estimator: Estimator) -> str:
    """The name of an estimator with its parameter: `NStep(5)`, `GAE(0.95)`, `TotalReturn`."""
    settings = ", ".join(f"{x:g}" for x in vars(estimator).values())
    return type(estimator).__name__ + (f"({settings})" if settings else "")


def own_label(config: Config) -> str | None:
    """The label of the estimator that a run was trained with; None for a custom estimator and for imitation.

    An estimator that compares the episodes of a group also gets a label, although it cannot weigh a single episode.
    """
    of_groups = {"leave_one_out": LeaveOneOut, "group_mean": GroupMean}
    if config.estimator in of_groups:
        return f"{of_groups[config.estimator].__name__} in groups of {config.group_size} (it needs the whole group)"
    names = {"total_return": TotalReturn(), "reward_to_go": RewardToGo(), "baseline": Baseline()}
    ours = names | {"n_step": NStep(config.n), "gae": GAE(config.lambda_)}
    return label(ours[config.estimator]) if config.estimator in ours else None


def weigh_all(
    estimators: dict[str, Estimator], rollout: Rollout, values: Values | None, gamma: float
) -> dict[str, np.ndarray]:
    """Compute Ψ [T, N] for each estimator; without values, only for those that need no critic."""
    nothing = jnp.zeros(rollout.reward.shape)
    given = values or Values(nothing, nothing)
    usable = {name: e for name, e in estimators.items() if values is not None or not e.needs_critic}

    def weigh(rollout: Rollout, given: Values) -> dict[str, Any]:
        return {name: e(rollout, given, gamma).weight for name, e in usable.items()}

    found = jax.jit(weigh, compiler_options=QUICK)(rollout, given)
    return {name: np.asarray(found[name], np.float64) for name in usable}


def credit_of(
    run: AnyPath,
    *,
    seed: int | None = None,
    episode_seed: int = 0,
    checkpoint: Which = "last",
    environment: EnvironmentLike | None = None,
    model: Callable[..., Any] | None = None,
    max_episode_steps: int | None = None,
    trust: bool = False,
) -> EpisodeCredit:
    """Play one new episode of a run's agent, with actions sampled as in training, and weigh each action.

    Args:
        run: the run directory.
        seed: one of the run's seeds; by default the first.
        episode_seed: each number gives a different episode.
        checkpoint: `last` or `best`.
        environment, model: needed if they cannot be found by name, as in `upslope.resume`.
        max_episode_steps: the number of steps after which the episode is truncated; by default the run's or the
            environment's limit.
        trust: allow the code that the run's config.json names; registered Gymnasium ids, upslope's own environments and
            runs trained on this machine do not need it.

    Raises:
        UpslopeError: the run, seed or checkpoint does not exist, or the environment cannot be created or is not
            trusted.
    """
    fresh(episode_seed=episode_seed)
    directory = RunDirectory(run)
    config = directory.config()
    seeds = config.seed_list()
    seed = config.seed if seed is None else seed
    if seed not in seeds:
        raise UpslopeError(f"{directory.path} has no seed {seed}; it has {seeds[0]} to {seeds[-1]}.")
    config = with_limit(config, max_episode_steps)
    require(config, directory.path, trust=trust, given=trusted_settings(environment, model))
    made: Any = environment_of(config, environment)
    require_same_environment(directory, made)
    with computing(on_host=not made.is_compiled):
        agents, _ = load_agents(directory, config, checkpoint, model, trust=trust)
        require_finite(agents, seeds.index(seed), seed, directory)
        agent: Agent = rows_at(agents, seeds.index(seed))
        pictures = Pictures()
        played = made if made.is_compiled else watched(made, pictures)
        rollout = play(config, played, agent, seed, episode_seed)
        if agent.head.is_squashed:  # to show the actions in the environment's units
            rollout = rollout._replace(action=agent.head.squashed(rollout.action))
        for line in cut_lines(config, num_cut(config, made, [rollout])):
            print_line(line)
        if made.is_compiled:
            draw_compiled(config, made, rollout, pictures)
        has_critic = bool(directory.read()["axes"].get("needs_critic", True))
        values = values_of(agent, rollout) if has_critic else None
        learned = with_clipped_rewards(rollout, config.clip_rewards)
        image_steps, images = observed_pictures(spaces_of(directory)[0], first_column(rollout.observation))
        influence = influence_of(agent, rollout)
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
            td_error=None if values is None else np.asarray(td_error(learned, values, config.gamma), np.float64)[:, 0],
            weights={n: w[:, 0] for n, w in weigh_all(estimators_for(config), learned, values, config.gamma).items()},
            policy=describe(policies_of(agent, rollout), agent.head),
            action=np.asarray(rollout.action)[:, 0],
            picture_steps=np.asarray([s for s in pictures.steps if s < len(rollout.reward)], np.int64),
            pictures=tuple(x for s, x in zip(pictures.steps, pictures.images, strict=True) if s < len(rollout.reward)),
            picture_note=pictures.note,
            mask=None if rollout.action_mask is None else np.asarray(rollout.action_mask, bool)[:, 0],
            image_steps=image_steps,
            images=images,
            influence=None if influence is None else influence.size,
            influence_steps=None if influence is None else influence.steps,
        )


def first_column(x: Any) -> Any:
    """One episode [T, …] from arrays [T, 1, …]."""
    return jax.tree.map(lambda part: np.asarray(part)[:, 0], x)


def play(config: Config, environment: Any, agent: Agent, seed: int, episode_seed: int) -> Rollout:
    """Play one whole episode [T, 1], without padding."""
    alone = RunSeeds(config, (seed,))
    stacked = jax.tree.map(lambda x: np.asarray(x)[None], agent)
    offset = EVALUATION_SEED * (1 + episode_seed)
    rollout = take(next(iter(episodes_of(alone, environment, stacked, "stochastic", 1, offset))), 0)
    length = int(np.asarray(rollout.valid).sum())
    return jax.tree.map(lambda x: x[:length], rollout)


def policies_of(agent: Agent, rollout: Rollout) -> Distribution:
    """π(·|s_t) at every step of an episode [T]."""

    def policies(agent: Agent, rollout: Rollout) -> Distribution:
        fresh = jnp.zeros(rollout.reward.shape, bool).at[0].set(True)
        features, start = agent.features(rollout.observation), agent.model.start(1)
        policy = unroll(agent.model, features, start, fresh, rollout.action_mask)[0].policy
        return jax.tree.map(lambda x: x[:, 0], policy)

    return jax.jit(policies, compiler_options=QUICK)(agent, rollout)


def values_of(agent: Agent, rollout: Rollout) -> Values:
    """The critic's values in units of the environment's reward, with the learner's scaling undone."""

    def values(agent: Agent, rollout: Rollout) -> Values:
        found, scale = evaluate(agent, rollout), agent.reward_scale()
        return Values(found.value / scale, found.next_value / scale)

    return jax.jit(values, compiler_options=QUICK)(agent, rollout)


def describe(policy: Distribution, head: ActionHead) -> dict[str, np.ndarray]:
    """The parameters of π(·|s_t) that the credit page shows, each [T, …]."""
    if isinstance(policy, Product) and isinstance(head, ProductHead):
        pairs = zip(head.children, policy.parts, strict=True)
        described = {key: describe(part, inner) for (key, inner), part in pairs}
        return {f"{key}/{name}": x for key, mine in described.items() for name, x in mine.items()}
    if isinstance(policy, SquashedGaussian):
        std = jnp.exp(policy.log_std)
        places = {"median": policy.mean, "low": policy.mean - std, "high": policy.mean + std}
        return {name: np.asarray(head.squashed(u)) for name, u in places.items()}
    if isinstance(policy, DiagonalGaussian):
        return {"mean": np.asarray(policy.mean), "std": np.asarray(jnp.exp(policy.log_std))}
    if isinstance(policy, Categorical):
        return {"probability": np.asarray(jnp.exp(policy.log_probs()))}
    if isinstance(policy, Bernoulli):
        return {"probability of 1": np.asarray(jax.nn.sigmoid(policy.logits))}
    assert isinstance(policy, MultiCategorical)
    heads = [np.asarray(jnp.exp(head.log_probs())) for head in policy.heads]
    return {f"probability of choice {k}": p for k, p in enumerate(heads)}
