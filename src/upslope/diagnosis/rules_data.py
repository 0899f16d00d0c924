"""Rules about the chain from collected data to credit.

They are exact checks, which every correct implementation passes. Each docstring states the property that must hold.
"""

import numpy as np

from upslope.diagnosis.findings import FEW, Finding, Signs, rule, share

CHECK = "upslope check ENVIRONMENT"
PROBE = "upslope probe, with your own estimator and objective"


def loses_ends(s: Signs) -> np.ndarray:
    """Whether, for each seed, episodes finish although no rollout has an end [S]."""
    counts = s.record.metrics.get("episode/count")
    if s.batch < FEW or counts is None:  # too few samples to have seen an end
        return np.zeros(len(s.record.seeds), bool)
    # Ends are measured only in some iterations, and only in some of the columns (at least four).
    is_measured = np.isfinite(s.whole("end_share"))
    looked_at = min(1.0, 4 / s.config.num_envs) * np.where(is_measured, np.nan_to_num(counts), 0.0).sum(axis=1)
    return (s.taken("end_share", how=np.max) == 0) & (looked_at > 8)


@rule("Gymnasium issue 785; Jones 2021")
def rows_misaligned(s: Signs) -> Finding | None:
    """s_{t+1} of one row is s_t of the next, unless an episode ended in between."""
    x = s.taken("broken_links")
    part = share((x > 0.01) & ~loses_ends(s))
    return Finding(
        "rows_misaligned", "Rows do not continue where the previous row stopped.",
        "Observations are stored with the actions of other steps.",
        "Store the observation from which the action was chosen, and the one that the step returned.",
        0.99 * part, evidence=(s.evidence("broken_links", x, "0"),),
        rivals=("an environment that writes into the array it returned: return a copy",),
    ) if part else None  # fmt: skip


@rule("Gymnasium, Vector environments: autoreset")
def reset_as_successor(s: Signs) -> Finding | None:
    """The successor at an end is the final observation, not the next episode's first."""
    x = s.taken("reset_as_successor")
    part = share((x > 0.9) & ~(s.taken("observation_constant") > 0.99))
    return Finding(
        "reset_as_successor", "The successor stored at an episode's end is the next episode's first observation.",
        "The final observation was overwritten by the reset: at a time limit, training bootstraps from "
        "another state's value.",
        "Store info['final_obs'] (same-step autoreset), or reset only after the row is written.",
        0.98 * part, 0.95, evidence=(s.evidence("reset_as_successor", x, "0"),),
        rivals=("a task whose episodes all begin alike and end in that state too",),
    ) if part else None  # fmt: skip


@rule("Huang et al. 2022, the 37 implementation details: the first ratio is 1")
def log_prob_mismatch(s: Signs) -> Finding | None:
    """Before the first gradient step of an update, π_θ is the policy that acted."""
    x = s.early("log_prob_mismatch")  # later on, diverged policies disagree because of rounding
    part = share(x > 1e-3) if not s.is_recorded else 0.0
    return Finding(
        "log_prob_mismatch", "The ratio is not 1 before the first step of an update.",
        "The stored log-probabilities belong to actions that were not taken, or to a policy that did not act.",
        "Store the sampled action before it is clipped or rescaled, with the log-probability of that very action.",
        0.97 * part, evidence=(s.evidence("log_prob_mismatch", x, "below 0.0001"),),
        rivals=("observations normalised by statistics other than those used in acting",
                "rows shifted relative to each other"),
    ) if part else None  # fmt: skip


@rule("Jones 2021")
def ends_not_recorded(s: Signs) -> Finding | None:
    """Finished episodes must appear in the rollouts."""
    x, part = s.taken("end_share", how=np.max), share(loses_ends(s))
    return Finding(
        "ends_not_recorded", "Episodes finish, but no rollout has an end.",
        "terminated and truncated are lost between the environment and the rollout.",
        "Write both flags into the rollout at the step at which the episode ends.",
        0.99 * part, evidence=(s.evidence("end_share", x, "above 0"),),
    ) if part else None  # fmt: skip


