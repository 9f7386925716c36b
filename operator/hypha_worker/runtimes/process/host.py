"""The platform of a worker whose jobs are processes of its host."""

import logging
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit
from typing import ClassVar

import trio

from hypha_contracts import descriptors
from hypha_contracts.bridge_config import CacheConfig, LentToken
from hypha_contracts.findings import Finding
from hypha_contracts.node_config import ExecutorConfig, HubTokenConfig, NodeConfig
from hypha_contracts.times import connector_deadline_s
from hypha_network.identity import Identity
from hypha_network.network import Network
from hypha_worker.connector.http_server import listen_unix, serve_unix
from hypha_worker.errors import NodeError
from hypha_worker.findings import heed
from hypha_worker.market.ledger import Ledger
from hypha_worker.market.ledger_file import LedgerFile
from hypha_worker.market.request_tally import RequestTally
from hypha_worker.market.settings import EVERYTHING, Reload, reload
from hypha_worker.runtimes.process import launch, usage
from hypha_worker.runtimes.process.checks import executors, machine, tokens
from hypha_worker.runtimes.process.checks.gpus import find_gpus
from hypha_worker.runtimes.process.launch import ExecutorCommand, ProcessConfig
from hypha_worker.runtimes.process.runtime import ProcessRuntime, open_process_runtime
from hypha_worker.runtimes.protocol import Apply, Reread, Serve
from hypha_worker.startup import load_identity
from hypha_worker.state_dir import LEDGER_FILE, find_state_dir, prepare_state_dir
from hypha_worker.telemetry import Telemetry
from hypha_worker.work_dir import inspect, judge

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Host:
    """A `Platform` whose jobs are processes. `open_host` makes one."""

    permit: ClassVar = EVERYTHING
    jobs_outlive_node: ClassVar = False

    identity: Identity
    runtime: ProcessRuntime
    ledger_store: LedgerFile
    config: ProcessConfig
    running: NodeConfig
    reread: Reread

    async def follow(self, apply: Apply) -> None:
        """Read the configuration again at each SIGHUP, and call `apply` with what changed, until cancelled."""
        running = self.running
        with trio.open_signal_receiver(signal.SIGHUP) as hangups:
            async for _ in hangups:
                try:
                    found = reload(running, self.reread())
                    heed(check_resources(found.config, os.environ), logger)
                except NodeError as error:
                    logger.warning("SIGHUP: nothing was reloaded. %s", error)
                    continue
                running = found.config
                _log_reload(found)
                self.runtime.configure(connector_deadline_s=connector_deadline_s(running.leases.duration_s))
                apply(running, self.permit)

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
async def open_host(config: NodeConfig, reread: Reread) -> AsyncIterator[Host]:
    """Open this host for a worker. Raises what `open_platform` does."""
    identity = load_identity(config)
    heed(check_at_start(config, find_state_dir(config.work_dir, identity.peer_id), os.environ), logger)
    state_dir = prepare_state_dir(config.work_dir, identity.peer_id)
    process = process_config(config, state_dir)
    async with open_process_runtime(process) as runtime:
        yield Host(identity, runtime, LedgerFile(state_dir / LEDGER_FILE), process, config, reread)


def _log_reload(found: Reload) -> None:
    if found.left_alone:
        logger.warning("SIGHUP: %s changed, which needs a restart and is left alone", ", ".join(found.left_alone))
    logger.info("reloaded: %s", ", ".join(found.changed) or "nothing, because nothing else changed")


def check_at_start(config: NodeConfig, state_dir: Path, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what can be known about directories, executors and machine before a job is won."""
    yield from check_directories(config, state_dir)
    yield from executors.check(config.executors, environ)
    yield from tokens.check(config.jobs.hub_token)
    yield from check_resources(config, environ)
    yield machine.judge_descriptors(descriptors.limit())
    yield machine.judge_file_size(getrlimit(RLIMIT_FSIZE)[1], config.capacity)


def check_resources(config: NodeConfig, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Yield whether the machine has what the worker offers."""
    gpus = find_gpus(environ) if config.resources.gpu else ()
    yield from machine.judge_resources(config.capacity, machine.measure(config.work_dir, gpus))


def check_directories(config: NodeConfig, state_dir: Path) -> Iterator[Finding]:
    """Yield whether the node can write to its directories. `state_dir` is work_dir or the private directory in it."""
    if state_dir == config.work_dir:
        yield judge(inspect(state_dir, launch.STATE_FILES))
    else:
        yield judge(inspect(config.work_dir))
        yield judge(inspect(state_dir, launch.STATE_FILES))
    for key in ("output_dir", "log_dir", "cache_dir"):
        if (directory := getattr(config.jobs, key)) is not None:
            yield judge(inspect(directory, key=key))


def process_config(config: NodeConfig, state_dir: Path) -> ProcessConfig:
    """Return the part of the configuration that concerns running jobs."""
    jobs = config.jobs
    return ProcessConfig(
        work_dir=state_dir,
        executors={str(executor.descriptor): _command(executor) for executor in config.executors},
        read_ahead=jobs.read_ahead,
        allow_private_addresses=jobs.allow_private_addresses,
        exclude_cidr=jobs.exclude_cidr,
        proxy=jobs.proxy,
        trust_pem=jobs.trust_pem,
        hub_token=_lent(jobs.hub_token),
        cache=CacheConfig(directory=jobs.cache_dir, max_bytes=jobs.cache_max_bytes) if jobs.cache_dir else None,
        connector_deadline_s=connector_deadline_s(config.leases.duration_s),
        kill_after_s=jobs.termination_grace_s,
        log_bytes=jobs.output_log_bytes,
        limits=jobs.limits,
        gpu_device_gb=config.resources.gpu_device,
        output_dir=jobs.output_dir,
        output_max_bytes=jobs.output_max_bytes,
        log_dir=jobs.log_dir,
        keep_ended_s=jobs.keep_ended_s,
        ended_log_bytes=jobs.ended_log_bytes,
    )


def _lent(token: HubTokenConfig | None) -> LentToken | None:
    if token is None:
        return None
    return LentToken(file=token.file, repositories=frozenset(token.repositories))


def _command(executor: ExecutorConfig) -> ExecutorCommand:
    program = launch.PARAMETER_SERVER if executor.cmd is None else (executor.cmd,)
    return ExecutorCommand((*program, *executor.args), executor.env)
