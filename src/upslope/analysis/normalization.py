"""Normalise the scores of several environments to one scale, and average them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from upslope.analysis.across_environments import mean_estimate, profile, stratified_iqm, stratified_mean
from upslope.analysis.comparison import Aggregate, Group, Improvement, Profile, Reference
from upslope.config.config import Config
from upslope.core.messages import COMPILED_PREFIX
from upslope.core.numbers import number
from upslope.core.their_folder import TheirFolder
from upslope.errors import UpslopeError

Normalize = Literal["threshold", "range"]
RANDOM_EPISODES = 50
"""Number of random-policy episodes whose mean return is normalised to 0."""
MAX_EPISODE_LENGTH = 10_000
"""Maximum length of a random-policy episode."""
NUM_THRESHOLDS = 101
"""Number of points in a performance profile."""


@dataclass(frozen=True)
class Normalised:
    """Results aggregated over all environments."""

    references: tuple[Reference, ...] = ()
    improvements: tuple[Improvement, ...] = ()
    aggregates: tuple[Aggregate, ...] = ()
    profiles: tuple[Profile, ...] = ()
    warnings: tuple[str, ...] = ()


def normalised(groups: Sequence[Group], configs: Mapping[str, Config], normalize: Normalize | None) -> Normalised:
    """Aggregate the scores of each label that occurs in every environment; the result is empty without `normalize`."""
    if normalize is None:
        return Normalised()
    references = {
        environment: reference_of(environment, groups, configs[environment], normalize) for environment in configs
    }
    labels = list(dict.fromkeys(g.label for g in groups))
    everywhere = [label for label in labels if sum(g.label == label for g in groups) == len(configs)]
    scores = {
        label: [rescale(g.scores, references[g.environment]) for g in groups if g.label == label]
        for label in everywhere
    }
    warnings = [
        f"{label} is missing from some environments, so it is left out of the averages over environments"
        for label in labels
        if label not in everywhere
    ]
    differences = [differing_settings(label, [g for g in groups if g.label == label]) for label in everywhere]
    warnings += [warning for warning in differences if warning]
    return Normalised(
        tuple(references.values()),
        tuple(improvements_over(everywhere, groups, list(configs)) if len(configs) > 1 else ()),
        tuple(Aggregate(label, stratified_mean(x), stratified_iqm(x)) for label, x in scores.items()),
        tuple(profiles_of(scores)),
        tuple(warnings),
    )


def differing_settings(label: str, groups: Sequence[Group]) -> str:
    """A warning if a label has different settings in different environments, which may be intended."""
    differ = sorted(
        name for name in groups[0].settings if any(g.settings[name] != groups[0].settings[name] for g in groups[1:])
    )
    if not differ:
        return ""
    return f"{label} has different settings in different environments but is averaged as one: {', '.join(differ)}"


def reference_of(environment: str, groups: Sequence[Group], config: Config, normalize: Normalize) -> Reference:
    """The two scores in an environment that are mapped to 0 and 1."""
    if normalize == "threshold":
        return threshold_of(environment, config)
    scores = np.concatenate([g.scores for g in groups if g.environment == environment])
    if not np.isfinite(scores).any():
        raise UpslopeError(
            f"No seed has a score in {environment}, since no episode has ended, so there is no range to normalise "
            "to. Train longer, or leave this environment out."
        )
    low, high = float(np.nanmin(scores)), float(np.nanmax(scores))
    if not high > low:
        raise UpslopeError(
            f"All scored seeds have the same score in {environment}, so there is no range to normalise to. "
            "Use --normalize threshold, or leave this environment out."
        )
    return Reference(environment, low, high, "lowest and highest score of these runs")


def threshold_of(environment: str, config: Config) -> Reference:
    """0 is the measured return of a random policy, 1 the reward threshold at which Gymnasium calls the environment
    solved."""
    # Imported here because these modules import JAX, which a report does not need.
    from upslope.environments.closing import close_all
    from upslope.environments.registry import make

    if config.env_kwargs or config.wrappers or config.max_episode_steps is not None:
        raise UpslopeError(
            f"The reward threshold of {environment} was set for arguments other than those of these runs. Use "
            "--normalize range."
        )
    registered: Any = make(config.environment.removeprefix(COMPILED_PREFIX))
    if registered.is_compiled:
        raise UpslopeError(f"{environment} has no reward threshold, so 1 has no meaning. Use --normalize range.")
    with TheirFolder():
        env = registered.create()
        try:
            threshold = env.spec.reward_threshold if env.spec is not None else None
            if threshold is None:
                raise UpslopeError(
                    f"{environment} has no reward threshold, so 1 has no meaning. Use --normalize range."
                )
            random = random_return(env)
        finally:
            close_all(environment, [env])
    if not threshold > random:
        raise UpslopeError(
            f"A random policy reaches {number(random)} in {environment}, but the reward threshold "
            f"{threshold} is not higher, so the two cannot be mapped to 0 and 1. Use --normalize range."
        )
    words = f"random policy ({RANDOM_EPISODES} episodes) and Gymnasium's reward threshold"
    return Reference(environment, random, float(threshold), words)


def random_return(env: Any) -> float:
    """The mean return of actions drawn from the action space, with a fixed seed."""
    env.action_space.seed(0)
    returns = []
    for episode in range(RANDOM_EPISODES):
        env.reset(seed=episode)
        total, is_over, steps = 0.0, False, 0
        while not is_over and steps < MAX_EPISODE_LENGTH:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, is_over, steps = total + float(reward), terminated or truncated, steps + 1
        returns.append(total)
    return float(np.mean(returns))


def rescale(scores: np.ndarray, reference: Reference) -> np.ndarray:
    """Normalise scores: (score − zero) / (one − zero)."""
    return (scores - reference.zero) / (reference.one - reference.zero)


def improvements_over(labels: Sequence[str], groups: Sequence[Group], environments: list[str]) -> list[Improvement]:
    """For each pair of labels, the probability of improvement averaged over environments."""
    found = []
    for a, b in combinations(labels, 2):
        pairs = [(group_of(groups, a, environment), group_of(groups, b, environment)) for environment in environments]
        parts = [x.beats(y) for x, y in pairs]
        is_paired = all(sorted(x.seeds) == sorted(y.seeds) for x, y in pairs)
        found.append(Improvement(a, b, tuple(environments), mean_estimate(parts), is_paired))
    return found


def group_of(groups: Sequence[Group], label: str, environment: str) -> Group:
    """Find the group with this label in an environment."""
    return next(g for g in groups if (g.label, g.environment) == (label, environment))


def profiles_of(scores: Mapping[str, list[np.ndarray]]) -> list[Profile]:
    """The profile of each label, at thresholds from the lowest to the highest score."""
    if not scores:
        return []
    every = np.concatenate([x for strata in scores.values() for x in strata])
    known = every[np.isfinite(every)]
    ends = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    thresholds = np.linspace(*ends, NUM_THRESHOLDS)
    return [Profile(label, thresholds, *profile(strata, thresholds)) for label, strata in scores.items()]
