"""Encoders for dictionaries, tuples and combined choices, their JSON descriptions, and what they refuse."""

import json
from collections import OrderedDict
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from equinox.nn import Conv2d, MaxPool2d
from gymnasium import spaces
from user_environments import Senses, Told

from upslope.core.arrays import shaped_like
from upslope.core.space_descriptions import MAX_DEPTH, check_spaces
from upslope.errors import UpslopeError
from upslope.models import convolutions as convolutions_module
from upslope.models import convolve as convolve_module
from upslope.models.choice_heads import DiscreteHead
from upslope.models.composed import networks_of
from upslope.models.convolutions import convolutions, flat_size
from upslope.models.convolve import convolve, highest
from upslope.models.description import from_json, to_json
from upslope.models.encoders import ENCODERS, BoxEncoder, DictEncoder, ImageEncoder, encoder_of, image_layout
from upslope.models.normaliser import normalised, start_normaliser, updated
from upslope.models.perceptrons import perceptrons

SPACE = Senses().observation_space


def one(seed: int) -> Any:
    """Sample an observation from the space, as arrays."""
    SPACE.seed(seed)
    return jax.tree.map(np.asarray, shaped_like(encoder_of(SPACE, "world").shapes, SPACE.sample()))


def by_hand(x: Any) -> np.ndarray:
    """Compute the features of one observation: keys in alphabetical order, choices one-hot."""
    inner, far = x["more"]
    first, second = inner["digits"]
    digits = [*np.eye(3)[first - 1], *np.eye(4)[second]]
    return np.array([*inner["bits"], *digits, far, *x["position"], *np.eye(2)[x["side"] - 5]], np.float32)


@pytest.mark.parametrize("arrays", [np.asarray, jnp.asarray])
def test_a_dictionary_is_read_key_by_key_with_and_without_batch_axes(arrays: Any):
    encoder, seen = encoder_of(SPACE, "world"), [one(seed) for seed in range(6)]
    assert encoder.num_features == 3 + 7 + 1 + 1 + 2
    for x in seen:
        np.testing.assert_array_equal(encoder.encode(jax.tree.map(arrays, x)), by_hand(x))
    batch = jax.tree.map(lambda *x: arrays(np.stack(x)), *seen)
    expected = np.stack([by_hand(x) for x in seen])
    np.testing.assert_array_equal(encoder.encode(batch), expected)
    twice = jax.tree.map(lambda x: x.reshape(2, 3, *x.shape[1:]), batch)
    np.testing.assert_array_equal(encoder.encode(twice), expected.reshape(2, 3, -1))


def test_only_the_real_numbers_of_a_dictionary_are_normalised():
    encoder = encoder_of(SPACE, "world")
    batch = jax.tree.map(lambda *x: jnp.stack(x)[:, None], *[one(seed) for seed in range(9)])
    normaliser = updated(start_normaliser(encoder.normalised), batch, jnp.ones((9, 1), bool))
    seen = normalised(normaliser, batch)
    for same in (lambda x: x["side"], lambda x: x["more"][0]["bits"], lambda x: x["more"][0]["digits"]):
        np.testing.assert_array_equal(same(seen), same(batch))
    for real in (lambda x: x["position"], lambda x: x["more"][1]):
        x = np.asarray(real(batch), np.float64)
        np.testing.assert_allclose(real(seen), (x - x.mean()) / x.std(), atol=1e-4)


def test_a_description_of_a_dictionary_survives_strict_json_whatever_the_order_of_its_keys():
    encoder = encoder_of(SPACE, "world")
    text = json.dumps(to_json(encoder), allow_nan=False)
    again = from_json(json.loads(text), ENCODERS)
    assert again == encoder and hash(again) == hash(encoder)
    turned = json.loads(text)
    turned["parts"] = dict(reversed(turned["parts"].items()))
    assert from_json(turned, ENCODERS) == encoder
    # The space that a user's own model gets has the same structure.
    assert encoder_of(encoder.space(), "world") == encoder


def nested(depth: int) -> Any:
    """Return a description that is nested this deeply."""
    description: Any = {"kind": "BoxEncoder", "shape": [2]}
    for _ in range(depth):
        description = {"kind": "TupleEncoder", "parts": [description]}
    return description


