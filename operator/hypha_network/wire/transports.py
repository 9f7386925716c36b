"""The transports of this node, by the transport that an address names."""

from collections.abc import Mapping

import trio

from hypha_network.wire.addresses import TransportName
from hypha_network.wire.quic import Quic
from hypha_network.wire.tcp import Tcp
from hypha_network.wire.transport import Transport


def transports(nursery: trio.Nursery) -> Mapping[TransportName, Transport]:
    """Return the transports, which run their sockets in the nursery."""
    return {TransportName.TCP: Tcp(), TransportName.QUIC: Quic(nursery)}
