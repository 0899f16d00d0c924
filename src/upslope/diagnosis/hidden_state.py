"""Test whether an observation determines the state, by searching for what only the past reveals about the next step.

In a Markov decision process, (o_{t+1}, r_t, end) depends only on (o_t, a_t). If earlier observations help to predict
it, the observation leaves out part of the state, and a memory can recover it. Randomness is not evidence of a hidden
state: it makes the next step uncertain, but the past does not reduce that uncertainty.

There are two tests. If the same observation and action recur, a permutation test checks whether the outcome depends on
what was seen before. Otherwise, kernel ridge regression predicts the change of the observation in held-out episodes,
with and without the past. Both tests require a large effect, so they would rather miss a hidden state than raise a
false alarm.
"""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from gymnasium import spaces

from upslope.diagnosis.trials import Trial
from upslope.models.encoders import ObservationEncoder

ROWS = 800
"""Number of steps used by the regression, whose running time grows with the cube of this number."""
SKETCH, COMPONENTS = 512, 16
"""Large observations are reduced to `SKETCH` random sums of features, and these sums to `COMPONENTS` principal
components."""
SHUFFLES = 100
FEW = 30
"""With fewer recurring steps or held-out rows, there is no verdict."""
CLEAR = 8.0
"""The number of standard deviations by which the dependence on the past must exceed the dependence on shuffled
pasts."""
LARGE = 0.1
"""The share of the uncertainty about the next step that the past must resolve if observations recur."""
UNEXPLAINED, LEFT = 0.3, 0.33
"""The current observation must leave at least the share `UNEXPLAINED` of the change unexplained, and the past may leave
at most the fraction `LEFT` of that share."""
WIDTHS, RIDGES = (0.5, 1.0, 2.0), (1e-6, 1e-3, 1e-1)
"""Kernel widths relative to the median distance, and ridge penalties; the best pair is used."""


@dataclass(frozen=True)
class Steps:
    """The steps of a trial that are not the first of their episode, with the outcome of each."""

    now: np.ndarray
    """Index of o_t among the trial's observations [n]."""
    action: np.ndarray
    """Index of a_t among its actions [n]."""
    first: np.ndarray
    """Index of the first observation of the episode [n]."""
    episode: np.ndarray
    """The episode's number [n]."""
    end: np.ndarray
    """Whether a_t terminated the episode [n]."""


@dataclass(frozen=True)
class Suspicion:
    """The result of the search."""

    words: str
    is_hidden: bool = False
    """Whether the past reveals what the current observation does not."""
    is_decided: bool = True


def steps_of(trial: Trial) -> Steps:
    """All steps of a trial except the first of each episode, which has no past."""
    lengths = [*trial.lengths, *([trial.unfinished] if trial.unfinished else [])]
    ended = [*trial.terminated, False]
    now, action, first, episode, end = [], [], [], [], []
    observed = acted = 0
    for number, length in enumerate(lengths):
        inner = np.arange(1, length)
        now.append(observed + inner)
        action.append(acted + inner)
        first.append(np.full(len(inner), observed))
        episode.append(np.full(len(inner), number))
        end.append((inner == length - 1) & ended[number])
        observed, acted = observed + length + 1, acted + length
    return Steps(*(np.concatenate(x) if x else np.zeros(0, int) for x in (now, action, first, episode, end)))


def memory_test(trial: Trial, encoder: ObservationEncoder, action_space: spaces.Space) -> Suspicion:
    """Search a trial for signs that the past reveals what the current observation does not."""
    steps = steps_of(trial)
    recurring, shares = recurrence_test(trial, steps)
    for past, share in shares.items():
        if share >= LARGE:
            words = (
                f"the same observation and action led to different next steps, and {past} reveals which: it resolves "
                f"{share:.0%} of that uncertainty"
            )
            return Suspicion(words, is_hidden=True)
    if recurring >= 0.5 * len(steps.now) and recurring >= FEW:
        words = f"in {recurring:,} steps whose observation and action recurred, the past added nothing"
        return Suspicion(f"no need for a memory was found: {words}")
    found = regression_test(trial, steps, encoder, action_space)
    if found is None:
        words = f"cannot be decided from these {len(steps.now):,} steps: too few, not finite, or without any change"
        return Suspicion(words, is_decided=False)
    name, past, present, remembered = found
    if present >= UNEXPLAINED and remembered <= LEFT * present:
        words = (
            f"observation and action leave {present:.0%} of the change of {name} unexplained, but with "
            f"{past} only {remembered:.0%}"
        )
        return Suspicion(words, is_hidden=True)
    words = f"observation and action leave {present:.0%} of the change of {name} unexplained"
    return Suspicion(f"no need for a memory was found: {words}, and with {past} {remembered:.0%}")


