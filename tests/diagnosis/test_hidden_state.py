"""`upslope check` proposes a memory only if the past contains information that the current observation lacks."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from user_environments import Pictures, Walk

import upslope
from upslope.diagnosis.check import long_trial
from upslope.diagnosis.hidden_state import memory_test, resolved
from upslope.environments.registry import make
from upslope.environments.tabular import Tabular, gridworld
from upslope.models.encoders import encoder_of


def suspicion(environment, *ignored):
    made = make(environment, ignore_observation=ignored)
    trial = long_trial(made, made.max_episode_steps)
    return memory_test(trial, encoder_of(made.observation_space, ""), made.action_space)


FULL = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Taxi-v4"]
FULL += ["FrozenLake-v1", "Blackjack-v1", "jax:Key-v0", lambda: gridworld(slip=0.3), Walk, Pictures]
FULL += [pytest.param(name, marks=pytest.mark.weekly) for name in ("Pendulum-v1", "MountainCarContinuous-v0")]


@pytest.mark.parametrize("environment", FULL)
def test_no_memory_is_proposed_where_the_observation_is_the_state(environment):
    found = suspicion(environment)
    assert found.is_decided and not found.is_hidden, found.words


def cue_that_vanishes(length=4):
    """Return a corridor in which one of two cues is visible only at the start, and the cued action pays at the end."""
    place, cue = np.divmod(np.arange(2 * (length + 1)), 2)
    successor = np.minimum(place + 1, length) * 2 + cue
    transition = np.eye(len(place))[np.stack([successor, successor], axis=-1)]
    reward = np.zeros_like(transition)
    for k in np.flatnonzero(place == length - 1):
        reward[k, cue[k]] = 1.0
    start = np.where(place == 0, 0.5, 0.0)
    return Tabular(transition, reward, start, place == length, np.where(place == 0, cue, place + 1), length)


class Frames(gymnasium.ObservationWrapper):
    """Shows CartPole as single frames with a bright pole, from which its motion cannot be seen."""

    def __init__(self):
        super().__init__(gymnasium.make("CartPole-v1"))
        self.observation_space = spaces.Box(0, 255, (40, 60), np.uint8)

    def observation(self, observation):
        frame = np.zeros((40, 60), np.uint8)
        along = np.arange(20)
        column = np.clip(30 + 20 * observation[0] + along * np.sin(observation[2]), 0, 58)
        left, share = column.astype(int), column % 1
        frame[30 - along, left] = 255 * (1 - share)
        frame[30 - along, left + 1] = 255 * share
        return frame


HIDDEN = [
    ("CartPole-v1", ("1", "3"), "the step before"),
    ("jax:Pendulum-v1", ("2",), "the step before"),
    ("jax:ShortCorridor-v0", (), "the step before"),
    (cue_that_vanishes, (), "the first observation of the episode"),
    pytest.param(Frames, (), "the step before", marks=pytest.mark.weekly),
]


@pytest.mark.parametrize(("environment", "ignored", "past"), HIDDEN)
def test_what_the_past_tells_is_found(environment, ignored, past):
    found = suspicion(environment, *ignored)
    assert found.is_hidden and past in found.words, found.words


def test_the_share_that_a_past_resolves_is_that_of_a_hand_worked_case():
    past = np.tile([0, 0, 1, 1], 100)
    chance = np.tile([0, 1, 0, 1], 100)
    group = np.zeros(400, int)
    assert resolved(group, past, past) == pytest.approx(1.0, abs=0.01)
    assert resolved(group, past, chance) == 0.0
    assert resolved(np.arange(400), past, past) == 0.0  # no group recurs
    # The past determines one of the two groups, and chance the other. Each has entropy ln 2, so half is resolved.
    halves = np.repeat([0, 1], 200)
    assert resolved(halves, past, np.where(halves == 0, past, chance)) == pytest.approx(0.5, abs=0.01)


def test_too_few_steps_decide_nothing():
    made = make(Walk)
    trial = long_trial(made, 3)
    trial.lengths, trial.terminated, trial.unfinished = trial.lengths[:5], trial.terminated[:5], 0
    assert not memory_test(trial, encoder_of(made.observation_space, ""), made.action_space).is_decided


def test_the_line_proposes_a_memory_as_a_suspicion():
    found = upslope.check("CartPole-v1", ignore_observation=("1", "3"))
    assert found.command == (
        "upslope train CartPole-v1 --seeds 5 --ignore-observation 1 --ignore-observation 3 --memory gru"
    )
    why = {choice.what: choice.why for choice in found.choices}
    assert "suspicion" in why["--memory gru"] and "the step before" in why["--memory gru"]
    assert "benchmarks/cartpole_seeds.py" in why["preset default"]
    (line,) = [check for check in found.checks if check.name == "the observation determines the state"]
    assert line.status == "warning" and "compare" in line.remedy
