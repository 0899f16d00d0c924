"""upslope train | resume | evaluate | record | list.

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from upslope.config import Config, canonical, configure
from upslope.errors import UpslopeError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Train(Config):
    """Train an agent on an environment, and leave a run directory.

    Flags you leave out take the values shown, which follow from the environment's action space, the algorithm and the
    environment's preset: give both to see theirs, e.g. `upslope train HalfCheetah-v5 --help`.
    """

    name: str | None = None
    """Name of the run directory; made from environment and algorithm by default. An existing one is refused."""
    folder: Path = Path("runs")
    """Where run directories are kept."""
    config: Path | None = None
    """A YAML file of settings, by the names of these flags; flags override it."""
    no_preset: bool = False
    """Do not use the environment's tuned settings."""
    resume: bool = False
    """Go on with the run of this name if it exists and its config is the same."""
    tensorboard: bool = False
    """Also write TensorBoard event files (needs the extra `tensorboard`)."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print nothing but warnings."""


@dataclass(frozen=True)
class Resume:
    """Go on with a run that was stopped, as if it had not been."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    tensorboard: bool = False
    """Also write TensorBoard event files."""
    quiet: Annotated[bool, tyro.conf.arg(aliases=["-q"])] = False
    """Print nothing but warnings."""


@dataclass(frozen=True)
class Evaluate:
    """Run trained agents in fresh environments, stochastic and deterministic both, and keep every return."""

    run: tyro.conf.Positional[Path]
    """The run directory."""
    episodes: int = 20
    """Episodes of each seed in each mode."""
    checkpoint: Literal["last", "best"] = "last"
    """Which agents."""
    environment_seed: int = 0
    """Another number gives other episodes."""
    video: Path | None = None
    """Also film one deterministic episode of the first seed into this .mp4 (needs the extra `video`)."""


@dataclass(frozen=True)
class Record:
    """Record episodes of a trained agent, with the probabilities of its actions, for off_policy and clone."""

    run: tyro.conf.Positional[Path]
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


@dataclass(frozen=True)
class List:
    """Show rungs, estimators, objectives, presets and compiled worlds."""


COMMANDS = {"train": Train, "resume": Resume, "evaluate": Evaluate, "record": Record, "list": List}


def main(arguments: list[str] | None = None) -> None:
    """The entry point of the `upslope` command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.path.insert(0, str(Path.cwd()))
    try:
        run(arguments)
    except UpslopeError as error:
        print(f"upslope: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt as stop:
        print(f"\n{stop}" if str(stop) else "", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def run(arguments: list[str]) -> None:
    """Parse and do."""
    if arguments[:1] == ["train"]:
        train(tyro.cli(Train, prog="upslope train", args=arguments[1:], default=defaults_for(arguments[1:])))
        return
    types = tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items())
    command: Any = tyro.cli(tyro.conf.OmitSubcommandPrefixes[union_of(types)], prog="upslope", args=arguments)  # type: ignore[valid-type]
    DO[type(command)](command)


def union_of(types: tuple[Any, ...]) -> Any:
    """A typing.Union of annotated types."""
    result = types[0]
    for kind in types[1:]:
        result = result | kind
    return result


def defaults_for(arguments: list[str]) -> Train:
    """What the flags left out are to be: they depend on environment, algorithm, preset and YAML file."""
    early = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    early.add_argument("environment", nargs="?")
    early.add_argument("--algorithm")
    early.add_argument("--config", type=Path)
    early.add_argument("--no-preset", action="store_true")
    early.add_argument("--max-episode-steps", type=int)
    known, _ = early.parse_known_args([a for a in arguments if a not in ("-h", "--help")])
    from_file = read_settings(known.config) if known.config else {}
    environment = known.environment or from_file.pop("environment", None)
    from_file.pop("environment", None)
    algorithm = known.algorithm or from_file.pop("algorithm", "ppo")
    from_file.pop("algorithm", None)
    use_preset = not known.no_preset and from_file.pop("preset", True) is not False
    if environment is None or environment.startswith("-"):
        config = configure("", algorithm, is_continuous=False, use_preset=False, **from_file)
        return Train(**{**vars(config), "environment": tyro.MISSING})
    is_continuous = has_continuous_actions(environment, from_file)
    config = configure(environment, algorithm, is_continuous=is_continuous, use_preset=use_preset, **from_file)
    return Train(**vars(config))


def has_continuous_actions(environment: str, settings: dict[str, Any]) -> bool:
    """Whether the environment takes real vectors; it is made once to see."""
    from gymnasium.spaces import Box

    from upslope.environments.make import make

    return isinstance(make(environment, settings.get("env_kwargs")).action_space, Box)


def read_settings(path: Path) -> dict[str, Any]:
    """A YAML file of settings by the names of the flags."""
    try:
        settings = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UpslopeError(f"Could not read the settings in {path}: {error}.") from error
    if not isinstance(settings, dict):
        raise UpslopeError(f"{path} must hold settings as `name: value` lines, e.g. `learning-rate: 0.001`.")
    return canonical(settings)


def train(flags: Train) -> None:
    """upslope train."""
    from upslope import api
    from upslope.environments.make import make

    names = Config.__dataclass_fields__
    config = Config(**{name: getattr(flags, name) for name in names})
    if flags.resume and flags.name and (flags.folder / flags.name).exists():
        api.resume(same_run(flags.folder / flags.name, config), quiet=flags.quiet, tensorboard=flags.tensorboard)
        return
    world = make(config.environment, config.env_kwargs, config.max_episode_steps)
    api.train_config(
        config, world, name=flags.name, folder=flags.folder, quiet=flags.quiet, tensorboard=flags.tensorboard
    )


def same_run(path: Path, config: Config) -> Path:
    """The path, if the run there has this config; otherwise say what differs."""
    from upslope.runs import RunDirectory

    there = RunDirectory(path).config()
    if replace(there, preset=None) == replace(config, preset=None):
        return path
    differ = {
        n: (getattr(there, n), getattr(config, n)) for n in vars(there) if getattr(there, n) != getattr(config, n)
    }
    words = ", ".join(f"{name} was {old}, now {new}" for name, (old, new) in differ.items())
    raise UpslopeError(
        f"{path} was trained with another config ({words}), and going on with it would be neither run. Use the same "
        f"flags, or upslope resume {path}, or another --name."
    )


def resume(flags: Resume) -> None:
    """upslope resume."""
    from upslope import api

    api.resume(flags.run, quiet=flags.quiet, tensorboard=flags.tensorboard)


def evaluate(flags: Evaluate) -> None:
    """upslope evaluate."""
    from rich.console import Console

    from upslope import evaluation, tables

    found = evaluation.evaluate(
        flags.run,
        episodes=flags.episodes,
        checkpoint=flags.checkpoint,
        environment_seed=flags.environment_seed,
    )
    Console().print(tables.evaluation_table(flags.run, flags.checkpoint, found))
    if flags.video is not None:
        from upslope.video import film

        print(f"filmed {film(flags.run, flags.video, flags.checkpoint)}")


def record(flags: Record) -> None:
    """upslope record."""
    from upslope import evaluation

    options = {name: value for name, value in vars(flags).items() if name != "run"}
    path = evaluation.record(flags.run, **options)
    print(f"recorded {flags.episodes} episodes in {path}")
    print(f"learn from them: upslope train ENVIRONMENT --algorithm off_policy --data {path}")


def show_list(flags: List) -> None:
    """upslope list."""
    from rich.console import Console

    from upslope import tables

    for table in tables.everything():
        Console().print(table)


DO = {Resume: resume, Evaluate: evaluate, Record: record, List: show_list}
