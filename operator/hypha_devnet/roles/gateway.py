"""A gateway, through which nodes join. It relays connections, stores Kademlia records and forwards gossip."""

import logging

import trio

from hypha_devnet.config import GatewayConfig
from hypha_devnet.events import Events
from hypha_devnet.roles.node import join
from hypha_messages.advertisement import DECODERS
from hypha_network.network import Network

logger = logging.getLogger(__name__)


async def run_gateway(config: GatewayConfig, events: Events) -> int:
    """Serve until cancelled."""
    async with join(config) as network:
        events.emit("listening", peer_id=network.peer_id, addresses=network.addresses())
        async with trio.open_nursery() as nursery:
            for topic in DECODERS:
                nursery.start_soon(_forward, network, topic)
    return 0


async def _forward(network: Network, topic: str) -> None:
    """Forward the requests on a topic, which only its subscribers do."""
    async with network.subscribe(topic, DECODERS[topic]) as advertisements:
        async for advertisement in advertisements:
            logger.debug("forwarded request %s of %s", advertisement.message.id, advertisement.source)
