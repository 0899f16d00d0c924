"""Work with names without importing anything: similar names, foreign namespaces, and the arguments of wrappers."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from upslope.core.strict_json import parse_json
from upslope.errors import UpslopeError


def near(name: str, known: Iterable[str]) -> str:
    """A phrase that suggests similar names."""
    lower = {k.lower(): k for k in known}
    close = [lower[k] for k in get_close_matches(name.lower(), list(lower), n=4, cutoff=0.6)]
    return f"Did you mean {', '.join(close)}?" if close else "`upslope list` shows the compiled environments."


def registered_by(environment: str) -> str:
    """How to use an id whose namespace belongs to a package unknown to upslope; empty if the id has no namespace."""
    if "/" not in environment:
        return ""
    namespace = environment.partition("/")[0]
    return (
        f"Ids that begin with {namespace}/ are registered by a separate package: install it, and add "
        f"the name of its module: module:{environment}."
    )


BATCHED = ("vector:", "envpool:")
"""Prefixes of environments that are batched on the host. An id or a user's module:Name follows the prefix."""


def without_batching(environment: str) -> str:
    """An environment's name without the prefix for batching, if it has one."""
    return next((environment.removeprefix(one) for one in BATCHED if environment.startswith(one)), environment)


def parse_wrapper(text: str) -> tuple[str, dict[str, Any]]:
    """Parse a wrapper's name and its keyword arguments.

    Raises:
        UpslopeError: the arguments are not a JSON object.
    """
    name, brace, rest = text.partition("{")
    try:
        arguments = parse_json(brace + rest) if brace else {}
    except ValueError as error:
        shown = text if len(text) <= 200 else f"{text[:200]}…"
        raise UpslopeError(
            f"The wrapper {shown} cannot be read: {error}. Arguments are a JSON object after a colon, e.g. "
            'FrameStackObservation:{"stack_size": 4}.'
        ) from error
    return name.strip().removesuffix(":").strip(), arguments
