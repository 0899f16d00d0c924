"""Actions with several parts and squashed actions: training, resuming, evaluation, recording, learning, display."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import user_environments as own
from gymnasium import spaces
from run_helpers import assert_stops_and_resumes, metrics_of

import upslope
from upslope.analysis.credit import load_credit, save_credit
from upslope.analysis.episode_credit import credit_of
from upslope.config.prepare import prepare
from upslope.core.storage import save_arrays
from upslope.errors import UpslopeError
from upslope.models.box_heads import SquashedHead
from upslope.models.encoders import encoder_of
from upslope.models.heads import head_of, with_policy
from upslope.report.page import write_report
from upslope.runs.datasets import load_dataset

SMALL: dict[str, Any] = {
    "num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 2, "steps": 320, "max_episode_steps": 11,
    "seeds": 2, "quiet": True, "preset": False, "hidden_sizes": (8,),
}  # fmt: skip
SQUASHED = {"head": "squashed", "state_dependent_std": True}
RUNS = {
    "compiled": ("jax:user_environments:CompiledHybrid", SQUASHED),
    "host": ("user_environments:Hybrid", {}),
    "host squashed": ("user_environments:Amount", SQUASHED),
    "host sliced": ("user_environments:Hybrid", {"seeds": 1, "workers": 2}),
}


@pytest.fixture(scope="module")
def trained(folder):
    """Train each kind of run once, when it is first requested."""

    @cache
    def run(kind: str):
        environment, settings = RUNS[kind]
        return upslope.train(environment, folder=folder, name=kind, **(SMALL | settings)).path

    return run


@pytest.mark.parametrize("kind", ["compiled", "host", pytest.param("host squashed", marks=pytest.mark.weekly)])
def test_a_run_stopped_and_resumed_is_uninterrupted(kind: str, trained):
    environment, settings = RUNS[kind]
    assert_stops_and_resumes(environment, trained(kind), **(SMALL | settings))


def test_slices_of_environments_take_the_same_actions(trained):
    alone = [row for row in metrics_of(trained("host")) if row["seed"] == 0]
    for one, other in zip(metrics_of(trained("host sliced")), alone, strict=True):
        assert {k: (v, other[k]) for k, v in one.items() if v != other[k]} == {}, one["iteration"]


@pytest.mark.parametrize(
    ("kind", "algorithm"), [("compiled", "clone"), pytest.param("host", "off_policy", marks=pytest.mark.weekly)]
)
def test_it_is_judged_recorded_learned_from_and_shown(kind: str, algorithm: str, trained, tmp_path):
    path, (environment, settings) = trained(kind), RUNS[kind]
    assert upslope.evaluate(path, episodes=3)["stochastic"].returns.shape == (2, 3)
    data = upslope.record(path, episodes=3, output=tmp_path / "data.npz")
    options: dict[str, Any] = {"data": str(data), "steps": 40, "epochs": 1, "minibatches": 2, "folder": tmp_path}
    run = upslope.train(environment, algorithm, name=algorithm, quiet=True, hidden_sizes=(8,), **options, **settings)
    assert all(np.isfinite(row["policy/loss"]) for row in run.metrics())
    policy = upslope.load(path, seed=0, checkpoint="last")
    with np.load(data) as recorded:
        action, mask = recorded["action"], recorded["action_mask"].astype(bool)
        assert action.shape[1:] == (7,) and action.dtype == np.float32 and mask.shape[1:] == (12,)
        assert json.loads(str(recorded["meta"])).get("squashed", False) == ("head" in settings)
        log_prob = np.asarray(policy.distribution(recorded["observation"], mask).log_prob(action))
        np.testing.assert_allclose(log_prob, recorded["behaviour_log_prob"], atol=1e-4)
    credit = credit_of(path, seed=1)
    np.testing.assert_allclose(credit.policy["tool/probability"].sum(axis=1), 1, atol=1e-5)
    assert [part.key for part in credit.parts] == ["arm/0", "arm/1", "keys", "tool"]
    is_within = (credit.parts[0].action >= -2) & (credit.parts[0].action <= 4)
    assert is_within.all() == ("head" in settings), "a Gaussian's action is shown before it is clipped"
    if "head" in settings:
        assert (credit.policy["arm/0/low"] < credit.policy["arm/0/high"]).all()
    save_credit(path / "credit.npz", credit)
    assert load_credit(path / "credit.npz").policy.keys() == credit.policy.keys()
    upslope.diagnose(path)
    assert "tool: " in write_report([path], tmp_path / "report.html").read_text("utf-8")
    assert kind == "compiled" or upslope.check(environment).worst != "error"


def test_a_policy_gives_the_environments_own_form(trained):
    policy, env = upslope.load(trained("host")), own.Hybrid()
    observation, info = env.reset(seed=3)
    for _ in range(5):
        action = policy(observation, deterministic=False, mask=info["action_mask"])
        assert own.HYBRID.contains(action), "the environment asserts its dtypes and the mask"
        observation, _, terminated, _, info = env.step(action)
        if terminated:
            observation, info = env.reset()
    flat = np.array([1, 1, 1, 1, 1, 1, 1, 0, 1, 0, 0, 1], bool)  # allows only the last tool
    batch = policy(np.stack([observation] * 3), mask=[flat, flat, flat])
    assert batch["tool"].tolist() == [3, 3, 3] and batch["arm"][0].shape == (3, 2)
    with pytest.raises(UpslopeError, match="keys 'tool', but needs 'arm', 'keys', 'tool'"):
        policy(observation, mask={"tool": np.ones(3)})


def test_another_action_space_is_told_by_the_key_that_differs(trained):
    class Other(own.Hybrid):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = spaces.Dict({**own.HYBRID.spaces, "tool": spaces.Discrete(4, start=1)})

        def allowed(self) -> dict[str, Any]:
            info = super().allowed()
            return {"action_mask": info["action_mask"] | {"tool": np.ones(4, np.int8)}}

    with pytest.raises(UpslopeError, match="the n of its actions at `tool` was 3, and is now 4"):
        upslope.evaluate(trained("host"), environment=Other)


def test_a_run_from_before_there_were_heads_is_gaussian(trained, tmp_path):
    path = shutil.copytree(trained("host"), tmp_path / "old")
    described = json.loads((path / "config.json").read_text())
    settings = next(part for part in described.values() if isinstance(part, dict) and "log_std_init" in part)
    assert settings.pop("head") == "gaussian" and settings.pop("state_dependent_std") is False
    (path / "config.json").write_text(json.dumps(described))
    assert not upslope.load(path).agent.head.is_squashed


AMOUNT = own.Amount.action_space
HALF, CENTRE = np.array([1.0, 5.0]), np.array([0.0, 5.0])


def dataset(path: Path, action: Any, **meta: Any) -> Path:
    """Write a dataset of one-step episodes with these actions."""
    count = len(action)
    arrays = {"observation": np.zeros((count, 2), np.float32), "final_observation": np.zeros((count, 2), np.float32),
              "action": np.asarray(action, np.float32), "reward": np.zeros(count, np.float32),
              "length": np.ones(count, int), "terminated": np.ones(count, bool)}  # fmt: skip
    save_arrays(path, arrays, {"kind": "dataset", "format": 4, **meta})
    return path


def loaded(path: Path, *, squashed: bool) -> np.ndarray:
    head = with_policy(head_of(AMOUNT), "Amount", kind="squashed" if squashed else "gaussian")
    return np.asarray(load_dataset(path, encoder_of(own.Amount.observation_space, "Amount"), head, False).action)[0]


def test_actions_of_another_head_are_converted_or_refused(trained, tmp_path):
    before = np.array([[0.3, -1.2], [-2.0, 0.5]], np.float32)
    units = CENTRE + HALF * np.tanh(before)
    from_squashed, from_gaussian = (
        dataset(tmp_path / "1.npz", before, squashed=True),
        dataset(tmp_path / "2.npz", units),
    )
    np.testing.assert_array_equal(loaded(from_squashed, squashed=True), before)
    np.testing.assert_allclose(loaded(from_squashed, squashed=False), units, rtol=1e-6)
    np.testing.assert_allclose(loaded(from_gaussian, squashed=True), before, rtol=1e-5)
    np.testing.assert_allclose(loaded(from_gaussian, squashed=False), units, rtol=1e-6)
    outside = dataset(tmp_path / "3.npz", [[0.0, 1.0], [0.5, 10.0], [-1.2, 3.0]])
    np.testing.assert_allclose(loaded(outside, squashed=False)[2], [-1.2, 3.0])
    with pytest.raises(UpslopeError, match=r"2 of its 3 actions are on or outside the bounds.*--head gaussian"):
        loaded(outside, squashed=True)
    with pytest.raises(UpslopeError, match="`squashed` in its meta must be true or false"):
        loaded(dataset(tmp_path / "4.npz", units, squashed="yes"), squashed=True)
    # A recording contains the action that the environment received, which the reward reveals.
    data = upslope.record(trained("host squashed"), episodes=4, output=tmp_path / "recorded.npz")
    with np.load(data) as recorded:
        paid = -np.abs(loaded(data, squashed=False) - [0.5, 2.0]).sum(axis=1)
        np.testing.assert_allclose(recorded["reward"], paid, atol=1e-5)


@pytest.mark.parametrize(
    ("environment", "settings", "words"),
    [
        ("jax:CartPole-v1", {"head": "squashed"}, "--head applies only to policies with Box actions"),
        ("jax:CartPole-v1", {"state_dependent_std": True}, "--state-dependent-std applies only to policies with Box"),
        (
            "jax:Pendulum-v1",
            {"head": "squashed", "model": "own_models:Recurrent"},
            "--head applies only to --model percept",
        ),
        ("jax:Pendulum-v1", {"head": "tanh"}, "gaussian"),
        ("jax:Pendulum-v1", SQUASHED | {"log_std_init": 2.5}, "log σ between -5 and 2, but --log-std-init is 2.5"),
        (own.Endless, {"head": "squashed"}, "--head squashed squashes .*finite bounds.* at `far` are Box.*inf"),
    ],
)
def test_what_cannot_be_is_refused(environment: Any, settings: dict[str, Any], words: str):
    with pytest.raises(UpslopeError, match=words):
        prepare(environment, settings=settings)


def test_a_mixture_has_the_defaults_of_real_numbers_and_says_what_is_unusual(trained, capsys):
    config, task = prepare("user_environments:Hybrid", settings=dict(SQUASHED))
    assert (config.num_envs, config.epochs, config.normalize_observations) == (1, 10, True)
    assert [type(box) for box in task.model.head.boxes.values()] == [SquashedHead]
    assert task.model.head.max_entropy is None and task.model.head.num_scales == 2
    config, _ = prepare("user_environments:only_choices", settings={})
    assert (config.num_envs, config.epochs) == (8, 4)
