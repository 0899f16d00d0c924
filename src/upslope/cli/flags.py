"""The flags of each command, and how those of `train` get their defaults."""

import contextlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from upslope.config.config import Config, canonical, configure, fresh, positive
from upslope.config.trust import ROLES, Request, requested, require
from upslope.core.files import MAX_SETTINGS, plain_file
from upslope.core.messages import readable
from upslope.errors import UpslopeError

Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"])]
Trust = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Run = tyro.conf.Positional[Path]
Runs = tyro.conf.Positional[tuple[Path, ...]]
Wrappers = Annotated[tuple[str, ...], tyro.conf.arg(name="wrapper"), tyro.conf.UseAppendAction]
JSON = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON",
    instance_from_str=lambda words: json.loads(words[0]),
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [json.dumps(value)],
)
"""How a dictionary is given on the command line."""


@dataclass(frozen=True)
class Train(Config):
    """Train an agent on an environment, and leave a run directory.

    Flags you leave out take the values shown, which follow from the environment's action space, the algorithm and the
    environment's preset: give both to see theirs, e.g. `upslope train HalfCheetah-v5 --help`.
    """

    env_kwargs: Annotated[dict[str, Any], JSON] = field(default_factory=dict)
    """Keyword arguments for the environment, as JSON, e.g. '{"g": 9.81}'."""
    name: str | None = None
    """Name of the run directory; made from environment and algorithm by default. An existing one is refused."""
    folder: Path = Path("runs")
    """Where run directories are kept."""
    config: Path | None = None
    """A YAML file of settings, by the names of these flags; flags override it."""
    no_preset: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Do not use the environment's tuned settings."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run of this --name if it exists and its config is the same."""
    tensorboard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also write TensorBoard event files (needs the extra `tensorboard`)."""
    workers: int | None = None
    """Processes among which the seeds of a Gymnasium environment are shared out; by default one a core, where the run
    is long enough. The result does not depend on it."""
    trust: Trust = False
    """Run the code that --config names; it may do anything. Without this it is shown and asked for, or refused."""
    quiet: Quiet = False
    """Print nothing but warnings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(workers=self.workers)

    def settings(self) -> Config:
        """The config alone."""
        return Config(**{name: getattr(self, name) for name in Config.__dataclass_fields__})


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped, as if it had not been."""

    run: Run
    """The run directory."""
    tensorboard: bool = False
    """Also write TensorBoard event files."""
    workers: int | None = None
    """Processes among which the seeds of a Gymnasium environment are shared out; by default one a core, where the run
    is long enough. The result does not depend on it."""
    trust: Trust = False
    """Run the code that the run's config.json names; it may do anything. Without this it is shown and asked for, or
    refused."""
    quiet: Quiet = False
    """Print nothing but warnings."""

    def __post_init__(self) -> None:
        positive(workers=self.workers)


@dataclass(frozen=True)
class Evaluate:
    """Run trained agents in fresh environments, stochastic and deterministic both, and keep every return."""

    run: Run
    """The run directory."""
    episodes: int = 20
    """Episodes of each seed in each mode."""
    checkpoint: Literal["last", "best"] = "last"
    """Which agents."""
    environment_seed: int = 0
    """Another number gives other episodes."""
    max_episode_steps: int | None = None
    """Cut episodes after so many steps; by default at the run's or the environment's limit, and without one at 10,000."""
    video: Path | None = None
    """Also film one deterministic episode of the first seed into this .mp4 (needs the extra `video`)."""
    trust: Trust = False
    """Run the code that the run's config.json names; it may do anything. Without this it is shown and asked for, or
    refused."""

    def __post_init__(self) -> None:
        positive(episodes=self.episodes, max_episode_steps=self.max_episode_steps)
        fresh(environment_seed=self.environment_seed)


@dataclass(frozen=True)
class Record:
    """Record episodes of a trained agent, with the probabilities of its actions, for off_policy and clone."""

    run: Run
    """The run directory."""
    episodes: int = 100
    """How many."""
    output: Path | None = None
    """The file to write; by default dataset.npz in the run directory."""
    checkpoint: Literal["last", "best"] = "last"
    """Which agent."""
    seed: int | None = None
    """Which of the run's seeds; by default the first."""
    environment_seed: int = 0
    """Another number gives other episodes."""
    max_episode_steps: int | None = None
    """Cut episodes after so many steps; by default at the run's or the environment's limit, and without one at 10,000."""
    trust: Trust = False
    """Run the code that the run's config.json names; it may do anything. Without this it is shown and asked for, or
    refused."""

    def __post_init__(self) -> None:
        positive(episodes=self.episodes, max_episode_steps=self.max_episode_steps)
        fresh(environment_seed=self.environment_seed)


@dataclass(frozen=True)
class List:
    """Show rungs, estimators, objectives, presets and compiled worlds."""


