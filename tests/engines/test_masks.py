"""Action masks: their sources, and their use in acting, learning, resuming, recording and loading."""

from types import SimpleNamespace
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import user_environments as own
from gymnasium import spaces
from run_helpers import SEGMENTS, Killed, assert_same_run, before_chunk, metrics_of

import upslope
from upslope import UpslopeError
from upslope.analysis.episode_credit import credit_of
from upslope.config.prepare import prepare
from upslope.core.types import Transition
from upslope.diagnosis.check import check
from upslope.engines.border import mask_reader
from upslope.environments.registry import make
from upslope.learning import batch
from upslope.models.heads import head_of
from upslope.runs.directory import RunDirectory
from upslope.runs.train import lines_of_masks

SMALL: dict[str, Any] = SEGMENTS | {"hidden_sizes": (8,), "quiet": True, "steps": 192, "max_episode_steps": 12}
FENCED = "user_environments:Fenced"
PROBE = "jax:probe/mask"
RECORDED: dict[str, Any] = dict.fromkeys(("num_envs", "rollout_steps", "max_episode_steps"))
"""Settings that are not used when learning from recorded episodes."""


class Halves(upslope.CompiledEnvironment):
    """Episodes of three steps with two choices each. The mask depends on the step and has the given `form`.

    An allowed action gives a reward of 1, and a forbidden one 100.
    """

    observation_space = spaces.Box(0, 3, (1,), np.float32)
    action_space = spaces.MultiDiscrete([2, 3])
    max_episode_steps = 3

    def __init__(self, form: str = "tuple"):
        self.form = form
        if form == "key":
            parts = {"step": Halves.observation_space, "action_mask": spaces.MultiBinary(5)}
            self.observation_space = spaces.Dict(parts)

    def shown(self, step: Any) -> Any:
        vector = step[None].astype(jnp.float32)
        return {"step": vector, "action_mask": self.flat(step).astype(jnp.int8)} if self.form == "key" else vector

    def flat(self, step: Any) -> Any:
        allowed = jnp.concatenate([step != jnp.arange(2), (step + 1) % 3 != jnp.arange(3)])
        return jnp.zeros(5, bool) if self.form == "stuck" else allowed

    def action_mask(self, state: Any) -> Any:
        mask = self.flat(state)
        return None if self.form == "key" else (mask[:2], mask[2:]) if self.form == "tuple" else mask

    def reset(self, key: Any) -> Any:
        return jnp.int32(0), self.shown(jnp.int32(0))

    def step(self, key: Any, state: Any, action: Any) -> Any:
        is_allowed = self.flat(state)[action[0]] & self.flat(state)[2 + action[1]]
        reward = jnp.where(is_allowed, 1.0, 100.0)
        return state + 1, Transition(self.shown(state + 1), reward, state >= 2, jnp.zeros((), bool))


def halves() -> Halves:
    return Halves()


class ShownHalves(Halves):
    """`Halves` whose observation is only the mask."""

    observation_space = spaces.Dict({"action_mask": spaces.MultiBinary(5)})
    action_mask = upslope.CompiledEnvironment.action_mask

    def shown(self, step: Any) -> Any:
        return {"action_mask": self.flat(step).astype(jnp.int8)}


class ShownFence(own.FencedByKey):
    """`FencedByKey` whose observation is only the mask."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict({"action_mask": spaces.MultiBinary(3)})

    def reset(self, **options: Any) -> Any:
        observation, info = super().reset(**options)
        return {"action_mask": observation["action_mask"]}, info

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return {"action_mask": observation["action_mask"]}, *rest


def stuck() -> Halves:
    return Halves("stuck")


def train(environment: Any, folder: Any, name: str, **settings: Any) -> Any:
    settings = {setting: value for setting, value in (SMALL | settings).items() if value is not None}
    return upslope.train(environment, folder=folder, name=name, **settings)


@pytest.mark.parametrize("kind", [own.Fenced, own.FencedByMethod, own.FencedByKey])
def test_every_place_of_a_mask_is_brought_to_one(kind):
    world = make(kind)
    assert world.gives_masks and not world.is_compiled and not make(kind, masks=False).gives_masks
    env, bare = world.create(), own.Fenced()
    (observation, info), (seen, expected) = env.reset(seed=3), bare.reset(seed=3)
    np.testing.assert_array_equal(info["action_mask"], expected["action_mask"])
    for _ in range(5):
        action = int(np.flatnonzero(info["action_mask"])[0])
        observation, *_, info = env.step(action)
        seen, _, is_over, _, expected = bare.step(action)
        if is_over:
            break
        np.testing.assert_array_equal(info["action_mask"], expected["action_mask"])
    shown = observation["walk"] if kind is own.FencedByKey else observation
    np.testing.assert_array_equal(shown, seen)
    assert "action_mask" not in (world.observation_space if kind is own.FencedByKey else {})
    assert not make(own.Walk).gives_masks and make(own.Walk).create().__class__ is own.Walk


class Guarded(own.Fenced):
    """Counts its resets, each of which draws from NumPy's global random generator."""

    resets = 0

    def reset(self, **options: Any) -> Any:
        Guarded.resets += 1
        np.random.random()
        return super().reset(**options)


