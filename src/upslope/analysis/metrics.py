"""What each logged metric means, and what is healthy: one table, for reports, the doctor and the documentation."""

from upslope.analysis.explanation import Explanation
from upslope.analysis.health_metrics import HEALTH

METRICS: dict[str, Explanation] = {
    "episode/return": Explanation(
        "Return of finished episodes",
        "reward",
        "Mean undiscounted return of the training episodes that ended in the iteration, actions sampled.",
        "Rises, then levels off; compare it with a random policy's.",
    ),
    "episode/length": Explanation(
        "Length of finished episodes",
        "steps",
        "Mean number of steps of the training episodes that ended in the iteration.",
        "Follows the task: longer where staying alive pays, shorter where arriving does.",
    ),
    "episode/count": Explanation(
        "Finished episodes",
        "episodes per iteration",
        "How many training episodes ended in the iteration.",
        "Above 0: without a finished episode there is no return to look at.",
    ),
    "policy/entropy": Explanation(
        "Entropy of the policy",
        "nats",
        "H(π(·|s)), mean over the batch: ln A for A equally probable actions; below 0 is possible for Box actions.",
        "Falls slowly. At once to 0: it stopped exploring. Never falls: it learns nothing.",
    ),
    "policy/kl": Explanation(
        "KL divergence of an update",
        "nats",
        "KL(π_old‖π_θ), mean over the batch: how far one iteration moved the policy.",
        "Below 0.02; spikes above 0.1 come before collapses.",
    ),
    "policy/clip_fraction": Explanation(
        "Clip fraction",
        "share of samples",
        "How often the ratio π_θ/μ left [1 − ε, 1 + ε] by the end of the update.",
        "0.05 to 0.3. Near 0: steps are small; above 0.4: they are too large.",
    ),
    "policy/effective_sample_size": Explanation(
        "Effective sample size",
        "share of samples",
        "(Σρ)²/(nΣρ²) of the ratios ρ = π_θ/μ: which share of the batch still counts.",
        "Near 1 on policy; below 0.5 a few samples decide the step.",
    ),
    "policy/gradient_norm": Explanation(
        "Gradient norm of the policy",
        "norm, before clipping",
        "Length of the policy's gradient, mean over the iteration's steps.",
        "Steady, without spikes; always far above max_grad_norm: every step is clipped.",
    ),
    "policy/loss": Explanation(
        "Loss of the policy",
        "no unit",
        "−(objective + entropy bonus), mean over the iteration's steps. Its level says nothing about the return.",
        "Near 0 and without trend for ratio objectives; read entropy and KL instead.",
    ),
    "critic/explained_variance": Explanation(
        "Explained variance of the critic",
        "share of variance",
        "1 − Var(target − V)/Var(target) before the update: how much of the returns the critic foresees.",
        "Rises towards 1. Near 0: no better than a constant; below 0: worse.",
    ),
    "critic/loss": Explanation(
        "Loss of the critic",
        "squared scaled reward",
        "Mean of ½(V − target)² over the iteration's steps, in the learner's unit of reward.",
        "Falls, then steady; it may rise while returns grow.",
    ),
    "critic/gradient_norm": Explanation(
        "Gradient norm of the critic",
        "norm, before clipping",
        "Length of the critic's gradient, mean over the iteration's steps.",
        "Falls or is steady; spikes mean targets that jump.",
    ),
    "objective/beta": Explanation(
        "KL penalty β",
        "reward per nat",
        "The weight of the KL penalty; the adaptive one doubles or halves to hold the KL near its target.",
        "Settles. Rising without end: the step is too large for its target.",
    ),
    "time/steps_per_second": Explanation(
        "Speed",
        "environment steps per second",
        "Environment steps of all seeds together, per second of wall-clock time.",
        "Steady after the first chunk, in which programs are compiled.",
    ),
    "time/elapsed": Explanation(
        "Time",
        "s",
        "Wall-clock time since training began or was resumed.",
        "Grows in a straight line.",
    ),
}
"""By the name in metrics.jsonl, in the order in which they are shown."""


def explain(name: str) -> Explanation:
    """The explanation of a metric; of one that is not ours, its name."""
    return (METRICS | HEALTH).get(name, Explanation(name, "", "", ""))
