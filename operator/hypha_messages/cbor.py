"""CBOR as serde writes it: encode and decode complete messages, with floats of the width that the peer expects."""

import math
import struct
from collections.abc import Iterator
from itertools import repeat
from typing import Annotated, Any, Final

import cbor2
from pydantic import AfterValidator, Field, PlainSerializer, SerializationInfo


class DecodeError(ValueError):
    """Bytes from a peer do not encode the expected message. The text says where and why."""


class _Encoded:
    """An encoded value. This is not a dataclass, because pydantic would turn one into a dict."""

    def __init__(self, data: bytes) -> None:
        self.data = data


def _write_encoded(encoder: cbor2.CBOREncoder, value: Any) -> None:
    if not isinstance(value, _Encoded):
        raise TypeError(f"cannot encode {type(value).__name__} as CBOR")
    encoder.write(value.data)


def _serialize_single(value: float, info: SerializationInfo) -> Any:
    return value if info.mode == "json" else _Encoded(b"\xfa" + struct.pack(">f", value))


MAX_SINGLE: Final[float] = struct.unpack(">f", bytes.fromhex("7f7fffff"))[0]
"""The largest finite number of single precision."""


def _fits_single(value: float) -> float:
    if math.isfinite(value) and abs(value) > MAX_SINGLE:
        raise ValueError(f"a single-precision number is at most {MAX_SINGLE:g}")
    return value


Single = Annotated[float, Field(strict=True), AfterValidator(_fits_single), PlainSerializer(_serialize_single)]
"""Rust's f32: four bytes in CBOR, because the peer does not accept eight."""


def dumps(value: Any) -> bytes:
    """Encode plain values, as `model_dump(mode="python")` returns them, with floats in eight bytes."""
    return cbor2.dumps(value, default=_write_encoded)


def dumps_shortest(value: Any) -> bytes:
    """Encode plain values as ciborium does, with every float in the shortest lossless form."""
    return dumps(_shorten_floats(value))


def _shorten_floats(value: Any) -> Any:
    if isinstance(value, float):
        return _Encoded(cbor2.dumps(value, canonical=True))
    if isinstance(value, dict):
        return {key: _shorten_floats(item) for key, item in value.items()}
    return [_shorten_floats(item) for item in value] if isinstance(value, list) else value


def loads(data: bytes | memoryview) -> Any:
    """Decode exactly one CBOR item in time and memory proportional to its size.

    Accepts the types that serde writes: integers of up to 64 bits, byte and text strings, arrays, maps with text keys,
    floats, booleans and null. Refuses all others, in particular tags, because some of their values take hours to
    compute.

    Raises:
        DecodeError: `data` is malformed, nested deeper than `MAX_DEPTH`, holds more items than its size justifies, or
            holds more than one value.
    """
    reader = _Reader(bytes(data))
    value = reader.item(depth=0)
    if reader.left:
        raise DecodeError(f"{reader.left} bytes after the CBOR item")
    return value


MAX_DEPTH: Final = 16
"""Twice the depth of the deepest message, a dispatched job."""

_MAX_ITEMS: Final = 4096
_MIN_ITEMS: Final = 512
_BYTES_PER_ITEM: Final = 16
"""Messages with many items, such as peer ids or file names, have at least this many bytes per item on average."""

_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_MAX_SHORT_ARGUMENT: Final = 23
"""The largest argument that stands in the initial byte itself."""
_INDEFINITE: Final = 31
_BREAK: Final = b"\xff"
_ARGUMENTS: Final = {24: struct.Struct(">B"), 25: struct.Struct(">H"), 26: struct.Struct(">L"), 27: struct.Struct(">Q")}
_FLOATS: Final = {25: struct.Struct(">e"), 26: struct.Struct(">f"), 27: struct.Struct(">d")}
_CONSTANTS: Final = {20: False, 21: True, 22: None}


class _Reader:
    """Reads the items of encoded CBOR one after the other, within a budget."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._items_left = self._budget = min(_MAX_ITEMS, _MIN_ITEMS + len(data) // _BYTES_PER_ITEM)

    @property
    def left(self) -> int:
        """The number of unread bytes."""
        return len(self._data) - self._at

    def item(self, depth: int) -> Any:
        """Read one item that lies inside `depth` arrays and maps."""
        self._check_budget(1)
        self._items_left -= 1
        (initial,) = self._take(1)
        major, info = initial >> 5, initial & 0x1F
        if major == _TEXT:
            return self._text(info)
        if major == _UNSIGNED:
            return self._argument(info)
        if major == _BYTES:
            return self._take(self._argument(info))
        if major == _SIMPLE:
            return self._simple(info)
        if major == _NEGATIVE:
            return -1 - self._argument(info)
        if major == _TAG:
            raise self._error("tags are not allowed")
        if depth >= MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH} levels")
        return [self.item(depth + 1) for _ in self._members(info)] if major == _ARRAY else self._map(info, depth + 1)

    def _map(self, info: int, depth: int) -> dict[str, Any]:
        members: dict[str, Any] = {}
        for _ in self._members(info):
            key = self.item(depth)
            if not isinstance(key, str):
                raise self._error("a map key must be a text")
            if key in members:
                raise self._error("a map has the same key twice")
            members[key] = self.item(depth)
        return members

    def _members(self, info: int) -> Iterator[None]:
        """Yield once per member of an array or map."""
        if info != _INDEFINITE:
            count = self._argument(info)
            self._check_budget(count)
            yield from repeat(None, count)
            return
        while self._data[self._at : self._at + 1] != _BREAK:
            yield
        self._at += 1

    def _text(self, info: int) -> str:
        try:
            return self._take(self._argument(info)).decode()
        except UnicodeDecodeError as error:
            raise self._error("a text is not UTF-8") from error

    def _simple(self, info: int) -> Any:
        if info in _CONSTANTS:
            return _CONSTANTS[info]
        if info in _FLOATS:
            return self._unpack(_FLOATS[info])
        raise self._error(f"simple value {info} is not allowed")

    def _argument(self, info: int) -> int:
        if info <= _MAX_SHORT_ARGUMENT:
            return info
        if info in _ARGUMENTS:
            return int(self._unpack(_ARGUMENTS[info]))
        raise self._error("an integer, a length or a text of indefinite length is malformed")

    def _unpack(self, number: struct.Struct) -> Any:
        return number.unpack(self._take(number.size))[0]

    def _take(self, size_bytes: int) -> bytes:
        if size_bytes > self.left:
            raise self._error(f"{size_bytes} more bytes are announced, but {self.left} are left")
        taken = self._data[self._at : self._at + size_bytes]
        self._at += size_bytes
        return taken

    def _check_budget(self, items: int) -> None:
        if items > self._items_left:
            raise self._error(f"more than {self._budget} items in {len(self._data)} bytes")

    def _error(self, reason: str) -> DecodeError:
        return DecodeError(f"not CBOR at byte {self._at}: {reason}")
