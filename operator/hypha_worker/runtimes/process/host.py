"""The platform of a worker whose jobs are processes of its host."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import trio

from hypha_contracts.node_config import ExecutorConfig, NodeConfig
from hypha_contracts.times import connector_deadline_s
from hypha_network.identity import Identity
from hypha_network.network import Network
from hypha_worker.connector.http_server import listen_unix, serve_unix
from hypha_worker.errors import NodeError
from hypha_worker.market.ledger import Ledger
from hypha_worker.market.ledger_file import LedgerFile
from hypha_worker.market.request_tally import RequestTally
from hypha_worker.runtimes.process import launch, usage
from hypha_worker.runtimes.process.launch import ExecutorCommand, ProcessConfig
from hypha_worker.runtimes.process.runtime import ProcessRuntime, open_process_runtime
from hypha_worker.runtimes.protocol import Serve
from hypha_worker.startup import LEDGER_FILE, load_identity, prepare_state_dir
from hypha_worker.telemetry import Telemetry


@dataclass(frozen=True)
class Host:
    """A `Platform` whose jobs are processes. `open_host` makes one."""

    accepts_offers: ClassVar = True
    jobs_outlive_node: ClassVar = False

    identity: Identity
    runtime: ProcessRuntime
    ledger_store: LedgerFile
    config: ProcessConfig

    async def listen(self, _network: Network) -> Serve:
        """Listen on a Unix socket from now on. NodeError if that is impossible."""
        await trio.lowlevel.checkpoint()
        path = self.config.connector_socket
        try:
            listener = listen_unix(path)
        except OSError as error:
            raise NodeError(
                f"{path}: cannot listen: {error.strerror}. If the file is yours, choose another work_dir."
            ) from error
        return partial(serve_unix, listener)

    async def report_status(self, _network: Network, _ledger: Ledger, _requests: RequestTally) -> None:
        """Report nothing, because the owner of a host reads its log."""
        await trio.lowlevel.checkpoint()

    def observe_jobs(self, telemetry: Telemetry) -> None:
        """Export what the processes of the jobs use."""
        usage.observe(telemetry, self.config.jobs_dir)


@asynccontextmanager
async def open_host(config: NodeConfig) -> AsyncIterator[Host]:
    """Open this host for a worker. Raises what `open_platform` does."""
    identity = load_identity(config)
    state_dir = prepare_state_dir(config.work_dir, identity.peer_id)
    process = process_config(config, state_dir)
    async with open_process_runtime(process) as runtime:
        yield Host(identity, runtime, LedgerFile(state_dir / LEDGER_FILE), process)


def process_config(config: NodeConfig, state_dir: Path) -> ProcessConfig:
    """Return the part of the configuration that concerns running jobs."""
    jobs = config.jobs
    return ProcessConfig(
        work_dir=state_dir,
        executors={str(executor.descriptor): _command(executor) for executor in config.executors},
        read_ahead=jobs.read_ahead,
        allow_private_addresses=jobs.allow_private_addresses,
        exclude_cidr=jobs.exclude_cidr,
        connector_deadline_s=connector_deadline_s(config.leases.duration_s),
        kill_after_s=jobs.termination_grace_s,
        log_bytes=jobs.output_log_bytes,
        limits=jobs.limits,
    )


def _command(executor: ExecutorConfig) -> ExecutorCommand:
    program = launch.PARAMETER_SERVER if executor.cmd is None else (executor.cmd,)
    return ExecutorCommand((*program, *executor.args), executor.env)
