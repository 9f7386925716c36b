"""The composition root. It assembles the parts of a worker and runs them until a signal arrives."""

import logging
import signal
import time
from collections.abc import AsyncIterator, Iterable
from typing import Final

import trio
from opentelemetry.metrics import Observation

from hypha_contracts.node_config import NodeConfig
from hypha_contracts.times import KEEP_ENDED_S
from hypha_messages.api import API
from hypha_messages.health import HEALTH, HealthRequest, HealthResponse
from hypha_network.network import Network, NetworkConfig, open_network
from hypha_network.wire import addresses
from hypha_worker.job_manager import JobManager, open_job_manager
from hypha_worker.market.arbiter import Arbiter
from hypha_worker.market.evaluator import Policy, Preferences
from hypha_worker.market.lease_service import LeaseService
from hypha_worker.market.ledger import Ledger
from hypha_worker.market.waiting import WaitingRequests
from hypha_worker.runtimes.protocol import Platform
from hypha_worker.runtimes.registry import open_platform
from hypha_worker.startup import VERSION
from hypha_worker.telemetry import Telemetry, open_telemetry

logger = logging.getLogger(__name__)

_FAREWELL_S: Final = 5.0
"""How long a stopping node waits for schedulers to accept the reports of ended jobs."""


async def run_node(config: NodeConfig) -> None:
    """Run a worker until SIGTERM or SIGINT.

    The jobs of a host end with the node, and their schedulers know when this returns. The jobs of a cluster go on.

    Raises:
        IdentityError: the certificate, key, trust bundle or revocation lists cannot be used.
        NetworkError: it is impossible to listen.
        NodeError: the work directory, or the cluster, cannot be used.
    """
    _warn_of_excluded_gateways(config)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_platform(config) as platform:
            with open_telemetry(config, platform.identity.peer_id, VERSION) as telemetry:
                platform.observe_jobs(telemetry)
                async with (
                    open_network(platform.identity, network_config(config)) as network,
                    open_job_manager(platform.runtime, network, await platform.listen(network), telemetry) as jobs,
                ):
                    await _Node(config, platform, network, jobs, telemetry).run(signals)
    logger.info("stopped")


