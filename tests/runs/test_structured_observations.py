"""Observations with several arrays in training, resuming, evaluation, recording, learning from recordings, loading and
display."""

from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import user_environments
from run_helpers import TINY, assert_stops_and_resumes, metrics_of

import upslope
from upslope.analysis.episode_credit import credit_of
from upslope.environments.registry import make
from upslope.errors import UpslopeError
from upslope.report.page import write_report

SMALL: dict[str, Any] = {
    "num_envs": 2, "rollout_steps": 8, "minibatches": 2, "epochs": 2, "steps": 320, "max_episode_steps": 11,
    "seeds": 2, "quiet": True, "preset": False, "normalize_observations": True,
}  # fmt: skip
IGNORED = {"ignore_observation": ("mission", "deep/a/b", "more/0/bits")}
RUNS = {
    "compiled": ("jax:user_environments:CompiledSenses", {}),
    "compiled less": ("jax:user_environments:CompiledSenses", {"ignore_observation": ("inner/0", "far")}),
    "host": ("user_environments:Senses", {}),
    "host less": ("user_environments:Told", {"policy_reads": ("position", "side", "more/0/digits")} | IGNORED),
    "host sliced": ("user_environments:Told", {"seeds": 1, "workers": 2} | IGNORED),
    "compiled pictures": (
        "jax:user_environments:CompiledPictures",
        {"memory": "lstm", "memory_size": 5, "policy_reads": ("0",)},
    ),
    "host pictures": ("user_environments:Pictures", {"shared_trunk": True, "encoder": ("board",)}),
    "host workers": ("user_environments:Senses", {"workers": 2}),
}


def weekly(kind: str) -> Any:
    """Mark a kind whose parts other kinds already cover, so that it is tested only weekly."""
    return pytest.param(kind, marks=pytest.mark.weekly)


@pytest.fixture(scope="module")
def trained(folder):
    """Train each kind of run once, when it is first requested."""

    @cache
    def run(kind: str):
        environment, settings = RUNS[kind]
        return upslope.train(environment, folder=folder, name=kind, **(SMALL | settings)).path

    return run


FURTHER = ("host", "host sliced", "host less", "host pictures", "compiled less")


@pytest.mark.parametrize("kind", [weekly(kind) if kind in FURTHER else kind for kind in RUNS])
def test_a_run_stopped_and_resumed_is_uninterrupted(kind: str, trained):
    environment, settings = RUNS[kind]
    if "workers" in kind:  # an engine in another process cannot be stopped from this one
        assert metrics_of(trained(kind)) == metrics_of(trained("host"))
        return
    assert_stops_and_resumes(environment, trained(kind), **(SMALL | settings))


@pytest.mark.parametrize("kind", ["compiled", "host less", weekly("compiled pictures"), "host pictures"])
def test_each_seed_is_as_if_alone(kind: str, trained, folder):
    environment, settings = RUNS[kind]
    alone = upslope.train(
        environment, folder=folder, name=f"{kind} alone", **(SMALL | settings | {"seeds": 1, "seed": 1})
    )
    rows = [row for row in metrics_of(trained(kind)) if row["seed"] == 1]
    for one, other in zip(metrics_of(alone.path), rows, strict=True):
        assert {k: (v, other[k]) for k, v in one.items() if v != other[k]} == {}, one["iteration"]


