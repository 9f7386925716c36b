"""Reports the state of a node in a cluster, in `status.node` of its HyphaWorker."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import fsum
from typing import Final

import trio

from hypha_contracts.kubernetes_errors import ApiError
from hypha_contracts.names import API_VERSION, WORKER_KIND, WORKERS
from hypha_contracts.node_config import KubernetesConfig
from hypha_contracts.units import RESOURCES
from hypha_network.errors import IdentityError
from hypha_network.network import Network
from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_resources.worker_status import NodeStatus, Refusal, Requests
from hypha_worker.errors import NodeError
from hypha_worker.market.ledger import Ledger
from hypha_worker.market.request_tally import RequestTally
from hypha_worker.runtimes.kubernetes.api import KubernetesApi

logger = logging.getLogger(__name__)
_write_log = RateLimitedLogger(logger)

_CHECK_EVERY_S: Final = 2.0
_REPEAT_EVERY_S: Final = 60.0


class StatusReporter:
    """Writes `status.node` of the HyphaWorker."""

    def __init__(self, api: KubernetesApi, cluster: KubernetesConfig) -> None:
        self._api = api
        self._path = f"/apis/{API_VERSION}/namespaces/{cluster.namespace}/{WORKERS}/{cluster.worker}/status"
        self._pod_name = cluster.pod_name

    @asynccontextmanager
    async def reporting_refusals(self) -> AsyncIterator[None]:
        """Write into the status why the code inside refused the identity. That refusal ends the node."""
        try:
            yield
        except (IdentityError, NodeError) as error:
            try:
                await self._write(NodeStatus(problem=str(error), pod_name=self._pod_name))
            except ApiError as silence:
                logger.warning("cannot report this in the HyphaWorker: %s", silence)
            raise

    async def run(self, network: Network, ledger: Ledger, requests: RequestTally) -> None:
        """Write the status whenever it has changed, and otherwise every minute, until cancelled.

        The counts of requests change all the time, so they alone cause no write.
        """
        written: NodeStatus | None = None
        repeat_at = 0.0
        while True:
            status = node_status(network, ledger, requests, self._pod_name)
            changed = written is None or written != status.model_copy(update={"requests": written.requests})
            if changed or trio.current_time() >= repeat_at:
                try:
                    await self._write(status)
                    written, repeat_at = status, trio.current_time() + _REPEAT_EVERY_S
                except ApiError as error:
                    _write_log.warning("HyphaWorker", "cannot write its status: %s", error)
            await trio.sleep(_CHECK_EVERY_S)

    async def _write(self, status: NodeStatus) -> None:
        node = status.model_dump(mode="json", exclude_none=True)
        body = {"apiVersion": API_VERSION, "kind": WORKER_KIND, "status": {"node": node}}
        await self._api.apply(self._path, body)


def node_status(network: Network, ledger: Ledger, requests: RequestTally, pod_name: str) -> NodeStatus:
    """Return the current state of a node."""
    status = network.status()
    leases = ledger.leases
    last = requests.last_refusal
    return NodeStatus(
        peer_id=network.peer_id,
        gateways=sorted(status.gateways),
        connected_gateways=len(status.gateways),
        listening=list(status.listening),
        circuits=sorted(address for address in network.addresses() if "/p2p-circuit" in address),
        reach=status.reach,
        healthy=status.healthy,
        certificate_expires=network.identity.not_valid_after,
        problem=network.identity_problem,
        allocated={name: fsum(getattr(lease.resources, name) for lease in leases) for name in RESOURCES},
        active_leases=sum(lease.state != "offered" for lease in leases),
        active_jobs=sum(lease.task_id is not None for lease in leases),
        requests=Requests(
            considered=requests.considered,
            refused=requests.refused,
            last_refusal=last and Refusal(reason=last.reason, message=last.message),
        ),
        pod_name=pod_name,
    )
