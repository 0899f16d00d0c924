"""The trials of a sweep share their seeds, the winner is judged on fresh ones, and stopping the sweep loses nothing."""

import json
import shutil
import signal
import sys
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from types import SimpleNamespace

import numpy as np
import pytest
from run_helpers import before_chunk, config_of

import upslope
from upslope.analysis.statistics import Estimate, Interval
from upslope.cli.main import main
from upslope.engines.trials import TrialsEngine
from upslope.errors import UpslopeError
from upslope.lab.sweep import processes
from upslope.lab.sweep import sweep as sweeps
from upslope.lab.sweep.on_cluster import Server
from upslope.lab.sweep.pulse import is_gone, this_process
from upslope.lab.sweep.setup import setup_of
from upslope.lab.sweep.words import verdict_words

SMALL = {"num_envs": 2, "rollout_steps": 16, "minibatches": 1, "epochs": 2, "hidden_sizes": (8,)}
SPACE = {"learning_rate": {"choices": [1e-3, 3e-3, 1e30]}}
SEARCH = {"space": SPACE, "trials": 3, "seeds": 2, "steps": 160, "sampler": "bruteforce", "fresh_seeds": 2}
OPTIONS = {**SEARCH, **SMALL, "preset": False, "quiet": True, "evaluation_episodes": 1}


@pytest.fixture(scope="module")
def found(folder):
    return upslope.sweep("jax:CartPole-v1", folder=folder, name="first", **OPTIONS)


def by_rate(found):
    """Map each learning rate to its trial."""
    return {trial.drawn["learning_rate"]: trial for trial in found.trials}


def test_a_diverged_trial_is_told_and_does_not_win(found):
    assert {rate: t.state for rate, t in by_rate(found).items()} == {
        1e-3: "complete",
        3e-3: "complete",
        1e30: "diverged",
    }
    best = max((t for t in found.trials if t.state == "complete"), key=lambda t: t.score)
    assert found.winner == best and found.config.learning_rate == best.drawn["learning_rate"]


def test_winner_and_default_are_compared_on_seeds_that_no_trial_has_seen(found):
    confirmation = found.confirmation
    assert confirmation.winner.seeds == confirmation.default.seeds == (2, 3)
    assert confirmation.default.settings["learning_rate"] == 2.5e-4
    assert confirmation.winner.settings["learning_rate"] == found.config.learning_rate
    difference = np.mean(confirmation.winner.scores) - np.mean(confirmation.default.scores)
    assert confirmation.difference.value == pytest.approx(difference)
    assert "On 2 fresh seeds" in verdict_words(found)[0]


def test_fresh_runs_are_judged_by_as_many_episodes_as_are_asked_for(found):
    options = OPTIONS | {"folder": found.path.parent, "name": "first"}
    for episodes, words in ((3, "3 evaluation episodes"), (0, "training episodes"), (1, "3 evaluation episodes")):
        again = upslope.sweep("jax:CartPole-v1", **options | {"evaluation_episodes": episodes})
        assert words in again.confirmation.comparison.score


def test_more_fresh_seeds_train_those_that_are_missing_and_fewer_use_the_first(found, tmp_path):
    shutil.copytree(found.path, tmp_path / "first")
    options = OPTIONS | {"folder": tmp_path, "name": "first", "evaluation_episodes": 0}
    scores = {}
    for seeds in (2, 3, 1):
        confirmation = upslope.sweep("jax:CartPole-v1", **options | {"fresh_seeds": seeds}).confirmation
        assert confirmation.winner.seeds == confirmation.default.seeds == tuple(range(2, 2 + seeds))
        scores[seeds] = [confirmation.winner.scores.tolist(), confirmation.default.scores.tolist()]
    for seeds, both in scores.items():
        assert both == [one[:seeds] for one in scores[3]]
    place = next(tmp_path.glob("first/fresh-*"))
    names = [f"{who}{first}" for who in ("default", "winner") for first in ("", "-4")]
    assert sorted(path.name for path in place.iterdir()) == names
    again = upslope.sweep("jax:CartPole-v1", **options | {"fresh_seeds": 3, "evaluation_episodes": 3})
    assert "mean return of 3 evaluation episodes" in again.confirmation.comparison.score
    assert len(again.confirmation.winner.scores) == 3
    config = json.loads((place / "winner" / "config.json").read_text())
    config["config"]["gamma"] = 0.5
    (place / "winner" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UpslopeError, match=r"gamma was 0\.5"):
        upslope.sweep("jax:CartPole-v1", **options | {"fresh_seeds": 4})


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.51, 0.9, "better"), (0.1, 0.49, "worse"), (0.4, 0.9, "undecided"), (0, 0, "")]
)
def test_the_verdict_needs_an_interval_on_one_side_of_a_half(low, high, verdict, found):
    interval = Interval(low, high) if verdict else None
    shown = replace(found.confirmation, probability=Estimate(0.5, interval))
    assert shown.verdict == (verdict or "undecided")


