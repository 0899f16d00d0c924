"""Whether an environment is one that a run was trained in: their spaces are compared wherever the two meet."""

from dataclasses import fields
from typing import Any

from upslope.errors import UpslopeError
from upslope.models.encoders import CompositeEncoder, ObservationEncoder, encoder_of
from upslope.models.heads import ActionHead, head_of
from upslope.runs.directory import RunDirectory
from upslope.runs.policy import has_masks, spaces_of

UNTOLD = ("dtype",)
"""Fields that runs of earlier versions did not write. They decide no number."""


def require_same_world(directory: RunDirectory, world: Any) -> tuple[ObservationEncoder, ActionHead]:
    """How an environment's observations are read and its actions meant, if that is as in the run.

    Raises:
        UpslopeError: it has other spaces.
    """
    encoder, head = (
        encoder_of(world.observation_space, world_name(world)),
        head_of(world.action_space, world_name(world)),
    )
    require_same_spaces(directory, encoder, head, world)
    return encoder, head


def require_same_spaces(directory: RunDirectory, encoder: ObservationEncoder, head: ActionHead, world: Any) -> None:
    """Refuse an environment whose spaces are not those that the run describes, or whose actions became free or not."""
    trained = spaces_of(directory)
    pairs = zip(("observation", "action"), trained, (encoder, head), strict=True)
    differences = [words for role, old, new in pairs for words in differences_of(role, old, new)]
    if has_masks(directory) != world.gives_masks:
        words = ("it gave action masks, and gives none now", "it gave no action masks, and gives them now")
        differences.append(words[world.gives_masks])
    if differences:
        raise UpslopeError(
            f"{directory.path} was trained in another environment than the one that its name and arguments give now: "
            f"{'; '.join(differences)}. Bring back the environment that it was trained in, or train a new run."
        )


def differences_of(role: str, trained: Any, now: Any) -> list[str]:
    """In which fields two descriptions of a space differ."""
    old, new = (dict(x.children) if isinstance(x, CompositeEncoder) else {} for x in (trained, now))
    if old and old.keys() == new.keys():
        return [words for key, part in old.items() for words in differences_of(f"{role}[{key!r}]", part, new[key])]
    if old and new:
        return [f"its {role}s had the parts {short(list(old))}, and have {short(list(new))}"]
    if type(trained) is not type(now):
        kinds = [type(x).__name__.removesuffix("Encoder").removesuffix("Head") for x in (trained, now)]
        return [f"its {role}s were {kinds[0]}, and are {kinds[1]}"]
    return [
        f"the {field.name} of its {role}s was {short(old)}, and is {short(new)}"
        for field in fields(trained)
        if (old := getattr(trained, field.name)) != (new := getattr(now, field.name)) and field.name not in UNTOLD
    ]


def short(value: Any) -> str:
    """A field in at most 80 characters."""
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "…"


def world_name(world: Any) -> str:
    """What messages call an environment."""
    return getattr(world, "name", type(world).__name__)