@pytest.mark.parametrize(
    "kind", [weekly("compiled less"), "host less", weekly("compiled pictures"), weekly("host pictures")]
)
def test_it_is_judged_recorded_learned_from_loaded_and_shown(kind: str, trained, tmp_path):
    path, (environment, settings) = trained(kind), RUNS[kind]
    shown = {name: x for name, x in settings.items() if name == "ignore_observation"}
    assert upslope.evaluate(path, episodes=3)["stochastic"].returns.shape == (2, 3)
    data = upslope.record(path, episodes=5, output=tmp_path / "data.npz")
    algorithm = "off_policy" if kind in ("host less", "compiled pictures") else "clone"
    options: dict[str, Any] = {"data": str(data), "steps": 100, "epochs": 1, "minibatches": 2, "folder": tmp_path}
    run = upslope.train(environment, algorithm, name=algorithm, quiet=True, **options, **settings)
    assert all(np.isfinite(row["policy/loss"]) for row in run.metrics())
    policy = upslope.load(path, seed=0, checkpoint="last")
    with np.load(data) as recorded:
        names = [name for name in recorded.files if name.startswith("observation")]
        assert not any("mission" in name or "bits" in name or "far" in name for name in names)
        structure = jax.tree.structure(policy.encoder.shapes, is_leaf=lambda x: (isinstance(x, tuple) and not x) or
                                       (isinstance(x, tuple) and isinstance(x[0], int)))  # fmt: skip
        paths = jax.tree_util.tree_leaves_with_path(jax.tree.unflatten(structure, range(structure.num_leaves)))
        leaves = [recorded[f"observation{jax.tree_util.keystr(path)}"] for path, _ in paths]
        observation = jax.tree.unflatten(structure, leaves)
        if "memory" not in settings:  # with a memory, the probability depends on earlier observations
            log_prob = np.asarray(policy.distribution(observation).log_prob(recorded["action"]))
            np.testing.assert_allclose(log_prob, recorded["behaviour_log_prob"], atol=1e-5)
            assert policy.value(observation).shape == log_prob.shape
    credit = credit_of(path, seed=1)
    np.testing.assert_allclose(credit.policy["probability"].sum(axis=1), 1, atol=1e-5)
    found = upslope.check(environment, **shown)
    assert found.worst != "error" and ("--ignore-observation" in found.command) == bool(shown)
    report = write_report([path], tmp_path / "report.html")
    assert report.stat().st_size > 10_000


def test_a_policy_takes_what_the_environment_shows_with_what_was_ignored_in_it(trained):
    policy, env = upslope.load(trained("host less")), user_environments.Told()
    observation, _ = env.reset(seed=3)
    action, value = policy(observation), policy.value(observation)
    less = make("user_environments:Told", **IGNORED)
    seen, _ = less.create().reset(seed=3)
    assert policy(seen) == action and policy.value(seen) == value
    assert "mission" in observation and "mission" not in seen and set(seen["more"][0]) == {"digits"}
    with pytest.raises(UpslopeError, match="This policy reads observations of shape"):
        policy({name: x for name, x in observation.items() if name != "side"})


def test_a_policy_takes_a_vector_with_the_components_that_were_ignored_in_it(tmp_path: Path):
    settings: dict[str, Any] = {"ignore_observation": ("1", "3"), "quiet": True, **TINY}
    policy = upslope.load(upslope.train("jax:CartPole-v1", steps=32, folder=tmp_path, name="run", **settings).path)
    whole = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    np.testing.assert_array_equal(policy.value(whole), policy.value(whole[:, [0, 2]]))
    assert [policy(list(row)) for row in whole] == list(policy(whole)) == list(policy(whole[:, [0, 2]]))
    with pytest.raises(UpslopeError, match=r"of shape \(2,\), or a batch \[B, 2\], not \(3,\)"):
        policy(whole[0, :3])


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("picture", lambda x: x / 255 + 0.25, r"uint8 numbers at `picture`.*casting 0\.25 to uint8 would change it"),
        ("picture", lambda x: x.astype(int) + 1000, "casting 1000 to uint8"),
        ("picture", lambda x: -x.astype(int), "casting -255 to uint8"),
        ("steps", lambda x: x * np.nan, r"float32 numbers at `steps`, but was given .*: nan is not finite"),
        ("steps", lambda x: [np.inf], "inf is not finite"),
        ("steps", lambda x: [1e300], r"1e\+300 is beyond the largest float32"),
        ("steps", lambda x: ["0"], "dtype"),
        ("steps", lambda x: [1j], "dtype is complex128"),
        ("steps", lambda x: [None], "dtype is object"),
    ],
)
def test_a_policy_refuses_numbers_that_its_environment_cannot_show(seer, key: str, change: Any, said: str):
    policy, observation = seer
    one = observation | {key: np.asarray(change(observation[key]))}
    for call in (policy, policy.value):
        for changed in (one, jax.tree.map(lambda x: np.stack([x, x]), one)):
            with pytest.raises(UpslopeError, match=said):
                call(changed)


