"""Facts about other JAX environment libraries, which can be read without importing these libraries.

The code that wraps each library is `sources/<prefix>.py`. This file does not use JAX, so listing names, checking trust
and writing messages do not need to import it.
"""

from dataclasses import dataclass

from upslope.core.messages import COMPILED_PREFIX


@dataclass(frozen=True)
class Library:
    """A library whose environment names share a prefix."""

    prefix: str
    """The prefix of names, without its colon; also the name of upslope's extra that installs the library."""
    package: str
    """The package to import."""
    example: str
    """The id of one environment."""
    meaning: str

    @property
    def install(self) -> str:
        """The command that installs the library."""
        return f'pip install "upslope[{self.prefix}]"'


LIBRARIES: tuple[Library, ...] = (
    Library("gymnax", "gymnax", "Breakout-MinAtar", "classic control, MinAtar, bsuite and small mazes"),
    Library("xminigrid", "xminigrid", "MiniGrid-DoorKey-5x5", "grid worlds of MiniGrid and XLand"),
    Library("jumanji", "jumanji", "Snake-v1", "puzzles, packing and routing"),
    Library("pgx", "pgx", "2048", "2048 and MinAtar with sticky actions"),
    Library("navix", "navix", "Navix-DoorKey-5x5-v0", "grid worlds of MiniGrid, also as pixels"),
    Library("craftax", "craftax", "Craftax-Symbolic-v1", "an open world to explore, craft and fight in"),
    Library("brax", "brax", "inverted_pendulum", "robots with Brax's physics"),
    Library("playground", "mujoco_playground", "CartpoleBalance", "the control suite and robots with MuJoCo's physics"),
)
"""The libraries, in the order of `upslope list`."""


PREFIXES = (COMPILED_PREFIX, *(f"{library.prefix}:" for library in LIBRARIES))
"""The prefixes of all compiled environments."""


def without_prefix(environment: str) -> str:
    """An environment's name without the prefix of compiled environments, if it has one."""
    return next((environment.removeprefix(one) for one in PREFIXES if environment.startswith(one)), environment)
