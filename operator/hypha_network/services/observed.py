"""The addresses at which gateways observe this node, which are those of its NAT if there is one."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Final

from hypha_network.connection import Connection
from hypha_network.host import Host
from hypha_network.wire.addresses import Address, TransportName, excluded, local_port_for

MIN_OBSERVERS: Final = 2
"""How many gateways must observe the same address, if this node knows more than one."""


class Observed:
    """What the connected gateways observe, each over a connection that this node dialled.

    Other peers are not asked: this node dials them from other TCP ports, and the operator did not choose them.
    A NAT maps the ports of TCP and UDP independently, so observations of one transport tell nothing about the other.
    """

    def __init__(self, host: Host, gateways: Callable[[], Iterable[str]]) -> None:
        self._host = host
        self._gateways = gateways

    @property
    def known(self) -> bool:
        """Whether any gateway has observed this node."""
        return next(self._observations(), None) is not None

    def addresses(self) -> list[Address]:
        """Return the addresses to which a peer may connect while this node connects to it from its listening port."""
        return [address for transport in TransportName for address in agreed(self._by_gateway(transport))]

    def open_addresses(self) -> list[Address]:
        """Return the listen addresses to which peers may connect, because no NAT lies between them and the gateways.

        Peers ignore addresses in excluded networks, as this node does.
        """
        hosts = {peer_id: address.ip for peer_id, _, address in self._observations()}
        own = {address.ip for address in self._host.listen_addresses}
        seen = {peer_id: ip for peer_id, ip in hosts.items() if ip in own}
        if not seen or len(seen) < min(MIN_OBSERVERS, len(hosts)):
            return []
        return self._allowed(address for address in self._host.listen_addresses if address.ip in seen.values())

    def predictable(self) -> bool:
        """Whether the NAT lets peers in at these addresses: it keeps the port, or maps it alike for two gateways."""
        return any(self._predictable(transport) for transport in TransportName)

    def _predictable(self, transport: TransportName) -> bool:
        ports = {address.port for address in self._host.bound if address.transport is transport}
        observed = self._by_gateway(transport)
        known = self._allowed(agreed(observed))
        return bool(known) and (len(observed) >= MIN_OBSERVERS or any(address.port in ports for address in known))

    def _by_gateway(self, transport: TransportName) -> dict[str, Address]:
        found: dict[str, Address] = {}
        for peer_id, connection, address in self._observations():
            if address.transport is transport:
                port = local_port_for(address.host, self._host.bound, transport)
                mapped = port and mapped_listener(address, connection.local_port, port)
                if mapped:
                    found[peer_id] = mapped
        return found

    def _observations(self) -> Iterator[tuple[str, Connection, Address]]:
        """Yield each connected gateway, the connection to it, and the address of this node that it observes there."""
        for peer_id in self._gateways():
            for connection in self._host.connections.get(peer_id, ()):
                if connection.observed is not None and not connection.inbound:
                    yield peer_id, connection, connection.observed

    def _allowed(self, known: Iterable[Address]) -> list[Address]:
        return [address for address in known if not excluded(address, self._host.excluded)]


def mapped_listener(observed: Address, local_port: int | None, listening_port: int) -> Address | None:
    """Return the address to which a NAT maps the listening port; None if the observation does not tell it.

    Args:
        observed: what a peer observed of a connection.
        local_port: the local port of that connection.
        listening_port: the port at which this node listens.
    """
    if local_port == listening_port:
        return observed
    if local_port == observed.port:  # the port is kept, or there is no NAT
        return replace(observed, port=listening_port)
    return None


def agreed(observed: Mapping[str, Address]) -> list[Address]:
    """Return the addresses that enough observers name.

    A single observer is enough if there is no other. It is a gateway that the operator configured, and a wrong address
    costs no more than failed attempts, because only a peer with the expected certificate is ever connected.
    """
    counts = Counter(observed.values())
    enough = min(MIN_OBSERVERS, len(observed))
    return [address for address, count in counts.most_common() if count >= enough]
