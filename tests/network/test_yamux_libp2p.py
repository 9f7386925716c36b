"""The muxer under libp2p's own host, facing libp2p's own muxer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.crypto.keys import KeyPair
from libp2p.host.ping import PingService
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import Yamux as Libp2pYamux
from multiaddr import Multiaddr

from hypha_network.wire.tls import PROTOCOL_ID as TLS
from hypha_network.wire.tls import TlsTransport
from hypha_network.wire.yamux import PROTOCOL_ID, Yamux, YamuxStream
from support.certs import Pki
from support.muxing import BLOB

ECHO: Any = "/echo/1"

pytestmark = pytest.mark.anyio


class AnyMuxer(MuxerMultistream):
    """libp2p puts its own class in place of any yamux; this one takes what it was given."""

    async def new_conn(self, conn: Any, peer_id: Any) -> Any:
        _, muxer = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        return muxer(conn, peer_id)


@asynccontextmanager
async def host(pki: Pki, name: str, muxer: type) -> AsyncIterator[Any]:
    identity = pki.identity(name)
    pair = KeyPair(identity.key_pair.private_key, identity.key_pair.public_key)
    made: Any = new_host(key_pair=pair, sec_opt={TLS: TlsTransport(identity)}, muxer_opt={PROTOCOL_ID: muxer})  # type: ignore[dict-item]
    made.get_network().upgrader.muxer_multistream = AnyMuxer({PROTOCOL_ID: muxer})  # type: ignore[dict-item]

    async def echo(stream: Any) -> None:
        received = bytearray()
        while len(received) < len(BLOB):
            received += await stream.read(65536)
        await stream.write(bytes(received))
        await stream.close()

    made.set_stream_handler(ECHO, echo)
    async with made.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        yield made


@pytest.mark.parametrize(
    ("dialling", "listening"),
    [
        pytest.param(Yamux, Libp2pYamux, id="ours dials"),
        pytest.param(Libp2pYamux, Yamux, id="ours listens"),
        pytest.param(Yamux, Yamux, id="both ours"),
    ],
)
async def test_libp2ps_hosts_talk_over_our_muxer(dialling: type, listening: type) -> None:
    pki = Pki()
    with trio.fail_after(60):
        async with host(pki, "one", dialling) as one, host(pki, "two", listening) as two:
            await one.connect(info_from_p2p_addr(two.get_addrs()[0]))
            stream = await one.new_stream(two.get_id(), [ECHO])
            if dialling is Yamux:
                assert isinstance(stream.muxed_stream, YamuxStream)
            await stream.write(BLOB)
            received = bytearray()
            while len(received) < len(BLOB):
                received += await stream.read(65536)
            assert received == BLOB
            await stream.close()
            assert (await PingService(one).ping(two.get_id(), 2))[0] >= 0
