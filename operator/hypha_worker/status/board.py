"""The node's state, made at most once in an interval, however many look at it, and not at all while nobody does."""

import time
from collections.abc import Callable
from typing import Final

from hypha_contracts.node_config import NodeConfig
from hypha_contracts.text import escaped
from hypha_network.network import Network
from hypha_worker.job_history import JobHistory
from hypha_worker.market.arbiter import Arbiter
from hypha_worker.market.ledger import Ledger
from hypha_worker.market.waiting import WaitingRequests
from hypha_worker.startup import VERSION
from hypha_worker.status import snapshot
from hypha_worker.status.model import Node, Snapshot

INTERVAL_S: Final = 2.0


class Board:
    """Shows the state of a node.

    Args:
        config: the configuration with which the node started.
        waiting: the requests that wait for an offer.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: NodeConfig,
        network: Network,
        *,
        ledger: Ledger,
        arbiter: Arbiter,
        waiting: WaitingRequests,
        history: JobHistory,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._network = network
        self._ledger = ledger
        self._arbiter = arbiter
        self._waiting = waiting
        self._history = history
        self._clock = clock
        self._since = time.time()
        self._made_at = float("-inf")
        self._json = b""

    def json(self) -> bytes:
        """Return the state as JSON. It is at most `INTERVAL_S` old."""
        if self._clock() - self._made_at >= INTERVAL_S:
            self._json = self.snapshot().model_dump_json().encode()
            self._made_at = self._clock()
        return self._json

    def snapshot(self) -> Snapshot:
        """Return the state at this moment."""
        now, ledger, network = time.time(), self._ledger, self._network
        status = network.status()
        leases, jobs = ledger.leases, snapshot.jobs_of(self._history, ledger)
        schedulers = {lease.scheduler for lease in leases if lease.state != "offered"}
        peers, peers_total = snapshot.peers_of(network.connections(), status.gateways, schedulers)
        return Snapshot(
            at=now,
            interval_s=INTERVAL_S,
            node=self._node(status.lack),
            network=snapshot.network_of(status, self._config.gateway_addresses, network.addresses()),
            resources=snapshot.resources_of(ledger),
            leases=snapshot.leases_of(ledger),
            leases_total=len(leases),
            jobs=jobs,
            jobs_total=len(self._history.newest_first),
            requests=snapshot.requests_of(self._arbiter.recent.newest_first, ledger, self._waiting.__contains__),
            peers=peers,
            peers_total=peers_total,
            earnings=snapshot.earnings_of(ledger, now),
        )

    def _node(self, lack: str | None) -> Node:
        network, policy = self._network, self._arbiter.policy
        problem = network.identity_problem
        return Node(
            peer_id=network.peer_id,
            version=VERSION,
            runtime=self._config.runtime,
            since=self._since,
            lack=lack,
            silence=self._arbiter.silence,
            certificate_until=network.identity.not_valid_after.timestamp(),
            certificate_problem=escaped(problem) if problem else None,
            executors=tuple(sorted(map(str, policy.executors))),
            strategy=policy.offer,
            price=policy.price,
            floor=policy.floor,
        )
