"""Describe the run that another run started from, according to its config.json."""

from collections.abc import Sequence
from typing import Any

from upslope.analysis.records import Record
from upslope.core.messages import counted


def lineage_of(record: Record) -> dict[str, Any] | None:
    """The lineage of a run, which was checked when the run was read; None if it started with a new agent."""
    return record.description.get("lineage")


def beginning_of(record: Record) -> str:
    """The run, checkpoint and steps that a run started from, and what was not inherited."""
    lineage = lineage_of(record)
    if lineage is None:
        return "a new agent"
    steps = sorted(set(lineage["steps"]))
    at = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
    anew = lineage["begun_anew"]
    return (
        f"{lineage['run']}@{lineage['checkpoint']} at step {at}, "
        + (f"all with its seed {lineage['seeds'][0]}" if is_shared(lineage) else listed(lineage["seeds"]))
        + f"; inherited: {', '.join(map(str, lineage['taken_over']))}"
        + (f"; started afresh: {', '.join(map(str, anew))}" if anew else "")
    )


def is_shared(lineage: dict[str, Any]) -> bool:
    """Whether several seeds started from the agent of the same seed."""
    return len(lineage["seeds"]) > 1 and len(set(lineage["seeds"])) == 1


def listed(seeds: Sequence[int]) -> str:
    """Seeds as a range, or one by one."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    is_range = len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds)))
    return "seeds " + (f"{seeds[0]} to {seeds[-1]}" if is_range else ", ".join(map(str, seeds)))


def lineage_warnings(label: str, records: Sequence[Record]) -> list[str]:
    """Caveats of a comparison: earlier steps that are not part of the budget, and seeds that started from the same
    agent."""
    found = [lineage for record in records if (lineage := lineage_of(record)) is not None]
    if not found:
        return []
    most = max(step for lineage in found for step in lineage["steps"])
    runs = ", ".join(dict.fromkeys(f"{lineage['run']}@{lineage['checkpoint']}" for lineage in found))
    words = [f"{label} started from {runs}, whose {most:,} steps per seed are not counted in its budget"]
    if shared := [lineage for lineage in found if is_shared(lineage)]:
        count = counted(len(shared[0]["seeds"]), "seed")
        words.append(
            f"{label}: {count} started from one agent, so intervals do not include how much that agent "
            "varies. Start each "
            "from its own seed (without --from-seed)"
        )
    return words
