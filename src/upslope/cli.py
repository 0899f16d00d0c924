"""upslope train | resume | evaluate | record | doctor | check | probe | list.

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from upslope.config import Config
from upslope.errors import UpslopeError
from upslope.flags import Check, Doctor, Evaluate, List, Probe, Record, Resume, Train, parse_train

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
PIPE_WIDTH = 160
"""Columns of a table that nobody's terminal limits."""

COMMANDS = {
    "train": Train,
    "resume": Resume,
    "evaluate": Evaluate,
    "record": Record,
    "doctor": Doctor,
    "check": Check,
    "probe": Probe,
    "list": List,
}


def main(arguments: list[str] | None = None) -> None:
    """The entry point of the `upslope` command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.path.append(str(Path.cwd()))
    try:
        run(arguments)
    except UpslopeError as error:
        print(f"upslope: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt as stop:
        print(f"\n{stop}" if str(stop) else "\nStopped before anything was trained.", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def run(arguments: list[str]) -> None:
    """Parse and do."""
    if arguments[:1] == ["train"]:
        train(parse_train(arguments[1:]))
        return
    types = tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items())
    one_of: Any = union_of(types)
    command: Any = tyro.cli(tyro.conf.OmitSubcommandPrefixes[one_of], prog="upslope", args=arguments)
    DO[type(command)](command)


def union_of(types: tuple[Any, ...]) -> Any:
    """A typing.Union of annotated types."""
    result = types[0]
    for kind in types[1:]:
        result = result | kind
    return result


def train(flags: Train) -> None:
    """upslope train."""
    from upslope import api
    from upslope.environments.make import make

    config = flags.settings()
    if flags.resume and flags.name is None:
        raise UpslopeError("--resume goes on with the run of a --name, and none is given. Or: upslope resume RUN")
    if flags.resume and (flags.folder / str(flags.name)).exists():
        api.resume(
            same_run(flags.folder / str(flags.name), config),
            quiet=flags.quiet,
            tensorboard=flags.tensorboard,
            workers=flags.workers,
        )
        return
    world = make(config.environment, config.env_kwargs, config.max_episode_steps)
    api.train_config(
        config,
        world,
        name=flags.name,
        folder=flags.folder,
        quiet=flags.quiet,
        tensorboard=flags.tensorboard,
        workers=flags.workers,
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

    api.resume(flags.run, quiet=flags.quiet, tensorboard=flags.tensorboard, workers=flags.workers)


def evaluate(flags: Evaluate) -> None:
    """upslope evaluate."""
    from upslope import evaluation, tables

    found = evaluation.evaluate(
        flags.run,
        episodes=flags.episodes,
        checkpoint=flags.checkpoint,
        environment_seed=flags.environment_seed,
    )
    console().print(tables.evaluation_table(flags.run, flags.checkpoint, found))
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


def doctor(flags: Doctor) -> None:
    """upslope doctor."""
    from upslope.analysis.doctor import diagnose
    from upslope.verdicts import diagnosis_view

    found = diagnose(flags.run)
    answer(flags.json, found.to_json(), [diagnosis_view(found)])


def check(flags: Check) -> None:
    """upslope check; the exit status is 1 where there is an error."""
    from upslope import check as checking
    from upslope.verdicts import check_view

    found = checking.check(
        flags.environment, env_kwargs=flags.env_kwargs, max_episode_steps=flags.max_episode_steps
    )
    answer(flags.json, found.to_json(), check_view(found))
    sys.exit(int(found.worst == "error"))


def probe(flags: Probe) -> None:
    """upslope probe; the exit status is 1 where a probe is not solved."""
    from upslope import probe as probing
    from upslope.verdicts import probe_view

    settings = {name: value for name, value in vars(flags).items() if name not in ("json",) and value is not None}
    found = probing.probe(**settings)
    title = " ".join(str(x) for x in (flags.algorithm, flags.estimator, flags.objective) if x)
    answer(flags.json, probing.to_json(found), probe_view(title, found))
    sys.exit(int(not all(one.solved for one in found)))


def answer(as_json: bool, found: dict[str, Any], views: Any) -> None:
    """Print what was found, for a program or for a person."""
    if as_json:
        print(json.dumps(found, indent=1, default=str))
        return
    for view in views:
        console().print(view)


def show_list(flags: List) -> None:
    """upslope list."""
    from upslope import tables

    for table in tables.everything():
        console().print(table)


def console() -> Any:
    """Where tables go: as wide as the terminal, and wide enough for every name where there is none."""
    from rich.console import Console

    return Console(width=shutil.get_terminal_size().columns if sys.stdout.isatty() else PIPE_WIDTH)


DO = {
    Resume: resume,
    Evaluate: evaluate,
    Record: record,
    Doctor: doctor,
    Check: check,
    Probe: probe,
    List: show_list,
}
