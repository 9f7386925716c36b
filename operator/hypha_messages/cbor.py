"""CBOR as serde writes it: whole-message encoding and decoding, externally tagged enums, single-precision floats."""

import io
import struct
from typing import Annotated, Any, Final

import cbor2
from pydantic import Field, PlainSerializer, SerializationInfo


class DecodeError(ValueError):
    """Bytes from a peer that are not the message they should be; the text says where and why."""


class _Single:
    """A float that CBOR must carry as four bytes: the other side's f32 does not accept eight."""

    def __init__(self, value: float) -> None:
        self.value = value


def _encode_single(encoder: cbor2.CBOREncoder, value: Any) -> None:
    if not isinstance(value, _Single):
        raise TypeError(f"cannot encode {type(value).__name__} as CBOR")
    encoder.write(b"\xfa" + struct.pack(">f", value.value))


def _serialize_single(value: float, info: SerializationInfo) -> Any:
    return value if info.mode == "json" else _Single(value)


_LARGEST_SINGLE: Final = struct.unpack(">f", bytes.fromhex("7f7fffff"))[0]

Single = Annotated[
    float, Field(ge=-_LARGEST_SINGLE, le=_LARGEST_SINGLE, allow_inf_nan=True), PlainSerializer(_serialize_single)
]
"""Rust's f32."""


def dumps(value: Any) -> bytes:
    """Encode plain values (what `model_dump(mode="python")` gives)."""
    return cbor2.dumps(value, default=_encode_single)


def loads(data: bytes | memoryview) -> Any:
    """Decode exactly one CBOR item; DecodeError if there is none, more than one, or a malformed one."""
    stream = io.BytesIO(data)
    try:
        value = cbor2.CBORDecoder(stream).decode()
    except (cbor2.CBORDecodeError, ValueError, TypeError, RecursionError, OverflowError) as error:
        raise DecodeError(f"not CBOR: {error}") from error
    if stream.tell() != len(data):
        raise DecodeError(f"{len(data) - stream.tell()} bytes after the CBOR item")
    return value
