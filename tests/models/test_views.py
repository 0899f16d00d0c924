"""Restricting the parts of the observation that the policy and the critic read, in networks and in runs."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces
from run_helpers import SEGMENTS, metrics_of

import upslope
from upslope.config.prepare import prepare
from upslope.core.types import Transition
from upslope.environments.ignoring import ignoring
from upslope.errors import UpslopeError
from upslope.models.agent import initialise_agent
from upslope.models.build import ModelSpec, networks, unusual_parts
from upslope.models.choice_heads import DiscreteHead
from upslope.models.composed import networks_of
from upslope.models.encoders import encoder_of
from upslope.models.views import WHOLE, view_of

ARM = spaces.Dict(
    {
        "arm": spaces.Dict({"angles": spaces.Box(-1, 1, (4,)), "held": spaces.MultiBinary(2)}),
        "camera": spaces.Box(0, 255, (6, 6), np.uint8),
        "goal": spaces.Discrete(3),
    }
)
"""A space whose features, in the order of the keys, are 0 to 3 for `angles`, 4 and 5 for `held`, and 6 to 8 for `goal`.
`camera` is an image."""


def view(*keys: str, space: Any = ARM, flag: str = "--policy-reads") -> Any:
    encoder = encoder_of(space, "it")
    return view_of(encoder, networks_of(encoder), keys, flag)


@pytest.mark.parametrize(
    ("keys", "spans", "images", "arrays"),
    [
        (("arm",), ((0, 6),), (), ("arm/angles", "arm/held")),
        (("goal", "arm/angles/1"), ((1, 2), (6, 9)), (), ("arm/angles", "goal")),
        (("arm/angles/1-3",), ((1, 4),), (), ("arm/angles",)),
        (("arm/angles/0", "arm/angles/2", "camera"), ((0, 1), (2, 3)), (0,), ("arm/angles", "camera")),
        (("camera",), (), (0,), ("camera",)),
        (("arm/held", "arm/held", "arm"), ((0, 6),), (), ("arm/angles", "arm/held")),
    ],
)
def test_keys_name_parts_at_any_depth_numbers_and_ranges(keys: Any, spans: Any, images: Any, arrays: Any):
    found = view(*keys)
    assert (found.spans, found.images, found.keys) == (spans, images, arrays)


CAMERA = spaces.Box(0, 255, (6, 6), np.uint8)
NUMBER, PAIR = spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (2,))
UNNAMED = spaces.Dict({"": spaces.Dict({"": PAIR, "x": NUMBER}), "x": spaces.Discrete(3)})
"""The features 0 and 1 have the key `/`, 2 has `/x`, and 3 to 5 have `x`."""


@pytest.mark.parametrize(
    ("keys", "spans"),
    [
        (("",), ((0, 3),)),
        (("/",), ((0, 2),)),
        (("//1",), ((1, 2),)),
        (("/x",), ((2, 3),)),
        (("x", "/"), ((0, 2), (3, 6))),
    ],
)
def test_empty_keys_are_named(keys: Any, spans: Any):
    assert view(*keys, space=UNNAMED).spans == spans
    whole = view("a b", space=spaces.Dict({"": NUMBER, "a b": NUMBER}))
    assert (whole.spans, whole.keys) == (((1, 2),), ("a b",))
    with pytest.raises(UpslopeError, match="--policy-reads '': the observations have no such part"):
        view("", space=PAIR)


@pytest.mark.parametrize(
    ("keys", "space", "words"),
    [
        (
            ("a/b",),
            {"a/b": NUMBER, "a": spaces.Dict({"b": NUMBER})},
            r"observation\['a'\]\['b'\] and observation\['a/b'\]",
        ),
        (("a",), {"a/b": NUMBER, "a": spaces.Dict({"b": NUMBER})}, "cannot tell two parts apart.*share the name `a/b`"),
        (
            ("a/1",),
            {"a/1": NUMBER, "a": PAIR},
            r"observation\['a'\]\[1\].* share the name `a/1`",
        ),
        (("a/1",), {"a/1": NUMBER, "a": spaces.Tuple([NUMBER, NUMBER])}, "share the name `a/1`. Rename one of them"),
    ],
)
def test_a_name_of_two_parts_is_refused_by_every_flag(keys: Any, space: Any, words: str):
    space = spaces.Dict({"x": NUMBER, **space})
    assert view("x", space=space).keys == ("x",)
    with pytest.raises(UpslopeError, match=f"--policy-reads .*{words}"):
        view(*keys, space=space)
    if keys != ("a",):
        world = SimpleNamespace(observation_space=space)
        with pytest.raises(UpslopeError, match=f"--ignore-observation {keys[0]}: .*{words}"):
            ignoring(world, keys, "It")


def test_an_image_has_a_name_of_its_own_and_other_arrays_need_none():
    same = spaces.Dict({"a/b": NUMBER, "a": spaces.Dict({"b": NUMBER})})
    model = networks(encoder_of(same, "it"), DiscreteHead(2), key=jax.random.key(0), memory="gru", memory_size=4)
    observation = {"a/b": jnp.ones((3, 1)), "a": {"b": jnp.ones((3, 1))}}
    outputs, _ = model.step(model.prepare(observation), model.start(3), jnp.ones(3, bool))
    assert outputs.policy.logits.shape == (3, 2)
    with pytest.raises(UpslopeError, match=r"An image must have a name of its own, but .*share the name `a/b`"):
        networks_of(encoder_of(spaces.Dict({"a/b": CAMERA, "a": spaces.Dict({"b": NUMBER})}), "it"))


def test_all_parts_together_are_the_whole():
    assert view("goal", "camera", "arm") == WHOLE
    assert view("0-3", space=spaces.Box(-1, 1, (4,))) == view("3", "1-2", "0", space=spaces.Box(-1, 1, (4,))) == WHOLE


def test_flattened_images_and_parts_of_tuples_are_features():
    pair = encoder_of(spaces.Tuple([ARM["camera"], spaces.Discrete(2)]), "it")
    assert view_of(pair, (), ("0",), "--critic-reads").spans == ((0, 36),)
    assert view_of(pair, networks_of(pair), ("1",), "--critic-reads").spans == ((0, 2),)


@pytest.mark.parametrize(
    ("keys", "space", "words"),
    [
        ((), ARM, "--policy-reads names no part"),
        (("gaol",), ARM, r"--policy-reads gaol: .*Did you mean goal\? Their parts: arm/angles, .*goal, arm/angles/0-3"),
        (("arm/angles/4",), ARM, "no such part"),
        (("arm/angles/2-4",), ARM, "arm/angles/2-4: the observations have no such part"),
        (("2-1",), spaces.Box(-1, 1, (4,)), "no such part"),
        (("0",), spaces.Discrete(3), "They have no parts"),
    ],
)
def test_other_keys_are_refused(keys: Any, space: Any, words: str):
    with pytest.raises(UpslopeError, match=words):
        view(*keys, space=space)


@pytest.mark.parametrize("memory", [None, "gru"])
@pytest.mark.parametrize("has_camera", [False, True])
def test_each_network_depends_on_what_it_reads_and_on_nothing_else(memory: str | None, has_camera: bool):
    parts = dict(ARM.spaces) if has_camera else {name: x for name, x in ARM.spaces.items() if name != "camera"}
    encoder = encoder_of(spaces.Dict(parts), "it")
    reads = {"policy": ("arm/angles/1-2", "goal"), "value": ("camera",) if has_camera else ("arm/held",)}
    settings: dict[str, Any] = {
        "hidden_sizes": (8,),
        "memory": memory,
        "policy_reads": reads["policy"],
        "critic_reads": reads["value"],
    }
    model = networks(encoder, DiscreteHead(3), key=jax.random.key(0), **settings)
    space = spaces.Dict(parts)
    space.seed(0)
    first, other = (jax.tree.map(lambda *x: np.stack(x), *(space.sample() for _ in range(16))) for _ in range(2))

    def outputs(observation: Any) -> dict[str, np.ndarray]:
        features = model.prepare(jax.tree.map(jnp.asarray, observation))
        found = model.step(features, model.start(16), jnp.ones(16, bool))[0]
        return {"policy": np.asarray(found.policy.logits), "value": np.asarray(found.value)}

    def mixed(group: str) -> Any:
        """Combine the parts of `first` that the group reads with everything else from `other`."""
        arm = {"angles": other["arm"]["angles"].copy(), "held": other["arm"]["held"]}
        if group == "policy":
            arm["angles"][:, 1:3] = first["arm"]["angles"][:, 1:3]
            return {**other, "arm": arm, "goal": first["goal"]}
        return (
            {**other, "camera": first["camera"]}
            if has_camera
            else {**other, "arm": {**arm, "held": first["arm"]["held"]}}
        )

    before, elsewhere = outputs(first), outputs(other)
    for group in ("policy", "value"):
        np.testing.assert_array_equal(outputs(mixed(group))[group], before[group])
        assert (elsewhere[group] != before[group]).any(axis=-1).any(), "what it reads matters"


SMALL: dict[str, Any] = SEGMENTS | {"hidden_sizes": (8,), "steps": 64, "quiet": True, "normalize_observations": True}
OF_OBSERVATIONS = ("health/observation", "health/action_effect", "health/next_row")


def test_reading_the_same_parts_is_leaving_the_others_out(tmp_path):
    both: dict[str, Any] = {"policy_reads": ("0", "2"), "critic_reads": ("2", "0")}
    one = upslope.train("jax:CartPole-v1", folder=tmp_path, name="reads", **SMALL, **both)
    other = upslope.train("jax:CartPole-v1", folder=tmp_path, name="without", ignore_observation=("1", "3"), **SMALL)
    for mine, theirs in zip(metrics_of(one.path), metrics_of(other.path), strict=True):
        rows = [
            {n: x for n, x in row.items() if x is not None and not n.startswith(OF_OBSERVATIONS)}
            for row in (mine, theirs)
        ]
        assert rows[0] == pytest.approx(rows[1], rel=1e-5)  # two programs may round differently


class Guess(upslope.CompiledEnvironment):
    """Episodes have one step. The observation's key `private` determines the action that pays."""

    observation_space = spaces.Dict({"open": spaces.Box(-1, 1, (2,)), "private": spaces.Box(-1, 1, (1,))})
    action_space = spaces.Discrete(2)
    max_episode_steps = 1

    def reset(self, key: Any) -> Any:
        drawn = jax.random.uniform(key, (3,), jnp.float32, -1, 1)
        return drawn, {"open": drawn[:2], "private": drawn[2:]}

    def step(self, key: Any, state: Any, action: Any) -> Any:
        observation = {"open": state[:2], "private": state[2:]}
        return state, Transition(observation, state[2] * action, jnp.ones((), bool), jnp.zeros((), bool))


