"""The composition root: puts the parts of a worker together and runs them until a signal ends it."""

import logging
import os
import signal
import stat
import time
from collections.abc import AsyncIterator, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Final

import trio
from opentelemetry.metrics import Observation

from hypha_contracts.node_config import ExecutorConfig, NodeConfig
from hypha_contracts.times import connector_deadline_s
from hypha_messages.api import API
from hypha_messages.health import HEALTH, HealthRequest, HealthResponse
from hypha_network.identity import Identity
from hypha_network.network import Network, NetworkConfig, open_network
from hypha_network.wire import addresses
from hypha_worker.connector.http_server import listen_unix, serve_unix
from hypha_worker.errors import NodeError
from hypha_worker.job_manager import JobManager, Serve, open_job_manager
from hypha_worker.market.arbiter import Arbiter
from hypha_worker.market.evaluator import Policy, Preferences
from hypha_worker.market.lease_service import LeaseService
from hypha_worker.market.ledger import Ledger
from hypha_worker.market.ledger_file import LedgerFile
from hypha_worker.market.waiting import RateLimit, WaitingRequests
from hypha_worker.runtimes.process import launch, usage
from hypha_worker.runtimes.process.control import ProcessConfig
from hypha_worker.runtimes.process.launch import ExecutorCommand
from hypha_worker.runtimes.process.runtime import open_process_runtime
from hypha_worker.telemetry import Telemetry, open_telemetry

logger = logging.getLogger(__name__)

VERSION: Final = version("hypha-worker")
LEDGER_FILE: Final = "leases.json"
_FAREWELL_S: Final = 5.0
"""How long schedulers have to hear of the ends of their jobs when the node stops."""


async def run_node(config: NodeConfig) -> None:
    """Run a worker until SIGTERM or SIGINT.

    As processes, its jobs end with it, and their schedulers know when this returns; in a cluster they go on.

    Raises:
        IdentityError: the certificate, key, trust bundle or revocation lists cannot be used.
        NetworkError: it is impossible to listen.
        NodeError: the work directory, or the cluster, cannot be used.
    """
    _warn_of_excluded_gateways(config)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        if config.kubernetes is None:
            await _run_on_this_host(config, signals)
        else:
            from hypha_worker.runtimes.kubernetes.node import run_in_cluster  # noqa: PLC0415 - only who is in one pays for it

            await run_in_cluster(config, config.kubernetes, signals)
    logger.info("stopped")


async def _run_on_this_host(config: NodeConfig, signals: AsyncIterator[int]) -> None:
    identity = load_identity(config)
    state_dir = prepare_state_dir(config.work_dir, identity.peer_id)
    with open_telemetry(config, identity.peer_id, VERSION) as telemetry:
        usage.observe(telemetry, state_dir / "jobs")
        async with (
            open_process_runtime(process_config(config, state_dir)) as runtime,
            open_network(identity, network_config(config)) as network,
            open_job_manager(runtime, network, _serve_on(state_dir / "connector.sock"), telemetry) as jobs,
        ):
            file = LedgerFile(state_dir / LEDGER_FILE, ledger_of(config))
            node = Node(config, file, network, jobs, telemetry=telemetry)
            await node.run(signals)


def load_identity(config: NodeConfig) -> Identity:
    """Load the configured identity and say whose it is; IdentityError."""
    identity = Identity.load(
        config.cert_pem,
        config.key_pem,
        config.trust_pem,
        config.crls_pem,
        crls_optional=config.kubernetes is not None,  # a Secret may get them later
    )
    logger.info(
        "hypha-worker %s, peer id %s, certificate valid until %s", VERSION, identity.peer_id, identity.not_valid_after
    )
    return identity


