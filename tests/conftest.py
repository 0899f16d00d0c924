"""What all tests share."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import pytest
from helpers import write_run

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


@pytest.fixture(scope="session", autouse=True)
def trust_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests trust is not kept in the user's own folder."""
    os.environ["UPSLOPE_STATE"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Path]:
    """Run directories written by hand: `run_of(episodes={seed: [(step, return), …]})`, with rows up to the budget."""
    return partial(write_run, tmp_path)


@pytest.fixture
def curse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says how `Cursed` goes wrong; at first it is not there."""
    monkeypatch.setenv("CURSE", str(tmp_path / "curse"))
    return tmp_path / "curse"
