"""How peers reach a node: the node finds out, and the operator shows it."""

from enum import StrEnum
from typing import Final


class Reach(StrEnum):
    """How peers reach a node, the best way first."""

    PUBLIC = "public"
    PUNCHABLE = "punchable"
    BULK_RELAY = "bulk_relay"
    LIMITED_RELAY = "limited_relay"
    NONE = "none"

    @property
    def takes_bulk(self) -> bool:
        """Whether peers that do not know the node yet can send it bulk data."""
        return self in (Reach.PUBLIC, Reach.PUNCHABLE, Reach.BULK_RELAY)

    def at_least(self, other: "Reach") -> bool:
        """Whether this way is as good as another one, or better."""
        ways = list(Reach)
        return ways.index(self) <= ways.index(other)


DESCRIPTIONS: Final = {
    Reach.PUBLIC: "directly, unless a firewall keeps them out",
    Reach.PUNCHABLE: "through its NAT, directly if they are public or behind a NAT of the same kind",
    Reach.BULK_RELAY: "directly if they are public, others through a gateway that relays bulk data",
    Reach.LIMITED_RELAY: "directly if they are public, others through gateways for control messages alone",
    Reach.NONE: "not before this node has connected to them",
}
"""Continues a sentence such as `peers reach the node ...`."""

REMEDY: Final = (
    "Forward a port to the listen address and name it in external_addresses, use a NAT that keeps ports, or a "
    "gateway that relays bulk data. In a private network, set exclude_cidr = []. docs/networking.md explains it."
)
"""What the owner of a node on a host does where some peers cannot send it bulk data."""
