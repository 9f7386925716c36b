"""The composition root. It assembles the parts of a worker and runs them until a signal arrives."""

import logging
import signal
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Final

import trio

from hypha_contracts.findings import Finding, warning
from hypha_contracts.node_config import NodeConfig
from hypha_messages.api import API
from hypha_messages.health import HEALTH, HealthRequest, HealthResponse
from hypha_network.network import Network, NetworkConfig, open_network
from hypha_network.wire import addresses
from hypha_worker.findings import heed
from hypha_worker.job_manager import JobManager, open_job_manager
from hypha_worker.market.arbiter import Arbiter
from hypha_worker.market.lease_service import LeaseService
from hypha_worker.market.ledger import Ledger
from hypha_worker.market.settings import Permit, settings_of
from hypha_worker.market.starts import StartRecord
from hypha_worker.market.waiting import WaitingRequests
from hypha_worker.metrics_page import serving_metrics
from hypha_worker.observations import NetworkObserver, observe_jobs, observe_market
from hypha_worker.runtimes.protocol import Platform, Reread
from hypha_worker.runtimes.registry import open_platform
from hypha_worker.startup import VERSION
from hypha_worker.state_dir import STATUS_SOCKET, find_state_dir
from hypha_worker.status.board import Board
from hypha_worker.status.server import serving_status
from hypha_worker.telemetry import Telemetry, open_telemetry

logger = logging.getLogger(__name__)

_FAREWELL_S: Final = 5.0
"""How long a stopping node waits for schedulers to accept the reports of ended jobs."""
_SUBSCRIBERS_LOG_S: Final = 10.0
"""How long the node waits at least between two lines about the number of subscribers."""


async def run_node(config: NodeConfig, reread: Reread) -> None:
    """Run a worker until SIGTERM or SIGINT. On a host, SIGHUP calls `reread` for a new configuration.

    The jobs of a host end with the node, and their schedulers know when this returns. The jobs of a cluster go on.

    Raises:
        IdentityError: the certificate, key, trust bundle or revocation lists cannot be used.
        NetworkError: it is impossible to listen.
        NodeError: the work directory, the cluster, or the telemetry as configured, cannot be used.
    """
    heed(judge_excluded_gateways(config), logger)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_platform(config, reread) as platform:
            with open_telemetry(config, platform.identity.peer_id, VERSION) as telemetry:
                platform.observe_jobs(telemetry)
                async with (
                    serving_metrics(telemetry),
                    open_network(platform.identity, network_config(config)) as network,
                    open_job_manager(platform.runtime, network, await platform.listen(network), telemetry) as jobs,
                ):
                    node = _Node(config, platform, network, jobs, telemetry)
                    socket = find_state_dir(config.work_dir, network.peer_id) / STATUS_SOCKET
                    async with serving_status(config.status_page, socket, node.board.json):
                        await node.run(signals)
    logger.info("stopped")


