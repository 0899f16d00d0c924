"""Judge a policy from recorded episodes, without running it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from upslope.analysis.judgement import Judged, Judgement
from upslope.analysis.learned_from import learned_from
from upslope.config.config import positive
from upslope.core.arrays import rows_at
from upslope.core.files import AnyPath
from upslope.core.messages import counted
from upslope.core.numbers import half_width
from upslope.core.off_policy import (
    Estimated,
    by_trajectory,
    discounts,
    doubly_robust,
    log_weights,
    per_decision,
    ratio_test,
)
from upslope.core.types import Rollout
from upslope.errors import UpslopeError
from upslope.learning.devices import computing
from upslope.learning.fitted_q import Fitting, Steps, fit, in_blocks_of, spread_of, start_values, usual_iterations
from upslope.models.agent import Agent
from upslope.models.choice_heads import DiscreteHead
from upslope.models.encoders import ObservationEncoder
from upslope.models.model import has_memory, start_memory, unroll
from upslope.runs.datasets import as_learnable, read_recorded
from upslope.runs.directory import RunDirectory
from upslope.runs.minari_datasets import sampled
from upslope.runs.policy import Which, has_masks, load_agents, require_finite, spaces_of

LEAST_EFFECTIVE = 50
"""Minimum number of effective episodes for a weighted estimate. With fewer, the estimate is refused, because its
interval would be too narrow, as `benchmarks/off_policy.py` shows."""
MOST_UNSEEN = 0.05
"""Q is fitted only if the probability, under π, of actions that were never recorded does not exceed this."""
FARTHEST, LEAST_SHIFT = 5.0, 0.01
"""The ratios are rejected if their mean is more than `FARTHEST` standard errors away from 1 and its deviation from 1,
multiplied by the length of an episode, exceeds `LEAST_SHIFT`."""
SETTLED = 0.05
"""Q has not converged if the mean discounted reward per episode that it leaves unexplained exceeds this fraction of the
standard deviation of the returns by more than the sampling error."""
ROWS = 4096
"""Number of rows that are computed in one block."""
SAMPLES = 32
"""Number of actions drawn from π to estimate V̂(s) when the expectation over actions is not a finite sum."""


def judge(
    run: AnyPath,
    *,
    data: str | Path,
    seed: int | None = None,
    checkpoint: Which = "last",
    gamma: float | None = None,
    horizon: int | None = None,
    iterations: int | None = None,
    model: Callable[..., Any] | None = None,
    trust: bool = False,
) -> Judgement:
    """Use episodes recorded by another policy to estimate what a policy would earn (off-policy evaluation).

    The estimators are importance sampling by trajectory and per decision, plain and weighted; fitted Q evaluation; and
    doubly robust estimators. Each gives a number with an interval, or the reason why the data do not allow one. No
    episode is played, and the environment is not created.

    Args:
        run: the run directory.
        data: the recorded episodes: a file written by `upslope.record`, or `minari:NAME`.
        seed: one of the run's seeds; by default the first.
        checkpoint: `last` or `best`.
        gamma: the discount γ; by default the run's. With 1, the return is undiscounted, as in `upslope.evaluate`.
        horizon: number of steps that count, from the start of each episode. By default all steps count, and the fitted
            Q estimates what would have followed in an episode that was cut off.
        iterations: number of regressions that fit Q; by default four horizons 1/(1−γ), but at least 200 and at most
            1,000.
        model: the class or factory of a custom model, if it cannot be found by its name.
        trust: allows importing the custom model that the run's config.json names; nothing else is imported.

    Raises:
        UpslopeError: the run, seed, checkpoint or file does not exist, or the file does not fit the run.
    """
    positive(horizon=horizon, iterations=iterations)
    if horizon is not None and iterations is not None:
        raise UpslopeError(
            "--iterations sets how Q is fitted, but with --horizon no Q is fitted, since Q(s, a) does not "
            "know how many steps are left. Omit one of the two."
        )
    directory = RunDirectory(run)
    config = directory.config()
    seed = config.seed if seed is None else seed
    if seed not in config.seed_list():
        raise UpslopeError(f"{directory.path} has no seed {seed}; it has {config.seed_list()}.")
    gamma = config.gamma if gamma is None else gamma
    if not 0 <= gamma <= 1:
        raise UpslopeError(f"--gamma must be in [0, 1], not {gamma}.")
    encoder, head = spaces_of(directory)
    arrays, meta = read_recorded(data)
    rollout = as_learnable(data, arrays, meta, encoder, head, needs_masks=has_masks(directory))
    with computing(on_host=False):
        agents, _ = load_agents(directory, config, checkpoint, model, trust=trust)
        index = config.seed_list().index(seed)
        require_finite(agents, index, seed, directory)
        agent = rows_at(agents, index)
        networks = {"hidden_sizes": config.hidden_sizes, "activation": config.activation, "encoders": config.encoder}
        learner = learned_from(directory, data)
        case = Case(agent, encoder, rollout, gamma, horizon, networks, seed, learner)
        estimates = case.estimates(iterations)
    notes = [*foreign(meta, config.environment), *case.notes(estimates)]
    return Judgement(
        run=str(run),
        seed=seed,
        checkpoint=checkpoint,
        data=str(data),
        gamma=gamma,
        horizon=horizon,
        episodes=rollout.valid.shape[1],
        steps=int(rollout.valid.sum()),
        truncated=len(case.cut),
        recorded=case.recorded(),
        estimates=estimates,
        notes=tuple(notes),
    )


def foreign(meta: Mapping[str, Any], environment: str) -> list[str]:
    """A note if the episodes come from a different environment than the run's."""
    theirs = meta.get("environment")
    if not isinstance(theirs, str) or theirs.removeprefix("jax:") == environment.removeprefix("jax:"):
        return []
    return [f"recorded in {theirs}, while this policy was trained in {environment}: are they the same?"]


