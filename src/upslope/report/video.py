"""Film an episode (extra `video`)."""

import warnings
from importlib.util import find_spec
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np

from upslope.config.task import made_with
from upslope.config.trust import LEARNING, require
from upslope.core.files import AnyPath, require_folder
from upslope.core.messages import COMPILED_PREFIX
from upslope.core.their_folder import TheirFolder
from upslope.environments.closing import close_all
from upslope.environments.registry import make
from upslope.errors import UpslopeError
from upslope.runs.directory import EVALUATION_LIMIT, RunDirectory, run_path
from upslope.runs.evaluation import with_limit
from upslope.runs.policy import Which, load


def film(
    run: AnyPath,
    path: str | Path,
    checkpoint: Which = "last",
    environment_seed: int = 0,
    max_episode_steps: int | None = None,
    trust: bool = False,
) -> Path:
    """Film one deterministic episode of the run's first seed.

    A compiled environment is filmed as its Gymnasium twin. `max_episode_steps` and `trust` are as in `evaluate`.

    Raises:
        UpslopeError: imageio is missing, the file cannot be written, or the environment cannot render.
    """
    path = video_path(path)
    import imageio.v2 as imageio

    config = with_limit(RunDirectory(run).config(), max_episode_steps)
    require(config, run_path(run), trust=trust, given=LEARNING)
    name = config.environment.removeprefix(COMPILED_PREFIX)
    twin: Any = make(name, **made_with(vars(config)))
    if twin.is_compiled:
        raise UpslopeError(f"{config.environment} is compiled and has no Gymnasium twin, so it cannot be filmed.")
    with TheirFolder():
        drawing = twin.drawing()
    policy = load(run, seed=config.seed, checkpoint=checkpoint, trust=trust)
    frames: list[Any] = []
    with TheirFolder():
        env = drawing.create()
        try:
            observation, _ = env.reset(seed=environment_seed)
            for _ in range(config.max_episode_steps or drawing.max_episode_steps or EVALUATION_LIMIT):
                frames.append(frame_of(env.render(), name))
                observation, _, terminated, truncated, _ = env.step(policy(observation))
                if terminated or truncated:
                    break
        finally:
            close_all(name, [env])
    with warnings.catch_warnings():
        # JAX warns about every fork; this one only starts ffmpeg.
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        # Write to a temporary name first, so that a full disk does not leave a partial video.
        temporary = path.with_name(f".{path.stem[:200]}.{token_hex(4)}.mp4")
        try:
            imageio.mimwrite(temporary, frames, fps=env.metadata.get("render_fps", 30), macro_block_size=2)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def video_path(path: str | Path) -> Path:
    """The file to which a video is written. The file and the required packages are checked before an episode is
    played."""
    if find_spec("imageio") is None or find_spec("imageio_ffmpeg") is None:
        raise UpslopeError('Video needs imageio and ffmpeg: pip install "upslope[video]".')
    path = Path(path) if Path(path).suffix else Path(f"{path}.mp4")
    if path.suffix != ".mp4":
        raise UpslopeError(f"A video is an .mp4 file, but {path} has a different suffix. Choose another --video.")
    if path.exists():
        raise UpslopeError(f"{path} already exists and will not be overwritten. Choose another --video.")
    require_folder(path)
    return path


def frame_of(picture: object, name: str) -> np.ndarray:
    """Return the rendered picture; raise an error if it is not an array."""
    if not isinstance(picture, np.ndarray):
        raise UpslopeError(
            f'{name} cannot be filmed: render_mode="rgb_array" gave {type(picture).__name__}, not an array.'
        )
    return picture
