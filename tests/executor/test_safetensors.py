"""Headers that peers send."""

import contextlib
import gc
import json
import math
import os
import struct
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save, save_file

from hypha_executor.errors import MalformedFileError, TruncatedFileError
from hypha_executor.safetensors import (
    MAX_HEADER_BYTES,
    MAX_METADATA,
    MAX_NAME_BYTES,
    MAX_TENSORS,
    MAX_VALUE_BYTES,
    lay_out,
    open_header,
    parse_header,
    read_header,
)
from support.machine import slowdown


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
        (b"", 0, "not a JSON object"),
        (b"\xff\xfe", 0, "not a JSON object"),
        (b"[" * 100_000, 0, "not a JSON object"),
        (b"[]", 0, "not a JSON object"),
        (b'{"a": 1' + b"0" * 5000 + b"}", 0, "begins no JSON value"),
        (b'{"a":' * 100_000, 0, "begins no JSON value"),
        (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"more":"' + b"b" * 5_000 + b'"}}', 0, "at most 4096"),
        (b'{"\xff":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', 0, "not UTF-8"),
        (b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', 0, "not UTF-8"),
        (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},}', 0, "begins no tensor"),
        (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],}}', 0, "begins no JSON value"),
        (b'{"a":{"dtype":"U8","dtype":"U8","shape":[0]}}', 0, "without one of"),
        (b'{"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}}', 0, "begins no tensor"),
        (b'{"a":{"dtype":"U9","shape":[0],"data_offsets":[0,0]}}', 0, "which the format does not know"),
        (b'{"a":{"dtype":"U8","shape":[00],"data_offsets":[0,0]}}', 0, "begins no JSON value"),
        (b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}} x', 0, "continues after its end"),
        (b'{"__metadata__":{},"__metadata__":{},', 0, "begins no tensor"),
        (b'{"__metadata__":null,"__metadata__":{},', 0, "begins no tensor"),
        ({}, 0, "begins no tensor"),
        ({"__metadata__": {}}, 0, "no tensors"),
        ({"__metadata__": field()}, 4, "without one of"),
        ({"__metadata__": {"round": 1}, "a": field()}, 4, "text to text"),
        ({"__metadata__": [], "a": field()}, 4, "begins no tensor"),
        ({"__metadata__": {str(number): "" for number in range(MAX_METADATA + 1)}, "a": field()}, 4, "text to text"),
        ({"__metadata__": {"a": "b" * (MAX_VALUE_BYTES + 1)}, "a": field()}, 4, "text to text"),
        ({"a" * (MAX_NAME_BYTES + 1): field()}, 4, "begins no tensor"),
        ({"a": []}, 4, "begins no tensor"),
        ({"a": field(["F32"])}, 4, "begins no tensor"),
        ({"a": field(shape=(-1,))}, 4, "begins no tensor"),
        ({"a": field(shape=(True,))}, 4, "begins no tensor"),
        ({"a": field(shape=(1.0,))}, 4, "begins no tensor"),
        ({"a": field(shape=(1,) * 17)}, 4, "begins no tensor"),
        ({"a": field(shape=(2**64,))}, 4, "begins no tensor"),
        ({"a": field(shape=(2**62, 2**62, 16))}, 4, "do not fit"),
        ({"a": field(begin=-4, end=0)}, 4, "begins no tensor"),
        ({"a": field(begin=4, end=0)}, 4, "do not fit"),
        ({"a": field(end=8)}, 8, "do not fit"),
        ({"a": field(), "b": field()}, 4, "overlap"),
        ({"a": field(), "b": field(begin=2, end=6)}, 6, "overlap"),
        ({"a": field(), "b": field(begin=8, end=12)}, 12, "leave gaps"),
        ({"a": field(begin=4, end=8)}, 8, "leave gaps"),
        ({"a": field()}, 3, "truncated"),
        ({"a": field()}, 5, "1 bytes longer"),
        ({str(number): field("U8", (0,), 0, 0) for number in range(MAX_TENSORS + 1)}, 0, "more than 100000 tensors"),
        ({"a": field(), "b": field("U8", (0,), 2, 2)}, 4, "overlap"),
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