@pytest.mark.parametrize("change", [lambda x: x.astype(float), lambda x: x.astype(int), lambda x: x.tolist()])
def test_a_policy_reads_the_same_numbers_in_another_dtype(seer, change: Any):
    policy, observation = seer
    assert policy(jax.tree.map(change, observation)) == policy(observation)
    assert policy.value(jax.tree.map(change, observation)) == policy.value(observation)


@pytest.fixture(scope="module")
def seer(folder: Path):
    """A policy that reads pictures, and one of its observations."""
    settings: dict[str, Any] = {"encoder": ("board",), "quiet": True, **TINY}
    run = upslope.train("user_environments:Pictures", steps=32, folder=folder, name="seer", **settings)
    return upslope.load(run.path), user_environments.Pictures().reset(seed=0)[0]


def test_components_that_a_policy_does_not_read_may_have_any_value(tmp_path: Path):
    settings: dict[str, Any] = {"policy_reads": ("0-1",), "quiet": True, **TINY}
    policy = upslope.load(upslope.train("jax:CartPole-v1", steps=32, folder=tmp_path, name="run", **settings).path)
    assert policy([0.5, 0.2, np.nan, np.inf]) == policy([0.5, 0.2, 0.0, 0.0])
    with pytest.raises(UpslopeError, match="nan is not finite"):
        policy([0.5, np.nan, 0.0, 0.0])
    with pytest.raises(UpslopeError, match="nan is not finite"):
        policy.value([0.5, 0.2, np.nan, 0.0])
    with pytest.raises(UpslopeError, match="its dtype is"):
        policy(["0.5", "0.2", "a", "b"])


def test_a_policy_does_without_what_only_the_critic_reads(trained):
    policy, env = upslope.load(trained("host less"), checkpoint="last"), user_environments.Told()
    observation, _ = env.reset(seed=3)
    alone = {name: x for name, x in observation.items() if name != "more"} | {"more": observation["more"]}
    other = alone | {"more": ({**observation["more"][0], "bits": np.ones(3, np.int8)}, np.float32(77))}
    log_probs = [policy.distribution(policy.as_batch(x, "policy")[0]).log_probs() for x in (observation, other)]
    np.testing.assert_array_equal(*log_probs)
    assert policy.value(other) != policy.value(observation)
    partial = upslope.load(trained("compiled pictures"), checkpoint="last")
    board = np.zeros((6, 6, 2), np.uint8)
    partial((board, 0))
    assert np.isfinite(partial.with_log_prob((board, 1))[1])


def test_another_environment_is_told_by_the_key_that_differs(trained, tmp_path):
    path = trained("host")
    words = "its observations at `more/0` had the parts bits, digits, and now have digits"
    with pytest.raises(UpslopeError, match=words):
        upslope.evaluate(path, environment=lambda: make("user_environments:Told", **IGNORED).create())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("missoin",), "no `missoin`: they have the keys .*mission"),
        (("more/0", "more/1", "deep", "mission", "position", "side"), "nothing is left of the observations"),
    ],
)
def test_keys_that_cannot_be_left_out_are_refused(keys: tuple[str, ...], words: str):
    with pytest.raises(UpslopeError, match=words):
        make("user_environments:Told", ignore_observation=keys)
    with pytest.raises(UpslopeError, match=r"have the keys 0, 1, 2, 3\. Correct --ignore-observation x"):
        make("CartPole-v1", ignore_observation=("x",))


def test_a_number_of_a_vector_can_be_left_out():
    less, whole = make("CartPole-v1", ignore_observation=("1", "3")), make("CartPole-v1")
    seen, shown = (world.create().reset(seed=4)[0] for world in (less, whole))
    assert (seen == shown[[0, 2]]).all() and less.observation_space.shape == (2,)
    assert (less.observation_space.high == whole.observation_space.high[[0, 2]]).all()
    compiled = make("jax:CartPole-v1", ignore_observation=("1", "3"))
    state, observation = compiled.reset(jax.random.key(0))
    assert (observation == state[np.array([0, 2])]).all()
    inner = make("user_environments:Pictures", ignore_observation=("boards", "picture"))
    assert set(inner.observation_space.spaces) == {"steps"}
    with pytest.raises(UpslopeError, match="nothing is left of the observations"):
        make("CartPole-v1", ignore_observation=("0", "1", "2", "3"))
