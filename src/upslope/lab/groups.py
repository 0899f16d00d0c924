"""The effect of dividing by a group's deviation and by an episode's length on a policy gradient, computed exactly.

In a token world, every sequence can be enumerated. The weight of an episode depends only on the returns and lengths
of the episodes in its group, so the expected update is a finite sum over groups with different returns or lengths.
"""

import math
from collections.abc import Sequence
from functools import cache
from itertools import combinations_with_replacement, product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import softmax
from scipy.stats import binom

from upslope.core.estimators import Estimator, GroupMean, LeaveOneOut
from upslope.core.types import Rollout, Values
from upslope.environments.tabular import Tabular
from upslope.environments.tokens import tokens
from upslope.lab.finding import ABOVE_ZERO, BELOW_ZERO, Finding, Line, Outcome, Panel, exactly, mean_of
from upslope.lab.play import quick_jit

LENGTH, PROMPTS = 5, 4
ROUNDING = (-math.inf, 1e-4)
"""Range of differences that count as zero: weights are computed in 32 bits."""
SKILL = (2.0, 8.0, 0.0, 20.0)
"""How well the policy has learned each prompt: the inverse temperature of its preference for the better token."""

GroupEstimator = LeaveOneOut | GroupMean
Vector = Float[np.ndarray, "K"]


class Sequences(NamedTuple):
    """All Q sequences of a prompt under a policy with K logits."""

    probability: Float[np.ndarray, "Q"]
    total: Float[np.ndarray, "Q"]
    """R(τ)."""
    length: Float[np.ndarray, "Q"]
    scores: Float[np.ndarray, "Q T K"]
    """∇log π(a_t|s_t); 0 after the end."""
    values: Float[np.ndarray, "Q T"]
    """The exact V(s_t)."""

    @property
    def score(self) -> Float[np.ndarray, "Q K"]:
        """∇log π(τ) = Σ_t ∇log π(a_t|s_t)."""
        return self.scores.sum(axis=1)

    @property
    def gradient(self) -> Vector:
        """∇E[R(τ)] = Σ_τ P(τ) R(τ) ∇log π(τ)."""
        return (self.probability * self.total) @ self.score

    def solved(self) -> float:
        """The probability of a correct answer."""
        return float(self.probability @ self.total)

    def growth(self, update: Vector, total: float) -> float:
        """How fast the mean length of the sequences with this return grows along the direction of an update."""
        chosen = self.probability * (self.total == total)
        share = chosen.sum()
        excess = self.length - chosen @ self.length / share
        return float((chosen * excess / share) @ self.score @ update / np.linalg.norm(update))


@cache
def world() -> Tabular:
    """A token world with two digits and an end token, at most five tokens, and four prompts."""
    return tokens(2, LENGTH, PROMPTS)


@cache
def paths(prompt: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...], float], ...]:
    """All sequences of a prompt: its states, its actions, and its return."""
    unfinished: list[tuple[tuple[int, ...], tuple[int, ...], float]] = [((begin_of(prompt),), (), 0.0)]
    finished = []
    while unfinished:
        states, actions, total = unfinished.pop()
        if world().terminal[states[-1]]:
            finished.append((states[:-1], actions, total))
            continue
        for action, row in enumerate(world().transition[states[-1]]):
            after = int(row.argmax())
            reward = float(world().reward[states[-1], action, after])
            unfinished.append(((*states, after), (*actions, action), total + reward))
    return tuple(finished)


