"""Headers that peers send."""

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load, save, save_file

from hypha_executor.errors import MalformedFileError
from hypha_executor.safetensors import MAX_HEADER_BYTES, MAX_TENSORS, lay_out, open_header, parse_header


def header(fields, data_bytes=0):
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return parse_header(text, 8 + len(text) + data_bytes)


def field(dtype="F32", shape=(1,), begin=0, end=4):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_a_file_of_the_reference_implementation_is_read(tmp_path):
    path = tmp_path / "file"
    tensors = {
        "a": np.ones((2, 3), np.float32),
        "scalar": np.array(1.0, np.float16),
        "empty": np.ones((0, 4), np.int64),
    }
    save_file(tensors, path, {"round": "3"})
    _, found = open_header(path)
    assert found.layout == {"a": ("F32", (2, 3)), "scalar": ("F16", ()), "empty": ("I64", (0, 4))}
    assert found.metadata == {"round": "3"}


def test_the_reference_implementation_reads_what_is_laid_out():
    head, tensors = lay_out([("a", "F32", (2, 2)), ("b", "I8", (3,))], {"round": "3"})
    assert tensors["a"].offset == len(head)
    loaded = load(head + np.arange(4, dtype=np.float32).tobytes() + b"\1\2\3")
    assert loaded["a"].tolist() == [[0, 1], [2, 3]]
    assert loaded["b"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "data_bytes", "reason"),
    [
        (b"", 0, "not JSON"),
        (b"\xff\xfe", 0, "not JSON"),
        (b"[" * 100_000, 0, "not JSON"),
        (b"[]", 0, "not a JSON object"),
        (b'{"a": 1' + b"0" * 5000 + b"}", 0, "not JSON"),
        (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}', 0, "a name occurs twice"),
        ({}, 0, "no tensors"),
        ({"__metadata__": {"round": 1}, "a": field()}, 4, "text to text"),
        ({"__metadata__": [], "a": field()}, 4, "text to text"),
        ({"a": []}, 4, "other fields"),
        ({"a": {**field(), "more": 1}}, 4, "other fields"),
        ({"a": field("F8_E4M3", (4,))}, 4, "known are"),
        ({"a": field(["F32"])}, 4, "known are"),
        ({"a": field(shape=(-1,))}, 4, "the shape"),
        ({"a": field(shape=(True,))}, 4, "the shape"),
        ({"a": field(shape=(1.0,))}, 4, "the shape"),
        ({"a": field(shape=(1,) * 17)}, 4, "the shape"),
        ({"a": field(shape=(2**64,))}, 4, "the shape"),
        ({"a": field(shape=(2**62, 2**62, 16))}, 4, "do not fit"),
        ({"a": field(begin=-4, end=0)}, 4, "the data_offsets"),
        ({"a": field(begin=4, end=0)}, 4, "do not fit"),
        ({"a": field(end=8)}, 8, "do not fit"),
        ({"a": field(), "b": field()}, 4, "overlap"),
        ({"a": field(), "b": field(begin=2, end=6)}, 6, "overlap"),
        ({"a": field(), "b": field(begin=8, end=12)}, 12, "leave gaps"),
        ({"a": field(begin=4, end=8)}, 8, "leave gaps"),
        ({"a": field()}, 3, "truncated"),
        ({"a": field()}, 5, "1 bytes longer"),
        ({str(number): field("U8", (0,), 0, 0) for number in range(MAX_TENSORS + 1)}, 0, "at most"),
    ],
)
def test_an_unsound_header_is_refused(fields, data_bytes, reason):
    with pytest.raises(MalformedFileError, match=reason):
        header(fields, data_bytes)


@pytest.mark.parametrize(
    "content",
    [b"", b"\1", struct.pack("<Q", 10), struct.pack("<Q", 2**64 - 1) + b"{}", struct.pack("<Q", MAX_HEADER_BYTES + 1)],
)
def test_a_file_without_a_complete_header_is_refused(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(MalformedFileError):
        open_header(path)


def test_neither_symbolic_links_nor_directories_are_followed(tmp_path):
    save_file({"a": np.ones(1, np.float32)}, tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError, match="symbolic links"):
        open_header(tmp_path / "link")
    with pytest.raises(MalformedFileError, match="regular"):
        open_header(tmp_path)


@given(cut=st.integers(0, 10_000), place=st.integers(0, 10_000), replacement=st.binary(max_size=12))
def test_a_damaged_file_is_refused_or_read_within_its_bytes(tmp_path_factory, cut, place, replacement):
    path = tmp_path_factory.mktemp("damaged") / "file"
    content = save({"weight": np.ones((5, 3), np.float32), "bias": np.ones(3, np.float16)}, {"round": "1"})
    content = content[: place % len(content)] + replacement + content[place % len(content) + cut % 20 :]
    path.write_bytes(content)
    try:
        _, found = open_header(path)
    except MalformedFileError:
        return
    for tensor in found.tensors.values():
        assert 8 <= tensor.offset <= tensor.end <= len(content)
    assert sum(tensor.end - tensor.offset for tensor in found.tensors.values()) < len(content)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__", "a"]), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(JSON, st.integers(0, 100))
def test_any_json_is_refused_or_read(fields, data_bytes):
    with contextlib.suppress(MalformedFileError):
        header(fields, data_bytes)
