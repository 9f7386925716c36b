"""A gateway: where nodes enter the network. It relays connections, keeps the Kademlia records and passes gossip on."""

import logging
from dataclasses import replace

import trio

from hypha_devnet.config import NodeConfig
from hypha_devnet.events import Events
from hypha_devnet.roles.node import join
from hypha_messages.advertisement import TOPIC, decode

logger = logging.getLogger(__name__)


async def run_gateway(config: NodeConfig, events: Events) -> int:
    """Serve for ever."""
    network_config = replace(config.network(), relay_circuit=False, relay_server=True, kademlia_server=True)
    async with join(config, network_config) as network:
        events.emit("listening", peer_id=network.peer_id, addresses=network.addresses())
        async with network.subscribe(TOPIC, decode) as advertisements:  # only subscribers pass a topic's messages on
            async for advertisement in advertisements:
                logger.debug("passed on request %s of %s", advertisement.message.id, advertisement.source)
        await trio.sleep_forever()
    return 0
