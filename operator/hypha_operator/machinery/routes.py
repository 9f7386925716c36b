"""Rules of NetworkPolicies that lead to configured servers, wherever these are: outside, or behind a Service."""

import asyncio
import logging
import socket
from collections import OrderedDict
from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from hypha_contracts.addresses import opened_blocks
from hypha_contracts.kinds import SERVICE, Manifest
from hypha_contracts.kubernetes_errors import ApiError, Forbidden
from hypha_operator.machinery.clock import Clock
from hypha_operator.machinery.cluster import Cluster
from hypha_operator.machinery.manifests import ip_blocks

_KNOWN_S: Final = 60.0
"""How long a route stays valid. Addresses of servers change seldom, and each reconcile of a job asks."""
_UNKNOWN_S: Final = 10.0
"""How soon the operator looks again for a server that it has never found."""
_RESOLVE_S: Final = 5.0
_MAX_KNOWN: Final = 1024
_PORTS: Final = {"http": 80, "https": 443}

_log = logging.getLogger(__name__)


class FoundRoutes(NamedTuple):
    """Rules of a NetworkPolicy, and whether they lead to all servers."""

    rules: tuple[Manifest, ...] = ()
    complete: bool = True


class Routes:
    """Finds the routes to servers, and remembers them. A server that cannot be found keeps its last route."""

    def __init__(self, cluster: Cluster, clock: Clock) -> None:
        self._cluster, self._clock = cluster, clock
        self._known: OrderedDict[tuple[str, str], tuple[float, tuple[Manifest, ...] | None]] = OrderedDict()

    async def to(self, urls: Iterable[str], namespace: str) -> FoundRoutes:
        """Return the rules that let a pod of a namespace reach the servers of these URLs."""
        found = [await self._to(url, namespace) for url in urls]
        return FoundRoutes(tuple(rule for rules in found for rule in rules or ()), None not in found)

    async def _to(self, url: str, namespace: str) -> tuple[Manifest, ...] | None:
        key, now_s = (url, namespace), self._clock.monotonic()
        found_s, rules = self._known.pop(key, (float("-inf"), None))
        if now_s - found_s >= (_UNKNOWN_S if rules is None else _KNOWN_S):
            found_s = now_s
            try:
                rules = await self._find(url, namespace)
            except (ApiError, OSError, ValueError) as error:
                _log.warning("jobs in %s may not reach %s: %s", namespace, urlsplit(url).hostname, error)
        self._known[key] = found_s, rules
        while len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        return rules

    async def _find(self, url: str, namespace: str) -> tuple[Manifest, ...]:
        address = urlsplit(url)
        host, port = address.hostname or "", address.port or _PORTS[address.scheme]
        if service := service_of(host, namespace):
            try:
                found = await self._cluster.get(SERVICE, service[0], service[1])
            except Forbidden:  # an operator for one namespace knows no Services of others
                return (_rule([_of_namespace(service[0])], port),) if ".svc" in host else await _outside(host, port)
            if found and "externalName" not in found["spec"]:
                return routes_to_service(found, port)
        return await _outside(host, port)


def service_of(host: str, namespace: str) -> tuple[str, str] | None:
    """Return namespace and name of the Service that a host name may stand for in the pods of a namespace."""
    match host.removesuffix(".").split("."):
        case [name] if not _is_address(host):
            return namespace, name
        case [name, other] | [name, other, "svc", *_]:
            return other, name
    return None


def routes_to_service(service: Manifest, port: int) -> tuple[Manifest, ...]:
    """Return the rules that lead to a Service's own address and, as most policy engines see it, to its pods."""
    spec, namespace = service["spec"], service["metadata"]["namespace"]
    rules = [_rule(_at(address for address in spec.get("clusterIPs") or () if address != "None"), port)]
    if selector := spec.get("selector"):
        target = next((item.get("targetPort") for item in spec.get("ports") or () if item["port"] == port), None)
        pods = {**_of_namespace(namespace), "podSelector": {"matchLabels": selector}}
        rules.append(_rule([pods], target or port))
    return tuple(rule for rule in rules if rule["to"])


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


async def _outside(host: str, port: int) -> tuple[Manifest, ...]:
    peers = _at(await _resolve(host))
    return (_rule(peers, port),) if peers else ()  # a rule without peers would lead everywhere


async def _resolve(host: str) -> list[str]:
    if _is_address(host):
        return [host]
    async with asyncio.timeout(_RESOLVE_S):
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return sorted({str(sockaddr[0]) for *_, sockaddr in found if "%" not in str(sockaddr[0])})


def _at(addresses: Iterable[str]) -> list[Manifest]:
    return [peer for address in addresses for peer in ip_blocks(opened_blocks(address))]


def _of_namespace(name: str) -> Manifest:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _rule(peers: list[Manifest], port: int | str) -> Manifest:
    return {"to": peers, "ports": [{"protocol": "TCP", "port": port}]}
