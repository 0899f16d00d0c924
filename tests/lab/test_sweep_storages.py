"""Several processes share a sweep through one storage (SQLite or a PostgreSQL server), even after one of them is
killed."""

import importlib
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest

import upslope
from upslope.errors import UpslopeError
from upslope.lab.sweep.pulse import Pulse, this_process
from upslope.lab.sweep.setup import setup_of
from upslope.lab.sweep.space import space_of
from upslope.lab.sweep.storages import sqlite_url
from upslope.lab.sweep.study import Access, Study

SMALL = {"num_envs": 2, "rollout_steps": 16, "minibatches": 1, "epochs": 2, "hidden_sizes": [8]}
SPACE = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, **SMALL}
WORDS = ["--seeds", "1", "--steps", "320", "--fresh-seeds", "0", "--no-preset", "--quiet"]


def tool(name):
    """Find one of PostgreSQL's programs, which Debian keeps outside the search path."""
    places = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), None]
    return next((found for place in places if (found := shutil.which(name, path=place))), None)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Start a private server and return a database's URL. PostgreSQL refuses to run as root, so root starts it as
    another user."""
    pytest.importorskip("psycopg")
    initdb, postgres = tool("initdb"), tool("postgres")
    if not initdb or not postgres:
        pytest.skip("there is no PostgreSQL server here")
    user = {}
    folder = tmp_path_factory.mktemp("postgres")
    if os.getuid() == 0:
        found = next((u for u in pwd.getpwall() if u.pw_name in ("postgres", "nobody")), None)
        if found is None:
            pytest.skip("there is no user to run a PostgreSQL server as")
        user = {"user": found.pw_name, "group": found.pw_gid, "extra_groups": []}
        folder = Path("/tmp") / f"upslope-postgres-{os.getpid()}"  # only root can enter pytest's folders
        folder.mkdir(mode=0o700)
        os.chown(folder, found.pw_uid, found.pw_gid)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data, environment = folder / "data", {**os.environ, "HOME": str(folder)}
    options = {"cwd": folder, "env": environment, "stdout": subprocess.DEVNULL, **user}
    subprocess.run([initdb, "-D", data, "-U", "upslope", "-A", "trust"], check=True, **options)
    process = subprocess.Popen([postgres, "-D", data, "-p", str(port), "-k", str(folder)], **options)
    try:
        for _ in range(100):
            time.sleep(0.2)
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
        time.sleep(1)
        yield f"postgresql+psycopg://upslope@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.weekly)])
def storage(request, tmp_path):
    """Return the URL of a new database."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "study.db")
    server = request.getfixturevalue("server")
    name = f"of_test_{os.urandom(4).hex()}"
    with importlib.import_module("psycopg").connect(server.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.rpartition("/")[0] + f"/{name}"


RATES = space_of({"learning_rate": SPACE["learning_rate"]}, "the space")
MANY = 6


def study_at(storage, description=None, first=None):
    """Open a study with its own connections, as each of several processes would."""
    return Study(RATES, Access(storage, "shared", 4, "random", "none", 0), description or {"steps": 64}, first)


def at_once(function):
    """Call function(0 … MANY − 1), all starting at the same moment."""
    barrier = threading.Barrier(MANY)

    def call(number):
        barrier.wait()
        return function(number)

    with ThreadPoolExecutor(MANY) as threads:
        return list(threads.map(call, range(MANY)))


def test_who_begins_a_study_at_the_same_moment_shares_it(storage):
    studies = at_once(lambda _: study_at(storage, first={"learning_rate": 0.003}))
    assert len(studies[0].study.get_trials()) == 1, "there is one first trial"
    trials = [trial for trial in at_once(lambda number: studies[number].ask()) if trial is not None]
    assert sorted(trial.number for trial in trials) == [0, 1, 2, 3]
    rates = [trial.params["learning_rate"] for trial in trials]
    assert rates.count(0.003) == 1 and len(set(rates)) == 4


def test_another_sampler_or_pruner_continues_a_study_and_is_named(tmp_path):
    def words(sampler, pruner):
        return Study(RATES, Access(sqlite_url(tmp_path / "study.db"), "x", 4, sampler, pruner, 0), {}).continued_with()

    assert words("tpe", "median") == words("tpe", "median") == ""
    assert words("random", "median").startswith("the sampler was tpe and is now random, for")
    assert words("tpe", "none").startswith("the sampler was random and is now tpe, and the pruner was median and is")
    assert words("tpe", "none") == ""


def test_of_two_descriptions_at_the_same_moment_one_is_refused(storage):
    def steps(number):
        try:
            return json.loads(study_at(storage, {"steps": number % 2}).study.user_attrs["sweep"])["steps"] - number % 2
        except UpslopeError as error:
            assert "has different settings" in str(error)
            return None

    assert sorted(map(str, at_once(steps))) == ["0"] * (MANY // 2) + ["None"] * (MANY // 2)


def test_a_lost_trial_is_put_back_by_one_process(storage):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    studies = [study_at(storage) for _ in range(MANY)]
    trial = studies[0].ask()
    trial.set_user_attr("process", f"{this_process().rpartition(':')[0]}:{gone.pid}")
    assert sorted(at_once(lambda number: studies[number].put_back_lost())) == [0] * (MANY - 1) + [1]
    assert [t.state.name for t in studies[1].study.get_trials()] == ["FAIL", "WAITING"]
    assert studies[1].ask().params == trial.params


def test_a_process_whose_trial_was_put_back_gives_it_up(storage):
    mine, other = study_at(storage), study_at(storage)
    trial = mine.ask()
    assert other.put_back(trial) and not mine.put_back(trial)
    assert mine.report(trial, 1, 10.0)
    for tell in (mine.prune, lambda trial: mine.complete(trial, 1.0), lambda trial: mine.fail(trial, "late")):
        tell(trial)
    assert [t.state.name for t in mine.study.get_trials()] == ["FAIL", "WAITING"]
    assert mine.told() == [] and mine.left() == 4


@pytest.mark.parametrize("error", [ImportError("no module cmaes"), KeyboardInterrupt()])
def test_a_trial_whose_settings_could_not_be_drawn_is_put_back(storage, monkeypatch, error):
    mine = study_at(storage)

    def fails(*given):
        raise error

    with monkeypatch.context() as during:
        for name in ("infer_relative_search_space", "sample_independent"):
            during.setattr(mine.study.sampler, name, fails)
        with pytest.raises(UpslopeError if isinstance(error, ImportError) else KeyboardInterrupt) as raised:
            mine.ask()
    assert isinstance(error, KeyboardInterrupt) or "needs another package: no module cmaes" in str(raised.value)
    assert mine.running() == [] and mine.left() == 4
    assert mine.ask().params


def test_a_pulse_outlives_a_server_that_was_away():
    def fail(*given):
        raise errors.pop()

    errors = [optuna.exceptions.UpdateFinishedTrialError(), ConnectionError()]
    pulse = Pulse(SimpleNamespace(set_trial_user_attr=fail))
    assert pulse.write(0) and not pulse.write(0)


def started(folder, environment, *words, name="shared"):
    """Start `upslope sweep` in a separate process."""
    (folder / "space.yaml").write_text(json.dumps(SPACE))  # JSON is YAML too
    call = [sys.executable, "-c", "from upslope.cli.main import main; main()", "sweep", environment]
    call += ["--space", str(folder / "space.yaml"), "--folder", str(folder), "--name", name, *WORDS, *words]
    return subprocess.Popen(call)


@pytest.mark.weekly
def test_two_processes_share_a_postgresql_server(server, tmp_path):
    processes = [started(tmp_path, "jax:CartPole-v1", "--trials", "8", "--storage", server) for _ in range(2)]
    assert [process.wait(600) for process in processes] == [0, 0]
    options = {"preset": False, "quiet": True, "fresh_seeds": 0, "storage": server, "folder": tmp_path}
    found = upslope.sweep("jax:CartPole-v1", space=SPACE, trials=8, seeds=1, steps=320, name="shared", **options)
    assert [trial.number for trial in found.trials] == list(range(8))
    assert {trial.state for trial in found.trials} <= {"complete", "pruned"}
    assert len({trial.drawn["learning_rate"] for trial in found.trials}) == 8
    assert not (found.path / "study.db").exists()


@pytest.mark.weekly
def test_several_processes_train_trials_on_the_host(tmp_path):
    assert started(tmp_path, "CartPole-v1", "--trials", "4", "--workers", "2", name="host").wait(600) == 0
    options = {"preset": False, "quiet": True, "fresh_seeds": 0, "folder": tmp_path, "name": "host"}
    found = upslope.sweep("CartPole-v1", space=SPACE, trials=4, seeds=1, steps=320, **options)
    assert len(found.trials) == 4 and len({trial.drawn["learning_rate"] for trial in found.trials}) == 4


@pytest.mark.weekly
def test_the_trials_of_a_killed_process_are_trained_again(tmp_path):
    process = started(tmp_path, "jax:CartPole-v1", "--trials", "3", name="killed")
    setup = setup_of("jax:CartPole-v1", "ppo", SPACE, False, {"seeds": 1, "steps": 320})
    database = tmp_path / "killed" / "study.db"
    for _ in range(600):
        time.sleep(0.1)
        if database.exists() and database.stat().st_size and process.poll() is None:
            access = Access(f"sqlite:///{database}", "killed", 3, "tpe", "median", 0)
            if Study(setup.space, access, setup.described()).running():
                break
    process.kill()
    process.wait()
    assert started(tmp_path, "jax:CartPole-v1", "--trials", "3", name="killed").wait(600) == 0
    told = Study(setup.space, access, setup.described()).told()
    assert len(told) == 3 and all(trial.state != "running" for trial in told)


@pytest.mark.weekly
def test_on_the_host_a_trial_is_a_run_and_a_failing_one_is_told(tmp_path):
    space = {"minibatches": {"choices": [1, 1000]}, "num_envs": 2, "rollout_steps": 16, "hidden_sizes": [8]}
    found = upslope.sweep(
        "CartPole-v1", space=space, trials=2, seeds=1, steps=64, sampler="bruteforce", workers=1, preset=False,
        fresh_seeds=0, folder=tmp_path, quiet=True,
    )  # fmt: skip
    states = {t.drawn["minibatches"]: t for t in found.trials}
    assert states[1].state == "complete" and states[1000].state == "failed"
    assert "--minibatches 1000 is more than the 32 samples" in states[1000].reason
    assert (found.path / "trials").is_dir() and found.confirmation is None
