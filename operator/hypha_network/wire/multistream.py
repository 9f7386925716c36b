"""multistream-select 1.0: the two ends of a connection or stream agree on a protocol."""

from collections.abc import Container
from typing import Protocol

from hypha_network.errors import NetworkError, RemoteRefused

HEADER = "/multistream/1.0.0"
NOT_AVAILABLE = "na"
_MAX_LINE_BYTES = 1024
_MAX_PROPOSALS = 32


class Channel(Protocol):
    """A connection or stream to negotiate on. `read_exactly` must not consume bytes beyond those it returns."""

    async def read_exactly(self, size_bytes: int) -> bytes | bytearray | memoryview:
        """Return that many bytes."""

    async def write(self, data: bytes) -> None:
        """Send all data."""


async def select(channel: Channel, protocols: list[str]) -> str:
    """Propose protocols, the preferred one first; return the one that the peer accepts. RemoteRefused if none."""
    await channel.write(_line(HEADER) + _line(protocols[0]))
    await _expect_header(channel)
    for index, protocol in enumerate(protocols):
        if index:
            await channel.write(_line(protocol))
        answer = await _read_line(channel)
        if answer == protocol:
            return protocol
        if answer != NOT_AVAILABLE:
            raise RemoteRefused(f"proposed {protocol}, the peer answered {answer!r}")
    raise RemoteRefused(f"the peer does not speak {' or '.join(protocols)}")


async def accept(channel: Channel, protocols: Container[str]) -> str:
    """Answer a peer's proposals; return the first that this node speaks. NetworkError if it speaks none of them."""
    await channel.write(_line(HEADER))  # at once, because some peers propose nothing before they have read it
    await _expect_header(channel)
    for _ in range(_MAX_PROPOSALS):
        protocol = await _read_line(channel)
        if protocol in protocols:
            await channel.write(_line(protocol))
            return protocol
        await channel.write(_line(NOT_AVAILABLE))
    raise NetworkError(f"this node speaks none of the {_MAX_PROPOSALS} protocols that the peer proposed")


def _line(text: str) -> bytes:
    data = text.encode() + b"\n"
    return encode_varint(len(data)) + data


async def _expect_header(channel: Channel) -> None:
    header = await _read_line(channel)
    if header != HEADER:
        raise RemoteRefused(f"expected {HEADER}, the peer sent {header!r}")


async def _read_line(channel: Channel) -> str:
    data = await read_prefixed(channel, _MAX_LINE_BYTES)
    if not data.endswith(b"\n"):
        raise RemoteRefused("a negotiation message does not end with a newline")
    return data[:-1].decode("utf-8", "replace")


async def read_prefixed(channel: Channel, max_bytes: int) -> bytes:
    """Read a message that follows its varint length; RemoteRefused if it is longer than `max_bytes`."""
    length = shift = 0
    while True:
        byte = (await channel.read_exactly(1))[0]
        length |= (byte & 0x7F) << shift
        if length > max_bytes or shift > 28:
            raise RemoteRefused(f"a message is longer than {max_bytes} bytes")
        if byte < 0x80:
            return bytes(await channel.read_exactly(length)) if length else b""
        shift += 7


def encode_varint(value: int) -> bytes:
    """Return a number as an unsigned varint."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def prefixed(message: bytes) -> bytes:
    """Return a message after its varint length."""
    return encode_varint(len(message)) + message
