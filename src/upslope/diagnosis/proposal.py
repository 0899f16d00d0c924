"""The command that starts training, with the reason for each choice in it."""

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from upslope.config.command import flag
from upslope.config.config import is_plain_key
from upslope.config.presets import DEFAULT_PRESET, preset_of
from upslope.diagnosis.check_results import Choice
from upslope.diagnosis.checks import Examined, is_too_large, wants_normalising
from upslope.engines.infos import MAX_SHOWN
from upslope.environments.registry import lost
from upslope.models.composed import layout_of, networks_of
from upslope.models.description import kind_of
from upslope.models.encoders import encoder_of


def advice(e: Examined, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings to start training with; `settings` are the ones with which the environment was created."""
    advised: dict[str, Any] = {"seeds": 5, **{name: value for name, value in settings.items() if value}}
    if is_too_large(e):
        advised["normalize_observations"] = False
    if preset_of(e.name, "ppo") is None:
        if wants_normalising(e):
            advised["normalize_observations"] = True
        if e.limit is None and not e.trial.lengths:
            advised["max_episode_steps"] = 1000
    if success := tuple(key for key in logged(e) if "success" in key.lower()):
        advised["log_info"] = success
    return advised | ({"memory": "gru"} if e.suspicion.is_hidden else {})


def logged(e: Examined) -> list[str]:
    """The keys under which `info` had a number at the end of every episode, and which --log-info can log."""
    found = [set(numbers) for numbers in e.trial.info]
    return sorted(key for key in set.intersection(*found) if is_plain_key(key)) if found else []


def command(e: Examined, settings: dict[str, Any]) -> str:
    """The line that starts training: a shell command, or a Python call if the environment has no name."""
    advised = advice(e, settings)
    if lost(e.name):
        return f"upslope.train(environment, {', '.join(f'{name}={value!r}' for name, value in advised.items())})"
    words = [word for name, value in advised.items() for word in flag(name.replace("_", "-"), value)]
    return shlex.join(["upslope", "train", e.name, *words])


def choices(e: Examined, settings: dict[str, Any], unread: Sequence[tuple[str, Any]]) -> Iterator[Choice]:
    """The choices behind the command, each with its reason. `unread` are the keys and spaces that no network can
    read."""
    preset = preset_of(e.name, "ppo")
    if preset is not None:
        yield Choice(f"preset {DEFAULT_PRESET}", f"tuned settings for {e.name} from {preset['source']}")
    yield from readers(e)
    for key, space in unread:
        yield Choice(shlex.join(["--ignore-observation", key]), f"{kind_of(space)}, which no network can read")
    if e.environment.gives_masks:
        yield Choice("action masks", "the environment reports which actions are allowed; no others are taken")
    if e.suspicion.is_hidden:
        yield Choice("--memory gru", f"a suspicion; compare with a run without it: {e.suspicion.words}")
    advised = advice(e, settings)
    if advised.get("normalize_observations") is False:
        yield Choice("--no-normalize-observations", "sums of the squares of such large numbers overflow in 32 bits")
    elif "normalize_observations" in advised:
        yield Choice("--normalize-observations", "some numbers are far from 0, or far larger or smaller than 1")
    yield from of_info(e)
    if advised.get("max_episode_steps") and not settings["max_episode_steps"]:
        yield Choice("--max-episode-steps 1000", "no episode ended, and the environment has no limit")


def of_info(e: Examined) -> Iterator[Choice]:
    """Choose what to log for every episode, and list what else can be logged."""
    success = [key for key in logged(e) if "success" in key.lower()]
    if success:
        yield Choice(shlex.join(["--log-info", *success]), "at an episode's end, info reports whether it succeeded")
    others = [key for key in logged(e) if key not in success]
    if others:
        more = f", and {len(others) - MAX_SHOWN} others" if len(others) > MAX_SHOWN else ""
        words = f"can be added: info has these numbers at an episode's end{more}"
        yield Choice(shlex.join(["--log-info", *others[:MAX_SHOWN]]), words)


def readers(e: Examined) -> Iterator[Choice]:
    """For each image, the convolutional network that reads it, and the reason."""
    encoder = encoder_of(e.environment.observation_space, e.name)
    inner = {key: part for key, part, _ in encoder.leaves(encoder.shapes)}
    for key, network in networks_of(encoder):
        height, width, channels = layout_of(inner[key]).size
        name = f"`{key}`" if key else "the observation"
        words = f"{name} is an image of {height} × {width} with {channels} channel{'s' * (channels != 1)}"
        yield Choice(f"encoder {network}", f"{words}; {SIZES[network]} are read by this network")


SIZES = {
    "board": "images of up to 16 cells per side",
    "impala": "images of more than 16 and fewer than 36 pixels per side",
    "nature": "images of at least 36 pixels per side",
}
"""Network → the images for which it is chosen."""