PREVIOUS, FIRST = "the step before", "the first observation of the episode"


def codes(*columns: Any) -> np.ndarray:
    """An index for each row of these columns; equal rows have equal indices."""
    rows = np.stack([np.unique(x, return_inverse=True)[1].ravel() for x in columns], axis=1)
    return np.unique(rows, axis=0, return_inverse=True)[1].ravel()


def numbered(several: list[Any]) -> np.ndarray:
    """An index for each observation or action; equal ones have equal indices."""
    known: dict[bytes, int] = {}
    parts = (b"|".join(np.asarray(x).tobytes() for x in jax.tree.leaves(each)) for each in several)
    return np.asarray([known.setdefault(each, len(known)) for each in parts])


def recurrence_test(trial: Trial, steps: Steps) -> tuple[int, dict[str, float]]:
    """The number of steps that recur, and the share of the uncertainty that each kind of past resolves. The share is 0
    unless it far exceeds chance."""
    if len(steps.now) < FEW:
        return 0, {}
    seen, acted = numbered(trial.observations), numbered(trial.actions)
    reward = np.asarray(trial.rewards)[steps.action]
    group = codes(seen[steps.now], acted[steps.action])
    recurring = np.bincount(group)[group] > 1
    pasts = {PREVIOUS: codes(seen[steps.now - 1], acted[steps.action - 1]), FIRST: seen[steps.first]}
    found = dict.fromkeys(pasts, 0.0)
    for outcome in (codes(seen[steps.now + 1], steps.end), codes(reward)):
        for name, past in pasts.items():
            share = resolved(group[recurring], past[recurring], outcome[recurring])
            found[name] = max(found[name], share)
    return int(recurring.sum()), found


def resolved(group: np.ndarray, past: np.ndarray, outcome: np.ndarray) -> float:
    """The share of H(outcome | group) that the past resolves in excess of shuffled pasts; 0 unless it is `CLEAR`."""
    varies = np.bincount(group, minlength=1)[group] > 1
    if not varies.any():
        return 0.0
    uncertain = np.isin(group, group[differing(group, outcome)])
    group, past, outcome = (np.unique(x[uncertain], return_inverse=True)[1] for x in (group, past, outcome))
    if len(group) < FEW:
        return 0.0
    uncertainty = entropy(codes(group, outcome)) - entropy(group)

    def left(past: np.ndarray) -> float:
        """H(outcome | group, past)."""
        inside = group * (past.max() + 1) + past
        return entropy(inside * (outcome.max() + 1) + outcome) - entropy(inside)

    draw = np.random.default_rng(0)
    order = np.argsort(group, kind="stable")
    shuffled = [left_after_shuffle(left, group, past, order, draw) for _ in range(SHUFFLES)]
    gain = np.mean(shuffled) - left(past)
    return float(gain / uncertainty) if gain > CLEAR * np.std(shuffled) + 1e-9 else 0.0


def left_after_shuffle(left: Any, group: np.ndarray, past: np.ndarray, order: np.ndarray, draw: Any) -> float:
    """`left` with the pasts shuffled within each group."""
    mixed = np.empty_like(past)
    mixed[order] = past[np.lexsort((draw.random(len(group)), group))]
    return left(mixed)


