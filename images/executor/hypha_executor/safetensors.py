"""SafeTensors files: read with every field checked, because peers send them, and written tensor by tensor.

A header is matched entry by entry against the one form that an entry may have. JSON in general is not decoded, so a
header costs less than ten times its size in memory and no time beyond its first unsound entry.
"""

import hashlib
import json
import math
import os
import re
import stat
import struct
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from hypha_executor.errors import MalformedFileError, TruncatedFileError

ITEM_BYTES: Final[Mapping[str, int]] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
}
"""The dtypes that can be averaged, and the size of an element in bytes."""

MAX_HEADER_BYTES: Final = 16 << 20
"""The largest models have headers of 12 MiB: those with a tensor for each of tens of thousands of experts' matrices."""
MAX_TENSORS: Final = 100_000
MAX_DIMENSIONS: Final = 16
MAX_NAME_BYTES: Final = 1024
MAX_METADATA: Final = 1024
"""The number of entries in `__metadata__`."""
MAX_VALUE_BYTES: Final = 256 << 10
"""The length of one value in `__metadata__`."""

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""The dtype and the shape of each tensor by its name. All files of a job have the same layout."""

_LENGTH: Final = struct.Struct("<Q")


class Tensor(NamedTuple):
    """One tensor of a file.

    Attributes:
        dtype: One of `ITEM_BYTES`, or another dtype of the format.
        shape: Its dimensions; empty for a scalar.
        offset: Its first byte, counted from the start of the file.
        end: The byte after its last one.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    end: int

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The tensors of a file, in the order of their bytes, and its `__metadata__`."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @cached_property
    def layout(self) -> Layout:
        """The dtypes and shapes of the tensors."""
        return {name: (tensor.dtype, tensor.shape) for name, tensor in self.tensors.items()}

    def tensor_at(self, offset: int) -> str:
        """Return the name of the tensor that the byte at `offset` belongs to."""
        return next(name for name, tensor in self.tensors.items() if tensor.offset <= offset < tensor.end)


