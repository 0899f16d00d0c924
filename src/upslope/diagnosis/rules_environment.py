"""Rules about the environment: rewards, observations, episode ends and speed."""

import math

import numpy as np

from upslope.core.broken_facts import TOO_LARGE, largest_observation
from upslope.diagnosis.findings import ENDS, FEW, Finding, Signs, rule, share
from upslope.environments.libraries import PREFIXES

CHECK = "upslope check ENVIRONMENT"
EPISODES = "50 finished episodes"
SAMPLES = 256
"""Smallest number of samples per iteration in which an effect of actions can be detected."""
LATER = 2.5
"""Threshold for the larger of two mean z². Without an effect, its expectation is 1.64, and short runs scatter around
this value."""
BRIEF = 30.0
"""In runs shorter than this many seconds, the speed depends more on the machine than on the environment."""
LONG = 3_000
"""An episode that has not ended after this many steps is considered endless rather than long."""
TINY = 0.003
"""Observations whose standard deviations are all below this hardly affect a newly initialised network."""


@rule("Schulman, nuts and bolts: can a random policy ever succeed?")
def no_reward_signal(s: Signs) -> Finding | None:
    """A return that never differs teaches nothing."""
    nonzero = s.taken(
        "reward_nonzero", how=np.max
    )  # measured only in some iterations, whereas episodes show all rewards
    is_paid = np.asarray([np.any(s.record.episodes_of(seed)["return"] != 0) for seed in s.record.seeds])
    # If episodes end immediately, that is the cause, and the missing reward is its consequence.
    is_cut_off = s.lengths.size >= 50 and np.percentile(s.lengths, 95) <= 2
    part = share((nonzero == 0) & ~is_paid) * (0.9 if is_cut_off else 1.0)
    never_differs = 0.0 if part else share(np.asarray([is_always_the_same(s, seed) for seed in s.record.seeds]))
    if never_differs:
        x = s.taken("episode/return")
        return Finding(
            "no_reward_signal", f"Every episode had the same return, {np.nanmedian(x):.4g}, and the same length.",
            "The goal was never reached, or the environment pays the same whatever the policy does.",
            "Shape the reward; explore more widely: --bonus rnd, --entropy-coefficient 0.02; or learn from --data.",
            # A run that started from another run's policy may have started with a perfect one.
            (0.45 if s.config.start_from else 0.96) * never_differs,
            evidence=(s.evidence("episode/return", x, "differs between episodes"),), experiment=CHECK,
        )  # fmt: skip
    return Finding(
        "no_reward_signal", "No reward was ever seen.",
        "The reward is too sparse for this exploration, or the environment gives no rewards.",
        "Shape the reward; explore more widely: --bonus rnd, --entropy-coefficient 0.02; or learn from --data.",
        0.97 * part, evidence=(s.evidence("reward_nonzero", nonzero, "above 0"),), experiment=CHECK,
    ) if part else None  # fmt: skip


def is_always_the_same(s: Signs, seed: int) -> bool:
    """Whether all of a seed's episodes had the same return and the same length, of more than two steps."""
    episodes = s.record.episodes_of(seed)
    if s.lacks(f"{ENDS} finished episodes of a seed", len(episodes) < ENDS):
        return False
    size, lengths = np.abs(episodes["return"]).max(), episodes["length"]
    return bool(np.ptp(episodes["return"]) <= 1e-6 * size and np.ptp(lengths) == 0 and lengths[0] > 2)