def differing(group: np.ndarray, outcome: np.ndarray) -> np.ndarray:
    """Where the outcome differs from the first outcome in its group."""
    first = np.full(group.max() + 1, -1)
    first[group[::-1]] = outcome[::-1]
    return outcome != first[group]


def entropy(values: np.ndarray) -> float:
    """The empirical entropy of numbers, in nats."""
    counts = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(counts * np.log(counts)).sum())


def regression_test(
    trial: Trial, steps: Steps, encoder: ObservationEncoder, action_space: spaces.Space
) -> tuple[str, str, float, float] | None:
    """The target whose prediction gains most from the past: its name, the kind of past, and the shares of its variance
    that remain unexplained without and with that past. None if there are too few steps, or if some values are not
    finite."""
    chosen = np.unique(np.linspace(0, max(len(steps.now) - 1, 0), ROWS).astype(int)) if len(steps.now) else []
    if len(chosen) < 4 * FEW:
        return None
    now, action, first = steps.now[chosen], steps.action[chosen], steps.first[chosen]
    held_out = held_out_rows(steps.episode[chosen])
    needed, place = np.unique(np.concatenate([now - 1, now, now + 1, first]), return_inverse=True)
    inputs, targets = features_of([trial.observations[i] for i in needed], encoder)
    before, here, after, start = np.split(place, 4)
    if not np.isfinite(inputs).all():
        return None
    acted = action_features(trial.actions, action_space)
    goals = {name: x[after] - x[here] for name, x in targets.items()}
    goals["the reward"] = np.asarray(trial.rewards)[action, None]
    present = [inputs[here], acted[action]]
    pasts = {PREVIOUS: [inputs[before], acted[action - 1]]}
    if len(np.unique(steps.episode[chosen])) >= 2 * EPISODES:
        pasts[FIRST] = [inputs[start]]
    names, columns = spread_out(goals, held_out)
    if not names:
        return None
    alone = unexplained(present, columns, held_out)
    best = ("", "", 1.0, 1.0)
    for past, more in pasts.items():
        left = unexplained([*present, *more], columns, held_out)
        gains = np.where(alone >= UNEXPLAINED, alone / np.maximum(left, 1e-6), 0.0)
        k = int(np.argmax(gains)) if gains.any() else int(np.argmax(alone))
        if not best[0] or alone[k] / max(left[k], 1e-6) > best[2] / max(best[3], 1e-6):
            best = (names[k], past, float(alone[k]), float(left[k]))
    return best


ROUNDING = 1e-5
"""Deviations below this fraction of a number's magnitude are treated as rounding errors."""
EPISODES = 4
"""With fewer episodes, the last steps are held out instead of whole episodes."""


def held_out_rows(episode: np.ndarray) -> np.ndarray:
    """The rows that test the prediction: a third of the episodes, or the last third of the steps."""
    numbers = np.unique(episode)
    if len(numbers) < EPISODES:
        return np.arange(len(episode)) >= 2 * len(episode) // 3
    return np.isin(episode, numbers[2::3])


def spread_out(goals: dict[str, np.ndarray], held_out: np.ndarray) -> tuple[list[str], np.ndarray]:
    """The columns that vary by more than rounding errors in both the held-out rows and the others, standardised.
    Outliers are clipped at 3 σ, since they would dominate otherwise."""
    names = [name for name, x in goals.items() for _ in range(x.shape[1])]
    columns = np.concatenate(list(goals.values()), axis=1).astype(np.float64)
    size, centred = columns.std(axis=0), columns - columns.mean(axis=0)
    least = np.minimum(centred[held_out].std(axis=0), centred[~held_out].std(axis=0))
    varies = (size > ROUNDING * np.abs(columns).max(axis=0)) & (least > 1e-3 * size)
    kept = np.flatnonzero(varies)
    return [names[k] for k in kept], np.clip(centred[:, kept] / size[kept], -3, 3)


