"""A gateway, through which nodes join. It relays connections, stores Kademlia records and forwards gossip."""

import logging
from dataclasses import replace

import trio

from hypha_devnet.config import NodeConfig
from hypha_devnet.events import Events
from hypha_devnet.roles.node import join
from hypha_messages.advertisement import TOPIC, decode

logger = logging.getLogger(__name__)


async def run_gateway(config: NodeConfig, events: Events) -> int:
    """Serve until cancelled."""
    network_config = replace(config.network(), relay_circuit=False, relay_server=True, kademlia_server=True)
    async with join(config, network_config) as network:
        events.emit("listening", peer_id=network.peer_id, addresses=network.addresses())
        # Only subscribers of a topic forward its messages.
        async with network.subscribe(TOPIC, decode) as advertisements:
            async for advertisement in advertisements:
                logger.debug("forwarded request %s of %s", advertisement.message.id, advertisement.source)
        await trio.sleep_forever()
    return 0
