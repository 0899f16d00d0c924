"""The intrinsic stream: a bonus that is credited like a reward, but separately from the environment's rewards.

    act     facts keep the environment's rewards
    weigh   a copy of the facts, with the bonus as reward → the same estimator, with its own γ and critic;
            Ψ = Ψ of the environment's rewards + coefficient · Ψ of the bonus
    move    the intrinsic critic descends together with the other groups

Source: Burda et al. (2019), Exploration by Random Network Distillation, https://arxiv.org/abs/1810.12894, section 2.3.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import equinox
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from upslope.core.estimators import Estimator
from upslope.core.messages import told
from upslope.core.types import Credit, Metrics, Rollout, Values, successor_of
from upslope.environments.compiled import shown
from upslope.errors import UpslopeError
from upslope.learning.batch import beginnings
from upslope.learning.bonuses.bonus import Bonus, Setting, flat_rows, valid_rows
from upslope.learning.evaluation import evaluate
from upslope.learning.fitting import Examples, Fitted, begin_fitting, fit
from upslope.learning.own_parts import called, is_full_float, is_integer, is_own, traced
from upslope.learning.returns import discounted_returns
from upslope.learning.update import Update, explained_variance, mean, squared_error
from upslope.models.agent import Agent, returns_seen
from upslope.models.build import networks_for
from upslope.models.model import Memory
from upslope.models.normaliser import RunningStatistics


@dataclass(frozen=True)
class Intrinsic:
    """The settings of an intrinsic stream."""

    bonus: Bonus
    coefficient: float
    """The weight of the bonus's Ψ relative to that of the environment's rewards."""
    gamma: float
    """γ of intrinsic returns."""
    is_episodic: bool = False
    """Whether intrinsic returns end with the episode. If not, they continue into the next episode, so the end of an
    episode costs only the bonus that is missed on the way back."""


class Stream(NamedTuple):
    """The complete state of an intrinsic stream."""

    bonus: Any
    """The state of the bonus."""
    critic: Fitted | None
    """The intrinsic critic; None if the estimator reads no values."""
    statistics: RunningStatistics
    """Statistics of the discounted intrinsic return, which determine the scale of the bonus."""
    discounted_return: Float[Array, "N"]
    target: Float[Array, "T N"] | None = None
    """The intrinsic critic's target, which `weigh` computes and `move` uses."""


def begin_stream(intrinsic: Intrinsic, setting: Setting, update: Update, key: PRNGKeyArray) -> Stream:
    """The state before the first step."""
    bonus_key, critic_key = jax.random.split(key)
    critic = None
    if update.needs_critic:
        critic = begin_fitting(networks_for(setting.model, 1, critic_key), update.optimiser)
    start = started(intrinsic.bonus, setting, bonus_key)
    return Stream(start, critic, RunningStatistics.start(()), jnp.zeros(setting.num_envs))


def started(bonus: Bonus, setting: Setting, key: PRNGKeyArray) -> Any:
    """The state of the bonus before the first step.

    Raises:
        UpslopeError: a user's own bonus raised an exception.
    """
    try:
        return bonus.start(setting, key)
    except UpslopeError:
        raise
    except Exception as error:
        if not is_own(bonus):
            raise
        name = called("bonus", bonus)
        raise UpslopeError(f"{name} raised {told(error)} in start(setting, key). Correct it.") from error


def check_bonus(bonus: Bonus, state: Any, rollout: Rollout) -> None:
    """Trace a user's own bonus once with the shapes of a rollout [T, N], so that mistakes are reported before training.

    Raises:
        UpslopeError: it raises an exception, or returns values that do not fit.
    """
    if not is_own(bonus):
        return
    name, key = called("bonus", bonus), jax.eval_shape(lambda: jax.random.key(0))
    if others := [x for x in jax.tree.leaves(state) if not equinox.is_array_like(x)]:
        raise UpslopeError(
            f"{name} returned a state with {others[0]!r:.60} from start(); a state contains only arrays."
        )
    _, after = traced(partial(paid_by, bonus), name, "it", rollout, rollout.valid, state, key)
    metrics = traced(bonus.measured, name, "its measured()", after)
    if not isinstance(metrics, dict) or any(getattr(x, "shape", None) != () for x in metrics.values()):
        raise UpslopeError(
            f"{name} returned {shown(metrics)} from measured(); it must return a dictionary of single numbers, whose "
            "names begin with `bonus/`."
        )