class GuardedByKey(own.FencedByKey, Guarded):
    """`Guarded` with the mask as part of the observation."""


class Broken(own.Fenced):
    """Raises an error in `reset`."""

    def reset(self, **options: Any) -> Any:
        raise OSError("no device")


def test_asking_for_masks_disturbs_no_random_numbers_and_hides_no_error():
    np.random.seed(3)
    expected = np.random.RandomState(3).random_sample()
    assert make(Guarded).gives_masks and Guarded.resets == 1
    assert np.random.random() == expected
    assert make(GuardedByKey).gives_masks and not make("Pendulum-v1").gives_masks and Guarded.resets == 1
    with pytest.raises(UpslopeError, match=r"Broken raised OSError: no device .*in reset\(seed=0\)"):
        _ = make(Broken).gives_masks
    assert not make(Broken, masks=False).gives_masks


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.float32])
def test_a_mask_of_other_numbers_is_refused_in_every_dtype(dtype: Any):
    read = mask_reader(head_of(spaces.Discrete(3), "it"), "it")
    place: Any = SimpleNamespace(describe=lambda: "step 3", seen=0, length=3)
    assert np.asarray(read({"action_mask": np.array([1, 0, 1], dtype)}, place), bool).tolist() == [True, False, True]
    for wrong in ([1, 2, 0], [1, 0], [[1, 0, 1]]):
        with pytest.raises(UpslopeError, match=r"which does not fit its action space.*step 3"):
            read({"action_mask": np.array(wrong, dtype)}, place)


def test_masks_that_are_not_there_cannot_be_ignored_in_silence():
    worlds = {"CartPole-v1": 1, "jax:CartPole-v1": 1, FENCED: 0, "user_environments:FencedByKey": 0, PROBE: 0}
    for environment, count in worlds.items():
        config, task = prepare(environment, settings={"masks": False})
        lines = lines_of_masks(config, task)
        assert len(lines) == count and all("--no-masks has no effect" in line for line in lines)


@pytest.mark.parametrize("environment", [ShownFence, ShownHalves])
def test_observations_that_are_only_a_mask_are_read_without_masks_and_refused_with_them(environment: Any, tmp_path):
    bare = make(environment, masks=False)
    assert list(bare.observation_space) == ["action_mask"] and bare.ignores_masks and not bare.gives_masks
    with pytest.raises(UpslopeError, match=r"consist only of the key `action_mask`, .*nothing is left.*--no-masks"):
        make(environment)
    assert check(environment).worst == "error"
    if environment is ShownHalves:
        run = train(environment, tmp_path, "shown", steps=32, masks=False)
        assert run.load()({"action_mask": np.ones(5)}).shape == (2,)


def test_a_mask_cannot_be_ignored_as_a_part_of_observations(tmp_path):
    for environment in (own.FencedByKey, halves):
        with pytest.raises(upslope.UpslopeError, match=r"have no `action_mask`.*--no-masks"):
            train(environment, tmp_path, "ignored", ignore_observation=("action_mask",))


def test_a_compiled_environments_mask_is_read_in_every_form():
    for form in ("tuple", "flat", "key"):
        world = make(Halves(form))
        assert world.gives_masks and "action_mask" not in str(world.observation_space)
        state, _ = world.reset(jax.random.key(0))
        parts = jax.tree.leaves(world.action_mask(state))
        np.testing.assert_array_equal(np.concatenate(parts), [0, 1, 1, 0, 1])
    assert not make("jax:CartPole-v1").gives_masks
    bare = make(Halves(), masks=False)
    assert not bare.gives_masks and bare.action_mask(bare.reset(jax.random.key(0))[0]) is None

    class Wrong(Halves):
        def action_mask(self, state: Any) -> Any:
            return jnp.ones(4, bool)

    with pytest.raises(UpslopeError, match=r"does not fit the action space MultiDiscrete.*--no-masks"):
        make(Wrong())


