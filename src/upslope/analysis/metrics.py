"""The meaning and healthy range of each logged metric, read from metrics.yaml."""

from dataclasses import dataclass
from importlib import resources

import yaml

from upslope.core.messages import PREFIX
from upslope.runs.directory import INFO


@dataclass(frozen=True)
class Explanation:
    """The explanation of a metric."""

    title: str
    unit: str
    """Unit shown on the axis."""
    meaning: str
    """What the metric measures, in one line."""
    healthy: str
    """What a run that is learning usually shows, in one line."""


EXPLANATIONS = {
    name: Explanation(**fields)
    for name, fields in yaml.safe_load(
        resources.files("upslope.analysis").joinpath("metrics.yaml").read_text("utf-8")
    ).items()
}
"""Explanations, keyed by the metric's name in metrics.jsonl, in display order."""
HEALTH = {name: explanation for name, explanation in EXPLANATIONS.items() if name.startswith(PREFIX)}
METRICS = {name: explanation for name, explanation in EXPLANATIONS.items() if name not in HEALTH}


def explain(name: str) -> Explanation:
    """The explanation of a metric; for a custom metric, only its name."""
    if name.startswith(INFO):
        key = name.removeprefix(INFO)
        return Explanation(
            key, "as in info", f"Mean of info's `{key}` over the episodes that ended in the iteration.", ""
        )
    return EXPLANATIONS.get(name, Explanation(name, "", "", ""))
