"""The entry point of the command line, and its commands."""

import atexit
import os
import sys
import threading
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

from upslope.core.messages import counted, readable, unknown, warn
from upslope.core.user_modules import offer_folder
from upslope.errors import UpslopeError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
"""The exit status that a shell reports for a program whose output pipe was closed, e.g. by `head`."""
THREAD_SECONDS = 5.0
"""How many seconds to wait, after a command, for threads that an environment left running."""
MAX_NAMED = 3
"""Maximum number of threads named in a message."""

COMMANDS: dict[str, str] = {
    **{"train": "train:Train", "resume": "train:resume"},
    **{name: f"policies:{name}" for name in ("evaluate", "record", "judge", "export")},
    **{name: f"results:{name}" for name in ("compare", "report", "credit", "figure", "table", "bundle")},
    **{"completion": "completions:completion", "ladder": "experiments:ladder", "sweep": "sweep:sweep"},
    "lab": "experiments:lab",
    **{name: f"diagnosis:{name}" for name in ("doctor", "check", "probe")},
    **{name: f"follow:{name}" for name in ("track", "watch")},
    "list": "list_tables:show_list",
}
"""Each command's module in this package, and the function or class whose signature and docstring define the flags."""


def main(arguments: list[str] | None = None) -> None:
    """Run the `upslope` command. Without `arguments`, use those of this process, and exit the process afterwards."""
    if arguments is not None:
        carry_out(arguments)
        return
    try:
        carry_out(sys.argv[1:])
    except SystemExit as end:
        leave_threads(end.code)
        raise
    leave_threads(0)


def carry_out(arguments: list[str]) -> None:
    """Run a command. Each error is reported in a single message."""
    try:
        try:
            offer_folder(current_folder())
            run_within_memory(arguments)
        finally:
            with suppress(AttributeError, ValueError):  # an environment may have closed or removed the stream
                sys.stdout.flush()
    except UpslopeError as error:
        fail(str(error))
    except KeyboardInterrupt as stop:
        words = "Stopped before anything was trained." if arguments[:1] == ["train"] else "Stopped."
        print(f"\n{readable(str(stop)) or words}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        discard_output()
        sys.exit(EXIT_BROKEN_PIPE)
    except OSError as error:
        discard_output()
        fail(refused_by_system(error))


def run_within_memory(arguments: list[str]) -> None:
    """Run a command. If memory runs out, suggest which settings to lower."""
    try:
        run(arguments)
    except (UpslopeError, OSError):
        raise
    except Exception:
        from upslope.core.jax_settings import settings_in_words
        from upslope.core.memory import memory_in_words  # imports NumPy

        with settings_in_words(), memory_in_words():
            raise


def leave_threads(code: Any) -> None:
    """End this process with the status of a `SystemExit` if an environment left threads running.

    Otherwise, Python would wait for them, perhaps forever."""
    left = others_threads()
    if not left:
        return
    if end_pools := getattr(sys.modules.get("concurrent.futures.thread"), "_python_exit", None):
        threading.Thread(target=end_pools, daemon=True).start()  # ends idle pool threads, as Python does at exit
    until = monotonic() + THREAD_SECONDS
    for thread in left:
        thread.join(max(0.0, until - monotonic()))
    if not (left := [thread for thread in left if thread.is_alive()]):
        return
    names = ", ".join(thread.name for thread in left[:MAX_NAMED]) + " …" * (len(left) > MAX_NAMED)
    with suppress(Exception):
        warn(
            f"warning: the environment, or a library that it uses, left {counted(len(left), 'thread')} running "
            f"({names}). upslope has finished and ends the process without waiting for them."
        )
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def others_threads() -> list[threading.Thread]:
    """The threads for which Python would wait at exit."""
    return [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]


def fail(words: str) -> NoReturn:
    """Print the reason why the command cannot be executed, and exit."""
    print(f"upslope: {readable(words)}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def discard_output() -> None:
    """Discard the remaining output, since Python would otherwise try to write it again at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def current_folder() -> Path:
    """The folder in which the command was run."""
    try:
        return Path.cwd()
    except OSError as error:
        raise UpslopeError(
            f"The current folder cannot be entered: {error.strerror or error}. Change to a folder that exists."
        ) from error


def refused_by_system(error: OSError) -> str:
    """Describe what the system refused.

    Most cases are mistyped paths and missing permissions. They have no specific message because they can affect any
    file."""
    reason = error.strerror or str(error) or type(error).__name__
    paths = [os.fsdecode(path) for path in (error.filename, error.filename2) if isinstance(path, str | bytes)]
    if not paths:
        return f"The system refused to read or write: {reason}."
    return f"cannot read or write {' or '.join(paths)}: {reason}. Check the path and its permissions."


def run(arguments: list[str]) -> None:
    """Run the command given by the arguments, importing only what it uses."""
    first = arguments[0] if arguments else "--help"
    if first == "train":
        from upslope.cli.train import parse_train, train

        train(*parse_train(arguments[1:]))
    elif arguments == ["list"]:
        command(first)()
    elif first in COMMANDS:
        parse(command(first), prog=f"upslope {first}", args=arguments[1:])
    elif first == "--version":
        print(f"upslope {version('upslope')}")
    elif first.startswith("-"):  # --help; tyro rejects anything else
        from tyro.extras import subcommand_cli_from_dict

        from upslope.config.coercion import REGISTRY

        options = {"prog": "upslope", "args": arguments or [first], "registry": REGISTRY}
        subcommand_cli_from_dict(commands(), **options)
    else:
        refuse(first)


def parse(kind: Any, **options: Any) -> None:
    """Call a command with the given flags."""
    import tyro

    from upslope.config.coercion import REGISTRY

    tyro.cli(kind, registry=REGISTRY, **options)


def refuse(name: str) -> None:
    """Raise an error for a name that is not a command, and suggest the command that was meant."""
    from upslope.config.foreign_names import foreign

    if meant := foreign("commands", name):
        raise UpslopeError(f'There is no command "{name}"; upslope calls it {meant}: upslope {meant} --help')
    raise UpslopeError(unknown("command", name, COMMANDS, "upslope --help"))


def command(name: str) -> Any:
    """Return the function or class of a command."""
    module, _, attribute = COMMANDS[name].partition(":")
    return getattr(import_module(f"upslope.cli.{module}"), attribute)


def commands() -> dict[str, Any]:
    """Return every command with its function or class."""
    return {name: command(name) for name in COMMANDS}
