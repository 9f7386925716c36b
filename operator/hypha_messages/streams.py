"""The stream protocols: pushes of complete files, and pulls of dataset slices."""

import struct
from typing import Final

from hypha_messages.cbor import DecodeError
from hypha_messages.job import DataSlice

PUSH: Final = "/hypha-tensor-stream/push"
"""Carries the bytes of a file to the end of the stream. The receiver learns only which peer sends them."""

PULL: Final = "/hypha-tensor-stream/pull"
"""Carries a header that names a slice. The other side then sends the slice, to the end of the stream."""

_LENGTH: Final = struct.Struct("<Q")
PULL_LENGTH_BYTES: Final = _LENGTH.size
MAX_PULL_HEADER_BYTES: Final = 16 * 1024


def encode_pull_header(slice_: DataSlice) -> bytes:
    """Return the header of a pull: a JSON text that names the slice, after its length (u64, little-endian)."""
    text = slice_.model_dump_json().encode()
    return _LENGTH.pack(len(text)) + text


def decode_pull_length(data: bytes) -> int:
    """Return the length of the JSON text in bytes; DecodeError if it is too long."""
    length: int = _LENGTH.unpack(data)[0]
    if length >= MAX_PULL_HEADER_BYTES:
        raise DecodeError(f"a pull header has {length} bytes; it must be shorter than {MAX_PULL_HEADER_BYTES}")
    return length


def decode_pull_header(text: bytes) -> DataSlice:
    """Return the slice that the JSON text names; DecodeError if the text is malformed."""
    try:
        return DataSlice.model_validate_json(text)
    except ValueError as error:
        raise DecodeError(f"a pull header must name a dataset and an index: {error}") from error
