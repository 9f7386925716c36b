"""A slice is complete only if its size matches its header, and headers may be hostile."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from hypha_bridge.safetensors import NotSafeTensors, Truncated, check


def write(tmp_path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "slice"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def tensor(begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [1], "data_offsets": [begin, end]}


shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
files = st.dictionaries(st.text(min_size=1, max_size=8).filter(lambda n: n != "__metadata__"), shapes, max_size=5)


@given(files, st.data())
def test_a_file_of_the_formats_own_library_is_complete_and_every_prefix_of_it_is_not(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, tuple[int, ...]], data: st.DataObject
) -> None:
    whole = safetensors.numpy.save({name: numpy.zeros(shape, numpy.float32) for name, shape in tensors.items()})
    path = tmp_path_factory.mktemp("slices") / "slice"
    path.write_bytes(whole)
    check(path)
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(Truncated):
        check(path)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_no_unexpected_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "slice"
    path.write_bytes(content)
    try:
        check(path)
    except (Truncated, NotSafeTensors):
        return
    safetensors.numpy.load(content)  # what we let pass, the library reads


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a": tensor(0, 4), "b": tensor(2, 6)}, b"123456"),
        ({"a": tensor(0, 2), "b": tensor(4, 6)}, b"123456"),
        ({"a": tensor(1, 4)}, b"1234"),
        ({"a": tensor(4, 0)}, b"1234"),
        ({"a": tensor(-4, 0)}, b""),
        ({"a": tensor(0, 2**64)}, b"1234"),
        ({"a": tensor(0, True)}, b"1"),
        ({"a": tensor(0, 1.5)}, b"1"),
        ({"a": tensor("0", "1")}, b"1"),
        ({"a": {"data_offsets": [0, 1, 2]}}, b"12"),
        ({"a": {"dtype": "U8"}}, b""),
        ({"a": 3}, b""),
        ([1, 2], b""),
        (b"{nonsense}", b""),
        (b"{", b""),
        (b'{"a":' * 5000 + b"}" * 5000, b""),
        ({"a": tensor(0, 1)}, b"12"),
    ],
)
def test_hostile_and_malformed_headers_are_refused(tmp_path: Path, header: Any, data: bytes) -> None:
    with pytest.raises(NotSafeTensors):
        check(write(tmp_path, header, data))


@pytest.mark.parametrize("length", [0, 1, 100_000_001, 2**63, 2**64 - 1])
def test_headers_beyond_the_limit_are_refused_unread(tmp_path: Path, length: int) -> None:
    path = tmp_path / "slice"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(NotSafeTensors):
        check(path)


def test_too_many_tensors_are_refused(tmp_path: Path) -> None:
    header = {str(number): {"data_offsets": [0, 0]} for number in range(100_001)}
    with pytest.raises(NotSafeTensors, match="100001 tensors"):
        check(write(tmp_path, header))


def test_a_header_that_needs_too_much_memory_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    with pytest.raises(NotSafeTensors, match="JSON values"):
        check(write(tmp_path, b'{"a":{"data_offsets":[' + b"0," * 2_000_001 + b"0]}}"))
