"""Rules about how the policy and the critic change."""

import math

import numpy as np

from upslope.config.config import Config
from upslope.core.broken_facts import TOO_LARGE, broken_facts, fault_in_words, largest_observation
from upslope.core.messages import counted, shell
from upslope.diagnosis.findings import Finding, Signs, rule, share

SEED = "another seed: --seed 100 --seeds 5"


@rule("Huang et al. 2022: KL above 0.02 for long; Schulman, nuts and bolts: KL spikes")
def update_too_large(s: Signs) -> Finding | None:
    """Updates leave the region in which the batch is informative about the policy."""
    if s.is_recorded:
        return None
    kl, clipped = s.taken("policy/kl", 0.0, 0.6), s.taken("policy/clip_fraction", 0.0, 0.6)
    high, peak = (s.taken("policy/kl", how=how) for how in (lambda x: np.percentile(x, 90), np.max))
    # After an update of more than one nat, the policy may never move again, and the other signs then describe a policy
    # that stands still. An objective with the wrong sign is a separate cause.
    part = share((kl > 0.06) | (high > 0.3) | (clipped > 0.5) & (kl > 0.03))
    burst = share((peak > 1) & ~s.descends) if s.is_flat else 0.0
    return Finding(
        "update_too_large", "Each update moves the policy far." if not burst else "An update destroyed the policy.",
        "δ, the KL of a step, is too large." if s.is_natural
        else "The learning rate is too high, or a batch is used for too many epochs.",
        f"Lower {s.step_flag}." if s.is_natural
        else f"Lower {s.step_flag} or --epochs ({s.config.epochs}); or --target-kl 0.02.",
        max(0.86 * part, 0.91 * burst), 1.0 if burst else 0.95,
        evidence=(s.evidence("policy/kl", peak if burst else kl, "below 0.02", 0.0, 1.0 if burst else 0.6),
                  s.evidence("policy/clip_fraction", clipped, "0.05 to 0.3", 0.0, 0.6)),
        rivals=("minibatches too small",), experiment=f"the same seeds with a third of the {s.step_size}",
    ) if part or burst else None  # fmt: skip


def held_back_by(config: Config) -> str:
    """The name of a setting so far outside its usual range that it holds updates back; empty if there is none."""
    is_extreme = {
        "learning_rate": config.learning_rate < 3e-5,
        "epsilon": config.epsilon < 0.02,
        "max_grad_norm": config.max_grad_norm < 1e-4,
        "target_kl": config.target_kl is not None and config.target_kl < 1e-3,
        "beta": config.beta > 100,
        "delta": config.delta < 1e-4,
        "damping": config.damping > 100,
        "min_effective_sample_size": (config.min_effective_sample_size or 0.0) > 0.99,
    }
    return next((name for name, extreme in is_extreme.items() if extreme), "")


@rule("Jones 2021: KL and clip fraction near 0")
def update_too_small(s: Signs) -> Finding | None:
    """All updates together hardly move the policy."""
    kl = np.maximum(s.record.metrics.get("policy/kl", np.zeros(s.record.steps.shape)), 0)
    path = np.nansum(np.sqrt(2 * kl), axis=1)
    part = share(path < 0.2) if s.is_flat and not s.is_recorded else 0.0
    # A run that starts near the best return does not move either, since it does not need to.
    held_back = held_back_by(s.config)
    flag = f"--{held_back.replace('_', '-')} (now {getattr(s.config, held_back):g})" if held_back else s.step_flag
    return Finding(
        "update_too_small", "All updates together hardly move the policy.",
        "The learning rate, the clip range or the KL limit is too small, or a penalty or another limit is too strict.",
        f"Set {flag} back to its default." if held_back else f"Raise {flag}.",
        (0.86 if held_back else 0.45) * part, 0.95, evidence=(s.evidence("Σ √(2 KL)", path, "above 1"),),
        rivals=("no gradient", "nothing left to gain"), experiment=f"the same seeds with ten times the {s.step_size}",
    ) if part else None  # fmt: skip


