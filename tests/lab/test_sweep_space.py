"""The search space of a sweep, and the names of Optuna's samplers and pruners."""

import pytest

from upslope.config.config import configure
from upslope.errors import UpslopeError
from upslope.lab.sweep.samplers import distribution_of, pruners, refuse_endless, samplers
from upslope.lab.sweep.space import Choices, Range, read_space, shipped_space, space_of
from upslope.lab.sweep.study import Access, Study

BAD = {
    "learning_rat: {low: 1, high: 2}": "Did you mean learning_rate",
    "lr: 0.1": "learning_rate",
    "learning_rate: {low: 2, high: 1}": "empty",
    "learning_rate: {low: 0, high: 1, log: true}": "no logarithm",
    "learning_rate: {low: 1}": "no high",
    "learning_rate: {low: 1, high: 2, logs: true}": "Did you mean log",
    "learning_rate: {low: 1, high: 2, log: maybe}": "true or false",
    "learning_rate: {low: 1, high: .inf}": "finite",
    "learning_rate: {low: a, high: b}": "a number",
    "gamma: {choices: []}": "a list of values",
    "gamma: {choices: [0.9, 0.9]}": "twice",
    "gamma: {choices: [0.9], low: 1}": "one of the two",
    "epochs: {low: 1, high: 3, log: true, step: 1}": "exclude",
    "activation: {low: 1, high: 2}": "not a number",
    "steps: {low: 1, high: 2}": "same for all trials",
    "stop_at_return: 400\ngamma: {choices: [0.9]}": "compared at the same budget (--steps), so none may stop early",
    "stop-at-return: {choices: [none, 400]}": "--config winner.yaml --stop-at-return",
    "start_from: {choices: [runs/a, runs/b]}": "Every trial of a sweep starts from scratch",
    "reference: {choices: [runs/a, runs/b]}": "no reference policy",
    "data: file.npz": "Omit data.",
    "masks: {choices: [true, false]}": "changes the task",
    "num_envs: 8": "searches nothing",
    "- learning_rate": "must contain a space",
    "estimator: {choices: [gae, 'os:system']}": "may not name code",
    "gamma: {choices: [0.9]}\nwrappers: ['os:system']": "may not name code",
    "gamma: {choices: [0.9]}\nlambda: 0.9\nlambda_: 0.8": "appears twice",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_file_gets_one_message(text, tmp_path):
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(UpslopeError) as found:
        read_space(tmp_path / "space.yaml")
    assert BAD[text] in str(found.value) and "\n" not in str(found.value)


def test_a_file_is_read_in_the_settings_types(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "learning-rate: {low: 1e-4, high: 1e-2, log: true}\nepochs: {low: 2, high: 8, step: 2}\n"
        "hidden_sizes: {choices: [[64, 64], [256]]}\ntarget_kl: {choices: [none, 0.02]}\nlambda: 0.9\n"
    )
    space = read_space(path)
    assert space.searched["learning_rate"] == Range(1e-4, 1e-2, log=True)
    assert space.searched["epochs"] == Range(2, 8, step=2, is_whole=True)
    assert space.searched["hidden_sizes"] == Choices(((64, 64), (256,)))
    assert space.fixed == {"lambda_": 0.9}
    settings = space.settings({"epochs": 4, "hidden_sizes": "[256]", "target_kl": None})
    assert settings == {"epochs": 4, "hidden_sizes": (256,), "target_kl": None}
    assert read_space(space.to_json()) == space


def test_optunas_distributions_are_those_of_the_file():
    space = read_space({"epochs": {"low": 2, "high": 8, "step": 2}, "gamma": {"choices": [0.9, 0.99]}})
    epochs, gamma = (distribution_of(p) for p in space.searched.values())
    assert (epochs.low, epochs.high, epochs.step) == (2, 8, 2) and gamma.choices == (0.9, 0.99)


def test_the_defaults_are_drawn_if_the_space_holds_them():
    config = configure("CartPole-v1", is_continuous=False, use_preset=False)
    inside = {"learning_rate": {"low": 1e-4, "high": 1e-2}, "hidden_sizes": {"choices": [[64, 64]]}}
    assert read_space(inside).drawn(config) == {"learning_rate": 2.5e-4, "hidden_sizes": "[64, 64]"}
    assert read_space({"learning_rate": {"low": 1e-3, "high": 1e-2}}).drawn(config) is None
    assert read_space({"epochs": {"low": 1, "high": 9, "step": 2}}).drawn(config) is None


@pytest.mark.parametrize("is_continuous", [False, True])
def test_shipped_spaces_hold_numbers_alone(is_continuous):
    space = shipped_space(is_continuous=is_continuous)
    config = configure("X", is_continuous=is_continuous)
    assert all(isinstance(getattr(config, name), float) for name in space.searched)


def test_samplers_and_pruners_are_optunas():
    assert {"tpe", "random", "cmaes", "gp", "qmc", "nsgaii", "bruteforce"} <= set(samplers())
    assert {"median", "hyperband", "successivehalving", "wilcoxon", "none"} <= set(pruners())
    assert "threshold" not in pruners()  # Optuna's class has defaults for all arguments but rejects them


@pytest.mark.parametrize(("role", "name"), [*(("sampler", n) for n in samplers()), *(("pruner", n) for n in pruners())])
def test_whatever_is_offered_draws_the_shipped_space_or_is_refused(role, name, tmp_path):
    space = shipped_space(is_continuous=True)
    chosen = {"sampler": "random", "pruner": "none"} | {role: name}
    try:
        refuse_endless(chosen["sampler"], space)
        study = Study(space, Access(f"sqlite:///{tmp_path / 'study.db'}", "x", 12, seed=0, **chosen), {})
        for _ in range(12):
            trial = study.ask()
            for part in range(1, 8):
                study.report(trial, part, float(part * trial.number % 7))
            study.complete(trial, float(trial.number % 5))
    except UpslopeError as error:
        assert "needs another package" in str(error) or name == "bruteforce"


def test_a_sampler_that_tries_everything_needs_an_end():
    endless = space_of({"gamma": {"low": 0.1, "high": 0.9}, "lambda": {"low": 0, "high": 1}}, "")
    with pytest.raises(UpslopeError, match="ranges without a step: gamma, lambda"):
        refuse_endless("bruteforce", endless)
    space = space_of({"gamma": {"low": 0.5, "high": 0.9, "step": 0.1}, "epochs": {"low": 1, "high": 3}}, "")
    refuse_endless("bruteforce", space)
    for low, high, step in ((0.9, 0.99, 0.09), (0.8, 0.9, 0.1)):  # the differences of these numbers are rounded
        assert space_of({"gamma": {"low": low, "high": high, "step": step}}, "").searched["gamma"].size == 2
    refuse_endless("tpe", shipped_space(is_continuous=False))