def unexplained(inputs: list[np.ndarray], targets: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """The share of each target's variance that the best kernel ridge regression leaves unexplained on held-out rows."""
    x = np.concatenate(inputs, axis=1)
    train, test = ~held_out, held_out
    squares = np.maximum((x**2).sum(1)[:, None] + (x**2).sum(1)[None] - 2 * x @ x.T, 0.0)
    typical = np.median(squares[train][:, train])
    linear = x @ x.T / max(typical, 1e-12) + 1.0
    y, mean = targets[train], targets[train].mean(axis=0)
    variance = targets[test].var(axis=0)
    best = np.ones(targets.shape[1])
    for width in WIDTHS:
        kernel = np.exp(-squares / max(width**2 * typical, 1e-12)) + 0.1 * linear
        values, vectors = np.linalg.eigh(kernel[train][:, train])
        rotated, across = vectors.T @ (y - mean), kernel[test][:, train] @ vectors
        for ridge in RIDGES:
            predicted = mean + across @ (rotated / (np.maximum(values, 0) + ridge * train.sum() * 1e-1)[:, None])
            best = np.minimum(best, ((targets[test] - predicted) ** 2).mean(axis=0) / variance)
    return best


def features_of(observations: list[Any], encoder: ObservationEncoder) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The features of observations that serve as predictors [n, D], and the features to predict, by descriptive
    name."""
    stacked = jax.tree.map(lambda *x: np.stack(x), *observations)
    inputs, targets = [], {}
    for key, part, x in encoder.leaves(stacked):
        whole = np.asarray(part.encode(x), np.float64) if part.num_features <= SKETCH else sketch(part, x)
        whole = whole - whole.mean(axis=0)
        inputs.append(whole / scale_of(whole, part))
        place = f"observation `{key}`" if key else "observation"
        components = principal(whole)
        is_small = 1 < components.shape[1] == whole.shape[1]
        columns = {f"number {k} of the {place}": components[:, k : k + 1] for k in range(whole.shape[1] * is_small)}
        targets |= columns or {f"the {place}": components}
    joined = np.concatenate(inputs, axis=1)
    return joined[:, joined.std(axis=0) > 0], targets


def scale_of(x: np.ndarray, part: ObservationEncoder) -> Any:
    """The divisor of a part's features: the standard deviation of each number, or a common one for an image."""
    if part.normalised is not None and part.num_features <= SKETCH:
        return np.where(x.std(axis=0) > 0, x.std(axis=0), 1.0)
    return max(float(np.sqrt(x.var(axis=0).sum())), 1e-12)


def sketch(part: ObservationEncoder, x: np.ndarray) -> np.ndarray:
    """Random signed sums of many features, which preserve distances (a count sketch, Charikar et al. 2002)."""
    draw = np.random.default_rng(0)
    buckets = np.sort(draw.integers(SKETCH, size=part.num_features))
    order, signs = draw.permutation(part.num_features), draw.choice([-1.0, 1.0], part.num_features)
    starts = np.unique(buckets, return_index=True)[1]
    chunks = np.array_split(x, max(len(x) // 100, 1))
    return np.concatenate(
        [np.add.reduceat(np.asarray(part.encode(c))[:, order] * signs, starts, axis=1) for c in chunks]
    )


def principal(x: np.ndarray) -> np.ndarray:
    """The principal components of many features; few features are returned as they are."""
    if x.shape[1] <= COMPONENTS:
        return x
    return x @ np.linalg.eigh(x.T @ x)[1][:, : -COMPONENTS - 1 : -1]


def action_features(actions: list[Any], space: spaces.Space) -> np.ndarray:
    """The features of actions [n, D], with those of all parts concatenated."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        inner = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        return np.concatenate([action_features([one[k] for one in actions], part) for k, part in inner], axis=1)
    return one_hot(np.stack(actions), space)


def one_hot(actions: np.ndarray, space: spaces.Space) -> np.ndarray:
    """Actions as features [n, K]: continuous actions as numbers, all others one-hot."""
    flat = actions.reshape(len(actions), -1).astype(np.float64)
    if isinstance(space, spaces.Box):
        return flat / np.where(flat.std(axis=0) > 0, flat.std(axis=0), 1.0)
    return np.concatenate([(x[:, None] == np.unique(x)).astype(np.float64) for x in flat.T], axis=1)
