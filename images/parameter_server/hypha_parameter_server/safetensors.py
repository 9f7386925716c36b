"""SafeTensors headers: read from files that peers sent, so trusted in nothing; and written."""

import json
import math
import os
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np

from hypha_parameter_server.errors import Refused

DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
}
MAX_HEADER_BYTES: Final = 16 << 20
MAX_TENSORS: Final = 100_000
MAX_DIMENSIONS: Final = 16
Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Names, dtypes and shapes: what all files of a job have in common."""

_LENGTH: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies: `offset` counts bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def count(self) -> int:
        """How many elements."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.offset + self.count * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Header:
    """What a file holds. The tensors are in the order of their bytes."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @cached_property
    def layout(self) -> Layout:
        """The names, dtypes and shapes of the tensors."""
        return {name: (tensor.dtype, tensor.shape) for name, tensor in self.tensors.items()}

    def tensor_at(self, offset: int) -> str:
        """The name of the tensor that the byte at `offset` belongs to."""
        return next(name for name, tensor in self.tensors.items() if tensor.offset <= offset < tensor.end)


def open_header(path: Path) -> tuple[int, Header]:
    """A file descriptor, which the caller closes, and the header.

    Raises:
        Refused: the file is not a plain, complete and sound SafeTensors file of dtypes that can be averaged.
        OSError: the file can't be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return descriptor, read_header(descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def read_header(descriptor: int) -> Header:
    """The header of an open file; see `open_header`."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise Refused("is not a regular file")
    prefix = os.pread(descriptor, _LENGTH.size, 0)
    if len(prefix) < _LENGTH.size:
        raise Refused(f"is truncated: {status.st_size} bytes hold no SafeTensors header")
    (length,) = _LENGTH.unpack(prefix)
    if length > MAX_HEADER_BYTES:
        raise Refused(f"has a header of {length} bytes; at most {MAX_HEADER_BYTES} are read")
    text = os.pread(descriptor, length, _LENGTH.size)
    if len(text) < length:
        raise Refused(f"is truncated: its header has {len(text)} of {length} bytes")
    return parse_header(text, status.st_size)


def parse_header(text: bytes, file_bytes: int) -> Header:
    """The header in the bytes after the length prefix, of a file of `file_bytes` bytes in all.

    Raises:
        Refused: anything is not as the format has it.
    """
    try:
        fields = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Refused(f"has a header that is not JSON: {str(error)[:200]}") from error
    if not isinstance(fields, dict):
        raise Refused("has a header that is not a JSON object")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise Refused("has a __metadata__ that does not map text to text")
    if not fields:
        raise Refused("holds no tensors")
    if len(fields) > MAX_TENSORS:
        raise Refused(f"holds {len(fields)} tensors; at most {MAX_TENSORS} are read")
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
        raise Refused(f"describes tensor {_short(name)} by other fields than dtype, shape and data_offsets")
    dtype, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Refused(f"has tensor {_short(name)} of dtype {_short(dtype)}; known are {', '.join(DTYPES)}")
    if not _naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise Refused(f"has tensor {_short(name)} with the shape {_short(shape)}")
    if not _naturals(offsets) or len(offsets) != 2:
        raise Refused(f"has tensor {_short(name)} with the data_offsets {_short(offsets)}")
    tensor = Tensor(dtype, tuple(shape), start + offsets[0])
    if tensor.end != start + offsets[1]:
        raise Refused(f"has tensor {_short(name)} whose data_offsets do not fit its shape and dtype")
    return tensor


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_cover(tensors: Mapping[str, Tensor], start: int, file_bytes: int) -> None:
    """Tensors lie side by side, without gaps or overlaps, up to the end of the file."""
    # Empty tensors share their offset with the next one, so order by the end as well.
    spans = sorted((tensor.offset, tensor.end) for tensor in tensors.values())
    if spans[0][0] != start or any(before[1] != after[0] for before, after in pairwise(spans)):
        raise Refused("has tensors that overlap or leave gaps")
    if spans[-1][1] > file_bytes:
        raise Refused(f"is truncated: {file_bytes} of {spans[-1][1]} bytes")
    if spans[-1][1] < file_bytes:
        raise Refused(f"is {file_bytes - spans[-1][1]} bytes longer than its header says")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."


def lay_out(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, Mapping[str, Tensor]]:
    """The first bytes of a file with these tensors (name, dtype, shape), and where each one comes to lie."""
    fields: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, dtype, shape in tensors:
        end = position + math.prod(shape) * DTYPES[dtype].itemsize
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
