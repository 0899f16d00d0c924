"""`--output` with a slash at its end names a folder, which must exist, in every command that writes a file."""

from pathlib import Path

import pytest
from run_helpers import tiny_run

from upslope.cli.main import main

COMMANDS = {
    "report RUN": "report.html",
    "figure RUN --metric episode/return": "figure.pdf",
    "bundle RUN": "runs.zip",
    "record RUN --episodes 1": "dataset.npz",
    "export RUN --format numpy": "policy.py",
    "credit RUN": "credit.html",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize(("command", "name"), COMMANDS.items())
def test_an_output_with_a_slash_is_a_folder(
    command: str, name: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    words = [str(run) if word == "RUN" else word for word in command.split()]
    with pytest.raises(SystemExit):
        main([*words, "--output", "missing/"])
    assert f"There is no folder missing to write {name} into" in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())
    (tmp_path / "there").mkdir()
    main([*words, "--output", "there/"])
    assert (tmp_path / "there" / name).is_file() and len(list(tmp_path.iterdir())) == 1
