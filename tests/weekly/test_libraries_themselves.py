"""Environments of other libraries are compared with the libraries themselves. Only `.ci/weekly` runs this, not
`pytest`.

The same keys and actions must give the same episode as the library's own step, and time limits must be truncations.
"""

import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from libraries_helpers import (  # pyright: ignore[reportMissingImports] - this folder is on the path
    Oracle,
    of_brax,
    of_craftax,
    of_gymnax,
    of_jumanji,
    of_navix,
    of_pgx,
    of_playground,
    of_xminigrid,
)
from run_helpers import assert_same_run, before_chunk

import upslope
from upslope.environments.deep_sea import DeepSea
from upslope.environments.libraries import LIBRARIES
from upslope.environments.registry import make
from upslope.models.heads import head_of

ORACLES = {
    "gymnax": (of_gymnax, "max_steps_in_episode"),
    "xminigrid": (of_xminigrid, "max_steps"),
    "jumanji": (of_jumanji, "time_limit"),
    "pgx": (of_pgx, None),
    "navix": (of_navix, "max_steps"),
    "craftax": (of_craftax, "max_timesteps"),
    "brax": (of_brax, None),
    "playground": (of_playground, "episode_length"),
}
"""Library → a function that returns its own step, and the name of the argument that sets the time limit."""
GYMNAX = [
    "CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Asterix-MinAtar",
    "Breakout-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar", "SpaceInvaders-MinAtar", "Catch-bsuite",
    "MemoryChain-bsuite", "UmbrellaChain-bsuite", "DiscountingChain-bsuite", "SimpleBandit-bsuite", "FourRooms-misc",
    "MetaMaze-misc", "PointRobot-misc", "BernoulliBandit-misc", "GaussianBandit-misc", "Reacher-misc", "Swimmer-misc",
    "Pong-misc", "FrozenLake-misc",
]  # fmt: skip
CASES = [
    *((f"gymnax:{name}", 25) for name in GYMNAX),
    *((f"xminigrid:{name}", 25) for name in ("MiniGrid-DoorKey-5x5", "MiniGrid-Empty-5x5", "XLand-MiniGrid-R1-9x9")),
    *((f"jumanji:{name}", 12) for name in ("Snake-v1", "Maze-v0", "Tetris-v0", "PacMan-v1", "RubiksCube-v0")),
    *((f"jumanji:{name}", None) for name in ("Game2048-v1", "Minesweeper-v0", "Knapsack-v1", "JobShop-v0")),
    *((f"pgx:{name}", None) for name in ("2048", "minatar-breakout", "minatar-asterix")),
    *((f"navix:{name}", 20) for name in ("Navix-DoorKey-5x5-v0", "Navix-LavaGapS5-v0")),
    ("craftax:Craftax-Classic-Symbolic-v1", 30),
    ("brax:fast", 12),
    ("brax:inverted_pendulum", 12),
    ("playground:CartpoleBalance", 10),
]
LASTING = {
    "gymnax:Pendulum-v1", "gymnax:MountainCar-v0", "gymnax:Freeway-MinAtar", "xminigrid:MiniGrid-DoorKey-5x5",
    "xminigrid:XLand-MiniGrid-R1-9x9", "jumanji:PacMan-v1", "jumanji:RubiksCube-v0", "navix:Navix-DoorKey-5x5-v0",
    "craftax:Craftax-Classic-Symbolic-v1", "brax:fast", "playground:CartpoleBalance",
}  # fmt: skip
"""Cases in which random play reaches the time limit."""
TRAINED = (
    "gymnax:Breakout-MinAtar",
    "xminigrid:MiniGrid-DoorKey-5x5",
    "jumanji:Snake-v1",
    "jumanji:Minesweeper-v0",
    "pgx:2048",
    "navix:Navix-DoorKey-5x5-v0",
    "craftax:Craftax-Classic-Symbolic-v1",
    "brax:fast",
    "playground:CartpoleBalance",
)
STEPS = 60


@pytest.mark.parametrize(("name", "limit"), CASES, ids=[name for name, _ in CASES])
def test_an_episode_is_the_librarys_own(name: str, limit: int | None):
    library, _, short = name.partition(":")
    oracle_of, argument = ORACLES[library]
    world: Any = make(name, {argument: limit} if argument and limit else {})
    given_limit = limit if library == "brax" else world.max_episode_steps
    assert library == "brax" or world.max_episode_steps == limit
    oracle = oracle_of(short, limit, **combined_of(name, world))
    ends = [one_episode(world, oracle, given_limit, seed) for seed in range(3)]
    assert name not in LASTING or "truncated" in ends


