"""Run the operator as a local process with the chart's permissions, arguments and environment."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from chart.rendering import Manifest, one, render
from support.api_server import ApiServer
from support.waiting import until


@dataclass(frozen=True)
class OperatorProcess:
    """A running operator."""

    address: str
    log: Path

    def metrics(self) -> str:
        return httpx.get(f"http://{self.address}/metrics", trust_env=False).raise_for_status().text

    @property
    def is_healthy(self) -> bool:
        try:
            return httpx.get(f"http://{self.address}/healthz", trust_env=False).is_success
        except httpx.TransportError:
            return False


def grant(api: ApiServer, manifests: list[Manifest]) -> None:
    """Apply a release's account and roles."""
    rbac = [m for m in manifests if m["apiVersion"].startswith("rbac.") or m["kind"] == "ServiceAccount"]
    api.kubectl("apply", "--server-side", "-f-", stdin=yaml.safe_dump_all(rbac))


@contextmanager
def running(api: ApiServer, values: Manifest, directory: Path) -> Iterator[OperatorProcess]:
    """Install a release without its Deployment, and run the Deployment's command as a process."""
    home = api.namespace()
    manifests = render(values=values, namespace=home)
    grant(api, manifests)
    (container,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    account = api.service_account_kubeconfig(home, one(manifests, "ServiceAccount")["metadata"]["name"])
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    program = Path(sys.executable).parent / container["command"][0]
    command = [str(program), *container["args"], f"--port={port}"]
    operator = OperatorProcess(f"127.0.0.1:{port}", directory / "operator.log")
    with operator.log.open("wb") as log:
        process = subprocess.Popen(
            command, env=os.environ | environment | {"KUBECONFIG": str(account)}, stdout=log, stderr=log
        )
    try:
        until(lambda: operator.is_healthy or process.poll() is not None, timeout_s=60)
        assert process.poll() is None, operator.log.read_text()
        yield operator
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
