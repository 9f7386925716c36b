"""The CBOR decoder takes what serde writes and nothing else, at a cost that the input's size bounds."""

from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypha_messages import cbor
from hypha_messages.api import API
from hypha_messages.progress import PROGRESS
from hypha_messages.types import SystemTime
from support.cbor_bombs import BOMBS

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=40)
    | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=8), inner, max_size=8),
    max_leaves=40,
)
TAG_NUMBERS = st.one_of(st.integers(0, 300), st.sampled_from([1004, 43000, 55799]), st.integers(0, 2**64 - 1))


def nested(depth: int, innermost: bytes) -> bytes:
    return b"\x81" * depth + innermost


@given(PLAIN)
def test_plain_values_decode_to_themselves(value: Any) -> None:
    assert cbor.loads(cbor2.dumps(value)) == value
    assert cbor.loads(cbor2.dumps(value, canonical=True)) == value


@given(PLAIN)
def test_containers_of_indefinite_length_are_decoded(value: Any) -> None:
    assert cbor.loads(cbor2.dumps([value, {"a": value}], indefinite_containers=True)) == [value, {"a": value}]


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_decode_as_another_decoder_decodes_them(data: bytes) -> None:
    try:
        value = cbor.loads(data)
    except cbor.DecodeError:
        return
    assert cbor2.dumps(value) == cbor2.dumps(cbor2.loads(data))


@given(PLAIN, TAG_NUMBERS, st.integers(0, cbor.MAX_DEPTH))
def test_a_tag_is_refused_in_every_position(value: Any, number: int, depth: int) -> None:
    tagged = cbor2.dumps(cbor2.CBORTag(number, value))
    for wire in (nested(depth, tagged), b"\xa1" + tagged + b"\x00", b"\xa1\x61a" + tagged):
        with pytest.raises(cbor.DecodeError):
            cbor.loads(wire)


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused(bomb: bytes) -> None:
    with pytest.raises(cbor.DecodeError, match="at byte"):
        cbor.loads(bomb)


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("body", [API.request, API.response, PROGRESS.request, PROGRESS.response])
def test_a_bomb_inside_a_message_is_refused(body: Any, bomb: bytes) -> None:
    for wire in (bomb, b"\xa1\x6aRenewLease\xa1\x62id" + bomb, b"\xa1\x66job_id" + bomb):
        with pytest.raises(cbor.DecodeError):
            body.decode(wire)


@pytest.mark.parametrize("number", [5.0, "5", True, None, b"5", [5]])
def test_an_integer_must_be_written_as_an_integer(number: Any) -> None:
    with pytest.raises(ValueError, match="valid integer"):
        SystemTime.model_validate({"secs_since_epoch": number, "nanos_since_epoch": 0})


def test_nesting_is_allowed_up_to_its_limit_and_no_deeper() -> None:
    cbor.loads(nested(cbor.MAX_DEPTH, b"\x00"))
    with pytest.raises(cbor.DecodeError, match="nested deeper"):
        cbor.loads(nested(cbor.MAX_DEPTH + 1, b"\x00"))


def test_an_error_quotes_a_bounded_part_of_the_refused_message() -> None:
    for body, wire in (
        (API.request, cbor.dumps({"x" * 100_000: {}})),
        (PROGRESS.request, cbor.dumps({"job_id": bytes(16), "progress": {"z" * 100_000: 1}})),
        (PROGRESS.request, cbor.dumps({"job_id": "w" * 100_000, "progress": "update"})),
    ):
        with pytest.raises(cbor.DecodeError) as refused:
            body.decode(wire)
        assert len(str(refused.value)) < 1000