def trained_by(run: str) -> str:
    """Say that the policy was trained on these episodes, and in which run."""
    return f"this policy was trained on these episodes (by {run})"


class Tail(NamedTuple):
    """The fitted values [T, N] of the steps, and V̂ of each episode's final observation [N]."""

    q: np.ndarray
    v: np.ndarray
    final: np.ndarray


@dataclass(frozen=True)
class Case:
    """One policy and the recorded episodes [T, N] from which it is judged."""

    agent: Agent
    encoder: ObservationEncoder
    rollout: Rollout
    gamma: float
    horizon: int | None
    networks: Mapping[str, Any]
    random_seed: int
    learner: str = ""
    """The run that learned from these episodes, if the policy did; see `learned_from`."""

    @property
    def valid(self) -> np.ndarray:
        """The steps that count [T, N]."""
        valid = np.asarray(self.rollout.valid)
        return valid if self.horizon is None else valid[: self.horizon]

    @property
    def reward(self) -> np.ndarray:
        """r_t of the steps that count [T, N]; 0 elsewhere."""
        return np.where(self.valid, np.asarray(self.rollout.reward, np.float64)[: len(self.valid)], 0.0)

    @property
    def cut(self) -> np.ndarray:
        """The episodes whose remainder is unknown, because they were truncated before the end or before the horizon."""
        is_cut = np.asarray(self.rollout.truncated)[: len(self.valid)].any(axis=0)
        if self.horizon is not None:
            is_cut &= self.rollout.valid.sum(axis=0) < self.horizon
        return np.flatnonzero(is_cut)

    @property
    def has_probabilities(self) -> bool:
        """Whether the file gives the probability with which each action was taken."""
        return bool(np.isfinite(np.asarray(self.rollout.behaviour_log_prob)[np.asarray(self.rollout.valid)]).all())

    def recorded(self) -> Judged:
        """The mean discounted return of the recorded steps."""
        returns = discounts(self.reward, self.gamma).sum(axis=0)
        half = half_width(returns)
        return Judged(float(returns.mean()), half if half > 0 else None, float(len(returns)))

    def notes(self, estimates: Mapping[str, Judged]) -> list[str]:
        """Notes on what the numbers are based on."""
        notes = []
        if self.learner:
            notes.append(
                f"{trained_by(self.learner)}, so its estimate on them is too optimistic: judge it on held-out episodes"
            )
        is_fitted = not estimates["fqe"].refusal
        if len(self.cut) and is_fitted and self.rollout.action_mask is None:
            cut = counted(len(self.cut), "truncated episode")
            notes.append(f"{cut} of {self.valid.shape[1]:,} continued by the fitted Q")
        return notes

    def estimates(self, iterations: int | None) -> dict[str, Judged]:
        """The result of each estimator."""
        why_no_q, fitted = self.fitted(iterations)
        found: dict[str, Judged] = {}
        why_no_weights = self.why_no_weights()
        why_no_tail = why_no_weights or self.why_no_tail(why_no_q, fitted)
        log_weight = self.log_weights() if not why_no_tail else np.zeros(self.valid.shape)
        gain = self.reward + self.bootstrap(fitted)
        for name, function in (("is", by_trajectory), ("pdis", per_decision)):
            for prefix, weighted in (("", False), ("w", True)):
                estimate = partial(function, gain, log_weight, self.gamma, weighted=weighted)
                found[prefix + name] = refused(why_no_tail) if why_no_tail else judged(estimate())
        found["fqe"] = refused(why_no_q) if fitted is None else self.by_q(fitted)
        why_no_dr = why_no_tail or why_no_q
        for name, weighted in (("dr", False), ("wdr", True)):
            if why_no_dr or fitted is None:
                found[name] = refused(why_no_dr)
            else:
                found[name] = judged(
                    doubly_robust(self.surprise(fitted), fitted.v[0], log_weight, self.gamma, weighted=weighted)
                )
        return found

    def why_no_weights(self) -> str:
        """Why the ratios π/μ cannot be used; empty if they can."""
        if not self.has_probabilities:
            return "the file does not contain the probability with which each action was taken"
        test = ratio_test(self.log_ratio, self.valid)
        length = self.valid.sum() / self.valid.shape[1]
        if abs(test.z) <= FARTHEST or abs(test.mean - 1) * length <= LEAST_SHIFT:
            return ""
        if test.mean < 1:
            cause = (
                "this policy takes actions that the recorder never takes, or the recorded probabilities are not the "
                "recorder's"
            )
        elif self.learner:
            cause = f"{trained_by(self.learner)}, so it was fitted to their actions; judge it on held-out episodes"
        else:
            cause = (
                "this policy was trained on some of these episodes (then judge it on held-out ones), or the recorded "
                "probabilities are not the recorder's"
            )
        return f"π/μ has the mean {test.mean:.3g} over the steps, {abs(test.z):.0f} standard errors from 1: {cause}"

    def why_no_tail(self, why_no_q: str, fitted: Tail | None) -> str:
        """Why episodes that were cut off cannot be continued; empty if they can, or if there are none."""
        if not len(self.cut):
            return ""
        cut = counted(len(self.cut), "episode")
        if self.horizon is not None:
            least = int(np.asarray(self.rollout.valid).sum(axis=0)[self.cut].min())
            return f"{cut} truncated before the horizon; the shortest after {counted(least, 'step')}"
        remedy = "--horizon counts fewer steps"
        if self.rollout.action_mask is not None:
            return f"{cut} truncated, and the file has no mask of the final observation; {remedy}"
        return "" if fitted is not None else f"{cut} truncated, and nothing continues them: {why_no_q}; {remedy}"

    @cached_property
    def log_ratio(self) -> np.ndarray:
        """log π(a_t|s_t) − log μ(a_t|s_t) [T, N]."""
        ours = log_probabilities(self.agent, self.rollout)[: len(self.valid)]
        theirs = np.asarray(self.rollout.behaviour_log_prob, np.float64)[: len(self.valid)]
        return np.where(self.valid, ours - theirs, 0.0)

    def log_weights(self) -> np.ndarray:
        """log w_t [T, N]."""
        return log_weights(self.log_ratio, self.valid)

    def bootstrap(self, fitted: Tail | None) -> np.ndarray:
        """γ V̂(s_T) at the last step of the episodes that were cut off [T, N]; 0 elsewhere."""
        found = np.zeros(self.valid.shape)
        if fitted is not None and self.horizon is None:
            found[self.valid.sum(axis=0)[self.cut] - 1, self.cut] = self.gamma * fitted.final[self.cut]
        return found

    def surprise(self, fitted: Tail) -> np.ndarray:
        """δ_t = r_t + γ V̂(s_{t+1}) − Q̂(s_t, a_t) [T, N]."""
        following = np.concatenate([fitted.v[1:], np.zeros_like(fitted.v[:1])])
        return np.where(self.valid, self.reward + self.gamma * following + self.bootstrap(fitted) - fitted.q, 0.0)

    def by_q(self, fitted: Tail) -> Judged:
        """The mean V̂ over the first states of the episodes. Its error comes from the fit, and no interval covers it."""
        return Judged(float(fitted.v[0].mean()), None, None)

    def fitted(self, iterations: int | None) -> tuple[str, Tail | None]:
        """The fitted values, or the reason why there are none."""
        if why := self.why_no_q():
            return why, None
        steps, place, drawn = self.steps()
        if why := self.why_unseen(steps, drawn[: len(steps.reward)]):
            return why, None
        episodes = self.valid.shape[1]
        fold_of = np.random.default_rng(self.random_seed).permutation(episodes) % 2
        fitting = Fitting(iterations or usual_iterations(self.gamma, len(self.valid)))
        returns = to_go(self.reward, self.valid, self.gamma)[self.valid.T.nonzero()[::-1]]
        key = jax.random.key(self.random_seed)
        start = start_values(self.encoder, self.agent.head, self.networks, steps, returns, key)
        # The values of each half of the episodes come from the Q that was fitted to the other half.
        kept = self.kept_rows()
        rows = [kept[fold_of[self.episode_of_rows()[kept]] != fold] for fold in range(2)]
        if not min(map(len, rows)):
            return "there are too few steps whose successor is known", None
        values = fit(start, steps, rows, self.gamma, fitting, key)
        tail = self.valued(values, steps, place, fold_of)
        why = self.why_unsettled(tail, spread_of(returns), fitting)
        return (why, None) if why else ("", tail)

    def why_unsettled(self, tail: Tail, spread: float, fitting: Fitting) -> str:
        """Why Q̂ does not explain the recorded rewards; empty if it does. The measure is the mean of Σ_t γ^t δ_t over
        episodes to which Q̂ was not fitted."""
        surprise = self.surprise(tail)
        if self.rollout.action_mask is not None:
            surprise[self.valid.sum(axis=0)[self.cut] - 1, self.cut] = 0.0
        total = discounts(surprise, self.gamma).sum(axis=0)
        error = 2 * float(total.std(ddof=1)) / np.sqrt(len(total))
        if abs(float(total.mean())) - error <= SETTLED * spread:
            return ""
        return (
            f"the fitted Q does not explain the recorded rewards after {counted(fitting.iterations, 'iteration')}, by "
            f"{abs(float(total.mean())):.2g} per episode; use more --iterations"
        )

    def why_no_q(self) -> str:
        """Why no Q can be fitted; empty if one can."""
        if has_memory(self.agent.model):
            return "this policy has a memory, but Q(s, a) sees only one observation"
        if self.horizon is not None:
            return "Q(s, a) does not know how many steps are left until the horizon"
        if self.gamma >= 1 and len(self.cut):
            return "with γ = 1 an episode that was cut off has no end"
        return "" if self.valid.shape[1] > 1 else "one episode cannot be divided into two halves"

    def steps(self) -> tuple[Steps, np.ndarray, np.ndarray]:
        """The recorded steps in one sequence, episode by episode; the index of each step in this sequence [T, N]; and
        an action drawn from π at each state."""
        rollout, valid = self.rollout, self.valid
        length = valid.sum(axis=0)
        starts = np.cumsum(length) - length
        place = np.where(valid, starts + np.arange(len(valid))[:, None], 0)

        def flat(x: Any) -> np.ndarray:
            return np.swapaxes(np.asarray(x), 0, 1)[valid.T]

        def with_final(now: Any, after: Any) -> np.ndarray:
            return np.concatenate([flat(now), np.asarray(after)[length - 1, np.arange(len(length))]])

        states = jax.tree.map(with_final, rollout.observation, rollout.next_observation)
        count = int(length.sum())
        following = np.arange(count) + 1
        following[starts + length - 1] = count + np.arange(len(length))
        mask = None
        if rollout.action_mask is not None:
            allowed = flat(rollout.action_mask)
            mask = np.concatenate([allowed, np.ones((len(length), allowed.shape[1]), bool)])
        policy, drawn = policies(self.agent, states, mask, count + len(length), self.random_seed)
        facts: dict[str, Any] = {
            "action": flat(rollout.action),
            "reward": flat(self.reward).astype(np.float32),
            "terminated": flat(rollout.terminated),
            "following": following.astype(np.int32),
        }
        return Steps(states=states, policy=policy, **facts), place, drawn

    def episode_of_rows(self) -> np.ndarray:
        """The episode of each recorded step, in the order of `steps`."""
        return self.valid.T.nonzero()[0]

    def kept_rows(self) -> np.ndarray:
        """The rows to which Q is fitted: all whose target is known."""
        rows = np.arange(int(self.valid.sum()))
        if self.rollout.action_mask is None:
            return rows
        return rows[~np.swapaxes(np.asarray(self.rollout.truncated), 0, 1)[self.valid.T]]

    def why_unseen(self, steps: Steps, drawn: np.ndarray) -> str:
        """Why the recorded actions reveal too little about the actions that π takes; empty if they reveal enough."""
        head = self.agent.head
        # Actions are compared as the environment receives them, so an action beyond a bound counts as one at the bound.
        recorded, drawn = (sampled(head, head.to_environment(np.asarray(x))) for x in (steps.action, drawn))
        if isinstance(head, DiscreteHead):
            is_unseen = ~np.isin(drawn, np.unique(recorded))
        else:
            is_beyond = (drawn < recorded.min(axis=0)) | (drawn > recorded.max(axis=0))
            is_unseen = is_beyond.reshape(len(recorded), -1).any(axis=1)
        share = float(is_unseen.mean())
        if share <= MOST_UNSEEN:
            return ""
        return (
            f"in {share:.0%} of the states this policy takes an action that was never recorded, or is outside the range"
        )

    def valued(self, values: Any, steps: Steps, place: np.ndarray, fold_of: np.ndarray) -> Tail:
        """Q̂ and V̂ of every step, and V̂ of the final observations, computed with the Q of each episode's fold."""
        states, finals = len(self.episode_of_rows()) + len(fold_of), np.zeros((len(fold_of), *steps.action.shape[1:]))
        action = np.concatenate([steps.action, finals.astype(steps.action.dtype)])
        fold = np.concatenate([fold_of[self.episode_of_rows()], fold_of])
        key = jax.random.key(self.random_seed + 1)

        def both(observation: Any, policy: Any, action: Any, fold: Any, block: Any) -> Any:
            def one(values: Any) -> Any:
                v = values.expected(observation, policy, jax.random.fold_in(key, block[0]), SAMPLES)
                return values.of(observation, action), v

            return jax.tree.map(lambda x: jnp.where(fold == 1, x[1], x[0]), jax.lax.map(one, values))

        q, v = in_blocks_of(ROWS, both, states, steps.states, steps.policy, action, fold, blocks_of(states))
        q, v = q.astype(np.float64), v.astype(np.float64)
        count = len(steps.reward)
        return Tail(*(np.where(self.valid, x[place], 0.0) for x in (q, v)), final=v[count:])


