"""Off-policy evaluation from recorded episodes: agreement with exact values in a finite world, refusals, all heads."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from helpers import fresh_agent

import upslope
from upslope.analysis.judge import LEAST_EFFECTIVE, Case, log_probabilities
from upslope.analysis.learned_from import is_same
from upslope.cli.main import main
from upslope.core.types import Rollout, host_rollout
from upslope.environments.tabular import Tabular, gridworld
from upslope.models.agent import Agent, initialise_agent
from upslope.models.build import ModelSpec
from upslope.models.encoders import encoder_of
from upslope.models.heads import head_of, with_policy
from upslope.runs.directory import RunDirectory
from upslope.runs.policy import load_agents

WORLD: dict[str, Any] = {"rows": 3, "columns": 3, "slip": 0.1, "step_cost": 0.2}
GAMMA, LIMIT = 0.9, 7


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A run with two briefly trained seeds in a world with nine states."""
    settings: dict[str, Any] = {"steps": 384, "num_envs": 4, "rollout_steps": 32, "minibatches": 2, "epochs": 4}
    settings |= {"learning_rate": 0.1, "hidden_sizes": (), "gamma": GAMMA, "preset": False, "seeds": 2, "quiet": True}
    settings |= {"env_kwargs": WORLD, "max_episode_steps": LIMIT}
    return upslope.train("jax:GridWorld-v0", folder=folder, name="pupil", **settings).path


@pytest.fixture(scope="module")
def data(run: Path) -> Path:
    """400 episodes recorded with the first seed; a quarter of them are truncated."""
    return upslope.record(run, episodes=400, seed=0)


def changed(data: Path, **changes: Any) -> Path:
    """Copy a dataset, replacing some arrays; None removes an array."""
    arrays = dict(np.load(data)) | changes
    path = data.with_name(f"changed {len(list(data.parent.iterdir()))}.npz")
    np.savez(path, **{name: x for name, x in arrays.items() if x is not None})
    return path


def exact(run: Path, seed: int, horizon: int | None = None, gamma: float = GAMMA) -> float:
    """Compute V^π of a seed's policy by solving a linear system or by backward induction."""
    world: Tabular = gridworld(**WORLD)
    agents, _ = load_agents(RunDirectory(run), RunDirectory(run).config(), "last")
    agent: Agent = jax.tree.map(lambda x: x[seed], agents)
    policy: Any = agent.policy(jnp.arange(9))
    return world.expected_return(np.exp(policy.log_probs()), gamma, horizon)


