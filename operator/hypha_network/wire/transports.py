"""The transports of this node, by the transport that an address names."""

from collections.abc import Mapping
from typing import Final

from hypha_network.wire.addresses import TransportName
from hypha_network.wire.tcp import Tcp
from hypha_network.wire.transport import Transport

TRANSPORTS: Final[Mapping[TransportName, Transport]] = {TransportName.TCP: Tcp()}
