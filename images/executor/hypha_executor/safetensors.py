"""SafeTensors files: read with every field checked, because peers send them, and written tensor by tensor."""

import json
import math
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Final

from hypha_executor.errors import MalformedFileError

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
MAX_TENSORS: Final = 100_000
MAX_DIMENSIONS: Final = 16
Layout = dict[str, tuple[str, tuple[int, ...]]]
"""The dtype and the shape of each tensor by its name. All files of a job have the same layout."""

_LENGTH: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        dtype: One of `ITEM_BYTES`.
        shape: Its dimensions; empty for a scalar.
        offset: Its first byte, counted from the start of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """The byte after the last one."""
        return self.offset + self.count * ITEM_BYTES[self.dtype]


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
        MalformedFileError: The file is not a regular, complete SafeTensors file of dtypes that can be averaged.
        OSError: The file cannot be opened, for example because it is a symbolic link.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return descriptor, _read_header(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def read_header(path: Path) -> Header:
    """Return the header of a file.

    Raises:
        MalformedFileError: As for `open_header`; here the text begins with the file's name.
        OSError: The file cannot be opened.
    """
    try:
        descriptor, header = open_header(path)
    except MalformedFileError as error:
        raise MalformedFileError(f"{path.name} {error}") from None
    os.close(descriptor)
    return header


def _read_header(descriptor: int) -> Header:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise MalformedFileError("is not a regular file")
    prefix = os.pread(descriptor, _LENGTH.size, 0)
    if len(prefix) < _LENGTH.size:
        raise MalformedFileError(f"is truncated: {status.st_size} bytes hold no SafeTensors header")
    (length,) = _LENGTH.unpack(prefix)
    if length > MAX_HEADER_BYTES:
        raise MalformedFileError(f"has a header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
    text = os.pread(descriptor, length, _LENGTH.size)
    if len(text) < length:
        raise MalformedFileError(f"is truncated: its header has {len(text)} of {length} bytes")
    return parse_header(text, status.st_size)


def parse_header(text: bytes, file_bytes: int) -> Header:
    """Parse a header: the bytes after the length prefix of a file that has `file_bytes` bytes in total.

    Raises:
        MalformedFileError: The header breaks a rule of the format or of this module.
    """
    try:
        fields = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise MalformedFileError(f"has a header that is not JSON: {str(error)[:200]}") from error
    if not isinstance(fields, dict):
        raise MalformedFileError("has a header that is not a JSON object")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedFileError("has a __metadata__ that does not map text to text")
    if not fields:
        raise MalformedFileError("holds no tensors")
    if len(fields) > MAX_TENSORS:
        raise MalformedFileError(f"holds {len(fields)} tensors; at most {MAX_TENSORS} are read")
    start = _LENGTH.size + len(text)
    tensors = dict(
        sorted(((name, _tensor(name, field, start)) for name, field in fields.items()), key=lambda item: item[1].offset)
    )
    _check_cover(tensors, start, file_bytes)
    return Header(tensors, metadata)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name occurs twice")
    return fields


def _tensor(name: str, field: Any, start: int) -> Tensor:
    if not isinstance(field, dict) or field.keys() != {"dtype", "shape", "data_offsets"}:
        raise MalformedFileError(f"has tensor {_short(name)} with other fields than dtype, shape, data_offsets")
    dtype, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise MalformedFileError(
            f"has tensor {_short(name)} of dtype {_short(dtype)}, known are {', '.join(ITEM_BYTES)}"
        )
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise MalformedFileError(f"has tensor {_short(name)} with the shape {_short(shape)}")
    if not _naturals(offsets) or len(offsets) != 2:
        raise MalformedFileError(f"has tensor {_short(name)} with the data_offsets {_short(offsets)}")
    tensor = Tensor(dtype, tuple(shape), start + offsets[0])
    if tensor.end != start + offsets[1]:
        raise MalformedFileError(f"has tensor {_short(name)} whose data_offsets do not fit its shape and dtype")
    return tensor


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_cover(tensors: Mapping[str, Tensor], start: int, file_bytes: int) -> None:
    """Check that tensors lie side by side, without gaps or overlaps, up to the end of the file."""
    # Empty tensors share their offset with the next one, so order by the end as well.
    spans = sorted((tensor.offset, tensor.end) for tensor in tensors.values())
    if spans[0][0] != start or any(before[1] != after[0] for before, after in pairwise(spans)):
        raise MalformedFileError("has tensors that overlap or leave gaps")
    if spans[-1][1] > file_bytes:
        raise MalformedFileError(f"is truncated: {file_bytes} of {spans[-1][1]} bytes")
    if spans[-1][1] < file_bytes:
        raise MalformedFileError(f"is {file_bytes - spans[-1][1]} bytes longer than its header says")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."


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
        name: Tensor(field["dtype"], field["shape"], start + field["data_offsets"][0]) for name, field in fields.items()
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
