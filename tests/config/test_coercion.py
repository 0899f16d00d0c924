"""Settings from the command line, YAML, JSON and Python all go through the same parser."""

from typing import Any, Literal

import numpy as np
import pytest

import upslope
from upslope.config.coercion import coerce
from upslope.config.config import Config, canonical, configure

SOUND: list[tuple[Any, Any, Any]] = [
    (int, "1e6", 1_000_000),
    (int, "1_000_000", 1_000_000),
    (int, 1e6, 1_000_000),
    (int, np.int64(5), 5),
    (int | None, None, None),
    (int | None, "none", None),
    (float, "1e-3", 0.001),
    (float, 1, 1.0),
    (float, np.float32(0.5), 0.5),
    (bool, False, False),
    (str | None, "a", "a"),
    (tuple[int, ...], [64, "32"], (64, 32)),
    (tuple[int, ...], 64, (64,)),
    (Literal["tanh", "relu"], "relu", "relu"),
    (Literal["a", "b"] | None, None, None),
    (dict[str, Any], {"a": [1, None]}, {"a": [1, None]}),
    (dict[str, Any], '{"a": 1}', {"a": 1}),
]
UNSOUND: list[tuple[Any, Any, str]] = [
    (int, "1.5", "a whole number"),
    (int, 1.5, "a whole number"),
    (int, True, "a whole number"),
    (int, None, "a whole number"),
    (int, [5], "a whole number"),
    (int, "inf", "a whole number"),
    (int, "1e999", "a whole number"),
    (int, "9" * 5000, "a whole number"),
    (float, "fast", "a number"),
    (float, True, "a number"),
    (float | None, "fast", "a number"),
    (bool, 1, "true or false"),
    (bool, "yes", "true or false"),
    (tuple[int, ...], "64 64", "a list of whole numbers"),
    (tuple[int, ...], [True], "a list of whole numbers"),
    (Literal["tanh", "relu"], "gelu", "one of tanh, relu"),
    (Literal["a", "b"] | None, "c", "one of a, b"),
    (dict[str, Any], [1], "a mapping of JSON values"),
    (dict[str, Any], '{"a": 1, "a": 2}', "a mapping of JSON values"),
    (dict[str, Any], '{"a": {"b": 1, "b": 2}}', "a mapping of JSON values"),
    (str, ["a"], "text"),
    (str, {"a": "b"}, "text"),
    (str, None, "text"),
    (str | None, True, "text"),
    (tuple[str, ...], [["a"]], "a list of strings"),
    (tuple[str, ...], [None], "a list of strings"),
    (dict[str, Any], {"a": float("nan")}, "a mapping of JSON values"),
    (dict[str, Any], {"a": object()}, "a mapping of JSON values"),
]


@pytest.mark.parametrize(("kind", "value", "read"), SOUND)
def test_a_value_is_read_as_the_type_of_its_field(kind: Any, value: Any, read: Any):
    found = coerce("x", value, kind)
    assert found == read and type(found) is type(read)


@pytest.mark.parametrize(("kind", "value", "expected"), UNSOUND)
def test_what_cannot_be_read_is_refused_in_words(kind: Any, value: Any, expected: str):
    with pytest.raises(upslope.UpslopeError, match=f"x must be {expected}.*, not "):
        coerce("x", value, kind)


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (str, upslope.GAE, "text here.*upslope.core.estimators:GAE"),
        (str, upslope.GAE(0.9), r"text here.*as module:Name\.$"),
        (str, lambda: 0, r"text here.*as module:Name\.$"),
        (str, str.upper, r"text here.*as module:Name\.$"),
        (Literal["tanh"], np.tanh, r"one of tanh, not <ufunc 'tanh'>\.$"),
        (str | None, configure, "text here.*upslope.config.config:configure"),
        (float, configure, "a number.*`schedules`"),
    ],
)
def test_an_object_in_place_of_its_name_is_refused_with_advice(kind: Any, value: Any, said: str):
    with pytest.raises(upslope.UpslopeError, match=f"x must be {said}"):
        coerce("x", value, kind)


def test_a_config_survives_its_own_json():
    config = configure("CartPole-v1", is_continuous=False, max_grad_norm=float("inf"), env_kwargs={"a": 1}, steps="1e5")
    assert config.steps == 100_000
    assert Config(**canonical(config.to_json())) == config
