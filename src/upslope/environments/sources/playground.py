"""MuJoCo Playground: control suite and robots (Zakka et al. 2025, https://github.com/google-deepmind/mujoco_playground).

An environment's `done` means termination. The time limit is `episode_length` in its config, counted in physics steps,
and each action lasts `action_repeat` of these. Only the library's training wrapper reads these two. Here the limit is
upslope's `max_episode_steps`. The physics engine is MJX in JAX unless `impl` selects another.
"""

from collections.abc import Iterable
from math import ceil
from typing import Any

from upslope.environments.sources.brax import Brax
from upslope.environments.sources.wrapping import module, source_of


def ids() -> Iterable[str]:
    """The registered names."""
    return module("mujoco_playground").registry.ALL_ENVS


def create(name: str, env_kwargs: dict[str, Any]) -> Brax:
    """Create an environment. The arguments override its config; nested fields are written as
    `reward_config.scales.alive`."""
    registry = module("mujoco_playground").registry
    config = registry.get_default_config(name)
    config.update_from_flattened_dict({"impl": "jax"} | env_kwargs)
    repeat = int(config.get("action_repeat", 1))
    return Brax(registry.load(name, config=config), ceil(config.episode_length / repeat), repeat)


SOURCE = source_of("playground", ids, create)