@pytest.mark.parametrize(
    "environment",
    [FENCED, pytest.param("user_environments:FencedByMethod", marks=pytest.mark.weekly), "test_masks:halves"],
)
def test_no_forbidden_action_is_taken_and_a_run_goes_through_all_its_life(environment, tmp_path):
    """The test trains two seeds, evaluates, records, learns from the recording, and loads a policy."""
    run = train(environment, tmp_path, "run", seeds=2, steps=96)
    assert RunDirectory(run.path).read()["spaces"]["has_masks"] is True
    found = upslope.evaluate(run.path, episodes=3)
    if environment == "test_masks:halves":
        assert all((mode.returns == 3).all() for mode in found.values()), "a forbidden action pays 100"
    path = upslope.record(run.path, episodes=3)
    with np.load(path) as data:
        mask, action = data["action_mask"], data["action"]
        head = run.load().agent.head
        assert mask.dtype == bool and mask.shape == (len(action), head.num_choices) and not mask.all()
        assert head.permits(mask, action).all() and np.isfinite(data["behaviour_log_prob"]).all()
    for algorithm in ("clone", "off_policy"):
        other = train(environment, tmp_path, algorithm, algorithm=algorithm, data=str(path), **RECORDED)
        assert all(np.isfinite(row["policy/loss"]) and np.isfinite(row["policy/entropy"]) for row in other.metrics())
    for row in run.metrics():
        assert row.get("health/log_prob_mismatch", 0) < 1e-5 and abs(row["policy/kl"]) < 1
    assert credit_of(run.path).num_steps >= 1
    assert upslope.diagnose(run.path) is not None


def test_workers_slices_and_seeds_change_no_bit(tmp_path):
    whole = train(FENCED, tmp_path, "whole", seeds=2, workers=1)
    for name, options in {"workers": {"workers": 2}, "slices": {"seeds": 1, "workers": 2}}.items():
        run = train(FENCED, tmp_path, name, **{"seeds": 2, **options})
        count = len(run.seeds)
        rows = [row for row in metrics_of(whole.path) if row["seed"] < count]
        assert metrics_of(run.path) == rows


@pytest.mark.parametrize(
    ("algorithm", "environment"),
    [
        ("ppo", FENCED),
        ("reward_to_go", PROBE),
        pytest.param("ppo", PROBE, marks=pytest.mark.weekly),
        pytest.param("reward_to_go", FENCED, marks=pytest.mark.weekly),
    ],
)
def test_a_resumed_run_is_the_uninterrupted_one(environment, algorithm, tmp_path):
    settings: dict[str, Any] = {"algorithm": algorithm, "steps": 400, "max_episode_steps": None}
    if algorithm == "reward_to_go":
        settings |= {"rollout_steps": None, "epochs": None, "minibatches": None, "max_episode_steps": 8}
    one = train(environment, tmp_path, "one", **settings)

    def kill() -> None:
        raise Killed

    with before_chunk(7, kill), pytest.raises(Killed):
        train(environment, tmp_path, "two", **settings)
    upslope.resume(tmp_path / "two", quiet=True)
    assert_same_run(one.path, tmp_path / "two")


def test_where_nothing_is_allowed_is_refused_with_the_place(tmp_path):
    with pytest.raises(UpslopeError, match=r"Stuck allows no action: environment 0 of seed 0, episode 0.*step 3"):
        train(own.Stuck, tmp_path, "host")
    with pytest.raises(UpslopeError, match=r"allows no action: environment 0 of seed 0, step 0 of an episode"):
        train("test_masks:stuck", tmp_path, "compiled")


@pytest.mark.parametrize("masks", [True, False])
def test_a_policy_takes_observations_that_contain_the_mask(masks: bool, tmp_path):
    policy = train(Halves("key"), tmp_path, "run", masks=masks, steps=32, max_episode_steps=None).load()
    bare = {"step": np.zeros(1, np.float32)}
    observation = bare | {"action_mask": np.array([0, 1, 1, 0, 1], np.int8)}
    given = {"mask": observation["action_mask"]} if masks else {}
    np.testing.assert_array_equal(policy(observation), policy(bare, **given))
    np.testing.assert_array_equal(policy(observation), policy(observation, **given))
    assert policy.value(observation) == policy.value(bare)


