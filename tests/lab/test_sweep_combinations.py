"""A sampler that tries all combinations tries each one once, however many processes ask, and then the sweep ends."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest

import upslope
from upslope.lab.sweep import sweep as sweeps
from upslope.lab.sweep.combinations import Combinations
from upslope.lab.sweep.samplers import distribution_of, without_warnings
from upslope.lab.sweep.space import Space, space_of
from upslope.lab.sweep.storages import sqlite_url
from upslope.lab.sweep.study import Access, Study

SPACE = space_of(
    {
        "gamma": {"low": 0.1, "high": 0.75, "step": 0.1},
        "epochs": {"low": 1, "high": 3},
        "minibatches": {"low": 1, "high": 2, "log": True},
        "target_kl": {"choices": ["none", 0.02]},
        "hidden_sizes": {"choices": [[8], [16, 16]]},
    },
    "the space",
)
SMALL = space_of({"epochs": {"low": 1, "high": 3}, "gamma": {"choices": [0.9, 0.99]}}, "the space")
FIRST = {"epochs": 2, "gamma": 0.99}


def study_at(
    folder: Path, total: int = 100, sampler: str = "bruteforce", first: dict[str, object] | None = FIRST
) -> Study:
    """Open a study with its own connections, as each of several processes would."""
    storage = sqlite_url(folder / "study.db")
    return Study(SMALL, Access(storage, "x", total, sampler, "none", 0), {}, first)


def combinations(study: Study) -> list[tuple[int, float]]:
    """Return the values of all trials that count."""
    return sorted((t.drawn["epochs"], t.drawn["gamma"]) for t in study.told())


ALL = sorted((epochs, gamma) for epochs in (1, 2, 3) for gamma in (0.9, 0.99))


def test_all_combinations_are_those_of_optuna():
    found = Combinations(SPACE)
    assert found.size == 7 * 3 * 2 * 2 * 2
    grid = [found.at(number) for number in range(found.size)]
    assert [found.number(drawn) for drawn in grid] == list(range(found.size))
    with without_warnings():
        study = optuna.create_study(sampler=optuna.samplers.BruteForceSampler())
        distributions = {name: distribution_of(parameter) for name, parameter in SPACE.searched.items()}
    study.optimize(lambda trial: float(bool([trial._suggest(*pair) for pair in distributions.items()])))
    assert found.numbers(t.params for t in study.trials) == set(range(found.size)) and len(study.trials) == found.size
    assert found.number({"gamma": 0.15}) is None and found.number(grid[0] | {"gamma": 0.15}) is None


def test_what_is_missing_is_drawn_evenly():
    found = Combinations(SMALL)
    assert {found.missing({0, 2, 5}, str(seed)) for seed in range(40)} == {1, 3, 4}
    assert found.missing(set(range(6)), "") is None
    huge = Space({f"epochs{k}": SPACE.searched["gamma"] for k in range(90)}, {})
    assert Combinations(huge).missing({0}, "0") is not None


def test_a_sweep_over_all_combinations_ends_and_a_repeated_one_adds_none(tmp_path: Path):
    study = study_at(tmp_path)
    assert study.left() == 6
    first = study.ask()
    assert first.params == FIRST, "the defaults come first"
    tell = [study.complete, lambda t, _: study.prune(t), lambda t, _: study.fail(t, "no"), study.complete]
    for k, end in enumerate(tell):
        end(study.ask() if k else first, 1.0)
    running = [study.ask(), study.ask()]
    assert study.left() == 0 and study.ask() is None, "running trials count as well"
    assert study_at(tmp_path).left() == 0 and study_at(tmp_path).ask() is None
    assert study.put_back(running[0])
    again = study_at(tmp_path)
    assert again.left() == 1
    trial = again.ask()
    assert trial.params == running[0].params and again.left() == 0
    assert combinations(study) == ALL


def test_a_smaller_number_of_trials_ends_the_search_before(tmp_path: Path):
    study = study_at(tmp_path, total=4, first=None)
    trials = [study.ask() for _ in range(5)]
    assert trials[-1] is None and len(set(combinations(study))) == 4
    assert study_at(tmp_path, total=5).left() == 1


def test_trials_of_another_sampler_count(tmp_path: Path):
    drawn = study_at(tmp_path, total=2, sampler="random")
    kept, stopped = drawn.ask(), drawn.ask()
    drawn.study.enqueue_trial({})  # a trial that was put back before its settings were drawn
    study = study_at(tmp_path)
    while study.ask() is not None:
        pass
    assert sorted(set(combinations(study))) == ALL
    assert len(study.told()) == (6 if kept.params != stopped.params else 7)


@pytest.mark.parametrize("first", [None, FIRST])
def test_several_processes_try_each_combination_once(first: dict[str, object] | None, tmp_path: Path):
    studies = [study_at(tmp_path, first=first) for _ in range(4)]
    barrier = threading.Barrier(4)

    def work(study: Study) -> int:
        barrier.wait()
        count = 0
        while (trial := study.ask()) is not None:
            study.complete(trial, 1.0)
            count += 1
        return count

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(work, studies)) == 6
    assert combinations(studies[0]) == ALL


def test_a_compiled_sweep_trains_no_combination_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = {"space": {"learning_rate": {"choices": [1e-3, 3e-3]}}, "sampler": "bruteforce", "seeds": 1, "steps": 64}
    options |= {"num_envs": 2, "rollout_steps": 16, "hidden_sizes": (8,), "preset": False, "fresh_seeds": 0}
    options |= {"folder": tmp_path, "at_once": 4, "quiet": True}
    found = upslope.sweep("jax:CartPole-v1", **options)
    assert sorted(trial.drawn["learning_rate"] for trial in found.trials) == [1e-3, 3e-3]
    monkeypatch.setattr(sweeps, "Programs", None)  # nothing is left to train
    assert upslope.sweep("jax:CartPole-v1", **options).trials == found.trials


@pytest.mark.parametrize("step", [1e-7, 1e-3, 0.1])
def test_every_value_of_a_fine_range_is_found_again(step: float):
    (parameter,) = space_of({"gamma": {"low": 0.1, "high": 0.9, "step": step}}, "the space").searched.values()
    places = {0, 1, 2, 3, parameter.size // 3, parameter.size - 2, parameter.size - 1}
    assert {parameter.place(parameter.at(place)) for place in places} == places