@rule("Schulman, nuts and bolts; the taxi's and the cliff's rewards")
def only_waits(s: Signs) -> Finding | None:
    """The policy avoids larger costs but never reaches the goal: each step costs the same until the time limit."""
    mean, std = s.taken("reward_mean", 0.7), s.taken("reward_std", 0.7)
    ended, count = s.taken("truncated_share", 0.7, how=np.min), s.taken("episode/count", 0.7, how=np.sum)
    part = share((mean < 0) & (std < 1e-4 * np.abs(mean)) & (ended == 1) & (count > 0))
    return Finding(
        "no_reward_signal", "By the end, every step costs the same, and no episode terminates.",
        "The goal is not reached, so the policy has learned to avoid larger costs, and waits for the time limit.",
        "Train longer; explore more widely: --bonus rnd, --entropy-coefficient 0.05; raise the time "
        "limit; shape the reward.",
        0.7 * part, 0.95, evidence=(s.evidence("reward_mean", mean, "differs between steps", 0.7),
                                    s.evidence("truncated_share", ended, "below 1 now and then", 0.7)),
        rivals=("a task with a constant cost at every step",), experiment=CHECK,
    ) if part else None  # fmt: skip


def spread_by_chance(s: Signs) -> float:
    """σ of the critic's targets over σ of a reward, if rewards of different steps are independent; a custom estimator
    is treated as GAE."""
    length = s.config.n if s.config.estimator == "n_step" else math.inf
    decay = (s.config.gamma * (1.0 if s.is_whole or math.isfinite(length) else s.config.lambda_)) ** 2
    return math.sqrt((1 - decay**length) / (1 - decay)) if decay < 1 else math.sqrt(min(length, 1e4))


def rewards_go_together(s: Signs) -> np.ndarray:
    """Whether, for each seed, neighbouring rewards were correlated at some point, as if they followed a slowly changing
    state [S]."""
    spread = s.whole("target_std") / (s.whole("reward_std") * s.whole("reward_scale"))
    return np.nanmax(np.where(np.isfinite(spread), spread, -np.inf), axis=1) > 2 * spread_by_chance(s)


def rewards_are_rare(s: Signs) -> np.ndarray:
    """Whether, for each seed, the reward is the same at most steps and occasionally different [S]."""
    mean = s.taken("reward_mean")
    sides = np.stack([s.taken("reward_max") - mean, mean - s.taken("reward_min")])
    return sides.max(axis=0) > 4 * sides.min(axis=0)


@rule("Schulman, nuts and bolts; the mountain car's rewards")
def only_costs_avoided(s: Signs) -> Finding | None:
    """The policy has learned to do nothing, since no action was ever rewarded.

    In a balancing or holding task, all rewards are costs too, and a trained policy leaves hardly any variance to
    explain. During learning, however, these costs depend on the state, so the costs of neighbouring steps are
    correlated. Their sums then vary more than sums of independent costs, such as costs that depend only on the action.
    """
    highest, ended = s.taken("reward_max", how=np.max), s.taken("truncated_share", how=np.min)
    explained = s.late("critic/explained_variance")
    depends = rewards_go_together(s)
    is_saving = (highest <= 0) & (ended > 0.99) & (explained < 0.1) & s.improved & ~depends
    part = share(is_saving) if s.needs_critic else 0.0
    return Finding(
        "no_reward_signal", "There are only costs: no reward above 0 was ever seen, and no episode terminated.",
        "The goal was never found, so the policy learns to save effort.",
        "Explore more widely: --log-std-init 1 --gamma 0.999; or shape the reward.", 0.75 * part,
        evidence=(s.evidence("reward_max", highest, "above 0 now and then"),
                  s.evidence("critic/explained_variance", explained, "towards 1", 0.5)),
        rivals=("a task in which all rewards are costs",), experiment=CHECK,
    ) if part else None  # fmt: skip


@rule("Jones 2021: targets of magnitude 1; Henderson et al. 2018 on reward scale")
def rewards_unscaled(s: Signs) -> Finding | None:
    """A critic cannot learn targets in the thousands."""
    x = s.taken("target_max", how=lambda v: np.max(np.abs(v)))
    part = share(x > 1000) if s.needs_critic else 0.0
    return Finding(
        "rewards_unscaled", "The critic's targets are in the thousands.",
        "Rewards are far from 1 in magnitude, and a network learns such numbers only after many steps.",
        "Add --normalize-rewards, or scale the rewards down.",
        0.85 * part, 0.9, evidence=(s.evidence("target_max", x, "below 100"),),
        rivals=("targets that explode because of bootstrapping: lower --gamma",),
    ) if part else None  # fmt: skip


