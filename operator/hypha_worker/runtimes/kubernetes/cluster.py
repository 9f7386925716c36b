"""The platform of a worker whose jobs are pods. Their bridges, like the kubelet's probes, reach the node over TLS."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar

import trio

from hypha_contracts.connector_api import ErrorCode
from hypha_contracts.node_config import KubernetesConfig, NodeConfig
from hypha_network.identity import Identity
from hypha_network.network import Network
from hypha_worker.connector.http_server import Exchange, Handler, HttpError, serve_tls
from hypha_worker.errors import NodeError
from hypha_worker.market.ledger import Ledger
from hypha_worker.market.ledger_file import LedgerFile
from hypha_worker.market.request_tally import RequestTally
from hypha_worker.market.settings import NOTHING, Permit
from hypha_worker.runtimes.kubernetes.api import ApiAccess, open_api
from hypha_worker.runtimes.kubernetes.leases import ClusterLedgerStore
from hypha_worker.runtimes.kubernetes.runtime import KubernetesRuntime, open_kubernetes_runtime
from hypha_worker.runtimes.kubernetes.status import StatusReporter
from hypha_worker.runtimes.kubernetes.worker import HyphaWorkerWatch
from hypha_worker.runtimes.protocol import Apply, Reread, Serve
from hypha_worker.startup import load_identity
from hypha_worker.state_dir import LEDGER_FILE, prepare_state_dir
from hypha_worker.telemetry import Telemetry


@dataclass(frozen=True)
class Cluster:
    """A `Platform` whose jobs are pods. `open_cluster` makes one."""

    jobs_outlive_node: ClassVar = True
    permit: ClassVar = NOTHING

    identity: Identity
    runtime: KubernetesRuntime
    ledger_store: ClusterLedgerStore
    reporter: StatusReporter
    watch: HyphaWorkerWatch
    config: KubernetesConfig

    async def follow(self, apply: Apply) -> None:
        """Call `apply` whenever the HyphaWorker has changed, until cancelled."""

        def apply_all(config: NodeConfig, permit: Permit) -> None:
            self.runtime.configure(
                lease_s=config.leases.duration_s,
                ended_s=config.leases.ended_s,
                keep_ended_s=config.jobs.keep_ended_s,
            )
            apply(config, permit)

        await self.watch.run(apply_all)

    async def listen(self, network: Network) -> Serve:
        """Listen on the connector's port from now on. NodeError if that is impossible."""
        return await listen_for_bridges(self.config, network)

    async def report_status(self, network: Network, ledger: Ledger, requests: RequestTally) -> None:
        """Report the state of the node in the HyphaWorker until cancelled."""
        await self.reporter.run(network, ledger, requests)

    def observe_jobs(self, telemetry: Telemetry) -> None:
        """Export what pods report to use, because the node can only measure processes of its own host."""
        telemetry.job_metrics.observe_resources()


@asynccontextmanager
async def open_cluster(config: NodeConfig, _reread: Reread) -> AsyncIterator[Cluster]:
    """Open the cluster for a worker. Raises what `open_platform` does."""
    cluster, leases = config.kubernetes, config.leases
    assert cluster is not None  # noqa: S101 - its presence chose this runtime
    async with open_api(ApiAccess.find(os.environ)) as api:
        reporter = StatusReporter(api, cluster)
        async with reporter.reporting_refusals():
            identity = load_identity(config, crls_optional=True)  # a Secret may get them later
            check_pinned(identity, cluster)
        file = LedgerFile(prepare_state_dir(config.work_dir, identity.peer_id) / LEDGER_FILE)
        store = ClusterLedgerStore(file, api, cluster, lease_s=leases.duration_s)
        async with (
            open_kubernetes_runtime(
                api,
                cluster,
                peer_id=identity.peer_id,
                lease_s=leases.duration_s,
                ended_s=leases.ended_s,
                keep_ended_s=config.jobs.keep_ended_s,
            ) as runtime,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(store.run)
            yield Cluster(identity, runtime, store, reporter, HyphaWorkerWatch(api, cluster, config), cluster)
            nursery.cancel_scope.cancel()


def check_pinned(identity: Identity, cluster: KubernetesConfig) -> None:
    """Refuse an identity that is not the HyphaWorker's. NodeError."""
    if cluster.peer_id not in (None, identity.peer_id):
        raise NodeError(
            f"the key in the identity's Secret belongs to {identity.peer_id}, but this worker is {cluster.peer_id}. "
            "Restore the key, or set spec.identity.allowPeerIdChange to become another peer."
        )


async def listen_for_bridges(cluster: KubernetesConfig, network: Network) -> Serve:
    """Listen from now on, and return what serves bridges and probes there. NodeError if that is impossible."""
    try:
        listeners = await trio.open_tcp_listeners(cluster.connector_port)
    except OSError as error:
        raise NodeError(f"cannot listen on port {cluster.connector_port} for bridges: {error.strerror}") from error

    async def serve(handler: Handler) -> None:
        await serve_tls(listeners, lambda: network.identity, _with_probes(network, handler))

    return serve


def _with_probes(network: Network, handler: Handler) -> Handler:
    async def handle(exchange: Exchange) -> None:
        call = exchange.method, exchange.path
        if call == ("GET", "/readyz") and (reason := network.status().lack):
            raise HttpError(ErrorCode.NOT_READY, reason)
        if call in (("GET", "/healthz"), ("GET", "/readyz")):
            await exchange.answer_json({"status": "ok"})
        else:
            await handler(exchange)

    return handle