def combined_of(name: str, world: Any) -> dict[str, Any]:
    """Return the sizes of the action components that upslope merges into a single choice, if there are any."""
    inner = getattr(world, "combined", ())
    return {"combined": inner} if inner else {}


def one_episode(world: Any, oracle: Oracle, limit: int | None, seed: int) -> str:
    """Play random legal actions in both environments, compare every step, and return how the episode ended."""
    generator, head = np.random.default_rng(seed), head_of(world.action_space, "it")
    reset, step = jax.jit(world.reset), jax.jit(world.step)
    key = jax.random.key(seed)
    state, observation = reset(key)
    other, expected = oracle.start(raw(key))
    same(observation, expected)
    for number in range(1, STEPS + 1):
        mask = world.action_mask(state)
        drawn = head.random(generator, None if mask is None else np.asarray(head.flat_mask(mask)))
        action = jnp.asarray(head.to_compiled(jnp.asarray(drawn)[None]))[0]
        key, now = jax.random.split(key)
        state, transition = step(of_raw(oracle.key_of(raw(now))), state, action)
        other, facts = oracle.move(raw(now), other, action)
        same(transition.observation, facts.observation)
        np.testing.assert_allclose(transition.reward, facts.reward, rtol=1e-5, atol=1e-6)
        assert not transition.truncated and bool(transition.terminated) == bool(facts.terminated)
        assert limit is None or bool(facts.truncated) == (number >= limit and not facts.terminated)
        if facts.terminated or facts.truncated:
            return "truncated" if facts.truncated else "terminated"
    return "running"


def raw(key: Any) -> Any:
    return jax.random.key_data(key)


def of_raw(key: Any) -> Any:
    return jax.random.wrap_key_data(key)


def same(ours: Any, theirs: Any) -> None:
    """Compare observations. Where ours is a dictionary, the library's may be a named tuple."""
    if isinstance(ours, dict):
        for name, part in ours.items():
            same(part, theirs[name] if isinstance(theirs, dict) else getattr(theirs, name))
    else:
        np.testing.assert_allclose(np.float64(ours), np.float64(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [5, 12])
def test_the_deep_sea_is_gymnax_s(size: int):
    """`jax:DeepSea-v0` uses gymnax's own action map here. In gymnax, the end (cell size²) is an observation of
    zeros."""
    from gymnax.environments.bsuite.deep_sea import DeepSea as Theirs

    theirs, ours = Theirs(size=size), DeepSea(size=size)
    object.__setattr__(ours, "leads_right", np.asarray(theirs.action_mapping) == 1)
    params = theirs.default_params
    move, step = jax.jit(lambda *x: theirs.step_env(*x, params)), jax.jit(ours.step)
    generator, key = np.random.default_rng(0), jax.random.key(0)
    for episode in range(20):
        cell, observation = ours.reset(key)
        shown, state = theirs.reset_env(key, params)
        same(one_hot(observation, size), shown)
        for row in range(size):
            right = int(ours.leads_right[row, int(cell) % size])
            action = jnp.int32(right if episode == 0 else generator.integers(0, 2))
            shown, state, reward, _, _ = move(key, state, action)
            cell, transition = step(key, cell, action)
            same(one_hot(transition.observation, size), shown)
            assert float(transition.reward) == pytest.approx(float(reward), abs=1e-6)
            assert bool(transition.terminated) == bool(theirs.is_terminated(state, params)) == (row == size - 1)
        assert episode > 0 or float(reward) > 0.9


def one_hot(cell: Any, size: int) -> np.ndarray:
    """Convert a cell to gymnax's representation."""
    return (np.arange(size * size) == int(cell)).astype(np.float32).reshape(size, size)


def test_every_library_is_tried():
    assert {library.prefix for library in LIBRARIES} == set(ORACLES) == {name.partition(":")[0] for name in TRAINED}


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_is_trained_resumed_evaluated_and_recorded(name: str, tmp_path: Path):
    small: dict[str, Any] = {"seeds": 2, "num_envs": 4, "rollout_steps": 8, "minibatches": 2, "epochs": 1}
    small |= {"hidden_sizes": (16,), "max_episode_steps": 20, "preset": False, "folder": tmp_path, "quiet": True}
    run = upslope.train(name, name="straight", steps=256, **small).path
    with before_chunk(3, lambda: signal.raise_signal(signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        upslope.train(name, name="stopped", steps=256, **small)
    upslope.resume(tmp_path / "stopped", quiet=True)
    assert_same_run(run, tmp_path / "stopped")
    assert set(upslope.evaluate(run, episodes=2)) == {"stochastic", "deterministic"}
    assert upslope.record(run, episodes=2).exists()
