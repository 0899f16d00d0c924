"""The text of a sweep's summary and page."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from upslope.analysis.statistics import HUNDREDTHS
from upslope.core.messages import counted
from upslope.core.numbers import number
from upslope.lab.sweep.confirm import Confirmation
from upslope.lab.sweep.study import DIVERGED, Told


def counts(trials: Sequence[Told]) -> str:
    """Count the trials by state: `100 trials: 61 complete, 38 pruned, 1 diverged`."""
    found = Counter(trial.state for trial in trials)
    return f"{counted(len(trials), 'trial')}: " + ", ".join(f"{n} {state}" for state, n in found.most_common())


def setting_words(value: Any) -> str:
    """A setting's value; floating-point numbers have four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def verdict_words(found: Any) -> list[str]:
    """The result of a `Sweep` in a few sentences."""
    if found.winner is None:
        return [no_winner_words(found.trials)]
    if found.confirmation is None:
        return [reason_without(found)]
    return [sentence(found.winner, found.confirmation)]


def no_winner_words(trials: Sequence[Told]) -> str:
    """Why a sweep has no winner, and what to do."""
    reasons = list(dict.fromkeys(ended(trial.reason) for trial in trials if trial.reason))
    why = " ".join(reasons[:3]) or "All trials were pruned."
    return (
        f"No trial finished, so there is no winner ({counts(trials)}). {why} Change the space or the settings, and "
        "choose another --name."
    )


def ended(text: str) -> str:
    """The text as a sentence: capitalised, with a full stop at its end."""
    if text == DIVERGED:
        return "The agents of a trial diverged."
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "…")) else ".")


def reason_without(found: Any) -> str:
    """Why there is no comparison on fresh seeds."""
    score = f"Trial {found.winner.number} is the best of the sweep, with a return of {number(found.winner.score)}"
    if found.is_default:
        return f"{score}. It has the default settings: no trial beats them, so there is nothing to confirm."
    return f"{score}. It was not confirmed on fresh seeds, so part of this return may be luck."


def sentence(winner: Told, confirmation: Confirmation) -> str:
    """The verdict on fresh seeds."""
    verdicts = {
        "better": "beats the defaults",
        "worse": "is worse than the defaults, so its rank in the sweep was luck. Keep the defaults",
        "undecided": "does not clearly beat the defaults; more --fresh-seeds or more trials may settle the question",
    }
    seeds = len(confirmation.winner.seeds)
    scores = f"{confirmation.winner.mean.words()} against {confirmation.default.mean.words()}"
    probability = confirmation.probability.words(HUNDREDTHS)
    return (
        f"On {counted(seeds, 'fresh seed')} trial {winner.number} {verdicts[confirmation.verdict]}: mean return "
        f"{scores}, difference {confirmation.difference.words()}; one of its seeds scores higher with probability "
        f"{probability} (95 % intervals). In the sweep its score was {number(winner.score)}."
    )