class _Node:
    """A worker whose parts are open. It answers schedulers until a signal arrives."""

    def __init__(
        self, config: NodeConfig, platform: Platform, network: Network, jobs: JobManager, telemetry: Telemetry
    ) -> None:
        self._config, self._permit, self._reach = config, platform.permit, network.reach
        self._platform = platform
        self._network = network
        self._jobs = jobs
        self._resumed = trio.Event()
        arbiter, settings = config.arbiter, settings_of(config, platform.permit, network.reach)
        self._ledger = Ledger(settings.rules, time.time)
        self._starts = StartRecord()
        self._starts.on_proven(settings.proven_at)
        self._topics = settings.policy.topics
        self._waiting = WaitingRequests(arbiter.max_waiting, arbiter.window_ms / 1000, arbiter.window_messages)
        self._arbiter = Arbiter(
            network,
            self._ledger,
            settings,
            telemetry,
            starts=self._starts,
            waiting=self._waiting,
            requests_per_s=arbiter.requests_per_s,
            wall_clock=time.time,
        )
        self._leases = LeaseService(
            network,
            self._ledger,
            platform.ledger_store,
            jobs,
            telemetry,
            starts=self._starts,
            on_offer_accepted=self._on_offer_accepted,
            on_offer_lapsed=self._arbiter.on_offer_lapsed,
            on_capacity_freed=self._arbiter.on_capacity_freed,
            report_s=config.jobs.report_s,
        )
        self._offers = settings.offers
        if config.suspend:
            logger.info("%s", _offers_now(config, platform.permit))
        self._network_observer = NetworkObserver(telemetry, network)
        observe_market(telemetry, self._ledger, self._waiting)
        observe_jobs(telemetry, self._leases, jobs)
        self.board = Board(
            config, network, ledger=self._ledger, arbiter=self._arbiter, waiting=self._waiting, history=jobs.history
        )

    async def run(self, signals: AsyncIterator[int]) -> None:
        """Run until the first signal. A second signal ends the wait for jobs and schedulers."""
        outlive = self._platform.jobs_outlive_node
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._platform.follow, self._apply)
            nursery.start_soon(self._follow_reach)
            nursery.start_soon(self._platform.report_status, self._network, self._ledger, self._arbiter.requests)
            nursery.start_soon(self._network_observer.run)
            nursery.start_soon(self._work)
            number = await anext(signals)
            logger.info(
                "%s: no more offers, %s", signal.Signals(number).name, "jobs go on" if outlive else "ending jobs"
            )
            self._arbiter.stop()
            if outlive:
                await self._jobs.stop_calls()
            else:
                await self._end_jobs(signals)
            nursery.cancel_scope.cancel()

    def _apply(self, config: NodeConfig, permit: Permit) -> None:
        """Go by another configuration, permit or reach from now on."""
        self._config, self._permit, self._reach = config, permit, self._network.reach
        settings = settings_of(config, permit, self._reach)
        if settings.offers != self._offers:
            self._offers = settings.offers
            logger.info("%s", _offers_now(config, permit))
        self._starts.on_proven(settings.proven_at)
        self._ledger.rules = settings.rules
        self._arbiter.apply(settings)

    async def _follow_reach(self) -> None:
        while True:
            await self._network.wait_until(lambda: self._network.reach is not self._reach)
            self._apply(self._config, self._permit)

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
            for topic in self._topics:
                nursery.start_soon(self._log_subscribers, topic)

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

    async def _log_subscribers(self, topic: str) -> None:
        """Log how many peers subscribe to a topic of requests: at first, and whenever their number has changed."""
        network = self._network
        await network.wait_ready()
        with trio.move_on_after(_SUBSCRIBERS_LOG_S):  # subscriptions of peers arrive after their connections
            await network.wait_until(lambda: bool(network.subscribers(topic)))
        logged: list[str] | None = None
        while True:
            await network.wait_until(partial(self._subscribers_differ, topic, logged))
            logged, connected = network.subscribers(topic), len(network.connected_peers())
            if logged:
                logger.info("%d of %d connected peers subscribe to %s", len(logged), connected, topic)
            else:
                logger.warning(
                    "none of %d connected peers subscribes to %s, so no request can arrive. Check the gateways.",
                    connected,
                    topic,
                )
            await trio.sleep(_SUBSCRIBERS_LOG_S)

    def _subscribers_differ(self, topic: str, before: list[str] | None) -> bool:
        return before is None or len(self._network.subscribers(topic)) != len(before)

    async def _answer_health(self, _peer: str, _request: HealthRequest) -> HealthResponse:
        return HealthResponse(healthy=self._network.status().healthy)


def _offers_now(config: NodeConfig, permit: Permit) -> str:
    """Return for the log whether the node makes offers, and if not, why."""
    if config.suspend:
        until = f" until {config.suspend_deadline:%Y-%m-%d %H:%M:%S %Z}" if config.suspend_deadline else ""
        return f"the worker is suspended: it makes no offers, and leases and jobs go on{until}"
    return "the worker makes offers" if permit.enabled else "no offers, because jobs could not run: see the HyphaWorker"


def network_config(config: NodeConfig) -> NetworkConfig:
    """Return the configuration of the network."""
    return NetworkConfig(
        gateways=tuple(config.gateway_addresses),
        listen_addresses=tuple(config.listen_addresses),
        external_addresses=(
            *config.external_addresses,
            *(config.kubernetes.host_addresses if config.kubernetes else ()),
        ),
        exclude_cidr=tuple(config.exclude_cidr),
        relay_circuit=config.relay_circuit,
    )


def judge_excluded_gateways(config: NodeConfig) -> Iterator[Finding]:
    """Yield a warning for each gateway in a network whose other nodes this node ignores."""
    networks = addresses.parse_cidrs(config.exclude_cidr)
    for text in config.gateway_addresses:
        address = addresses.parse_supported(text)
        if address is not None and addresses.excluded(address, networks):
            yield warning(
                f"gateway {text} is in a network of exclude_cidr, so peers there are reached only through gateways",
                "Remove that network from exclude_cidr to reach them directly.",
            )