def parse_train(arguments: list[str]) -> Train:
    """Parse twice: first to know environment, algorithm and file, then with the defaults that follow from them."""
    plain = [a for a in arguments if a not in ("-h", "--help")]
    generic = Train(**vars(configure("", is_continuous=False, use_preset=False)))
    if plain == arguments:
        known = parse(arguments, with_file(generic, arguments))
        if not known.environment:
            raise UpslopeError("Say what to train on, e.g. `upslope train CartPole-v1`; see `upslope train --help`.")
        if known.config is not None:
            decide(known, given(arguments, generic))
        return parse(arguments, informed(known))
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            known = parse(plain, with_file(generic, plain))
            is_free = known.environment and not (known.config and asked_by_file(known, given(plain, generic)))
            known = informed(known) if is_free else generic
    except (SystemExit, UpslopeError):
        known = generic
    return parse(arguments, known)


def parse(arguments: list[str], default: Train) -> Train:
    """The flags of `train`, with these defaults."""
    return tyro.cli(Train, prog="upslope train", args=arguments, default=default)


def with_file(generic: Train, arguments: list[str]) -> Train:
    """The environment and the algorithm may stand in the YAML file."""
    for place, word in enumerate(arguments):
        if word == "--config" and place + 1 < len(arguments):
            settings = read_settings(Path(arguments[place + 1]))
        elif word.startswith("--config="):
            settings = read_settings(Path(word.removeprefix("--config=")))
        else:
            continue
        named = {key: settings[key] for key in ("environment", "algorithm") if key in settings}
        return Train(**(vars(generic) | named))
    return generic


def given(arguments: list[str], generic: Train) -> set[str]:
    """The settings that can cause an import or a call, as far as the command line itself names them."""
    plain = parse(arguments, generic)
    return {role for role in ROLES if getattr(plain, role) != getattr(generic, role)}


def asked_by_file(flags: Train, named: set[str]) -> list[Request]:
    """What the settings file asks to be imported or called."""
    return requested(settled(flags, named), named)


def decide(flags: Train, named: set[str]) -> None:
    """Refuse what the settings file asks to be imported or called, unless it is allowed."""
    require(settled(flags, named), str(flags.config), trust=flags.trust, given=named, ask=True)


def settled(flags: Train, named: set[str]) -> Config:
    """A config with the file's settings, but for those that the command line names."""
    settings = {k: v for k, v in read_settings(Path(str(flags.config))).items() if k in ROLES}
    settings |= {role: getattr(flags, role) for role in (*named, "environment")}
    return configure(settings.pop("environment"), is_continuous=False, use_preset=False, **settings)


def informed(flags: Train) -> Train:
    """Defaults for this environment, algorithm, preset and file."""
    settings = read_settings(flags.config) if flags.config else {}
    use_preset = not flags.no_preset and settings.pop("preset", True) is not False
    settings = {k: v for k, v in settings.items() if k not in ("environment", "algorithm", "preset")}
    env_kwargs = flags.env_kwargs or settings.get("env_kwargs", {})
    wrappers = flags.wrappers or settings.get("wrappers", ())
    is_continuous = has_continuous_actions(flags.environment, env_kwargs, wrappers)
    config = configure(
        flags.environment, flags.algorithm, is_continuous=is_continuous, use_preset=use_preset, **settings
    )
    # Flags are added to their defaults, and they shall replace those of the file.
    defaults: dict[str, Any] = {**vars(config), **({"wrappers": ()} if flags.wrappers else {})}
    return Train(**defaults)


def has_continuous_actions(environment: str, env_kwargs: dict[str, Any], wrappers: tuple[str, ...]) -> bool:
    """Whether the environment takes real vectors; it is made once to see."""
    from gymnasium.spaces import Box

    from upslope.environments.registry import make

    return isinstance(make(environment, env_kwargs, wrappers=wrappers).action_space, Box)


class PlainLoader(yaml.SafeLoader):
    """YAML without aliases, by which a few lines can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name) is not read here; write the value out")
        return super().compose_node(parent, index)


def read_settings(path: Path) -> dict[str, Any]:
    """A YAML file of settings by the names of the flags."""
    if path.exists():
        plain_file(path, MAX_SETTINGS)
    try:
        settings = yaml.load(path.read_text("utf-8"), PlainLoader)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise UpslopeError(f"Could not read the settings in {path}: {error}.") from error
    if not isinstance(settings, dict):
        raise UpslopeError(f"{path} must hold settings as `name: value` lines, e.g. `learning-rate: 0.001`.")
    strange = [str(name) for name, value in settings.items() if not f"{name}{value}".isprintable()]
    if strange:
        raise UpslopeError(
            f"{path} holds characters that cannot be printed in {', '.join(map(readable, strange))}. Write them out."
        )
    use_preset = settings.pop("preset", True)
    return canonical(settings) | ({} if use_preset is not False else {"preset": False})
