"""The values in messages: peer ids, uuids, times and resources."""

from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Final
from uuid import UUID

import base58
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)

_IDENTITY_MULTIHASH = 0x00
_SHA256_MULTIHASH = 0x12
_NANOSECONDS_PER_SECOND = 1_000_000_000
ROUNDING: Final = 1 + 1e-9
"""Amounts that differ by at most this factor count as equal, because sums of floats are inexact."""
_ED25519_PEER_ID_PREFIX = bytes.fromhex("002408011220")  # identity multihash of the protobuf key
_MAX_REMEMBERED: Final = 1024
"""Peer ids whose text is remembered, because one message of gossip needs the text of its source three times."""
_DIGITS: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PAIRS: Final = [high + low for high in _DIGITS for low in _DIGITS]


class Message(BaseModel):
    """Base of all messages. It is immutable and ignores unknown keys, as serde does on the other side."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, serialize_by_alias=True)


class OmitsNone(Message):
    """A message that omits its unset optional fields, as serde's `skip_serializing_if` does."""

    @model_serializer(mode="wrap")
    def _omit_none(self, serialize: SerializerFunctionWrapHandler) -> Any:
        return {key: value for key, value in serialize(self).items() if value is not None}


@lru_cache(_MAX_REMEMBERED)
def peer_id_from_bytes(multihash: bytes) -> str:
    """Return the base58 text of a peer id's multihash bytes; ValueError if they are not a peer id."""
    if len(multihash) < 3 or multihash[1] != len(multihash) - 2:
        raise ValueError("a peer id is a multihash of code, length and digest; its length does not match its digest")
    code, length = multihash[0], multihash[1]
    if not (code == _IDENTITY_MULTIHASH and length <= 42) and not (code == _SHA256_MULTIHASH and length == 32):
        raise ValueError("a peer id is an identity multihash of at most 42 bytes or a sha2-256 multihash")
    return encode_base58(multihash)


def encode_base58(data: bytes) -> str:
    """Return bytes as base58 text, three times as fast as the library: ten digits cost one division of the number."""
    number, text = int.from_bytes(data), ""
    while number:
        number, ten_digits = divmod(number, 58**10)
        high, low = divmod(ten_digits, 58**5)
        text = (
            f"{_DIGITS[high // 58**4]}{_PAIRS[high // 58**2 % 58**2]}{_PAIRS[high % 58**2]}"
            f"{_DIGITS[low // 58**4]}{_PAIRS[low // 58**2 % 58**2]}{_PAIRS[low % 58**2]}{text}"
        )
    leading_zeros = len(data) - len(data.lstrip(b"\0"))
    return _DIGITS[0] * leading_zeros + text.lstrip(_DIGITS[0])


def peer_id_from_ed25519(public_key: bytes) -> str:
    """Return the peer id that belongs to an Ed25519 public key of 32 bytes."""
    return peer_id_from_bytes(_ED25519_PEER_ID_PREFIX + public_key)


def peer_id_to_bytes(peer_id: str) -> bytes:
    """Return the multihash bytes of a base58 peer id; ValueError if it is malformed."""
    if len(peer_id) > 64:
        raise ValueError("a peer id has at most 64 characters")
    try:
        multihash = base58.b58decode(peer_id)
    except ValueError as error:
        raise ValueError(f"peer id {peer_id!r} is not base58") from error
    peer_id_from_bytes(multihash)
    return multihash


def _validate_peer_id(value: Any) -> str:
    if isinstance(value, bytes):
        return peer_id_from_bytes(value)
    if isinstance(value, str):
        peer_id_to_bytes(value)
        return value
    raise ValueError("a peer id is base58 text or multihash bytes")


def _serialize_peer_id(value: str, info: SerializationInfo) -> str | bytes:
    return value if info.mode == "json" else peer_id_to_bytes(value)


PeerId = Annotated[str, BeforeValidator(_validate_peer_id), PlainSerializer(_serialize_peer_id)]
"""A libp2p peer id: base58 text in Python and JSON, multihash bytes in CBOR."""


def _validate_uuid(value: Any) -> Any:
    return UUID(bytes=value) if isinstance(value, bytes) else value  # ValueError unless 16 bytes


def _serialize_uuid(value: UUID, info: SerializationInfo) -> str | bytes:
    return str(value) if info.mode == "json" else value.bytes


Uuid = Annotated[UUID, BeforeValidator(_validate_uuid), PlainSerializer(_serialize_uuid)]
"""A uuid: text in JSON, 16 bytes in CBOR."""


Unsigned32 = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
"""Rust's u32: an integer, not a text or a float."""

Unsigned64 = Annotated[int, Field(strict=True, ge=0, lt=2**64)]
"""Rust's u64."""

Double = Annotated[float, Field(strict=True)]
"""Rust's f64: a float or an integer, not a text."""


class SystemTime(Message):
    """A wall-clock time in the form in which serde writes Rust's `SystemTime`."""

    secs_since_epoch: Unsigned64
    nanos_since_epoch: Annotated[int, Field(strict=True, ge=0, lt=_NANOSECONDS_PER_SECOND)]

    @classmethod
    def from_timestamp(cls, seconds: float) -> "SystemTime":
        """Convert seconds since the epoch, as `time.time()` returns them."""
        whole, nanoseconds = divmod(round(seconds * _NANOSECONDS_PER_SECOND), _NANOSECONDS_PER_SECOND)
        return cls(secs_since_epoch=whole, nanos_since_epoch=nanoseconds)

    @property
    def timestamp(self) -> float:
        """Seconds since the epoch."""
        return self.secs_since_epoch + self.nanos_since_epoch / _NANOSECONDS_PER_SECOND

    def __str__(self) -> str:
        try:
            return datetime.fromtimestamp(self.timestamp, UTC).isoformat()
        except (OverflowError, ValueError):
            return f"{self.secs_since_epoch}s since the epoch"


Amount = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
"""An amount of a resource, or a price. It is finite and not negative."""


class Resources(Message):
    """The resources of a worker or a job: GB of GPU memory, CPU cores, GB of storage, GB of memory."""

    gpu: Amount = 0.0
    cpu: Amount = 0.0
    storage: Amount = 0.0
    memory: Amount = 0.0

    def __add__(self, other: "Resources") -> "Resources":
        return Resources(**{name: amount + getattr(other, name) for name, amount in self})

    def fits_into(self, capacity: "Resources") -> bool:
        """Return whether each of these amounts is at most the capacity's, apart from rounding errors."""
        return all(amount <= getattr(capacity, name) * ROUNDING for name, amount in self)
