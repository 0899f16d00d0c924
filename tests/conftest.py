"""What all tests share."""

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
import type_checks  # noqa: F401 - before upslope
from compile_flags import FUSION_EMITTERS
from helpers import write_run
from weekly_cases import is_weekly

from upslope.learning.devices import one_blas_thread

os.environ.setdefault("MUJOCO_GL", "egl")
# Commands and workers, of which there are hundreds, would otherwise each compile the whole source anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


# The files that take longest, the longest first: begun last, one of them would keep a single core busy at the end.
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
    """Mark the weekly ones, and hand out the longest files first, with `--no-loadscope-reorder`."""
    for item in items:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        function, _, case = item.name.partition("[")
        if is_weekly(file, function, case.removesuffix("]")):
            item.add_marker(pytest.mark.weekly)
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Libraries and tests are there to stay: the collector, which tracing calls often, need not scan them each time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs compile the same few programs again and again: keep them on disk while the tests last."""
    folder = Path(tmp_path_factory.getbasetemp())
    shared = folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder
    jax.config.update("jax_compilation_cache_dir", str(shared / "compiled"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(shared / "compiled")  # for commands in processes of their own
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # else each compiles all its small programs anew


@pytest.fixture(scope="session", autouse=True)
def one_thread_each() -> Iterator[None]:
    """NumPy's matrix products take one thread, lest the test processes wait for each other's."""
    with one_blas_thread():
        yield


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_interrupts() -> None:
    """Tests that press Ctrl-C also pass in a job in the background, which the shell lets ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def trust_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests trust is not kept in the user's own folder."""
    os.environ["UPSLOPE_STATE"] = str(tmp_path_factory.mktemp("state"))


@contextmanager
def users_options() -> Iterator[None]:
    """Within this, training in this process is compiled as users have it."""
    from upslope.learning.iteration import PREFERRED, QUICK

    with pytest.MonkeyPatch.context() as patch:
        for option, value in (PREFERRED | FUSION_EMITTERS).items():
            patch.setitem(QUICK, option, value)
        yield


@pytest.fixture(scope="module")
def compiled_for_users() -> Iterator[None]:
    """Programs as users have them, for the tests of exact bits of a file."""
    with users_options():
        yield


@pytest.fixture
def trains_for_long() -> Iterator[None]:
    """Programs as users have them, for a test that trains for much longer than it compiles."""
    with users_options():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the runs that the tests of a file share."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run_of(tmp_path: Path) -> Callable[..., Path]:
    """Run directories written by hand: `run_of(episodes={seed: [(step, return), …]})`, with rows up to the budget."""
    return partial(write_run, tmp_path)


@pytest.fixture
def curse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says how `Cursed` goes wrong; at first it is not there."""
    monkeypatch.setenv("CURSE", str(tmp_path / "curse"))
    return tmp_path / "curse"
