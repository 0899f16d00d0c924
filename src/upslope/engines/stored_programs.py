"""Store programs between runs, so later runs do not need to trace and lower them.

JAX's own cache stores the output of XLA, but uses the lowered program as the key. Tracing and lowering take longer than
everything else that a short run does before its first step. This module stores the lowered program as serialized by
`jax.export`, which contains no pickle and no Python code. It is stored in the private folder of compiled programs,
under a hash of everything that it depends on: settings, shapes, devices, versions, and upslope's own source.

Only commands store programs. In the user's own process, any function may have been replaced, and no hash would reveal
this.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax import export

from upslope.config.config import Config
from upslope.config.trust import requested
from upslope.core.files import plain_file
from upslope.core.messages import COMPILED_PREFIX
from upslope.core.storage import write_atomically
from upslope.errors import UpslopeError
from upslope.learning.devices import own_cache

MAX_BYTES = 1 << 26
LIBRARIES = ("jax", "jaxlib", "numpy", "equinox", "optax")
OF_THE_STATE = ("seed", "seeds", "start_from", "from_seed", "fresh_normalisers", "fresh_optimiser")
"""Settings that do not affect the program, only the initial state. The number of seeds is part of the state's
shapes."""

is_command = False
"""Whether this process runs one of upslope's commands, and nothing else."""


def allow_storing() -> None:
    """Allow storing programs from now on. Call this only in a process that runs one of upslope's commands."""
    global is_command
    is_command = True


class StoredPrograms:
    """The stored programs of a run with these settings."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = folder
        self.made_from = {name: value for name, value in settings.items() if name not in OF_THE_STATE} | {
            "versions": {name: version(name) for name in LIBRARIES},
            "source": source_digest(),
            "options": {name: repr(value) for name, value in sorted(jax.config.values.items())},
        }

    def jitted(self, name: str, function: Callable[..., Any], arguments: list[Any], **options: Any) -> Any:
        """Return `jax.jit(function, **options)` for these arguments. The program is read from the folder if it is
        there, and stored in it otherwise.

        Arguments and results consist of arrays in lists, tuples and dictionaries. `name` distinguishes programs with
        the same arguments.
        """
        path = self.folder / f"{self.key(name, arguments, options)}-lowered"
        with suppress(Exception):  # missing, damaged, or in another version of JAX's format
            return jax.jit(export.deserialize(bytearray(plain_file(path, MAX_BYTES).read_bytes())).call, **options)
        jitted = jax.jit(function, **options)
        try:
            exported = export.export(jitted)(*arguments)
            content = bytes(exported.serialize())
        except Exception:  # a program that JAX cannot export
            return jitted
        with suppress(OSError, UpslopeError):  # the disk is full, or the folder is read-only
            write_atomically(path, content)
        # Lower the stored form, so that XLA's result is found under the same key next time.
        return jax.jit(exported.call, **options)

    def key(self, name: str, arguments: list[Any], options: Mapping[str, Any]) -> str:
        """Return a hash of everything that a program depends on."""
        shapes = [(str(x.dtype), x.shape, repr(x.sharding)) for x in arguments]
        devices = [str(device.device_kind) for device in jax.local_devices()]
        made_from = self.made_from | {"name": name, "arguments": shapes, "devices": devices, "jit": repr(options)}
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def stored_programs(config: Config) -> StoredPrograms | None:
    """Return the stored programs of a run, or None if storing is not allowed or the programs would contain code that is
    not upslope's."""
    is_own = config.environment.startswith(COMPILED_PREFIX) and not requested(config)
    folder = own_cache() if is_command and is_own else None
    return None if folder is None else StoredPrograms(folder, config.to_json())


@cache
def source_digest() -> str:
    """Return a hash of upslope's source."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()