def open_header(path: Path) -> tuple[int, Header]:
    """Open a file; return its descriptor, which the caller closes, and its header.

    Raises:
        TruncatedFileError: The file is only the beginning of a SafeTensors file.
        MalformedFileError: The file is not a regular SafeTensors file.
        OSError: The file cannot be opened, for example because it is a symbolic link.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with _one_at_a_time:
            return descriptor, _read_header(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


_one_at_a_time: Final = threading.Lock()
"""Held while a header is read, so that many hostile files at once cost a process no more memory than one."""


def read_header(path: Path) -> Header:
    """Return the header of a file.

    Raises:
        MalformedFileError: As for `open_header`; here the text begins with the file's name.
        OSError: The file cannot be opened.
    """
    try:
        descriptor, header = open_header(path)
    except MalformedFileError as error:
        raise type(error)(f"{path.name} {error}") from None
    os.close(descriptor)
    return header


def _read_header(descriptor: int) -> Header:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise MalformedFileError("is not a regular file")
    prefix = os.pread(descriptor, _LENGTH.size + 1, 0)
    if len(prefix) < _LENGTH.size:
        raise TruncatedFileError(f"is truncated: {status.st_size} bytes hold no SafeTensors header")
    (length,) = _LENGTH.unpack(prefix[: _LENGTH.size])
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise MalformedFileError(
            f"has a header of {length} bytes; a SafeTensors header has 2 to {MAX_HEADER_BYTES}, with less than "
            f"{MAX_TENSORS} tensors"
        )
    if prefix[_LENGTH.size :] not in (b"{", b""):
        raise MalformedFileError("has a header that is not a JSON object")
    if status.st_size < _LENGTH.size + length:
        raise TruncatedFileError(f"is truncated: {status.st_size} bytes, of which its header takes {length}")
    return parse_header(os.pread(descriptor, length, _LENGTH.size), status.st_size)


def _pattern(text: bytes) -> re.Pattern[bytes]:
    """Compile a pattern in which a blank allows white space, and `<x>` stands for a part of JSON.

    Every repetition is possessive, so that matching takes linear time.
    """
    string = rb'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}){0,%d}+"'
    parts = {
        b"<name>": string % MAX_NAME_BYTES,
        b"<value>": string % MAX_VALUE_BYTES,
        b"<natural>": rb"(?:0|[1-9][0-9]{0,18}+)",
        b"<naturals>": rb"(?:<natural>(?: , <natural>){0,%d}+)?" % (MAX_DIMENSIONS - 1),
        b"<more>": rb"(?:,(?! \})|(?=\}))",
        b" ": rb"[ \t\r\n]*+",
    }
    for name in (b"<naturals>", *parts):
        text = text.replace(name, parts[name])
    return re.compile(text)


_TENSOR: Final = _pattern(
    rb" (<name>) : \{(?:"
    rb' "dtype" : "([A-Z0-9_]{1,16})" <more>|'
    rb' "shape" : \[ (<naturals>) \] <more>|'
    rb' "data_offsets" : \[ (<natural>) , (<natural>) \] <more>'
    rb"){3}\} ([,}])"
)
_METADATA: Final = _pattern(rb' "__metadata__" : \{')
_PAIR: Final = _pattern(rb" (<name>) : (<value>) ([,}])")
_CLOSING: Final = _pattern(rb" \}")
_SEPARATOR: Final = _pattern(rb" ([,}])")
_BLANK: Final = _pattern(rb" ")


def parse_header(text: bytes, file_bytes: int) -> Header:
    """Parse a header: the bytes after the length prefix of a file that has `file_bytes` bytes in total.

    Raises:
        TruncatedFileError: The tensors end after the file.
        MalformedFileError: The header breaks a rule of the format or of this module.
    """
    try:
        header = _parse(text)
    except ValueError as error:
        raise MalformedFileError(f"has a header that is not UTF-8: {str(error)[:200]}") from error
    return Header(_in_order(header.tensors, _LENGTH.size + len(text), file_bytes), header.metadata)


def _parse(text: bytes) -> Header:
    """Parse a header without comparing the tensors' places with each other; ValueError if it is not UTF-8."""
    if not text.startswith(b"{"):
        raise MalformedFileError("has a header that is not a JSON object")
    start = _LENGTH.size + len(text)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] | None = None
    position, separator = 1, b","
    while separator == b",":
        if match := _TENSOR.match(text, position):
            name, tensor = _parse_tensor(match, start)
            if name in tensors:
                raise MalformedFileError(f"has two tensors of the name {_short(name)}")
            if len(tensors) == MAX_TENSORS:
                raise MalformedFileError(f"holds more than {MAX_TENSORS} tensors")
            tensors[name] = tensor
            position, separator = match.end(), match[6]
        elif metadata is None and (opening := _METADATA.match(text, position)):
            metadata, position, separator = _parse_metadata(text, opening.end())
        else:
            raise MalformedFileError(
                f"has a header whose byte {position} begins no tensor of dtype, shape and data_offsets: "
                f"{_short(text[position : position + 80])}"
            )
    if not _BLANK.fullmatch(text, position):
        raise MalformedFileError(f"has a header that continues after its end: {_short(text[position : position + 80])}")
    return Header(tensors, metadata or {})


def _parse_metadata(text: bytes, position: int) -> tuple[dict[str, str], int, bytes]:
    """Parse the pairs of `__metadata__`; return them, the position after them, and the separator before it."""
    metadata: dict[str, str] = {}
    closing = _CLOSING.match(text, position)
    while closing is None:
        pair = _PAIR.match(text, position)
        if pair is None or len(metadata) == MAX_METADATA:
            raise MalformedFileError(
                f"has a __metadata__ that does not map text to text, with at most {MAX_METADATA} entries, names of "
                f"{MAX_NAME_BYTES} bytes and texts of {MAX_VALUE_BYTES}"
            )
        name, value, separator = pair.groups()
        metadata[_text(name)] = _text(value)
        position = pair.end()
        if separator == b"}":
            break
    else:
        position = closing.end()
    after = _SEPARATOR.match(text, position)
    if after is None:
        raise MalformedFileError("has a header that breaks off after its __metadata__")
    return metadata, after.end(), after[1]