BOX = {"kind": "BoxEncoder", "shape": [2]}


@pytest.mark.parametrize(
    "description",
    [
        nested(MAX_DEPTH + 1),
        {"kind": "DictEncoder", "parts": {}},
        {"kind": "DictEncoder", "parts": [BOX]},
        {"kind": "TupleEncoder", "parts": {"a": BOX}},
        {"kind": "TupleEncoder", "parts": [BOX] * 5000},
        {"kind": "TupleEncoder", "parts": [3]},
        {"kind": "TupleEncoder", "parts": [{"kind": "BoxHead", "shape": [1], "low": [0], "high": [1]}]},
        {"kind": "DictEncoder", "parts": {"a": BOX}, "more": 1},
        {"kind": "DictEncoder"},
        {"kind": "MultiDiscreteEncoder", "shape": [2], "sizes": [2], "start": [0, 0]},
        {"kind": "MultiDiscreteEncoder", "shape": [2], "sizes": [2, 2**31], "start": [0, 0]},
        {"kind": "MultiBinaryEncoder", "shape": [-1]},
    ],
)
def test_a_description_that_is_none_is_refused(description: Any):
    for read in (lambda: from_json(description, ENCODERS), lambda: check_spaces({"observation": description})):
        with pytest.raises((ValueError, TypeError, KeyError)):
            read()


def test_a_description_as_deep_as_allowed_is_read():
    assert from_json(nested(MAX_DEPTH), ENCODERS).num_features == 2


def test_what_no_network_reads_is_refused_by_all_of_its_keys_with_the_flags_that_leave_them_out():
    with pytest.raises(UpslopeError) as refused:
        encoder_of(Told().observation_space, "Told")
    words = str(refused.value)
    assert "`mission`" in words and "`deep/a/b`" in words
    assert "--ignore-observation deep/a/b --ignore-observation mission" in words


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(3, start=2**31), spaces.MultiDiscrete([2, 3], start=[0, -(2**31)])],
)
def test_numbers_beyond_32_bits_are_refused_with_their_key(space: Any):
    with pytest.raises(UpslopeError, match="at `inner/0`, whose values do not fit into 32 bits"):
        encoder_of(spaces.Dict({"inner": spaces.Tuple([space])}), "world")


def test_recorded_observations_that_no_space_holds_are_refused_with_their_key():
    encoder = encoder_of(SPACE, "world")
    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(lambda x: x[None], one(0)))
    arrays = {f"observation{jax.tree_util.keystr(path)}": x for path, x in leaves}
    encoder.check("observation", arrays, UpslopeError)
    for name, wrong in (("['side']", 4), ("['more'][0]['bits']", 2), ("['more'][0]['digits']", 0)):
        broken = arrays | {f"observation{name}": np.full_like(arrays[f"observation{name}"], wrong)}
        with pytest.raises(UpslopeError, match="must contain integers") as refused:
            encoder.check("observation", broken, UpslopeError)
        assert f"observation{name}" in str(refused.value)


def test_any_mapping_and_list_is_put_into_the_structure_of_the_space():
    shapes, x = encoder_of(SPACE, "world").shapes, one(1)
    other = OrderedDict(reversed(list(x.items()))) | {"more": list(x["more"])}
    assert jax.tree.structure(shaped_like(shapes, other)) == jax.tree.structure(x)
    for wrong in ({}, x | {"z": 1}, x | {"more": x["more"][:1]}, x | {"more": 3}, 3, None):
        with pytest.raises(ValueError, match="it must"):
            shaped_like(shapes, wrong)
    told = x | {"mission": "go", "deep": {"a/b": 1}}
    found = shaped_like(shapes, told, ("mission", "deep/a/b"))
    assert jax.tree.structure(found) == jax.tree.structure(x)


