"""Mistakes in a user's own estimator, objective, schedule or bonus are reported by its name before a run exists."""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import own_models
import pytest
from helpers import rollout_of

import upslope
from upslope.config.prepare import prepare
from upslope.learning import own_parts
from upslope.runs import train as training

SMALL: Any = {"steps": 64, "num_envs": 4, "rollout_steps": 16, "epochs": 1, "minibatches": 1, "hidden_sizes": (4,)}


def refused_in_advance(**parts: Any) -> str:
    """The message with which `prepare`, which runs before a run directory is created, refuses these parts."""
    with pytest.raises(upslope.UpslopeError) as refused:
        prepare("jax:CartPole-v1", settings={}, **parts)
    return str(refused.value)


def refusal(folder: Any, algorithm: str = "ppo", settings: Any = None, **parts: Any) -> str:
    """The message with which a run with these parts is refused. No run directory may be left behind."""
    with pytest.raises(upslope.UpslopeError) as refused:
        options = SMALL if settings is None else settings
        upslope.train("jax:CartPole-v1", algorithm, folder=folder, name="run", quiet=True, **options, **parts)
    assert not (folder / "run").exists()
    return str(refused.value)


@dataclass(frozen=True)
class Weigh(upslope.Estimator):
    """An estimator that returns the value of a function of the rollout and the values."""

    answer: Any
    needs_critic: ClassVar[bool] = True
    whole_episodes: ClassVar[bool] = False

    def __call__(self, rollout: upslope.Rollout, values: upslope.Values, gamma: float) -> Any:
        return self.answer(rollout, values)


def both(weight: Any) -> Any:
    return lambda rollout, values: upslope.Credit(weight=weight(rollout.reward), target=weight(rollout.reward))


def branching(rollout: Any, values: Any) -> Any:
    return rollout.reward if rollout.reward.sum() > 0 else values.value


def raising(*_: Any) -> Any:
    raise KeyError("my key")


ESTIMATORS: dict[str, tuple[Any, str]] = {
    "per column": (both(lambda r: r.sum(axis=0)), r"the weight float32\[4\], but float32\[16, 4\].*broadcast"),
    "a number": (both(jnp.sum), r"the weight float32\[\], but float32\[16, 4\]"),
    "a Python number": (both(lambda r: 1.0), r"the weight 1\.0, but float32\[16, 4\]"),
    "kept column axis": (both(lambda r: r.mean(axis=1, keepdims=True)), r"the weight float32\[16, 1\]"),
    "kept time axis": (both(lambda r: r.mean(axis=0, keepdims=True)), r"the weight float32\[1, 4\]"),
    "transposed": (both(jnp.transpose), r"the weight float32\[4, 16\]"),
    "half precision": (both(lambda r: r.astype(jnp.float16)), r"the weight float16\[16, 4\].*astype\(jnp.float32\)"),
    "whole numbers": (both(lambda r: jnp.ones(r.shape, int)), r"the weight int32\[16, 4\].*astype\(jnp.float32\)"),
    "an array": (lambda rollout, values: rollout.reward, r"returned float32\[16, 4\]; it must return upslope.Credit"),
    "nothing": (lambda rollout, values: None, "returned None; it must return upslope.Credit"),
    "no target": (lambda rollout, values: upslope.Credit(rollout.reward, None), "the target None.*equal the weight"),
    "another target": (lambda rollout, values: upslope.Credit(values.value, values.value[0]), r"target float32\[4\]"),
    "if": (branching, r"raised TracerBoolConversionError: .*shape bool\[\] \(test_own_parts.py, line \d+\).*jnp.where"),
    "NumPy": (lambda rollout, values: np.asarray(rollout.reward), "raised TracerArrayConversionError.*jax.numpy"),
    "raises": (raising, r"raised KeyError: 'my key' \(test_own_parts.py, line \d+\) when JAX traced it. Correct it."),
}  # fmt: skip


