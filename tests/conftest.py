"""What all tests share."""

import os
from pathlib import Path

import jax
import pytest

os.environ.setdefault("MUJOCO_GL", "egl")
# Two devices on any machine, so that seeds are spread in the tests too.
jax.config.update("jax_num_cpu_devices", 2)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs compile the same few programs again and again: keep them on disk while the tests last."""
    folder = Path(tmp_path_factory.getbasetemp())
    shared = folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder
    jax.config.update("jax_compilation_cache_dir", str(shared / "compiled"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(shared / "compiled")  # for commands in processes of their own
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
