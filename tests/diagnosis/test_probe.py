"""The probes: correct code solves all of them, and each mistake fails at the probe that is designed to find it."""

import json
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import pytest

import upslope
from upslope.cli.main import run as run_command
from upslope.core.distributions import Product
from upslope.core.estimators import advantage_credit, discounted_sum, ends, td_error
from upslope.diagnosis.probe import PROBES
from upslope.learning import collect
from upslope.models import build, encoders, memories


@dataclass(frozen=True)
class LimitIsDeath(upslope.Estimator):
    """GAE that treats the time limit as a termination."""

    needs_critic: ClassVar[bool] = True
    whole_episodes: ClassVar[bool] = False

    def __call__(self, rollout: Any, values: Any, gamma: float) -> Any:
        rollout = rollout._replace(terminated=rollout.terminated | rollout.truncated)
        advantage = discounted_sum(td_error(rollout, values, gamma), ends(rollout), gamma * 0.95)
        return advantage_credit(advantage, rollout, values)


@dataclass(frozen=True)
class NextRow(upslope.GAE):
    """GAE that reads V(s_{t+1}) from the next row, even if that row starts the next episode."""

    def __call__(self, rollout: Any, values: Any, gamma: float) -> Any:
        following = jnp.concatenate([values.value[1:], values.next_value[-1:]])
        return super().__call__(rollout, values._replace(next_value=following), gamma)


@dataclass(frozen=True)
class SumCutAtTerminatedOnly(upslope.GAE):
    """GAE whose sum continues across time limits into the next episode."""

    def __call__(self, rollout: Any, values: Any, gamma: float) -> Any:
        advantage = discounted_sum(td_error(rollout, values, gamma), rollout.terminated, gamma * self.lambda_)
        return advantage_credit(advantage, rollout, values)


@dataclass(frozen=True)
class WrongSign(upslope.Objective):
    """PPO with the wrong sign, so it descends its objective."""

    def loss(self, state: Any, sample: Any) -> Any:
        return -upslope.Clip(0.2).loss(state, sample)


def failed(**options):
    return [p.name for p in upslope.probe(steps=30_000, seeds=2, **options) if not p.solved]


@pytest.mark.usefixtures("trains_for_long")
def test_ppo_solves_the_probes_of_one_program():
    found = upslope.probe(seeds=2, only=list(PROBES)[:6])
    assert [p.name for p in found] == list(PROBES)[:6]
    assert all(p.solved for p in found), found
    assert {p.name: p.value for p in found} == pytest.approx(
        {"constant": 1, "observation": 1, "delay": 0.9, "action": 1, "both": 1, "truncation": 7}
    )
    best = {p.name: p.best for p in found}
    assert best == pytest.approx(
        {"constant": 1, "observation": 0, "delay": 1, "action": 1, "both": 1, "truncation": 4}, abs=0.3
    )


def test_a_limit_taken_for_death_fails_at_truncation_alone():
    assert failed(estimator=LimitIsDeath(), only=["constant", "delay", "action", "truncation"]) == ["truncation"]


@pytest.mark.parametrize("broken", [pytest.param(NextRow(), marks=pytest.mark.weekly), SumCutAtTerminatedOnly()])
def test_what_is_carried_over_from_the_next_episode_fails_at_truncation_alone(broken: upslope.Estimator):
    assert failed(estimator=broken, only=["constant", "delay", "both", "truncation"]) == ["truncation"]


PARTS: dict[str, Any] = {"seeds": 1, "steps": 20_000}


def test_memory_images_dictionaries_and_an_asymmetric_critic_are_solved():
    found = [
        *upslope.probe(only=["image", "dict", "asymmetric"], **PARTS),
        *upslope.probe(only=["memory"], **PARTS),
    ]
    assert all(p.solved for p in found), found
    assert {p.name: p.value for p in found} == pytest.approx(
        {"image": 1, "dict": 1, "asymmetric": 1.5, "memory": 0.9**10}
    )
    assert [round(p.best) for p in found if p.name != "asymmetric"] == [1, 1, 1]


