"""The wheel works in an empty folder, and shells can complete its commands."""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from upslope.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "upslope"


def bare(**more: str) -> dict[str, str]:
    """Return this process's environment variables without its module search path, plus the given ones."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | more


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("build", "hatchling"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, env=bare(), cwd=folder)
    assert not done.returncode, done.stdout + done.stderr
    (made,) = folder.glob("*.whl")
    return made


def test_the_wheel_holds_every_file_and_names_every_extra(wheel: Path):
    wanted = {str(path.relative_to(SOURCE.parent)) for path in SOURCE.rglob("*") if path.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("upslope/")}
        (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        metadata = archive.read(name).decode().splitlines()
    assert held == {name for name in wanted if "__pycache__" not in name}
    extras = {line.removeprefix("Provides-Extra: ") for line in metadata if line.startswith("Provides-Extra: ")}
    assert extras == set(
        tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    )


def test_what_is_installed_trains_and_reports_in_an_empty_folder(wheel: Path, tmp_path: Path):
    place, empty = tmp_path / "venv", tmp_path / "empty"
    venv.create(place)
    empty.mkdir()
    (packages,) = place.glob("lib/python*/site-packages")
    seen = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "of_the_tests.pth").write_text("\n".join(seen) + "\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(place / "bin" / "python"),
        "--disable-pip-version-check",
        "install",
    ]
    subprocess.run([*pip, "--quiet", "--no-deps", "--no-index", str(wheel)], check=True, env=bare())

    def run(*words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, cwd=empty, env=bare(UPSLOPE_STATE=str(tmp_path)))
        assert not done.returncode, done.stderr
        return done.stdout

    assert run(str(place / "bin" / "python"), "-c", "import upslope; print(upslope.__file__)").startswith(str(place))
    upslope, small = str(place / "bin" / "upslope"), ["--num-envs", "2", "--rollout-steps", "8", "--minibatches", "1"]
    run(upslope, "train", "jax:CartPole-v1", "--no-preset", "--steps", "64", *small, "--epochs", "1", "--quiet")
    assert "wrote report.html" in run(upslope, "report", "runs/jax-CartPole-v1-ppo")
    assert sorted(path.name for path in empty.iterdir()) == ["report.html", "runs"]


COMPLETE = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
_upslope
printf '%s\\n' ${#COMPREPLY[@]} "${COMPREPLY[@]}"
"""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_commands_flags_and_values(tmp_path: Path, capsys: Any):
    main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)

    def answers(*words: str) -> list[str]:
        command = ["bash", "-c", COMPLETE, "bash", str(tmp_path / "script"), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert not done.stderr
        count, *found = done.stdout.splitlines()
        return found[: int(count)]

    assert set(answers("upslope", "")) >= set(COMMANDS)
    assert answers("upslope", "comp") == ["compare", "completion"]
    assert answers("upslope", "train", "CartPole-v1", "--learning-rate-s") == ["--learning-rate-schedule"]
    assert answers("upslope", "figure", "runs/a", "--ki") == ["--kind"]
    assert answers("upslope", "figure", "runs/a", "--kind", "co") == ["comparison"]
    assert answers("upslope", "report", "runs/") == [], "bash completes files"


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_their_scripts(shell: str, capsys: Any):
    main(["completion", shell])
    text = capsys.readouterr().out
    assert "upslope" in text and "--state-dependent-std" in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)
