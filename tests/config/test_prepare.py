"""User settings become a config and a task, and no setting is silently ignored."""

import sys
from dataclasses import dataclass
from typing import Any, ClassVar

import optax
import pytest

import upslope
from upslope.cli.main import main
from upslope.config.config import Config, configure, preset_of
from upslope.config.ladder import ALGORITHMS
from upslope.config.prepare import prepare
from upslope.config.task import AXES, estimator_of, objective_of

OWN = """
from dataclasses import dataclass
from typing import ClassVar
import upslope

@dataclass(frozen=True)
class SPO(upslope.Objective):
    epsilon: float = 0.3
    strength: float = 2.0

    def loss(self, state, sample):
        return -sample.weight * sample.log_prob * self.epsilon * self.strength

made = SPO(0.4)

@dataclass(frozen=True)
class Fixed(upslope.Objective):
    steps: int = 7

    def loss(self, state, sample):
        return -sample.weight * sample.log_prob
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module with user-defined objectives."""
    (tmp_path / "own_parts.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield __import__("own_parts")
    sys.modules.pop("own_parts")


def asked(environment: str = "jax:CartPole-v1", algorithm: str = "ppo", axes: Any = None, **settings: Any) -> Any:
    return prepare(environment, algorithm, settings=settings, **(axes or {}))


def refusal(*names: str, **settings: Any) -> str:
    with pytest.raises(upslope.UpslopeError) as refused:
        asked(*names, **settings)
    return str(refused.value)


@pytest.mark.parametrize(
    ("names", "settings", "said"),
    [
        ((), {"n": 3}, "--n applies only to --estimator n_step."),
        ((), {"n": 5}, "--n applies only to --estimator n_step."),  # even the default value is refused
        (("jax:CartPole-v1", "a2c"), {"lambda": 0.9}, "--lambda applies only to --estimator gae, vtrace."),
        (
            (),
            {"objective": "kl_penalty", "epsilon": 0.1},
            "--epsilon applies only to --objective clip, dual_clip, spo.",
        ),
        ((), {"beta": 2.0}, "--beta applies only to --objective kl_penalty."),
        ((), {"beta_target": None}, "--beta-target applies only to --objective kl_penalty."),
        ((), {"imitation_iterations": 3}, "--imitation-iterations applies only to runs with --data."),
        ((), {"log_std_init": -1.0}, "--log-std-init applies only to policies with Box actions."),
        (
            ("jax:CartPole-v1", "reinforce"),
            {"rollout_steps": 8},
            "--rollout-steps applies only to --estimator n_step, gae, vtrace, unit without --data.",
        ),
        (
            ("jax:CartPole-v1", "reward_to_go"),
            {"critic_epochs": 2},
            "--critic-epochs applies only to --estimator baseline, n_step, gae, vtrace.",
        ),
        (("jax:CartPole-v1", "off_policy"), {"data": "x", "num_envs": 2}, "--num-envs applies only to runs without"),
        (("jax:CartPole-v1", "off_policy"), {"data": "x", "rollout_steps": 2}, "--rollout-steps applies only to"),
        (("jax:CartPole-v1", "clone"), {"data": "x", "gamma": 0.9}, "--gamma applies only to estimators of returns."),
        (
            (),
            {"entropy_coefficient": 0.0, "entropy_schedule": "linear"},
            "--entropy-schedule applies only to runs with",
        ),
        ((), {"n": 3, "beta": 1.0}, "--n applies only to --estimator n_step, and --beta applies only to"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(names: tuple[str, ...], settings: dict[str, Any], said: str):
    found = refusal(*names, **settings)
    assert said in found and "This run has --estimator" in found


@pytest.mark.parametrize(
    ("names", "settings"),
    [
        (("jax:CartPole-v1", "a2c"), {"n": 3}),
        (("jax:Pendulum-v1",), {"log_std_init": -1.0, "epsilon": 0.1, "lambda": 0.9}),
        (("jax:CartPole-v1", "ppo_kl"), {"beta": 2.0, "beta_target": None}),
        (("jax:CartPole-v1", "off_policy"), {"data": "x", "imitation_iterations": 3, "critic_epochs": 2}),
        (("jax:CartPole-v1", "reinforce_baseline"), {"critic_epochs": 2, "num_envs": 4}),
        (("jax:CartPole-v1", "ppo"), {"estimator": "n_step", "n": 2, "objective": "kl_penalty", "beta": 2.0}),
    ],
)
def test_a_setting_that_is_read_is_kept(names: tuple[str, ...], settings: dict[str, Any]):
    config = asked(*names, **settings)[0]
    kept = {name: getattr(config, {"lambda": "lambda_"}.get(name, name)) for name in settings}
    assert kept == settings


CHAIN = optax.sgd(0.1)


@pytest.mark.parametrize(
    ("axes", "settings", "flag"),
    [
        ({"optimiser": CHAIN}, {"learning_rate_schedule": "linear"}, "--learning-rate-schedule"),
        ({"optimiser": CHAIN, "schedules": {"learning_rate": lambda x: 1 - x}}, {}, "--learning-rate-schedule"),
        ({"schedules": {"epsilon": lambda x: 1 - x}}, {"objective": "policy_gradient"}, "--epsilon-schedule"),
        (
            {"schedules": {"entropy_coefficient": lambda x: 1 - x}},
            {"entropy_coefficient": 0.0},
            "--entropy-schedule",
        ),
    ],
)
def test_a_schedule_that_nothing_reads_is_refused(axes: Any, settings: dict[str, Any], flag: str):
    assert f"{flag} applies only to" in refusal(axes=axes, **settings)


def test_schedules_that_are_read_are_kept():
    own = {name: lambda x: 1 - x for name in ("learning_rate", "epsilon", "entropy_coefficient")}
    task = asked(axes={"schedules": own}, entropy_coefficient=0.01)[1]
    assert vars(task.schedules) == own


@pytest.mark.parametrize(
    "chain", [optax.lbfgs(), optax.chain(optax.adam(1e-3), optax.contrib.reduce_on_plateau())], ids=["lbfgs", "plateau"]
)
def test_a_chain_that_needs_more_than_a_gradient_is_refused(chain: Any):
    found = refusal(axes={"optimiser": chain})
    assert "value" in found and "also need the loss" in found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("environment", ["jax:CartPole-v1", "jax:Pendulum-v1"])
def test_settings_of_rungs_and_presets_are_never_refused(algorithm: str, environment: str):
    data = {"data": "x"} if ALGORITHMS[algorithm].source == "recorded" else {}
    config = asked(environment, algorithm, **data)[0]
    assert (config.preset is not None) == (preset_of(environment, algorithm) is not None)


def test_command_line_file_and_python_refuse_alike(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text("n: 3\n")
    said = set()
    for words in (["--n", "3"], ["--n=3"], ["--config", "settings.yaml"]):
        with pytest.raises(SystemExit) as end:
            main(["train", "jax:CartPole-v1", *words])
        assert end.value.code == 2
        said.add(capsys.readouterr().err.removeprefix("upslope: ").strip())
    with pytest.raises(upslope.UpslopeError) as refused:
        upslope.train("jax:CartPole-v1", n=3, quiet=True)
    assert said == {str(refused.value)} and "--n applies only to" in str(refused.value)
    assert not (tmp_path / "runs").exists()


def test_an_own_part_receives_the_fields_it_declares(own):
    config, task = asked(objective="own_parts:SPO", epsilon=0.1)
    assert task.update.objective == own.SPO(epsilon=0.1) and config.epsilon == 0.1
    config, task = asked(objective="own_parts:made", epsilon=0.1)
    assert task.update.objective == own.SPO(epsilon=0.1)


def test_an_own_parts_default_is_kept_and_written_down(own):
    for name, epsilon in (("own_parts:SPO", 0.3), ("own_parts:made", 0.4)):
        config, task = asked("jax:Pendulum-v1", objective=name)  # this environment's preset sets a different ε
        assert task.update.objective == own.SPO(epsilon) and config.epsilon == epsilon
        assert objective_of(config) == own.SPO(epsilon)  # `resume` builds the objective in this way


def test_an_own_part_shares_hyperparameters_only(own):
    config, task = asked(objective="own_parts:Fixed", steps=640)
    assert task.update.objective == own.Fixed() and config.steps == 640
    assert "--epsilon applies only to --objective clip" in refusal(objective="own_parts:Fixed", epsilon=0.1)


def test_an_object_gives_its_own_settings(own):
    config, task = asked(axes={"objective": own.SPO(0.15), "estimator": upslope.NStep(3)})
    assert (config.objective, config.epsilon, config.estimator, config.n) == ("own_parts:SPO", 0.15, "n_step", 3)
    assert task.update.objective == objective_of(config) and task.estimator == estimator_of(config)
    asked(axes={"estimator": upslope.NStep(3)}, n=3)
    with pytest.raises(upslope.UpslopeError, match=r"--n differs between the settings and NStep\(n=3\)"):
        asked(axes={"estimator": upslope.NStep(3)}, n=4)
    with pytest.raises(upslope.UpslopeError, match="Pass the estimator as a name or an object"):
        asked(axes={"estimator": upslope.NStep})


def test_a_subclass_of_the_kl_penalty_has_its_target():
    @dataclass(frozen=True)
    class Mine(upslope.KLPenalty):
        state_name: ClassVar[str | None] = "mine"

    config, _ = asked(axes={"objective": Mine(beta=2.0, target=0.02)})
    assert (config.beta, config.beta_target) == (2.0, 0.02)


def test_every_hyperparameter_of_a_part_is_a_setting():
    for role, (_, known) in AXES.items():
        for name, kind in known.items():
            config = configure("X", is_continuous=False, group_size=2, **{role: name})
            assert {estimator_of, objective_of} and isinstance(
                (estimator_of if role == "estimator" else objective_of)(config), kind
            )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lr", "There is no lr; upslope calls it learning_rate."),
        ("total_timesteps", "upslope calls it steps."),
        ("n_steps", "upslope calls it rollout_steps. The n of the estimator n_step is called n."),
        ("batch_size", "upslope calls it minibatches. It is the number"),
        ("clip_range", "upslope calls it epsilon."),
        ("ent_coef", "upslope calls it entropy_coefficient."),
        ("gae_lambda", "upslope calls it lambda_."),
        ("vf_coef", "There is no vf_coef. Policy and critic each have an optimiser"),
        ("n_epochs", "upslope calls it epochs."),
        ("net_arch", "upslope calls it hidden_sizes."),
        ("gama", 'There is no setting "gama". Did you mean gamma'),
    ],
)
def test_the_settings_of_other_libraries_are_translated(name: str, said: str):
    assert said in refusal(**{name: 1})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("PPO", "Did you mean ppo"),
        ("Ppo", "Did you mean ppo"),
        ("A2C", "Did you mean a2c"),
        *(
            (name, "upslope has only policy gradients")
            for name in ("sac", "SAC", "dqn", "td3", "ddpg", "a3c", "impala")
        ),
    ],
)
def test_other_algorithms_get_the_nearest_rung(name: str, said: str):
    found = refusal("jax:CartPole-v1", name)
    assert said in found and any(rung in found for rung in ALGORITHMS)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"seeds": 2**17}, "--seeds can be at most 65,536, not 131072."),
        ({"steps": 2**32}, "--steps can be at most 2,147,483,648, not 4294967296."),
        ({"hidden_sizes": (8, 0)}, "--hidden-sizes must be at most 256 widths"),
        ({"target_kl": 0}, "--target-kl must be greater than 0, or omitted, not 0.0."),
        ({"min_effective_sample_size": 1.5}, "must be a share of the batch, from 0 to 1, not 1.5."),
        ({"entropy_coefficient": -1}, "--entropy-coefficient must be 0 or more, not -1.0."),
        ({"lambda": float("nan")}, "--lambda must be a finite number, not nan."),
        ({"seed": -1}, "--seed must be between 0"),
        ({"estimator": "gea"}, 'There is no estimator "gea". Did you mean gae'),
    ],
)
def test_values_that_cannot_be_are_refused(settings: dict[str, Any], said: str):
    with pytest.raises(upslope.UpslopeError) as refused:
        configure("X", is_continuous=False, **settings)
    assert said in str(refused.value)


def test_limits_name_fields():
    from upslope.config.config import LIMITS, MOST

    assert {*LIMITS, *MOST} <= set(Config.__dataclass_fields__)
