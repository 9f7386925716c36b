"""A gateway that relays bulk data limits the rate of each peer."""

import pytest
import trio
from trio.testing import MockClock

from hypha_network.host import Host
from hypha_network.services.relay_server import BulkLimits, RelayServer

pytestmark = pytest.mark.anyio

MB = 1_000_000
SIZE_BYTES = 100 * MB
BURST_S = 1.5
"""How much earlier a peer may be done because of what it may send at once, at 1 MB/s."""


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


class Endpoint:
    """One end of a circuit, which has this many bytes to send."""

    peer_id = "peer"

    def __init__(self, size_bytes: int = 0) -> None:
        self._left = size_bytes

    async def receive_some(self, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        data = bytes(min(max_bytes, self._left, 20_000))
        self._left -= len(data)
        return data

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """Nothing more comes."""


async def relayed_in_s(limits: BulkLimits, *payers: str) -> dict[str, float]:
    """Relay circuits of these peers at the same time; return after how many seconds the last one of each ends."""
    done: dict[str, float] = {}
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        server = RelayServer(Host("", None, nursery), list, limits)  # type: ignore[arg-type]

        async def copy(payer: str) -> None:
            await server._copy(Endpoint(SIZE_BYTES), Endpoint(), payer, nursery.cancel_scope)  # type: ignore[arg-type]
            done[payer] = trio.current_time() - began

        for payer in payers:
            nursery.start_soon(copy, payer)
    return done


async def test_all_circuits_of_a_peer_together_have_its_rate_and_others_have_theirs() -> None:
    took_s = await relayed_in_s(BulkLimits(peer_bytes_per_s=MB), "busy", "busy", "other")
    assert took_s["busy"] == pytest.approx(2 * SIZE_BYTES / MB, abs=BURST_S)
    assert took_s["other"] == pytest.approx(SIZE_BYTES / MB, abs=BURST_S)


async def test_peers_share_the_total_rate() -> None:
    took_s = await relayed_in_s(BulkLimits(peer_bytes_per_s=10 * MB, total_bytes_per_s=2 * MB), "one", "other")
    assert list(took_s.values()) == pytest.approx([SIZE_BYTES / MB] * 2, rel=0.1)
