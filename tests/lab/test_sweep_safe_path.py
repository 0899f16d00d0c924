"""Processes of a sweep do not import modules from the current folder."""

import os
from pathlib import Path
from typing import Any

import upslope


def test_a_strangers_module_is_not_taken_for_pythons(tmp_path: Path, monkeypatch: Any):
    here = tmp_path / "folder"
    here.mkdir()
    (here / "multiprocessing.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(1)\n")
    monkeypatch.chdir(here)
    settings = {"trials": 2, "seeds": 1, "steps": 64, "fresh_seeds": 0, "folder": tmp_path / "runs", "name": "sweep"}
    found = upslope.sweep("CartPole-v1", workers=2, quiet=True, **settings)
    assert not (tmp_path / "ran").exists() and len(found.trials) == 2
    assert "PYTHONSAFEPATH" not in os.environ
