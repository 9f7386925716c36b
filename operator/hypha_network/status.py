"""What a node says of itself and of its connections."""

from dataclasses import dataclass
from typing import NamedTuple

from hypha_contracts.reach import Reach


@dataclass(frozen=True)
class NetworkStatus:
    """The state of a node. `gateways` and `reservations` are peer ids of gateways. `reach` is None while unknown."""

    listening: tuple[str, ...]
    gateways: tuple[str, ...]
    reservations: tuple[str, ...]
    bootstrapped: bool
    healthy: bool
    reach: Reach | None = None

    @property
    def lack(self) -> str | None:
        """What the node lacks to be healthy, or None if it is healthy."""
        if self.healthy:
            return None
        checks: dict[str, bool] = {
            "it does not listen": bool(self.listening),
            "no gateway is connected": bool(self.gateways),
            "it has not joined the DHT": self.bootstrapped,
            "no gateway has granted it a relay": bool(self.reservations),
        }
        return next((lack for lack, there in checks.items() if not there), "it is not healthy")


class ConnectionStatus(NamedTuple):
    """The state of a connection.

    Attributes:
        inbound: whether the peer made it.
        relayed: whether it leads through a relay.
        transport: the transport to the peer, or to the relay.
        round_trip_s: the latest one, or None before the first.
        received_bytes: within TLS, like `sent_bytes`.
    """

    peer_id: str
    inbound: bool
    relayed: bool
    transport: str
    round_trip_s: float | None
    received_bytes: int
    sent_bytes: int
