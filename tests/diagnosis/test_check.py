"""upslope check: each fault of an environment is found by the check that is for it, and sound ones pass."""

import json
from typing import ClassVar

import numpy as np
import pytest
from gymnasium import spaces
from user_environments import OwnRandomness, Spaced, Walk, dictionary

import upslope
from upslope.cli.main import run as run_command


class Leaks(Walk):
    """Goes on with something from the episode before."""

    def __init__(self):
        super().__init__()
        self.age = 0

    def step(self, action):
        self.age += 1
        observation, reward, *rest = super().step(action)
        return observation, reward + 0.001 * self.age, *rest


class Shares(Walk):
    """All instances move one another."""

    wind: ClassVar[list[float]] = [0.0]

    def reset(self, **options):
        if not hasattr(self, "mine"):
            self.mine = Shares.wind
        Shares.wind[0] = 0.0
        return super().reset(**options)

    def step(self, action):
        Shares.wind[0] += 0.01
        self.position += Shares.wind[0] * 0.1
        return super().step(action)


class Deaf(Walk):
    """Does what it likes."""

    def step(self, action):
        return super().step(1)


class Liar(Walk):
    """Its observations are outside its space."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(-0.01, 0.01, (2,), np.float32)


class Divides(Walk):
    """Returns nan now and then."""

    def observe(self):
        return np.array([np.nan if self.steps == 3 else self.position, 0.0], np.float32)


class Endless(Walk):
    """Never ends."""

    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        self.position = np.clip(self.position, -1, 1)
        return observation, reward, False, truncated, info


class Clockwork(Walk):
    """Terminates at a time limit."""

    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, self.steps >= 30, truncated, info


class Huge(Walk):
    """Observes and pays in thousands."""

    def observe(self):
        return np.array([1000 * self.position, self.steps / 10], np.float32)

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, 1000 * reward, *rest


class Stingy(Walk):
    """Pays nothing."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, 0.0, *rest


class Breaks(Walk):
    """Raises."""

    def step(self, action):
        raise RuntimeError("no licence")


FAULTS = [
    (OwnRandomness, "repeats itself", "error"),
    (Leaks, "nothing leaks through reset", "error"),
    (Shares, "instances are independent", "error"),
    (Deaf, "actions matter", "error"),
    (Liar, "observations in their space", "warning"),
    (Divides, "observations", "error"),
    (Endless, "episodes end", "warning"),
    (Clockwork, "episodes end", "warning"),
    (Huge, "observation scale", "warning"),
    (Huge, "rewards", "warning"),
    (Stingy, "rewards", "warning"),
    (Breaks, "random actions", "error"),
    (dictionary, "observation space", "error"),
]


@pytest.mark.parametrize(("environment", "name", "status"), FAULTS)
def test_a_fault_is_found_by_its_check(environment, name, status):
    found = upslope.check(environment)
    by_name = {check.name: check for check in found.checks}
    assert by_name[name].status == status, by_name
    assert by_name[name].found and by_name[name].remedy


@pytest.mark.parametrize("environment", [Walk, "CartPole-v1", "Pendulum-v1", "jax:CartPole-v1", "jax:Pendulum-v1"])
def test_a_sound_environment_has_no_error_and_a_line_to_begin_with(environment):
    found = upslope.check(environment)
    assert [c for c in found.checks if c.status == "error"] == []
    assert found.command.startswith("upslope train") and found.command.endswith("--seeds 5")


def test_the_proposal_follows_from_what_was_found():
    assert "--normalize-observations" in upslope.check(Huge).command
    assert "--max-episode-steps 1000" in upslope.check(Endless).command


def test_a_box_of_actions_without_bounds_is_named():
    endless = lambda: Spaced(action_space=spaces.Box(-np.inf, np.inf, (2,), np.float32))  # noqa: E731 - one expression with a name
    by_name = {check.name: check for check in upslope.check(endless).checks}
    assert by_name["action range"].status == "warning"


def test_the_command_says_it_in_its_exit_status(capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(["check", "user_environments:OwnRandomness", "--json"])
    assert stop.value.code == 1 and json.loads(capsys.readouterr().out)["worst"] == "error"
    with pytest.raises(SystemExit) as stop:
        run_command(["check", "user_environments:Walk"])
    words = capsys.readouterr().out
    assert stop.value.code == 0 and "begin with:" in words and "upslope train user_environments:Walk" in words
