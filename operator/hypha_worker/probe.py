"""Asks a node whether it is healthy."""

import trio

from hypha_messages.health import HEALTH, HealthRequest
from hypha_network.errors import NetworkError
from hypha_network.identity import Identity
from hypha_network.network import NetworkConfig, open_network


async def probe(identity: Identity, address: str, timeout_s: float) -> str | None:
    """Return None if the node at this address reports that it is healthy, otherwise the reason."""
    with trio.move_on_after(timeout_s):
        async with open_network(identity, NetworkConfig(listen_addresses=())) as network:
            try:
                peer_id = await network.dial(address)
                answer = await network.request(peer_id, HEALTH, HealthRequest(), timeout_s)
            except NetworkError as error:
                return str(error)
            return None if answer.healthy else "not healthy: it does not listen or has not joined the network"
    return f"no answer within {timeout_s:g} s"