def test_a_memory_that_no_episode_restarts_fails_at_memory(monkeypatch: pytest.MonkeyPatch):
    cell, rows = memories.LinearRecurrence, collect.where_rows
    goes = cell.over_time
    monkeypatch.setattr(cell, "over_time", lambda self, x, carry, fresh: goes(self, x, carry, jnp.zeros_like(fresh)))
    monkeypatch.setattr(collect, "where_rows", lambda done, a, b: rows(done, a, b)._replace(carry=b.carry))
    assert [p.name for p in upslope.probe(only=["memory"], **PARTS) if not p.solved] == ["memory"]


def test_images_of_other_rows_and_a_part_that_is_lost_fail_where_they_belong(monkeypatch: pytest.MonkeyPatch):
    shows, encodes = encoders.ImageLayout.channels_last, encoders.DiscreteEncoder.encode
    monkeypatch.setattr(encoders.ImageLayout, "channels_last", lambda self, x: jnp.roll(shows(self, x), 1, axis=0))
    assert [p.name for p in upslope.probe(only=["image", "dict"], **PARTS) if not p.solved] == ["image"]
    monkeypatch.setattr(encoders.ImageLayout, "channels_last", shows)
    monkeypatch.setattr(encoders.DiscreteEncoder, "encode", lambda self, x: 0 * encodes(self, x))
    assert [p.name for p in upslope.probe(only=["dict", "asymmetric"], **PARTS) if not p.solved] == ["dict"]


def test_a_policy_that_sees_too_much_and_a_critic_that_sees_too_little_fail_at_asymmetric(monkeypatch):
    views = build.views_of
    for wrong in (lambda policy, critic: (critic, critic), lambda policy, critic: (policy, policy)):
        monkeypatch.setattr(build, "views_of", lambda *given, wrong=wrong: wrong(*views(*given)))
        (found,) = upslope.probe(only=["asymmetric"], **PARTS)
        assert not found.solved
        assert (found.return_gap < -0.1) == (wrong(1, 2) == (2, 2)), "a policy that sees too much beats the best return"
        assert (found.value_error or 0) > 0.4


def test_what_a_model_cannot_do_is_not_probed():
    with pytest.raises(upslope.UpslopeError, match="asymmetric needs two separate networks of upslope's own"):
        upslope.probe(only=["asymmetric"], shared_trunk=True)
    with pytest.raises(upslope.UpslopeError, match="memory needs a model with memory"):
        upslope.probe(only=["memory"], model="own_models:Memoryless")


def test_a_wrong_sign_fails_where_actions_matter():
    assert failed(objective=WrongSign(), only=["constant", "observation", "delay", "action", "both"]) == [
        "action",
        "both",
    ]


def test_an_action_of_several_parts_is_learned_and_a_forgotten_part_is_not(monkeypatch: pytest.MonkeyPatch):
    (solved,) = upslope.probe(seeds=2, only=["hybrid"])
    assert solved.solved and solved.best == 1 and solved.value == 1, solved
    monkeypatch.setattr(Product, "log_prob", lambda self, action: self.parts[0].log_prob(self.split(action)[0]))
    (broken,) = upslope.probe(seeds=2, steps=30_000, only=["hybrid"])
    assert not broken.solved and broken.return_gap > 0.2, "the choice is never learned"


def test_what_cannot_be_probed_is_refused():
    with pytest.raises(upslope.UpslopeError, match="no probe nothing"):
        upslope.probe(only=["nothing"])
    with pytest.raises(upslope.UpslopeError, match="recorded data"):
        upslope.probe("clone")


def test_the_command_answers(capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(["probe", "--only", "constant", "--steps", "30000", "--seeds", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert stop.value.code == 0 and found["solved"] and found["probes"][0]["name"] == "constant"
