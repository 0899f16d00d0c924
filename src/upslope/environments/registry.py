"""make(environment): any name → an environment, and nothing swapped silently.

A source is a prefix and what makes the environments of such names. To add one, write a file that ends in
`SOURCE = Source(prefix, make)`, and add it to `SOURCES`.
"""

from dataclasses import replace
from typing import Any

from upslope.environments import compiled
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

__all__ = ["AnyEnvironment", "EnvironmentLike", "HostEnvironment", "label", "lost", "make", "name_of"]

SOURCES: tuple[Source, ...] = (compiled.SOURCE,)
"""Every source with a prefix of its own; names without one are Gymnasium's, or a user's `module:Name`."""


def make(
    environment: EnvironmentLike,
    env_kwargs: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
    wrappers: tuple[str, ...] = (),
    ignore_observation: tuple[str, ...] = (),
    masks: bool = True,
) -> AnyEnvironment:
    """The environment of a name, of a callable that returns one, or of a compiled environment itself.

    `CartPole-v1` and `module:Id` are Gymnasium's, on the host; `jax:CartPole-v1` is compiled. `module:Name` and
    `jax:module:Name` name a class, a factory or an instance of your own. A `max_episode_steps` replaces the limit of
    an environment given by its id; elsewhere whatever collects applies it. `wrappers` are put around it, the first
    innermost, and then the parts of observations under the keys `ignore_observation` are left out. Without `masks`
    every action is taken to be allowed.

    Raises:
        UpslopeError: the name is unknown (near names are given), a dependency is missing, or the environment
            could not be made.
    """
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
    """What config.json says of an environment: its name."""
    return environment if isinstance(environment, str) else label_of(environment)