def weigh_bonus(
    intrinsic: Intrinsic,
    estimator: Estimator,
    update: Update,
    stream: Stream,
    agent: Agent,
    memory: Memory,
    rollout: Rollout,
    values: Values,
    credit: Credit,
    key: PRNGKeyArray,
) -> tuple[Stream, Credit, Metrics]:
    """The credit with the bonus's Ψ added, and the stream with the intrinsic critic's target.

    `values` and `credit` refer to the environment's rewards.
    """
    begins = beginnings(rollout, memory)
    paid, bonus = paid_by(intrinsic.bonus, rollout, begins, stream.bonus, key)
    stream = stream._replace(bonus=bonus)
    copy = rollout._replace(reward=jnp.where(rollout.valid, paid, 0.0))
    joined = None if intrinsic.is_episodic else joined_steps(rollout.valid)
    copy = copy if joined is None else without_ends(copy, joined)
    metrics = {
        "bonus/mean": mean(paid, rollout.valid),
        "bonus/max": jnp.max(jnp.where(rollout.valid, paid, 0.0)),
    }
    if not intrinsic.bonus.has_unit:
        discounted, carry = discounted_returns(intrinsic.gamma, stream.discounted_return, copy)
        if estimator.whole_episodes:
            carry = jnp.zeros_like(carry)
        elif joined is not None:
            carry = last_of(discounted, copy.valid, stream.discounted_return)
        statistics = returns_seen(stream.statistics, copy.reward, discounted, copy.valid)
        stream = stream._replace(statistics=statistics, discounted_return=carry)
        scale = jnp.where(statistics.variance > 0, 1 / jnp.sqrt(statistics.variance + 1e-8), 1.0)
        copy, metrics["bonus/scale"] = copy._replace(reward=copy.reward * scale), scale
    ours = intrinsic_values(stream, agent, rollout, begins, update, joined)
    log_prob = values.log_prob
    if joined is not None and log_prob is not None:
        log_prob = joined.together(log_prob)
    own = estimator(copy, ours._replace(log_prob=log_prob), intrinsic.gamma)
    if stream.critic is not None:
        metrics["bonus/explained_variance"] = explained_variance(ours.value, own.target, copy.valid)
    if joined is not None:
        own = own._replace(weight=joined.apart(own.weight), target=joined.apart(own.target))
    added = intrinsic.coefficient * own.weight
    metrics["bonus/share"] = share_of(added, credit.weight, rollout.valid)
    stream, credit = stream._replace(target=own.target), credit._replace(weight=credit.weight + added)
    return stream, credit, metrics | intrinsic.bonus.measured(bonus)


def paid_by(
    bonus: Bonus, rollout: Rollout, begins: Bool[Array, "T N"], state: Any, key: PRNGKeyArray
) -> tuple[Float[Array, "T N"], Any]:
    """The intrinsic rewards that the bonus computes, and its state afterwards.

    Raises:
        UpslopeError: it returns something else, or their shapes or dtypes are wrong.
    """
    returned = bonus(rollout, begins, state, key)
    name, wanted = type(bonus).__name__, rollout.reward.shape
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise UpslopeError(
            f"The bonus {name} returned {shown(returned)}; it must return (rewards, state): the reward of each step, "
            f"[T, N] = {wanted}, and the state after the rollout. Without a state of its own, it returns the one that "
            "it was given."
        )
    paid, after = returned
    if paid is None or jnp.shape(paid) != wanted:
        raise UpslopeError(
            f"The bonus {name} returned the rewards {shown(paid)}; an array of shape [T, N] = {wanted} is needed, with "
            "one reward for each step. Sum or average any further axes."
        )
    if is_own(bonus) and not (is_full_float(dtype := jnp.asarray(paid).dtype) or is_integer(dtype)):
        raise UpslopeError(
            f"The bonus {name} returned the rewards {shown(paid)}; float32 is needed, since a silent conversion could "
            "change the numbers. Convert them with .astype(jnp.float32)."
        )
    if kinds_of(after) != kinds_of(state):
        raise UpslopeError(
            f"The bonus {name} returned a state whose arrays differ from those it was given: {kinds_of(after)[1]}, not "
            f"{kinds_of(state)[1]}. Shapes and dtypes of a state must never change."
        )
    return jnp.asarray(paid, jnp.float32), after


def kinds_of(state: Any) -> tuple[Any, list[str]]:
    """The structure of a state, and the type of each of its arrays in the form `float32[2, 3]`."""
    leaves, structure = jax.tree.flatten(state)
    return structure, [f"{jnp.result_type(x)}{list(jnp.shape(x))}" for x in leaves]


class Joined(NamedTuple):
    """An order of steps in which a return continues from one episode to the next.

    In each column, the valid steps come first, in chronological order, followed by the steps that did not happen."""

    order: Int[Array, "T N"]
    """The step at each position."""
    place: Int[Array, "T N"]
    """The position of each step."""

    def together(self, x: Shaped[Array, "T N ..."]) -> Shaped[Array, "T N ..."]:
        """Rearrange an array from the rollout's order into this order."""
        return x[self.order, jnp.arange(self.order.shape[1])]

    def apart(self, x: Shaped[Array, "T N ..."]) -> Shaped[Array, "T N ..."]:
        """Rearrange an array from this order into the rollout's order."""
        return x[self.place, jnp.arange(self.place.shape[1])]


