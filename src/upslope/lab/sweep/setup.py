"""The configs that a sweep trains: the default config, and the config of each trial in the space around it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

from upslope.config.config import PARTS_BY_NAME, Config, canonical, configure
from upslope.config.ladder import ALGORITHMS
from upslope.config.prepare import configured, missing_reader, refuse_long_sequences, refuse_unread, try_optimiser
from upslope.config.task import estimator_of, objective_of, task_of
from upslope.core.space_parts import has_box
from upslope.environments.registry import AnyEnvironment, EnvironmentLike
from upslope.errors import UpslopeError
from upslope.lab.sweep.space import Space, read_space, refuse_in_a_sweep, shipped_space
from upslope.learning.devices import computing
from upslope.learning.iteration import Task, fresh_networks

SELECTING = ("estimator", "objective", "bonus", "optimiser", "memory", "shared_trunk", "model", "head")
"""Settings that determine which other settings are used."""
OF_PARTS = ("model_kwargs", "bonus_kwargs", "encoder", "policy_reads", "critic_reads")
"""Settings that determine how parts are created."""
MOST_TRIED = 20
"""Maximum number of combinations of parts that are created to find one that can be trained."""
MOST_PARTS = 1000
"""Maximum number of combinations of parts that are searched for one that uses a setting."""


@dataclass(frozen=True)
class Setup:
    """The default config of a sweep, its environment, and the searched space."""

    default: Config
    environment: AnyEnvironment
    space: Space
    conditional: Mapping[str, Any] = field(default_factory=dict)
    """Fixed settings that the default does not use, but trials with other parts do."""

    def config(self, drawn: Mapping[str, Any]) -> Config:
        """The config of a trial with the values that the sampler drew: the default config except for the searched
        settings and those that only some trials use. Settings that this trial does not use keep the default's values.

        Raises:
            UpslopeError: the values are incompatible.
        """
        return self.used(replace(self.default, **self.conditional, **self.space.settings(drawn)))

    def used(self, config: Config) -> Config:
        """The config of a trial with the default's values for those settings that the trial does not use."""
        if not set(self.space.searched) & set(SELECTING):
            return config
        read, task = with_searched_entropy(config, self.space), self.task(config)
        unread = [name for name in (*self.conditional, *self.space.searched) if missing_reader(name, read, task)]
        return replace(config, **{name: getattr(self.default, name) for name in unread})

    def task(self, config: Config) -> Task:
        """The task of a trial. All trials have the same environment."""
        return task_of(config, self.environment)

    def described(self) -> dict[str, Any]:
        """A description, for the storage, of everything that must be equal for trials to be comparable."""
        config = replace(self.default, **self.conditional).to_json()
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
    with computing(on_host=not made.is_compiled):  # creating agents must not fix JAX's devices to the default ones
        task = task_of(default, made, parts)
        if given is None:
            setup = around(default, made, task, asked)
        else:
            setup = within(given, default, made, task, asked, preset)
        check_parts(setup)
    return setup


def within(
    space: Space,
    default: Config,
    environment: AnyEnvironment,
    task: Task,
    asked: Mapping[str, Any],
    preset: bool | str,
) -> Setup:
    """The setup that searches a user's space. Settings that only trials with other parts use are not the default's."""
    if twice := [name for name in space.searched if name in asked]:
        raise UpslopeError(f"{', '.join(twice)} is searched by the space and also set. Omit one of the two.")
    read = with_searched_entropy(default, space)
    unread = [name for name in (*asked, *space.searched) if missing_reader(name, read, task)]
    refuse_never_read(Setup(default, environment, space), unread)
    conditional = {name: value for name, value in asked.items() if name in unread}
    if conditional:
        plain = {name: value for name, value in asked.items() if name not in unread}
        options = {"is_continuous": has_box(environment.action_space), "use_preset": preset}
        without = configure(default.environment, default.algorithm, **options, **plain)
        default = replace(default, **{name: getattr(without, name) for name in conditional})
    check_ends(space, default)
    return Setup(default, environment, space, conditional)


def around(default: Config, environment: AnyEnvironment, task: Task, asked: Collection[str]) -> Setup:
    """The setup that searches those settings of the shipped space that the default uses and that were not set."""
    shipped = shipped_space(is_continuous=has_box(environment.action_space))
    space = shipped.only([name for name in shipped.searched if name not in asked])
    read = with_searched_entropy(default, space)
    refuse_unread(asked, read, task)
    return Setup(default, environment, space.only([n for n in space.searched if not missing_reader(n, read, task)]))


def refuse_never_read(setup: Setup, unread: Collection[str]) -> None:
    """Reject those of these settings, which the default does not use, that no other trial uses either. If there are too
    many combinations of parts to know, none is rejected."""
    left = list(unread)
    for count, chosen in enumerate(combinations_of_parts(setup.space), 1):
        if not left or count == MOST_PARTS:
            return
        try:
            config = with_searched_entropy(replace(setup.default, **chosen), setup.space)
            task = setup.task(config)
            left = [name for name in left if missing_reader(name, config, task)]
        except UpslopeError:  # these parts do not fit together
            continue
    refuse_unread(left, with_searched_entropy(setup.default, setup.space), setup.task(setup.default))


def combinations_of_parts(space: Space, **fixed: Any) -> Iterator[dict[str, Any]]:
    """The combinations of the searched parts that determine which other settings are used, some of them fixed, but at
    most `MOST_PARTS`."""
    choices = {n: p.ends() for n, p in space.searched.items() if n in SELECTING and n not in fixed}
    for values in islice(product(*choices.values()), MOST_PARTS):
        yield fixed | dict(zip(choices, values, strict=True))


def check_parts(setup: Setup) -> None:
    """Create the agent of the default, and of a trial with each choice of a part or of its arguments. A mistake that
    would make every such trial fail is thus found before the first one.

    Raises:
        UpslopeError: the default cannot be trained, or no trial with one of the choices can be.
    """
    try_config(setup, setup.default)
    for name, parameter in setup.space.searched.items():
        if name not in (*SELECTING, *PARTS_BY_NAME, *OF_PARTS):
            continue
        for choice in parameter.ends():
            if choice != getattr(setup.default, name) and (error := why_never(setup, name, choice)):
                raise UpslopeError(f"The space contains {name} = {choice}. {error}") from error


def why_never(setup: Setup, name: str, choice: Any) -> UpslopeError | None:
    """Why trials with this choice cannot be trained; None if one of those that are tried can be. The reason is that of
    the default with this choice."""
    found = None
    for chosen in ({name: choice}, *islice(combinations_of_parts(setup.space, **{name: choice}), MOST_TRIED)):
        try:
            try_config(setup, replace(setup.default, **setup.conditional, **chosen))
        except UpslopeError as error:
            found = found or error
        else:
            return None
    return found


def try_config(setup: Setup, config: Config) -> None:
    """Create the agent that a config describes.

    Raises:
        UpslopeError: it cannot be created.
    """
    task = setup.task(config)
    refuse_long_sequences(config, task)
    try_optimiser(task)
    fresh_networks(task, [config.seed])


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
