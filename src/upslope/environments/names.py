"""What names reveal without an import: similar names, packages that register ids, wrappers' arguments."""

import json
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from upslope.errors import UpslopeError

PACKAGES = {
    "ALE/": "ale_py",
    "MiniGrid-": "minigrid",
    "BabyAI-": "minigrid",
    "FetchPush": "gymnasium_robotics",
    "FetchReach": "gymnasium_robotics",
    "FetchSlide": "gymnasium_robotics",
    "FetchPickAndPlace": "gymnasium_robotics",
    "HandReach": "gymnasium_robotics",
    "PointMaze_": "gymnasium_robotics",
    "AntMaze_": "gymnasium_robotics",
    "AdroitHand": "gymnasium_robotics",
    "FrankaKitchen": "gymnasium_robotics",
    "highway-": "highway_env",
    "merge-v": "highway_env",
    "roundabout-": "highway_env",
    "parking-": "highway_env",
    "intersection-": "highway_env",
    "racetrack-": "highway_env",
    "PyFlyt/": "PyFlyt.gym_envs",
    "Meta-World/": "metaworld",
    "dm_control/": "shimmy",
    "flappy_bird": "flappy_bird_gymnasium",
    "FlappyBird-": "flappy_bird_gymnasium",
}
"""Prefix of a well-known package's ids → the module that registers them."""


def near(name: str, known: Iterable[str]) -> str:
    """A phrase that suggests similar names."""
    lower = {k.lower(): k for k in known}
    close = [lower[k] for k in get_close_matches(name.lower(), list(lower), n=4, cutoff=0.6)]
    return f"Did you mean {', '.join(close)}?" if close else "`upslope list` shows the compiled environments."


def registered_by(environment: str) -> str:
    """The module to prepend to an id; empty if it is unknown."""
    package = next((module for start, module in PACKAGES.items() if environment.startswith(start)), None)
    if package:
        return f"The package {package} registers it: install it, and name both, {package}:{environment}."
    if "/" in environment:
        namespace = environment.partition("/")[0]
        return (
            f"Ids that begin with {namespace}/ are registered by a package of their own: install it, and name its "
            f"module too, module:{environment}."
        )
    return ""


def parse_wrapper(text: str) -> tuple[str, dict[str, Any]]:
    """Parse a wrapper's name and its keyword arguments.

    Raises:
        UpslopeError: the arguments are not a JSON object.
    """
    name, brace, rest = text.partition("{")
    try:
        arguments = json.loads(brace + rest) if brace else {}
    except ValueError as error:
        raise UpslopeError(
            f"The wrapper {text} cannot be read: {error}. Arguments are a JSON object after a colon, e.g. "
            'FrameStackObservation:{"stack_size": 4}.'
        ) from error
    return name.strip().removesuffix(":").strip(), arguments