def test_the_page_and_the_winners_settings(found):
    page = found.report.read_text()
    for words in ("On 2 fresh seeds", "PED-ANOVA", "3 trials: 2 complete, 1 diverged", 'id="figure-3"'):
        assert words in page
    config = config_of(["jax:CartPole-v1", "--config", str(found.path / "winner.yaml"), "--seeds", "2"])
    assert config == found.config


def test_the_same_call_continues_and_other_settings_are_refused(found, monkeypatch, capsys):
    options = OPTIONS | {"folder": found.path.parent, "name": "first"}
    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "Programs", None)  # nothing is left to train
        again = upslope.sweep("jax:CartPole-v1", **options)
    assert again.trials == found.trials and again.confirmation.probability == found.confirmation.probability
    capsys.readouterr()
    upslope.sweep("jax:CartPole-v1", **options | {"sampler": "random", "quiet": False})
    assert "the sampler was bruteforce and is now random" in capsys.readouterr().out
    upslope.sweep("jax:CartPole-v1", **options)
    with pytest.raises(UpslopeError, match="seeds was 2, now 3"):
        upslope.sweep("jax:CartPole-v1", **options | {"seeds": 3})


def test_a_stopped_sweep_ends_as_if_it_had_not_been_stopped(found, tmp_path):
    options = OPTIONS | {"folder": tmp_path, "name": "stopped", "fresh_seeds": 0}
    stop = before_chunk(2, lambda: signal.raise_signal(signal.SIGINT))
    with stop, pytest.raises(KeyboardInterrupt, match="Repeat the command"):
        upslope.sweep("jax:CartPole-v1", **options)
    again = upslope.sweep("jax:CartPole-v1", **options)
    results = [{rate: (t.state, t.score) for rate, t in by_rate(one).items()} for one in (found, again)]
    assert str(results[0]) == str({rate: results[1][rate] for rate in results[0]})
    assert "may be luck" in verdict_words(again)[0]


def test_names_and_options_that_cannot_be_get_one_message(tmp_path, capsys, monkeypatch):
    calls = {
        "--sampler tpee": "Did you mean tpe",
        "--pruner medium": "Did you mean median",
        "--pruner threshold": 'no pruner "threshold"',
        "--sampler bruteforce": "ranges without a step: learning_rate, lambda",
        "--seed 2147483640": "--seed must be between",  # the fresh seeds follow those of the trials
        "--workers 2": "--at-once",
        "--trials 0": "must be 1 or more",
        "--space nowhere.yaml": "Could not read",
        "--storage nothing": "The storage",
    }
    with pytest.raises(SystemExit):
        main(["sweep", "jax:CartPole-v1", "clone", "--folder", str(tmp_path)])
    assert "learns from recorded data" in capsys.readouterr().err
    for words, expected in calls.items():
        with pytest.raises(SystemExit):
            main(["sweep", "jax:CartPole-v1", "--folder", str(tmp_path), "--trials", "1", *words.split()])
        assert expected in capsys.readouterr().err
    refused = {"start_from": "runs/other", "reference": "runs/other", "data": "episodes.npz", "stop_at_return": 400}
    for name, value in refused.items():
        with pytest.raises(UpslopeError, match=f"Omit {name}"):
            upslope.sweep("jax:CartPole-v1", folder=tmp_path, **{name: value})
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UpslopeError, match=r"pip install \"upslope\[sweep\]\""):
        upslope.sweep("jax:CartPole-v1", folder=tmp_path)


