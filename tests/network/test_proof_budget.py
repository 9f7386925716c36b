"""Proofs of unproved sources cost few relay circuits, however many fresh keys a flood has. Runs in virtual time."""

from itertools import count
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from hypha_network.errors import DialError
from hypha_network.services.source_prover import _CIRCUITS_IN_S, _MAX_CIRCUITS, SourceProver
from hypha_network.wire.addresses import Address, parse

pytestmark = pytest.mark.anyio

RELAYED = parse("/ip4/203.0.113.1/tcp/1/p2p/12D3KooWBkAZ52FV28vNpUsNcSLLfdTZdhph8Vhb2w5hCENAinpB/p2p-circuit")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


class Unreachable:
    """A host that connects to nobody, and records when it tried."""

    def __init__(self) -> None:
        self.tried_at: list[float] = []

    def proved(self, _: str) -> bool:
        return False

    async def connect(self, peer_id: str, _: list[Address] | None) -> None:
        self.tried_at.append(trio.current_time())
        raise DialError(f"{peer_id} is not there")


@pytest.mark.parametrize("named", [False, True])
async def test_proofs_use_half_of_the_circuits_that_a_relay_grants(named: bool) -> None:
    host = Unreachable()

    async def find(source: str) -> dict[str, tuple[Address, ...]]:
        return {source: (RELAYED,)} if named else {}

    prover = SourceProver(host, find)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(prover.run, lambda _forwarder, _message: True, lambda _forwarder, _message: None)
        with trio.move_on_after(2 * _CIRCUITS_IN_S + 60):
            for number in count():
                prover.hold("attacker", f"key {number}", b"request")
                await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert 2 * _MAX_CIRCUITS <= len(host.tried_at) <= 3 * _MAX_CIRCUITS
    windows = zip(host.tried_at, host.tried_at[_MAX_CIRCUITS:], strict=False)
    assert all(later - earlier >= _CIRCUITS_IN_S for earlier, later in windows)