TENSOR = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
BOMBS = {
    "nested lists": b"{" + b'"a":[' + b"[" * 1_000_000,
    "nested objects": b'{"a":' * 200_000,
    "empty objects": b"{" + b'"a":{},' * 150_000,
    "a million dimensions": b'{"a":{"shape":[' + b"0," * 1_000_000,
    "small tensors": b"{" + b",".join(b'"%d":%s' % (number, TENSOR) for number in range(20_000)) + b"}",
    "distinct shapes": b"{"
    + b",".join(b'"%d":%s' % (number, TENSOR.replace(b"[0]", b"[%d,0]" % number)) for number in range(20_000))
    + b"}",
    "long names": b"{" + b",".join(b'"%01000d":%s' % (number, TENSOR) for number in range(1000)) + b"}",
    "one wide character in each name": b"{"
    + b",".join(b'"%s%0900d":%s' % ("\U0001f600".encode(), number, TENSOR) for number in range(1000))
    + b"}",
    "metadata": b'{"__metadata__":{'
    + b",".join(b'"%d":"%s"' % (number, b"\\u0000" * 100) for number in range(1000))
    + b'},"a":%s}' % TENSOR,
    "a long text": b'{"__metadata__":{"a":"' + b"b" * 1_000_000 + b'"}}',
    "white space": b'{"a":{' + b" " * 1_000_000,
    "unusual entries": b"{" + b",".join(b'"%d":["U8",[0],[0,0]]' % number for number in range(20_000)) + b"}",
    "unusual nesting": b'{"a":{"x":[' + b"[]," * 1_300 + b'[]],"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
    "digits": b'{"a":{"shape":[' + b"1" * 1_000_000,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_header_costs_at_most_twelve_times_its_size_in_memory(bomb):
    gc.collect()
    tracemalloc.start()
    try:
        with contextlib.suppress(MalformedFileError):
            parse_header(BOMBS[bomb], 8 + len(BOMBS[bomb]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= 256 * 1024 + 12 * len(BOMBS[bomb])


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_header_costs_time_in_proportion_to_its_size(bomb):
    def seconds():
        began = time.thread_time()
        with contextlib.suppress(MalformedFileError):
            parse_header(BOMBS[bomb], 8 + len(BOMBS[bomb]))
        return time.thread_time() - began

    kib = len(BOMBS[bomb]) / 1024
    assert min(seconds() / slowdown() for _ in range(3)) <= 0.001 + 100e-6 * kib


def test_headers_are_read_one_at_a_time(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(struct.pack("<Q", len(BOMBS["small tensors"])) + BOMBS["small tensors"])
    read_header(path)  # caches what is imported or compiled at the first use
    gc.collect()
    peaks = []
    for threads in (1, 8):
        tracemalloc.start()
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(check_and_drop, path) for _ in range(threads)]:
                done.result()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] <= 2.5 * peaks[0]  # the last header of a thread may still be in memory


def check_and_drop(path):
    descriptor, _ = open_header(path)
    os.close(descriptor)


NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__")


@given(
    st.dictionaries(NAMES, st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=6),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.text(max_size=5), max_size=3),
    st.booleans(),
    st.sampled_from([None, 1]),
    st.randoms(),
)
def test_what_is_read_is_what_the_format_s_own_library_reads(
    tmp_path_factory, shapes, metadata, ascii_only, indent, random
):
    fields, position = {"__metadata__": metadata}, 0
    for name, shape in shapes.items():
        entry = {"dtype": "U8", "shape": shape, "data_offsets": [position, position + math.prod(shape)]}
        fields[name] = dict(random.sample(list(entry.items()), 3))
        position += math.prod(shape)
    fields = dict(random.sample(list(fields.items()), len(fields)))
    text = json.dumps(fields, ensure_ascii=ascii_only, indent=indent).encode(errors="surrogatepass")
    path = tmp_path_factory.mktemp("own") / "file"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(position))
    try:
        with safe_open(path, "numpy") as file:
            expected = {name: file.get_slice(name).get_shape() for name in file.keys()}, file.metadata()  # noqa: SIM118
    except SafetensorError:
        with pytest.raises(MalformedFileError):
            open_header(path)
        return
    found = read_header(path)
    assert ({name: list(tensor.shape) for name, tensor in found.tensors.items()}, found.metadata) == expected
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TruncatedFileError):
        open_header(path)


