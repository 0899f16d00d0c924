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
from upslope.errors import UpslopeError

Quiet = Annotated[bool, tyro.conf.arg(aliases=["-q"])]
Run = tyro.conf.Positional[Path]
Runs = tyro.conf.Positional[tuple[Path, ...]]
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
    preset_name: Annotated[str | None, tyro.conf.arg(name="preset", metavar="NAME")] = None
    """Which of the environment's presets, by its name, e.g. paper; its default one unless given."""
    no_preset: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Do not use the environment's tuned settings."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run of this --name if it exists and its config is the same."""
    tensorboard: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Also write TensorBoard event files (needs the extra `tensorboard`)."""
    workers: int | None = None
    """Processes among which the seeds of a Gymnasium environment are shared out; by default one a core, where the run
    is long enough. The result does not depend on it."""
    quiet: Quiet = False
    """Print nothing but warnings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(workers=self.workers)
        if self.no_preset and self.preset_name is not None:
            raise UpslopeError("--preset uses a preset and --no-preset none. Give one of the two.")

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
    video: Path | None = None
    """Also film one deterministic episode of the first seed into this .mp4 (needs the extra `video`)."""

    def __post_init__(self) -> None:
        positive(episodes=self.episodes)
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

    def __post_init__(self) -> None:
        positive(episodes=self.episodes)
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
        return parse(arguments, informed(known))
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            known = parse(plain, with_file(generic, plain))
            known = informed(known) if known.environment else generic
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


def informed(flags: Train) -> Train:
    """Defaults for this environment, algorithm, preset and file."""
    settings = read_settings(flags.config) if flags.config else {}
    use_preset = settings.get("preset", True) if flags.preset_name is None else flags.preset_name
    use_preset = use_preset if not flags.no_preset else False
    settings = {k: v for k, v in settings.items() if k not in ("environment", "algorithm", "preset")}
    env_kwargs = flags.env_kwargs or settings.get("env_kwargs", {})
    is_continuous = has_continuous_actions(flags.environment, env_kwargs)
    config = configure(
        flags.environment, flags.algorithm, is_continuous=is_continuous, use_preset=use_preset, **settings
    )
    return Train(**vars(config))


def has_continuous_actions(environment: str, env_kwargs: dict[str, Any]) -> bool:
    """Whether the environment takes real vectors; it is made once to see."""
    from gymnasium.spaces import Box

    from upslope.environments.registry import make

    return isinstance(make(environment, env_kwargs).action_space, Box)


class PlainLoader(yaml.SafeLoader):
    """YAML without aliases, by which a few lines can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name) is not read here; write the value out")
        return super().compose_node(parent, index)


def read_settings(path: Path) -> dict[str, Any]:
    """A YAML file of settings by the names of the flags."""
    try:
        settings = yaml.load(path.read_text("utf-8"), PlainLoader)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError) as error:
        raise UpslopeError(f"Could not read the settings in {path}: {error}.") from error
    if not isinstance(settings, dict):
        raise UpslopeError(f"{path} must hold settings as `name: value` lines, e.g. `learning-rate: 0.001`.")
    use_preset = settings.pop("preset", None)
    if not isinstance(use_preset, bool | str | None):
        raise UpslopeError(f"In {path}, preset must be true, false or the name of one, not {use_preset!r}.")
    return canonical(settings) | ({} if use_preset in (True, None) else {"preset": use_preset})
