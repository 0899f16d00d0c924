"""Runs with --head gsde can be stopped and resumed without changes, and every command reads them."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_helpers import SEGMENTS, assert_stops_and_resumes, metrics_of

import upslope
from upslope.analysis.episode_credit import credit_of
from upslope.errors import UpslopeError
from upslope.report.page import write_report

pytestmark = pytest.mark.usefixtures("compiled_for_users")
SMALL: dict[str, Any] = SEGMENTS | {
    "head": "gsde", "noise_every": 3, "hidden_sizes": (8, 4), "steps": 320, "seeds": 2, "quiet": True,
    "max_episode_steps": 11, "log_std_init": -2.0,
}  # fmt: skip
MEMORY: dict[str, Any] = {"memory": "gru", "memory_size": 6, "noise_every": 0}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "compiled": ("jax:Pendulum-v1", {}),
    "host": ("Pendulum-v1", {}),
    "compiled with a memory": ("jax:user_environments:CompiledHybrid", MEMORY),
    "host with a memory": ("user_environments:Hybrid", MEMORY | {"shared_trunk": True}),
}


@pytest.fixture(scope="module")
def trained(folder: Path) -> Any:
    """Train each kind of run once, when it is first requested."""

    @cache
    def run(kind: str) -> Path:
        environment, settings = RUNS[kind]
        return upslope.train(environment, folder=folder, name=kind, **(SMALL | settings)).path

    return run


@pytest.mark.parametrize("kind", ["host", *(pytest.param(k, marks=pytest.mark.weekly) for k in RUNS if k != "host")])
def test_a_run_stopped_and_resumed_is_uninterrupted(kind: str, trained: Any):
    environment, settings = RUNS[kind]
    assert_stops_and_resumes(environment, trained(kind), **(SMALL | settings))


@pytest.mark.weekly
@pytest.mark.parametrize("kind", ["compiled", "host", "host with a memory"])
def test_a_seed_is_as_if_alone(kind: str, trained: Any, folder: Path):
    environment, settings = RUNS[kind]
    options = SMALL | settings | {"seeds": 1, "seed": 1}
    alone = upslope.train(environment, folder=folder, name=f"{kind} alone", **options)
    assert [row for row in metrics_of(trained(kind)) if row["seed"] == 1] == metrics_of(alone.path)


def test_recorded_actions_hold_their_noise_and_have_the_marginal_probability(trained: Any, tmp_path: Path):
    path = trained("host")
    assert upslope.evaluate(path, episodes=2)["stochastic"].returns.shape == (2, 2)
    data = upslope.record(path, episodes=2, seed=0, output=tmp_path / "data.npz")
    policy = upslope.load(path, seed=0, checkpoint="last")
    with np.load(data) as recorded:
        observation, action = recorded["observation"], recorded["action"]
        found = policy.distribution(observation)
        np.testing.assert_allclose(found.log_prob(action), recorded["behaviour_log_prob"], atol=1e-4)
    # By hand: in steps that share Θ [4, 1], the deviations from the mean are φ Θ. Three such steps do not determine Θ,
    # but the solution of least norm reproduces their deviations. If the steps had different Θ, it would not.
    network = policy.numpy_agent.model.actor.network
    hidden = policy.numpy_agent.features(observation)
    for weight, bias in zip(network.weights[:-1], network.biases[:-1], strict=True):
        hidden = np.tanh(hidden @ weight + bias)
    off = (action - np.asarray(found.mode())) / 2
    theta, *_ = np.linalg.lstsq(hidden[:3], off[:3], rcond=None)
    np.testing.assert_allclose(hidden[:3] @ theta, off[:3], atol=1e-4)
    std = np.exp(policy.numpy_agent.model.actor.log_std)[:, None]
    marginal = 2 * np.sqrt((hidden**2) @ std**2 + 1e-6)
    np.testing.assert_allclose(np.exp(found.log_std), marginal, rtol=1e-4)


def test_it_is_credited_cloned_shown_and_diagnosed(trained: Any, tmp_path: Path):
    path = trained("host")
    credit = credit_of(path, seed=1)
    assert (credit.policy["std"] > 0).all()
    data = upslope.record(path, episodes=3, output=tmp_path / "data.npz")
    options: dict[str, Any] = {"head": "gsde", "hidden_sizes": (4,), "steps": 40, "epochs": 1, "minibatches": 2}
    run = upslope.train("Pendulum-v1", "clone", data=str(data), folder=tmp_path, name="clone", quiet=True, **options)
    assert all(np.isfinite(row["policy/loss"]) for row in run.metrics())
    upslope.diagnose(path)
    assert "gsde" in write_report([path], tmp_path / "report.html").read_text("utf-8")


def test_a_policy_holds_its_noise_between_calls_until_it_is_reset(trained: Any):
    policy, observation = upslope.load(trained("host")), [1.0, 0.0, 0.0]
    taken = [float(policy(observation, deterministic=False)[0]) for _ in range(4)]
    assert taken[0] == taken[1] == taken[2] != taken[3]
    policy.reset()
    assert float(policy(observation, deterministic=False)[0]) != taken[3]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"head": "gsde", "hidden_sizes": ()}, "there is none"),
        ({"head": "gsde", "state_dependent_std": True}, "Omit one of the two"),
        ({"noise_every": 2}, "--noise-every applies only to --head gsde"),
        ({"head": "gsde", "noise_every": -1}, "--noise-every must be 0 or more"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], words: str, tmp_path: Path):
    with pytest.raises(UpslopeError, match=words):
        upslope.train("jax:Pendulum-v1", folder=tmp_path, steps=100, quiet=True, **settings)