def test_every_estimator_agrees_with_the_exact_value(run: Path, data: Path, capsys: Any):
    found, truth = upslope.judge(run, data=data, seed=1), exact(run, 1)
    assert found.truncated > 20 and found.verdict == "wdr"
    # The recorded mean return clearly differs from the truth, so an estimator that only repeated it would fail below.
    assert abs(found.recorded.value - truth) > 3 * found.recorded.half_width
    for name, judged in found.estimates.items():
        assert not judged.refusal, (name, judged.refusal)
        # Two half-widths are four standard errors.
        assert abs(judged.value - truth) < (0.15 if name == "fqe" else 2 * judged.half_width), name
        assert name == "fqe" or LEAST_EFFECTIVE < judged.effective < 400
    assert found.estimates["wdr"].half_width < found.estimates["wis"].half_width
    assert "doubly robust, weighted" in found._repr_html_() and "continued by the fitted Q" in found._repr_html_()
    main(["judge", str(run), "--data", str(data), "--seed", "1", "--horizon", "5", "--gamma", "1", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["verdict"] == "wpdis" and shown["estimates"]["fqe"]["value"] is None
    for name in ("is", "wis", "pdis", "wpdis"):
        cell = shown["estimates"][name]
        assert abs(cell["value"] - exact(run, 1, 5, 1.0)) < 2 * cell["half_width"], name


def refusals(run: Path, data: Path, **options: Any) -> dict[str, str]:
    """Map each estimator to the reason why it gives no number. A short fit is sufficient for this."""
    options = options if "horizon" in options else {"iterations": 200} | options
    return {name: x.refusal for name, x in upslope.judge(run, data=data, **options).estimates.items()}


def test_without_probabilities_only_the_fitted_q_judges(run: Path, data: Path):
    found = upslope.judge(run, data=changed(data, behaviour_log_prob=None), seed=1)
    assert found.verdict == "fqe" and "without an interval" in found.conclusion
    assert "the probability with which" in found.estimates["is"].refusal


def test_what_the_fitted_q_does_is_told_only_if_there_is_one(run: Path, data: Path):
    with_q = upslope.judge(run, data=data, seed=1)
    assert any("continued by the fitted Q" in note for note in with_q.notes)
    for options in ({"gamma": 1.0}, {"iterations": 3}):
        found = upslope.judge(run, data=data, seed=1, **options)
        assert found.truncated and found.estimates["fqe"].refusal and not found.notes
        assert (
            "nothing continues them" in found.estimates["wis"].refusal and "--horizon" in found.estimates["wis"].refusal
        )
    with pytest.raises(upslope.UpslopeError, match="Omit one of the two"):
        upslope.judge(run, data=data, seed=1, iterations=5, horizon=10)


def test_what_the_data_cannot_tell_is_refused(run: Path, data: Path, capsys: Any):
    arrays = np.load(data)
    log_prob, action = arrays["behaviour_log_prob"], arrays["action"]
    horizon = {"horizon": 5, "seed": 1}
    wrong = refusals(run, changed(data, behaviour_log_prob=np.minimum(log_prob + 0.3, 0)), **horizon)
    assert "not the recorder's" in wrong["wpdis"]
    # The recording policy never moves down, although the judged policy does.
    never = np.where(action == 2, 1, action)
    why = refusals(run, changed(data, action=never, behaviour_log_prob=np.full(len(action), np.log(1 / 3))), seed=1)
    assert "never recorded" in why["fqe"] and "recorder's" in why["wis"] and "recorder's" in why["wdr"]
    few = int(arrays["length"][:30].sum())
    part = {name: arrays[name][:few] for name in ("observation", "action", "reward", "behaviour_log_prob")}
    part |= {name: arrays[name][:30] for name in ("length", "terminated", "final_observation")}
    assert "effective episodes, fewer than" in refusals(run, changed(data, **part), **horizon)["pdis"]
    assert "truncated before the horizon" in refusals(run, data, horizon=50)["is"]
    assert "γ = 1" in refusals(run, data, gamma=1.0)["fqe"]
    short = upslope.judge(run, data=data, seed=1, iterations=3).estimates
    assert "more --iterations" in short["fqe"].refusal and "more --iterations" in short["wis"].refusal
    main(["judge", str(run), "--data", str(data), "--horizon", "50"])
    assert "cannot tell" in capsys.readouterr().out
    for options, words in (({"seed": 7}, "no seed 7"), ({"gamma": 2.0}, "--gamma"), ({"horizon": 0}, "--horizon")):
        with pytest.raises(upslope.UpslopeError, match=words):
            upslope.judge(run, data=data, **options)
    with pytest.raises(upslope.UpslopeError, match="no dataset"):
        upslope.judge(run, data="nowhere.npz")
    with pytest.raises(SystemExit):
        main(["ope", str(run)])
    assert "judge" in capsys.readouterr().err


def edited(run: Path, name: str, data: Path | None, **more: Any) -> Path:
    """Copy a run, and say in its config.json that it learned from these data."""
    copy = run.with_name(name)
    shutil.copytree(run, copy)
    described = json.loads((copy / "config.json").read_text())
    described["config"]["data"] = None if data is None else str(data)
    (copy / "config.json").write_text(json.dumps(described | more))
    return copy


def test_a_policy_trained_on_the_same_episodes_is_said_to_be(run: Path, data: Path, tmp_path: Path):
    horizon = {"horizon": 5, "seed": 0}
    # A policy that was fitted to the recorded actions makes them more probable than their recorder did.
    fitted = changed(data, behaviour_log_prob=np.load(data)["behaviour_log_prob"] - 0.1)
    unknown = refusals(run, fitted, **horizon)["wpdis"]
    assert "trained on some of these episodes" in unknown and "or the recorded probabilities" in unknown
    equal = Path(shutil.copy(fitted, tmp_path / "equal.npz"))
    clone = edited(run, "clone", fitted)
    tuned = edited(run, "tuned", None, lineage={"run": "a" * 5000, "before": {"run": str(clone), "before": None}})
    for one in (clone, tuned):
        for file in (fitted, equal):
            found = upslope.judge(one, data=file, **horizon)
            why = found.estimates["wpdis"].refusal
            assert f"trained on these episodes (by {clone})" in why and "held-out" in why
            assert "recorder's" not in why and any("too optimistic" in note for note in found.notes)
    assert not upslope.judge(clone, data=data, **horizon).notes
    assert not is_same("minari:a/b-v0", "minari:a/c-v0") and is_same("minari:a/b-v0", "minari:a/b-v0")


NUMBERS = spaces.Box(-1, 1, (3,), np.float32)
PARTS = spaces.Dict({"arm": NUMBERS, "kind": spaces.Discrete(3)})
CASES: dict[str, tuple[spaces.Space, spaces.Space, bool]] = {
    "a masked choice": (NUMBERS, spaces.Discrete(4), False),
    "a squashed box, from a dictionary": (PARTS, spaces.Box(-2, 2, (2,), np.float32), True),
    "choices": (NUMBERS, spaces.MultiDiscrete([2, 3]), False),
    "a dictionary of actions": (NUMBERS, spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(2)}), False),
}