def _text(quoted: bytes) -> str:
    if b"\\" not in quoted:
        return quoted[1:-1].decode()
    text = str(json.loads(quoted.decode()))
    text.encode()  # refuses half of a surrogate pair
    return text


def _parse_tensor(match: re.Match[bytes], start: int) -> tuple[str, Tensor]:
    quoted, dtype, shape, begin, end, _ = match.groups()
    name = _text(quoted)
    if dtype is None or shape is None or begin is None or name == "__metadata__":
        raise MalformedFileError(f"has tensor {_short(name)} without one of dtype, shape and data_offsets")
    dimensions = tuple(map(int, shape.split(b","))) if shape else ()
    tensor = Tensor(dtype.decode(), dimensions, start + int(begin), start + int(end))
    item_bytes = ITEM_BYTES.get(tensor.dtype)
    if item_bytes is not None and tensor.elements * item_bytes != tensor.end - tensor.offset:
        raise MalformedFileError(f"has tensor {_short(name)} whose data_offsets do not fit its shape and dtype")
    return name, tensor


def _in_order(tensors: Mapping[str, Tensor], start: int, file_bytes: int) -> dict[str, Tensor]:
    """Return the tensors in the order of their bytes, which must fill the file without gaps or overlaps."""
    if not tensors:
        raise MalformedFileError("holds no tensors")
    beginning_at = {tensor.offset: name for name, tensor in tensors.items() if tensor.end > tensor.offset}
    ordered = {name: tensor for name, tensor in tensors.items() if tensor.end == tensor.offset}
    boundaries = {tensor.offset for tensor in ordered.values()}
    end = start
    while (name := beginning_at.get(end)) is not None:
        boundaries.discard(end)
        ordered[name] = tensors[name]
        end = tensors[name].end
    boundaries.discard(end)
    if len(ordered) < len(tensors) or boundaries:
        raise MalformedFileError("has tensors that overlap or leave gaps")
    if end > file_bytes:
        raise TruncatedFileError(f"is truncated: {file_bytes} of {end} bytes")
    if end < file_bytes:
        raise MalformedFileError(f"is {file_bytes - end} bytes longer than its header says")
    return ordered


def _short(value: str | bytes) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."


def digest(layout: Layout) -> bytes:
    """Return a digest of a layout, which does not depend on the order of its tensors."""
    total = hashlib.sha256()
    for item in sorted(layout.items()):
        total.update(repr(item).encode())
    return total.digest()


def lay_out(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, Mapping[str, Tensor]]:
    """Return the first bytes of a file with these tensors (name, dtype, shape), and where each tensor will be."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, dtype, shape in tensors:
        end = position + math.prod(shape) * ITEM_BYTES[dtype]
        fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": (position, end)}
        position = end
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = _LENGTH.size + len(text)
    del fields["__metadata__"]
    placed = {
        name: Tensor(field["dtype"], field["shape"], start + field["data_offsets"][0], start + field["data_offsets"][1])
        for name, field in fields.items()
    }
    return _LENGTH.pack(len(text)) + text, placed


def write_file(
    path: Path,
    tensors: Iterable[tuple[str, str, tuple[int, ...]]],
    contents: Iterable[memoryview],
    metadata: Mapping[str, str],
) -> None:
    """Write a file, which appears under its name only when it is complete.

    Args:
        path: The file.
        tensors: The name, dtype and shape of each tensor, in the order of `contents`.
        contents: The little-endian bytes of each tensor. Each is written before the next one is asked for.
        metadata: The file's `__metadata__`.
    """
    head, _ = lay_out(tensors, metadata)
    partial = path.with_suffix(".partial")
    with partial.open("wb", buffering=0) as file:
        for content in chain([memoryview(head)], contents):
            _write_all(file.fileno(), content)
    partial.rename(path)


def _write_all(descriptor: int, content: memoryview) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
