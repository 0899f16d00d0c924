"""A self-test of an environment, in seconds, before anything is trained on it.

Every check is a function of an `Examined` environment that yields `Check`s; to add one, write it in `checks.py` and put
it into `CHECKS`. What cannot be found out is said to be skipped, never passed.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from upslope.config.config import preset_of
from upslope.diagnosis.checks import (  # fmt: skip
    SECONDS,
    STEPS,
    Check,
    Examined,
    Status,
    of_actions,
    of_ends,
    of_gymnasium,
    of_observations,
    of_repetition,
    of_returns,
    of_rewards,
    of_spaces,
    of_speed,
    wants_normalising,
)
from upslope.diagnosis.trials import actions_of, play, player_of
from upslope.environments.registry import make, name_of

CHECKS: tuple[Callable[[Examined], Iterator[Check]], ...] = (
    of_gymnasium, of_repetition, of_observations, of_rewards, of_actions, of_ends, of_speed, of_returns,
)  # fmt: skip


@dataclass(frozen=True)
class Checked:
    """All checks of an environment, and the line to begin training with."""

    environment: str
    checks: tuple[Check, ...]
    command: str

    @property
    def worst(self) -> Status:
        """The gravest status."""
        found = {check.status for check in self.checks}
        return "error" if "error" in found else "warning" if "warning" in found else "ok"

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"worst": self.worst}


def check(
    environment: Any, *, env_kwargs: dict[str, Any] | None = None, max_episode_steps: int | None = None
) -> Checked:
    """Try an environment out: a Gymnasium id, `module:Id`, `jax:Name`, a callable, or a compiled world.

    Raises:
        UpslopeError: it cannot be made at all.
    """
    world = make(environment, env_kwargs, max_episode_steps)
    name = environment if isinstance(environment, str) else name_of(environment)
    limit = max_episode_steps or world.max_episode_steps
    checks = [*of_spaces(name, world)]
    if any(c.status == "error" for c in checks):
        return Checked(name, tuple(checks), "")
    try:
        player = player_of(world, limit)
        trial = play(player, actions_of(world, 0), STEPS, SECONDS)
        player.close()
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        checks.append(
            Check("random actions", "error", found, "Correct the environment: it failed under random actions.")
        )
        return Checked(name, tuple(checks), "")
    examined = Examined(name, world, limit, trial)
    for one in CHECKS:
        checks += one(examined)
    return Checked(name, tuple(checks), proposal(examined))


def proposal(e: Examined) -> str:
    """The line to begin training with."""
    words = ["upslope", "train", e.name, "--seeds", "5"]
    if preset_of(e.name, "ppo") is None:
        if wants_normalising(e):
            words.append("--normalize-observations")
        if e.limit is None and not e.trial.lengths:
            words += ["--max-episode-steps", "1000"]
    return " ".join(words)
