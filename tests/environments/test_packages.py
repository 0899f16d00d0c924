"""A fixed table maps an environment's id to its package, and a preset prepares the environment."""

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from user_environments import Walk

import upslope
from upslope.config.command import command_of
from upslope.config.config import configure
from upslope.config.prepare import prepare
from upslope.config.presets import presets
from upslope.config.trust import requested
from upslope.environments import packages
from upslope.environments.packages import Package, package_of, registered_version
from upslope.environments.registry import make
from upslope.errors import UpslopeError

SMALL: dict[str, Any] = {"steps": 64, "num_envs": 2, "rollout_steps": 16, "minibatches": 2, "hidden_sizes": (8,)}
REGISTERING = """
from pathlib import Path
import gymnasium
Path({mark!r}).touch()
gymnasium.register({id!r}, entry_point="user_environments:Walk", max_episode_steps=7)
"""


class Told(Walk):
    """A walk whose observation also contains text that says where to go."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict({"place": self.observation_space, "mission": spaces.Text(20)})

    def observe(self) -> Any:
        return {"place": super().observe(), "mission": "go on"}


class Paid(Walk):
    """A walk whose reward is `size` or `-size`, at random."""

    def __init__(self, size: float = 1.0) -> None:
        super().__init__()
        self.size = size

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, self.size * float(np.sign(self.np_random.normal())), *rest


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a module that is in the table and registers `Hill-Walk-v0` on import; return its folder."""
    monkeypatch.setattr(packages, "PACKAGES", (Package("hill_of_the_tests", "hill-of-the-tests", "Hill-"),))
    folder = tmp_path / "installed"
    folder.mkdir()
    text = REGISTERING.format(mark=str(tmp_path / "imported"), id="Hill-Walk-v0")
    (folder / "hill_of_the_tests.py").write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    sys.modules.pop("hill_of_the_tests", None)
    gymnasium.registry.pop("Hill-Walk-v0", None)


def test_an_id_alone_imports_the_package_of_the_table(package: Path):
    sys.path.append(str(package))
    assert registered_version("Hill-Walk-v0") == {}
    made: Any = make("Hill-Walk-v0")
    assert made.max_episode_steps == 7 and registered_version("Hill-Walk-v0") == {"hill-of-the-tests": "unknown"}
    with pytest.raises(UpslopeError, match="Did you mean Hill-Walk-v0"):
        make("Hill-Wlak-v0")


def test_a_module_of_the_current_folder_is_no_installed_package(package: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(package)
    sys.path[:0] = ["", str(package)]
    with pytest.raises(UpslopeError, match=r"not installed[.] Install it: pip install hill-of-the-tests"):
        make("Hill-Walk-v0")
    assert not (package.parent / "imported").exists() and sys.path[:2] == ["", str(package)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import a_module_that_is_missing", "pip install a_module_that_is_missing"),
        ("import cv2_of_tests.inner", "pip install cv2_of_tests"),
        ("import gymnasium.wrappers.of_old", "gymnasium has no gymnasium.wrappers.of_old"),
        ("raise RuntimeError('numpy is too new')", "numpy is too new"),
    ],
)
def test_a_package_that_cannot_be_imported_says_why(package: Path, text: str, said: str):
    sys.path.append(str(package))
    (package / "hill_of_the_tests.py").write_text(text)
    with pytest.raises(UpslopeError, match="hill-of-the-tests, which cannot be imported") as refused:
        make("Hill-Walk-v0")
    assert said in str(refused.value)


def test_the_package_of_a_known_id_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "highway_env", None)
    with pytest.raises(UpslopeError, match="pip install highway-env"):
        make("parking-v0")


IDS = {
    "minigrid": "MiniGrid-DoorKey-5x5-v0 BabyAI-GoToLocal-v0",
    "ale_py": "ALE/Pong-v5 PongNoFrameskip-v4",
    "gymnasium_robotics": "FetchReach-v4 AntMaze_UMaze-v5 FrankaKitchen-v1 HandManipulateBlock-v1 PointMaze_UMaze-v3",
    "highway_env": "highway-fast-v0 highway-v0 parking-v0 intersection-multi-agent-v0 merge-v0",
    "PyFlyt.gym_envs": "PyFlyt/QuadX-Hover-v4",
    "metaworld": "Meta-World/MT1",
    "mo_gymnasium": "mo-mountaincar-v0 minecart-v0",
    "shimmy": "dm_control/cartpole-balance-v0",
    "pybullet_envs_gymnasium": "HopperBulletEnv-v0",
    "nle": "NetHackScore-v0",
    "vizdoom.gymnasium_wrapper": "VizdoomBasic-v1",
}


@pytest.mark.parametrize("module", IDS)
def test_the_table_knows_the_ids_of_packages(module: str):
    for environment in IDS[module].split():
        package = package_of(environment)
        assert package is not None and package.module == module, environment


def test_the_table_knows_no_id_of_gymnasium():
    assert [name for name in gymnasium.registry if package_of(name) and name.startswith(("phys2d", "tabular"))] == []
    for name in (
        "CartPole-v1",
        "Taxi-v4",
        "Blackjack-v1",
        "Humanoid-v5",
        "CarRacing-v3",
        "merge_sort-v0",
        "Monopoly-v0",
    ):
        assert package_of(name) is None, name


