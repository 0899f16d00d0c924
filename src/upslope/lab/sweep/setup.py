"""The configs that a sweep trains: the default config, and the config of each trial in the space around it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from upslope.config.config import Config, canonical
from upslope.config.ladder import ALGORITHMS
from upslope.config.prepare import configured, missing_reader, refuse_unread
from upslope.config.task import estimator_of, objective_of, task_of
from upslope.core.space_parts import has_box
from upslope.environments.registry import AnyEnvironment, EnvironmentLike
from upslope.errors import UpslopeError
from upslope.lab.sweep.space import Space, read_space, refuse_in_a_sweep, shipped_space
from upslope.learning.iteration import Task

SELECTING = ("estimator", "objective", "optimiser", "memory", "shared_trunk", "model", "head")
"""Settings that determine which other settings are used."""


@dataclass(frozen=True)
class Setup:
    """The default config of a sweep, its environment, and the searched space."""

    default: Config
    environment: AnyEnvironment
    space: Space

    def config(self, drawn: Mapping[str, Any]) -> Config:
        """The config of a trial with the values that the sampler drew: the default config except for the searched
        settings.

        Raises:
            UpslopeError: the values are incompatible.
        """
        return replace(self.default, **self.space.settings(drawn))

    def task(self, config: Config) -> Task:
        """The task of a trial. All trials have the same environment."""
        return task_of(config, self.environment)

    def described(self) -> dict[str, Any]:
        """A description, for the storage, of everything that must be equal for trials to be comparable."""
        config = self.default.to_json()
        named = {name: config.pop(name) for name in ("environment", "algorithm", "steps", "seeds", "seed")}
        return {**named, "space": self.space.to_json(), "settings": config}


def setup_of(
    environment: EnvironmentLike,
    algorithm: str,
    space: str | Path | Mapping[str, Any] | None,
    preset: bool | str,
    settings: Mapping[str, Any],
) -> Setup:
    """The setup of a sweep. `settings` override the values that the space fixes.

    Raises:
        UpslopeError: a setting or the space is invalid, or a setting has no effect.
    """
    if algorithm in ALGORITHMS and ALGORITHMS[algorithm].source == "recorded":
        raise UpslopeError(
            f"{algorithm} learns from recorded data, but a sweep scores a trial by the episodes that it collects in "
            "training. Sweep a rung that collects its own experience, e.g. ppo."
        )
    given = read_space(space) if space is not None else None
    fixed = dict(given.fixed) if given else {}
    asked = fixed | canonical(settings)
    for name, value in asked.items():
        if value is not None:
            refuse_in_a_sweep(name)
    default, made, _, parts = configured(environment, algorithm, preset=preset, settings=asked)
    task = task_of(default, made, parts)
    shipped = shipped_space(is_continuous=has_box(made.action_space))
    read = with_searched_entropy(
        default, given or shipped.only([name for name in shipped.searched if name not in asked])
    )
    refuse_unread(asked, read, task)
    if given is None:
        is_read = [name for name in shipped.searched if not missing_reader(name, read, task)]
        return Setup(default, made, shipped.only([name for name in is_read if name not in asked]))
    if twice := [name for name in given.searched if name in asked]:
        raise UpslopeError(f"{', '.join(twice)} is searched by the space and also set. Omit one of the two.")
    if not set(given.searched) & set(SELECTING):
        refuse_unread(given.searched, read, task)
    check_ends(given, default)
    return Setup(default, made, given)


def with_searched_entropy(default: Config, space: Space) -> Config:
    """The config with the largest entropy coefficient that the space contains, since its schedule has no effect if the
    coefficient is always 0."""
    searched = space.searched.get("entropy_coefficient")
    return default if searched is None else replace(default, entropy_coefficient=max(searched.ends()))


def check_ends(space: Space, default: Config) -> None:
    """Reject a range or choices whose extreme values a config does not allow."""
    for name, parameter in space.searched.items():
        for end in parameter.ends():
            try:
                config = replace(default, **{name: end})
                estimator_of(config)
                objective_of(config)
            except UpslopeError as error:
                raise UpslopeError(f"The space contains {name} = {end}. {error}") from error
