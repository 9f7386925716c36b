"""The stream protocols: pushes of whole files, pulls of dataset slices."""

import struct
from typing import Final

from hypha_messages.cbor import DecodeError
from hypha_messages.job import DataSlice

PUSH: Final = "/hypha-tensor-stream/push"
"""Raw bytes to the end of the stream; the receiver knows only the sending peer."""

PULL: Final = "/hypha-tensor-stream/pull"
"""A header that names the slice, then the other side streams it to the end."""

_LENGTH: Final = struct.Struct("<Q")
PULL_LENGTH_BYTES: Final = _LENGTH.size
MAX_PULL_HEADER_BYTES: Final = 1024 * 1024


def encode_pull_header(slice_: DataSlice) -> bytes:
    """Return what a pull stream begins with: the length (u64, little-endian) of a JSON text, and that text."""
    text = slice_.model_dump_json().encode()
    return _LENGTH.pack(len(text)) + text


def decode_pull_length(data: bytes) -> int:
    """Return how many bytes of JSON follow; DecodeError if too many."""
    length: int = _LENGTH.unpack(data)[0]
    if length >= MAX_PULL_HEADER_BYTES:
        raise DecodeError(f"a pull header of {length} bytes; it must be shorter than {MAX_PULL_HEADER_BYTES}")
    return length


def decode_pull_header(text: bytes) -> DataSlice:
    """Return the slice that the JSON text names; DecodeError if it names none."""
    try:
        return DataSlice.model_validate_json(text)
    except ValueError as error:
        raise DecodeError(f"a pull header names a dataset and an index: {error}") from error