FURTHER = ("choices", "a dictionary of actions")


def recording(agent: Agent, observation: spaces.Space, episodes: int = 400, steps: int = 1) -> Rollout:
    """Return random observations with this agent's actions. The reward is the mean of an action's components."""
    observation.seed(0)
    drawn = [observation.sample() for _ in range(episodes * (steps + 1))]
    stacked = jax.tree.map(lambda *x: np.stack(x).reshape(steps + 1, episodes, *np.shape(x[0])), *drawn)
    now, after = (jax.tree.map(lambda x, s=s: x[s], stacked) for s in (slice(0, -1), slice(1, None)))
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), now)
    mask = None
    if agent.head.num_choices == 4:
        mask = np.random.default_rng(1).random((steps, episodes, 4)) < 0.7
        mask[..., 0] = True
    policy = agent.policy(flat, None if mask is None else mask.reshape(-1, 4))
    action = policy.choose(policy.noise(jax.random.key(2)))
    log_prob = np.asarray(policy.log_prob(action)).reshape(steps, episodes)
    action = np.asarray(action).reshape(steps, episodes, *action.shape[1:])
    ends = np.zeros((steps, episodes), bool)
    ends[-1] = True
    return host_rollout(
        {
            "observation": now,
            "action": action,
            "reward": action.reshape(steps, episodes, -1).mean(axis=-1).astype(np.float32),
            "terminated": ends,
            "truncated": ~ends & False,
            "next_observation": after,
            "behaviour_log_prob": log_prob,
            "valid": np.ones((steps, episodes), bool),
            "action_mask": mask,
        }
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.weekly] if name in FURTHER else []) for name in CASES]
)
def test_every_head_is_judged_as_it_acts(name: str):
    """If π = μ, every weight is 1, so all estimators that do not use the fitted Q give the mean return."""
    observation, action, is_squashed = CASES[name]
    head = with_policy(head_of(action), "", kind="squashed" if is_squashed else "gaussian")
    agent = fresh_agent(jax.random.key(0), observation, action, head=head, hidden_sizes=(8,))
    rollout = recording(agent, observation)
    networks = {"hidden_sizes": (8,), "activation": "tanh", "encoders": ()}
    found = Case(agent, encoder_of(observation, ""), rollout, 0.9, None, networks, 0).estimates(40)
    mean = float(np.asarray(rollout.reward, np.float64).mean())
    for estimator in ("is", "wis", "pdis", "wpdis"):
        assert found[estimator].value == pytest.approx(mean, abs=1e-3), estimator
    spread = found["is"].half_width
    for estimator in ("fqe", "dr", "wdr"):
        assert abs(found[estimator].value - mean) < 2 * spread, estimator


def test_a_policy_with_memory_is_judged_by_weights_alone():
    """The probabilities used for the weights equal those computed while acting step by step."""
    spec = ModelSpec(encoder_of(NUMBERS, ""), head_of(spaces.Discrete(3)), {"memory": "gru", "memory_size": 4})
    agent = initialise_agent(jax.random.key(0), spec)
    plain = fresh_agent(jax.random.key(1), NUMBERS, spaces.Discrete(3), hidden_sizes=(4,))
    rollout = recording(plain, NUMBERS, episodes=5, steps=4)
    carry, expected = agent.model.start(5), []
    for t in range(4):
        policy, carry = agent.act(rollout.observation[t], carry, jnp.full(5, t == 0))
        expected.append(policy.log_prob(rollout.action[t]))
    np.testing.assert_allclose(log_probabilities(agent, rollout), expected, atol=1e-5)
    case = Case(agent, spec.encoder, rollout, 0.9, None, {}, 0)
    assert "memory" in case.estimates(None)["fqe"].refusal


def test_the_coverage_in_the_page_is_what_is_stored(monkeypatch: Any):
    root = Path(__file__).parents[2]
    monkeypatch.syspath_prepend(root / "benchmarks")
    benchmark = importlib.import_module("off_policy")
    assert benchmark.tables(json.loads(benchmark.RESULTS.read_text("utf-8"))) in benchmark.PAGE.read_text("utf-8"), (
        "run: benchmarks/off_policy.py --table"
    )