class Node:
    """A worker whose parts are there: answers schedulers until a signal comes."""

    def __init__(
        self, config: NodeConfig, file: LedgerFile, network: Network, jobs: JobManager, telemetry: Telemetry
    ) -> None:
        self._network = network
        self._jobs = jobs
        self._resumed = trio.Event()
        leases = config.leases
        self._file = file
        self.ledger = file.ledger
        self._leases = LeaseService(
            network,
            self.ledger,
            self._file,
            jobs,
            telemetry,
            prune_s=leases.prune_ms / 1000,
            report_s=config.jobs.report_s,
        )
        arbiter = config.arbiter
        self._arbiter = Arbiter(
            network,
            self.ledger,
            policy(config),
            telemetry,
            waiting=WaitingRequests(arbiter.max_waiting, arbiter.window_ms / 1000, arbiter.window_messages),
            rate_limit=RateLimit(arbiter.requests_per_s),
            wall_clock=time.time,
            offer_timeout_s=leases.temporary_ms / 1000,
        )
        self.requests = self._arbiter.requests
        self._leases.on_room = self._arbiter.note_room
        self._leases.on_accepted = self._arbiter.note_accepted
        self._leases.on_lapsed = self._arbiter.note_lapsed
        self._observe(telemetry)

    async def run(self, signals: AsyncIterator[int], *, accept_offers: bool = True, keep_jobs: bool = False) -> None:
        """Work until the first signal.

        Args:
            signals: the second one does not wait for schedulers.
            accept_offers: whether to make offers; what is leased goes on in any case.
            keep_jobs: whether the jobs go on, for another node to adopt; else they are ended in order.
        """
        if not accept_offers:
            logger.info("no offers are made; leases and jobs go on")
            self._arbiter.stop_offering()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work)
            number = await anext(signals)
            logger.info(
                "%s: no more offers, %s", signal.Signals(number).name, "jobs go on" if keep_jobs else "ending jobs"
            )
            self._arbiter.stop_offering()
            if keep_jobs:
                await self._jobs.stop_calls()
            else:
                await self._end_jobs(signals)
            nursery.cancel_scope.cancel()

    async def _work(self) -> None:
        await self._file.restore()
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
                logger.warning("second signal: not waiting for jobs to end; their supervisors see to that")
                nursery.cancel_scope.cancel()

            nursery.start_soon(hurry)
            await self._resumed.wait()
            await self._leases.end_all("the worker is shutting down", _FAREWELL_S)
            nursery.cancel_scope.cancel()

    async def _announce(self) -> None:
        await self._network.wait_ready()
        status = self._network.status()
        logger.info("ready: gateways %s, listening on %s", ", ".join(status.gateways), ", ".join(status.listening))

    async def _answer_health(self, _peer: str, _request: HealthRequest) -> HealthResponse:
        return HealthResponse(healthy=self._network.status().healthy)

    def _observe(self, telemetry: Telemetry) -> None:
        def leases() -> Iterable[Observation]:
            states = [lease.state for lease in self.ledger.leases]
            return [Observation(states.count(state), {"state": state}) for state in ("offered", "held", "ending")]

        def jobs() -> Iterable[Observation]:
            return [Observation(sum(lease.task_id is not None for lease in self.ledger.leases))]

        def free() -> Iterable[Observation]:
            amounts = self.ledger.free().model_dump()
            return [Observation(amount, {"resource": name}) for name, amount in amounts.items()]

        telemetry.observe("hypha.worker.leases.active", "{lease}", "Leases that reserve something, by state", leases)
        telemetry.observe("hypha.worker.jobs.active", "{job}", "Jobs that run", jobs)
        telemetry.observe("hypha.worker.resources.free", "1", "What no lease reserves (GB, cores)", free)


def _serve_on(path: Path) -> Serve:
    """Listen on a Unix socket from now on. NodeError if that is impossible."""
    try:
        listener = listen_unix(path)
    except OSError as error:
        raise NodeError(
            f"{path}: cannot listen: {error.strerror}; if the file is yours, choose another work_dir"
        ) from error
    return partial(serve_unix, listener)


def ledger_of(config: NodeConfig) -> Ledger:
    """Return the ledger of a worker without leases."""
    leases = config.leases
    return Ledger(
        config.capacity,
        time.time,
        temporary_s=leases.temporary_ms / 1000,
        duration_s=leases.duration_s,
        ended_s=leases.ended_s,
        max_live=leases.max_live,
    )


def policy(config: NodeConfig) -> Policy:
    """Return what the configuration says of which requests are wanted."""
    return Policy(
        capacity=config.capacity,
        executors=frozenset(executor.descriptor for executor in config.executors),
        price=config.offer.price,
        floor=config.offer.floor,
        offer=config.offer.strategy,
        selection=config.selection.strategy,
        preferences=Preferences(config.selection.schedulers, config.selection.executors),
        gpu_device=config.resources.gpu_device,
    )


def network_config(config: NodeConfig) -> NetworkConfig:
    """Return what the configuration says of the network."""
    return NetworkConfig(
        gateways=tuple(config.gateway_addresses),
        listen_addresses=tuple(config.listen_addresses),
        external_addresses=tuple(config.external_addresses),
        exclude_cidr=tuple(config.exclude_cidr),
        relay_circuit=config.relay_circuit,
    )


def process_config(config: NodeConfig, state_dir: Path) -> ProcessConfig:
    """Return what the configuration says of running jobs."""
    jobs = config.jobs
    return ProcessConfig(
        work_dir=state_dir,
        executors={str(executor.descriptor): _command(executor) for executor in config.executors},
        read_ahead=jobs.read_ahead,
        allow_private_addresses=jobs.allow_private_addresses,
        connector_deadline_s=connector_deadline_s(config.leases.duration_s),
        kill_after_s=jobs.termination_grace_s,
        log_bytes=jobs.output_log_bytes,
        limits=jobs.limits,
    )


def _command(executor: ExecutorConfig) -> ExecutorCommand:
    program = launch.PARAMETER_SERVER if executor.cmd is None else (executor.cmd,)
    return ExecutorCommand((*program, *executor.args), executor.env)


def prepare_state_dir(work_dir: Path, peer_id: str) -> Path:
    """Return the directory for jobs and state, made private; NodeError if it cannot be used.

    A directory that every user may write to, such as /tmp, is not used itself: this node has a private one in it.
    """
    try:
        work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not work_dir.stat().st_mode & stat.S_IWOTH:
            return work_dir
        private = work_dir / f"hypha-worker-{peer_id[-8:]}"
        private.mkdir(mode=0o700, exist_ok=True)
        found = private.lstat()
    except OSError as error:
        raise NodeError(
            f"work_dir {work_dir}: {error.strerror}; choose a directory that this user may write to"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise NodeError(f"{private}: not a private directory of this user; remove it or choose another work_dir")
    return private


def _warn_of_excluded_gateways(config: NodeConfig) -> None:
    networks = addresses.parse_cidrs(config.exclude_cidr)
    for text in config.gateway_addresses:
        address = addresses.parse_supported(text)
        if address is not None and addresses.excluded(address, networks):
            logger.warning(
                "the gateway %s lies in a network of exclude_cidr: other nodes there are reached through gateways "
                "only; remove that network from exclude_cidr to reach them directly",
                text,
            )
