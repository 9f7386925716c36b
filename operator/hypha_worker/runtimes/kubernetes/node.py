"""A node in a cluster: its jobs are pods, whose bridges, like the kubelet's probes, reach it over TLS."""

import logging
import os
import resource
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

import trio

from hypha_contracts.connector_api import ErrorCode
from hypha_contracts.node_config import KubernetesConfig, NodeConfig
from hypha_network.identity import Identity
from hypha_network.network import Network, NetworkStatus, open_network
from hypha_worker.connector.http_server import Exchange, Handler, HttpError, serve_tls
from hypha_worker.errors import NodeError
from hypha_worker.job_manager import Serve, open_job_manager
from hypha_worker.node import LEDGER_FILE, VERSION, Node, ledger_of, load_identity, network_config, prepare_state_dir
from hypha_worker.runtimes.kubernetes.api import ApiAccess, open_api
from hypha_worker.runtimes.kubernetes.leases import LedgerInCluster
from hypha_worker.runtimes.kubernetes.runtime import open_kubernetes_runtime
from hypha_worker.runtimes.kubernetes.status import StatusReporter
from hypha_worker.telemetry import open_telemetry

logger = logging.getLogger(__name__)


async def run_in_cluster(config: NodeConfig, cluster: KubernetesConfig, signals: AsyncIterator[int]) -> None:
    """Run a worker until a signal; its jobs go on, for the next node to adopt. Raises what `run_node` does."""
    raise_descriptor_limit()
    leases = config.leases
    async with open_api(ApiAccess.find(os.environ)) as api:
        reporter = StatusReporter(api, cluster)
        async with reporter.telling_of_refusals():
            identity = load_identity(config)
            check_pinned(identity, cluster)
        state_dir = prepare_state_dir(config.work_dir, identity.peer_id)
        with open_telemetry(config, identity.peer_id, VERSION) as telemetry:
            async with (
                open_kubernetes_runtime(
                    api, cluster, peer_id=identity.peer_id, lease_s=leases.duration_s, ended_s=leases.ended_s
                ) as runtime,
                open_network(identity, network_config(config)) as network,
                open_job_manager(
                    runtime, network, await listen_for_bridges(cluster, network), telemetry, runtime.authenticate
                ) as jobs,
                trio.open_nursery() as nursery,
            ):
                file = LedgerInCluster(
                    state_dir / LEDGER_FILE, ledger_of(config), api, cluster, lease_s=leases.duration_s
                )
                node = Node(config, file, network, jobs, telemetry=telemetry)
                nursery.start_soon(file.run)
                nursery.start_soon(reporter.run, network, node.ledger, node.requests)
                await node.run(signals, accept_offers=cluster.accept_offers, keep_jobs=True)
                nursery.cancel_scope.cancel()


def raise_descriptor_limit() -> None:
    """Take all descriptors that this process may have: every job's bridge holds some, and the default is for few."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def check_pinned(identity: Identity, cluster: KubernetesConfig) -> None:
    """Refuse another identity than the HyphaWorker's; NodeError."""
    if cluster.peer_id not in (None, identity.peer_id):
        raise NodeError(
            f"the key in the identity's Secret is that of {identity.peer_id}, and this worker is {cluster.peer_id}: "
            "restore the key, or set spec.identity.allowPeerIdChange to become another peer"
        )


async def listen_for_bridges(cluster: KubernetesConfig, network: Network) -> Serve:
    """Listen from now on; what is returned serves bridges there, and probes. NodeError."""
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
        if call == ("GET", "/readyz") and (reason := why_not_ready(network.status())):
            raise HttpError(HTTPStatus.SERVICE_UNAVAILABLE, ErrorCode.NOT_READY, reason)
        if call in (("GET", "/healthz"), ("GET", "/readyz")):
            await exchange.answer_json({"status": "ok"})
        else:
            await handler(exchange)

    return handle


def why_not_ready(status: NetworkStatus) -> str | None:
    """Say what a node lacks to be healthy; None if it is."""
    if status.healthy:
        return None
    checks: dict[str, Any] = {
        "it does not listen": status.listening,
        "no gateway is connected": status.gateways,
        "it has not joined the DHT": status.bootstrapped,
        "no gateway has granted it a relay": status.reservations,
    }
    return next((lack for lack, there in checks.items() if not there), "it is not healthy")