def test_own_parts_are_flags_of_the_command(tmp_path, capsys, monkeypatch):
    taken = {}
    found = SimpleNamespace(winner="a trial")
    monkeypatch.setattr(sweeps, "sweep", lambda **options: taken.update(options) or found)
    flags = ["--model", "own_models:SharedTrunk", "--model-kwargs", '{"width": 4}', "--estimator", "gae"]
    main(["sweep", "CartPole-v1", *flags, "--learning-rate-schedule", "my:Own", "--quiet"])
    own = {"model": "own_models:SharedTrunk", "model_kwargs": {"width": 4}, "estimator": "gae"}
    assert own.items() <= taken.items() and taken["learning_rate_schedule"] == "my:Own"
    assert not {"objective", "bonus", "bonus_kwargs", "optimiser", "epsilon_schedule"} & taken.keys()
    monkeypatch.undo()
    (tmp_path / "space.yaml").write_text("objective: my:Own\nlearning_rate: {low: 1.0e-4, high: 1.0e-3}\n")
    with pytest.raises(UpslopeError, match=r"objective to 'my:Own'.*Pass it to the command: --objective\."):
        upslope.sweep("jax:CartPole-v1", space=tmp_path / "space.yaml", folder=tmp_path)


CHOICES = {"learning_rate": {"choices": [1e-3, 3e-3, 5e-3]}}


def test_equal_trials_of_a_program_without_numbers_are_trained(tmp_path):
    space = {"epochs": {"choices": [1, 2]}}
    options = OPTIONS | {"space": space, "trials": 4, "sampler": "random", "fresh_seeds": 0, "at_once": 4}
    del options["epochs"]
    found = upslope.sweep("jax:CartPole-v1", folder=tmp_path, **options)
    assert [trial.state for trial in found.trials] == ["complete"] * 4
    assert len({trial.drawn["epochs"] for trial in found.trials}) < 4
    assert all(a.score == b.score for a in found.trials for b in found.trials if a.drawn == b.drawn)


def test_a_trial_that_cannot_be_trained_takes_none_with_it(tmp_path, monkeypatch):
    advance = TrialsEngine.advance_all

    def stuck(self, *given):
        rows = self.rows_now
        mine = np.isclose(np.asarray(rows.numbers), 3e-3).any(axis=1)
        if (mine & (np.asarray(rows.state.steps) < self.task.steps)).any():
            raise UpslopeError("all choices are masked")
        return advance(self, *given)

    monkeypatch.setattr(TrialsEngine, "advance_all", stuck)
    options = OPTIONS | {"space": CHOICES, "fresh_seeds": 0, "at_once": 3}
    found = upslope.sweep("jax:CartPole-v1", folder=tmp_path, **options)
    assert {rate: t.state for rate, t in by_rate(found).items()} == {1e-3: "complete", 3e-3: "failed", 5e-3: "complete"}
    assert by_rate(found)[3e-3].reason == "all choices are masked"


def test_a_worker_of_a_cluster_trains_one_trial_after_another():
    setup = setup_of("jax:CartPole-v1", "ppo", CHOICES, False, SMALL | {"steps": 160, "seeds": 1})
    server = Server()
    words = dict(zip((1e-3, 3e-3, 5e-3), setup.space.searched["learning_rate"].words, strict=True))
    outcomes = [server.train(setup, k, {"learning_rate": words[rate]}, False) for k, rate in enumerate((1e-3, 3e-3))]
    server.close()
    assert [outcome.state for outcome in outcomes] == ["complete"] * 2, outcomes


def test_processes_that_begin_no_trial_are_not_replaced_for_ever(monkeypatch):
    class Dead(BaseProcess):
        exitcode, pid = 1, 2**22 + 1

        def __init__(self, **given):
            pass

        def start(self):
            pass

        terminate = start

        def join(self, seconds):
            pass

    study = SimpleNamespace(told=list, left=lambda: 3, fail_of=lambda pid, how: 0, put_back_lost=int, access=None)
    monkeypatch.setattr(processes.multiprocessing, "get_context", lambda kind: SimpleNamespace(Process=Dead))
    monkeypatch.setattr(processes, "LOOK_SECONDS", 0)
    train = getattr(processes.train_in_processes, "__wrapped__", processes.train_in_processes)
    with pytest.raises(UpslopeError, match="__main__"):
        train(None, study, None, 2, print, print)


def test_processes_of_this_machine_are_known_by_their_number():
    assert not is_gone({"process": this_process()})
    machine = this_process().rpartition(":")[0]
    assert is_gone({"process": f"{machine}:{2**22 + 1}"})
    assert is_gone({"process": "elsewhere:1", "alive": 0.0}) and not is_gone({"process": "elsewhere:1"})
    # Another process may have the same number by now, for example after a container has restarted.
    assert is_gone({"process": this_process(), "alive": 0.0}) and is_gone({}, first_seen=0.0)
    assert not is_gone({"process": "elsewhere:1", "alive": time.time()}, first_seen=0.0)