@pytest.mark.parametrize(
    ("shape", "is_bytes", "size"),
    [
        ((84, 84), True, (84, 84, 1)),
        ((84, 84, 4), True, (84, 84, 4)),
        ((4, 84, 84), True, (84, 84, 4)),
        ((210, 160, 3), True, (210, 160, 3)),
        ((4, 84, 84, 3), True, (84, 84, 12)),
        ((4, 3, 84, 84), True, (84, 84, 12)),
        ((7, 7, 3), True, (7, 7, 3)),
        ((7, 7, 7), True, (7, 7, 7)),
        ((10, 10, 4), False, (10, 10, 4)),
        ((84, 84), False, None),
        ((2, 3, 4), False, None),
        ((2, 2, 3), True, None),
        ((6,), True, None),
    ],
)
def test_the_layout_of_an_image_is_that_of_its_shape(shape: Any, is_bytes: bool, size: Any):
    layout = image_layout(shape, is_bytes=is_bytes)
    assert (layout.size if layout else None) == size


def test_channels_and_frames_are_put_last():
    images = np.arange(2 * 4 * 6 * 5 * 3).reshape(2, 4, 6, 5, 3)  # two observations of four frames, channels last
    last = image_layout((4, 6, 5, 3), is_bytes=False).channels_last(images)
    assert last.shape == (2, 6, 5, 12)
    for frame, channel in ((0, 0), (1, 2), (3, 1)):
        assert (last[..., 3 * frame + channel] == images[:, frame, :, :, channel]).all()
    first = image_layout((3, 6, 5), is_bytes=True).channels_last(images[:, 0].transpose(0, 3, 1, 2))
    assert (first == images[:, 0]).all()


def test_a_board_tells_kinds_apart_and_a_picture_is_between_0_and_1():
    board, picture = ImageEncoder((4, 4)), ImageEncoder((40, 40))
    assert np.allclose(board.encode(np.full((1, 4, 4), 2, np.uint8)), np.log(3))
    assert np.allclose(picture.encode(np.full((1, 40, 40), 51, np.uint8)), 0.2)


@pytest.mark.parametrize("largest", [1, 2, 255])
def test_a_compiled_program_scales_boards_as_numpy_does(largest: int):
    board = ImageEncoder((4, 5, 3))
    images = np.random.default_rng(largest).integers(0, largest, (2, 3, 4, 5, 3), np.uint8, endpoint=True)
    found = np.asarray(jax.jit(board.scaled)(images))
    np.testing.assert_allclose(found, np.log1p(images.astype(np.float32)), rtol=2e-7)
    # Whether a batch holds larger numbers does not change a bit of the others.
    first = np.asarray(jax.jit(board.scaled)(np.minimum(images, 1)))
    assert (found[images <= 1] == first[images <= 1]).all()
    assert (board.encode(images) == np.log1p(images.astype(np.float32)).reshape(2, 3, 60)).all()


def test_perceptrons_read_an_image_as_bytes():
    image = np.random.default_rng(0).integers(0, 9, (7, 6, 6, 2), np.uint8)
    encoder = ImageEncoder((6, 6, 2))
    model = perceptrons(encoder, DiscreteHead(3), key=jax.random.key(0), hidden_sizes=(8,))
    features = model.prepare(jnp.asarray(image))
    assert features.shape == (7, 72) and features.dtype == jnp.uint8
    expected = model.critic(np.log1p(image.astype(np.float32)).reshape(7, 72))[:, 0]
    np.testing.assert_allclose(model.value(features), expected, rtol=1e-5)
    np.testing.assert_allclose(model.value(model.prepare(image)), expected, rtol=1e-5)  # NumPy, as on the host
    logits = model.actor.network(np.log1p(image.astype(np.float32)).reshape(7, 72))
    np.testing.assert_allclose(model.policy(features).logits, logits, atol=1e-5)


