"""`upslope check` finds each kind of fault with the check meant for it, and finds no fault in sound environments."""

import copy
import json
import re
from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from user_environments import CompiledPictures, Fenced, OwnRandomness, Pictures, Spaced, Told, Walk

import upslope
import upslope.diagnosis.check
from upslope.cli.main import run as run_command
from upslope.engines.columns import reset_seed
from upslope.models.heads import head_of


class Leaks(Walk):
    """Carries state over from the previous episode."""

    def __init__(self):
        super().__init__()
        self.age = 0

    def step(self, action):
        self.age += 1
        observation, reward, *rest = super().step(action)
        return observation, reward + 0.001 * self.age, *rest


class Shares(Walk):
    """Shares state among all instances, so they affect one another."""

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
    """Ignores its action."""

    def step(self, action):
        return super().step(1)


class Liar(Walk):
    """Returns observations outside its space."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(-0.01, 0.01, (2,), np.float32)


class Divides(Walk):
    """Returns NaN in its fourth observation."""

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
    """Has observations and rewards in the thousands."""

    def observe(self):
        return np.array([1000 * self.position, self.steps / 10], np.float32)

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, 1000 * reward, *rest


class Stingy(Walk):
    """Gives no reward."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, 0.0, *rest


class Breaks(Walk):
    """Raises an error in `step`."""

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
    (Breaks, "step", "error"),
]


@pytest.mark.parametrize(("environment", "name", "status"), FAULTS)
def test_a_fault_is_found_by_its_check(environment, name, status):
    found = upslope.check(environment)
    by_name = {check.name: check for check in found.checks}
    assert by_name[name].status == status, by_name
    assert by_name[name].found and by_name[name].remedy and "random actions" not in by_name


class Drawn(CompiledPictures):
    """Draws its first place in Python, while JAX traces it."""

    def reset(self, key: Any) -> tuple[Any, Any]:
        place = jnp.int32(np.random.randint(1, 2**16)) % 4 + 1
        return place, self.observe(place)


class DrawnSteps(CompiledPictures):
    """Draws an array in Python, while JAX traces a step."""

    def step(self, key: Any, state: Any, action: Any) -> Any:
        wind = jnp.asarray(np.random.randint(0, 2, 64))
        return super().step(key, state + wind[jax.random.randint(key, (), 0, 64)], action)


class DrawnInVain(CompiledPictures):
    """Draws numbers that it does not use."""

    def reset(self, key: Any) -> tuple[Any, Any]:
        np.random.randint(9)
        return super().reset(key)


class HoldsKey(CompiledPictures):
    """Holds a random key."""

    def __init__(self) -> None:
        self.levels = jax.random.key(7)

    def reset(self, key: Any) -> tuple[Any, Any]:
        place = jax.random.randint(jax.random.fold_in(self.levels, jax.random.bits(key)), (), 1, 4)
        return place, self.observe(place)


@pytest.mark.parametrize(
    ("environment", "status"),
    [(Drawn, "error"), (DrawnSteps, "error"), (DrawnInVain, "ok"), (HoldsKey, "ok"), (CompiledPictures, "ok")],
)
def test_randomness_that_is_not_from_the_key_is_found(environment, status):
    np.random.seed(1)
    (check,) = [check for check in upslope.check(environment()).checks if check.name == "repeats itself"]
    assert check.status == status
    assert ("from the key" in check.remedy) == (status == "error")


