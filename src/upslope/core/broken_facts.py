"""Tell, from a run's health metrics, whether an environment's numbers or the updates made an agent not finite."""

from collections.abc import Mapping

import numpy as np

from upslope.core.messages import PREFIX

FACTS = {
    "observations": (("observation_mean", "observation_max"), "observation_constant"),
    "rewards": (("reward_mean",), "end_share"),
}
"""What an environment returns → health metrics that are all not finite if these numbers are not, and one that is finite
whenever they were measured. If observations are too large, only their mean overflows, not the largest of them."""
TOO_LARGE = 1e17
"""From this size on, sums of their squares over a batch may overflow in 32 bits."""


def broken_facts(is_lost: np.ndarray, metrics: Mapping[str, np.ndarray]) -> str:
    """Return which of a seed's facts were not finite in the first iteration [I] that lost its agent; otherwise "", also
    if the health metrics were not computed in that iteration. A metric that was never finite may be missing.

    The networks that acted in that iteration were still finite, so such facts come from the environment."""
    first = int(np.argmax(is_lost))

    def is_finite(name: str) -> bool:
        return PREFIX + name in metrics and bool(np.isfinite(metrics[PREFIX + name][first]))

    broken = [what for what, (all_of, other) in FACTS.items() if is_finite(other) and not any(map(is_finite, all_of))]
    return broken[0] if is_lost.any() and broken else ""


def largest_observation(metrics: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the largest |number| in the observations that the networks read over all iterations […, I]; 0 if none was
    measured. Normalised ones are cut off at 10, so they are never too large."""
    sizes = metrics.get(PREFIX + "observation_max")
    if sizes is None:
        return np.zeros(())
    return np.max(np.where(np.isfinite(sizes), sizes, 0.0), axis=-1, initial=0.0)


def fault_in_words(broken: str, *, is_normalised: bool) -> str:
    """Say what is wrong with the facts that `broken_facts` returned. Observations of any size become not a number once
    the normaliser's sums of squares have overflowed."""
    may_be_large = broken == "observations" and is_normalised
    or_large = ", or so large that sums of their squares overflow in 32 bits" if may_be_large else ""
    return f"The environment returned {broken} that are not finite{or_large}."


def too_large(size: float) -> str:
    """Say that observations of this size are too large; empty if they are not."""
    if size < TOO_LARGE:
        return ""
    return f"The observations contain numbers as large as {size:.2g}, and sums of their squares overflow in 32 bits."


def scaling_remedy(*, is_normalised: bool) -> str:
    """Say what to do about observations that are too large."""
    instead = ", or use --no-normalize-observations" if is_normalised else ""
    return f"Scale them in the environment or in a wrapper{instead}."
