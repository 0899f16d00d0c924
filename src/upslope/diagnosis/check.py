"""A quick self-test of an environment, to run before training on it.

Every check is a function that takes an `Examined` environment and yields `Check`s. To add one, write it in `checks.py`
and add it to `CHECKS`. A check that cannot decide reports that it was skipped, never that it passed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from upslope.config.prepare import made_for
from upslope.core import html
from upslope.core.messages import told
from upslope.diagnosis.check_results import Check, Choice, Status
from upslope.diagnosis.checks import (  # fmt: skip
    SECONDS,
    STEPS,
    Examined,
    of_actions,
    of_ends,
    of_gymnasium,
    of_memory,
    of_observations,
    of_repetition,
    of_returns,
    of_rewards,
    of_spaces,
    of_speed,
)
from upslope.diagnosis.contract import first_contact
from upslope.diagnosis.proposal import choices, command
from upslope.diagnosis.trials import Trial, actions_of, play, player_of
from upslope.environments.base import BrokenEnvironmentError
from upslope.environments.closing import close_all
from upslope.environments.registry import AnyEnvironment, label, make, name_of
from upslope.errors import STOPS, UpslopeError
from upslope.learning.devices import one_blas_thread
from upslope.models.encoders import unreadable

CHECKS: tuple[Callable[[Examined], Iterator[Check]], ...] = (
    of_gymnasium, of_repetition, of_observations, of_memory, of_rewards, of_actions, of_ends, of_speed, of_returns,
)  # fmt: skip


@dataclass(frozen=True)
class Checked:
    """The results of all checks of an environment, and the command that starts training."""

    environment: str
    checks: tuple[Check, ...]
    command: str
    choices: tuple[Choice, ...] = ()
    """The choices in the command, and those that upslope makes automatically, each with its reason."""

    @property
    def worst(self) -> Status:
        """The most severe status."""
        found = {check.status for check in self.checks}
        return "error" if "error" in found else "warning" if "warning" in found else "ok"

    def _repr_html_(self) -> str:
        """The checks and the command for a notebook."""
        columns = ("", "check", "found", "what to do")
        rows = [(check.status, check.name, check.found, check.remedy) for check in self.checks]
        choices = [f"{choice.what}: {choice.why}" for choice in self.choices]
        start = html.paragraph("Start with:") + html.paragraph(self.command, "pre")
        return html.table(self.environment, columns, rows) + start + html.items(choices)

    def to_json(self) -> dict[str, Any]:
        """Convert to the output of `--json`."""
        return asdict(self) | {"worst": self.worst}


def check(
    environment: Any,
    *,
    env_kwargs: dict[str, Any] | None = None,
    max_episode_steps: int | None = None,
    wrappers: Sequence[str] = (),
    ignore_observation: Sequence[str] = (),
) -> Checked:
    """Test an environment: a Gymnasium id, `module:Name`, `jax:Name`, a callable, or a compiled environment.

    The environment is reset and stepped as in training, with the same reset seeds and with actions of the same form and
    dtype.

    Raises:
        UpslopeError: there is no such environment.
    """
    name = label(environment)
    settings: dict[str, Any] = {"env_kwargs": env_kwargs or {}, "max_episode_steps": max_episode_steps}
    settings |= {"wrappers": tuple(wrappers), "ignore_observation": tuple(ignore_observation)}
    try:
        made = made_with_preset(environment, settings)
    except BrokenEnvironmentError as error:
        found, _, remedy = str(error).partition(". ")
        remedy = remedy or "Correct the environment."
        return Checked(name, (Check("environment", "error", found.removesuffix("."), remedy),), "")
    made, unread = without_unread(environment, made, settings)
    limit = max_episode_steps or made.max_episode_steps
    checks = [*of_spaces(name, made, unread)]
    if has_error(checks):
        return Checked(name, tuple(checks), "")
    checks += first_contact(made, limit)
    if has_error(checks):
        return Checked(name, tuple(checks), "")
    try:
        with one_blas_thread():  # as in training; on busy cores, more threads mostly wait for each other
            examined = Examined(name, made, limit, long_trial(made, limit))
            for one in CHECKS:
                checks += one(examined)
    except STOPS:
        raise
    except BaseException as error:
        remedy = "Correct the environment: it failed under random actions."
        words = str(error) if isinstance(error, UpslopeError) else f"raised {told(error)}"
        checks.append(Check("random actions", "error", words, remedy))
        return Checked(name, tuple(checks), "")
    return Checked(name, tuple(checks), command(examined, settings), tuple(choices(examined, settings, unread)))


def made_with_preset(environment: Any, settings: dict[str, Any]) -> AnyEnvironment:
    """The environment as training with its preset would create it."""
    return make(environment, **made_for(label(environment), {key: value for key, value in settings.items() if value}))


def without_unread(
    environment: Any, made: AnyEnvironment, settings: dict[str, Any]
) -> tuple[AnyEnvironment, list[tuple[str, Any]]]:
    """Remove the parts of the observations that no network can read. Return the environment and the removed parts with
    their keys, and add these keys to `settings`. If no part would remain, return the environment unchanged."""
    unread = list(unreadable(made.observation_space, ""))
    keys = tuple(key for key, _ in unread)
    if not unread or keys == ("",):
        return made, []
    ignored: dict[str, Any] = {"ignore_observation": (*settings["ignore_observation"], *keys)}
    try:
        made = made_with_preset(environment, settings | ignored)
    except UpslopeError:
        return made, []
    settings |= ignored
    return made, unread


def has_error(checks: list[Check]) -> bool:
    """Whether there is an error, which makes further checks pointless."""
    return any(check.status == "error" for check in checks)


def long_trial(environment: AnyEnvironment, limit: int | None) -> Trial:
    """Play random actions for a few seconds."""
    player = player_of(environment, limit)
    try:
        return play(player, actions_of(environment, 0), STEPS, SECONDS)
    finally:
        close_all(name_of(environment), [player], say=lambda words: None)  # closing was checked earlier
