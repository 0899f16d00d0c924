"""Trust: a file can cause only those imports and calls that the user has allowed.

A run's config.json and a settings file contain names of environments, wrappers, estimators and objectives. A name with
a colon refers to a module to import and an object in it to call, so a file could run arbitrary code. Registered
Gymnasium ids, upslope's own names and the ids of the libraries that it wraps are safe if their arguments are numbers.
Anything else that is named only in a file is a `Request`, which the user can allow with `--trust`, with `trust=True`,
or at a prompt. Allowed requests are stored in the user's own folder and never in the run. They are identified by names,
arguments, and the file from which the module would be imported, because the same name in another folder refers to
different code. Names passed by the user count as allowed.
"""

import hashlib
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from platformdirs import user_state_path

from upslope.config.config import Config
from upslope.core.messages import readable
from upslope.core.private_folders import private_folder
from upslope.core.reading import parse_json
from upslope.core.storage import write_atomically
from upslope.core.user_modules import file_of
from upslope.environments.libraries import without_prefix
from upslope.environments.names import parse_wrapper, without_batching
from upslope.errors import UpslopeError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

STATE_VARIABLE = "UPSLOPE_STATE"
"""Environment variable that overrides the folder in which allowed requests are stored."""
FILE_NAME = "trusted.json"
MAX_STORE = 1 << 24
"""Maximum size of the trust store in bytes. A larger store is ignored as damaged."""
SCHEDULES = ("learning_rate_schedule", "epsilon_schedule", "entropy_schedule")
PARTS = frozenset(("estimator", "objective", "bonus", "model", "optimiser", *SCHEDULES))
"""Settings whose value can name a module to import (a name with a colon)."""
LEARNING = PARTS - {"model"}
"""The parts that are used only for learning, not for acting."""
ROLES = ("environment", "env_kwargs", "wrappers", *sorted(PARTS))
"""Settings that can cause an import or a call."""


@dataclass(frozen=True)
class Request:
    """An import or call that a file requests."""

    role: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The hash under which the request is stored once allowed."""
        file = [self.file] if names_code(self.name) else []
        text = json.dumps([self.role, self.name, self.arguments, *file], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The readable entry that is stored once the request is allowed."""
        file = {"file": self.file} if self.file else {}
        return {"role": self.role, "name": self.name, "arguments": self.arguments, **file}

    @property
    def file(self) -> str:
        """The file of the named module; empty if no module is named or if it is not found."""
        bare = without_prefix(without_batching(self.name))
        return file_of(bare.rpartition(":")[0]) if names_code(bare) else ""

    def words(self) -> str:
        """A one-line description with all special characters escaped, so that it cannot mislead."""
        arguments = f" with {readable(json.dumps(self.arguments, ensure_ascii=False))}" if self.arguments else ""
        file = f", of {readable(self.file)}" if self.file else ""
        return f"the {self.role} {readable(self.name)}{arguments}{file}"


GRANTED: set[str] = set()
"""Keys of the requests allowed in this process."""


def requested(config: Config, given: Collection[str] = ()) -> list[Request]:
    """The imports and calls that a config requests, except in settings `given` by the user."""
    found = []
    bare = without_prefix(without_batching(config.environment))
    is_foreign = "environment" not in given and names_code(bare)
    if is_foreign or ("env_kwargs" not in given and not all(map(is_number, config.env_kwargs.values()))):
        found.append(Request("environment", config.environment, config.env_kwargs))
    for wrapper, arguments in map(parse_wrapper, () if "wrappers" in given else config.wrappers):
        if names_code(wrapper) or not all(map(is_number, arguments.values())):
            found.append(Request("wrapper", wrapper, arguments))
    for role in sorted(PARTS):
        if role not in given and names_code(getattr(config, role)):
            arguments = {"model": config.model_kwargs, "bonus": config.bonus_kwargs}.get(role, {})
            found.append(Request(role, getattr(config, role), arguments))
    return found


def names_code(name: str) -> bool:
    """Whether a name refers to a module to import."""
    return ":" in name


def own_parts(settings: Mapping[str, Any], roles: Collection[str] = PARTS) -> list[str]:
    """The user's own parts that settings name, e.g. `estimator mine:Own`."""
    named = {role: settings.get(role) for role in sorted(roles)}
    return [f"{role} {name}" for role, name in named.items() if isinstance(name, str) and names_code(name)]


def is_number(value: Any) -> bool:
    """Whether an argument consists of numbers. Text could name a file or another environment to create."""
    if isinstance(value, list | tuple):
        return all(map(is_number, value))
    return value is None or isinstance(value, bool | int | float)


def require(
    config: Config, source: Path | str, *, trust: bool = False, given: Collection[str] = (), ask: bool = False
) -> None:
    """Check that every request of the file `source` is allowed.

    With `trust`, all of them are allowed, and this is remembered. `given` lists the settings that the user passed or
    that are not used.

    With `ask`, in an interactive terminal, requests not yet allowed are shown for confirmation.

    Raises:
        UpslopeError: a request of the file is not allowed.
    """
    wanted = requested(config, given)
    if trust:
        allow(wanted)
    unknown = untrusted(wanted)
    if unknown and ask and is_interactive() and is_confirmed(unknown, source):
        allow(unknown)
    elif unknown:
        raise UpslopeError(
            f"{source} asks to run {' and '.join(one.words() for one in unknown)}. A file can name any code on this "
            "machine, so nothing was imported or called. If you know this code and want it to run, add --trust; "
            "in Python, pass trust=True."
        )


def untrusted(wanted: Sequence[Request]) -> list[Request]:
    """Return the requests that have not been allowed yet."""
    unknown = [one for one in wanted if one.key not in GRANTED]
    return [one for one in unknown if one.key not in kept()] if unknown else []


def allow(wanted: Sequence[Request]) -> None:
    """Allow these requests from now on, or only in this process if they cannot be stored."""
    GRANTED.update(one.key for one in wanted)
    if wanted:
        with suppress(OSError, UpslopeError), held() as folder:
            known = kept()
            new = {one.key: one.to_json() for one in wanted}
            if new.keys() - known.keys():
                text = json.dumps({"format": 1, "trusted": known | new}, indent=1)
                write_atomically(folder / FILE_NAME, text.encode())


def kept() -> dict[str, Any]:
    """Return the stored requests, keyed by hash; empty if the store is damaged or not private to this user."""
    try:
        path = private_folder(state_folder()) / FILE_NAME
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_STORE:
            return {}
        found = parse_json(path.read_text("utf-8"))
        trusted = found["trusted"]
        return trusted if isinstance(trusted, dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def state_folder() -> Path:
    """The folder in which allowed requests are stored."""
    named = os.environ.get(STATE_VARIABLE)
    return Path(named) if named else user_state_path("upslope")


@contextmanager
def held() -> Iterator[Path]:
    """Lock the store against other processes and yield its folder."""
    folder = private_folder(state_folder())
    with (folder / f".{FILE_NAME}.lock").open("a") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


def is_interactive() -> bool:
    """Whether a user can see and answer a prompt."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def is_confirmed(wanted: Sequence[Request], source: Path | str) -> bool:
    """Show what a file asks to run, and ask the user to confirm."""
    print(f"{readable(str(source))} asks to run code:")
    for one in wanted:
        print(f"  {one.words()}")
    print("It can do anything that you can do on this machine. Your answer is remembered if you allow it.")
    try:
        return input("Run it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