def guess() -> Guess:
    return Guess()


def test_a_loaded_policy_does_not_need_the_critics_private_keys(tmp_path):
    settings = {name: value for name, value in SMALL.items() if name != "quiet"}
    run = upslope.train(
        "jax:test_views:guess", folder=tmp_path, name="run", quiet=True, policy_reads=("open",), **settings
    )
    policy = run.load()
    whole = {"open": np.array([0.3, -0.4], np.float32), "private": np.array([0.9], np.float32)}
    alone = {"open": whole["open"]}
    action, log_prob = policy.with_log_prob(whole, deterministic=True)
    assert policy.with_log_prob(alone, deterministic=True) == (action, log_prob)
    assert policy(whole | {"private": np.array([np.nan])}) == action
    batch = {"open": np.stack([whole["open"]] * 3)}
    assert policy(batch).tolist() == [action] * 3
    assert np.isfinite(policy.value(whole))
    with pytest.raises(UpslopeError, match="This policy reads observations of shape"):
        policy.value(alone)
    with pytest.raises(UpslopeError, match="This policy reads observations of shape"):
        policy({"private": whole["private"]})


def test_a_run_says_what_is_read():
    settings: dict[str, Any] = {"hidden_sizes": (4,), "policy_reads": ("arm", "goal"), "critic_reads": None}
    spec = ModelSpec(encoder_of(ARM, "it"), DiscreteHead(2), settings)
    assert unusual_parts(spec) == ["camera read by board", "the policy reads only arm, goal"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shared_trunk": True, "policy_reads": ("0",)}, "--policy-reads applies only to --model perceptron without"),
        ({"model": "own_models:Memoryless", "critic_reads": ("0",)}, "--critic-reads applies only to --model percep"),
        ({"algorithm": "reinforce", "critic_reads": ("0",)}, "--critic-reads applies only to --estimator baseline"),
        ({"shared_trunk": True, "critic_epochs": 3}, "--critic-epochs applies only to a separate critic"),
        ({"model": "own_models:SharedTrunk", "critic_epochs": 3}, "--critic-epochs applies only to a separate critic"),
        ({"model": "own_models:Memoryless", "value_coefficient": 1.0}, "--value-coefficient applies only to"),
        ({"model": "own_models:Memoryless", "sequence_length": 4}, "--sequence-length applies only to"),
    ],
)
def test_settings_that_this_model_does_not_read_are_refused(settings: dict[str, Any], words: str):
    algorithm = settings.pop("algorithm", "ppo")
    with pytest.raises(UpslopeError, match=words):
        prepare("jax:CartPole-v1", algorithm, settings=settings)


