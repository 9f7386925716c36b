"""Runs jobs as processes of this host. Each job has directories of its own and a supervisor that outlives the node."""

import contextlib
import fcntl
import hashlib
import hmac
import logging
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final
from uuid import UUID

import trio

from hypha_network.rate_limited_log import RateLimitedLogger
from hypha_worker.errors import NodeError
from hypha_worker.files import replace_file
from hypha_worker.findings import heed
from hypha_worker.job import AdoptedJob, Job, JobEvent, LaunchError, Stage, Started
from hypha_worker.progress import Report
from hypha_worker.runtimes.process import launch, supervisor
from hypha_worker.runtimes.process.control import ControlDirectories
from hypha_worker.runtimes.process.launch import ProcessConfig
from hypha_worker.runtimes.process.supervised import Supervised

logger = logging.getLogger(__name__)
_kill_log = RateLimitedLogger(logger)

_PRUNE_LOGS_EVERY_S: Final = 60.0
_TOKEN_BYTES: Final = 32
_BEYOND_KILL_S: Final = 15.0
"""How much longer than the job's grace period a supervisor may take to end before the node kills it."""


class ProcessRuntime:
    """A `Runtime` whose jobs are processes; `open_process_runtime` makes one."""

    def __init__(self, config: ProcessConfig, nursery: trio.Nursery) -> None:
        self._config = config
        self._nursery = nursery
        self._directories = ControlDirectories(config)
        self._events = _Events()
        self._running: dict[UUID, Supervised] = {}
        self._launching: dict[UUID, trio.Event] = {}
        self._ending: dict[UUID, trio.Event] = {}
        self._token_hashes: dict[UUID, bytes] = {}

    def configure(self, *, connector_deadline_s: float) -> None:
        """Let the bridges of later jobs wait this long for a node that does not answer."""
        self._config = replace(self._config, connector_deadline_s=connector_deadline_s)
        self._directories.config = self._config

    @property
    def events(self) -> AsyncIterator[JobEvent]:
        """The events of all jobs. Asking for the next event confirms that the previous one is recorded."""
        return self._events

    async def launch(self, job: Job) -> None:
        """Start the job and return once its supervisor runs. LaunchError if it cannot run here."""
        if job.task_id in self._ending or job.task_id in self._launching:
            raise LaunchError(f"task {job.task_id} exists already")
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._launching[job.task_id] = trio.Event()
        self._token_hashes[job.task_id] = _hash(token)  # the bridge may call before the launch has returned
        try:
            with trio.CancelScope(shield=True):  # otherwise a supervisor might run unobserved
                began = time.time()
                supervised = await trio.to_thread.run_sync(self._directories.launch, job, token)
                stage = Stage(job.task_id, "process started", began, time.time())
                self._follow(job.task_id, supervised, stage if job.traced else None)
        except BaseException:
            del self._token_hashes[job.task_id]
            raise
        finally:
            self._launching.pop(job.task_id).set()

    async def extend(self, task_id: UUID, deadline: float) -> None:
        """Let the job run until `deadline` (seconds since the epoch) if the node is gone. No-op if unknown."""
        await self._launched(task_id)
        if supervised := self._running.get(task_id):
            replace_file(supervised.paths.control / supervisor.DEADLINE_FILE, repr(deadline), durable=False)

    async def terminate(self, task_id: UUID, reason: str) -> None:
        """Stop the job and return once nothing of it is left. No-op if unknown."""
        await self._launched(task_id)
        if supervised := self._running.get(task_id):
            stop_file = supervised.paths.control / supervisor.STOP_FILE
            if not stop_file.exists():
                replace_file(stop_file, reason)
            _signal(supervised, signal.SIGTERM)
        if (ended := self._ending.get(task_id)) is not None:
            with trio.move_on_after(self._config.kill_after_s + _BEYOND_KILL_S):
                await ended.wait()
            if not ended.is_set() and task_id in self._running:
                _kill_log.warning(f"job {task_id}", "its supervisor does not end; killing it")
                _signal(self._running[task_id], signal.SIGKILL)
            await ended.wait()

    def record_progress(self, task_id: UUID, report: Report) -> None:
        """Record nothing, because only the scheduler follows the progress of a job on a host."""

    def record_reported(self, task_id: UUID) -> None:
        """Record nothing, because the record of an ended job is removed with its end."""

    async def adopt(self) -> list[AdoptedJob]:
        """Find the jobs that outlived the node, and remove the remains of dead ones. Called once, before any launch."""
        with trio.CancelScope(shield=True):
            found = await trio.to_thread.run_sync(self._directories.adopt)
            for adopted in found:
                self._token_hashes[adopted.job.task_id] = _hash(adopted.token)
                self._follow(adopted.job.task_id, adopted.supervised)
        return [AdoptedJob(adopted.job, running=adopted.supervised is not None) for adopted in found]

    async def authenticate(self, token: str) -> UUID | None:
        """Return the task whose bridge presented this token, or None."""
        await trio.lowlevel.checkpoint()
        presented = _hash(token)
        found = (task for task, expected in self._token_hashes.items() if hmac.compare_digest(expected, presented))
        return next(found, None)

    async def _launched(self, task_id: UUID) -> None:
        if (launching := self._launching.get(task_id)) is not None:
            await launching.wait()

    def _follow(self, task_id: UUID, supervised: Supervised | None, stage: Stage | None = None) -> None:
        self._ending[task_id] = trio.Event()
        if supervised:
            self._running[task_id] = supervised
        self._nursery.start_soon(self._follow_to_end, task_id, supervised, stage)

    async def _follow_to_end(self, task_id: UUID, supervised: Supervised | None, stage: Stage | None) -> None:
        """Wait for the supervisor, clean up, send the event and, once that is recorded, remove the record."""
        if stage:
            await self._events.put(stage)
        if supervised:
            await self._watch(task_id, supervised)
        event = await trio.to_thread.run_sync(self._directories.conclude, task_id)
        await self._events.put(event)
        await trio.to_thread.run_sync(self._directories.remove, self._directories.paths(task_id))
        del self._token_hashes[task_id]
        self._ending.pop(task_id).set()

    async def _watch(self, task_id: UUID, supervised: Supervised) -> None:
        try:
            if supervised.notify_fd is not None:
                await trio.lowlevel.wait_readable(supervised.notify_fd)
                if os.read(supervised.notify_fd, len(supervisor.STARTED)) == supervisor.STARTED:
                    await self._events.put(Started(task_id))
            await trio.lowlevel.wait_readable(supervised.pidfd)
            if supervised.process:
                supervised.process.wait()  # reaps it, for it has ended
        finally:
            del self._running[task_id]
            for fd in (supervised.pidfd, supervised.notify_fd):
                if fd is not None:
                    os.close(fd)


