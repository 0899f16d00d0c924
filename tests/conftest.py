"""Fixtures and hooks for all tests."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import pytest
import type_checks  # noqa: F401 - must precede upslope
from compile_flags import FUSION_EMITTERS
from helpers import write_run
from weekly_cases import is_weekly

from upslope.learning.devices import one_blas_thread

os.environ.setdefault("MUJOCO_GL", "egl")
# Write bytecode: otherwise each of the hundreds of commands and workers would compile all source files again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


# The slowest test files, slowest first. If one of them started last, all other cores would be idle while it finished.
LONGEST = (
    "test_whole_way",
    "test_structured_observations", "test_workers", "test_hybrid_actions", "test_masks", "test_closing", "test_probe",
    "test_doctor_planted", "test_golden", "test_border", "test_own_environments", "test_export", "test_model",
    "test_resume", "test_seeds", "test_optimisers", "test_slices", "test_report", "test_batched", "test_planted_facts",
    "test_views", "test_check", "test_hidden_state", "test_packages", "test_health_of_parts", "test_influence",
    "test_tracking", "test_judge",
    "test_host", "test_survival", "test_old_runs", "test_recorded", "test_ladder", "test_lab", "test_credit",
    "test_memories", "test_mistakes", "test_cli", "test_runs", "test_health", "test_loaders", "test_examples",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before tests are selected by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the weekly tests, and schedule the slowest files first (this needs `--no-loadscope-reorder`)."""
    for item in items:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        function, _, case = item.name.partition("[")
        if is_weekly(file, function, case.removesuffix("]")):
            item.add_marker(pytest.mark.weekly)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Exempt existing objects from garbage collection: tracing triggers it often, and scanning them wastes time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Cache compiled programs on disk during the session, because runs compile the same few programs repeatedly."""
    folder = Path(tmp_path_factory.getbasetemp())
    shared = folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder
    jax.config.update("jax_compilation_cache_dir", str(shared / "compiled"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(shared / "compiled")  # for commands in separate processes
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # otherwise small programs are recompiled


@pytest.fixture(scope="session", autouse=True)
def one_thread_each() -> Iterator[None]:
    """Limit NumPy's matrix products to one thread, so that test processes do not wait for each other's threads."""
    with one_blas_thread():
        yield


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_interrupts() -> None:
    """Install Python's handler for SIGINT, which background jobs would otherwise ignore, so that Ctrl-C tests pass."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def trust_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Store the trust that tests grant in a temporary folder instead of the user's own."""
    os.environ["UPSLOPE_STATE"] = str(tmp_path_factory.mktemp("state"))


@contextmanager
def users_options() -> Iterator[None]:
    """Compile programs in this process with the options that users get, for as long as the context lasts."""
    from upslope.learning.iteration import PREFERRED, QUICK

    with pytest.MonkeyPatch.context() as patch:
        for option, value in (PREFERRED | FUSION_EMITTERS).items():
            patch.setitem(QUICK, option, value)
        yield


@pytest.fixture(scope="module")
def compiled_for_users() -> Iterator[None]:
    """Compile programs with the options that users get, for tests that compare files bit for bit."""
    with users_options():
        yield


@pytest.fixture
def trains_for_long() -> Iterator[None]:
    """Compile programs with the options that users get, for a test that trains for much longer than it compiles."""
    with users_options():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for runs, shared by the tests of one file."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a synthetic run directory: `run_of(episodes={seed: [(step, return), …]}, …)`."""
    return partial(write_run, tmp_path)


@pytest.fixture
def curse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the file that tells `Cursed` how to fail. The file does not exist at first."""
    monkeypatch.setenv("CURSE", str(tmp_path / "curse"))
    return tmp_path / "curse"