def test_views_of_a_trunk_are_refused_where_nobody_asked():
    settings: dict[str, Any] = {"hidden_sizes": (4,), "policy_reads": ("0",), "shared_trunk": True}
    with pytest.raises(UpslopeError, match="with --shared-trunk there is only one"):
        initialise_agent(
            jax.random.key(0), ModelSpec(encoder_of(spaces.Box(-1, 1, (2,)), "it"), DiscreteHead(2), settings)
        )


@pytest.mark.parametrize("settings", [{"memory": "gru", "memory_size": 4}, {"shared_trunk": True}, {}])
def test_no_hidden_layers_leave_the_last_ones(settings: dict[str, Any]):
    model = networks(
        encoder_of(spaces.Box(-1, 1, (4,)), "it"), DiscreteHead(2), key=jax.random.key(0), hidden_sizes=(), **settings
    )
    outputs, _ = model.step(model.prepare(jnp.ones((3, 4))), model.start(3), jnp.ones(3, bool))
    assert outputs.value.shape == (3,) and outputs.policy.logits.shape == (3, 2)


def test_a_linear_policy_is_trained_on_the_host(tmp_path):
    run = upslope.train("CartPole-v1", folder=tmp_path, name="linear", **(SMALL | {"hidden_sizes": (), "steps": 32}))
    assert all(np.isfinite(row["policy/loss"]) for row in run.metrics())
    policy = run.load()
    assert policy(np.zeros(4)) in (0, 1)
    assert [w.shape for w in policy.agent.model.actor.network.weights] == [(4, 2)]
