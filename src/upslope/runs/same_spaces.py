"""Check that an environment has the spaces that a run was trained with."""

from dataclasses import fields
from typing import Any

from upslope.errors import UpslopeError
from upslope.models.encoders import CompositeEncoder, ObservationEncoder, encoder_of
from upslope.models.head import ActionHead
from upslope.models.heads import head_of
from upslope.models.product_heads import ProductHead
from upslope.runs.directory import RunDirectory
from upslope.runs.policy import has_masks, spaces_of
from upslope.runs.same_settings import require_same_agents

UNRECORDED = ("dtype",)
"""Fields that older runs did not record. They do not affect results."""


def require_same_environment(directory: RunDirectory, environment: Any) -> tuple[ObservationEncoder, ActionHead]:
    """Return the encoder and head of an environment if they match those of the run; otherwise raise an error.

    Raises:
        UpslopeError: the spaces differ.
    """
    encoder, head = (
        encoder_of(environment.observation_space, environment_name(environment)),
        head_of(environment.action_space, environment_name(environment)),
    )
    require_same_spaces(directory, encoder, head, environment)
    return encoder, head


def require_same_spaces(
    directory: RunDirectory, encoder: ObservationEncoder, head: ActionHead, environment: Any
) -> None:
    """Raise an error if an environment's spaces or use of action masks differ from the run's."""
    trained = spaces_of(directory)
    pairs = zip(("observation", "action"), trained, (encoder, head), strict=True)
    differences = [words for role, old, new in pairs for words in differences_of(role, old, new)]
    if has_masks(directory) != environment.gives_masks:
        words = (
            "it provided action masks, but provides none now",
            "it provided no action masks, but provides them now",
        )
        differences.append(words[environment.gives_masks])
    if differences:
        require_same_agents(directory, directory.config(), directory.last)  # an edited config.json explains them
        raise UpslopeError(
            f"{directory.path} was trained in a different environment from the one that the same name and "
            f"arguments now produce: {'; '.join(differences)}. Restore that environment, or train a new run."
        )


def differences_of(role: str, trained: Any, now: Any, key: str = "") -> list[str]:
    """Describe how two descriptions of a space, or of its part under this key, differ."""
    what = f"its {role}s at `{key}`" if key else f"its {role}s"
    old, new = (dict(x.children) if isinstance(x, CompositeEncoder | ProductHead) else {} for x in (trained, now))
    if old and old.keys() == new.keys():
        inner = [(f"{key}/{name}" if key else str(name), part, new[name]) for name, part in old.items()]
        return [words for place, part, other in inner for words in differences_of(role, part, other, place)]
    if old and new:
        return [
            f"{what} had the parts {short(', '.join(map(str, old)))}, and now have {short(', '.join(map(str, new)))}"
        ]
    if type(trained) is not type(now):
        kinds = [type(x).__name__.removesuffix("Encoder").removesuffix("Head") for x in (trained, now)]
        return [f"{what} were {kinds[0]}, and are now {kinds[1]}"]
    return [
        f"the {field.name} of {what} was {short(old)}, and is now {short(new)}"
        for field in fields(trained)
        if (old := getattr(trained, field.name)) != (new := getattr(now, field.name)) and field.name not in UNRECORDED
    ]


def short(value: Any) -> str:
    """Shorten a value to at most 80 characters."""
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "…"


def environment_name(environment: Any) -> str:
    """Return an environment's name for messages."""
    return getattr(environment, "name", type(environment).__name__)
