"""JSON must be unambiguous: anything that two parsers could read differently is refused."""

import pytest

from upslope.core.strict_json import parse_json


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "a": 3}}]'])
def test_a_name_given_twice_is_refused(text: str):
    with pytest.raises(ValueError, match="'a' is given more than once"):
        parse_json(text)


def test_other_names_are_read():
    assert parse_json('{"a": {"a": 1}, "b": [{"a": 2}, {"a": 3}]}') == {"a": {"a": 1}, "b": [{"a": 2}, {"a": 3}]}
