"""The object that a user's function receives between the chunks of a run: `upslope.train(...,
on_iteration=f)`."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from upslope.config.trust import Request, allow, untrusted
from upslope.core.messages import readable
from upslope.core.reading import parse_json
from upslope.errors import UpslopeError

ROLE = "method of the environment"


class Following:
    """A run between two chunks of training.

    The user's function `f(state)` receives this object after every chunk. A chunk is one iteration if the environments
    run on the host, and about a hundredth of the run if they are compiled.

    Attributes:
        seeds: the run's seeds.
        iteration: the number of iterations so far.
        steps: each seed's environment steps so far [S].
        total_steps: the budget of each seed.
        episode_return: each seed's mean return over its last 100 training episodes [S]; nan before the first ends.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        iteration: int,
        steps: np.ndarray,
        total_steps: int,
        episode_return: np.ndarray,
        lines: Sequence[str],
        call: Callable[[str, list[Any]], None],
    ):
        self.seeds, self.iteration, self.steps, self.total_steps = tuple(seeds), iteration, steps, total_steps
        self.episode_return = episode_return
        self.is_stopped = False
        self._lines, self._call = lines, call

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """This chunk's rows of metrics.jsonl, one for each iteration and seed."""
        return [json.loads(line) for line in self._lines]

    def call(self, name: str, *arguments: Any) -> None:
        """Call a method of every environment at its next reset, e.g. to make its episodes harder.

        Calls are stored in the checkpoint, so a resumed run repeats them. Arguments can be numbers, text, and
        lists and dictionaries that contain them. A tuple is passed on as a list.

        Raises:
            UpslopeError: the environments have no such method, their methods cannot be called because they are compiled
                or batched, or an argument cannot be stored.
        """
        given = kept_arguments(name, arguments)
        self._call(name, given)
        allow([request_of(name, given)])  # calls made on this machine are trusted when the run is resumed

    def stop(self) -> None:
        """Stop after this chunk. As with Ctrl-C, everything is saved, and `upslope.resume` continues the run."""
        self.is_stopped = True


def kept_arguments(name: str, arguments: Sequence[Any]) -> list[Any]:
    """Return the arguments in the form in which a checkpoint stores them.

    Raises:
        UpslopeError: `name` is not a valid name of a public method, or an argument cannot be stored.
    """
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        raise UpslopeError(f"state.call() takes the name of a method, not {readable(repr(name))}.")
    plain = [x.item() if isinstance(x, np.generic) else x for x in arguments]
    try:
        return parse_json(json.dumps(plain, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UpslopeError(
            f"state.call({name!r}, …) received an argument that a checkpoint cannot store: {error}. Pass "
            "numbers, text, or lists and dictionaries of these."
        ) from error


def request_of(name: str, arguments: Sequence[Any]) -> Request:
    """Convert the call to a request for trust, as if it came from a file. Numeric arguments need no trust."""
    text = json.dumps([x for x in arguments if not isinstance(x, bool | int | float | None)])
    return Request(ROLE, name, {} if text == "[]" else {"arguments": text})


def require_calls(calls: Sequence[tuple[str, list[Any]]], source: Any, *, trust: bool) -> None:
    """Check that the calls to environments' methods stored in a checkpoint are allowed.

    Raises:
        UpslopeError: a call is not allowed.
    """
    wanted = [request_of(name, arguments) for name, arguments in calls]
    if trust:
        allow(wanted)
    if unknown := untrusted(wanted):
        names = ", ".join(dict.fromkeys(one.words() for one in unknown))
        raise UpslopeError(
            f"{source} asks to call {names}. A file can name any method, so nothing was called. If you know what this "
            "does and want it called, add --trust; in Python, pass trust=True."
        )
