"""What each logged metric means, and what is healthy, read from metrics.yaml."""

from dataclasses import dataclass
from importlib import resources

import yaml

from upslope.core.messages import PREFIX


@dataclass(frozen=True)
class Explanation:
    """A metric in words."""

    title: str
    unit: str
    """The unit of its axis."""
    meaning: str
    """One line."""
    healthy: str
    """One line: what a run that learns usually shows."""


EXPLANATIONS = {
    name: Explanation(**fields)
    for name, fields in yaml.safe_load(
        resources.files("upslope.analysis").joinpath("metrics.yaml").read_text("utf-8")
    ).items()
}
"""By the name in metrics.jsonl, in the order in which they are shown."""
HEALTH = {name: explanation for name, explanation in EXPLANATIONS.items() if name.startswith(PREFIX)}
METRICS = {name: explanation for name, explanation in EXPLANATIONS.items() if name not in HEALTH}


def explain(name: str) -> Explanation:
    """The explanation of a metric; a user's own metric has its name only."""
    return EXPLANATIONS.get(name, Explanation(name, "", "", ""))
