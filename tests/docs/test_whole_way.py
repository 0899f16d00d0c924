"""The tutorial that leads from a sweep to a robot works as written."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from upslope.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "sweep_to_robot.md").read_text("utf-8")
COMPILER = shutil.which("gcc")


def blocks(language: str) -> list[str]:
    """Return the code blocks on the page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.S)


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
def test_sweep_train_go_on_compare_and_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(lines) == 8 and all(line.startswith("upslope ") for line in lines)
    for line in lines:
        main(line.split()[1:])
    (program,) = blocks("c")
    Path("main.c").write_text(program)
    (compile_it,) = re.findall(r"`(gcc [^`]*)`", PAGE)
    subprocess.run(compile_it.split(), check=True)
    (comparison,) = blocks("python")
    exec(compile(comparison, "sweep_to_robot.md", "exec"), {})
    sys.modules.pop("policy")
