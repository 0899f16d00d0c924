"""A seed's run is reproducible and does not depend on the other seeds, and its policy is restored completely."""

import csv
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_helpers import EPISODES, SEGMENTS, arrays_of, metrics_of, one_seed

import upslope

pytestmark = pytest.mark.usefixtures("compiled_for_users")

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "compiled segments": ("jax:CartPole-v1", "ppo", {"steps": 800, **SEGMENTS}),
    "compiled episodes": ("jax:CartPole-v1", "reinforce", {"steps": 800, "max_episode_steps": 60, **EPISODES}),
    "host segments": ("CartPole-v1", "ppo", {"steps": 800, **SEGMENTS}),
    "host episodes": ("CartPole-v1", "reinforce", {"steps": 600, "max_episode_steps": 60, **EPISODES}),
}
MANY = 4
HAS_ACCELERATOR = jax.default_backend() != "cpu"
ROUNDS_AS_MANY = "an accelerator runs all compiled seeds together, and rounding depends on their number"
ONE_AFTER_ANOTHER = pytest.mark.skipif(HAS_ACCELERATOR, reason=ROUNDS_AS_MANY)


def train(case: str, folder: Path, name: str, seed: int, seeds: int) -> Path:
    environment, algorithm, settings = CASES[case]
    options: dict[str, Any] = {"hidden_sizes": (8,), "quiet": True, "seed": seed, "seeds": seeds}
    return upslope.train(environment, algorithm, folder=folder, name=name, **options, **settings).path


def episodes_of(run: Path, seed: int) -> list[dict[str, str]]:
    with (run / "episodes.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["seed"] == str(seed)]


def metrics_of_seed(run: Path, seed: int) -> list[dict[str, Any]]:
    return [row for row in metrics_of(run) if row["seed"] == seed]


@pytest.fixture(scope="module")
def together(folder: Path) -> Callable[[str], Path]:
    """Train seeds 0 to 3 of a case in a single run, only once."""
    return cache(lambda case: train(case, folder, f"{case} together", seed=0, seeds=MANY))


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=ONE_AFTER_ANOTHER if "compiled" in case else ()) for case in CASES]
)
def test_a_seed_alone_is_that_seed_among_others(case: str, together: Callable[[str], Path], folder: Path):
    seed = 2
    alone, among = train(case, folder, f"{case} alone", seed=seed, seeds=1), together(case)
    assert episodes_of(alone, seed) == episodes_of(among, seed) != []
    for one, other in zip(metrics_of_seed(alone, seed), metrics_of_seed(among, seed), strict=True):
        assert {k: (v, other[k]) for k, v in one.items() if v != other[k]} == {}, one["iteration"]
    for name in ("last.npz", "best.npz"):
        one = one_seed(alone / "checkpoints" / name, 0, 1)
        assert one == one_seed(among / "checkpoints" / name, seed, MANY), name


@ONE_AFTER_ANOTHER
@pytest.mark.parametrize("seeds", [pytest.param(2, marks=pytest.mark.weekly), 3])
def test_a_seed_of_full_size_is_that_seed_however_many_devices_share_the_work(seeds: int, folder: Path):
    # Networks and minibatches are large enough for XLA to use several threads, and 3 seeds cannot be divided evenly
    # among 2 devices.
    settings: dict[str, Any] = {"num_envs": 64, "rollout_steps": 64, "steps": 3 * 4096, "preset": False}
    settings |= {"quiet": True, "folder": folder}
    among = upslope.train("jax:CartPole-v1", name=f"wide {seeds}", seeds=seeds, **settings).path
    alone = upslope.train("jax:CartPole-v1", name=f"wide alone {seeds}", seed=seeds - 1, **settings).path
    one = one_seed(alone / "checkpoints" / "last.npz", 0, 1)
    assert one == one_seed(among / "checkpoints" / "last.npz", seeds - 1, seeds)


@pytest.mark.parametrize("case", ["compiled episodes", "host segments"])
def test_the_same_seeds_give_the_same_run(case: str, together: Callable[[str], Path], folder: Path):
    again = train(case, folder, f"{case} again", seed=0, seeds=MANY)
    assert arrays_of(again / "checkpoints" / "last.npz") == arrays_of(together(case) / "checkpoints" / "last.npz")
    assert metrics_of(again) == metrics_of(together(case))
    assert (again / "episodes.csv").read_text() == (together(case) / "episodes.csv").read_text()


@pytest.mark.parametrize("case", CASES)
def test_different_seeds_differ(case: str, together: Callable[[str], Path]):
    run = together(case)
    parts = [one_seed(run / "checkpoints" / "last.npz", index, MANY) for index in range(MANY)]
    weights = "state.learner.agent.model.actor.network.weights[0]"
    assert len({part[weights] for part in parts}) == MANY
    lengths = {tuple(row["length"] for row in episodes_of(run, seed)) for seed in range(MANY)}
    assert len(lengths) == MANY


