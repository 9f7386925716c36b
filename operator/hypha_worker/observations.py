"""Exports the state of the node: leases, jobs, resources, peers and their traffic."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from math import fsum
from time import perf_counter
from typing import Final

import trio
from opentelemetry.metrics import Observation

from hypha_contracts.reach import Reach
from hypha_contracts.units import BYTES_PER_GB, RESOURCES
from hypha_messages.advertisement import TOPIC
from hypha_messages.types import Resources
from hypha_network.network import Network
from hypha_network.traffic import OTHERS, Direction
from hypha_telemetry import node_metrics
from hypha_telemetry.process_metrics import observe_process
from hypha_worker.job_manager import JobManager
from hypha_worker.market.lease_service import LeaseService
from hypha_worker.market.ledger import Ledger
from hypha_worker.market.waiting import WaitingRequests
from hypha_worker.telemetry import Telemetry

_LAG_EVERY_S: Final = 1.0
_LAGS_PER_LOOK: Final = 2
"""The node looks at the network after this many measurements of the lag."""

Observations = Iterable[Observation]


def observe_market(telemetry: Telemetry, ledger: Ledger, waiting: WaitingRequests) -> None:
    """Export requests, offers, leases and resources."""

    def requests() -> Observations:
        return [Observation(len(waiting))]

    def offers() -> Observations:
        return [Observation(number, {"outcome": outcome}) for outcome, number in list(ledger.offers_ended.items())]

    def leases() -> Observations:
        states = [lease.state for lease in ledger.leases]
        return [Observation(states.count(state), {"state": state}) for state in ("offered", "held", "ending")]

    def capacity(name: str) -> Observations:
        return [Observation(_amount(ledger.rules.capacity.total, name))]

    def reserved(name: str) -> Observations:
        return [Observation(fsum(_amount(lease.resources, name) for lease in ledger.leases))]

    def account(field: str) -> Observations:
        return [Observation(getattr(a, field), {"scheduler": a.scheduler}) for a in ledger.accounts.of]

    telemetry.observe(node_metrics.LEASED_TIME, partial(account, "leased_s"))
    telemetry.observe(node_metrics.EARNED, partial(account, "earned"))
    telemetry.observe(node_metrics.REQUESTS_WAITING, requests)
    telemetry.observe(node_metrics.OFFERS_ENDED, offers)
    telemetry.observe(node_metrics.LEASES_ACTIVE, leases)
    for name in RESOURCES:
        telemetry.observe(node_metrics.CAPACITY[name], partial(capacity, name))
        telemetry.observe(node_metrics.RESERVED[name], partial(reserved, name))


def _amount(resources: Resources, name: str) -> float:
    """Return an amount in cores or bytes."""
    amount = float(getattr(resources, name))
    return amount if name == "cpu" else amount * BYTES_PER_GB


def observe_jobs(telemetry: Telemetry, leases: LeaseService, jobs: JobManager) -> None:
    """Export the jobs by the status of their executor, and the pushes for them."""

    def active() -> Observations:
        counts = leases.job_states().items()
        return [Observation(number, {"executor": executor, "state": state}) for (executor, state), number in counts]

    telemetry.observe(node_metrics.JOBS_ACTIVE, active)
    telemetry.observe(node_metrics.PUSHES_WAITING, lambda: [Observation(jobs.pushes_waiting)])


@dataclass(frozen=True)
class _Seen:
    """The state of the network at one moment. The event loop makes it, and other threads read it."""

    healthy: bool = False
    gateways: int = 0
    reservations: int = 0
    peers: int = 0
    subscribers: int = 0
    certificate_s: float = 0.0
    connections: Mapping[tuple[bool, bool], int] = field(default_factory=dict)
    round_trips_s: Mapping[str, float] = field(default_factory=dict)
    reach: Reach | None = None


class NetworkObserver:
    """Exports the state of the network and of this process while `run` runs."""

    def __init__(self, telemetry: Telemetry, network: Network) -> None:
        self._network = network
        self._traffic = network.traffic()
        self._lag = telemetry.event_loop_lag
        self._seen = _Seen()
        for metric, attribute in (
            (node_metrics.HEALTHY, "healthy"),
            (node_metrics.CERTIFICATE, "certificate_s"),
            (node_metrics.GATEWAYS, "gateways"),
            (node_metrics.RESERVATIONS, "reservations"),
            (node_metrics.PEERS, "peers"),
            (node_metrics.SUBSCRIBERS, "subscribers"),
        ):
            telemetry.observe(metric, partial(self._single, attribute))
        telemetry.observe(node_metrics.REACH, self._reach)
        telemetry.observe(node_metrics.CONNECTIONS, self._connections)
        telemetry.observe(node_metrics.ROUND_TRIP, self._round_trips)
        telemetry.observe(node_metrics.INBOUND, partial(self._bytes, "inbound"))
        telemetry.observe(node_metrics.OUTBOUND, partial(self._bytes, "outbound"))
        observe_process(telemetry)

    async def run(self) -> None:
        """Look at the network, and measure the lag of the event loop, until cancelled."""
        while True:
            self._traffic = self._network.traffic()
            self._seen = _look(self._network, self._traffic.named)
            for _ in range(_LAGS_PER_LOOK):
                due_s = perf_counter() + _LAG_EVERY_S
                await trio.sleep(_LAG_EVERY_S)
                self._lag.record(max(0.0, perf_counter() - due_s))

    def _single(self, attribute: str) -> Observations:
        return [Observation(float(getattr(self._seen, attribute)))]

    def _reach(self) -> Observations:
        return [Observation(float(self._seen.reach is reach), {"reach": str(reach)}) for reach in Reach]

    def _connections(self) -> Observations:
        return [
            Observation(
                number,
                {"initiator": "peer" if inbound else "node", "path": "relayed" if relayed else "direct"},
            )
            for (inbound, relayed), number in self._seen.connections.items()
        ]

    def _round_trips(self) -> Observations:
        return [Observation(round_trip_s, {"peer": peer}) for peer, round_trip_s in self._seen.round_trips_s.items()]

    def _bytes(self, direction: Direction) -> Observations:
        return [Observation(size_bytes, {"peer": peer}) for peer, size_bytes in self._traffic.of(direction).items()]


def _look(network: Network, named: frozenset[str]) -> _Seen:
    status, connections = network.status(), network.connections()
    round_trips_s: dict[str, float] = {}
    for connection in connections:
        if connection.round_trip_s is not None:
            name = connection.peer_id if connection.peer_id in named else OTHERS
            round_trips_s[name] = max(connection.round_trip_s, round_trips_s.get(name, 0.0))
    return _Seen(
        status.healthy,
        len(status.gateways),
        len(status.reservations),
        len(network.connected_peers()),
        len(network.subscribers(TOPIC)),
        (network.identity.not_valid_after - datetime.now(UTC)).total_seconds(),
        Counter((connection.inbound, connection.relayed) for connection in connections),
        round_trips_s,
        status.reach,
    )
