"""Tell, from a run's health metrics, whether an environment's numbers or the updates made an agent not finite."""

from collections.abc import Mapping

import numpy as np

from upslope.core.messages import PREFIX

FACTS = {"observations": ("observation_mean", "observation_constant"), "rewards": ("reward_mean", "end_share")}
"""What an environment returns → a health metric that is not finite if these numbers are not, and one that is finite
whenever the first was measured."""


def broken_facts(is_lost: np.ndarray, metrics: Mapping[str, np.ndarray]) -> str:
    """Return which of a seed's facts were not finite in the first iteration [I] that lost its agent; otherwise "", also
    if the health metrics were not computed in that iteration. A metric that was never finite may be missing.

    The agent that acted in that iteration was still finite, so such facts come from the environment."""
    first = int(np.argmax(is_lost))

    def is_finite(name: str) -> bool:
        return PREFIX + name in metrics and bool(np.isfinite(metrics[PREFIX + name][first]))

    broken = [what for what, (mean, other) in FACTS.items() if is_finite(other) and not is_finite(mean)]
    return broken[0] if is_lost.any() and broken else ""
