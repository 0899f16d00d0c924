"""Each unusual user environment is either handled correctly or refused with a reason."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from user_environments import Still, Walk

import upslope
from upslope.environments.modules import import_module
from upslope.environments.registry import make
from upslope.models.heads import head_of

SMALL: dict[str, Any] = {"steps": 128, "num_envs": 2, "rollout_steps": 32, "preset": False, "quiet": True}


def statuses(environment: Any, **options: Any) -> dict[str, tuple[str, str]]:
    return {one.name: (one.status, one.found) for one in upslope.check(environment, **options).checks}


def train(environment: Any, folder: Path, **options: Any) -> upslope.Run:
    return upslope.train(environment, folder=folder, name="run", **(SMALL | options))


class Lists(Walk):
    """A walk whose observations are lists."""

    def reset(self, **options: Any) -> Any:
        observation, info = super().reset(**options)
        return observation.tolist(), info

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return observation.tolist(), *rest


def test_observations_may_be_lists(tmp_path: Path):
    assert "error" not in {status for status, _ in statuses(Lists).values()}
    train(Lists, tmp_path)


def test_one_environment_for_all_columns_is_refused_also_inside_wrappers(tmp_path: Path):
    one = Walk()
    with pytest.raises(upslope.UpslopeError, match="the same environment more than once"):
        train(lambda: one, tmp_path, wrappers=("RecordEpisodeStatistics",))


def test_an_environment_instead_of_a_way_to_make_them_is_named():
    # Use a separate process, because this one checks the types of arguments.
    script = "import gymnasium, upslope; upslope.check(gymnasium.make('CartPole-v1'))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stderr
    assert "is one environment, but training needs several" in said


@pytest.mark.parametrize(
    ("low", "high", "begins", "ends"),
    [(5.0, np.inf, 5.0, 7.0), (-np.inf, -5.0, -7.0, -5.0), (-1e38, 1e38, -1.0, 1.0), (-2.0, 4.0, -2.0, 4.0)],
)
def test_a_policy_begins_within_the_bounds_that_there_are(low: float, high: float, begins: float, ends: float):
    head = head_of(spaces.Box(low, high, (2,), np.float64), "World-v0")
    (box,) = head.boxes.values()
    centre, half = box.scaling
    assert centre.tolist() == [(begins + ends) / 2] * 2 and half.tolist() == [(ends - begins) / 2] * 2
    drawn = np.asarray([head.random(np.random.default_rng(i)) for i in range(200)])
    assert begins - 0.2 * half[0] < drawn.min() < begins + 0.2 and ends - 0.2 < drawn.max() < ends + 0.2 * half[0]


class MaskOfReals(Still):
    """One part of the observation is named like an action mask, but the actions are continuous."""

    observation_space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "action_mask": spaces.MultiBinary(3)})
    action_space = spaces.Box(-1, 1, (2,))

    def show(self) -> Any:
        return {"a": np.zeros(2, np.float32), "action_mask": np.ones(3, np.int8)}


def test_a_key_is_a_mask_only_of_choices():
    assert set(make(MaskOfReals).observation_space) == {"a", "action_mask"}  # type: ignore[call-overload]


class Later(Walk):
    """Misbehaves from the thirtieth step on, in the way that `kind` names."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.count = kind, 0

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        self.count += 1
        if self.count < 30:
            return observation, reward, terminated, truncated, info
        if self.kind == "exits":
            sys.exit(0)
        return {
            "shape": (observation[:0], reward, terminated, truncated, info),
            "reward": (observation, None, terminated, truncated, info),
            "four": (observation, reward, terminated, info),
            "nan": (observation, float("nan"), terminated, truncated, info),
            "huge": (observation, 10**400, terminated, truncated, info),
            "large": (observation, 1e300, terminated, truncated, info),
        }[self.kind]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("shape", "an observation of shape"), ("reward", "the reward None"), ("four", "4 values"),
        ("huge", "beyond the largest float32"), ("large", "beyond the largest float32"), ("exits", "SystemExit"),
    ],
)  # fmt: skip
def test_a_fault_that_comes_late_is_told_alike_by_check_and_by_training(kind: str, words: str, tmp_path: Path):
    status, found = statuses(lambda: Later(kind))["random actions"]
    assert status == "error" and words in found
    with pytest.raises(upslope.UpslopeError, match=words):
        train(lambda: Later(kind), tmp_path)


def test_rewards_that_are_no_numbers_do_not_look_random():
    found = statuses(lambda: Later("nan"))
    assert found["repeats itself"][0] == "ok" and found["rewards"] == ("error", "not finite")


class OwnSpec(Walk):
    """Has an attribute whose name Gymnasium uses too."""

    spec: Any = "mine"


class Unreadable:
    """Behaves like a tensor that records gradients."""

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise RuntimeError("Can't call numpy() on a tensor that requires grad.")


class Tensors(Walk):
    """Puts objects that NumPy cannot read into its info or its observations."""

    def __init__(self, is_observed: bool) -> None:
        super().__init__()
        self.is_observed = is_observed

    def step(self, action: Any) -> Any:
        observation, *rest, info = super().step(action)
        return Unreadable() if self.is_observed else observation, *rest, info | {"loss": Unreadable()}