@rule("the definition of an advantage, Ψ = target − V (Schulman et al. 2016)")
def credit_inconsistent(s: Signs) -> Finding | None:
    """Weight and target must agree on the advantage."""
    if s.lacks("weights that include only the rewards", s.config.bonus != "none"):
        return None
    x = s.taken("weight_agreement")
    bias, target, mean, std = (s.whole(n) for n in ("value_bias", "target_std", "weight_mean", "weight_std"))
    # The means must agree too: E[Ψ] = E[target − V], in standard deviations of Ψ.
    gap = np.nanmedian(np.abs(bias * target / std + mean), axis=1)
    part = share((x < 0.9) | (gap > 0.3)) if s.needs_critic else 0.0
    return Finding(
        "credit_inconsistent", "The weight Ψ is not target − V.",
        "The estimator's weight has the wrong sign or time step, or its target lacks V.",
        "In your estimator, return weight = A_t and target = A_t + V(s_t), both for step t.",
        0.96 * part, experiment=PROBE,
        evidence=(s.evidence("weight_agreement", x, "1"), s.evidence("(E[target − V] − E[Ψ])/σ(Ψ)", gap, "0")),
    ) if part else None  # fmt: skip


@rule("Schulman et al. 2016: V after a terminal state is 0")
def ends_ignored(s: Signs) -> Finding | None:
    """Where an episode terminated, the target is the last reward."""
    x = s.taken("terminal_error", 0.2)
    part = share(x > 0.02) if s.needs_critic else 0.0
    return Finding(
        "ends_ignored", "Targets at terminated steps are not the last reward.",
        "The estimator bootstraps from a terminal state, or carries credit across the reset into the episode before.",
        "In your estimator, cut the bootstrap where `rollout.terminated` is true, and the sum where "
        "`ends(rollout)` is.",
        0.93 * part, evidence=(s.evidence("terminal_error", x, "0"),), experiment=PROBE,
        rivals=("credit that leaks across a reset", "a bootstrap from a terminal state"),
    ) if part else None  # fmt: skip


@rule("cleanrl issue 198; Pardo et al. 2018")
def truncation_not_bootstrapped(s: Signs) -> Finding | None:
    """At a time limit, the target is more than the last reward."""
    applies = s.needs_critic and not s.is_whole and s.config.gamma > 0
    # Compared iteration by iteration, since a quickly mastered task hits its limit only early, when V is still small.
    more, value, mean, std, scale = (
        s.whole(n) for n in ("truncation_bootstrap", "value_mean", "reward_mean", "reward_std", "reward_scale")
    )
    # `more` is in units of the mean |reward|, which the root mean square bounds from above.
    believed = np.abs(value) / np.maximum(np.hypot(mean, std) * scale, 1e-8)
    x = np.nanmedian(np.where(believed > 0.1, more / believed, np.nan), axis=1)
    part = share(x < 0.1) if applies else 0.0
    return Finding(
        "truncation_not_bootstrapped", "Targets at time limits are only the last reward.",
        "The time limit is treated as termination: the value of the final observation is omitted.",
        "In your estimator, cut the bootstrap at `rollout.terminated` only, never at `truncated`.",
        0.96 * part, 0.95, evidence=(s.evidence("truncation_bootstrap / |V|", x, "about γ"),), experiment=PROBE,
    ) if part else None  # fmt: skip


@rule("Pardo et al. 2018: at a time limit the value of the true successor follows")
def truncation_misread(s: Signs) -> Finding | None:
    """At a time limit the target is r + γ V(s_{t+1}), exactly."""
    applies = s.needs_critic and not s.is_whole and not s.is_recorded
    x = s.taken("truncation_error")
    part = share(x > 0.005) if applies else 0.0
    return Finding(
        "truncation_misread", "Targets at time limits are not r + γ V(s') of the true successor s'.",
        "The estimator reads V(s') from the next row, which is another episode's, or carries its sum across the limit.",
        "In your estimator, take `values.next_value` for V(s'), and cut the sum where `ends(rollout)` is true.",
        0.94 * part, evidence=(s.evidence("truncation_error", x, "0"),), experiment=PROBE,
    ) if part else None  # fmt: skip