@pytest.mark.parametrize("case", ESTIMATORS)
def test_a_mistake_in_an_estimator_is_reported_before_the_run_exists(case, tmp_path):
    answer, words = ESTIMATORS[case]
    found = refusal(tmp_path, estimator=Weigh(answer))
    assert re.search(words, found), found
    assert found.startswith("The estimator Weigh") and "\n" not in found and "docs.jax.dev" not in found


@pytest.mark.parametrize("attribute", ["needs_critic", "whole_episodes"])
def test_an_estimator_that_omits_a_declaration_is_told_to_declare_it(attribute, tmp_path):
    undeclared = type("Undeclared", (Weigh,), {attribute: None})
    found = refusal(tmp_path, estimator=undeclared(both(jnp.asarray)))
    assert f"The estimator Undeclared does not declare {attribute}" in found and "ClassVar[bool] = False" in found


def test_an_estimator_is_tried_with_the_recorded_episodes_from_which_it_learns(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "load_dataset", lambda *_, **__: rollout_of(np.zeros((7, 3))))
    options: Any = {"data": "any.npz", "settings": {"minibatches": 1}}
    found = refusal(tmp_path, "off_policy", estimator=Weigh(both(jnp.sum)), **options)
    assert "one number for each of 7 steps in each of 3 columns" in found


@dataclass(frozen=True)
class Lose(upslope.Objective):
    """An objective that returns the values of functions."""

    answer: Any = lambda sample: -sample.weight * sample.log_prob
    begins: Any = lambda: jnp.float32(1.0)
    adapts: Any = lambda state: state
    marks: Any = lambda ratio: ratio > 2

    def init(self) -> Any:
        return self.begins()

    def loss(self, state: Any, sample: Any) -> Any:
        return self.answer(sample)

    def adapt(self, state: Any, kl: Any) -> Any:
        return self.adapts(state)

    def is_outside(self, ratio: Any) -> Any:
        return self.marks(ratio)


def stepwise(sample: Any) -> Any:
    """A loss without a gradient in reverse mode."""
    return jax.lax.while_loop(lambda x: jnp.any(x > 1), lambda x: x / 2, sample.log_prob)


