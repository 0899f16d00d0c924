"""Small pictures of an episode: of every state in which the agent acted, or of every second, fourth, … such state."""

import io
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np

from upslope.config.config import Config
from upslope.core.messages import COMPILED_PREFIX
from upslope.core.their_folder import TheirFolder
from upslope.core.types import Rollout
from upslope.environments.host import draw_without_screen
from upslope.environments.registry import AnyEnvironment, HostEnvironment
from upslope.environments.tabular import Tabular
from upslope.errors import UpslopeError

MAX_PICTURES = 200
"""When there are more pictures than this, every other one is dropped."""
MAX_SIDE = 320
"""Length of a picture's longer side in pixels."""
QUALITY = 75
"""WebP quality, 0 to 100."""
CELL = 28
"""Size of a finite environment's cell in pixels."""
WALL, FLOOR, END, HERE = (120, 120, 120), (238, 238, 238), (0, 158, 115), (0, 114, 178)

TWIN_STATES: dict[str, Callable[[np.ndarray], Any]] = {
    "CartPole-v1": lambda o: o,
    "MountainCar-v0": lambda o: o,
    "MountainCarContinuous-v0": lambda o: o,
    "Pendulum-v1": lambda o: np.array([np.arctan2(o[1], o[0]), o[2]]),
    "Acrobot-v1": lambda o: np.array([np.arctan2(o[1], o[0]), np.arctan2(o[3], o[2]), o[4], o[5]]),
}
"""Maps a compiled environment to a function from an observation to the state of its Gymnasium twin."""


class Pictures:
    """WebP pictures of steps 0, k, 2k … of an episode, with the smallest k that leaves at most `MAX_PICTURES`."""

    def __init__(self) -> None:
        self.stride, self.steps, self.images = 1, [], []
        self.note = ""
        """Why there are no pictures."""

    def add(self, step: int, draw: Callable[[], Any]) -> None:
        """Draw this step if it is a multiple of the stride."""
        if self.note or step % self.stride:
            return
        try:
            picture = draw()
        except Exception as error:  # the credit of an episode is useful even without pictures
            self.note = f"the environment could not be drawn: {error}"
            return
        if not isinstance(picture, np.ndarray) or picture.ndim != 3:
            self.note = f'the environment draws no picture (render_mode="rgb_array" gave {type(picture).__name__})'
            return
        self.steps.append(step)
        self.images.append(encode(picture))
        if len(self.steps) > MAX_PICTURES:
            self.stride, self.steps, self.images = 2 * self.stride, self.steps[::2], self.images[::2]


class Watched(gymnasium.Wrapper):
    """Wrapper that takes pictures of an environment's first episode while it is played."""

    def __init__(self, env: gymnasium.Env, pictures: Pictures):
        super().__init__(env)
        follow(env)
        self.pictures, self.step_number = pictures, 0

    def reset(self, **options: Any) -> Any:
        answer = super().reset(**options)
        self.pictures.add(0, self.render)
        return answer

    def step(self, action: Any) -> Any:
        answer = super().step(action)
        self.step_number += 1
        self.pictures.add(self.step_number, self.render)
        return answer


def follow(env: gymnasium.Env) -> None:
    """Let MuJoCo's camera follow the body if the model has a tracking camera."""
    inner: Any = env.unwrapped
    if hasattr(inner, "mujoco_renderer"):
        cameras = [inner.model.camera(k).name for k in range(inner.model.ncam)]
        if "track" in cameras:
            inner.mujoco_renderer.camera_id = cameras.index("track")


def watched(environment: HostEnvironment, pictures: Pictures) -> HostEnvironment:
    """Wrap an environment so that it takes pictures while it is played; return it unchanged if it cannot render."""
    if not can_encode(pictures):
        return environment
    try:
        with TheirFolder():
            drawn = environment.drawing()
    except UpslopeError as error:
        pictures.note = f"the environment could not be created for rendering: {error}"
        return environment
    return replace(drawn, create=lambda: Watched(drawn.create(), pictures), batch=None)


def draw_compiled(config: Config, environment: AnyEnvironment, rollout: Rollout, pictures: Pictures) -> None:
    """Draw an episode [T, 1] of a compiled environment from its observations.

    An environment with a Gymnasium twin is rendered by setting the twin's state; a finite one is drawn as cells.
    """
    name = config.environment.removeprefix(COMPILED_PREFIX)
    if not can_encode(pictures):
        return
    if isinstance(environment, Tabular):
        draw_cells(cells_of(name, config, environment), environment, rollout, pictures)
    elif name in TWIN_STATES:
        draw_twin(name, config, rollout, pictures)
    else:
        pictures.note = f"{config.environment} has nothing to draw"


def draw_twin(name: str, config: Config, rollout: Rollout, pictures: Pictures) -> None:
    """Set the Gymnasium twin to each state of the episode, and render it."""
    draw_without_screen()
    try:
        env = gymnasium.make(name, render_mode="rgb_array", **config.env_kwargs)
        with closing(env):
            env.reset(seed=0)
            twin: Any = env.unwrapped
            for step, observation in enumerate(np.asarray(rollout.observation)[:, 0]):
                twin.state = TWIN_STATES[name](observation.astype(np.float64))
                if name == "Pendulum-v1":
                    # Pendulum draws the torque of the previous step as an arrow, so it needs that torque as well.
                    twin.last_u = None if step == 0 else float(np.clip(rollout.action[step - 1, 0, 0], -2, 2))
                pictures.add(step, env.render)
    except (gymnasium.error.Error, ImportError, AttributeError) as error:
        pictures.note = f"Gymnasium's {name} could not draw: {error}"


def cells_of(name: str, config: Config, environment: Tabular) -> np.ndarray:
    """The layout of a finite environment's observations in a picture [rows, columns]."""
    count = int(environment.observation_of.max()) + 1
    if name == "GridWorld-v0":
        return np.arange(count).reshape(-1, config.env_kwargs.get("columns", 4))
    return np.arange(count).reshape(-1, 2).T if name == "Key-v0" else np.arange(count)[None]


def draw_cells(cells: np.ndarray, environment: Tabular, rollout: Rollout, pictures: Pictures) -> None:
    """Draw the agent's cell, the cells where an episode ends, and the others."""
    if cells.size == 1:
        pictures.note = "all states of this environment look alike to the agent"
        return
    ends = np.isin(cells, environment.observation_of[environment.terminal])
    for step, here in enumerate(np.asarray(rollout.observation)[:, 0].tolist()):
        colours = np.where(ends[..., None], END, FLOOR)
        colours[cells == here] = HERE
        picture = colours.repeat(CELL, axis=0).repeat(CELL, axis=1).astype(np.uint8)
        picture[::CELL], picture[:, ::CELL] = WALL, WALL
        pictures.add(step, lambda picture=picture: picture)


def can_encode(pictures: Pictures) -> bool:
    """Whether Pillow is installed; if it is not, set the note of `pictures`."""
    try:
        import PIL.Image  # noqa: F401 - only whether it can be imported
    except ImportError:
        pictures.note = 'pictures need Pillow: pip install "upslope[report]"'
    return not pictures.note


def encode(picture: np.ndarray, *, is_exact: bool = False) -> bytes:
    """Encode RGB [height, width, 3] as WebP, with a longer side of at most `MAX_SIDE`; losslessly if `is_exact`."""
    from PIL import Image

    image, buffer = Image.fromarray(picture.astype(np.uint8)), io.BytesIO()
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    image.save(buffer, "WEBP", quality=QUALITY, lossless=is_exact)
    return buffer.getvalue()
