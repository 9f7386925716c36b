"""A node dials the addresses of a peer that it knows at once, and those that a lookup finds as they come."""

import pytest
import trio
from trio.testing import MockClock

from hypha_messages.health import HEALTH, HealthRequest, HealthResponse
from hypha_network.dialling import MAX_ADDRESSES, Found, dial_found
from hypha_network.errors import DialError
from hypha_network.wire.addresses import Address, parse
from hypha_network.wire.race import HEAD_START_S
from support.certs import Pki
from support.networks import DEADLINE_S, direct_address, node, until

pytestmark = pytest.mark.anyio

RELAY = "12D3KooWF8o9cA532TjN4kByfuKUEnX4BdZzxUh1z7TUEfzk23Ne"
FIRST, SECOND, THIRD = (parse(f"/ip4/203.0.113.{number}/tcp/4001") for number in range(1, 4))
RELAYED = FIRST.behind(RELAY, "")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


class Dials:
    """Records when each address is dialled. Dialling is refused, or does not end if the address is `silent`."""

    def __init__(self, *silent: Address) -> None:
        self.times: dict[Address, float] = {}
        self._began = trio.current_time()
        self._silent = silent

    async def __call__(self, address: Address) -> None:
        self.times[address] = trio.current_time() - self._began
        if address in self._silent:
            await trio.sleep_forever()
        raise DialError(f"{address}: refused")


async def test_known_addresses_are_dialled_while_others_are_looked_up() -> None:
    dials = Dials()

    async def find(found: Found) -> None:
        found([FIRST])
        await trio.sleep(20)
        found([FIRST, SECOND])

    reasons = await dial_found(find, dials)
    assert dials.times == {FIRST: 0, SECOND: 20}
    assert reasons == [f"{FIRST}: refused", f"{SECOND}: refused"]


async def test_direct_addresses_come_first_and_each_gets_a_head_start() -> None:
    dials = Dials(FIRST, SECOND, RELAYED)

    async def find(found: Found) -> None:
        found([RELAYED, FIRST])
        await trio.sleep(HEAD_START_S / 2)
        found([SECOND])

    with trio.move_on_after(DEADLINE_S):
        await dial_found(find, dials)
    assert list(dials.times) == [FIRST, SECOND, RELAYED]
    assert dials.times[SECOND] >= HEAD_START_S
    assert dials.times[RELAYED] >= dials.times[SECOND] + HEAD_START_S


async def test_a_limited_number_of_addresses_is_dialled() -> None:
    dials = Dials()

    async def find(found: Found) -> None:
        for port in range(1, 1000):
            found([parse(f"/ip4/203.0.113.1/tcp/{port}")])

    assert len(await dial_found(find, dials)) == len(dials.times) == MAX_ADDRESSES


async def never(_: object, __: Found) -> None:
    await trio.sleep_forever()


class TestNodes:
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "trio"

    async def test_a_known_peer_answers_although_the_lookup_does_not_end(self) -> None:
        pki = Pki()

        async def healthy(_: str, __: HealthRequest) -> HealthResponse:
            return HealthResponse(healthy=True)

        async with node(pki, "a") as a, node(pki, "b") as b:
            a.handle(HEALTH, healthy)
            b._kademlia.learn(a.peer_id, [parse(direct_address(a))], frozenset())
            b._kademlia.find_peer = never  # type: ignore[method-assign]
            with trio.fail_after(DEADLINE_S):
                assert (await b.request(a.peer_id, HEALTH, HealthRequest())).healthy

    async def test_a_connection_that_the_peer_makes_meanwhile_is_used(self) -> None:
        pki = Pki()
        async with node(pki, "a") as a, node(pki, "b") as b, trio.open_nursery() as nursery:
            b._kademlia.find_peer = never  # type: ignore[method-assign]
            nursery.start_soon(b._host.connect, a.peer_id)
            await a.dial(direct_address(b))
            await until(b, lambda: not b._host._dialling)
