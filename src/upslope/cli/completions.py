"""The command `completion`: shell completion scripts, which tyro generates from the flags."""

import contextlib
import io
import re
from typing import Literal

import tyro

from upslope.config.coercion import REGISTRY
from upslope.errors import UpslopeError

SPECIFICATION = re.compile("^COMPLETION_SPEC = .*$", re.MULTILINE)
"""The line of a completion script that contains all commands and flags."""
BREAK = re.compile(r"\\+n")
"""An escaped line break in that line. If a help text kept its line breaks, the shell would offer the text after each
break as a separate word."""
FILES_TOO = """
# If a flag or argument has no fixed values, complete file names, e.g. of runs and outputs.
_upslope() {
  _tyro_upslope
  [[ ${#COMPREPLY[@]} -eq 1 && -z ${COMPREPLY[0]} ]] && COMPREPLY=()
  return 0
}
complete -o default -o bashdefault -F _upslope upslope
"""


def completion(shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]) -> None:
    """Print a script that lets a shell complete commands, flags and their values.

    bash: `upslope completion bash > ~/.local/share/bash-completion/completions/upslope`. zsh: write it to a file
    `_upslope` in a directory in fpath, before compinit. fish: `upslope completion fish >
    ~/.config/fish/completions/upslope.fish`.
    """
    print(script(shell), end="")


def script(shell: str) -> str:
    """Return the completion script for a shell.

    Raises:
        UpslopeError: this version of tyro cannot generate a script for this shell.
    """
    from upslope.cli.main import commands  # imported here because that module imports this one

    written = io.StringIO()
    arguments = ["--tyro-print-completion", shell]
    try:
        with contextlib.redirect_stdout(written), contextlib.suppress(SystemExit):
            tyro.extras.subcommand_cli_from_dict(commands(), prog="upslope", args=arguments, registry=REGISTRY)
    except AssertionError as error:
        raise UpslopeError(
            f"This version of tyro does not support completion for {shell}. Upgrade it: pip install -U tyro"
        ) from error
    text = SPECIFICATION.sub(lambda line: BREAK.sub(" ", line[0]), written.getvalue())
    return text + (FILES_TOO if shell == "bash" else "")
