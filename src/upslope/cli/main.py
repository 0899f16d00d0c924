"""The entry point of the command line, and its commands."""

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro

from upslope.cli import commands, follow
from upslope.cli.sweep import sweep
from upslope.cli.train import Train, parse_train, resume, train
from upslope.config.coercion import REGISTRY
from upslope.config.foreign_names import foreign
from upslope.core.messages import readable, unknown
from upslope.errors import UpslopeError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
"""The status that a shell reports for a program whose output pipe was closed, e.g. by `head`."""

FUNCTIONS = (
    *(
        resume,
        commands.evaluate,
        commands.record,
        commands.judge,
        commands.export,
        commands.compare,
        commands.report,
        commands.credit,
    ),
    *(commands.figure, commands.table, commands.bundle, commands.completion),
    *(commands.ladder, sweep, commands.lab, commands.doctor, commands.check, commands.probe),
    *(follow.track, follow.watch),
)
COMMANDS: dict[str, Any] = {
    "train": Train,
    **{function.__name__: function for function in FUNCTIONS},
    "list": commands.show_list,
}


def main(arguments: list[str] | None = None) -> None:
    """The entry point of the `upslope` command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sys.path.append(str(Path.cwd()))
    try:
        try:
            run(arguments)
        except UpslopeError as error:
            print(f"upslope: {readable(str(error))}", file=sys.stderr)
            sys.exit(EXIT_BAD_INPUT)
        except KeyboardInterrupt as stop:
            words = "Stopped before anything was trained." if arguments[:1] == ["train"] else "Stopped."
            print(f"\n{readable(str(stop)) or words}", file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Otherwise Python would try to flush the rest of the buffer again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BROKEN_PIPE)


def run(arguments: list[str]) -> None:
    """Run the command given by the arguments."""
    first = arguments[0] if arguments else "--help"
    if first == "train":
        train(*parse_train(arguments[1:]))
    elif first in COMMANDS:
        tyro.cli(COMMANDS[first], prog=f"upslope {first}", args=arguments[1:], registry=REGISTRY)
    elif first == "--version":
        print(f"upslope {version('upslope')}")
    elif first.startswith("-"):  # --help; tyro rejects anything else
        options = {"prog": "upslope", "args": arguments or [first], "registry": REGISTRY}
        tyro.extras.subcommand_cli_from_dict(COMMANDS, **options)
    else:
        if meant := foreign("commands", first):
            raise UpslopeError(f'There is no command "{first}"; upslope calls it {meant}: upslope {meant} --help')
        raise UpslopeError(unknown("command", first, COMMANDS, "upslope --help"))