@rule("Jones 2021: residual variance near 1")
def reward_noise(s: Signs) -> Finding | None:
    """The standard deviation of the reward is far larger than the states can explain."""
    ratio = s.taken("reward_std") / np.maximum(np.abs(s.taken("reward_mean")), 1e-8)
    explained = s.late("critic/explained_variance")
    # A reward that is 0 or a small cost at most steps varies just as much but is not noise: noise is two-sided.
    mean, std = s.taken("reward_mean"), s.taken("reward_std")
    sides = np.minimum(s.taken("reward_max") - mean, mean - s.taken("reward_min"))
    is_dense = (s.taken("reward_nonzero") > 0.5) & (sides > 1.5 * std)
    part = share((ratio > 5) & (explained < 0.15) & is_dense) if s.needs_critic and s.is_flat else 0.0
    return Finding(
        "reward_noise", "Rewards vary widely, and neither policy nor critic has found out what they depend on.",
        "The reward is mostly noise, or depends on what is not observed.",
        "Average over more samples: --num-envs 64 --rollout-steps 512; and find out what the reward depends on.",
        0.75 * part, evidence=(s.evidence("reward_std", s.taken("reward_std")),
                               s.evidence("critic/explained_variance", explained, "towards 1", 0.5)),
        rivals=("observations without the relevant information",), experiment=CHECK,
    ) if part else None  # fmt: skip


@rule("Gymnasium issue 785")
def fake_rows(s: Signs) -> Finding | None:
    """Next-step autoreset inserts a row with reward 0 after each episode."""
    x = s.taken("zero_after_end")
    part = share((x > 0.95) & (s.taken("reward_nonzero") > 0.5))
    return Finding(
        "fake_rows", "The first step of every episode has reward 0, but other steps do not.",
        "The environment resets itself, and a row without an action is inserted after each end.",
        "Use AutoresetMode.SAME_STEP or DISABLED, or remove such rows.",
        0.9 * part, 0.8, evidence=(s.evidence("zero_after_end", x, "as at other steps"),),
        experiment=CHECK, rivals=("a task whose first step has no reward",),
    ) if part else None  # fmt: skip


@rule("Jones 2021: an episode never ends")
def episodes_never_end(s: Signs) -> Finding | None:
    """No episode ends within many steps."""
    count, steps = s.taken("episode/count", how=np.sum), np.nanmax(s.record.steps) / max(s.config.num_envs, 1)
    is_limited = (s.config.max_episode_steps or 0) >= steps
    part = share(count == 0) if steps > 1500 and not is_limited and not s.is_recorded else 0.0
    return Finding(
        "episodes_never_end", f"No episode has ended within {steps:,.0f} steps.",
        "The environment has no step limit and does not terminate.",
        "Set a limit: --max-episode-steps 1000; or return terminated where the task is over.",
        (0.95 if steps > LONG else 0.45) * part, 0.9, rivals=("episodes that are longer than that",),
        evidence=(s.evidence("episode/count", count, "above 0"),), experiment=CHECK,
    ) if part else None  # fmt: skip


@rule("Jones 2021: all lengths equal")
def episodes_end_at_once(s: Signs) -> Finding | None:
    """Every episode ends within a step or two, and nothing is learned."""
    if s.lacks(EPISODES, s.lengths.size < 50) or np.percentile(s.lengths, 95) > 2 or not s.is_flat:
        return None
    varies = bool(np.ptp(s.record.episodes["return"]) > 0)
    lengths = s.taken("episode/length")
    return Finding(
        "episodes_end_at_once", "Every episode ends within two steps.",
        "The environment terminates immediately: a state left over from the previous episode, or an "
        "inverted condition.",
        "Check what step() returns as terminated after a reset.", 0.6 if varies else 0.95,
        evidence=(s.evidence("episode/length", lengths),), experiment=CHECK,
    )  # fmt: skip