def test_what_numpy_cannot_read_is_refused_where_it_is_needed(tmp_path: Path):
    assert "error" not in {status for status, _ in statuses(lambda: Tensors(False)).values()}
    train(lambda: Tensors(False), tmp_path)
    with pytest.raises(upslope.UpslopeError, match="returned an observation of type Unreadable"):
        train(lambda: Tensors(True), tmp_path / "other")


def test_an_attribute_of_the_users_may_be_called_spec(tmp_path: Path):
    assert "error" not in {status for status, _ in statuses(OwnSpec).values()}


class Wraps(Still):
    """Occasionally returns 256, in a 64-bit array, although its observation space consists of bytes."""

    observation_space = spaces.Box(0, 255, (2,), np.uint8)
    count = 0

    def show(self) -> Any:
        self.count += 1
        return np.full(2, 256 if self.count > 110 and self.count % 16 == 3 else 7)


def test_a_number_that_a_cast_would_change_is_refused_at_any_step(tmp_path: Path):
    with pytest.raises(upslope.UpslopeError, match="casting 256 to uint8 would change it"):
        train(Wraps, tmp_path, steps=512)


class Parts(Walk):
    """Observations are a dictionary in which one part is empty, one is text, and one has the wrong shape if
    `is_wrong`."""

    def __init__(self, is_wrong: bool = False) -> None:
        super().__init__()
        self.is_wrong, one = is_wrong, self.observation_space
        self.observation_space = spaces.Dict({"a": one, "none": spaces.Box(-1, 1, (0,)), "text": spaces.Text(5)})

    def dressed(self, observation: Any) -> Any:
        seen = observation[:0] if self.is_wrong else observation
        return {"a": seen, "none": np.zeros(0, np.float32), "text": "hi"}

    def reset(self, seed: int | None = None) -> Any:  # type: ignore[override]
        observation, info = super().reset(seed=seed)
        return self.dressed(observation), info

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return self.dressed(observation), *rest


def test_parts_that_cannot_be_read_are_left_out_and_a_wrong_one_is_named(tmp_path: Path):
    found = upslope.check(Parts)
    assert not [one for one in found.checks if one.status == "error"]
    assert "--ignore-observation none" in found.command and "--ignore-observation text" in found.command
    train(Parts, tmp_path, ignore_observation=("none", "text"))
    with pytest.raises(upslope.UpslopeError, match=r"an observation\['a'\] of shape \(0,\)"):
        train(lambda: Parts(True), tmp_path / "wrong", ignore_observation=("none", "text"))


class Rewards(Still):
    """Returns rewards that are arrays of this shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def step(self, action: Any) -> Any:
        observation, _, *rest = super().step(action)
        return observation, np.ones(self.shape), *rest


def test_the_remedy_for_several_rewards_works(tmp_path: Path):
    with pytest.raises(upslope.UpslopeError, match=r'WeightedReward:\{"weights": \[1, 1\]\}'):
        train(lambda: Rewards((1, 2)), tmp_path)
    train(lambda: Rewards((1, 2)), tmp_path / "weighted", wrappers=('WeightedReward:{"weights": [1, 1]}',))
    with pytest.raises(upslope.UpslopeError, match="has 3 weights"):
        train(lambda: Rewards((2,)), tmp_path / "three", wrappers=('WeightedReward:{"weights": [1, 1, 1]}',))
    with pytest.raises(upslope.UpslopeError, match="without a number"):
        train(lambda: Rewards((0,)), tmp_path / "none")


class OneAction(Still):
    """Has only one action."""

    action_space = spaces.Discrete(1)


class ActsByDict(Still):
    """Takes dictionary actions but uses only one of their parts."""

    action_space = spaces.Dict({"push": spaces.Discrete(2), "wait": spaces.Discrete(3)})

    def step(self, action: Any) -> Any:
        return super().step(action["push"])


class ActsLate(Still):
    """Actions have no effect within the trials, but an episode lasts longer than a trial."""

    def step(self, action: Any) -> Any:
        return self.show(), 0.0, False, False, {}


def test_actions_without_effect_are_an_error_only_where_one_could_be_seen():
    assert statuses(OneAction)["actions matter"][0] == "skipped"
    assert statuses(ActsByDict, max_episode_steps=60)["actions matter"][0] == "ok"
    assert statuses(ActsLate, max_episode_steps=600)["actions matter"][0] == "warning"
    assert statuses(ActsLate, max_episode_steps=60)["actions matter"][0] == "error"


def test_why_a_module_cannot_be_imported_is_told(tmp_path: Path, monkeypatch: Any):
    (tmp_path / "raises_here.py").write_text("import os\nos.environ['NOT_SET_ANYWHERE']\n")
    (tmp_path / "needs_another.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(upslope.UpslopeError, match=r"it raised KeyError.*Correct it"):
        import_module("raises_here", "raises_here:World")
    with pytest.raises(upslope.UpslopeError, match="Install not_installed_anywhere, which it needs"):
        import_module("needs_another", "needs_another:World")
    with pytest.raises(upslope.UpslopeError, match="run the command in its folder"):
        import_module("is_not_there", "is_not_there:World")