class Overwrites(Walk):
    """Writes into the actions that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-1.0, 2.0, (1,), np.float64)

    def step(self, action: Any) -> Any:
        answer = super().step(int(action[0] > 0))
        action[:] = 99.0
        return answer


def test_an_environment_may_write_into_its_actions():
    found = {check.name: check for check in upslope.check(Overwrites).checks}
    assert found["actions matter"].status == found["repeats itself"].status == "ok"


class Fails(Walk):
    """Has one fault, given by `kind`, and is otherwise sound."""

    kind = ""

    def reset(self, **options):
        observation, info = super().reset(**options)
        answers = {
            "reset raises": lambda: 1 / 0,
            "reset gives nothing": lambda: None,
            "reset without info": lambda: observation,
            "reset gives three": lambda: (observation, info, 0),
            "info is text": lambda: (observation, "info"),
            "reset: info is None": lambda: (observation, None),
            "reset: shape": lambda: (observation[None], info),
            "reset: structure": lambda: ({"position": observation}, info),
            "reset: None": lambda: (None, info),
        }
        return answers.get(self.kind, lambda: (observation, info))()

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        answers = {
            "step raises": lambda: {}[action],
            "step gives nothing": lambda: None,
            "step gives four": lambda: (observation, reward, terminated, info),
            "step gives a reward": lambda: reward,
            "step: shape": lambda: (observation[:1], reward, terminated, truncated, info),
            "step: text": lambda: (np.array(["a", "b"]), reward, terminated, truncated, info),
            "reward is None": lambda: (observation, None, terminated, truncated, info),
            "reward is text": lambda: (observation, "1", terminated, truncated, info),
            "reward is a vector": lambda: (observation, np.array([reward, 0]), terminated, truncated, info),
            "reward is nan": lambda: (observation, np.nan, terminated, truncated, info),
            "terminated is None": lambda: (observation, reward, None, truncated, info),
            "terminated is text": lambda: (observation, reward, "no", truncated, info),
            "truncated is an info": lambda: (observation, reward, terminated, info, info),
            "info is a list": lambda: (observation, reward, terminated, truncated, []),
        }
        return answers.get(self.kind, lambda: (observation, reward, terminated, truncated, info))()


class Declares(Walk):
    """Declares the given spaces and is otherwise sound."""

    def __init__(self, observation_space, action_space):
        super().__init__()
        self.observation_space, self.action_space = observation_space, action_space


class TakesNoSeed(Walk):
    """Has a `reset` without a seed, as was usual before Gymnasium 0.26."""

    def reset(self):
        return super().reset(seed=0)


class OnlyLooksLikeOne:
    """Has the methods of an environment but is not a subclass of `gymnasium.Env`."""

    reset, step = Walk.reset, Walk.step


class NoSpaces(gymnasium.Env):
    """Declares neither space."""


class CannotBeMade(Walk):
    """Raises an error in `__init__`."""

    def __init__(self):
        raise RuntimeError("no licence")


class WholeActions(Walk):
    """Has a Box of integers as its action space."""

    def __init__(self):
        super().__init__()
        self.action_space = spaces.Box(0, 3, (2,), np.int32)


def several_at_once():
    return gymnasium.make_vec("CartPole-v1", num_envs=2)


BROKEN = [
    ("reset raises", "reset", r"reset\(\) raised ZeroDivisionError: division by zero .*test_check.py, line \d+"),
    ("reset gives nothing", "reset", "returned None"),
    ("reset without info", "reset", "without info, as before Gymnasium 0.26"),
    ("reset gives three", "reset", "3 values instead of"),
    ("info is text", "reset", "'info' as info"),
    ("reset: info is None", "reset", "None as info, not a dictionary"),
    ("info is a list", "step", "a list of 0 as info, not a dictionary"),
    ("reset: shape", "reset", r"shape \(1, 2\), but the observation space is .* of shape \(2,\)"),
    ("reset: structure", "reset", "a dictionary with 'position'"),
    ("reset: None", "reset", "the observation None"),
    ("step raises", "step", "raised KeyError"),
    ("step gives nothing", "step", "returned None"),
    ("step gives four", "step", "4 values, .*as before Gymnasium 0.26"),
    ("step gives a reward", "step", "alone"),
    ("step: shape", "step", r"shape \(1,\)"),
    ("step: text", "step", "an array of <U1"),
    ("reward is None", "step", "the reward None, which is not a number"),
    ("reward is text", "step", "the reward '1', which is not a number"),
    ("reward is a vector", "step", r"a reward of shape \(2,\)"),
    ("reward is nan", "step", "not finite"),
    ("terminated is None", "step", "None as terminated"),
    ("terminated is text", "step", "'no' as terminated"),
    ("truncated is an info", "step", "as truncated"),
]


@pytest.mark.parametrize(("kind", "name", "words"), BROKEN)
def test_every_broken_answer_has_its_own_line(kind, name, words):
    (line,) = errors_of(type("Kind", (Fails,), {"kind": kind}))
    assert line.name == name and re.search(words, line.found), line
    assert (line.remedy and not line.remedy.startswith("Return (observation, info)")) or name == "reset"


BROKEN_AT_ONCE = [
    (CannotBeMade, "environment", "RuntimeError: no licence"),
    (TakesNoSeed, "reset", "takes no seed"),
    (OnlyLooksLikeOne, "environment", "has reset.. and step.. but is not a gymnasium.Env"),
    (lambda: None, "environment", "returned nothing"),
    (lambda: (Walk(), 3), "environment", "returned a tuple"),
    (several_at_once, "environment", "contains several environments"),
    (NoSpaces, "environment", "declares no observation_space"),
    (lambda: Declares((2,), spaces.Discrete(2)), "environment", r"\(2,\) \(tuple\) as its observation_space"),
    (lambda: Declares(spaces.Discrete(2), 2), "environment", r"2 \(int\) as its action_space"),
    (lambda: Declares(spaces.Discrete(2), None), "environment", r"None \(NoneType\) as its action_space"),
    (WholeActions, "action space", "int32"),
]


@pytest.mark.parametrize(("environment", "name", "words"), BROKEN_AT_ONCE)
def test_what_is_no_environment_has_its_own_line(environment, name, words):
    (line,) = errors_of(environment)
    assert line.name == name and re.search(words, line.found) and line.remedy, line


def errors_of(environment):
    """Return the errors found in an environment."""
    found = upslope.check(environment)
    assert found.worst == "error" and found.command == ""
    return [check for check in found.checks if check.status == "error"]


def test_a_space_that_cannot_be_used_is_refused_for_what_it_is():
    (line,) = errors_of(lambda: Declares(spaces.Text(3), spaces.Discrete(2)))
    assert "Text" in line.found and "--ignore-observation" not in line.remedy
    assert "dtype int32" in errors_of(WholeActions)[0].remedy
    texts = spaces.Dict({"x": spaces.Text(3), "y": spaces.Text(3)})
    assert "which no network can read" in errors_of(lambda: Declares(texts, spaces.Discrete(2)))[0].remedy


def test_keys_that_no_network_reads_are_left_out_by_the_line(monkeypatch):
    monkeypatch.setattr(upslope.diagnosis.check, "STEPS", 300)
    found = upslope.check(Told)
    warnings = [check for check in found.checks if "no network can read" in check.found]
    assert [check.status for check in warnings] == ["warning", "warning"] and "mission" in warnings[1].remedy
    assert "--ignore-observation deep/a/b --ignore-observation mission" in found.command
    assert {choice.what for choice in found.choices} >= {"--ignore-observation mission"}


def test_the_line_tells_who_reads_an_image_and_that_masks_are_used(monkeypatch):
    monkeypatch.setattr(upslope.diagnosis.check, "STEPS", 300)
    why = {choice.what: choice.why for choice in upslope.check(Pictures).choices}
    assert "`picture` is an image of 20 × 18 with 3 channels" in why["encoder impala"]
    assert "`boards/0` is an image of 7 × 7 with 1 channel;" in why["encoder board"]
    assert "action masks" in {choice.what for choice in upslope.check(Fenced).choices}


class Masked(Walk):
    """Reports the allowed actions in `info` and accepts no others."""

    mask: ClassVar[Any] = np.array([1, 0], np.int8)

    def reset(self, **options):
        return super().reset(**options)[0], {"action_mask": self.mask}

    def step(self, action):
        assert action == 0, f"illegal action {action}"
        return *super().step(action)[:-1], {"action_mask": self.mask}


class ByMethod(Walk):
    """Reports the allowed actions through a method, as sb3-contrib expects."""

    def action_masks(self):
        return [True, False]


class Late(Walk):
    """Reports the allowed actions only in `step`."""

    def step(self, action):
        return *super().step(action)[:-1], {"action_mask": np.ones(2, np.int8)}


class TooLong(Masked):
    mask: ClassVar[Any] = np.ones(3, np.int8)


class Nothing(Masked):
    mask: ClassVar[Any] = np.zeros(2, np.int8)


@pytest.mark.parametrize(
    ("environment", "status", "words"),
    [
        (Masked, "ok", 'info["action_mask"] allows 50% of the choices'),
        (ByMethod, "ok", "its method action_masks() allows 50%"),
        (Late, "warning", "after step(), but none after reset()"),
        (TooLong, "error", "shape (3,), but (2,) is needed"),
        (Nothing, "error", "allows no action: step 0 of an episode"),
    ],
)
def test_a_mask_is_recognised(environment, status, words):
    checked = upslope.check(environment)
    found = {check.name: check for check in checked.checks}
    assert found["action mask"].status == status and words in found["action mask"].found
    assert "step" not in found or found["step"].status == "ok"
    if status == "ok":
        # Random actions are drawn only from the allowed ones, so all other checks can run.
        assert "random actions" not in found and found["repeats itself"].status == "ok" and checked.command


class SameObject(Walk):
    """Always returns the same array, which is out of bounds at first, and reports terminations as integers."""

    def reset(self, **options):
        self.array = np.full(2, -10.1, np.float32)
        super().reset(**options)
        return self.array, {}

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        self.array[:] = observation
        return self.array, np.array([reward]), int(terminated), truncated, info


def test_what_training_copes_with_is_a_warning():
    found = upslope.check(SameObject)
    assert found.worst == "warning", found.checks
    by_name = {check.name: check for check in found.checks}
    assert "shape (1,)" in by_name["step"].found and "not a bool" in by_name["step"].found


class FailsToClose(Walk):
    """Raises an error in `close`."""

    def close(self):
        raise OSError("no such device")


class CannotDraw(Walk):
    """Declares a render mode but fails in `render`."""

    metadata: ClassVar[dict] = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        raise OSError("no display")


def test_errors_in_closing_and_drawing_are_warnings():
    for environment, name, words in ((FailsToClose, "close", "no such device"), (CannotDraw, "pictures", "no display")):
        (line,) = [check for check in upslope.check(environment).checks if check.name == name]
        assert line.status == "warning" and words in line.found


class Mostly(Walk):
    """Behaves differently in one of every `every` instances."""

    made: ClassVar[int] = 0

    def __init__(self):
        super().__init__()
        Mostly.made += 1
        self.is_odd = Mostly.made % Mostly.every == 0

    every: ClassVar[int] = 3

    def step(self, action):
        self.position += 0.001 * Mostly.made * self.is_odd
        return super().step(action)


@pytest.mark.parametrize("every", [2, 3, 4, 7])
@pytest.mark.parametrize("shift", [0, *(pytest.param(shift, marks=pytest.mark.weekly) for shift in (1, 2))])
def test_an_environment_that_repeats_itself_only_mostly_is_not_said_to_share(every, shift, monkeypatch):
    monkeypatch.setattr(Mostly, "every", every)
    monkeypatch.setattr(Mostly, "made", shift)
    found = {check.name: check for check in upslope.check(Mostly).checks}
    others = {found[name].status for name in ("nothing leaks through reset", "instances are independent")}
    if found["repeats itself"].status == "ok":  # all compared instances happened to agree
        assert every == 7 and others == {"ok"}
    else:
        assert " fresh environments" in found["repeats itself"].found and others == {"skipped"}


def test_features_that_never_change_are_counted():
    wide = Declares(spaces.Box(-1, 1, (2835,), np.float32), spaces.Discrete(2))
    wide.observe = lambda: np.zeros(2835, np.float32)
    found = {check.name: check for check in upslope.check(lambda: copy.copy(wide)).checks}
    assert found["observations vary"].found == "2,835 of 2,835 features (0, 1, 2, 3, 4, …) never change"


def test_differences_that_float32_loses_are_told_and_not_to_be_normalised():
    class FarFromZero(Walk):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)

        def observe(self):
            return np.array([1.7e9 + self.position, 0.0])

    far = upslope.check(FarFromZero)
    by_name = {check.name: check for check in far.checks}
    assert by_name["observation precision"].status == "error"
    assert by_name["observation scale"].status == "ok" and "normalize" not in far.command


def test_numbers_whose_squares_overflow_are_told_and_not_to_be_normalised():
    class Overflowing(Walk):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Box(-1e38, 1e38, (2,), np.float32)

        def observe(self):
            return np.float32([1e37 * (1 + self.position), 50.0 * self.position])

    found = upslope.check(Overflowing)
    scale = {check.name: check for check in found.checks}["observation scale"]
    assert scale.status == "warning" and "overflow" in scale.found and "Scale them" in scale.remedy
    assert "normalize_observations=True" not in found.command and "normalize_observations=False" in found.command
    assert not any(choice.what == "--normalize-observations" for choice in found.choices)


def test_it_resets_and_acts_as_training_does():
    seeds, actions = [], []

    class Noted(Walk):
        def reset(self, *, seed=None, options=None):
            seeds.append(seed)
            return super().reset(seed=seed, options=options)

        def step(self, action):
            actions.append(action)
            return super().step(int(np.sum(action) > 0))

    class Box(Noted):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Box(-1, 1, (2,), np.float32)

    for environment in (Noted, Box):
        seeds.clear()
        actions.clear()
        upslope.check(environment)
        # On creation, the environment is reset with seed 0 to look for a mask. Seed 123 comes from Gymnasium's checker.
        ours = [seed for seed in seeds if seed not in (None, 0, 123)]
        assert ours[:2] == [reset_seed(0, 0, 0), reset_seed(0, 0, 0)] and reset_seed(0, 0, 1) in ours
        head = head_of(environment().action_space, "")
        like = head.to_environment(np.zeros((1, *head.sample_shape), np.float32))[0]
        assert {np.asarray(action).dtype for action in actions[:20]} == {np.asarray(like).dtype}
    assert max(np.max(action) for action in actions) == 1 and min(np.min(action) for action in actions) == -1


def test_the_advice_repeats_how_the_environment_was_made():
    found = upslope.check("CartPole-v1", env_kwargs={"sutton_barto_reward": True}, wrappers=("FlattenObservation",))
    assert "--env-kwargs '{\"sutton_barto_reward\": true}'" in found.command
    assert "--wrapper FlattenObservation" in found.command
    assert upslope.check(lambda: Walk()).command == "upslope.train(environment, seeds=5)"


@pytest.mark.parametrize("environment", [Walk, "CartPole-v1", "Pendulum-v1", "jax:CartPole-v1", "jax:Pendulum-v1"])
def test_a_sound_environment_has_no_error_and_a_line_to_begin_with(environment):
    found = upslope.check(environment)
    assert [c for c in found.checks if c.status == "error"] == []
    assert found.command.startswith("upslope train") and found.command.endswith("--seeds 5")


def test_the_proposal_follows_from_what_was_found():
    assert "--normalize-observations" in upslope.check(Huge).command
    assert "--max-episode-steps 1000" in upslope.check(Endless).command


def test_a_box_of_actions_without_bounds_is_named():
    endless = lambda: Spaced(action_space=spaces.Box(-np.inf, np.inf, (2,), np.float32))  # noqa: E731 - a named expression
    by_name = {check.name: check for check in upslope.check(endless).checks}
    assert by_name["action range"].status == "warning"


def test_the_command_says_it_in_its_exit_status(capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(["check", "user_environments:OwnRandomness", "--json"])
    assert stop.value.code == 1 and json.loads(capsys.readouterr().out)["worst"] == "error"
    with pytest.raises(SystemExit) as stop:
        run_command(["check", "user_environments:Walk"])
    words = capsys.readouterr().out
    assert stop.value.code == 0 and "start with:" in words and "upslope train user_environments:Walk" in words


class FlagsOfNumPy(Walk):
    """Returns NumPy's booleans, as comparisons of NumPy's numbers do."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, np.bool_(terminated), np.bool_(truncated), info


def test_booleans_of_numpy_are_not_taken_for_an_episode_that_ends():
    by_name = {check.name: check for check in upslope.check(FlagsOfNumPy).checks}
    assert by_name["Gymnasium's checker"].status == "ok"


class SaysLimit(Walk):
    """Ends at a time limit as environments of the former Gym do."""

    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        is_late = self.steps >= 5
        return observation, reward, terminated or is_late, False, info | {"TimeLimit.truncated": is_late}


def test_a_time_limit_that_only_info_tells_is_an_error():
    (ends,) = [check for check in upslope.check(SaysLimit).checks if check.name == "episodes end"]
    assert ends.status == "error" and "with TimeLimit.truncated in info" in ends.found
