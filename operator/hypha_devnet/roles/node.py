"""The functions of every node of the devnet: join the network, answer health requests, end on a signal."""

import logging
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from hypha_devnet.config import NodeConfig
from hypha_messages.health import HEALTH, HealthRequest, HealthResponse
from hypha_network.errors import NetworkError
from hypha_network.identity import Identity
from hypha_network.network import Network, NetworkConfig, open_network

logger = logging.getLogger(__name__)


@asynccontextmanager
async def join(config: NodeConfig, network_config: NetworkConfig | None = None) -> AsyncIterator[Network]:
    """Join the network for the duration of the context; enters once the node listens. IdentityError, NetworkError."""
    identity = Identity.load(config.cert_pem, config.key_pem, config.trust_pem, config.crls_pem)
    async with open_network(identity, network_config or config.network()) as network:

        async def health(_peer: str, _request: HealthRequest) -> HealthResponse:
            return HealthResponse(healthy=network.status().healthy)

        network.handle(HEALTH, health)
        yield network


async def healthy(network: Network, peer: str) -> bool:
    """Ask a peer whether it is healthy; False if it does not answer."""
    try:
        answer = await network.request(peer, HEALTH, HealthRequest(), timeout_s=5)
    except NetworkError:
        return False
    return isinstance(answer, HealthResponse) and answer.healthy


async def until_signal(serve: Callable[[], Awaitable[int]], terminated_code: int = 0) -> int:
    """Run `serve` until it returns or a signal comes.

    Returns its exit code, `terminated_code` after SIGTERM, or 130 after SIGINT.
    """
    code = 1
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal code
                async for number in signals:
                    logger.info("%s: leaving", signal.Signals(number).name)
                    code = terminated_code if number == signal.SIGTERM else 130
                    nursery.cancel_scope.cancel()
                    return

            nursery.start_soon(watch)
            code = await serve()
            nursery.cancel_scope.cancel()
    return code
