"""`make(environment)`: create an environment from any name, without silent substitutions.

A source is a prefix and the function that creates environments with such names. To add one, write a file that ends in
`SOURCE = Source(prefix, make)`, and add it to `SOURCES`.
"""

import reprlib
from dataclasses import replace
from typing import Any

from upslope.core.their_folder import TheirFolder
from upslope.environments import compiled, vector
from upslope.environments.base import (  # fmt: skip
    AnyEnvironment,
    CompiledEnvironment,
    EnvironmentLike,
    HostEnvironment,
    Request,
    Source,
)
from upslope.environments.compiled import finished
from upslope.environments.host import Maker, host_environment
from upslope.environments.modules import label_of, lost, name_of
from upslope.environments.sources import brax, craftax, gymnax, jumanji, navix, pgx, playground, xminigrid
from upslope.errors import UpslopeError

__all__ = ["AnyEnvironment", "EnvironmentLike", "HostEnvironment", "label", "lost", "make", "name_of"]

SOURCES: tuple[Source, ...] = (
    compiled.SOURCE,
    vector.SOURCE,
    vector.ENVPOOL_SOURCE,
    *(library.SOURCE for library in (gymnax, xminigrid, jumanji, pgx, navix, craftax, brax, playground)),
)
"""All sources with a prefix; names without one are Gymnasium ids or a user's `module:Name`."""


def make(
    environment: EnvironmentLike,
    env_kwargs: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
    wrappers: tuple[str, ...] = (),
    ignore_observation: tuple[str, ...] = (),
    masks: bool = True,
) -> AnyEnvironment:
    """Create an environment from a name, a callable that returns one, or a compiled environment itself.

    `CartPole-v1` and `module:Id` are Gymnasium's, on the host; `vector:CartPole-v1` is batched by Gymnasium;
    `jax:CartPole-v1` is compiled. `module:Name` and `jax:module:Name` name your own class, factory or instance;
    `gymnax:Name` and the other prefixes in `libraries.py` name compiled environments of other libraries.
    `max_episode_steps` replaces the limit of an environment given by its id; for all others, the collecting code
    applies it.
    `wrappers` are applied in order, starting with the innermost. The parts of observations under the keys
    `ignore_observation` are then removed. Without `masks`, every action is treated as allowed.

    Raises:
        UpslopeError: the name is unknown (similar names are listed), a dependency is missing, or the environment
            could not be created.
    """
    with TheirFolder():
        request = Request(
            label(environment),
            env_kwargs or {},
            max_episode_steps,
            tuple(wrappers),
            tuple(ignore_observation),
            masks=masks,
        )
        if isinstance(environment, CompiledEnvironment):
            return finished(environment, request)
        if isinstance(environment, str):
            source = next((source for source in SOURCES if environment.startswith(source.prefix)), None)
            if source is not None:
                return source.make(request)
        else:
            request = replace(request, given=environment)
        maker = Maker(request)
        made = maker()
        if isinstance(made, CompiledEnvironment):
            return finished(made, Request(request.name, {}, ignored=request.ignored, masks=masks))
        return host_environment(maker, made)


def label(environment: EnvironmentLike) -> str:
    """The name of an environment in config.json.

    Raises:
        UpslopeError: the object is neither an environment nor something that creates one.
    """
    if isinstance(environment, str):
        return environment
    if not callable(environment) and not hasattr(environment, "step"):
        raise UpslopeError(
            f"An environment is given by its name, e.g. CartPole-v1 or mine:World, as a class or function that creates "
            f"one, or as a CompiledEnvironment, not as {reprlib.repr(environment)}."
        )
    return label_of(environment)
