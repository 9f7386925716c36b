"""Two nodes over QUIC: requests, bulk data both ways, half-close, resets, many streams."""

import pytest
import trio

from hypha_messages.health import HEALTH, HealthRequest, HealthResponse
from support.certs import Pki
from support.networks import DEADLINE_S, direct_address, node

pytestmark = pytest.mark.anyio
QUIC = ("/ip4/127.0.0.1/udp/0/quic-v1",)


async def test_two_nodes_exchange_a_request_over_quic() -> None:
    pki = Pki()
    async with node(pki, "a", listen_addresses=QUIC) as listening, node(pki, "b", listen_addresses=QUIC) as dialling:

        async def answer(_: str, __: HealthRequest) -> HealthResponse:
            return HealthResponse(healthy=True)

        listening.handle(HEALTH, answer)
        with trio.fail_after(DEADLINE_S):
            peer = await dialling.dial(direct_address(listening))
            response = await dialling.request(peer, HEALTH, HealthRequest())
    assert peer == listening.peer_id
    assert response.healthy