@rule("Jones 2021: terminal correlation high, penultimate low")
def return_not_propagated(s: Signs) -> Finding | None:
    """Targets must include later rewards, not one reward alone."""
    scale = s.late("reward_scale")
    reward, target = s.late("reward_mean") * scale, s.late("target_mean")
    one_sign = s.taken("reward_min", how=np.min) * s.taken("reward_max", how=np.max) >= 0
    long = s.lengths.mean() > 5 if s.lengths.size else True
    is_short = (np.abs(target) < 1.2 * np.abs(reward)) & one_sign & (np.abs(reward) > 1e-8)
    # This test works for rewards of either sign: targets with the same mean, standard deviation, minimum and maximum as
    # the rewards are the rewards themselves.
    is_reward = np.ones(len(target), bool)
    for name in ("mean", "std", "min", "max"):
        mine, theirs = s.late(f"target_{name}"), s.late(f"reward_{name}") * scale
        is_reward &= np.abs(mine - theirs) < 0.02 * np.maximum(np.abs(theirs), s.late("reward_std") * scale)
    is_short |= is_reward & (s.late("reward_std") > 0)
    part = share(is_short) if s.needs_critic and s.horizon > 4 and long else 0.0
    return Finding(
        "return_not_propagated", "Targets are no larger than one reward, though rewards continue.",
        "The estimator does not add the rewards that follow a step.",
        "In your estimator, sum backwards: y_t = x_t + γλ y_{t+1}, with a bootstrap from V(s_{t+1}).",
        0.92 * part, evidence=(s.evidence("target_mean", target, f"several × {np.nanmedian(reward):.3g}", 0.5),),
        experiment="upslope probe: probe/delay fails and probe/constant passes",
    ) if part else None  # fmt: skip


@rule("policy gradient is ascent: E[Ψ (ρ − 1)] > 0 after an update")
def objective_descends(s: Signs) -> Finding | None:
    """An update makes actions with a high weight more probable."""
    gain = s.taken("surrogate_gain")
    part = share(s.descends & (s.taken("policy/kl") > 1e-6))
    if not part or s.is_recorded:
        return None
    return Finding(
        "objective_descends", "Updates make actions with a high weight less probable.",
        "The objective's loss has the wrong sign.",
        "Return −Ψρ (or −Ψ log π): the loss is minimised, so it is the negative of what should rise.",
        0.95 * part, evidence=(s.evidence("surrogate_gain", gain, "above 0"),), experiment=PROBE,
        rivals=("another loss term outweighs the weights: entropy bonus, KL penalty",),
    )  # fmt: skip


@rule("Jones 2021: relative entropy stays at 1")
def no_policy_signal(s: Signs) -> Finding | None:
    """Without weights or a gradient, the policy cannot move."""
    # Measured early, since a policy that has converged has no gradient either.
    weight, gradient = (s.taken(name, 0.0, 0.2, np.max) for name in ("weight_std", "policy/gradient_norm"))
    # One sample has no standard deviation, so its standardised weight is always 0.
    # Tiny rewards give tiny weights and a tiny gradient, unless weights are standardised.
    part = share((weight < 1e-7) | (gradient < 3e-3 * np.fmin(weight, 1))) if s.batch > 1 else 0.0
    return Finding(
        "no_policy_signal", "The policy gets no gradient.",
        "All weights are equal or zero, or the objective's loss does not depend on the policy.",
        "In your estimator, return weights that differ; in your objective, keep log_prob out of stop_gradient.",
        0.9 * part, experiment="upslope probe: probe/action fails",
        evidence=(s.evidence("weight_std", weight, "above 0"),
                  s.evidence("policy/gradient_norm", gradient, "0.01 to 1")),
        rivals=("the reward never differs",),
    ) if part else None  # fmt: skip