def begin_of(prompt: int) -> int:
    """The first state of a prompt."""
    return prompt * (len(world().start) // PROMPTS)


def sequences_of(prompt: int, logits: Float[np.ndarray, "O A"]) -> Sequences:
    """The sequences of a prompt under a softmax policy."""
    begin, end = begin_of(prompt), begin_of(prompt + 1)
    policy = softmax(logits, axis=-1)
    value = world().state_values(policy, 1.0, LENGTH)
    shape = len(paths(prompt)), LENGTH
    probability, scores, values = np.ones(shape[0]), np.zeros((*shape, end - begin, policy.shape[1])), np.zeros(shape)
    for number, (states, actions, _) in enumerate(paths(prompt)):
        steps, at = np.arange(len(states)), np.asarray(states)
        probability[number] = policy[at, actions].prod()
        scores[number, steps, at - begin] = np.eye(policy.shape[1])[list(actions)] - policy[at]
        values[number, steps] = value[at]
    return Sequences(
        probability=probability,
        total=np.array([total for *_, total in paths(prompt)]),
        length=np.array([float(len(states)) for states, *_ in paths(prompt)]),
        scores=scores.reshape(*shape, -1),
        values=values,
    )


def a_policy() -> Float[np.ndarray, "O A"]:
    """Logits of a policy that solves some prompts often and others rarely."""
    shape = world().transition.shape[:2]
    uniform = np.full(shape, 1 / shape[1])
    advantage = world().action_values(uniform, 1.0, LENGTH) - world().state_values(uniform, 1.0, LENGTH)[:, None]
    skill = np.append(np.repeat(SKILL, begin_of(1)), 0.0)
    return skill[:, None] * advantage + 0.3 * np.random.default_rng(0).normal(size=shape)


def factors(
    estimator: Estimator, total: Float[np.ndarray, "M G"], length: Float[np.ndarray, "M G"]
) -> Float[np.ndarray, "M G"]:
    """The factor of each episode's Σ_t ∇log π in the update, for M groups with these returns and lengths. Each group is
    a separate batch, and the factors are computed by the estimator itself."""

    def one(total: Float[Array, "G"], length: Float[Array, "G"]) -> Float[Array, "G"]:
        step = jnp.arange(LENGTH)[:, None]
        is_last = step == length - 1
        reward = jnp.where(is_last, total, 0.0)
        rollout = Rollout(reward, reward, reward, is_last, jnp.zeros_like(is_last), reward, reward, step < length)
        # Gradient descent averages over the steps of the batch.
        return estimator(rollout, Values(reward, reward), 1.0).weight[0] / jnp.sum(rollout.valid)

    found = quick_jit(jax.vmap(one))(jnp.asarray(total, jnp.float32), jnp.asarray(length, jnp.float32))
    return np.asarray(found, np.float64)


class Kinds(NamedTuple):
    """The episodes of a prompt by kind (a return and a length), and all groups that differ in the kinds of their
    episodes."""

    total: Float[np.ndarray, "C"]
    length: Float[np.ndarray, "C"]
    others: np.ndarray
    """The kinds of the other G − 1 episodes of a group, as multisets [M, G−1]."""
    counts: np.ndarray
    """How often each kind occurs among them [M, C]."""
    orders: Float[np.ndarray, "M"]
    """The number of distinct orders of each multiset."""


@cache
def kinds_of(prompt: int, group_size: int) -> Kinds:
    """The kinds of episodes of a prompt."""
    kinds = sorted({(total, float(len(states))) for states, _, total in paths(prompt)})
    others = np.array(list(combinations_with_replacement(range(len(kinds)), group_size - 1)))
    counts = np.stack([(others == kind).sum(axis=1) for kind in range(len(kinds))], axis=1)
    repeats = np.vectorize(math.factorial)(counts).prod(axis=1)
    total, length = np.array(kinds).T
    return Kinds(total, length, others, counts, math.factorial(group_size - 1) / repeats)


@cache
def first_factors(estimator: GroupEstimator) -> tuple[Float[np.ndarray, "C M"], ...]:
    """For each prompt, the factor of a group's first episode, by its kind and the multiset of the others' kinds."""
    groups: list[Kinds] = [kinds_of(prompt, estimator.group_size) for prompt in range(PROMPTS)]
    rows = [np.insert(one.others, 0, kind, axis=1) for one in groups for kind in range(len(one.total))]
    owners = [one for one in groups for _ in one.total]
    facts = [
        np.concatenate([getattr(one, name)[row] for one, row in zip(owners, rows, strict=True)])
        for name in ("total", "length")
    ]
    found = iter(np.split(factors(estimator, *facts)[:, 0], np.cumsum([len(row) for row in rows])[:-1]))
    return tuple(np.stack([next(found) for _ in one.total]) for one in groups)


def expected_update(estimator: GroupEstimator, prompt: int, sequences: Sequences) -> Vector:
    """The expected gradient of a batch that is one group of a prompt.

    The episodes of a group are exchangeable, so this is G times the expected contribution of the first one.
    """
    kinds = kinds_of(prompt, estimator.group_size)
    is_kind = (sequences.total == kinds.total[:, None]) & (sequences.length == kinds.length[:, None])
    share = is_kind @ sequences.probability
    probability = kinds.orders * (share**kinds.counts).prod(axis=1)
    score = (is_kind * sequences.probability) @ sequences.score
    return estimator.group_size * (first_factors(estimator)[prompt] @ probability) @ score


def two_kinds(estimator: GroupEstimator) -> Float[np.ndarray, "G 2"]:
    """The factor of an episode, by the number of correct answers among the other G − 1 and by its return, 0 or 1.

    All episodes have one step.
    """
    size = estimator.group_size
    rows = [[own, *[1.0] * right, *[0.0] * (size - 1 - right)] for right in range(size) for own in (0.0, 1.0)]
    return factors(estimator, np.array(rows), np.ones((2 * size, size)))[:, 0].reshape(size, 2)


def weight_of_prompt(estimator: GroupEstimator, solved: Float[np.ndarray, "P"]) -> Float[np.ndarray, "P"]:
    """The factor of ∇J in the expected update of a prompt that is solved with these probabilities."""
    wrong, right = two_kinds(estimator).T
    size = estimator.group_size
    others = binom.pmf(np.arange(size)[:, None], size - 1, solved)
    return size * ((right - wrong) @ others)


def variance_of_groups(size: int, sequences: Sequences) -> float:
    """The variance of the `LeaveOneOut(size)` gradient, summed over components, times the number of episodes.

    E|Σ_i f_i s_i|² = G E[f_1² s_1²] + G (G−1) E[f_1 f_2 s_1·s_2], for scores s and factors f. The expectation is taken
    over the returns of the first two and the number of correct answers among the others.
    """
    solved, right = sequences.solved(), sequences.total == 1
    factor = two_kinds(LeaveOneOut(size))
    weighted = sequences.probability[:, None] * sequences.score
    squares = sequences.probability * (sequences.score**2).sum(axis=1)
    square, score = (np.array([x[~right].sum(axis=0), x[right].sum(axis=0)]) for x in (squares, weighted))
    first = binom.pmf(np.arange(size), size - 1, solved) @ factor**2 @ square
    others = binom.pmf(np.arange(size - 1), size - 2, solved)
    both = sum(
        others @ (factor[b : b + size - 1, a] * factor[a : a + size - 1, b]) * (score[a] @ score[b])
        for a, b in product((0, 1), repeat=2)
    )
    gradient = sequences.gradient
    return float(size * (size * first + size * (size - 1) * both - gradient @ gradient))


def variance_of_critic(sequences: Sequences) -> float:
    """The variance of one episode's gradient with R_t − V(s_t) and the exact V, summed over components."""
    each = np.einsum("qt,qtk->qk", sequences.total[:, None] - sequences.values, sequences.scores)
    return float(sequences.probability @ (each**2).sum(axis=1) - sequences.gradient @ sequences.gradient)


def growths(size: int, policies: int, seed: int) -> Float[np.ndarray, "P 2 2"]:
    """How fast wrong and correct answers grow longer under random policies, along the update that divides by the length
    and along ∇J. Prompts whose correct answers all have the same length are left out."""
    generator, divided = np.random.default_rng(seed), GroupMean(size, divide_by_length="episode")
    found = []
    for _ in range(policies):
        logits = generator.normal(size=world().transition.shape[:2])
        rows = []
        for prompt in range(1, PROMPTS):
            sequences = sequences_of(prompt, logits)
            updates = expected_update(divided, prompt, sequences), sequences.gradient
            rows.append([[sequences.growth(update, total) for update in updates] for total in (0.0, 1.0)])
        found.append(np.mean(rows, axis=0))
    return np.array(found)


def difference(left: Float[np.ndarray, "..."], right: Float[np.ndarray, "..."]) -> float:
    """|left − right| / |right|."""
    return float(np.linalg.norm(left - right) / np.linalg.norm(right))


def cosine(left: Float[np.ndarray, "..."], right: Float[np.ndarray, "..."]) -> float:
    """The cosine of the angle between two vectors."""
    return float(np.vdot(left, right) / np.linalg.norm(left) / np.linalg.norm(right))


def groups(seed: int = 0, size: int = 8, policies: int = 64) -> Outcome:
    """Without divisions, a group's gradient is unbiased. Dividing by the deviation reweights prompts, and dividing by
    the length rotates the gradient."""
    sequences = [sequences_of(prompt, a_policy()) for prompt in range(PROMPTS)]
    estimators = {
        "leave_one_out": LeaveOneOut(size),
        "group_mean": GroupMean(size),
        "by_deviation": GroupMean(size, divide_by_deviation=True),
        "by_batch": GroupMean(size, divide_by_length="batch"),
        "by_length": GroupMean(size, divide_by_length="episode"),
        "by_both": GroupMean(size, divide_by_deviation=True, divide_by_length="episode"),
    }
    exact = np.array([one.gradient for one in sequences])
    update = {
        name: np.array([expected_update(estimator, prompt, one) for prompt, one in enumerate(sequences)])
        for name, estimator in estimators.items()
    }
    degrees = {name: math.degrees(math.acos(min(1.0, cosine(x, exact)))) for name, x in update.items()}
    solved = np.array([one.solved() for one in sequences])
    weight = np.linalg.norm(update["by_deviation"], axis=1) / np.linalg.norm(exact, axis=1)
    middle, hardest, easiest = int(np.argmin(abs(solved - 0.5))), int(np.argmin(solved)), int(np.argmax(solved))
    turned = max(1 - cosine(x, y) for x, y in zip(update["by_deviation"], exact, strict=True))
    grown = growths(size, policies, seed)
    sizes = [2, 3, 4, 8, 16, 32]
    critic = sum(map(variance_of_critic, sequences))
    noise = [sum(variance_of_groups(n, one) for one in sequences) / critic for n in sizes]
    return Outcome(
        findings=(
            Finding("unbiased", exactly(difference(update["leave_one_out"], exact)), ROUNDING),
            Finding("mean", exactly(difference(update["group_mean"], (size - 1) / size * exact)), ROUNDING),
            Finding("variance", exactly(noise[sizes.index(8)]), (1.0, math.inf)),
            Finding("deviation_alone", exactly(turned), ROUNDING),
            Finding("deviation", exactly(min(weight[hardest], weight[easiest]) / weight[middle]), (1.0, math.inf)),
            Finding("length", exactly(degrees["by_length"]), ABOVE_ZERO),
            Finding("wrong", mean_of(grown[:, 0, 0] - grown[:, 0, 1]), ABOVE_ZERO),
            Finding("right", mean_of(grown[:, 1, 0] - grown[:, 1, 1]), BELOW_ZERO),
            Finding("batch", exactly(degrees["by_batch"]), ABOVE_ZERO),
            Finding("batch_less", exactly(degrees["by_batch"] - degrees["by_length"]), BELOW_ZERO),
        ),
        panels=(
            Panel("weights", tuple(weight_lines((4, 8, 64)))),
            Panel("turns", (Line("degrees", list(degrees), list(degrees.values())),), is_bars=True),
            Panel(
                "variance",
                (Line("leave_one_out", sizes, noise), Line("critic", sizes, [1.0] * len(sizes), is_reference=True)),
                log_x=True,
            ),
        ),
        numbers={
            "size": size,
            "policies": policies,
            "middle": 100 * solved[middle],
            "hardest": 100 * solved[hardest],
            "easiest": 100 * solved[easiest],
            "both": degrees["by_both"],
            "shrunk": (size - 1) / size,
        },
    )


def weight_lines(sizes: Sequence[int]) -> list[Line]:
    """The weight that dividing by the deviation gives to a prompt, relative to one whose probability of success is 1/2,
    as a function of that probability."""
    solved = np.linspace(0.02, 0.98, 49)
    lines = []
    for size in sizes:
        weight = weight_of_prompt(GroupMean(size, divide_by_deviation=True), np.append(solved, 0.5))
        lines.append(Line(f"groups_of_{size}", list(solved), weight[:-1] / weight[-1]))
    return [*lines, Line("endless_group", list(solved), 0.5 / np.sqrt(solved * (1 - solved)), is_reference=True)]
