"""Ports at which peers reach a node, each with its transport: in addresses, in objects of Kubernetes, on a machine."""

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field

from hypha_contracts.market_config import Section

Transport = Literal["tcp", "udp"]


class PeerPort(NamedTuple):
    """A port at which peers reach a node. Over UDP they speak QUIC."""

    transport: Transport
    number: int

    @classmethod
    def of(cls, address: str) -> Self:
        """Return the port of a valid address such as /ip4/0.0.0.0/tcp/4001 or /ip6/::/udp/4001/quic-v1."""
        return cls("udp" if "/udp/" in address else "tcp", int(address.split("/")[4]))

    def __str__(self) -> str:
        """Return the part of an address that follows its host, without a slash at its beginning."""
        return f"tcp/{self.number}" if self.transport == "tcp" else f"udp/{self.number}/quic-v1"

    @property
    def protocol(self) -> str:
        """The transport as Kubernetes writes it."""
        return self.transport.upper()

    @property
    def name(self) -> str:
        """The port's name in Services and containers."""
        return f"p2p-{self.number}" if self.transport == "tcp" else f"p2p-{self.number}-udp"


class HostPort(Section):
    """A port at which every address of the pod's node with this protocol leads to the node."""

    protocol: Literal["ip4", "ip6"]
    port: Annotated[int, Field(ge=1, le=65535)]
    transport: Transport = "tcp"

    @classmethod
    def of(cls, address: str) -> Self:
        """Return the port of a valid address, whatever its host. Over TCP, the transport is unset.

        So the configuration of a worker without QUIC stays as it was, and a node of an older version reads it.
        """
        port = PeerPort.of(address)
        transport = {} if port.transport == "tcp" else {"transport": port.transport}
        return cls.model_validate({"protocol": address.split("/")[1], "port": port.number, **transport})

    def at(self, ips: Iterable[str]) -> list[str]:
        """Return the address of this port at each of the IP addresses that has its protocol."""
        port = PeerPort(self.transport, self.port)
        return [f"/{self.protocol}/{ip}/{port}" for ip in ips if self.protocol == f"ip{ip_address(ip).version}"]
