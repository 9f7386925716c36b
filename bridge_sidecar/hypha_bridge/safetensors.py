"""Checks whether a SafeTensors file is complete, by its size, because a stream that breaks off looks like its end."""

import os
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from hypha_messages.validation import describe

_LENGTH_BYTES: Final = 8
_MAX_HEADER_BYTES: Final = 100_000_000  # the limit of the format's own readers
_MAX_ENTRIES: Final = 100_000
_MAX_NODES: Final = 20 * _MAX_ENTRIES  # counted before parsing, because the parser may need a hundred bytes for one
_HEADER: Final = TypeAdapter(dict[str, dict[str, Any]])


class NotSafeTensors(ValueError):  # noqa: N818 - names the file's state
    """The file is hostile, malformed, or not a SafeTensors file."""


class Truncated(ValueError):  # noqa: N818 - names the file's state
    """The file is only the beginning of a SafeTensors file; the text says how much is missing."""


def check(path: Path) -> None:
    """Check that the file is a complete SafeTensors file; Truncated or NotSafeTensors."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES:
            raise Truncated(f"{size} bytes; the header's length alone takes {_LENGTH_BYTES}")
        if not 2 <= header_bytes <= _MAX_HEADER_BYTES:
            raise NotSafeTensors(f"a header of {header_bytes} bytes; between 2 and {_MAX_HEADER_BYTES} are allowed")
        start = file.read(1)
        if start not in (b"{", b""):
            raise NotSafeTensors("the header is not a JSON object")
        if size < _LENGTH_BYTES + header_bytes:
            raise Truncated(f"{size} bytes, of which the header alone takes {_LENGTH_BYTES + header_bytes}")
        end = _data_bytes(start + file.read(header_bytes - 1))
    expected = _LENGTH_BYTES + header_bytes + end
    if size < expected:
        raise Truncated(f"{size} of {expected} bytes")
    if size > expected:
        raise NotSafeTensors(f"{size} bytes, but the header describes {expected}")


def _data_bytes(header: bytes) -> int:
    """Return where the last tensor ends; NotSafeTensors unless the tensors fill the file without gap or overlap."""
    if sum(map(header.count, (b"{", b"[", b","))) > _MAX_NODES:
        raise NotSafeTensors(f"the header holds more than {_MAX_NODES} JSON values")
    try:
        entries = _HEADER.validate_json(header)
    except ValidationError as error:
        raise NotSafeTensors(f"the header is not a JSON object of objects: {describe(error, 'header')}") from error
    entries.pop("__metadata__", None)
    if len(entries) > _MAX_ENTRIES:
        raise NotSafeTensors(f"{len(entries)} tensors; at most {_MAX_ENTRIES} are allowed")
    position = 0
    for begin, end in sorted(_offsets(name, entry) for name, entry in entries.items()):
        if begin != position:
            raise NotSafeTensors(f"a tensor begins at byte {begin} where the one before ends at {position}")
        position = end
    return position


def _offsets(name: str, entry: dict[str, Any]) -> tuple[int, int]:
    match entry.get("data_offsets"):
        case [int(begin), int(end)] if 0 <= begin <= end < 2**63 and type(begin) is type(end) is int:
            return begin, end
    raise NotSafeTensors(f"tensor {name[:80]!r} has no valid data_offsets")
