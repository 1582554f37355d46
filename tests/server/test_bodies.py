"""Strict JSON: what Python's own parser takes and we take too is the same value; the rest is one kind of error."""

import json

import pytest
from cdvft_server.bodies import _unique, parse_json
from cdvft_server.errors import ApiError
from hypothesis import given
from hypothesis import strategies as st

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=20,
)


@given(value=values, escaped=st.booleans())
def test_json_round_trips(value: object, escaped: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=escaped).encode()) == value


@given(data=st.binary(max_size=50) | st.text('{}[]":,\\u0dD8fTrue1eE+-. ', max_size=30).map(str.encode))
def test_anything_else_is_an_invalid_request(data: bytes) -> None:
    try:
        expected = json.loads(data)
    except (ValueError, RecursionError):
        expected = ApiError
    try:
        found = parse_json(data)
    except ApiError as error:
        found = type(error) if error.code == "invalid_request" and error.message else error
    assert found in (expected, ApiError)


@pytest.mark.parametrize(
    "data", [rb'"\ud800"', rb'["\uDFFF"]', rb'{"\ud83e": 1}', b'{"a": 1, "a": 1}', b"1e400", b"-Infinity", b"NaN"]
)
def test_what_pythons_parser_lets_pass(data: bytes) -> None:
    json.loads(data)
    with pytest.raises(ApiError):
        parse_json(data)


def test_a_whole_pair_is_a_character() -> None:
    assert parse_json(rb'"\ud83e\udd8a"') == "🦊"


class CountingKey(str):
    """A key that counts how often keys are compared."""

    __slots__ = ()
    compared = 0

    def __eq__(self, other: object) -> bool:
        type(self).compared += 1
        return str.__eq__(self, other)  # type: ignore[arg-type]

    __hash__ = str.__hash__


def test_naming_a_duplicate_key_takes_time_in_proportion_to_the_keys() -> None:
    keys = [CountingKey(k) for k in range(2000)]
    CountingKey.compared = 0
    with pytest.raises(ValueError, match="duplicate key '1999'"):
        _unique([(key, 0) for key in [*keys, CountingKey(1999)]])
    assert CountingKey.compared < 4 * len(keys)
    with pytest.raises(ApiError, match="duplicate key '1999'"):
        parse_json(b"{" + b",".join(b'"%d": 0' % k for k in (*range(2000), 1999)) + b"}")


def nodes(value: object) -> int:
    """Lists, objects and keys in it."""
    if isinstance(value, dict):
        return 1 + len(value) + sum(map(nodes, value.values()))
    return 1 + sum(map(nodes, value)) if isinstance(value, list) else 0


@given(value=values | st.recursive(st.text('[]{}":\\', max_size=5), st.lists, max_leaves=9))
def test_nodes_are_counted_outside_of_strings(value: object) -> None:
    data, count = json.dumps(value).encode(), nodes(value)
    assert parse_json(data, count) == value
    if count:
        with pytest.raises(ApiError, match="lists, objects and keys") as caught:
            parse_json(data, count - 1)
        assert caught.value.code == "too_large"
