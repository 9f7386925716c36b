"""A machine on which a user enters commands, beside a gateway of its own."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hypha_devnet import certs
from support.waiting import until

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

    def shown(self, command: str) -> str:
        """Return what a command prints to a terminal, with colours."""
        ours, theirs = pty.openpty()
        with (
            os.fdopen(ours, "rb", buffering=0) as terminal,
            subprocess.Popen(
                command.split(), cwd=self.directory, env=ENVIRONMENT, stdout=theirs, stderr=subprocess.DEVNULL
            ),
        ):
            os.close(theirs)
            printed = b""
            with suppress(OSError):  # how Linux reports that the last program has closed the terminal
                while chunk := terminal.read(4096):
                    printed += chunk
        return printed.decode().replace("\r\n", "\n")

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        line = ("bash", "-euo", "pipefail", "-c", command)
        return subprocess.run(
            line, cwd=self.directory, env=ENVIRONMENT, capture_output=True, text=True, timeout=90, check=False
        )

    def _edit(self) -> None:
        path = self.directory / "worker.toml"
        text = path.read_text().replace("/ip4/203.0.113.50/tcp/4001", self._address)
        path.write_text(re.sub(r"^#exclude_cidr = .*$", "exclude_cidr = []", text, count=1, flags=re.MULTILINE))
