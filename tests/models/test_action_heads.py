"""Heads with several parts and squashed actions: shapes, dtypes, masks, and the meaning of the network's outputs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import user_environments as own
from gymnasium import spaces

from upslope.engines.columns import one_by_one
from upslope.errors import UpslopeError
from upslope.models.description import from_json, to_json
from upslope.models.heads import HEADS, head_of, with_policy

HEAD = head_of(own.HYBRID)
INNER = spaces.Dict({"b": spaces.Discrete(4, start=-1), "a": own.HYBRID})
NESTED = spaces.Tuple([spaces.Box(0, 1, (), np.float16), INNER])
SHORT = spaces.Dict(
    {
        "a": spaces.Discrete(3, start=2, dtype=np.uint8),
        "b": spaces.Tuple([spaces.Discrete(3, dtype=np.int32), spaces.MultiDiscrete([2, 3], dtype=np.int8)]),
    }
)
BOX = spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 10.0]), (2,), np.float64)


def policy_of(space: spaces.Space, *, squashed: bool = False, state_std: bool = False) -> Any:
    kind = "squashed" if squashed else "gaussian"
    return with_policy(head_of(space), "It", kind=kind, state_std=state_std)


@pytest.mark.parametrize("space", [own.HYBRID, NESTED, spaces.Tuple([spaces.Discrete(3)]), SHORT])
@pytest.mark.parametrize("squashed", [False, True])
def test_sampled_actions_are_in_the_space_and_come_back(space: spaces.Space, squashed: bool):
    head, generator = policy_of(space, squashed=squashed), np.random.default_rng(0)
    assert from_json(to_json(head_of(space)), HEADS) == head_of(space) == head_of(head.space())
    action = np.stack([head.random(generator) for _ in range(50)])
    assert action.shape == (50, *head.sample_shape) and action.dtype == np.float32
    taken = one_by_one(head.to_environment(action))
    assert all(space.contains(one) for one in taken)
    again = one_by_one(head.replayed(head.kept(action, head.to_environment(action))))
    assert all(jax.tree.all(jax.tree.map(np.array_equal, a, b)) for a, b in zip(taken, again, strict=True))
    if head.boxes:
        np.testing.assert_allclose(head.unsquashed(head.squashed(action)), action, atol=1e-4)
    outputs, scales = np.zeros((50, head.num_outputs), np.float32), np.zeros(head.num_scales, np.float32)
    policy = head.distribution(outputs, scales)
    assert policy.log_prob(action).shape == (50,) and policy.widths[1] == head.sample_shape[0]


def test_a_compiled_environment_counts_choices_from_0():
    action = jnp.asarray([[0.5, -9.0, 1, 0, 1, 2, 2]], jnp.float32)
    given = HEAD.to_compiled(action)
    assert (given["arm"][0] == jnp.array([0.5, -2.0])).all() and given["arm"][0].dtype == jnp.float32
    assert (given["arm"][1] == jnp.array([1, 0])).all() and given["arm"][1].dtype == jnp.int8
    assert (given["keys"] == jnp.array([1, 2])).all() and given["tool"] == 2 and given["tool"].dtype == jnp.int32
    assert HEAD.to_environment(np.asarray(action))["tool"] == 3, "the space starts at 1"
    # One of two numbers is clipped. Actions with several axes keep their shape in the environment.
    assert HEAD.outside(action) == 0.5
    several = head_of(spaces.MultiDiscrete([[2, 3], [4, 5]])).to_compiled(jnp.asarray([[1, 2, 3, 4]]))
    assert several.shape == (1, 2, 2) and several[0, 1, 1] == 4


def test_masks_of_parts_in_both_forms():
    tool, bits, keys = np.array([1, 0, 1]), np.array([2, 0], np.int8), (np.array([0, 1]), np.ones(3, np.int8))
    flat = [1, 1, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1]
    for mask in ({"tool": tool, "arm": (None, bits), "keys": keys}, flat, np.array(flat, bool)):
        assert HEAD.flat_mask(mask).astype(int).tolist() == flat
    assert HEAD.flat_mask({"tool": tool, "arm": None, "keys": None}).astype(int).tolist() == [1] * 9 + [1, 0, 1]
    drawn = np.stack([HEAD.random(np.random.default_rng(k), np.array(flat, bool)) for k in range(20)])
    assert (drawn[:, 3] == 0).all() and (drawn[:, 4] == 1).all() and (drawn[:, 6] != 1).all()
    masks = np.array([flat] * 20, bool)
    assert HEAD.permits(masks, drawn).all() and HEAD.allows_some(masks).all()
    drawn[0, 6] = 1
    assert not HEAD.permits(masks, drawn)[0]
    masks[1, 4:6] = False
    assert HEAD.allows_some(masks).tolist() == [True, False] + [True] * 18
    pair = head_of(spaces.Tuple([spaces.Box(0, 1, (2,)), spaces.Discrete(2)]))
    assert pair.flat_mask((None, [0, 1])).tolist() == pair.flat_mask([0, 1]).tolist() == [False, True]
    for mask, words in (
        ({"tool": tool}, "keys 'tool', but needs 'arm', 'keys', 'tool'"),
        ({"tool": [1, 1], "arm": None, "keys": None}, r"at `tool`, it has the shape \(2,\), but \(3,\)"),
        ({"tool": tool, "arm": ([1, 1], None), "keys": None}, "at `arm`, at `0`, actions of this space cannot"),
    ):
        with pytest.raises(ValueError, match=words):
            HEAD.flat_mask(mask)


def test_recorded_choices_of_parts_are_checked():
    refuse = lambda words: UpslopeError(words)  # noqa: E731
    good = np.array([[0.5, 99.0, 1, 0, 1, 2, 2]], np.float32)
    HEAD.check(good, refuse)
    for place, value, words in ((6, 3.0, "at `tool`"), (4, 0.5, "at `keys`"), (3, -1.0, "at `arm`, at `1`")):
        wrong = good.copy()
        wrong[0, place] = value
        with pytest.raises(UpslopeError, match=words):
            HEAD.check(wrong, refuse)


def test_more_choices_than_a_float_holds_are_refused_by_name():
    with pytest.raises(UpslopeError, match=r"My-v0 has 33,554,432 choices at `a/0`"):
        head_of(spaces.Dict({"a": spaces.Tuple([spaces.Discrete(2**25)])}), "My-v0")


def test_a_squashed_action_at_its_limits_is_the_bound_in_the_environments_units():
    head = policy_of(BOX, squashed=True)
    taken = head.to_environment(np.array([[-50.0, 50.0], [0.0, 0.0], [np.arctanh(0.5), -0.2]], np.float32))
    np.testing.assert_array_equal(taken[:2], [[-1, 10], [0, 5]])
    assert taken[2] == pytest.approx([0.5, 5 + 5 * np.tanh(-0.2)]) and taken.dtype == np.float64
    assert head.outside(jnp.zeros((3, 2))).tolist() == [0, 0, 0]


def test_sigma_of_the_state_starts_at_its_parameter_and_stays_within_limits():
    head = policy_of(BOX, state_std=True)
    assert (head.num_outputs, head.num_scales) == (4, 2)
    start = head.distribution(jnp.zeros((1, 4)), jnp.full(2, -0.5))
    plain = head_of(BOX).distribution(jnp.zeros((1, 2)), jnp.full(2, -0.5))
    np.testing.assert_array_equal(start.log_std, plain.log_std)
    far = head.distribution(jnp.asarray([[0.0, 0.0, 50.0, -50.0]]), jnp.zeros(2))
    np.testing.assert_allclose(far.log_std, np.log([[1, 5]]) + np.array([2, -5]), rtol=1e-6)


@pytest.mark.parametrize("squashed", [False, True])
def test_the_slope_of_sigma_of_the_state_is_that_of_finite_differences(squashed: bool):
    head, action = policy_of(BOX, squashed=squashed, state_std=True), np.array([[0.4, 0.7]])
    outputs, scales = np.array([[0.1, -0.2, 0.3, -0.4]]), np.array([-0.5, 0.2])

    def by_hand(outputs: np.ndarray, scales: np.ndarray) -> float:
        mean, std = outputs[0, :2], np.exp(scales + outputs[0, 2:])
        half, centre = np.array([1.0, 5.0]), np.array([0.0, 5.0])
        if squashed:
            return float(scipy.stats.norm(mean, std).logpdf(action).sum() - np.log(half / np.cosh(action) ** 2).sum())
        return float(scipy.stats.norm(centre + half * mean, half * std).logpdf(action).sum())

    ours = lambda outputs, scales: head.distribution(outputs, scales).log_prob(jnp.asarray(action))[0]  # noqa: E731
    given = jnp.asarray(outputs, jnp.float32), jnp.asarray(scales, jnp.float32)
    assert float(ours(*given)) == pytest.approx(by_hand(outputs, scales), rel=1e-5)
    slopes = np.concatenate([np.ravel(x) for x in jax.grad(ours, (0, 1))(*given)])
    both, step = np.concatenate([outputs[0], scales]), 1e-5
    moved = [both + step * one for one in np.eye(6)], [both - step * one for one in np.eye(6)]
    up, down = ([by_hand(x[None, :4], x[4:]) for x in side] for side in moved)
    np.testing.assert_allclose(slopes, (np.array(up) - np.array(down)) / (2 * step), rtol=1e-3, atol=1e-4)


INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_a_choice_has_the_dtype_of_its_space(dtype: str):
    space = spaces.Discrete(3, start=5, dtype=np.dtype(dtype).type)
    head: Any = head_of(space)
    assert head.space() == space and from_json(to_json(head), HEADS) == head
    assert head_of(spaces.Discrete(3, start=5)).in_space(space) == head
    taken = head.to_environment(np.arange(3, dtype=np.int32))
    assert taken.dtype == dtype and taken.tolist() == [5, 6, 7] and all(map(space.contains, taken))


def test_a_description_of_an_earlier_version_has_64_bit_choices_and_is_written_as_then():
    described = {"kind": "DiscreteHead", "n": 3, "start": 1}
    assert from_json(described, HEADS).dtype == "int64"
    assert to_json(head_of(spaces.Discrete(3, start=1))) == described
    assert to_json(head_of(spaces.Discrete(3, start=1, dtype=np.uint8))) == described | {"dtype": "uint8"}
    for dtype, start, n in (
        ("float32", 0, 3),
        (["uint8"], 0, 3),
        ("uint8", 254, 3),
        ("uint8", -1, 3),
        ("int8", 0, 129),
    ):
        with pytest.raises((ValueError, TypeError), match="dtype"):
            from_json({"kind": "DiscreteHead", "n": n, "start": start, "dtype": dtype}, HEADS)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=254, dtype=np.uint8),
        spaces.MultiDiscrete([2, 100], start=[0, 100], dtype=np.int8),
        spaces.Discrete(3, start=2**62),
    ],
)
def test_choices_beyond_their_dtype_are_refused(space: Any):
    with pytest.raises(
        UpslopeError, match=r"It takes actions from \d+ to \d+ at `a`, .* can only be from .*Count from 0"
    ):
        head_of(spaces.Dict({"a": space}), "It")
