"""What all tests share."""

import os
from pathlib import Path

import jax
import pytest

os.environ.setdefault("MUJOCO_GL", "egl")


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs compile the same few programs again and again: keep them on disk while the tests last."""
    folder = Path(tmp_path_factory.getbasetemp())
    shared = folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder
    jax.config.update("jax_compilation_cache_dir", str(shared / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