@rule("Pardo et al. 2018; cleanrl issue 198")
def limit_as_termination(s: Signs) -> Finding | None:
    """Many episodes have the same maximal length, and all of them terminated."""
    if s.lacks(EPISODES, s.lengths.size < 50):
        return None
    longest = int(s.lengths.max())
    # Equal lengths alone give only a note, since many tasks end after a fixed number of steps. If there are few other
    # lengths, the longest must be long.
    num_lengths = np.unique(s.lengths).size
    if 1 < num_lengths < (3 if longest >= 8 else 5):
        return None
    at_longest = np.asarray([np.mean(s.record.episodes_of(seed)["length"] == longest) for seed in s.record.seeds])
    truncated = s.taken("truncated_share", how=np.mean)
    part = share((at_longest > 0.15) & (truncated < 0.01)) if longest > 3 else 0.0
    return Finding(
        "limit_as_termination", f"{at_longest.mean():.0%} of episodes terminate after {longest} steps, the longest.",
        "The environment returns terminated at its time limit, so the value of the state reached there is "
        "taken to be 0.",
        f"Return truncated at the limit, e.g. gymnasium.wrappers.TimeLimit(env, {longest}).",
        (0.85 if num_lengths > 1 else 0.45) * part, 0.8,
        evidence=(s.evidence("truncated_share", truncated, "above 0 at a time limit"),),
        rivals=("a task that really ends then",), experiment=CHECK,
    ) if part else None  # fmt: skip


@rule("Jones 2021; Schulman, nuts and bolts")
def observations_uninformative(s: Signs) -> Finding | None:
    """Observations never change."""
    longest = s.lengths.max() if s.lengths.size else np.inf
    if s.lacks(f"{FEW} samples per iteration", s.batch < FEW) or longest <= 1:
        return None
    x, still = s.taken("observation_constant"), s.taken("still")
    part = share((x > 0.999) | (still > 0.999) & (longest > 2))
    return Finding(
        "observations_uninformative",
        "The observation never changes." if share(x > 0.999) else "The observation never changes within an episode.",
        "The environment returns the same array every time, or a copy made before the step.",
        "Return a new observation from each step().", 0.97 * part,
        evidence=(s.evidence("observation_constant", x, "0"), s.evidence("still", still, "well below 1")),
        rivals=("numbers so large that their squares overflow in the normaliser",) * s.config.normalize_observations,
        experiment=CHECK,
    ) if part else None  # fmt: skip


@rule("Schulman, nuts and bolts: observations of mean 0 and deviation 1")
def observations_unscaled(s: Signs) -> Finding | None:
    """Observations in the tens and hundreds saturate the first layer; tiny ones hardly affect it."""
    centre, width = s.taken("observation_mean"), s.taken("observation_std_max")
    saturated, constant = s.taken("policy_saturation"), s.taken("observation_constant")
    size = np.broadcast_to(largest_observation(s.record.metrics), len(s.record.seeds))
    if part := share(size >= TOO_LARGE):
        return Finding(
            "observations_unscaled", "Observations contain numbers so large that sums of their squares overflow.",
            "The first layer saturates, and normalising cannot help.",
            "Scale the observations in the environment or in a wrapper.", 0.98 * part, 0.98,
            evidence=(s.evidence("observation_max", size, f"below {TOO_LARGE:g}"),),
        )  # fmt: skip
    # If observations are already normalised, something else saturates the layer.
    is_scaled = s.config.normalize_observations
    part = share((centre > 20) | (width > 20) | (saturated > 0.5) & (not is_scaled))
    is_tiny = s.batch >= FEW and share((width < TINY) & (s.taken("observation_max") < 10 * TINY) & (constant < 0.999))
    if is_tiny and not s.config.normalize_observations:
        return Finding(
            "observations_unscaled", "Observations hardly differ: their deviations are far below 1.",
            "The first layer cannot tell them apart.", "Add --normalize-observations.", 0.88 * is_tiny, 0.9,
            evidence=(s.evidence("observation_std_max", width, f"above {TINY}"),),
        )  # fmt: skip
    return Finding(
        "observations_unscaled", "Observations are far from mean 0 and deviation 1.",
        "The first layer saturates, so the networks see little of the differences between observations.",
        "Add --normalize-observations.", 0.88 * part, 0.9,
        evidence=(s.evidence("observation_mean", centre, "below 10"),
                  s.evidence("observation_std_max", width, "below 10"),
                  s.evidence("policy_saturation", saturated, "below 0.3")),
    ) if part else None  # fmt: skip


