"""The commands of the pages for one machine, run as they are written, beside a gateway of their own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from documentation.commands import Block, as_written
from documentation.pages import ROOT
from hypha_devnet import certs
from support.cluster_node import free_port
from support.waiting import until

HERE = "tests/documentation/test_commands_on_a_machine.py"
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
INIT = "hypha-worker init --output worker.toml"


@contextmanager
def running(command: str, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A command that runs until SIGTERM, which must end it with success."""
    with subprocess.Popen(
        command.split(), cwd=directory, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()


class Machine:
    """A directory with certificates, in which a user enters commands. The gateway listens on loopback."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self._stack = stack
        certs.make(directory, "Acme", ["gateway", "worker"])
        keys = "".join(f'{kind}_pem = "gateway-{kind}.pem"\n' for kind in ("cert", "key", "trust"))
        listen = 'listen_addresses = ["/ip4/127.0.0.1/tcp/0"]\nexclude_cidr = []\n'
        (directory / "gateway.toml").write_text(keys + listen)
        gateway = stack.enter_context(running("hypha-devnet gateway --config gateway.toml --events", directory))
        assert gateway.stdout
        self._address = json.loads(gateway.stdout.readline())["addresses"][0]

    def enter(self, command: str) -> None:
        """Run a command as a user does, who edits the configuration after `init` and leaves the node running."""
        if command.startswith("hypha-worker run"):
            self._stack.enter_context(running(command, self.directory))
            until(lambda: self._run("hypha-worker status --config worker.toml").returncode == 0)
            return
        done = self._run(command)
        codes = (0, 1) if " doctor " in command else (0,)  # 1 is a finding, such as too little memory
        assert done.returncode in codes, done.stdout + done.stderr
        assert done.stdout
        if command == INIT:
            self._edit()

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        line = ("bash", "-euo", "pipefail", "-c", command)
        return subprocess.run(
            line, cwd=self.directory, env=ENVIRONMENT, capture_output=True, text=True, timeout=90, check=False
        )

    def _edit(self) -> None:
        path = self.directory / "worker.toml"
        text = path.read_text().replace("/ip4/203.0.113.50/tcp/4001", self._address)
        path.write_text(re.sub(r"^#exclude_cidr = .*$", "exclude_cidr = []", text, count=1, flags=re.MULTILINE))


@pytest.fixture
def machine() -> Iterator[Machine]:
    with TemporaryDirectory() as directory, ExitStack() as stack:  # pytest's is too long for a path of a Unix socket
        yield Machine(Path(directory), stack)


@pytest.mark.parametrize(
    "block",
    {  # pages may have the same block
        block.text: block
        for block in as_written(f"{HERE}::test_a_node_is_set_up_examined_and_run_by_the_commands_of_a_page")
    }.values(),
    ids=lambda block: block.place,
)
def test_a_node_is_set_up_examined_and_run_by_the_commands_of_a_page(block: Block, machine: Machine) -> None:
    commands = block.commands()
    for command in commands if INIT in commands else [INIT, *commands]:
        machine.enter(command)


def test_an_executor_is_tried_by_the_commands_of_the_page() -> None:
    (block,) = as_written(f"{HERE}::test_an_executor_is_tried_by_the_commands_of_the_page")
    with TemporaryDirectory() as directory:
        port = free_port()
        shutil.copytree(ROOT / "examples", Path(directory, "examples"))
        for path in Path(directory, "examples", "network").glob("*.toml"):
            path.write_text(path.read_text().replace("/tcp/4444", f"/tcp/{port}"))
        line = ("bash", "-euo", "pipefail", "-c", f"{block.text}\nwait || true")
        with subprocess.Popen(
            line, cwd=directory, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as entered:
            try:
                output, _ = entered.communicate(timeout=110)
            finally:
                with suppress(ProcessLookupError):  # the nodes outlive a command that fails
                    os.killpg(entered.pid, signal.SIGKILL)
        assert entered.returncode == 0, output
        assert "\n0.safetensors\n1.safetensors\n2.safetensors\n3.safetensors\n" in output
        assert '"slices": 4, "samples": 12' in output