def test_a_known_id_in_a_file_needs_no_trust_and_a_module_does():
    for name, needed in (
        ("MiniGrid-DoorKey-5x5-v0", []),
        ("ALE/Pong-v5", []),
        ("minigrid:MiniGrid-DoorKey-5x5-v0", [1]),
    ):
        assert len(requested(configure(name, is_continuous=False))) == len(needed)


def test_presets_are_found_by_the_id_after_a_module_and_by_families():
    def row(name: str, algorithm: str = "ppo") -> Any:
        return configure(name, algorithm, is_continuous=False)

    assert row("some_module:MountainCar-v0").preset == row("MountainCar-v0").preset != None  # noqa: E711
    assert row("MiniGrid-FourRooms-v0").steps == 5_000_000 and row("MiniGrid-Unlock-v0").steps == 100_000
    assert row("minigrid:MiniGrid-Unlock-v0").ignore_observation == ("mission",)
    assert row("vector:MiniGrid-Unlock-v0").preset == row("MiniGrid-Unlock-v0").preset
    assert row("of_another_library:MiniGrid-Unlock").preset is None, "a family belongs to its package"
    other = row("MiniGrid-Unlock-v0", "gae")
    assert other.ignore_observation == ("mission",) and other.epochs == 1, "tuned for PPO, but usable with all rungs"
    assert command_of(other, is_continuous=False) == "upslope train MiniGrid-Unlock-v0 --algorithm gae"
    assert row("CartPole-v1", "gae").preset is None


def test_what_the_user_says_goes_before_the_preset():
    def made(**settings: Any) -> Any:
        return configure("ALE/Pong-v5", is_continuous=False, **settings)

    assert made(env_kwargs={"mode": 1}).env_kwargs == {"frameskip": 1, "mode": 1}
    assert made(env_kwargs={"frameskip": 4}).env_kwargs == {"frameskip": 4}
    assert made(wrappers=("ResizeObservation",)).wrappers == ("ResizeObservation",)
    assert made(use_preset=False).wrappers == () and made().clip_rewards == 1
    own = configure("MiniGrid-Unlock-v0", is_continuous=False, wrappers=("minigrid.wrappers:FlatObsWrapper",))
    assert own.ignore_observation == (), "a wrapper may remove this key"


def test_a_preset_leaves_out_what_no_network_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    row = {"source": "a table@1", "making": {"ignore_observation": ["mission"]}, "settings": SMALL}
    monkeypatch.setitem(presets(), "Told-*", row)
    gymnasium.register("Told-Walk-v0", entry_point=Told, max_episode_steps=5)
    try:
        run = upslope.train("Told-Walk-v0", folder=tmp_path, name="run")
        assert "preset: a table@1, with --ignore-observation mission; --no-preset" in capsys.readouterr().out
        assert upslope.evaluate(run.path, episodes=2)["stochastic"].lengths.max() <= 5
        assert upslope.check("Told-Walk-v0").worst != "error"
        assert prepare("Told-Walk-v0", "a2c", settings={})[0].ignore_observation == ("mission",)
        with pytest.raises(UpslopeError, match="mission"):
            prepare("Told-Walk-v0", preset=False, settings={})
    finally:
        gymnasium.registry.pop("Told-Walk-v0")


def test_clipped_rewards_are_the_learners_alone(tmp_path: Path):
    """Rewards of ±100 that are clipped to ±1 train bit for bit like rewards of ±1, but reported returns stay 100 times
    as large."""
    same: dict[str, Any] = {**SMALL, "preset": False, "folder": tmp_path, "quiet": True, "max_episode_steps": 6}
    small = upslope.train(Paid, name="small", **same)
    large = upslope.train(Paid, name="large", clip_rewards=1, env_kwargs={"size": 100.0}, **same)
    assert np.array_equal(small.returns * 100, large.returns)
    for x, y in zip(parameters(small), parameters(large), strict=True):
        assert np.array_equal(x, y)
    evaluated = upslope.evaluate(large.path, episodes=2)["stochastic"].returns
    assert np.array_equal(evaluated, upslope.evaluate(small.path, episodes=2)["stochastic"].returns * 100)


def parameters(run: Any) -> list[Any]:
    """Return the model's arrays in a run's last checkpoint."""
    import jax

    return jax.tree.leaves(run.load(checkpoint="last").agent.model)


class Parts(Walk):
    """A walk with two reward components."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, np.array([reward, 3.0]), *rest


def test_rewards_of_several_numbers_are_weighed_by_a_wrapper():
    made: Any = make(Parts, wrappers=('WeightedReward:{"weights": [2, 0.5]}',))
    env, plain = made.create(), Parts()
    env.reset(seed=1), plain.reset(seed=1)
    answer, parts = env.step(1), plain.step(1)[1]
    assert answer[1] == 2 * parts[0] + 1.5 and np.array_equal(answer[4]["reward_parts"], parts)
    other: Any = make(Parts, wrappers=('WeightedReward:{"weights": [1]}',))
    env = other.create()
    env.reset(seed=1)
    with pytest.raises(UpslopeError, match="has 1 weights"):
        env.step(1)
    found = [one for one in upslope.check(Parts).checks if one.status == "error"]
    assert any('WeightedReward:{"weights": [1, 1]}' in one.remedy for one in found)