def json_text(value):
    """Write JSON in which an object is a tuple of pairs, which may repeat names, and a byte string is as it is."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, tuple):
        return "{" + ",".join(f"{json_text(name)}:{json_text(item)}" for name, item in value) + "}"
    if isinstance(value, list):
        return "[" + " , ".join(map(json_text, value)) + "]"
    return json.dumps(value)


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from(
        [b"1e3", b"-0", b"0.0", b"1e999", b"18446744073709551615", b"18446744073709551616", b"NaN", b"01"]
    )
    | st.sampled_from([b'"\\ud800"', b'"\\ud83d\\ude00"', b'"\\u0000"', b'"\t"', b"'a'", b""])
    | st.text(max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.lists(st.tuples(st.text(max_size=1), inner), max_size=2).map(tuple),
    max_leaves=4,
)


@st.composite
def odd_entries(draw):
    """Entries of one-byte tensors, in forms that other writers may use, and some that no reader takes."""
    entries, position = [], 0
    for _ in range(draw(st.integers(1, 3))):
        size = draw(st.integers(0, 2))
        members = [
            ("dtype", draw(st.sampled_from(["U8", "I8", "BOOL", (("U8", None),), (("U8", ()),)]) | ODD)),
            ("shape", draw(st.just([size]) | st.just([size, 1]) | ODD)),
            ("data_offsets", draw(st.just([position, position + size]) | ODD)),
        ]
        if draw(st.booleans()):
            entry = [item for _, item in members] + draw(st.lists(ODD, max_size=1))
        else:
            more = draw(
                st.lists(st.tuples(st.sampled_from(["x", "dtype", "shape", b'"sh\\u0061pe"']), ODD), max_size=2)
            )
            entry = tuple(draw(st.permutations([*members, *more])))
        entries.append(
            (draw(st.sampled_from(["a", "b", "c", b'"\\u0061"'])), draw(st.just(entry) | st.just(entry) | ODD))
        )
        position += size
    texts = st.lists(st.tuples(st.sampled_from(["x", "y"]), st.just("1") | st.text(max_size=2) | ODD), max_size=2)
    metadata = [("__metadata__", draw(st.none() | texts.map(tuple) | ODD)) for _ in range(draw(st.integers(0, 2)))]
    return tuple(draw(st.permutations([*entries, *metadata]))), position


@settings(max_examples=500, deadline=None)
@example(((("a", ["U8", [], [0, 0]]), ("a", ["U8", [0], [0, 0]])), 0), "", "", 0)
@given(
    odd_entries(),
    st.sampled_from(["", " ", "\n\t", "\ufeff"]),
    st.sampled_from(["", " \r\n", "\0", "}"]),
    st.integers(-1, 1),
)
def test_odd_headers_are_taken_as_the_format_s_own_library_takes_them(tmp_path_factory, odd, before, after, extra):
    entries, data_bytes = odd
    text = (before + json_text(entries) + after).encode()
    path = tmp_path_factory.mktemp("odd") / "file"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(max(0, data_bytes + extra)))
    try:
        found = read_header(path)
        result = {name: list(tensor.shape) for name, tensor in found.tensors.items()}, found.metadata
    except MalformedFileError:
        result = None
    try:
        with safe_open(path, "numpy") as file:
            expected = {name: file.get_slice(name).get_shape() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError:
        expected = None
    assert result == expected


@pytest.mark.parametrize(
    "text",
    [
        b' {"__metadata__":null,"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"U8","shape":[0],"checksum":{"a":[1]},"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        b'{"a":["U8",[0],[0,0]]}',
    ],
    ids=["leading space and no metadata", "an unknown member", "a name twice", "a list of members"],
)
def test_a_header_that_the_format_s_own_library_takes_is_taken(tmp_path, text):
    (tmp_path / "file").write_bytes(struct.pack("<Q", len(text)) + text)
    with safe_open(tmp_path / "file", "numpy") as file:
        assert list(file.keys()) == ["a"]
    assert read_header(tmp_path / "file").layout == {"a": ("U8", (0,))}


@pytest.mark.parametrize("depth", [1, 124, 125, 126, 127, 128, 5000])
def test_nesting_is_limited_as_in_the_format_s_own_library(tmp_path, depth):
    text = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0],"x":%s%s}}' % (b"[" * depth, b"]" * depth)
    (tmp_path / "file").write_bytes(struct.pack("<Q", len(text)) + text)
    try:
        load((tmp_path / "file").read_bytes())
    except SafetensorError:
        with pytest.raises(MalformedFileError):
            read_header(tmp_path / "file")
    else:
        assert read_header(tmp_path / "file").layout == {"a": ("U8", (0,))}


@given(st.binary(max_size=100), st.sampled_from([b"", struct.pack("<Q", 70), struct.pack("<Q", 3)]))
def test_arbitrary_bytes_are_refused_or_read_by_the_format_s_own_library_too(tmp_path_factory, content, prefix):
    path = tmp_path_factory.mktemp("bytes") / "file"
    path.write_bytes(prefix + content)
    try:
        read_header(path)
    except MalformedFileError:
        return
    load(prefix + content)
