"""Run the operator as local processes with the chart's permissions, arguments and environment."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml

from chart.rendering import Manifest, one, render
from hypha_devnet.ports import free_port
from support.api_server import ApiServer
from support.waiting import until


@dataclass(frozen=True)
class OperatorProcess:
    """A running operator."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def metrics(self) -> str:
        return httpx.get(f"http://{self.address}/metrics", trust_env=False).raise_for_status().text

    def probe(self, path: str) -> tuple[int, str]:
        """Return status and text of a probe's page; the status is 0 while the operator does not listen."""
        try:
            answer = httpx.get(f"http://{self.address}{path}", trust_env=False)
        except httpx.TransportError as error:
            return 0, str(error)
        return answer.status_code, answer.text

    @property
    def is_ready(self) -> bool:
        return self.probe("/readyz")[0] == 200

    def end(self) -> int:
        """Stop it as the kubelet does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Release:
    """A release of the chart whose pods are replaced by processes on this machine.

    Args:
        api: the API server.
        values: the chart's values.
        home: the release's namespace; None for a new one.
        apply: whether to apply its account and roles, because nothing else has.

    Attributes:
        manifests: its objects.
        name: its name for other releases.
    """

    def __init__(self, api: ApiServer, values: Manifest, home: str | None = None, *, apply: bool = True) -> None:
        self.api, self._home = api, home or api.namespace()
        self.manifests = render(values=values, namespace=self._home)
        self.name = f"{self._home}/{one(self.manifests, 'Deployment')['metadata']['name']}"
        if apply:
            self.grant()
        account = one(self.manifests, "ServiceAccount")["metadata"]["name"]
        self._kubeconfig = api.service_account_kubeconfig(self._home, account)
        (self._container,) = one(self.manifests, "Deployment")["spec"]["template"]["spec"]["containers"]

    def _rights(self) -> str:
        rights = [m for m in self.manifests if m["apiVersion"].startswith("rbac.") or m["kind"] == "ServiceAccount"]
        return yaml.safe_dump_all(rights)

    def grant(self) -> None:
        """Apply its account and roles."""
        self.api.kubectl("apply", "--server-side", "-f-", stdin=self._rights())

    def revoke(self) -> None:
        """Delete its account and roles."""
        self.api.kubectl("delete", "--ignore-not-found", "--wait=false", "-f-", stdin=self._rights())

    def environment(self, replica: str = "operator-0") -> dict[str, str]:
        """Return the environment of a pod."""
        fixed = {variable["name"]: variable["value"] for variable in self._container["env"] if "value" in variable}
        return os.environ | fixed | {"HYPHA_POD_NAME": replica, "KUBECONFIG": str(self._kubeconfig)}

    def start(self, log: Path, replica: str = "operator-0", *, url: str | None = None) -> OperatorProcess:
        """Start a replica, which reaches the API server at its own URL or at another one."""
        port = free_port()
        environment = self.environment(replica)
        if url:
            kubeconfig = log.with_suffix(".kubeconfig")
            kubeconfig.write_text(self._kubeconfig.read_text().replace(self.api.url, url))
            environment["KUBECONFIG"] = str(kubeconfig)
        command = [*_program(self._container), f"--port={port}"]
        with log.open("ab") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        return OperatorProcess(process, f"127.0.0.1:{port}", log)

    def uninstall(self) -> str:
        """Do what the pre-delete hook of the chart does; return its output."""
        (container,) = one(self.manifests, "Job")["spec"]["template"]["spec"]["containers"]
        done = subprocess.run(
            _program(container), env=self.environment(), capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr


def _program(container: Manifest) -> list[str]:
    return [str(Path(sys.executable).parent / container["command"][0]), *container["args"]]


@contextmanager
def running(api: ApiServer, values: Manifest, directory: Path) -> Iterator[OperatorProcess]:
    """Install a release without its Deployment, and run the Deployment's command as a process."""
    operator = Release(api, values).start(directory / "operator.log")
    try:
        until(lambda: operator.is_ready or operator.process.poll() is not None, timeout_s=60)
        assert operator.process.poll() is None, operator.log.read_text()
        yield operator
    finally:
        operator.end()