@rule("SB3 issue 2240: entropy near its maximum")
def entropy_dominates(s: Signs) -> Finding | None:
    """The entropy bonus outweighs the weights."""
    if s.relative_entropy is None or s.config.entropy_coefficient < 0.03:
        return None
    x = np.nanmedian(s.relative_entropy[:, s.relative_entropy.shape[1] // 2 :], axis=1)
    part = share(x > 0.95) * (1.0 if s.is_flat else 0.85)
    return Finding(
        "entropy_dominates", "The policy stays at maximum entropy.",
        "The entropy bonus outweighs the differences between actions.",
        f"Cut --entropy-coefficient (now {s.config.entropy_coefficient:g}) to 0.01 or 0.", 0.93 * part,
        evidence=(s.evidence("relative entropy", x, "falls below 0.9", 0.5),),
    ) if part else None  # fmt: skip


@rule("Schulman, nuts and bolts: premature drop of entropy; Jones 2021")
def no_exploration(s: Signs) -> Finding | None:
    """A policy that is nearly deterministic from early on cannot find better actions."""
    early = max(1, s.record.steps.shape[1] // 4)
    if s.sigma is not None:
        x, limit, name = np.nanmedian(s.sigma[:, :early], axis=1), 0.03, "σ in half ranges"
        remedy = f"Raise --log-std-init (now {s.config.log_std_init:g}) to 0, or add --entropy-coefficient 0.001."
    elif s.relative_entropy is not None:
        x, limit, name = np.nanmedian(s.relative_entropy[:, early : 2 * early + 1], axis=1), 0.05, "relative entropy"
        remedy = "Add --entropy-coefficient 0.01, or lower --learning-rate."
    else:
        return None
    part = share(x < limit) if s.is_flat or s.sigma is not None else 0.0
    from_start = s.sigma is not None and share(s.sigma[:, 0] < limit) > 0
    return Finding(
        "no_exploration", "The policy is nearly deterministic from early on.",
        "It started with a single action, or settled on one early, so it cannot find anything better.", remedy,
        (0.93 if from_start else 0.88) * part, 1.0 if from_start else 0.95,
        evidence=(s.evidence(name, x, f"above {limit}", 0.0, 0.25),), experiment=SEED,
        rivals=("the learning rate is too high",),
    ) if part else None  # fmt: skip


@rule("baselines issue 371")
def actions_clipped(s: Signs) -> Finding | None:
    """Most samples of a Gaussian policy are clipped to the bounds."""
    # Measured for the initial policy, since a bad update may have the same effect later.
    x = s.taken("action_clipped", 0.0, 0.2, lambda x: x[0])
    part = share(x > 0.85)
    return Finding(
        "actions_clipped", "Most sampled actions are outside their bounds.",
        "σ is larger than the action range, so the environment receives only the bounds.",
        f"Lower --log-std-init (now {s.config.log_std_init:g}) to 0 or −1.", 0.92 * part,
        evidence=(s.evidence("action_clipped", x, "below 0.5", 0.0, 0.2),),
        rivals=("an action space whose bounds are not those of the environment",),
    ) if part else None  # fmt: skip


@rule("Jones 2021; the meaning of γ")
def horizon_too_short(s: Signs) -> Finding | None:
    """γ discounts rewards to nothing within a few steps of long episodes."""
    length = float(s.lengths.mean()) if s.lengths.size else np.inf
    if not (s.horizon < 3 and length > 5 * s.horizon):
        return None
    return Finding(
        "horizon_too_short", f"γ = {s.config.gamma:g} looks {s.horizon:.1f} steps ahead; episodes last {length:.0f}.",
        "Rewards further ahead count for nothing.", "Raise --gamma to 0.99.", 0.9 if s.is_flat else 0.8,
        evidence=(s.evidence("episode/length", s.taken("episode/length")),),
        rivals=("rewards that follow immediately",),
    )  # fmt: skip


@rule("McCandlish et al. 2018; Jones 2021")
def batch_too_small(s: Signs) -> Finding | None:
    """Each gradient step has only a handful of samples."""
    if s.is_whole or s.is_recorded or s.samples >= 16:
        return None
    signal, is_single = s.taken("policy_signal"), s.samples < 2
    likely = (
        "Gradients are mostly noise." if not is_single else "A single sample has no mean and no deviation to scale by."
    )
    return Finding(
        "batch_too_small", f"Each gradient step sees {counted(max(s.samples, 1), 'sample')}.",
        likely, "Raise --num-envs or --rollout-steps, or lower --minibatches.",
        0.97 if is_single else 0.85 if s.is_flat else 0.7, 1.0 if is_single else 0.9,
        evidence=(s.evidence("policy_signal", signal, "above 0.1"),), experiment=SEED,
    )  # fmt: skip


def reward_bounds(s: Signs) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest reward of each seed [S]. Rewards are measured only in some iterations, so this range
    also includes the rewards that the episodes' returns imply."""
    lows, highs = s.taken("reward_min", how=np.min), s.taken("reward_max", how=np.max)
    found = []
    for seed, low, high in zip(s.record.seeds, lows, highs, strict=True):
        episodes = s.record.episodes_of(seed)
        total, length = episodes["return"], episodes["length"]
        margin = 1e-3 * np.maximum(np.abs(total), 1e-6)
        most = (total - (length - 1) * low)[total > length * high + margin]
        least = (total - (length - 1) * high)[total < length * low - margin]
        found.append((min([low, *least]), max([high, *most])))
    low, high = np.asarray(found).T
    return low, high


@rule("Jones 2021: values of an impossible sign or size")
def targets_impossible(s: Signs) -> Finding | None:
    """Targets lie outside the range of returns: from the lowest to the highest reward, each times the horizon."""
    scale, horizon = s.late("reward_scale"), min(s.horizon, 1e6)
    low, high = (bound * scale for bound in reward_bounds(s))
    x, size = s.late("target_mean"), np.maximum(np.abs(low), np.abs(high))
    too_low, too_high = (
        x < np.minimum(low, 1.5 * low * horizon) - size,
        x > np.maximum(high, 1.5 * high * horizon) + size,
    )
    part = share((too_low | too_high) & (size > 0)) if s.needs_critic else 0.0
    return Finding(
        "targets_impossible", "The critic's targets are larger than any return can be, or of the wrong sign.",
        "The estimator adds terms that it should not, or the critic bootstraps from its own errors.",
        "Test the estimator: upslope probe. If it is sound, lower --gamma or --learning-rate.", 0.8 * part,
        evidence=(s.evidence("target_mean", x, "between the lowest and highest reward × 1/(1 − γ)", 0.5),),
        rivals=("a critic that diverges",), experiment="upslope probe",
    ) if part else None  # fmt: skip


@rule("Yu et al. 2025, DAPO, section 3.2: groups of equal returns have no gradient")
def groups_equal(s: Signs) -> Finding | None:
    """Episodes that begin alike must have different returns, or comparing them is uninformative."""
    if s.config.estimator not in ("leave_one_out", "group_mean"):
        return None
    x = s.late("policy/equal_groups")
    part = share((x > 0.9) & ~s.improved)
    return Finding(
        "groups_equal", "Nearly all groups have equal returns, which teach nothing.",
        "All episodes that begin alike earn the same: none of them succeeds.",
        "Raise --group-size or --entropy-coefficient, or start from a policy that solves some of them: --from.",
        0.7 * part, evidence=(s.evidence("policy/equal_groups", x, "below 0.9", 0.5),),
        rivals=("a task that was solved from the beginning",),
    ) if part else None  # fmt: skip


@rule("SB issue 1143; B: NaN")
def not_finite(s: Signs) -> Finding | None:
    """Parameters are no longer finite."""
    loss = s.record.metrics.get("policy/loss")
    if loss is None:
        return None
    rows = [row[: int(np.isfinite(steps).sum())] for row, steps in zip(loss, s.record.steps, strict=True)]
    lost = np.asarray([len(row) > 0 and not np.isfinite(row[-3:]).any() for row in rows])
    facts = [
        broken_facts(~np.isfinite(row), {name: x[seed] for name, x in s.record.metrics.items()})
        for seed, row in enumerate(rows) if lost[seed]
    ]  # fmt: skip
    broken = next(filter(None, facts), "")
    size = np.broadcast_to(largest_observation(s.record.metrics), len(lost))
    is_huge = bool((size[lost] >= TOO_LARGE).any())
    return Finding(
        "not_finite", f"{lost.sum()} of {len(lost)} seeds have parameters that are no longer finite.",
        fault_in_words(broken, is_normalised=s.config.normalize_observations) if broken
        else "The observations contain numbers so large that sums of their squares overflow." if is_huge
        else "The networks produced numbers too large for 32 bits.",
        f"Correct the environment; {shell('upslope', 'check', s.config.environment)} shows where." if broken
        else "Scale the observations in the environment or in a wrapper." if is_huge
        else "Lower --learning-rate, and add --normalize-observations --normalize-rewards.", 0.99,
        evidence=(s.evidence("policy/loss", np.where(lost, np.nan, 0.0), "a number"),),
    ) if lost.any() else None  # fmt: skip


@rule("SB3 issue 1063: training and evaluation disagree")
def modes_disagree(s: Signs) -> Finding | None:
    """The most probable actions earn much less than sampled ones: a note, since some tasks need randomness."""
    rows = s.record.evaluations
    modes = [rows["return"][rows["mode"] == mode] for mode in ("stochastic", "deterministic")]
    if s.lacks("10 evaluation episodes of each mode", min(map(len, modes)) < 10):
        return None
    sampled, best = (x.mean() for x in modes)
    return Finding(
        "modes_disagree", f"Deterministic actions earn {best:.4g}, sampled ones {sampled:.4g}.",
        "The task needs a stochastic policy, or the policy relies on its noise.",
        "Report both, or deploy the stochastic policy.", 0.4,
        evidence=(s.evidence("evaluation: stochastic, deterministic", np.asarray([sampled, best])),),
        experiment="upslope evaluate RUN --episodes 100",
    ) if sampled - best > 1.5 * modes[0].std() else None  # fmt: skip


def share_of_rise_lost(stretches: list[np.ndarray]) -> float:
    """The share of the best segment's gain that the last segment has lost. Segments have equal numbers of steps, since
    a policy that collapses into short episodes plays most of its episodes after the collapse."""
    told = [part for part in stretches if len(part) >= 3]
    if len(told) < 4:
        return 0.0
    means = [part.mean() for part in told]
    at_best = int(np.argmax(means))
    low, best = min(means[: at_best + 1]), means[at_best]
    error = math.hypot(*(told[i].std() / math.sqrt(len(told[i])) for i in (at_best, -1)))
    has_risen = best - low > max(1.5 * told[0].std(), 1e-9)
    is_lost = best - means[-1] > 3 * error
    return (best - means[-1]) / (best - low) if has_risen and is_lost else 0.0


@rule("SB issue 837: late collapse")
def late_collapse(s: Signs) -> Finding | None:
    """The return falls far below its earlier best."""
    if s.lacks("100 finished episodes of a seed", max(map(len, map(np.concatenate, s.stretches))) < 100):
        return None
    x = np.asarray([share_of_rise_lost(parts) for parts in s.stretches])
    part = float(np.mean(x > 0.7))
    return Finding(
        "late_collapse", f"{np.sum(x > 0.7)} of {len(x)} seeds lost most of what they had learned.",
        "An update late in the run was too large.",
        "Lower --delta; `best` holds the best agents." if s.is_natural
        else "Keep --learning-rate-schedule linear, and add --target-kl 0.02; `best` holds the best agents.",
        0.6 * part, 0.8, evidence=(s.evidence("share of the rise lost", x, "0"),), experiment=SEED,
    ) if part >= 0.4 else None  # fmt: skip


@rule("the return itself")
def return_falls(s: Signs) -> Finding | None:
    """The policy ends up worse than it started: updates do not move it uphill."""
    first, last, _ = s.returns
    part = share(s.worsened) if not s.is_recorded else 0.0
    return Finding(
        "return_falls", f"The return fell from {np.nanmean(first):.4g} to {np.nanmean(last):.4g}.",
        "Updates move the policy away from what is rewarded: they are too large, or based on incorrect credit.",
        f"Lower {s.step_flag}, and test estimator and objective: upslope probe.",
        0.65 * part, 0.9, evidence=(s.evidence("episode/return", first, "", 0.0, 0.1),
                                    s.evidence("episode/return", last, "above the first", 0.8)),
        rivals=("an environment that changes during training", "a reward of the wrong sign"),
        experiment=f"the same seeds with a third of the {s.step_size}; upslope probe",
    ) if part else None  # fmt: skip


@rule("Jones 2021; Schulman: explained variance below 0")
def critic_blind(s: Signs) -> Finding | None:
    """The critic is no better than a constant: a symptom with many causes, so a note."""
    x = s.late("critic/explained_variance")
    part = share(x < 0.05) if s.needs_critic and s.is_flat else 0.0
    return Finding(
        "critic_blind", "The critic is no better than a constant.", "These metrics alone do not show the cause.",
        "First `upslope check`, then --critic-epochs 20.", 0.4 * part,
        evidence=(s.evidence("critic/explained_variance", x, "towards 1", 0.5),),
        rivals=("observations that do not determine the value", "noisy rewards", "targets on another scale"),
        experiment="upslope check ENVIRONMENT; upslope probe",
    ) if part else None  # fmt: skip


@rule("the return itself")
def not_learning(s: Signs) -> Finding | None:
    """The return does not rise: a note, since slow learning is not a fault."""
    first, last, _ = s.returns
    if not s.is_flat or s.is_recorded or not np.isfinite(first).any():
        return None
    return Finding(
        "not_learning", "The return has not risen.", "The budget is too short, or another finding names the cause.",
        "Train longer (--steps), after `upslope check` and `upslope probe`.", 0.3,
        evidence=(s.evidence("episode/return", first, "", 0.0, 0.1), s.evidence("episode/return", last, "", 0.8)),
        experiment="upslope probe",
    )  # fmt: skip