def test_masks_may_be_ignored_and_are_not_confused(tmp_path):
    run = train(PROBE, tmp_path, "ignored", masks=False, steps=64, max_episode_steps=None)
    assert RunDirectory(run.path).read()["spaces"]["has_masks"] is False
    assert np.max(upslope.evaluate(run.path, episodes=20)["stochastic"].returns) == 100
    path = upslope.record(run.path, episodes=4)
    with pytest.raises(UpslopeError, match=r"has no action_mask.*--no-masks"):
        train(PROBE, tmp_path, "clone", algorithm="clone", data=str(path), **RECORDED)
    trained = train(own.Fenced, tmp_path, "with")
    with pytest.raises(UpslopeError, match="provided action masks, but provides none now"):
        upslope.evaluate(trained.path, environment=own.Walk3)


def test_recorded_masks_are_checked(tmp_path):
    run = train(PROBE, tmp_path, "run", steps=64, max_episode_steps=None)
    path = upslope.record(run.path, episodes=5)
    with np.load(path) as data:
        arrays = dict(data)
    spoiled = {
        "is forbidden": arrays | {"action_mask": ~np.eye(3, dtype=bool)[arrays["action"]]},
        "shape": arrays | {"action_mask": arrays["action_mask"][:, :2]},
        "contain only 0 and 1": arrays | {"action_mask": arrays["action_mask"] * 2.0},
    }
    for words, wrong in spoiled.items():
        np.savez(tmp_path / "wrong.npz", **wrong)
        with pytest.raises(UpslopeError, match=words):
            train(PROBE, tmp_path, words, algorithm="clone", data=str(tmp_path / "wrong.npz"), **RECORDED)


def test_a_loaded_policy_asks_for_its_mask(tmp_path):
    policy = train(own.Fenced, tmp_path, "run").load(checkpoint="last")
    observation, _ = own.Fenced().reset(seed=0)
    with pytest.raises(UpslopeError, match="trained with action masks"):
        policy(observation)
    for only in range(3):
        assert policy(observation, mask=np.eye(3)[only]) == only
        assert policy(observation, deterministic=False, mask=np.eye(3, dtype=bool)[only]) == only
    batch, masks = np.stack([observation] * 3), np.eye(3)
    assert policy(batch, mask=masks).tolist() == [0, 1, 2]
    assert policy.with_log_prob(batch, mask=list(masks))[1].tolist() == [0, 0, 0]
    with pytest.raises(UpslopeError, match="3 observations but 2 masks"):
        policy(batch, mask=masks[:2])
    with pytest.raises(UpslopeError, match="row 1 allows no action"):
        policy(batch, mask=np.diag([1, 0, 1]))
    with pytest.raises(UpslopeError, match=r"does not fit.*\(4,\)"):
        policy(observation, mask=np.ones(4))
    free = train(own.Walk, tmp_path, "free").load()
    assert free(observation, mask=[0, 1]) == 1 and free(observation, mask=[1, 0]) == 0


PLANTED: dict[str, Any] = {
    "nothing": lambda policy, mask: policy.masked(mask),
    "forgotten": lambda policy, mask: policy,
    "of another row": lambda policy, mask: policy.masked(jnp.roll(mask, 1, axis=0)),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_mask_that_the_update_forgets_or_confuses_is_seen(fault, tmp_path, monkeypatch):
    """With either fault, the learner's policy is not the policy that acted, so log π before the update is not log μ."""
    monkeypatch.setattr(batch, "allowed", PLANTED[fault])
    rows = train(FENCED, tmp_path, "run", steps=64, learning_rate=1e-9).metrics()
    is_right = [row.get("health/log_prob_mismatch", np.inf) < 1e-5 for row in rows]
    assert all(is_right) if fault == "nothing" else not any(is_right)


def test_taxi_plays_by_its_mask(tmp_path):
    run = train("Taxi-v4", tmp_path, "taxi", steps=64)
    path = upslope.record(run.path, episodes=2, max_episode_steps=12)
    with np.load(path) as data:
        env: Any = gymnasium.make("Taxi-v4").unwrapped
        states = data["observation"].tolist()
        expected = np.stack([env.action_mask(state) for state in states])
        np.testing.assert_array_equal(data["action_mask"], expected)
        moves = [env.P[s][a][0][1] != s for s, a in zip(states, data["action"].tolist(), strict=True)]
    assert all(moves), "an action that the mask allows changes the state"
