"""Well-known packages that register Gymnasium ids. With this table, an id alone is enough to import its package.

A name in the config.json of a run that is not trusted can import only these packages, just as it can refer to
registered ids. The table is fixed, and only installed packages are imported, never a module of the same name in the
current folder. Ids from these packages take the same arguments as registered ids. Training reports what was imported
and records its version.
"""

import importlib
import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from upslope.core.messages import told
from upslope.core.user_modules import without_current_folder
from upslope.errors import UpslopeError


@dataclass(frozen=True)
class Package:
    """A package whose import registers environments."""

    module: str
    """The module that registers them."""
    install: str
    """The arguments of `pip install`: the package, followed by dependencies that it does not declare, and by older
    versions of other packages if it needs them."""
    ids: str
    """A regular expression for the beginning of its ids."""

    @property
    def distribution(self) -> str:
        """The package's name without extras."""
        return self.install.split()[0].partition("[")[0]


PACKAGES = (
    Package("minigrid", "minigrid", "MiniGrid-|BabyAI-"),
    Package("ale_py", "ale-py opencv-python-headless", r"ALE/|\w+NoFrameskip-v\d$|\w+Deterministic-v\d$"),
    Package(
        "gymnasium_robotics",
        "gymnasium-robotics mujoco<3.9",
        "Fetch(Push|Reach|Slide|PickAndPlace)|Hand(Reach|Manipulate)|(Point|Ant)Maze_|AdroitHand|FrankaKitchen",
    ),
    Package(
        "highway_env",
        "highway-env",
        "(highway|highway-fast|merge|merge-generic|roundabout|roundabout-generic|intersection|exit|two-way|u-turn"
        "|lane-keeping)-(v|multi)|(parking|racetrack)-",
    ),
    Package("PyFlyt.gym_envs", "PyFlyt", "PyFlyt/"),
    Package("metaworld", "metaworld", "Meta-World/"),
    Package(
        "mo_gymnasium",
        "mo-gymnasium",
        "mo-|deep-sea-treasure|resource-gathering|fruit-tree|breakable-bottles|four-room|water-reservoir|minecart"
        "|fishwood",
    ),
    Package("shimmy", "shimmy[dm-control] packaging mujoco<4", "dm_control/"),
    Package("shimmy", "shimmy[bsuite]", "bsuite/"),
    Package("gym_anytrading", "gym-anytrading", "(stocks|forex)-v"),
    Package("safety_gymnasium", "safety-gymnasium", "Safety(Point|Car|Doggo|Racecar|Ant)"),
    Package("panda_gym", "panda-gym", "Panda(Flip|PickAndPlace|Push|Reach|Slide|Stack)"),
    Package("gym_pusht", "gym-pusht", "gym_pusht/"),
    Package("gym_xarm", "gym-xarm", "gym_xarm/"),
    Package("gym_aloha", "gym-aloha", "gym_aloha/"),
    Package("flappy_bird_gymnasium", "flappy-bird-gymnasium", "FlappyBird-"),
    Package("tetris_gymnasium.envs", "tetris-gymnasium", "tetris_gymnasium/"),
    Package("gymnasium_2048", "gymnasium-2048", "gymnasium_2048/"),
    Package("vizdoom.gymnasium_wrapper", "vizdoom", "Vizdoom"),
    Package("nle", "nle", "NetHack"),
    Package("minihack", "minihack", "MiniHack-"),
    Package("popgym", "popgym", "popgym-"),
    Package("pybullet_envs_gymnasium", "pybullet-envs-gymnasium", r"\w+BulletEnv-"),
    Package("gym_saturation", "gym-saturation", "(Vampire|iProver)-v"),
    Package("miniworld", "miniworld", "MiniWorld-"),
    Package("memory_gym", "memory-gym", "(Endless-)?(MortarMayhem|MysteryPath|SearingSpotlights)"),
    Package("gym_super_mario_bros", "gym-super-mario-bros", "SuperMarioBros"),
)
"""The packages whose ids are found without naming a module. To support another package, add a row."""

DISTRIBUTIONS = {"cv2": "opencv-python-headless", "OpenGL": "PyOpenGL", "yaml": "pyyaml", "PIL": "pillow"}
"""Module → the name of the package that pip installs, where the two differ."""


def package_of(environment: str) -> Package | None:
    """The well-known package that registers an id; None if there is none in the table."""
    return next((package for package in PACKAGES if re.match(package.ids, environment)), None)


def register(environment: str) -> None:
    """Import the well-known package that registers this id, unless the id is registered already.

    Raises:
        UpslopeError: the package is not installed, or cannot be imported.
    """
    import gymnasium  # not needed by callers that only look up an id's package, e.g. for help texts

    package = package_of(environment)
    if package is None or environment in gymnasium.registry:
        return
    try:
        with without_current_folder():
            importlib.import_module(package.module)
    except ModuleNotFoundError as error:
        top = package.module.partition(".")[0]
        if error.name in (top, package.module):
            raise UpslopeError(
                f"{environment} is registered by the package {package.distribution}, which is not installed. "
                f"Install it: pip install {quoted(package.install)}"
            ) from error
        raise UpslopeError(
            f"{environment} is registered by the package {package.distribution}, which cannot be imported: "
            f"{error}. {remedy_of(error)}"
        ) from error
    except Exception as error:
        raise UpslopeError(
            f"{environment} is registered by the package {package.distribution}, which cannot be imported: "
            f"{told(error)}. Its version and those of its dependencies may be incompatible: pip check"
        ) from error


def registered_version(environment: str) -> dict[str, str]:
    """The name and version of the well-known package that was imported for an id; empty if there is none."""
    package = package_of(environment.rpartition(":")[2])
    if package is None or package.module not in sys.modules:
        return {}
    try:
        return {package.distribution: version(package.distribution)}
    except PackageNotFoundError:
        return {package.distribution: "unknown"}


def remedy_of(error: ImportError) -> str:
    """How to install a missing module."""
    name = error.name or ""
    top = name.partition(".")[0]
    if not name:
        return "Install the package named above."
    if top != name and find_spec(top) is not None:
        found = version(top) if top == "gymnasium" else "installed"
        return (
            f"The {found} version of {top} has no {name}, so the package was written for a different one. "
            f"Look for a release that works with the version of {top} that upslope needs."
        )
    return f"Install it: pip install {DISTRIBUTIONS.get(top, top)}"


def quoted(install: str) -> str:
    """The arguments of `pip install`, quoted for a shell."""
    return " ".join(f'"{word}"' if set("[<>") & set(word) else word for word in install.split())


def fitting(environment: str) -> str:
    """The command that installs compatible versions, for a package that needs other packages; empty otherwise."""
    package = package_of(environment)
    if package is None or " " not in package.install:
        return ""
    return f" If versions are incompatible: pip install {quoted(package.install)}"
