"""The processors that compute, how exactly, and the cache of compiled programs.

They must be settled before JAX does its first computation, so every command calls `prepare` or `computing` first.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import compilation_cache
from jax.sharding import Mesh
from platformdirs import user_cache_path
from threadpoolctl import threadpool_limits

from upslope.core.private_folders import private_folder
from upslope.core.reading import brief

SEEDS, NETWORKS = "seeds", "networks"
"""The axes of a mesh: seeds are spread over the first; the second has two devices, for policy and critic, or one."""
AT_ONCE = "vmapped"
"""The axis of the seeds that a device does all at once."""


@cache
def prepare(*, on_host: bool) -> None:
    """Make every CPU core a device of its own, and keep compiled programs for the next run.

    `on_host` says that environments are stepped in Python. Where JAX has already computed something, its devices stay
    as they are: then seeds share what there is.
    """
    try:
        jax.config.update("jax_num_cpu_devices", num_cores())
    except RuntimeError:
        return
    settle(on_host=on_host)


@contextmanager
def computing(*, on_host: bool) -> Iterator[None]:
    """Prepared, and where there is an accelerator: on the CPU if `on_host`, since a handful of samples at a time would
    only keep an accelerator waiting, and with products of full 32 bits."""
    prepare(on_host=on_host)
    with ExitStack() as stack:
        if on_host:
            stack.enter_context(one_blas_thread())
        if jax.default_backend() != "cpu":
            stack.enter_context(in_full(True))
            with suppress(RuntimeError):  # JAX may have been told to leave the CPU alone
                if on_host:
                    stack.enter_context(jax.default_device(jax.local_devices(backend="cpu")[0]))
        yield


def one_blas_thread() -> Any:
    """One thread for NumPy's products, from now on or inside a `with`.

    Each process would otherwise start a thread a core, all of which wait for each other: with 256 hidden units and two
    workers on two cores, steps took many times as long (`benchmarks/speed.py --against`, case host_wide). A product's
    last bits may depend on the number of threads too.
    """
    return threadpool_limits(limits=1, user_api="blas")


def in_full(is_accelerator: bool) -> AbstractContextManager[Any]:
    """Products of full 32 bits, which accelerators by default round to fewer; a CPU's are full."""
    return jax.default_matmul_precision("float32") if is_accelerator else nullcontext()


def settle(*, on_host: bool) -> None:
    """What a process needs besides its devices."""
    # Acting on the host waits for every answer: to hand each call to another thread first only takes time. A program
    # that runs for long on several devices is better handed over.
    jax.config.update("jax_cpu_enable_async_dispatch", not on_host)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = usable_cache()
        if folder is None:
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        replace_damaged_entries()
        # Also the smallest: there are dozens of them, and each takes longer to compile than to read.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@cache
def usable_cache() -> Path | None:
    """The folder of compiled programs, which are executed as they are: none where another user could have put them
    there, or where it cannot be made."""
    folder = cache_folder()
    try:
        private_folder(folder.parent)
        return private_folder(folder)
    except OSError as error:
        warnings.warn(
            f"Compiled programs are not kept, so every start compiles anew: {brief(error)}. Remove it, or set "
            "JAX_COMPILATION_CACHE_DIR to a folder that only you can write.",
            stacklevel=2,
        )
        return None


@cache
def replace_damaged_entries() -> None:
    """Let JAX delete an entry that it cannot read; otherwise it keeps it, and warns of it in every process."""
    read = getattr(compilation_cache, "get_executable_and_time", None)
    if read is None:  # another JAX, which is not public here
        return

    def read_or_delete(cache_key: str, *rest: Any) -> Any:
        try:
            return read(cache_key, *rest)
        except Exception:
            folder = jax.config.values["jax_compilation_cache_dir"]
            with suppress(OSError):
                (Path(folder) / f"{cache_key}-cache").unlink()
            return None, None  # compiled anew, and kept

    compilation_cache.get_executable_and_time = read_or_delete


def num_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """Where compiled programs are kept. JAX's own key holds its version, the program and the processor's features; a
    folder for each version lets old ones be deleted by hand."""
    return user_cache_path("upslope") / f"programs-jaxlib-{version('jaxlib')}"


def shares_of(num_seeds: int, is_worth_two: bool) -> list[tuple[slice, Mesh]]:
    """Which seeds run together on which devices: as many whole rounds of all devices as there are, then the rest.

    The rest is a program of its own; where it leaves enough devices idle and that is worth it, each of its seeds has
    two, one for its policy and one for its critic.
    """
    devices = np.asarray(jax.local_devices())
    rest = num_seeds % len(devices)
    width = 2 if is_worth_two and 2 * rest <= len(devices) and devices[0].platform == "cpu" else 1
    whole = (slice(0, num_seeds - rest), mesh_of(devices, 1))
    last = (slice(num_seeds - rest, num_seeds), mesh_of(devices[: rest * width], width))
    return ([whole] if num_seeds > rest else []) + ([last] if rest else [])


def mesh_of(devices: np.ndarray, width: int) -> Mesh:
    """These devices, so many a seed."""
    return Mesh(devices.reshape(-1, width), (SEEDS, NETWORKS))


def is_vmapped(mesh: Mesh) -> bool:
    """Whether a device of this mesh does the seeds that it has all at once. A core does one after another, whose
    numbers stay in its cache; an accelerator has little to do with one seed's numbers."""
    return not is_of_cores(mesh)


def is_of_cores(mesh: Mesh) -> bool:
    """Whether the devices of this mesh are CPU cores."""
    return mesh.devices.flat[0].platform == "cpu"
