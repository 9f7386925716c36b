"""How peers reach this node, as far as the node can tell. Pure."""

from enum import StrEnum
from typing import Final


class Reach(StrEnum):
    """How peers reach this node, the best way first."""

    PUBLIC = "public"
    PUNCHABLE = "punchable"
    BULK_RELAY = "bulk_relay"
    LIMITED_RELAY = "limited_relay"
    NONE = "none"


DESCRIPTIONS: Final = {
    Reach.PUBLIC: "directly, unless a firewall keeps them out",
    Reach.PUNCHABLE: "through its NAT, directly if they are public or behind a NAT of the same kind",
    Reach.BULK_RELAY: "directly if they are public, others through a gateway that relays bulk data",
    Reach.LIMITED_RELAY: "directly if they are public, others through gateways for control messages alone",
    Reach.NONE: "not before this node has connected to them",
}

_OPEN_A_PORT: Final = (
    "Forward a port to the listen address and name it in external_addresses, or use a NAT that keeps ports. "
    "Else peers behind such NATs cannot send models to this node. docs/networking.md explains it."
)
REMEDIES: Final = {Reach.LIMITED_RELAY: _OPEN_A_PORT, Reach.NONE: _OPEN_A_PORT}
"""What to do where some peers cannot send bulk data to the node."""


def judge(*, public: bool, predictable: bool, reserved: bool, relays_bulk: bool) -> Reach:
    """Return how peers reach a node.

    Args:
        public: peers can connect to an address at which the node listens, or which the operator named.
        predictable: the node knows at which address its NAT lets peers in.
        reserved: a gateway holds a reservation of the node. Without one, nobody can ask it to punch a hole.
        relays_bulk: one of these gateways relays bulk data.
    """
    if public:
        return Reach.PUBLIC
    if not reserved:
        return Reach.NONE
    if predictable:
        return Reach.PUNCHABLE
    return Reach.BULK_RELAY if relays_bulk else Reach.LIMITED_RELAY
