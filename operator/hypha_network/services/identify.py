"""identify and ping: peers exchange their addresses and protocols, and detect dead connections."""

import logging
import secrets
from collections.abc import Callable, Sequence

import trio
from google.protobuf.message import DecodeError as ProtobufError
from libp2p.identity.identify.pb.identify_pb2 import Identify as IdentifyMessage

from hypha_contracts.backoff import Backoff
from hypha_network.connection import Connection
from hypha_network.errors import NetworkError, RemoteRefused
from hypha_network.host import Host
from hypha_network.inbound_streams import StreamHandler
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_network.wire import addresses
from hypha_network.wire.addresses import Address
from hypha_network.wire.multistream import prefixed, read_prefixed
from hypha_network.wire.streams import Stream

logger = logging.getLogger(__name__)
_silence_log = RateLimitedLogger(logger)

IDENTIFY = "/ipfs/id/1.0.0"
PUSH = "/ipfs/id/push/1.0.0"
PING = "/ipfs/ping/1.0.0"
PROTOCOL_VERSION = "/hypha-identify/0.0.1"
MAX_MESSAGE_BYTES = 64 * 1024
MAX_PROTOCOLS = 256
TIMEOUT_S = 10.0
RETRIES = Backoff(first_s=1.0, max_s=300.0)
"""The pauses while a peer does not answer identify."""
REFRESHES = Backoff(first_s=300.0, max_s=300.0)
"""The pauses after an answer, because a peer that changes its addresses may fail to push them."""
PING_INTERVAL_S = 15.0
PING_TIMEOUT_S = 20.0
PING_FAILURES = 2
_PING_BYTES = 32


class Identify:
    """Sends this node's addresses and protocols to peers, and passes theirs to `on_identified`."""

    def __init__(
        self,
        host: Host,
        public_key: bytes,
        agent: str,
        own_addresses: Callable[[str], Sequence[Address]],
        on_identified: Callable[[str, Sequence[Address], frozenset[str]], None],
    ) -> None:
        """Make the service. `own_addresses` returns those that a peer is told."""
        self._host = host
        self._public_key = public_key
        self._agent = agent
        self._own_addresses = own_addresses
        self._on_identified = on_identified
        self.handlers: dict[str, StreamHandler] = {IDENTIFY: self._answer, PUSH: self._receive}

    async def serve(self, connection: Connection) -> None:
        """Ask a peer for its addresses and protocols until it answers, and again every few minutes."""
        pauses = RETRIES.pauses()
        while True:
            try:
                await self._receive(connection, await connection.open([IDENTIFY]))
            except (NetworkError, trio.TooSlowError) as error:
                logger.debug("%s did not identify itself: %s", connection.peer_id, error or "no answer")
            else:
                pauses = REFRESHES.pauses()
            await trio.sleep(next(pauses))

    async def push(self) -> None:
        """Send this node's changed addresses to every peer."""
        for peer_id in list(self._host.connections):
            if connection := self._host.connection(peer_id):
                connection.nursery.start_soon(self._push, connection)

    async def _push(self, connection: Connection) -> None:
        try:
            await self._answer(connection, await connection.open([PUSH]))
        except (NetworkError, trio.TooSlowError) as error:
            logger.debug("cannot send the new addresses to %s: %s", connection.peer_id, error)

    async def _answer(self, connection: Connection, stream: Stream) -> None:
        message = IdentifyMessage(
            protocol_version=PROTOCOL_VERSION,
            agent_version=self._agent,
            public_key=self._public_key,
            listen_addrs=[address.to_bytes() for address in self._own_addresses(connection.peer_id)],
            observed_addr=connection.address.to_bytes(),
            protocols=self._host.protocols,
        )
        with trio.fail_after(TIMEOUT_S):
            await stream.send_all(prefixed(message.SerializeToString()))
            await stream.aclose()

    async def _receive(self, connection: Connection, stream: Stream) -> None:
        try:
            with trio.fail_after(TIMEOUT_S):
                known, protocols, observed = decode(await read_prefixed(stream, MAX_MESSAGE_BYTES))
        except BaseException as error:
            stream.reset()
            if isinstance(error, ProtobufError):
                raise RemoteRefused(f"{connection.peer_id} sent a malformed identify message") from error
            raise
        await stream.aclose()
        if observed is not None and not connection.relayed and observed != connection.observed:
            connection.observed = observed
            self._host.changes.notify()
        self._on_identified(connection.peer_id, known, protocols)


def decode(data: bytes) -> tuple[list[Address], frozenset[str], Address | None]:
    """Return the usable addresses and the protocols of a peer, and the address at which it observes this node.

    ProtobufError if the bytes encode no message.
    """
    message = IdentifyMessage.FromString(data)
    observed = (
        address.endpoint
        for address in addresses.usable([message.observed_addr], 1)
        if address.ip is not None and address.relay is None
    )
    return addresses.usable(message.listen_addrs), frozenset(message.protocols[:MAX_PROTOCOLS]), next(observed, None)


async def answer_pings(_: Connection, stream: Stream) -> None:
    """Echo every ping on a stream until the peer closes it."""
    while first := await stream.receive_some(_PING_BYTES):
        rest = await stream.read_exactly(_PING_BYTES - len(first)) if len(first) < _PING_BYTES else b""
        await stream.send_all(bytes(first) + bytes(rest))


async def ping_until_silent(connection: Connection) -> None:
    """Ping a peer at an interval, and close the connection if it stops answering. Return if it does not speak ping."""
    failures = 0
    while failures < PING_FAILURES:
        await trio.sleep(PING_INTERVAL_S)
        try:
            await ping(connection)
        except RemoteRefused:
            return
        except NetworkError as error:
            failures += 1
            logger.debug("ping: %s: %s", connection.peer_id, error)
        else:
            failures = 0
    _silence_log.warning(connection.peer_id, "closing the connection, because it did not answer %d pings", failures)
    connection.close()


async def ping(connection: Connection) -> None:
    """Exchange a ping with a peer. NetworkError if it does not echo it in time."""
    payload = secrets.token_bytes(_PING_BYTES)
    with trio.move_on_after(PING_TIMEOUT_S):
        stream = await connection.open([PING])
        try:
            await stream.send_all(payload)
            echo = await stream.read_exactly(_PING_BYTES)
            await stream.send_eof()
        finally:
            stream.reset()
        if echo != payload:
            raise NetworkError("the echo differs from the ping")
        return
    raise NetworkError(f"no echo within {PING_TIMEOUT_S:g} s")
