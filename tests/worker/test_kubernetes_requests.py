"""How often a node in a cluster says what it answered to requests."""

from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from hypha_contracts.node_config import KubernetesConfig
from hypha_network.network import Network
from hypha_network.status import NetworkStatus
from hypha_resources.worker_status import NodeStatus
from hypha_worker.market.evaluator import Refusal
from hypha_worker.market.request_tally import RequestTally
from hypha_worker.runtimes.kubernetes.api import KubernetesApi
from hypha_worker.runtimes.kubernetes.status import StatusReporter
from support.jobs import SCHEDULER
from support.worker import WHOLE, ledger_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "trio", {"clock": MockClock(autojump_threshold=0)}


class Identity:
    not_valid_after = None


class Connected:
    """A network without peers."""

    peer_id, identity, identity_problem = SCHEDULER, Identity(), None

    def status(self) -> NetworkStatus:
        return NetworkStatus(listening=(), gateways=(), reservations=(), bootstrapped=True, healthy=True)

    def addresses(self) -> list[str]:
        return []


class Written:
    """Keeps what is applied."""

    def __init__(self) -> None:
        self.nodes: list[NodeStatus] = []

    async def apply(self, _path: str, body: dict[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        self.nodes.append(NodeStatus.model_validate(body["status"]["node"]))


async def test_counts_of_requests_are_written_once_a_minute() -> None:
    written, requests = Written(), RequestTally()
    cluster = KubernetesConfig(namespace="ns", worker="gpu", worker_uid="uid")
    reporter = StatusReporter(cast("KubernetesApi", written), cluster)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reporter.run, cast("Network", Connected()), ledger_of(WHOLE, trio.current_time), requests)
        await trio.sleep(1)
        for _ in range(50):
            requests.record(Refusal("BidBelowFloor", "the bid 1 is below the floor 100"))
            await trio.sleep(1)
        assert [node.requests.refused for node in written.nodes] == [0]
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert [node.requests.refused for node in written.nodes] == [0, 50]
    last = written.nodes[-1].requests.last_refusal
    assert last is not None
    assert (last.reason, last.message) == ("BidBelowFloor", "the bid 1 is below the floor 100")
