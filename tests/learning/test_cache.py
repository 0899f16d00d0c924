"""Only the current user can access the folder of compiled programs, and a damaged program is compiled again."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax._src import compilation_cache as internal
from jax.experimental.compilation_cache import compilation_cache

from upslope.core.private_folders import private_folder
from upslope.learning import devices


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Set up a cache in the test's own folder."""
    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setattr(devices, "cache_folder", lambda: tmp_path / "upslope" / "programs")
    monkeypatch.setattr(internal, "get_executable_and_time", internal.get_executable_and_time)  # restored afterwards
    devices.usable_cache.cache_clear()
    devices.replace_damaged_entries.cache_clear()
    yield tmp_path / "upslope" / "programs"
    devices.usable_cache.cache_clear()
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def test_the_folder_has_mode_700_also_where_it_had_another(own_cache: Path):
    own_cache.mkdir(parents=True, mode=0o777)
    own_cache.chmod(0o777)
    assert devices.usable_cache() == own_cache
    assert own_cache.stat().st_mode & 0o777 == own_cache.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("which", ["programs", "upslope"])
def test_a_link_in_the_place_of_the_folder_is_refused(which: str, own_cache: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    link = own_cache if which == "programs" else own_cache.parent
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "elsewhere")
    jax.config.update("jax_compilation_cache_dir", None)
    with pytest.warns(UserWarning, match="Compiled programs cannot be cached.*is a symbolic link"):
        devices.configure_jax(on_host=True)
    assert jax.config.values["jax_compilation_cache_dir"] is None
    assert list((tmp_path / "elsewhere").iterdir()) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        devices.configure_jax(on_host=True)  # the warning appears only once


def test_a_folder_of_another_user_and_a_file_are_refused(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file"):
        private_folder(tmp_path / "file")
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    with pytest.warns(UserWarning, match="belongs to another user"):
        assert devices.usable_cache() is None


def test_a_damaged_program_is_replaced(own_cache: Path):
    jax.config.update("jax_compilation_cache_dir", None)
    devices.configure_jax(on_host=True)
    assert jax.config.values["jax_compilation_cache_dir"] == str(own_cache)
    compilation_cache.reset_cache()

    def compiled() -> dict[str, bytes]:
        jax.clear_caches()
        jax.jit(lambda x: jnp.sin(x) * 37.25 + 1)(jnp.arange(3.0))
        return {p.name: p.read_bytes() for p in own_cache.glob("*-cache")}

    whole = compiled()
    assert whole
    for damage in (b"", b"nonsense", next(iter(whole.values()))[:40]):
        for name in whole:
            (own_cache / name).write_bytes(damage)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = compiled()
        assert found.keys() == whole.keys() and damage not in found.values()
