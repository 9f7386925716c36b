"""Checks the network: the gateways, the listen addresses, and whether a node can join."""

import errno
import socket
from collections.abc import Iterable, Iterator
from contextlib import closing

import trio

from hypha_contracts.findings import Finding, failure, ok, skipped, warning
from hypha_network.errors import HandshakeError, NetworkError
from hypha_network.examination import Answer, examine
from hypha_network.identity import Identity
from hypha_network.wire import addresses, dnsaddr
from hypha_network.wire.addresses import Address, TransportName
from hypha_worker.doctor.worker import Worker
from hypha_worker.node import judge_excluded_gateways

CONNECT_S = 12.0
"""How long one gateway may take to answer."""
_SLOW_S = 1.0


async def ask_all(worker: Worker) -> list[Finding]:
    """Return how each gateway answers a connection of this node, with its certificate."""
    identity, gateways = worker.usable_identity(), worker.config.gateway_addresses
    found: dict[str, list[Finding]] = {}

    async def ask(address: str) -> None:
        found[address] = await _ask(identity, address)

    async with trio.open_nursery() as nursery:
        for address in gateways:
            nursery.start_soon(ask, address)
    return [finding for address in gateways for finding in found[address]]


async def gateways(worker: Worker) -> Iterable[Finding]:
    """Return how each gateway answers, and whether the node ignores its neighbours."""
    return [*await worker.fact(ask_all), *judge_excluded_gateways(worker.config)]


async def _ask(identity: Identity, address: str) -> list[Finding]:
    gateway = dnsaddr.parse_gateway(address)
    if gateway is None:
        return [skipped(f"gateway {address}: the node has no such transport, so it ignores the address")]
    if isinstance(gateway, Address):
        return [await _examine(identity, address)]
    try:
        known = await dnsaddr.look_up(gateway)
    except NetworkError as error:
        return [judge_failure(address, error)]
    return [await _examine(identity, str(one)) for one in known]


async def _examine(identity: Identity, address: str) -> Finding:
    try:
        with trio.fail_after(CONNECT_S):
            return judge_answer(address, await examine(identity, address))
    except trio.TooSlowError:
        return judge_failure(address, NetworkError(f"no answer within {CONNECT_S:g} s"))
    except NetworkError as error:
        return judge_failure(address, error)


def judge_answer(address: str, answer: Answer) -> Finding:
    """Return how well a gateway answered."""
    text = f"gateway {address} accepts this node: {answer.peer_id}, round trip {answer.round_trip_s * 1000:.0f} ms"
    if answer.round_trip_s > _SLOW_S:
        return warning(text, "Offers may be late over such a connection. Use a gateway that is closer.")
    return ok(text)


def judge_failure(address: str, error: NetworkError) -> Finding:
    """Return why a gateway cannot be used, and what to do, from the step that failed."""
    reason = str(error).removeprefix(address).lstrip(": ")
    if "our certificate" in reason or "denies this node" in reason:
        remedy = "Ask the gateway's operator whether it trusts the authority of this certificate, or renew it."
    elif isinstance(error, HandshakeError) and "dialled" in reason:
        remedy = "Correct the peer id after /p2p/, or remove it to accept any gateway of the network."
    elif isinstance(error, HandshakeError):
        remedy = "Check trust_pem and the clock: both sides must trust the authority of the other's certificate."
    elif "did not complete the handshake" in reason or "echo" in reason:
        remedy = "Something other than a gateway answers there. Correct the address and its port."
    elif "refused" in reason:
        remedy = "Nothing listens there. Correct the port, start the gateway, or open its firewall."
    elif "no answer within" in reason and "/udp/" in address:  # UDP does not tell a closed port from a silent one
        remedy = "Check that the gateway listens there over QUIC, and that firewalls on the way pass UDP."
    elif any(words in reason for words in ("no connection within", "no answer within", "unreachable", "No route")):
        remedy = "Check the route and firewalls between this machine and the gateway."
    elif "/dns" in address:
        remedy = "Correct the host name, or check this machine's name servers."
    else:
        remedy = "Correct the address."
    return failure(f"gateway {address}: {reason}", remedy)


def listen_addresses(worker: Worker) -> Iterator[Finding]:
    """Yield whether the node can listen at its addresses."""
    config = worker.host_config
    if worker.running_node() is not None:
        yield skipped("a node runs and holds its addresses")
        return
    for text in config.listen_addresses:
        address = addresses.parse_supported(text)
        if address is None or address.ip is None:
            yield skipped(f"{text}: only TCP and QUIC at an IP address are supported")
        else:
            yield judge_bind(text, _bind(str(address.ip), address))
    if not config.listen_addresses and not config.relay_circuit:
        yield warning("peers cannot reach this node", "Set relay_circuit = true, or add a listen address.")


def _bind(host: str, address: Address) -> OSError | None:
    """Return why a port cannot be used. Without listening, a bound port keeps no node from listening."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    tcp = address.transport is TransportName.TCP
    with closing(socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(tcp))  # for UDP, it would hide another listener
        try:
            probe.bind((host, address.port))
        except OSError as error:
            return error
    return None


def judge_bind(address: str, error: OSError | None) -> Finding:
    """Return whether an address can be listened at."""
    if error is None:
        return ok(f"{address} is free")
    remedies = {
        errno.EADDRINUSE: "Stop the other program, or choose another port; 0 lets the system choose.",
        errno.EADDRNOTAVAIL: "This machine does not have that address. Use /ip4/0.0.0.0, and name the public one in "
        "external_addresses.",
        errno.EACCES: "Choose a port above 1023.",
    }
    remedy = remedies.get(error.errno or 0, "Choose another listen address.")
    return failure(f"{address}: {error.strerror or error}", remedy)
