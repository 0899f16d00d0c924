"""Code that a file names is neither imported nor called unless the user allows it."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_helpers import TINY, rewrite_config, tiny_run

import upslope
from upslope.analysis.episode_credit import credit_of
from upslope.cli.main import main
from upslope.config import trust
from upslope.config.config import configure
from upslope.errors import UpslopeError
from upslope.report.page import write_credit

MODULE = "from pathlib import Path\nPath('executed').touch()\ndef make(**_):\n    Path('executed').touch()\n"
"""A module that creates a file when it is imported or called."""


@pytest.fixture(autouse=True)
def own_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start every test with nothing trusted, in a separate folder that contains the module `planted`."""
    monkeypatch.setenv(trust.STATE_VARIABLE, str(tmp_path / "state"))
    monkeypatch.setattr(trust, "GRANTED", set())
    (tmp_path / "planted.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("planted", "mine"):
        sys.modules.pop(name, None)
    return tmp_path / "state"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in a compiled environment."""
    return tiny_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def refusal(words: str, capsys: pytest.CaptureFixture) -> str:
    """Run a command that must fail with exit status 2; return its error message."""
    with pytest.raises(SystemExit) as end:
        main(shlex.split(words))
    assert end.value.code == 2
    return capsys.readouterr().err


HOSTILE = [
    {"environment": "subprocess:getoutput", "env_kwargs": {"cmd": "touch executed"}},
    {"environment": "os:system", "env_kwargs": {"command": "touch executed"}},
    {"environment": "jax:subprocess:getoutput", "env_kwargs": {"cmd": "touch executed"}},
    {"environment": "planted:make"},
    {"environment": "planted:Id-v0"},
    {"environment": "jax:planted:make"},
    {"environment": "jax:CartPole-v1", "env_kwargs": {"anything": "executed"}},
    {"environment": "CartPole-v1", "env_kwargs": {"render_mode": "human"}},
    {"environment": "CartPole-v1", "env_kwargs": {"a": [1, [2, "x"]]}},
    {"environment": "CartPole-v1", "env_kwargs": {"a": {"b": 1}}},
]


@pytest.mark.parametrize("settings", HOSTILE, ids=str)
def test_what_a_run_names_is_shown_and_refused(settings: dict[str, Any], run: Path, capsys: pytest.CaptureFixture):
    rewrite_config(run, **settings)
    for words in ("evaluate run", "resume run", "record run", "credit run", "compare run --normalize threshold"):
        said = refusal(words, capsys)
        assert settings["environment"] in said and "--trust" in said, words
        assert all(str(x) in said for x in settings.get("env_kwargs", {}) if "compare" not in words)
    for call in (upslope.evaluate, upslope.resume, upslope.record, credit_of, write_credit):
        with pytest.raises(UpslopeError, match="trust=True"):
            call(run)
    assert not Path("executed").exists() and "planted" not in sys.modules


def test_a_report_is_written_without_what_is_not_trusted(run: Path):
    rewrite_config(run, environment="planted:make")
    main(["report", "run", "--credit", "--normalize", "threshold"])
    said = Path("report.html").read_text()
    assert "has no credit view: run asks to run the environment planted:make" in said
    assert "could not be compared. run asks to run" in said
    assert not Path("executed").exists() and "planted" not in sys.modules


@pytest.mark.parametrize("role", ["estimator", "objective"])
def test_an_axis_that_a_run_names_is_refused_where_it_would_be_used(role: str, run: Path, capsys):
    rewrite_config(run, **{role: "planted:make"})
    said = refusal("resume run", capsys)
    assert f"the {role} planted:make" in said and "--trust" in said
    upslope.evaluate(run, episodes=1)  # evaluation uses neither estimator nor objective
    assert not Path("executed").exists() and "planted" not in sys.modules


@pytest.mark.parametrize(
    "settings", [*HOSTILE, {"estimator": "planted:make"}, {"environment": "CartPole-v1", "objective": "planted:make"}],
    ids=str,
)  # fmt: skip
def test_what_a_settings_file_names_is_refused(settings: dict[str, Any], capsys: pytest.CaptureFixture):
    Path("file.yaml").write_text(yaml.safe_dump(settings))
    named = "" if "environment" in settings else "CartPole-v1"
    assert "--trust" in refusal(f"train {named} --config file.yaml", capsys)
    for words in (f"train {named} --config file.yaml --help", f"train {named} --config=file.yaml --trust --help"):
        with pytest.raises(SystemExit) as end:
            main(words.split())
        assert end.value.code == 0 and "--learning-rate" in capsys.readouterr().out
    assert not Path("executed").exists() and "planted" not in sys.modules and not Path("runs").exists()


def test_arguments_of_a_file_need_trust_also_for_an_environment_of_the_command_line(capsys):
    Path("file.yaml").write_text("env_kwargs: {render_mode: human}")
    assert '{"render_mode": "human"}' in refusal("train CartPole-v1 --config file.yaml", capsys)


def test_what_the_command_line_names_needs_no_trust():
    Path("file.yaml").write_text("environment: planted:make\nestimator: planted:make\nenv_kwargs: {a: x}")
    config = configure("a:b", is_continuous=False, estimator="c:d", objective="e:f", env_kwargs={"g": "h"})
    assert len(trust.requested(config)) == 3
    assert trust.requested(config, trust.ROLES) == []
    assert [r.role for r in trust.requested(config, {"environment", "env_kwargs"})] == ["estimator", "objective"]
    assert [r.role for r in trust.requested(config, {"environment"})] == ["environment", "estimator", "objective"]
    plain = configure("CartPole-v1", is_continuous=False, env_kwargs={"a": [1, 2.5, True, None], "b": False})
    assert trust.requested(plain) == []


OWN = """
import upslope
from gymnasium.envs.classic_control import CartPoleEnv
from upslope.environments.base import CompiledEnvironment

def make(**_):
    return CartPoleEnv()
"""


def test_a_run_that_this_machine_trained_is_trusted_and_elsewhere_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_trust: Path
):
    (tmp_path / "mine.py").write_text(OWN)
    options = {"preset": False, "quiet": True, "steps": 32, "max_episode_steps": 9, **TINY}
    run = upslope.train("mine:make", name="run", folder=tmp_path, env_kwargs={"word": "x"}, **options).path
    assert (own_trust.stat().st_mode & 0o777, list(trust.kept().values())) == (
        0o700,
        [{"role": "environment", "name": "mine:make", "arguments": {"word": "x"}, "file": str(tmp_path / "mine.py")}],
    )
    monkeypatch.setattr(trust, "GRANTED", set())  # as in a new process
    upslope.evaluate(run, episodes=1)
    monkeypatch.setenv(trust.STATE_VARIABLE, str(tmp_path / "another"))
    with pytest.raises(UpslopeError, match=re.escape('the environment mine:make with {"word": "x"}')):
        upslope.evaluate(run, episodes=1)
    upslope.evaluate(run, episodes=1, trust=True)
    monkeypatch.setattr(trust, "GRANTED", set())
    upslope.resume(run, quiet=True)  # the trust granted by training persists
    rewrite_config(run, env_kwargs={"word": "y"})
    with pytest.raises(UpslopeError, match=re.escape('the environment mine:make with {"word": "y"}')):
        upslope.resume(run, quiet=True)


def test_an_environment_that_is_passed_needs_no_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text(OWN)
    options = {"preset": False, "quiet": True, "steps": 32, "max_episode_steps": 9, **TINY}
    run = upslope.train("mine:make", name="run", folder=tmp_path, **options).path
    monkeypatch.setenv(trust.STATE_VARIABLE, str(tmp_path / "another"))
    monkeypatch.setattr(trust, "GRANTED", set())
    upslope.resume(run, environment="mine:make", quiet=True)
    with pytest.raises(UpslopeError, match="trust=True"):
        upslope.resume(run, quiet=True)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"trusted": 3}', b"\xff\x00", b"[" * 100_000])
def test_a_damaged_store_is_empty_and_is_written_anew(content: bytes, own_trust: Path):
    own_trust.mkdir()
    (own_trust / trust.FILE_NAME).write_bytes(content)
    wanted = [trust.Request("environment", "a:b", {"c": 1})]
    assert trust.untrusted(wanted) == wanted
    trust.allow(wanted)
    assert trust.untrusted(wanted) == [] and len(trust.kept()) == 1


def test_a_store_that_is_a_link_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wanted = [trust.Request("environment", "a:b")]
    trust.allow(wanted)
    monkeypatch.setattr(trust, "GRANTED", set())
    (tmp_path / "link").symlink_to(tmp_path / "state")
    monkeypatch.setenv(trust.STATE_VARIABLE, str(tmp_path / "link"))
    assert trust.untrusted(wanted) == wanted
    trust.allow(wanted)
    assert trust.untrusted(wanted) == []  # trusted within this process


@pytest.mark.parametrize(("answer", "is_run"), [("y", True), ("", False), ("n", False), ("yes please", False)])
def test_at_a_terminal_it_is_asked_for(answer: str, is_run: bool, run: Path, tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(OWN)
    rewrite_config(run, environment="mine:make", env_kwargs={"a": "\x1b[31m"})
    monkeypatch.setattr(trust, "is_interactive", lambda: True)
    monkeypatch.setattr("builtins.input", lambda words: answer)
    if is_run:
        main(["evaluate", "run", "--episodes", "1"])
    else:
        assert "add --trust" in refusal("evaluate run --episodes 1", capsys)
    assert ("mine" in sys.modules) is is_run
    said = capsys.readouterr().out if is_run else ""
    assert "\x1b[31m" not in said
    sys.modules.pop("mine", None)
    monkeypatch.setattr("builtins.input", lambda words: pytest.fail("asked again"))
    if is_run:
        main(["evaluate", "run", "--episodes", "1"])


def test_python_calls_never_ask(run: Path, monkeypatch: pytest.MonkeyPatch):
    rewrite_config(run, environment="planted:make")
    monkeypatch.setattr(trust, "is_interactive", lambda: True)
    monkeypatch.setattr("builtins.input", lambda words: pytest.fail("asked"))
    with pytest.raises(UpslopeError, match="trust=True"):
        upslope.evaluate(run)


def test_the_flag_allows_it(run: Path):
    rewrite_config(run, environment="planted:make")
    done = subprocess.run(
        [sys.executable, "-c", "from upslope.cli.main import main; main()", "evaluate", "run", "--trust"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and "returned nothing, not a gymnasium.Env" in done.stderr
    assert Path("executed").exists()


def nested(depth: int) -> list[Any]:
    """Return a list nested `depth` levels deep."""
    found: list[Any] = []
    for _ in range(depth - 1):
        found = [found]
    return found


DEEP = [
    {"env_kwargs": {"a": nested(700)}},
    {"model_kwargs": {"a": nested(50)}},
    {"environment": "CartPole-v1", "wrappers": ['FlattenObservation:{"a":' + "[" * 3000 + "]" * 3000 + "}"]},
    {"environment": "CartPole-v1", "wrappers": ['FlattenObservation:{"a":' + "[" * 700 + "]" * 700 + "}"]},
]


@pytest.mark.parametrize("settings", DEEP, ids=lambda settings: str(settings)[:40])
def test_what_is_nested_too_deeply_is_refused(settings: dict[str, Any], run: Path, capsys: pytest.CaptureFixture):
    rewrite_config(run, **settings)
    for words in ("evaluate run", "resume run", "train --from run", "credit run"):
        said = refusal(words, capsys)
        assert "nested" in said and len(said) < 1000, words
    if "wrappers" in settings:
        main(["report", "run", "--credit"])  # the report still shows the rest of the run
        assert "nested" in Path("report.html").read_text()
    else:
        assert "nested" in refusal("report run", capsys)


def test_a_setting_may_be_nested_a_little(run: Path):
    rewrite_config(run, env_kwargs={"a": nested(31)})
    with pytest.raises(UpslopeError, match="does not take"):
        upslope.evaluate(run, trust=True)
    with pytest.raises(UpslopeError, match="nested at most 32 deep"):
        configure("CartPole-v1", is_continuous=False, env_kwargs={"a": nested(32)})