OBJECTIVES: dict[str, tuple[Any, str]] = {
    "mean": ({"answer": lambda s: jnp.mean(s.weight)}, r"the loss float32\[\], but float32\[64\].*the mean itself"),
    "column": ({"answer": lambda s: s.weight[:, None]}, r"the loss float32\[64, 1\], but float32\[64\]"),
    "nothing": ({"answer": lambda s: None}, r"the loss None, but float32\[64\]"),
    "half precision": ({"answer": lambda s: s.weight.astype(jnp.bfloat16)}, r"bfloat16\[64\].*astype\(jnp.float32\)"),
    "raises": ({"answer": raising}, r"raised KeyError: 'my key' \(test_own_parts.py, line \d+\).* its loss\(\)"),
    "if": ({"answer": lambda s: s.weight if s.kl[0] > 0 else s.kl}, "raised TracerBoolConversionError.*jnp.where"),
    "no gradient": ({"answer": stepwise}, r"raised ValueError: Reverse-mode differentiation.* its loss\(\)"),
    "state of strings": ({"begins": lambda: {"beta": 1.0}}, "the state {'beta': .*must be an array"),
    "init raises": ({"begins": raising}, r"raised KeyError.* its init\(\)"),
    "adapt raises": ({"adapts": raising}, r"raised KeyError.* its adapt\(\)"),
    "growing state": ({"adapts": lambda x: x[None]}, r"the state float32\[1\] from adapt\(\), but float32\[\]"),
    "other dtype": ({"adapts": lambda x: x > 0}, r"the state bool\[\] from adapt\(\), but float32\[\]"),
    "one flag": ({"marks": jnp.any}, r"returned bool\[\] from is_outside\(\), but bool\[64\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", OBJECTIVES)
def test_a_mistake_in_an_objective_is_reported_before_the_run_exists(case, tmp_path):
    fields, words = OBJECTIVES[case]
    found = refusal(tmp_path, objective=Lose(**fields))
    assert re.search(words, found), found
    assert found.startswith("The objective Lose")


def test_an_objective_is_tried_with_its_scheduled_clip_range(tmp_path):
    @dataclass(frozen=True)
    class Branching(upslope.Objective):
        epsilon: float = 0.2

        def loss(self, state: Any, sample: Any) -> Any:
            return sample.weight if self.epsilon > 0.1 else sample.log_prob

    prepare("jax:CartPole-v1", settings={}, objective=Branching())
    found = refusal(tmp_path, objective=Branching(), schedules={"epsilon": lambda progress: 1 - progress})
    assert "TracerBoolConversionError" in found


SCHEDULES: dict[str, tuple[Any, str]] = {
    "a number": (0.5, r"is 0\.5, not a function.*lambda progress"),
    "zero": (0.0, r"is 0\.0, not a function"),
    "a name": ("linear", "is 'linear', not a function"),
    "nothing": (None, "is None, not a function"),
    "no argument": (
        lambda: 1.0,
        r"raised TypeError: .*0 positional arguments but 1 was given when JAX traced its call",
    ),
    "if": (lambda x: 1.0 if x < 0.5 else 0.0, "raised TracerBoolConversionError.*jnp.where"),
    "a vector": (lambda x: jnp.ones(3), r"returned float32\[3\], but float32\[\] is needed"),
    "no value": (lambda x: None, r"returned None, but float32\[\] is needed"),
    "half precision": (lambda x: jnp.float16(1), r"returned float16\[\].*astype\(jnp.float32\)"),
}


@pytest.mark.parametrize("setting", ["learning_rate", "entropy_coefficient"])
@pytest.mark.parametrize("case", SCHEDULES)
def test_a_mistake_in_a_schedule_is_reported_in_advance(case, setting):
    schedule, words = SCHEDULES[case]
    found = refused_in_advance(schedules={setting: schedule})
    assert re.search(words, found), found
    assert found.startswith(f"The schedule of {setting} ") and "api.py" not in found


def test_a_schedule_named_by_its_module_must_be_a_function(tmp_path):
    found = refusal(tmp_path, learning_rate_schedule="math:pi")
    assert "The schedule of learning_rate is 3.14" in found


def test_schedules_are_a_dictionary():
    assert "as a dictionary" in refused_in_advance(schedules=lambda progress: progress)


@pytest.mark.parametrize(
    ("role", "part"),
    [("estimator", upslope.Clip()), ("objective", upslope.NStep(2)), ("bonus", upslope.NStep(2))],
)
def test_a_part_of_another_role_is_refused(role, part):
    assert f"Pass the {role} as a name or an object" in refused_in_advance(**{role: part})


@dataclass(frozen=True)
class Pay(upslope.Bonus):
    """A bonus that returns the values of functions."""

    answer: Any = lambda rollout, state: (rollout.reward, state)
    begins: Any = lambda: jnp.int32(0)
    measures: Any = lambda state: {"bonus/state": jnp.float32(state)}

    def start(self, setting: Any, key: Any) -> Any:
        return self.begins()

    def __call__(self, rollout: Any, begins: Any, state: Any, key: Any) -> Any:
        return self.answer(rollout, state)

    def measured(self, state: Any) -> Any:
        return self.measures(state)


BONUSES: dict[str, tuple[Any, str]] = {
    "only the bonus": ({"answer": lambda r, s: r.reward}, r"returned float32\[16, 4\]; it must return \(rewards, st"),
    "three values": ({"answer": lambda r, s: (r.reward, s, s)}, r"it must return \(rewards, state\)"),
    "an axis too many": ({"answer": lambda r, s: (r.observation, s)}, r"the rewards float32\[16, 4, 4\].*Sum or av"),
    "half precision": ({"answer": lambda r, s: (jnp.float16(r.reward), s)}, r"rewards float16\[16, 4\]; float32 is"),
    "complex numbers": ({"answer": lambda r, s: (r.reward + 1j, s)}, r"rewards complex64\[16, 4\]; float32 is needed"),
    "no rewards": ({"answer": lambda r, s: (None, s)}, "the rewards None"),
    "other state": ({"answer": lambda r, s: (r.reward, s + 1.0)}, r"arrays differ.*float32\[\].*int32\[\]"),
    "raises": ({"answer": raising}, r"raised KeyError: 'my key' \(test_own_parts.py, line \d+\) when JAX traced it"),
    "start raises": ({"begins": raising}, r"raised KeyError: 'my key' .* in start\(setting, key\)"),
    "a state of text": ({"begins": lambda: "text"}, r"a state with 'text' from start\(\)"),
    "a metric of many numbers": ({"measures": lambda s: {"bonus/x": jnp.ones(3)}}, "dictionary of single numbers"),
    "measured raises": ({"measures": raising}, r"raised KeyError.* its measured\(\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BONUSES)
def test_a_mistake_in_a_bonus_is_reported_before_the_run_exists(case, tmp_path):
    fields, words = BONUSES[case]
    found = refusal(tmp_path, bonus=Pay(**fields))
    assert re.search(words, found), found
    assert found.startswith("The bonus Pay") and "resume" not in found


def test_a_bonus_may_pay_flags(tmp_path):
    flags = Pay(lambda r, s: (r.terminated, s))
    run = upslope.train("jax:CartPole-v1", folder=tmp_path, quiet=True, bonus=flags, **SMALL)
    assert run.path.exists()


def test_the_message_about_a_bonus_shows_the_fields_that_were_passed(tmp_path, monkeypatch):
    (tmp_path / "my_bonus.py").write_text(
        "from dataclasses import dataclass\nimport jax.numpy as jnp\nimport upslope\n\n"
        "@dataclass(frozen=True)\nclass Weighted(upslope.Bonus):\n    weight: object = 1.0\n\n"
        "    def start(self, setting, key):\n        return ()\n\n"
        "    def __call__(self, rollout, begins, state, key):\n        return self.weight * rollout.reward, state\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = refusal(tmp_path, bonus="my_bonus:Weighted", bonus_kwargs={"weight": "a"})
    assert "The bonus Weighted(weight='a') raised TypeError" in found and "(my_bonus.py, line 13)" in found


@pytest.mark.parametrize("algorithm", ["npg", "trpo"])
def test_an_own_model_with_a_shared_trunk_is_refused_a_natural_gradient_before_the_run_exists(algorithm, tmp_path):
    settings = {name: SMALL[name] for name in ("steps", "num_envs", "rollout_steps")}
    found = refusal(tmp_path, algorithm, settings, model=own_models.SharedTrunk)
    assert "cannot share parameters with the critic" in found and "resume" not in found


def test_own_parts_without_mistakes_are_accepted(tmp_path):
    schedules: Any = {"learning_rate": lambda x: 1 - x, "entropy_coefficient": lambda x: x < 0.5}
    credit = both(lambda reward: np.float64(2.0) * reward)
    parts: Any = {"estimator": Weigh(credit), "objective": Lose(), "bonus": Pay(), "schedules": schedules}
    settings: dict[str, Any] = {"quiet": True, "entropy_coefficient": 0.01, **SMALL}
    run = upslope.train("jax:CartPole-v1", folder=tmp_path, name="run", **settings, **parts)
    assert run.path.exists()


def test_parts_of_upslope_are_not_traced(monkeypatch):
    monkeypatch.setattr(own_parts, "traced", raising)
    for algorithm in ("ppo", "ppo_kl", "grpo", "trpo", "vtrace"):
        prepare(
            "jax:CartPole-v1", algorithm, settings={"learning_rate_schedule": "cosine"} if algorithm == "ppo" else {}
        )
    with pytest.raises(KeyError):
        prepare("jax:CartPole-v1", settings={}, objective=Lose())
