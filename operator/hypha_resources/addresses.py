"""Addresses, networks and peers that a HyphaWorker names.

They accept no value that the node would refuse, because a node that does not start loses its jobs. The API server
checks the rules when a worker is applied. The validators check again, in case the cluster's definitions are older.
"""

import re
from collections.abc import Callable
from ipaddress import ip_address
from itertools import pairwise
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field

from hypha_contracts.addresses import WRITE_CIDR, check_cidr
from hypha_contracts.names import CONNECTOR_PORT, METRICS_PORT, STATUS_PAGE_PORT
from hypha_messages.types import peer_id_to_bytes
from hypha_resources.common import rules

_IP: Final = "(ip4/[0-9.]+|ip6/[0-9a-fA-F.]*:[0-9a-fA-F.:]*)"
_DNS_NAME: Final = "[0-9A-Za-z._-]{1,253}"
_HOST: Final = f"({_IP}|(dns|dns4|dns6)/{_DNS_NAME})"
_PORT: Final = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_PEER_ID: Final = "[1-9A-HJ-NP-Za-km-z]{46,64}"
_PEER: Final = f"/p2p/{_PEER_ID}"
_AT: Final = f"(tcp/{_PORT}|udp/{_PORT}/quic-v1)"
_GATEWAY: Final = f"^/({_HOST}/{_AT}|dnsaddr/{_DNS_NAME})({_PEER})?$"
_EXTERNAL: Final = f"^/{_HOST}/{_AT}({_PEER}(/p2p-circuit({_PEER})?)?)?$"
_LISTEN: Final = f"^/{_IP}/{_AT}$"

_WRITE_PEER: Final = (
    "write /dns4/host.example.org/tcp/4001 or /ip4/203.0.113.50/udp/4001/quic-v1, with or without /p2p/<peer id>"
)
_WRITE_GATEWAY: Final = f"{_WRITE_PEER}, or /dnsaddr/gateway.example.org"
_NAME: Final = "^[0-9A-Za-z_-]+([.][0-9A-Za-z_-]+)*$"
_WRITE_HOST: Final = "write an IP address or a name, such as 203.0.113.50 or node.example.org"
_WRITE_LISTEN: Final = (
    f"write /ip4/0.0.0.0/tcp/4001 or /ip6/::/udp/4001/quic-v1, but not TCP port {CONNECTOR_PORT}, where jobs reach the "
    f"worker, {METRICS_PORT}, where Prometheus does, or {STATUS_PAGE_PORT}, where browsers do"
)
_TAKEN: Final = tuple(f"/tcp/{port}" for port in (CONNECTOR_PORT, METRICS_PORT, STATUS_PAGE_PORT))
_WRITE_PEER_ID: Final = "write a peer id such as 12D3KooW..."
_WRITE_PEER_IDS: Final = "write peer ids before the weights, such as 12D3KooW..."


def _rule(shape: str, remedy: str, more: str = "") -> dict[str, Any]:
    host = "self.substring(5, self.indexOf('/', 5))"
    return rules((f"self.matches('{shape}') && (!self.startsWith('/ip') || isIP({host})){more}", remedy))


def _must(holds: Callable[[str], bool], remedy: str) -> AfterValidator:
    def check(text: str) -> str:
        if not holds(text):
            raise ValueError(remedy)
        return text

    return AfterValidator(check)


def _parses(parse: Callable[[str], Any], text: str) -> bool:
    try:
        parse(text)
    except ValueError:
        return False
    return True


def _is_address(shape: str, text: str) -> bool:
    if not re.fullmatch(shape, text):
        return False
    _, protocol, host, *rest = text.split("/")
    peer_ids = [part for name, part in pairwise(rest) if name == "p2p"]
    return (protocol.startswith("dns") or _parses(ip_address, host)) and all(map(_is_peer_id, peer_ids))


def _is_listen_address(text: str) -> bool:
    return _is_address(_LISTEN, text) and not text.endswith(_TAKEN)


def _is_peer_id(text: str) -> bool:
    return _parses(peer_id_to_bytes, text)


GatewayAddress = Annotated[
    str,
    Field(max_length=512, json_schema_extra=_rule(_GATEWAY, _WRITE_GATEWAY)),
    _must(lambda text: _is_address(_GATEWAY, text), _WRITE_GATEWAY),
]
ExternalAddress = Annotated[
    str,
    Field(max_length=512, json_schema_extra=_rule(_EXTERNAL, _WRITE_PEER)),
    _must(lambda text: _is_address(_EXTERNAL, text), _WRITE_PEER),
]
ExternalHost = Annotated[
    str,
    Field(
        max_length=253,
        json_schema_extra=rules((f"isIP(self) || self.matches('{_NAME}')", _WRITE_HOST)),
    ),
    _must(lambda text: _parses(ip_address, text) or bool(re.fullmatch(_NAME, text)), _WRITE_HOST),
]
ListenAddress = Annotated[
    str,
    Field(
        max_length=128,
        json_schema_extra=_rule(_LISTEN, _WRITE_LISTEN, "".join(f" && !self.endsWith('{taken}')" for taken in _TAKEN)),
    ),
    _must(_is_listen_address, _WRITE_LISTEN),
]
Cidr = Annotated[
    str, Field(max_length=64, json_schema_extra=rules(("isCIDR(self)", WRITE_CIDR))), AfterValidator(check_cidr)
]
PeerIdKey = Annotated[str, _must(_is_peer_id, _WRITE_PEER_IDS)]
"""A key of a table whose rule is `PEER_ID_KEYS`."""
PEER_ID_KEYS: Final = rules((f"self.all(id, id.matches('^{_PEER_ID}$'))", _WRITE_PEER_IDS))
PeerIdItem = Annotated[
    str,
    Field(max_length=64, json_schema_extra=rules((f"self.matches('^{_PEER_ID}$')", _WRITE_PEER_ID))),
    _must(_is_peer_id, _WRITE_PEER_ID),
]
"""A peer id in a list."""
