"""The summary of a sweep: its best trials, and the winner's performance on fresh seeds."""

from collections.abc import Iterator
from typing import Any

from upslope.cli.terminal import table
from upslope.core.messages import shell
from upslope.core.numbers import number
from upslope.lab.sweep.sweep import Sweep
from upslope.lab.sweep.words import counts, setting_words, verdict_words

BEST = 5
"""Number of best trials in the table."""


def sweep_table(found: Sweep) -> Any:
    """The best trials with their settings."""
    complete = sorted((t for t in found.trials if t.state == "complete"), key=lambda t: (-t.score, t.number))[:BEST]
    names = list(dict.fromkeys(name for t in complete for name in t.drawn))
    rows = [[str(t.number), number(t.score), *(setting_words(t.drawn.get(n)) for n in names)] for t in complete]
    title = f"the best of {counts(found.trials)}"
    return table(title, [">trial", ">return", *(f">{name.rstrip('_')}" for name in names)], rows)


def sweep_lines(found: Sweep) -> Iterator[str]:
    """The verdict on fresh seeds, and what to do next."""
    if found.winner is not None:  # otherwise the command fails with these words
        yield from verdict_words(found)
    if found.config is not None:
        settings = found.path / "winner.yaml"
        yield f"train it:  {shell('upslope', 'train', found.config.environment, '--config', settings)}"
    if found.report is not None:
        yield f"report:  {found.report}"
