"""upslope train | resume | evaluate | record | list, and those of `evidence.py` and `clinic.py`.

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro

from upslope.cli import clinic, evidence
from upslope.cli.flags import Evaluate, List, Record, Resume, Train, parse_train
from upslope.cli.terminal import console, say
from upslope.config.config import configure
from upslope.core.messages import counted, readable, unknown
from upslope.errors import UpslopeError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141
"""What a shell reports where a program's output was cut off, as by `head`."""

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
        try:
            run(arguments)
        except UpslopeError as error:
            say(f"upslope: {' '.join(str(error).splitlines())}", sys.stderr)
            sys.exit(EXIT_BAD_INPUT)
        except KeyboardInterrupt as stop:
            bare = "Stopped before anything was trained." if arguments[:1] == ["train"] else "Stopped."
            print(f"\n{readable(str(stop) or bare)}", file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer would be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_UNREAD)


def run(arguments: list[str]) -> None:
    """Parse and do."""
    first = arguments[0] if arguments else "--help"
    if first == "train":
        train(parse_train(arguments[1:]))
        return
    if first == "--version":
        print(f"upslope {version('upslope')}")
        return
    if first in COMMANDS:
        command: Any = tyro.cli(COMMANDS[first], prog=f"upslope {first}", args=arguments[1:])
        DO[type(command)](command)
        return
    if not first.startswith("-"):
        raise UpslopeError(unknown("command", first, COMMANDS, "upslope --help"))
    types = tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in COMMANDS.items())
    one_of: Any = union_of(types)
    tyro.cli(tyro.conf.OmitSubcommandPrefixes[one_of], prog="upslope", args=arguments or [first])  # --help, or refused


def union_of(types: tuple[Any, ...]) -> Any:
    """A typing.Union of annotated types."""
    result = types[0]
    for kind in types[1:]:
        result = result | kind
    return result


def train(flags: Train) -> None:
    """upslope train."""
    from upslope import api
    from upslope.config.task import environment_of, task_of
    from upslope.runs.directory import check_name, same_run
    from upslope.runs.train import begin

    config = flags.settings()
    if flags.name is not None:
        check_name(flags.name)
    if flags.resume and flags.name is None:
        raise UpslopeError("--resume goes on with the run of a --name, and none is given. Or: upslope resume RUN")
    if flags.resume and (flags.folder / str(flags.name)).exists():
        api.resume(
            same_run(flags.folder / str(flags.name), config),
            quiet=flags.quiet,
            tensorboard=flags.tensorboard,
            workers=flags.workers,
            trust=True,  # it has the settings of this command
        )
        return
    directory = api.run_directory(flags.folder, flags.name, f"{config.environment}-{config.algorithm}")
    session = api.session_of(flags.quiet, flags.tensorboard, flags.workers)
    begin(config, task_of(config, environment_of(config)), directory, session)


def resume(flags: Resume) -> None:
    """upslope resume."""
    from upslope import api
    from upslope.config.trust import require
    from upslope.runs.directory import RunDirectory

    require(RunDirectory(flags.run).config(), flags.run, trust=flags.trust, ask=True)
    api.resume(flags.run, quiet=flags.quiet, tensorboard=flags.tensorboard, workers=flags.workers)


def evaluate(flags: Evaluate) -> None:
    """upslope evaluate."""
    from upslope.cli import tables
    from upslope.report.video import film, film_path
    from upslope.runs import evaluation

    if flags.video is not None:
        film_path(flags.video)
    evidence.decide([flags.run], flags.trust)
    found = evaluation.evaluate(
        flags.run,
        episodes=flags.episodes,
        checkpoint=flags.checkpoint,
        environment_seed=flags.environment_seed,
        max_episode_steps=flags.max_episode_steps,
    )
    console().print(tables.evaluation_view(flags.run, flags.checkpoint, found))
    if flags.video is not None:
        say(f"filmed {film(flags.run, flags.video, flags.checkpoint)}")


def record(flags: Record) -> None:
    """upslope record."""
    from upslope.config.command import command_of
    from upslope.runs import evaluation
    from upslope.runs.directory import RunDirectory
    from upslope.runs.policy import spaces_of

    evidence.decide([flags.run], flags.trust)
    options = {name: value for name, value in vars(flags).items() if name != "run"}
    path = evaluation.record(flags.run, **options)
    say(f"recorded {counted(flags.episodes, 'episode')} in {path}")
    directory = RunDirectory(flags.run)
    run, is_continuous = directory.config(), spaces_of(directory)[1].is_continuous
    same = {name: getattr(run, name) for name in ("env_kwargs", "wrappers", "max_episode_steps")}
    learner = configure(run.environment, "off_policy", is_continuous=is_continuous, data=str(path), **same)
    say(f"learn from them:  {command_of(learner, is_continuous=is_continuous)}")


def show_list(flags: List) -> None:
    """upslope list."""
    from upslope.cli import tables

    for table in tables.everything():
        console().print(table)


DO = {Resume: resume, Evaluate: evaluate, Record: record, List: show_list, **evidence.DO, **clinic.DO}