def judged(found: Estimated) -> Judged:
    """Convert an estimate, refusing it if it rests on too few effective episodes."""
    if not found.effective >= LEAST_EFFECTIVE:
        rests = f"{found.effective:.1f}" if np.isfinite(found.effective) else "0"
        return refused(f"it would rest on {rests} effective episodes, fewer than {LEAST_EFFECTIVE}")
    return Judged(found.value, found.half_width(), found.effective)


def refused(why: str) -> Judged:
    """A refused estimate: no number, only the reason."""
    return Judged(None, None, None, why)


def to_go(reward: np.ndarray, valid: np.ndarray, gamma: float) -> np.ndarray:
    """Σ_{k≥t} γ^(k−t) r_k over the recorded remainder of the episode [T, N]."""
    found, following = np.zeros_like(reward), np.zeros(reward.shape[1])
    for t in reversed(range(len(reward))):
        following = np.where(valid[t], reward[t] + gamma * following, 0.0)
        found[t] = following
    return found


def log_probabilities(agent: Agent, rollout: Rollout) -> np.ndarray:
    """log π(a_t|s_t) of every step [T, N]. A policy with memory reads each episode from its start."""
    steps, episodes = rollout.valid.shape
    if has_memory(agent.model):
        size, columns = max(1, ROWS // steps), partial(jax.tree.map, lambda x: np.swapaxes(np.asarray(x), 0, 1))

        def remembered(observation: Any, action: Any, mask: Any) -> Any:
            observation, action, mask = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (observation, action, mask))
            memory = start_memory(agent.model, action.shape[1])
            fresh = jnp.zeros(action.shape[:2], bool).at[0].set(True)
            policy = unroll(agent.model, agent.features(observation), memory.carry, fresh, mask)[0].policy
            return jnp.swapaxes(policy.log_prob(action), 0, 1)

        inputs = columns((rollout.observation, rollout.action, padded_mask(rollout)))
        return in_blocks_of(size, remembered, episodes, *inputs).T.astype(np.float64)

    def at_once(observation: Any, action: Any, mask: Any) -> Any:
        return agent.policy(observation, mask).log_prob(action)

    flat = jax.tree.map(
        lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), (rollout.observation, rollout.action, padded_mask(rollout))
    )
    found = in_blocks_of(ROWS, at_once, steps * episodes, *flat)
    return np.asarray(found, np.float64).reshape(steps, episodes)


def padded_mask(rollout: Rollout) -> Any:
    """The rollout's masks, with every action allowed in the padding."""
    mask = rollout.action_mask
    return None if mask is None else np.asarray(mask) | ~np.asarray(rollout.valid)[..., None]


def policies(agent: Agent, states: Any, mask: Any, count: int, random_seed: int) -> tuple[Any, np.ndarray]:
    """π(·|s) at each state, as NumPy arrays, and an action drawn from it."""
    key = jax.random.key(random_seed)

    def one(observation: Any, mask: Any, block: Any) -> Any:
        policy = agent.policy(observation, mask)
        return policy, policy.choose(policy.noise(jax.random.fold_in(key, block[0])))

    return in_blocks_of(ROWS, one, count, states, mask, blocks_of(count))


def blocks_of(count: int) -> np.ndarray:
    """The number of the block in which each row is computed."""
    return (np.arange(count) // ROWS).astype(np.int32)
