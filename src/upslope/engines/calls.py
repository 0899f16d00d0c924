"""Call environments' methods during training. Each environment makes the calls in order, before its next reset.

When its current episode began, an environment had made the first `called` calls. This number is enough to rebuild the
episode: a new environment makes that many calls before the episode is replayed, and the remaining calls before the next
episode.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np

from upslope.core.reading import parse_json
from upslope.errors import UpslopeError

Call = tuple[str, list[Any]]
"""A method's name and its arguments."""


def method_of(env: gymnasium.Env, name: str, environment: str) -> Any:
    """Return the method with this name of the environment or one of its wrappers.

    Raises:
        UpslopeError: there is no such method.
    """
    find = getattr(env, "get_wrapper_attr", None)
    try:
        found = getattr(env, name) if find is None else find(name)
    except AttributeError:
        found = None
    if not callable(found):
        raise UpslopeError(
            f"{environment} has no method {name} to call. Add a method with this name to its class or to a "
            "wrapper, to change how later episodes begin."
        )
    return found


def as_array(calls: Sequence[Call]) -> np.ndarray:
    """Convert the calls to bytes for a snapshot."""
    return np.frombuffer(json.dumps(calls).encode(), np.uint8)


def calls_in(snapshot: Mapping[str, np.ndarray]) -> list[Call]:
    """Read the calls in a snapshot.

    Raises:
        ValueError: the calls are not a list of names and arguments, or an environment has made more calls than there
            are.
    """
    if "calls" not in snapshot:
        return []
    found, called = (
        parse_json(np.asarray(snapshot["calls"], np.uint8).tobytes().decode("utf-8")),
        snapshot.get("called"),
    )
    is_sound = isinstance(found, list) and all(
        isinstance(one, list)
        and len(one) == 2
        and isinstance(one[0], str)
        and one[0].isidentifier()
        and not one[0].startswith("_")
        and isinstance(one[1], list)
        for one in found
    )
    if not is_sound or called is None or called.dtype.kind != "i" or called.shape != snapshot["length"].shape:
        raise ValueError("its calls are not a list of methods and arguments")
    if called.size and not 0 <= called.min() <= called.max() <= len(found):
        raise ValueError("an environment has made more calls than there are")
    return [(name, arguments) for name, arguments in found]
