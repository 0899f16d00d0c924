"""upslope train | resume | evaluate | record | list, and those of `evidence.py` and `clinic.py`.

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from upslope import clinic, evidence
from upslope.errors import UpslopeError
from upslope.flags import Evaluate, List, Record, Resume, Train, parse_train
from upslope.terminal import console

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

COMMANDS = {
    **{"train": Train, "resume": Resume, "evaluate": Evaluate, "record": Record},
    **evidence.COMMANDS,
    **clinic.COMMANDS,
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
    from upslope.runs import same_run

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


def show_list(flags: List) -> None:
    """upslope list."""
    from upslope import tables

    for table in tables.everything():
        console().print(table)


DO = {Resume: resume, Evaluate: evaluate, Record: record, List: show_list, **evidence.DO, **clinic.DO}
