"""SafeTensors files: read with every field checked, because peers send them, and written tensor by tensor.

The format's own library decides what a sound header is. This reader takes what that takes, within the limits below, and
refuses a file without tensors. A header is matched entry by entry against the usual form of an entry. Only an entry of
another form is decoded as JSON, so a header costs little memory, and no time beyond its first unsound entry.
"""

import hashlib
import json
import math
import operator
import os
import re
import stat
import struct
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Final, NamedTuple

from hypha_executor.errors import MalformedFileError, TruncatedFileError
from hypha_executor.header_values import MAX_VALUES, metadata_of, parse_value, tensor_members

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

_ITEM_BITS: Final[Mapping[str, int]] = {
    **{dtype: 8 * size for dtype, size in ITEM_BYTES.items()},
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U16": 16,
    "U32": 32,
    "C64": 64,
    "U64": 64,
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E5M2FNUZ", "F8_E4M3FNUZ"), 8),
}
"""All dtypes of the format, and the size of an element in bits."""

MAX_HEADER_BYTES: Final = 16 << 20
"""The largest models, with a tensor for each of tens of thousands of experts, have headers of 12 MiB."""
MAX_TENSORS: Final = 100_000
MAX_DIMENSIONS: Final = 16
MAX_NAME_BYTES: Final = 1024
MAX_METADATA: Final = 1024  # entries in `__metadata__`
MAX_VALUE_BYTES: Final = 256 << 10  # of one value in `__metadata__`

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""The dtype and the shape of each tensor by its name. All files of a job have the same layout."""

_LENGTH: Final = struct.Struct("<Q")
_SIZES: Final = 2**64  # the format's library multiplies in 64 bits, from left to right
_WHITE: Final = (b" ", b"\t", b"\r", b"\n")


class Tensor(NamedTuple):
    """One tensor of a file.

    Attributes:
        dtype: One of the format's dtypes, not only those that can be averaged.
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
    if prefix[_LENGTH.size :] not in (b"", b"{", b" ", b"\t", b"\r", b"\n"):
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


_OPENING: Final = _pattern(rb" \{")
_TENSOR: Final = _pattern(
    rb" (<name>) : \{(?:"
    rb' "dtype" : "([A-Z0-9_]{1,16})" <more>|'
    rb' "shape" : \[ (<naturals>) \] <more>|'
    rb' "data_offsets" : \[ (<natural>) , (<natural>) \] <more>'
    rb"){3}\} ([,}])"
)
_METADATA: Final = _pattern(rb' "__metadata__" : \{')
_PAIR: Final = _pattern(rb" (<name>) : (<value>) ([,}])")
_KEY: Final = _pattern(rb" (<name>) : ")
_CLOSING: Final = _pattern(rb" \}")
_SEPARATOR: Final = _pattern(rb" ([,}])")


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
    for name, tensor in header.tensors.items():
        _check(name, tensor)
    return Header(_in_order(header.tensors, _LENGTH.size + len(text), file_bytes), header.metadata)


def _parse(text: bytes) -> Header:
    """Parse a header without checking the tensors' dtypes, sizes and places; ValueError if it is not UTF-8."""
    opening = _OPENING.match(text)
    if opening is None:
        raise MalformedFileError("has a header that is not a JSON object")
    start = _LENGTH.size + len(text)
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, str] | None = None
    position, separator, unusual = opening.end(), b",", 0
    while separator == b",":
        if match := _TENSOR.match(text, position):
            name, tensor = _parse_tensor(match, start)
            position, separator = match.end(), match[6]
        elif metadata is None and (begin := _METADATA.match(text, position)):
            metadata, position, separator = _parse_metadata(text, begin.end())
            continue
        elif (key := _KEY.match(text, position)) and (unusual := unusual + 1) <= MAX_VALUES:
            begin_at, name = position, _text(key[1])
            value, position = parse_value(text, key.end())
            position, separator = _after(text, position)
            try:
                if name == "__metadata__" and metadata is None:
                    metadata = metadata_of(value)
                    continue
                dtype, shape, offsets = tensor_members(value if name != "__metadata__" else None)
            except ValueError:
                raise _no_entry(text, begin_at) from None
            if len(shape) > MAX_DIMENSIONS:
                raise _no_entry(text, begin_at)
            tensor = Tensor(dtype, tuple(shape), start + offsets[0], start + offsets[1])
        else:
            raise _no_entry(text, position)
        if len(tensors) == MAX_TENSORS:
            raise MalformedFileError(f"holds more than {MAX_TENSORS} tensors")
        tensors[name] = tensor  # of two tensors of a name, the format's library reads the last one
    if text[position:].strip(b" \t\r\n"):
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
    return metadata, *_after(text, position)


def _after(text: bytes, position: int) -> tuple[int, bytes]:
    """Return the position after an entry's separator, and the separator."""
    after = _SEPARATOR.match(text, position)
    if after is None:
        raise MalformedFileError(f"has a header that breaks off at byte {position}, after an entry")
    return after.end(), after[1]


def _no_entry(text: bytes, position: int) -> MalformedFileError:
    return MalformedFileError(
        f"has a header whose byte {position} begins no tensor of dtype, shape and data_offsets: "
        f"{_short(text[position : position + 80])}"
    )


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
    return name, Tensor(dtype.decode(), dimensions, start + int(begin), start + int(end))


def _check(name: str, tensor: Tensor) -> None:
    """Say what is wrong with a tensor, if anything is."""
    if tensor.dtype not in _ITEM_BITS:
        raise MalformedFileError(f"has tensor {_short(name)} of dtype {tensor.dtype}, which the format does not know")
    overflows = 0 in tensor.shape and max(accumulate(tensor.shape, operator.mul)) >= _SIZES
    if overflows or tensor.elements * _ITEM_BITS[tensor.dtype] != 8 * (tensor.end - tensor.offset):
        raise MalformedFileError(f"has tensor {_short(name)} whose data_offsets do not fit its shape and dtype")


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