class _Node:
    """A worker whose parts are open. It answers schedulers until a signal arrives."""

    def __init__(
        self, config: NodeConfig, platform: Platform, network: Network, jobs: JobManager, telemetry: Telemetry
    ) -> None:
        self._platform = platform
        self._network = network
        self._jobs = jobs
        self._resumed = trio.Event()
        leases, arbiter = config.leases, config.arbiter
        self._ledger = Ledger(
            config.capacity,
            time.time,
            temporary_s=leases.temporary_ms / 1000,
            duration_s=leases.duration_s,
            ended_s=leases.ended_s,
            kept_s=min(config.kubernetes.ttl_seconds_after_finished, KEEP_ENDED_S) if config.kubernetes else 0,
            max_live=leases.max_live,
        )
        self._waiting = WaitingRequests(arbiter.max_waiting, arbiter.window_ms / 1000, arbiter.window_messages)
        self._arbiter = Arbiter(
            network,
            self._ledger,
            policy(config),
            telemetry,
            waiting=self._waiting,
            requests_per_s=arbiter.requests_per_s,
            wall_clock=time.time,
            offer_timeout_s=leases.temporary_ms / 1000,
        )
        self._leases = LeaseService(
            network,
            self._ledger,
            platform.ledger_store,
            jobs,
            telemetry,
            on_offer_accepted=self._on_offer_accepted,
            on_offer_lapsed=self._arbiter.on_offer_lapsed,
            on_capacity_freed=self._arbiter.on_capacity_freed,
            prune_s=leases.prune_ms / 1000,
            report_s=config.jobs.report_s,
        )
        self._observe(telemetry)

    async def run(self, signals: AsyncIterator[int]) -> None:
        """Run until the first signal. A second signal ends the wait for jobs and schedulers."""
        if not self._platform.accepts_offers:
            logger.info("the worker is suspended: it makes no offers, and leases and jobs go on")
            self._arbiter.stop_offering()
        outlive = self._platform.jobs_outlive_node
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._platform.report_status, self._network, self._ledger, self._arbiter.requests)
            nursery.start_soon(self._work)
            number = await anext(signals)
            logger.info(
                "%s: no more offers, %s", signal.Signals(number).name, "jobs go on" if outlive else "ending jobs"
            )
            self._arbiter.stop_offering()
            if outlive:
                await self._jobs.stop_calls()
            else:
                await self._end_jobs(signals)
            nursery.cancel_scope.cancel()

    async def _work(self) -> None:
        if (saved := await self._platform.ledger_store.load()) is not None:
            self._ledger.restore(saved)
        await self._leases.resume(await self._jobs.adopt())
        self._network.handle(HEALTH, self._answer_health)
        self._network.handle(API, self._leases.answer)
        self._resumed.set()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._leases.run)
            nursery.start_soon(self._arbiter.run)
            nursery.start_soon(self._announce)

    async def _end_jobs(self, signals: AsyncIterator[int]) -> None:
        async with trio.open_nursery() as nursery:

            async def hurry() -> None:
                await anext(signals)
                logger.warning("second signal: stopping without waiting for the jobs, which their supervisors end")
                nursery.cancel_scope.cancel()

            nursery.start_soon(hurry)
            await self._resumed.wait()
            await self._leases.end_all("the worker is shutting down", _FAREWELL_S)
            nursery.cancel_scope.cancel()

    def _on_offer_accepted(self, scheduler: str) -> None:
        self._waiting.record_accepted(scheduler)
        self._network.favour(scheduler)

    async def _announce(self) -> None:
        await self._network.wait_ready()
        status = self._network.status()
        logger.info("ready: gateways %s, listening on %s", ", ".join(status.gateways), ", ".join(status.listening))

    async def _answer_health(self, _peer: str, _request: HealthRequest) -> HealthResponse:
        return HealthResponse(healthy=self._network.status().healthy)

    def _observe(self, telemetry: Telemetry) -> None:
        def leases() -> Iterable[Observation]:
            states = [lease.state for lease in self._ledger.leases]
            return [Observation(states.count(state), {"state": state}) for state in ("offered", "held", "ending")]

        def jobs() -> Iterable[Observation]:
            return [Observation(sum(lease.task_id is not None for lease in self._ledger.leases))]

        def free() -> Iterable[Observation]:
            amounts = self._ledger.free().model_dump()
            return [Observation(amount, {"resource": name}) for name, amount in amounts.items()]

        telemetry.observe("hypha.worker.leases.active", "{lease}", "Leases that reserve something, by state", leases)
        telemetry.observe("hypha.worker.jobs.active", "{job}", "Running jobs", jobs)
        telemetry.observe("hypha.worker.resources.free", "1", "Resources that no lease reserves (GB, cores)", free)


def policy(config: NodeConfig) -> Policy:
    """Return the policy by which requests get offers."""
    return Policy(
        capacity=config.capacity,
        minimum=config.minimum,
        executors=frozenset(executor.descriptor for executor in config.executors),
        price=config.offer.price,
        floor=config.offer.floor,
        offer=config.offer.strategy,
        selection=config.selection.strategy,
        preferences=Preferences(config.selection.schedulers, config.selection.executors),
        gpu_device=config.resources.gpu_device,
    )


def network_config(config: NodeConfig) -> NetworkConfig:
    """Return the configuration of the network."""
    return NetworkConfig(
        gateways=tuple(config.gateway_addresses),
        listen_addresses=tuple(config.listen_addresses),
        external_addresses=tuple(config.external_addresses),
        exclude_cidr=tuple(config.exclude_cidr),
        relay_circuit=config.relay_circuit,
    )


def _warn_of_excluded_gateways(config: NodeConfig) -> None:
    networks = addresses.parse_cidrs(config.exclude_cidr)
    for text in config.gateway_addresses:
        address = addresses.parse_supported(text)
        if address is not None and addresses.excluded(address, networks):
            logger.warning(
                "gateway %s is in a network of exclude_cidr, so other nodes there are reached only through gateways. "
                "Remove that network from exclude_cidr to reach them directly.",
                text,
            )