@ONE_AFTER_ANOTHER
def test_the_best_agent_of_a_seed_does_not_depend_on_the_others(folder: Path):
    # With whole episodes, each seed has its own step count. A chunk is far smaller than a hundredth of the budget, so
    # it matters when the window is compared with the best one.
    settings: dict[str, Any] = {"steps": 6000, "num_envs": 1, "max_episode_steps": 30, "preset": False}
    settings |= {"hidden_sizes": (8,), "quiet": True, "folder": folder}
    among = upslope.train("jax:CartPole-v1", "reinforce", name="best among", seeds=MANY, **settings).path
    for seed in (0, 3):
        alone = upslope.train("jax:CartPole-v1", "reinforce", name=f"best {seed}", seed=seed, **settings).path
        one = one_seed(alone / "checkpoints" / "best.npz", 0, 1)
        assert one == one_seed(among / "checkpoints" / "best.npz", seed, MANY), seed


def test_a_run_says_which_seeds_it_has(together: Callable[[str], Path]):
    run = together("compiled segments")
    for seed in range(MANY):
        assert upslope.load(run, seed=seed).seed == seed
    with pytest.raises(upslope.UpslopeError, match="no seed 9; it has 0 to 3"):
        upslope.load(run, seed=9)


def test_a_policy_comes_back_whole(together: Callable[[str], Path]):
    trained = together("compiled segments")
    policy = upslope.load(trained, seed=1, checkpoint="last")
    batch = np.random.default_rng(0).uniform(-0.1, 0.1, (64, 4)).astype(np.float32)
    action, log_prob = policy.with_log_prob(batch)
    assert action.shape == log_prob.shape == (64,) and set(action.tolist()) == {0, 1}
    expected = jax.nn.log_softmax(policy.agent.policy(jnp.asarray(batch)).logits)[np.arange(64), action]
    np.testing.assert_allclose(log_prob, expected, atol=1e-6)
    most = np.asarray(policy.agent.policy(jnp.asarray(batch)).logits).argmax(axis=1)
    np.testing.assert_array_equal(policy(batch), most)
    assert policy(batch[0]).shape == () and policy(batch[0]) == policy(batch[0].tolist()) == most[0]
    assert policy.value(batch).shape == (64,) and policy.value(batch[0]) == pytest.approx(policy.value(batch)[0])
    with pytest.raises(upslope.UpslopeError, match=r"shape \(4,\), or a batch.*not \(5,\)"):
        policy(np.zeros(5))
    other = upslope.load(trained, seed=3, checkpoint="last").with_log_prob(batch, deterministic=True)[1]
    assert not np.array_equal(other, policy.with_log_prob(batch, deterministic=True)[1])
    assert upslope.load(trained).checkpoint == "best"


def test_box_actions_stay_within_their_bounds(folder: Path):
    run = upslope.train(
        "jax:Pendulum-v1", steps=32, folder=folder, quiet=True, log_std_init=2.0, hidden_sizes=(8,), **SEGMENTS
    )
    policy = run.load()
    batch = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    action, log_prob = policy.with_log_prob(batch)
    assert action.shape == (200, 1) and np.abs(action).max() == 2.0 and np.isfinite(log_prob).all()
    assert np.abs(policy(batch)).max() <= 2.0
    assert policy(batch[0], deterministic=False).shape == (1,)


@pytest.mark.parametrize(
    ("environment", "algorithm", "settings"),
    [
        # Here, restarts are prepared in advance, and minibatches are gathered together.
        ("jax:CartPole-v1", "ppo", SEGMENTS | {"steps": 400}),
        # Here, each seed has its own step count, so health measurements and ends fall on different iterations.
        ("jax:CartPole-v1", "reinforce", EPISODES | {"max_episode_steps": 30, "steps": 4000}),
        pytest.param(
            "jax:Pendulum-v1", "ppo_kl", SEGMENTS | {"target_kl": 0.01, "steps": 400}, marks=pytest.mark.weekly
        ),
    ],
)
def test_seeds_at_once_are_seeds_one_after_another(
    environment: str, algorithm: str, settings: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
):
    # Make the CPU do what an accelerator does, with two seeds per device. Results may differ only in the order of
    # summation.
    options: dict[str, Any] = {"seeds": MANY, "hidden_sizes": (8,), "quiet": True, "folder": folder}
    for at_once in (False, True):
        for module in ("upslope.learning.iteration", "upslope.engines.compiled"):
            monkeypatch.setattr(f"{module}.is_vmapped", lambda mesh, at_once=at_once: at_once)
        upslope.train(environment, algorithm, name=f"{algorithm} {at_once}", **options, **settings)
    apart, together = (metrics_of(folder / f"{algorithm} {at_once}") for at_once in (False, True))
    looks, others = ([any(name.startswith("health/") for name in row) for row in rows] for rows in (apart, together))
    assert looks == others and any(looks) and (algorithm != "reinforce" or not all(looks))
    for one, other in zip(apart, together, strict=True):
        # A correlation is omitted if one of its inputs is constant, which may depend on rounding.
        assert all(name.endswith("correlation") for name in one.keys() ^ other.keys())
        for name in one.keys() & other.keys():
            value = one[name]
            assert other[name] == (None if value is None else pytest.approx(value, rel=1e-3, abs=1e-4)), name
