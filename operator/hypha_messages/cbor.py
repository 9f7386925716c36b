"""CBOR as serde writes it: whole-message encoding and decoding, floats of the width that the other side expects."""

import io
import math
import struct
from typing import Annotated, Any, Final

import cbor2
from pydantic import AfterValidator, PlainSerializer, SerializationInfo


class DecodeError(ValueError):
    """Bytes from a peer that are not the message they should be; the text says where and why."""


class _Encoded:
    """A value that is CBOR already (a plain class: pydantic would turn a dataclass into a dict)."""

    def __init__(self, data: bytes) -> None:
        self.data = data


def _write_encoded(encoder: cbor2.CBOREncoder, value: Any) -> None:
    if not isinstance(value, _Encoded):
        raise TypeError(f"cannot encode {type(value).__name__} as CBOR")
    encoder.write(value.data)


def _serialize_single(value: float, info: SerializationInfo) -> Any:
    return value if info.mode == "json" else _Encoded(b"\xfa" + struct.pack(">f", value))


_LARGEST_SINGLE: Final[float] = struct.unpack(">f", bytes.fromhex("7f7fffff"))[0]


def _fits_single(value: float) -> float:
    if math.isfinite(value) and abs(value) > _LARGEST_SINGLE:
        raise ValueError(f"a single-precision number is at most {_LARGEST_SINGLE:g}")
    return value


Single = Annotated[float, AfterValidator(_fits_single), PlainSerializer(_serialize_single)]
"""Rust's f32: four bytes in CBOR, since the other side accepts no eight."""


def dumps(value: Any) -> bytes:
    """Encode plain values (what `model_dump(mode="python")` gives), floats in eight bytes."""
    return cbor2.dumps(value, default=_write_encoded)


def dumps_shortest(value: Any) -> bytes:
    """Encode plain values, every float in the shortest of its three forms that loses nothing, as ciborium does."""
    return dumps(_shorten_floats(value))


def _shorten_floats(value: Any) -> Any:
    if isinstance(value, float):
        return _Encoded(cbor2.dumps(value, canonical=True))
    if isinstance(value, dict):
        return {key: _shorten_floats(item) for key, item in value.items()}
    return [_shorten_floats(item) for item in value] if isinstance(value, list) else value


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
