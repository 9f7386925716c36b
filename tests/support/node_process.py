"""A worker node as a process of its own, and a scheduler in this one, on a gateway in this one."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio

from hypha_devnet.client import Lease, Request, SchedulerClient, Wanted
from hypha_messages.advertisement import WorkerSpec
from hypha_messages.api import DataAssignment, ReportJobStatus
from hypha_messages.job import ExecutorDescriptor
from hypha_messages.types import Resources
from hypha_network.network import Network
from support.certs import Pki
from support.networks import DEADLINE_S, direct_address, member

CAPACITY = Resources(gpu=1, cpu=1, memory=2, storage=2)
EXECUTOR = """
import os, pathlib, sys, time
do = sys.argv[2]
with pathlib.Path(__file__).with_name("starts").open("a") as starts:
    print(os.getpid(), file=starts)
print("the executor says", do, flush=True)
if do == "crash":
    sys.exit(3)
if do == "finish":
    sys.exit(0)
while True:
    time.sleep(0.1)
"""


class NodeProcess:
    """`hypha-worker run` with a configuration of its own; `log` has its output.

    Args:
        pki: makes the node's certificate.
        directory: for the node's files.
        gateway: the address of its gateway.
        executor: what its executor does: run, finish or crash.
        python: the interpreter of the node and of its executor.
        inference: the arguments of a Python program that is an executor of class inference, instead of the other one.
        class_: the class of its executor otherwise.
        name: the name of the node in its certificate.
        settings: tables of the configuration, and values of its top level.
    """

    module = "hypha_worker"

    def __init__(
        self,
        pki: Pki,
        directory: Path,
        gateway: str,
        executor: str,
        *,
        python: str = sys.executable,
        inference: list[str] | None = None,
        class_: str = "train",
        name: str = "worker",
        **settings: Any,
    ) -> None:
        self.directory = directory
        self._python = python
        self.peer_id = ""
        files = pki.files(name, directory)
        script = directory / "executor.py"
        script.write_text(EXECUTOR)
        top = {
            "cert_pem": files.cert.name,
            "key_pem": files.key.name,
            "trust_pem": files.trust.name,
            "gateway_addresses": [gateway],
            "listen_addresses": ["/ip4/127.0.0.1/tcp/0"],
            "exclude_cidr": [],
            "relay_circuit": False,
            "work_dir": "work",
        }
        tables = {name: table for name, table in settings.items() if isinstance(table, dict)}
        values = {key: value for key, value in settings.items() if key not in tables}
        lines = [f"{key} = {json.dumps(value)}" for key, value in (top | values).items()]
        for name, table in ({"resources": CAPACITY.model_dump()} | tables).items():
            lines += [f"[{name}]", *(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in table.items())]
        lines += ["[[executors]]", f'class = "{"inference" if inference else class_}"', 'name = "test"']
        if "kubernetes" in tables:
            lines.append('runtime = "kubernetes"')
        else:
            args = json.dumps(inference or [str(script), "{WORK_DIR}", executor])
            lines += ['runtime = "process"', f"cmd = {json.dumps(python)}", f"args = {args}"]
        self.environ: dict[str, str] = {}
        self.config = directory / "worker.toml"
        self.config.write_text("\n".join(lines))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def work_dir(self) -> Path:
        return self.directory / "work"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.directory / "worker.log").read_text()

    @property
    def starts(self) -> list[int]:
        """The process ids of all executors that were ever started."""
        file = self.directory / "starts"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def start(self) -> None:
        with (self.directory / "worker.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._python, "-m", self.module, "run", "--config", str(self.config)],
                stderr=log,
                stdout=log,
                stdin=subprocess.DEVNULL,
                env=os.environ | self.environ,
            )

    async def logged(self, text: str) -> None:
        """Wait until the log holds a text."""
        with trio.fail_after(DEADLINE_S):
            while text not in self.log:  # noqa: ASYNC110 - another process writes it
                await trio.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def ended(self) -> int:
        assert self._process is not None
        with trio.fail_after(DEADLINE_S):
            return await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Scheduler(SchedulerClient):
    """A scheduler whose requests tests make one by one; `statuses` receives every report about a task."""

    def __init__(self, network: Network, assign_slice: Callable[[str, str], DataAssignment] | None = None) -> None:
        send, self.statuses = trio.open_memory_channel[ReportJobStatus](math.inf)
        super().__init__(network, assign_slice=assign_slice, on_status=lambda _, report: send.send_nowait(report))

    async def ask(self, resources: Resources = CAPACITY) -> Request:
        """Publish a request."""
        return await self.advertise(wanted(resources))

    async def lease(self, resources: Resources = CAPACITY, within_s: float = 1.0, class_: str = "train") -> Lease:
        """Advertise until a worker grants a lease; fail after the deadline."""
        with trio.fail_after(DEADLINE_S):
            return await self.hire(wanted(resources, class_), within_s=within_s)

    async def status(self) -> ReportJobStatus:
        """Wait for the next report."""
        with trio.fail_after(DEADLINE_S):
            return await self.statuses.receive()


def wanted(resources: Resources, class_: str = "train") -> Wanted:
    """A request for one worker with the tests' executor."""
    return Wanted(WorkerSpec(resources=resources, executor=[ExecutorDescriptor(class_=class_, name="test")]))


@dataclass
class Stage:
    """A worker's process and its scheduler."""

    node: NodeProcess
    scheduler: Scheduler


@asynccontextmanager
async def stage(
    pki: Pki, gateway: Network, executor: str, *, environ: Mapping[str, str] | None = None, **tables: Any
) -> AsyncIterator[Stage]:
    """Start a worker whose executor does one thing: run, finish or crash."""
    # Not pytest's directory: its name is too long for a path of a Unix socket.
    with TemporaryDirectory() as directory:
        node = NodeProcess(pki, Path(directory), direct_address(gateway), executor, **tables)
        node.environ |= environ or {}
        async with member(pki, "scheduler", gateway) as network:
            node.start()
            try:
                yield Stage(node, Scheduler(network))
            finally:
                node.close()


def processes_in(directory: Path) -> list[int]:
    """Return the processes whose command line names this directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if f"{directory}/".encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