class _Events(AsyncIterator[JobEvent]):
    """One event at a time. `put` returns once the consumer asks for the next event."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[tuple[JobEvent, trio.Event]](0)
        self._recorded = trio.Event()

    async def put(self, event: JobEvent) -> None:
        recorded = trio.Event()
        await self._send.send((event, recorded))
        await recorded.wait()

    async def __anext__(self) -> JobEvent:
        self._recorded.set()
        event, self._recorded = await self._receive.receive()
        return event


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _signal(supervised: Supervised, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(supervised.pidfd, number)


async def _prune_logs(config: ProcessConfig) -> None:
    while True:
        await trio.to_thread.run_sync(config.ended_logs.prune)
        await trio.sleep(_PRUNE_LOGS_EVERY_S)


@asynccontextmanager
async def open_process_runtime(config: ProcessConfig) -> AsyncIterator[ProcessRuntime]:
    """Open the work directory for this node alone. Jobs that still run at the end go on, for the next node to adopt.

    Raises:
        NodeError: the work directory cannot be used, or another node uses it.
    """
    heed([launch.judge_path_length(config.work_dir)], logger)
    config.work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (config.work_dir / launch.LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NodeError(
                f"another node uses work_dir {config.work_dir}. Stop it or choose another directory."
            ) from error
        async with trio.open_nursery() as nursery:
            runtime = ProcessRuntime(config, nursery)
            nursery.start_soon(_prune_logs, config)
            yield runtime
            nursery.cancel_scope.cancel()
