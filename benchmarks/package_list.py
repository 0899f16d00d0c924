"""The environments from third-party packages on which `packages.py` trains.

The list was chosen and committed before any of the environments was tried. It covers dictionary, image and text
observations, goals, robots, games and vector rewards. An entry contains what a user would type.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """An environment, and the packages that it needs in addition to upslope."""

    environment: str
    install: tuple[str, ...]
    steps: int = 20_000
    """The number of training steps, reduced if the environment is slow or its observations are images."""
    flags: tuple[str, ...] = ()
    """Flags that the environment requires."""
    no_dependencies: tuple[str, ...] = ()
    """Packages that are installed without their dependencies, because they pin versions that are too old for
    upslope."""
    remedy: tuple[str, ...] = ()
    """Flags that an error message suggests. If the command is refused, it is tried again with them."""


ENTRIES = (
    Entry("MiniGrid-DoorKey-5x5-v0", ("minigrid",)),
    Entry("BabyAI-GoToLocal-v0", ("minigrid",), steps=6_000),
    Entry("ALE/Pong-v5", ("ale-py", "opencv-python-headless"), steps=2_000),
    Entry("CarRacing-v3", ("gymnasium[box2d]",), steps=4_000),
    Entry("FetchReach-v4", ("gymnasium-robotics", "mujoco<3.9"), steps=8_000),
    Entry("PointMaze_UMaze-v3", ("gymnasium-robotics", "mujoco<3.9"), steps=6_000),
    Entry("highway-v0", ("highway-env",), steps=2_000),
    Entry("parking-v0", ("highway-env",), steps=4_000),
    Entry(
        "PyFlyt/QuadX-Hover-v4",
        ("pybullet", "numba", "loguru", "pettingzoo", "pyyaml"),
        steps=6_000,
        no_dependencies=("pyflyt",),
    ),
    Entry("Meta-World/MT1", ("metaworld", "packaging"), flags=("--env-kwargs", '{"env_name": "reach-v3"}')),
    Entry("mo-mountaincar-v0", ("mo-gymnasium",), remedy=("--wrapper", 'WeightedReward:{"weights": [1, 1, 1]}')),
    Entry("dm_control/cartpole-balance-v0", ("shimmy[dm-control]", "packaging", "mujoco<4"), steps=8_000),
    Entry("stocks-v0", ("gym-anytrading",)),
    Entry(
        "SafetyPointGoal1-v0", ("gymnasium-robotics", "mujoco<3", "xmltodict"), no_dependencies=("safety-gymnasium",)
    ),
    Entry("PandaReach-v3", ("panda-gym",), steps=6_000),
    Entry("gym_pusht/PushT-v0", ("gym-pusht",), steps=4_000),
    Entry("gym_xarm/XarmLift-v0", ("gym-xarm",)),
    Entry("FlappyBird-v0", ("flappy-bird-gymnasium",)),
    Entry(
        "tetris_gymnasium/Tetris",
        ("chex", "opencv-python-headless"),
        steps=4_000,
        no_dependencies=("tetris-gymnasium",),
    ),
    Entry("gymnasium_2048/TwentyFortyEight-v0", ("gymnasium-2048",)),
    Entry("VizdoomBasic-v1", ("vizdoom",), steps=2_000),
    Entry("NetHackScore-v0", ("nle>=1.3",), steps=2_000),
    Entry("popgym-RepeatPreviousEasy-v0", ("popgym",)),
    Entry("HopperBulletEnv-v0", ("pybullet-envs-gymnasium",), steps=10_000),
    Entry("Vampire-v0", ("gym-saturation",)),
)
