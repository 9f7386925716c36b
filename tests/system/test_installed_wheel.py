"""The wheel in an empty environment: a node that joins a network and runs a job, without torch."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest
import trio

from hypha_messages.progress import PROGRESS, ProgressResponse, ReportProgress
from images.contexts import ROOT
from images.dist import REQUIREMENTS
from support.certs import Pki
from support.jobs import train_spec
from support.networks import DEADLINE_S, node
from support.node_process import NodeProcess, Scheduler

pytestmark = [pytest.mark.alone, pytest.mark.registry, pytest.mark.anyio, pytest.mark.timeout(400)]

MAX_MB = 310
"""85 of these are py-libp2p and what only it requires."""
EXECUTOR = """
from hypha_executor.arguments import executor_parser
from hypha_executor.bridge import Bridge
from hypha_executor.progress import Progress
options = executor_parser("executor.py").parse_known_args()[0]  # all are in the environment
Progress(Bridge(options.socket, options.work_dir)).batch_trained(samples=7)
"""


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with TemporaryDirectory() as directory:  # pytest's is too long for a path of a Unix socket
        yield Path(directory)


@dataclass(frozen=True)
class Installed:
    """An environment in which only the wheel and its requirements were installed, and how long that took."""

    directory: Path
    seconds: float

    @property
    def python(self) -> Path:
        return self.directory / "bin/python"

    @property
    def size_mb(self) -> int:
        return int(subprocess.check_output(["du", "-sm", self.directory]).split()[0])


@pytest.fixture(scope="module")
def installed(directory: Path) -> Installed:
    subprocess.run([sys.executable, "-m", "images.dist", directory / "dist"], cwd=ROOT, check=True)
    [wheel] = (directory / "dist").glob("*.whl")
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "venv", directory / "venv"], check=True)
    pip = [directory / "venv/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "-r", directory / "dist" / REQUIREMENTS], check=True)
    subprocess.run([*pip, wheel], check=True)
    return Installed(directory / "venv", time.monotonic() - started)


def test_the_environment_is_small_and_has_no_torch(installed: Installed, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\ninstalled in {installed.seconds:.0f} s, {installed.size_mb} MB with pip")
    assert installed.size_mb <= MAX_MB
    python = installed.python
    programs = "import hypha_worker.node, hypha_bridge.server, hypha_parameter_server.server, sys"
    subprocess.run([python, "-c", f"{programs}; assert 'torch' not in sys.modules"], check=True)
    assert subprocess.run([python, "-c", "import torch"], stderr=subprocess.DEVNULL, check=False).returncode == 1


@pytest.fixture
def gateway(directory: Path) -> Iterator[tuple[Pki, str]]:
    """The certificates and the address of `hypha-devnet gateway`, which runs in the environment of the tests."""
    pki = Pki()
    files = pki.files("gateway", directory)
    paths = {"cert_pem": files.cert, "key_pem": files.key, "trust_pem": files.trust}
    lines = [f"{key} = {json.dumps(str(path))}" for key, path in paths.items()]
    config = directory / "gateway.toml"
    config.write_text("\n".join([*lines, 'listen_addresses = ["/ip4/127.0.0.1/tcp/0"]', "exclude_cidr = []"]))
    command = [sys.executable, "-m", "hypha_devnet", "gateway", "--config", str(config), "--events"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield pki, next(json.loads(line)["addresses"][0] for line in process.stdout)
        process.terminate()


async def test_the_installed_node_joins_a_gateway_and_runs_a_job(
    directory: Path, installed: Installed, gateway: tuple[Pki, str], capsys: pytest.CaptureFixture[str]
) -> None:
    pki, address = gateway
    worker = NodeProcess(pki, directory, address, "", python=str(installed.python))
    (directory / "executor.py").write_text(EXECUTOR)
    reports: list[ReportProgress] = []

    async def record(_: str, report: ReportProgress) -> ProgressResponse:
        reports.append(report)
        return ProgressResponse(type="Ok")

    async with node(pki, "scheduler", gateways=(address,)) as network:
        network.handle(PROGRESS, record)
        with trio.fail_after(DEADLINE_S):
            await network.wait_ready()
        scheduler, started = Scheduler(network), time.monotonic()
        worker.start()
        try:
            lease = await scheduler.lease()
            task_id = uuid4()
            assert await scheduler.dispatch(lease, train_spec(), task_id)
            status = await scheduler.status()
        finally:
            worker.close()
    assert (status.task_id, status.status.type) == (task_id, "Finished"), worker.log
    assert len(reports) == 1
    with capsys.disabled():
        print(f"\nthe job ended {time.monotonic() - started:.1f} s after the node's start")
