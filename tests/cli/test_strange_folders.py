"""A command run in an untrusted folder executes no code from it unless the user allows it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run_helpers import rewrite_config, tiny_run

import upslope
from upslope.core import user_modules

COMMAND = "import sys; from upslope.cli.main import main; main()"
PLANTED = "from pathlib import Path\nPath(r'{mark}').touch()\n"
ENVIRONMENT = "from gymnasium.envs.classic_control import CartPoleEnv as Toy\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a compiled environment."""
    return tiny_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """An untrusted folder that contains a run."""
    shutil.copytree(trained, tmp_path / "strange" / "run")
    return tmp_path / "strange"


def given_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command in this folder without adding the folder to the search path, as the installed script would do."""
    path = os.pathsep.join(p for p in sys.path if p)
    environment = os.environ | {"PYTHONPATH": path, "UPSLOPE_STATE": str(folder.parent / "state")}
    environment.pop(user_modules.FOLDER_VARIABLE, None)
    return subprocess.run(
        [sys.executable, "-P", "-c", COMMAND, *words], cwd=folder, env=environment, text=True, capture_output=True
    )


@pytest.mark.parametrize("file", ["jax_plugins/evil/__init__.py", "tyro.py", "matplotlib.py"])
def test_a_file_that_passes_for_a_library_or_a_plugin_is_not_run(file: str, folder: Path, tmp_path: Path):
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(PLANTED.format(mark=tmp_path / "executed") + "def initialize(): pass\n")
    done = given_in(folder, "evaluate", "run", "--episodes", "1")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "executed").exists()


def test_a_library_that_is_not_installed_is_not_looked_for_in_the_folder(folder: Path, tmp_path: Path, monkeypatch):
    (folder / "brax.py").write_text(PLANTED.format(mark=tmp_path / "executed"))
    rewrite_config(folder / "run", environment="brax:ant")
    done = given_in(folder, "evaluate", "run", "--episodes", "1")
    assert done.returncode == 2 and "brax, which is not installed" in done.stderr
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend("")  # as in an interactive Python session
    with pytest.raises(upslope.UpslopeError, match="brax, which is not installed"):
        upslope.evaluate("run", episodes=1)
    assert not (tmp_path / "executed").exists()


def test_a_module_that_was_trusted_elsewhere_is_asked_for_again(folder: Path, tmp_path: Path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "toy.py").write_text(ENVIRONMENT)
    words = ("--steps", "32", "--num-envs", "2", "--rollout-steps", "8", "--no-preset", "--name", "run")
    done = given_in(mine, "train", "toy:Toy", *words, "--max-episode-steps", "9", "-q")
    assert done.returncode == 0, done.stderr
    again = given_in(mine, "evaluate", "runs/run", "--episodes", "1")
    assert again.returncode == 0, again.stderr  # the user named the module in this folder
    shutil.rmtree(folder / "run")
    shutil.copytree(mine / "runs" / "run", folder / "run")
    (folder / "toy.py").write_text(PLANTED.format(mark=tmp_path / "executed") + ENVIRONMENT)
    refused = given_in(folder, "evaluate", "run", "--episodes", "1")
    assert refused.returncode == 2 and "--trust" in refused.stderr and str(folder / "toy.py") in refused.stderr
    assert not (tmp_path / "executed").exists()
    assert given_in(folder, "evaluate", "run", "--episodes", "1", "--trust").returncode == 0
    assert (tmp_path / "executed").exists()


def test_a_module_that_the_user_names_may_import_its_neighbours_later_and_in_workers(tmp_path: Path):
    text = "from gymnasium.envs.classic_control import CartPoleEnv\nclass Toy(CartPoleEnv):\n"
    text += "    def reset(self, **options):\n        import neighbour\n        return super().reset(**options)\n"
    (tmp_path / "toy.py").write_text(text)
    (tmp_path / "neighbour.py").write_text("")
    words = ("--steps", "64", "--num-envs", "2", "--rollout-steps", "8", "--no-preset", "--seeds", "2")
    done = given_in(tmp_path, "train", "toy:Toy", *words, "--workers", "2", "--max-episode-steps", "9", "-q")
    assert done.returncode == 0, done.stderr


def test_the_file_of_a_module_is_found_without_importing_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    inner = tmp_path / "outer_of_tests" / "inner.py"
    inner.parent.mkdir()
    for file in (inner, inner.parent / "__init__.py"):
        file.write_text("raise AssertionError")
    assert user_modules.file_of("outer_of_tests.inner") == ""
    monkeypatch.setenv(user_modules.FOLDER_VARIABLE, str(tmp_path))
    assert user_modules.file_of("outer_of_tests.inner") == str(inner)
    assert user_modules.file_of("outer_of_tests.inner.more") == user_modules.file_of("outer_of_tests.no") == ""
    assert user_modules.file_of("json.decoder").endswith("decoder.py") and str(tmp_path) not in sys.path
    user_modules.reach("json")
    assert str(tmp_path) not in sys.path
    user_modules.reach("outer_of_tests.inner")
    assert sys.path[-1] == str(tmp_path)
