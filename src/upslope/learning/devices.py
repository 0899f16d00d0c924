"""Devices, precision, and the cache of compiled programs.

JAX must be configured before its first computation, so every command calls `prepare` or `computing` first.
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
from upslope.errors import UpslopeError

SEEDS, NETWORKS, ENVIRONMENTS = "seeds", "networks", "environments"
"""The axes of a mesh. Seeds are distributed over the first axis. The second axis has either one device, or two: one
for the policy and one for the critic. A mesh may have the third axis instead of the second; each seed's environments
are then split over it."""
VMAPPED_SEEDS = "vmapped"
"""The vmapped axis of seeds within one device."""


@cache
def prepare(*, on_host: bool) -> None:
    """Make every CPU core a separate device, and cache compiled programs on disk.

    `on_host` means that environments are stepped in Python. If JAX has already computed something, its devices can
    no longer be changed, and seeds share the existing ones.
    """
    try:
        jax.config.update("jax_num_cpu_devices", num_cores())
    except RuntimeError:
        return
    configure_jax(on_host=on_host)


@contextmanager
def computing(*, on_host: bool) -> Iterator[None]:
    """Prepare JAX for a `with` block.

    If there is an accelerator, use full 32-bit matrix products. With `on_host`, compute on the CPU instead, because
    batches of a few samples would leave the accelerator mostly idle."""
    prepare(on_host=on_host)
    with ExitStack() as stack:
        if on_host:
            stack.enter_context(one_blas_thread())
        if backend() != "cpu":
            stack.enter_context(full_precision(True))
            with suppress(RuntimeError):  # JAX may be configured without a CPU backend
                if on_host:
                    stack.enter_context(jax.default_device(jax.local_devices(backend="cpu")[0]))
        yield


def backend() -> str:
    """The kind of device that JAX uses.

    Raises:
        UpslopeError: JAX is configured to use devices that are not available.
    """
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        asked = jax.config.values.get("jax_platforms")
        raise UpslopeError(
            f"JAX cannot use the devices set by JAX_PLATFORMS={asked}: {brief(error) or 'none'}. "
            "Install JAX for them, or unset JAX_PLATFORMS."
        ) from error


def one_blas_thread() -> Any:
    """Limit NumPy's matrix products to one thread, permanently or within a `with` block.

    Otherwise, each process would start one thread per core, and the threads would wait for each other: with 256 hidden
    units and two workers on two cores, steps took many times as long (`benchmarks/speed.py --against`, case host_wide).
    A product's last bits may also depend on the number of threads.
    """
    return threadpool_limits(limits=1, user_api="blas")


def full_precision(is_accelerator: bool) -> AbstractContextManager[Any]:
    """Use full 32-bit matrix products on accelerators, which by default round to fewer bits. CPUs do not."""
    return jax.default_matmul_precision("float32") if is_accelerator else nullcontext()


def configure_jax(*, on_host: bool) -> None:
    """Configure dispatch and the compilation cache of this process."""
    # Acting on the host waits for every result, so dispatching each call to another thread only adds overhead.
    # Asynchronous dispatch pays off only for long programs on several devices.
    jax.config.update("jax_cpu_enable_async_dispatch", not on_host)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = usable_cache()
        if folder is None:
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
        replace_damaged_entries()
        # Cache even the smallest programs: there are dozens of them, and each takes longer to compile than to read.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@cache
def usable_cache() -> Path | None:
    """The folder of compiled programs, or None if it cannot be created or another user could have written to it.

    Write access matters because cached programs are executed without further checks."""
    folder = cache_folder()
    try:
        private_folder(folder.parent)
        return private_folder(folder)
    except OSError as error:
        warnings.warn(
            f"Compiled programs cannot be cached, so every process recompiles them: {brief(error)}. Remove it, or set "
            "JAX_COMPILATION_CACHE_DIR to a folder that only you can write to.",
            stacklevel=2,
        )
        return None


def own_cache() -> Path | None:
    """The folder of compiled programs if this process uses upslope's own folder and not one chosen by the user;
    otherwise None."""
    folder = cache_folder()
    return folder if jax.config.values["jax_compilation_cache_dir"] == str(folder) else None


@cache
def replace_damaged_entries() -> None:
    """Make JAX delete cache entries that it cannot read. By default, it keeps them and warns in every process."""
    read = getattr(compilation_cache, "get_executable_and_time", None)
    if read is None:  # this private function is missing in some versions of JAX
        return

    def read_or_delete(cache_key: str, *rest: Any) -> Any:
        try:
            return read(cache_key, *rest)
        except Exception:
            folder = jax.config.values["jax_compilation_cache_dir"]
            with suppress(OSError):
                (Path(folder) / f"{cache_key}-cache").unlink()
            return None, None  # recompiled and cached

    compilation_cache.get_executable_and_time = read_or_delete


def use_cores(count: int) -> None:
    """Limit this process to `count` cores, because other processes use the rest."""
    global allowed_cores
    allowed_cores = count


allowed_cores: int | None = None
"""Number of cores that this process may use; None means all cores that the system allows."""


def num_cores() -> int:
    """The number of processor cores that this process may use."""
    if allowed_cores is not None:
        return allowed_cores
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_folder() -> Path:
    """The folder of compiled programs.

    JAX's cache key already covers its version, the program and the processor's features. Each version has its own
    folder, so that users can delete old ones."""
    return user_cache_path("upslope") / f"programs-jaxlib-{version('jaxlib')}"


def assign_seeds(num_seeds: int, is_worth_two: bool, per_seed: int = 1) -> list[tuple[slice, Mesh]]:
    """Assign seeds to devices, with `per_seed` devices for each seed.

    One program trains as many full rounds of seeds over all devices as possible, and a second program trains the
    remaining seeds. If the second program would leave enough CPU cores idle and `is_worth_two` is true, each of its
    seeds gets two cores, one for the policy and one for the critic.

    Raises:
        UpslopeError: there are fewer devices than a seed needs.
    """
    devices = np.asarray(jax.local_devices())
    at_once = len(devices) // per_seed
    if at_once == 0:
        kind = "processor cores" if devices[0].platform == "cpu" else "devices"
        raise UpslopeError(
            f"--devices-per-seed {per_seed} splits each seed over {per_seed} devices, but this process has only "
            f"{len(devices)} {kind}. The number is part of a run, because it determines how sums are "
            f"rounded. Train where there are {per_seed}, or start a new run with at most {len(devices)}."
        )
    rest, axis = num_seeds % at_once, NETWORKS if per_seed == 1 else ENVIRONMENTS
    is_pair = per_seed == 1 and is_worth_two and 2 * rest <= len(devices) and devices[0].platform == "cpu"
    width = 2 if is_pair else per_seed
    whole = (slice(0, num_seeds - rest), mesh_of(devices[: at_once * per_seed], per_seed, axis))
    last = (slice(num_seeds - rest, num_seeds), mesh_of(devices[: rest * width], width, axis))
    return ([whole] if num_seeds > rest else []) + ([last] if rest else [])


def mesh_of(devices: np.ndarray, width: int, axis: str = NETWORKS) -> Mesh:
    """A mesh of these devices with `width` of them per seed, along an axis with this name."""
    return Mesh(devices.reshape(-1, width), (SEEDS, axis))


def is_split(mesh: Mesh) -> bool:
    """Whether each seed's environments are split over devices of this mesh."""
    return ENVIRONMENTS in mesh.shape


def has_two_devices(mesh: Mesh) -> bool:
    """Whether each seed has a device for the policy and one for the critic."""
    return mesh.shape.get(NETWORKS, 1) > 1


def is_vmapped(mesh: Mesh) -> bool:
    """Whether each device of this mesh runs its seeds vmapped.

    A CPU core runs its seeds one by one, so that each seed's data stays in the core's cache. A single seed would
    underuse an accelerator."""
    return not is_cpu_mesh(mesh)


def has_accelerator() -> bool:
    """Whether compiled environments are trained on a device other than a CPU."""
    return jax.local_devices()[0].platform != "cpu"


def is_cpu_mesh(mesh: Mesh) -> bool:
    """Whether the devices of this mesh are CPU cores."""
    return mesh.devices.flat[0].platform == "cpu"
