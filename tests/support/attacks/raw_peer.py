"""A hostile peer's connection. It writes raw frames, as fast as the victim reads them, and answers almost nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from hypha_network.errors import NetworkError
from hypha_network.identity import Identity
from hypha_network.wire import multistream
from hypha_network.wire.addresses import parse
from hypha_network.wire.multistream import prefixed
from hypha_network.wire.tcp import Tcp
from hypha_network.wire.tls import PROTOCOL_ID as TLS
from hypha_network.wire.tls import SecureConnection, TlsTransport
from hypha_network.wire.yamux import PROTOCOL_ID as YAMUX
from hypha_network.wire.yamux_frames import (
    ACK,
    DATA,
    FIN,
    HEADER,
    HEADER_BYTES,
    INITIAL_WINDOW,
    PING,
    RST,
    SYN,
    VERSION,
    WINDOW_UPDATE,
)

GREETING = prefixed(b"/multistream/1.0.0\n")
REFUSAL = GREETING + prefixed(b"na\n")


@dataclass
class Tally:
    """What an attack has sent: attempts, bytes, connections, and how many of these the victim refused or closed."""

    attempts: int = 0
    sent_bytes: int = 0
    connections: int = 0
    lost: int = 0


def frame(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    return HEADER.pack(VERSION, kind, flags, stream_id, length)


def data_frame(stream_id: int, data: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, stream_id, len(data)) + data


def proposal(protocol: str) -> bytes:
    """The bytes with which a stream begins."""
    return GREETING + prefixed(f"{protocol}\n".encode())


class RawPeer:
    """A muxed connection whose frames the attacker writes itself. It refuses every stream that the victim opens."""

    def __init__(self, secured: SecureConnection, peer_id: str) -> None:
        self.peer_id = peer_id
        self.victim = secured.peer_id
        self.tally = Tally()
        """Of the attack that is made now."""
        self._secured = secured
        self._next_id = 1
        self._windows: dict[int, int] = {}
        self._granted = trio.Event()

    async def write(self, frames: bytes, attempts: int) -> None:
        """Send frames, and count them as so many attempts."""
        await self._secured.write(frames)
        self.tally.sent_bytes += len(frames)
        self.tally.attempts += attempts

    def new_stream_id(self) -> int:
        self._next_id += 2
        return self._next_id - 2

    def opening(self, protocol: str, data: bytes = b"", *, end: bool = True) -> bytes:
        """Return the frame that opens a stream with this data, which must fit into the initial window."""
        return data_frame(self.new_stream_id(), proposal(protocol) + data, SYN | (FIN if end else 0))

    async def open(self, protocol: str) -> int:
        """Open a stream for `send`; return its id."""
        stream_id, data = self.new_stream_id(), proposal(protocol)
        self._windows[stream_id] = INITIAL_WINDOW - len(data)
        await self.write(data_frame(stream_id, data, SYN), 0)
        return stream_id

    async def send(self, stream_id: int, data: bytes, attempts: int = 1) -> None:
        """Send data as the window of a stream allows. NetworkError if the victim has reset the stream."""
        view = memoryview(data)
        while view:
            while not (window := self._window(stream_id)):
                await self._granted.wait()
            piece, view = view[:window], view[window:]
            self._windows[stream_id] -= len(piece)
            await self.write(data_frame(stream_id, bytes(piece)), 0 if view else attempts)

    async def end(self, stream_id: int) -> None:
        self._windows.pop(stream_id, None)
        await self.write(frame(WINDOW_UPDATE, FIN, stream_id, 0), 0)

    def _window(self, stream_id: int) -> int:
        if stream_id not in self._windows:
            raise NetworkError(f"{self.victim} reset the stream")
        return self._windows[stream_id]

    async def read(self) -> None:
        """Read until the connection ends: note windows and resets, answer pings, refuse streams, drop the rest."""
        unread = b""
        skip = 0
        while data := await self._secured.read_some():
            if skip >= len(data):
                skip -= len(data)
                continue
            view = unread + bytes(data[skip:])
            position, skip, answers = 0, 0, bytearray()
            while position + HEADER_BYTES <= len(view):
                _, kind, flags, stream_id, length = HEADER.unpack_from(view, position)
                position += HEADER_BYTES + (length if kind == DATA else 0)
                self._on_frame(kind, flags, stream_id, length, answers)
            skip, unread = max(0, position - len(view)), view[position:]
            self._granted.set()
            self._granted = trio.Event()
            if answers:
                await self._secured.write(bytes(answers))
        raise NetworkError(f"{self.victim} closed the connection")

    def _on_frame(self, kind: int, flags: int, stream_id: int, length: int, answers: bytearray) -> None:
        if kind == PING and flags & SYN:
            answers += frame(PING, ACK, 0, length)
        elif flags & RST:
            self._windows.pop(stream_id, None)
        elif flags & SYN:
            answers += data_frame(stream_id, REFUSAL, ACK | FIN)
        elif kind == WINDOW_UPDATE and stream_id in self._windows:
            self._windows[stream_id] += length


async def secure(identity: Identity, address: str) -> SecureConnection:
    """Connect to an address and complete TLS. NetworkError if that fails."""
    to = parse(address)
    raw = await Tcp().connect(to)
    try:
        await multistream.select(raw, [TLS])
        return await TlsTransport(identity).secure(raw, to.peer_id)
    except BaseException:
        await raw.close()
        raise


@asynccontextmanager
async def raw_peer(identity: Identity, address: str) -> AsyncIterator[RawPeer]:
    """Connect to an address. When the connection ends, cancel the code inside and raise NetworkError."""
    secured = await secure(identity, address)
    failure: BaseException | None = None
    try:
        await multistream.select(secured, [YAMUX])
        peer = RawPeer(secured, identity.peer_id)
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                nonlocal failure
                try:
                    await peer.read()
                except NetworkError as error:
                    failure = error
                nursery.cancel_scope.cancel()

            nursery.start_soon(read)
            try:
                yield peer
            except NetworkError as error:  # raised below, not in a group
                failure = error
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(deadline=trio.current_time() + 0.5, shield=True):
            await secured.close()
    if failure is not None:
        raise failure