@rule("Jones 2021: check that the environment reacts; a score has mean 0 given what its action does not change")
def actions_without_effect(s: Signs) -> Finding | None:
    """Later steps do not correlate with the sampled actions, and the return has not risen."""
    # The mean of squared z-scores, which is 1 by chance; a weak effect shows only in many samples.
    effect, gain = s.taken("action_effect", how=np.mean), s.taken("weight_std")
    later = s.taken("late_effect", how=np.mean)
    few = s.lacks(
        f"{SAMPLES} samples per iteration", not s.is_whole and s.config.num_envs * s.config.rollout_steps < SAMPLES
    )
    is_none = (effect < 1.5) & ~(later > LATER) & (gain > 1e-7)
    part = share(is_none) if s.is_flat and not few and not s.is_recorded else 0.0
    # If all reward comes at the end, for an action that had to match an early observation, the batch may not show the
    # effect. The finding is then a note, and the environment's check can decide.
    is_unsure = share(is_none & rewards_are_rare(s) & ~rewards_go_together(s)) > 0
    return Finding(
        "actions_without_effect", "What comes next does not depend on the actions, and the return has not risen.",
        "step() does not use its action, or reads it in the wrong units.",
        "Make sure that step() uses its action, in the right units.", (0.45 if is_unsure else 0.85) * part,
        evidence=(s.evidence("action_effect", effect, "well above 1"),
                  s.evidence("late_effect", later, f"above {LATER}")),
        experiment=CHECK,
        rivals=("effects many steps later, or only together with what was seen before", "effects too weak to show"),
    ) if part else None  # fmt: skip


@rule("Jones 2021; navix issue 129")
def slows_down(s: Signs) -> Finding | None:
    """Steps per second fall steadily."""
    steps, elapsed = s.record.steps[0], s.record.metrics.get("time/elapsed", np.zeros((1, 0)))[0]
    if s.lacks("24 iterations", len(elapsed) < 24):
        return None
    # All rows of a chunk have the same timestamp. The median of each eighth is used, since other work on the machine
    # comes in bursts.
    ticks = np.flatnonzero(np.diff(elapsed, prepend=-np.inf) > 0)
    paces = np.diff(steps[ticks]) / np.diff(elapsed[ticks])
    if len(paces) < 16:
        return None
    rates = np.asarray([np.median(part) for part in np.array_split(paces[1:], 8)])
    # Measured from the fastest eighth on, since a run begins with compilation.
    from_best = rates[int(np.argmax(rates)) :]
    ranks = np.argsort(np.argsort(from_best))
    falls = len(ranks) >= 5 and np.corrcoef(np.arange(len(ranks)), ranks)[0, 1] < -0.7
    steady = falls and from_best[-2:].mean() < 0.5 * from_best[:2].mean()
    # A compiled environment known by name runs the same program at every step.
    own = "The environment or a wrapper does more work at each step: a growing list, a leak, a log."
    advice = "Time env.step() after 1,000 and after 100,000 steps."
    # A run that takes only seconds is easily slowed by other work on the machine.
    is_program = s.config.environment.startswith(PREFIXES) or np.ptp(elapsed[ticks]) < BRIEF
    return Finding(
        "slows_down", f"Training slowed from {rates[0]:,.0f} to {rates[-1]:,.0f} steps/s per seed.",
        "The machine was busy with other work." if is_program else own,
        "Train again on an idle machine." if is_program else advice,
        0.4 if is_program else 0.75, 0.7,
        evidence=(s.evidence("time/steps_per_second", rates),),
        rivals=("longer episodes",) if is_program else ("other work on the machine", "longer episodes"),
        experiment=CHECK,
    ) if steady else None  # fmt: skip