def test_convolutions_are_those_of_scipy():
    network = convolutions("board", (6, 5, 2), jax.random.key(0), np.random.default_rng(0))
    images = np.random.default_rng(1).standard_normal((3, 6, 5, 2)).astype(np.float32)
    kernel, bias = np.asarray(network.layers[0].weight), np.asarray(network.layers[0].bias)
    for image, found in zip(images, np.asarray(network(jnp.asarray(images))), strict=True):
        maps = [
            sum(scipy.signal.correlate2d(image[..., c], kernel[k, c], "valid") for c in range(2)) + bias[k]
            for k in range(16)
        ]
        flat = np.maximum(maps, 0).transpose(1, 2, 0).reshape(-1)
        expected = np.maximum(np.asarray(network.last.weight) @ flat + np.asarray(network.last.bias), 0)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_networks_have_the_published_shapes():
    # Mnih et al. 2015: 84 × 84 × 4 → 7 × 7 × 64 → 512; Espeholt et al. 2018: 84 → 42 → 21 → 11, times 32.
    assert flat_size("nature", (84, 84, 4)) == 3136
    assert flat_size("impala", (84, 84, 4)) == 11 * 11 * 32
    atari = {"": BoxEncoder((10, 10, 4)), "picture": ImageEncoder((84, 84, 4)), "middle": ImageEncoder((24, 24, 3))}
    assert [networks_of(encoder) for encoder in atari.values()] == [
        (("", "board"),), (("", "nature"),), (("", "impala"),)
    ]  # fmt: skip
    assert networks_of(ImageEncoder((84, 84)), ("perceptron",)) == ()
    both = DictEncoder((("a", ImageEncoder((40, 40))), ("b", ImageEncoder((40, 40)))))
    assert networks_of(both, ("impala", "b=nature")) == (("a", "impala"), ("b", "nature"))


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding"),
    [(9, 3, 1, 0), (9, 3, 1, 1), (21, 8, 4, 0), (11, 4, 2, 0), (10, 3, 2, 0)],
)
@pytest.mark.parametrize("limit", [2**16, 0])
def test_convolutions_as_products_are_equinoxs_with_their_gradient(
    side: int, kernel: int, stride: int, padding: int, limit: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(convolve_module, "LARGE", limit)
    monkeypatch.setattr(convolve_module, "SMALL", limit)
    layer = Conv2d(3, 5, kernel, stride, padding, key=jax.random.key(0))
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal((2, side, side, 3)).astype(np.float32))

    def theirs(weight: Any, x: Any) -> Any:
        made = equinox.tree_at(lambda made: made.weight, layer, weight)
        return jnp.moveaxis(jax.vmap(made)(jnp.moveaxis(x, -1, 1)), 1, -1) - layer.bias[:, 0, 0]

    def ours(weight: Any, x: Any) -> Any:
        return convolve(x, weight, stride, padding)

    expected = theirs(layer.weight, x)
    np.testing.assert_allclose(ours(layer.weight, x), expected, atol=1e-5)
    slope = jnp.asarray(generator.standard_normal(expected.shape).astype(np.float32))
    for mine, right in zip(*(jax.vjp(f, layer.weight, x)[1](slope) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(mine, right, atol=1e-4)


@pytest.mark.parametrize(("network", "side", "number"), [("nature", 84, 19), ("impala", 84, 2), ("board", 10, 70)])
def test_bytes_in_portions_are_read_as_xlas_convolutions_read_fractions(
    network: str, side: int, number: int, monkeypatch: pytest.MonkeyPatch
):
    made = convolutions(network, (side, side, 3), jax.random.key(0), np.random.default_rng(0))
    images = np.random.default_rng(1).integers(0, 256, (number, side, side, 3)).astype(np.uint8)

    def features_and_slope(x: Any) -> tuple[Any, Any]:
        weights, rest = equinox.partition(made, equinox.is_inexact_array)
        total = lambda weights: jnp.sum(jnp.sin(equinox.combine(weights, rest)(x)))  # noqa: E731
        return made(x), jax.jit(jax.grad(total))(weights)

    features, slope = features_and_slope(jnp.asarray(images))
    monkeypatch.setattr(convolve_module, "by_products", convolve_module.by_convolution)
    monkeypatch.setattr(convolutions_module, "in_portions", convolutions_module.flattened)
    expected, right = features_and_slope(jnp.asarray(images / np.float32(255)))
    np.testing.assert_allclose(features, expected, atol=1e-4)
    for mine, its in zip(jax.tree.leaves(slope), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-3 * float(jnp.abs(its).max()))


def test_the_highest_pixels_are_equinoxs():
    x = np.random.default_rng(0).standard_normal((2, 9, 7, 3)).astype(np.float32)
    theirs = jax.vmap(MaxPool2d(3, 2, padding=1))(jnp.moveaxis(jnp.asarray(x), -1, 1))
    np.testing.assert_allclose(highest(jnp.asarray(x), 3, 2, 1), jnp.moveaxis(theirs, 1, -1), atol=0)