def joined_steps(valid: Bool[Array, "T N"]) -> Joined:
    """The order that joins the episodes of a rollout."""
    place = jnp.where(valid, jnp.cumsum(valid, axis=0), jnp.sum(valid, axis=0) + jnp.cumsum(~valid, axis=0)) - 1
    steps, columns = valid.shape
    order = jnp.zeros_like(place).at[place, jnp.arange(columns)].set(jnp.arange(steps)[:, None])
    return Joined(order, place)


def without_ends(rollout: Rollout, joined: Joined) -> Rollout:
    """Copy the rollout into the joined order, and remove the ends of episodes, so that returns continue across them."""
    # No sum may stop at the step that some vector environments spend on a reset between two episodes. XLA omits the
    # arrays that the estimator does not read.
    copy = jax.tree.map(joined.together, rollout._replace(next_observation=successor_of(rollout)))
    none = jnp.zeros_like(copy.terminated)
    return copy._replace(terminated=none, truncated=none)


def last_of(x: Float[Array, "T N"], valid: Bool[Array, "T N"], otherwise: Float[Array, "N"]) -> Float[Array, "N"]:
    """The value at the last valid step of each column, in the joined order; `otherwise` where no step is valid."""
    count = jnp.sum(valid, axis=0)
    return jnp.where(count > 0, x[count - 1, jnp.arange(len(count))], otherwise)


def intrinsic_values(
    stream: Stream, agent: Agent, rollout: Rollout, begins: Bool[Array, "T N"], update: Update, joined: Joined | None
) -> Values:
    """V(s_t) and V(s_{t+1}) of the intrinsic critic, or 0 if there is none; in the joined order if one is given.

    Unless the return ends with the episode, V after an episode's end is the value of the next episode's first state. At
    the last step, where that state is unknown, V is the mean over the first states in the rollout, if there are any.
    """
    if stream.critic is None:
        return Values(jnp.zeros_like(rollout.reward), jnp.zeros_like(rollout.reward))
    values = evaluate(as_critic(agent, stream.critic), rollout, vmapped=update.vmapped)
    if joined is None:
        return values
    begun, ended = begins & rollout.valid, rollout.terminated | rollout.truncated
    mean_of_first = mean(values.value, begun)
    value, next_value, ended, valid = map(joined.together, (values.value, values.next_value, ended, rollout.valid))
    unknown = jnp.where(jnp.any(begun), mean_of_first, next_value)
    is_known = jnp.concatenate([valid[1:], jnp.zeros_like(valid[:1])])
    following = jnp.where(is_known, jnp.concatenate([value[1:], value[:1]]), unknown)
    return values._replace(value=value, next_value=jnp.where(ended & valid, following, next_value))


def as_critic(agent: Agent, critic: Fitted) -> Agent:
    """The agent with the intrinsic critic as its model, so that the critic reads observations as the agent does."""
    return dataclasses.replace(agent, model=critic.networks)


def share_of(added: Float[Array, "T N"], others: Float[Array, "T N"], valid: Bool[Array, "T N"]) -> Float[Array, ""]:
    """The bonus's share of the magnitude of Ψ: E|bonus| / (E|bonus| + E|environment|)."""
    mine, theirs = mean(jnp.abs(added), valid), mean(jnp.abs(others), valid)
    return mine / jnp.maximum(mine + theirs, 1e-12)


def fit_critic(
    stream: Stream,
    update: Update,
    agent: Agent,
    rollout: Rollout,
    key: PRNGKeyArray,
    learning_rate: Any,
) -> tuple[Stream, Metrics]:
    """Fit the intrinsic critic to the stream's target, like the critic of the environment's rewards."""
    target, stream = stream.target, stream._replace(target=None)
    if stream.critic is None or target is None:
        return stream, {}
    reader = as_critic(agent, stream.critic)
    valid = rollout.valid.reshape(-1)
    features = valid_rows(reader.features(flat_rows(rollout.observation)), valid)

    def loss(critic: Any, examples: Examples) -> Float[Array, "B"]:
        return squared_error(critic.value(examples.features), examples.weight)

    examples = Examples(features, target.reshape(-1), valid)
    critic, metrics = fit(stream.critic, update.plan(update.critic_epochs), loss, examples, key, learning_rate)
    return stream._replace(critic=critic), {"bonus/critic_loss": metrics["loss"]}
