"""The operator as a process on this machine, with the chart's service account, arguments and environment."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.nodes import BenchmarkError
from e2e.cluster.control_plane import ControlPlane
from e2e.cluster.pki import write_kubeconfig
from e2e.cluster.processes import Processes, Program
from e2e.cluster.tools import ROOT, tool
from hypha_devnet.ports import free_port

NAMESPACE = "hypha-system"
_RELEASE = "hypha"
_ACCOUNT = "hypha-operator"
USER = f"system:serviceaccount:{NAMESPACE}:{_ACCOUNT}"
"""The operator's user at the API server."""
_TOKEN_S = 86400

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Operator:
    """A running operator."""

    pid: int
    address: str

    def metrics(self, name: str) -> float:
        """Return the sum of all samples of a metric."""
        return sample_sum(httpx.get(f"http://{self.address}/metrics", trust_env=False, timeout=60).text, name)

    def peak_memory_bytes(self) -> int:
        """Return the peak resident memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))

    def processor_s(self) -> float:
        """Return the processor time it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sample_sum(page: str, name: str) -> float:
    """Return the sum of all samples of a metric on a page for Prometheus.

    A complete parser would take a sixth of a core, because the pages are read twice a second.
    """
    samples = (line for line in page.splitlines() if line.startswith((f"{name} ", f"{name}{{")))
    return sum(float(sample.rpartition(" ")[2]) for sample in samples)


class Release:
    """Install the chart on a running control plane. A process here replaces its Deployment.

    Args:
        plane: the control plane.
        flags: further flags for Helm.
    """

    def __init__(self, plane: ControlPlane, *flags: str) -> None:
        self._plane = plane
        command = [tool("helm"), "template", _RELEASE, str(ROOT / "charts" / "hypha-worker"), "--namespace", NAMESPACE]
        rendered = subprocess.run(
            [*command, f"--set=serviceAccount.name={_ACCOUNT}", *flags], capture_output=True, text=True, check=True
        ).stdout
        manifests = [manifest for manifest in yaml.safe_load_all(rendered) if manifest]
        (deployment,) = (manifest for manifest in manifests if manifest["kind"] == "Deployment")
        (self._container,) = deployment["spec"]["template"]["spec"]["containers"]
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        needed = [m for m in manifests if m["apiVersion"].startswith("rbac.") or m["kind"] == "ServiceAccount"]
        self._kubectl("apply", "--server-side", "-f-", stdin=yaml.safe_dump_all([namespace, *needed]))
        self._kubectl("apply", "--server-side", "-f", str(ROOT / "crds"))
        established = '--for=jsonpath={.status.conditions[?(@.type=="Established")].status}=True'
        self._kubectl("wait", established, "--timeout=30s", "crd", "--all")

    @contextmanager
    def operator(self, directory: Path) -> Iterator[Operator]:
        """Run the operator; its log goes to the directory. StartError if it does not start."""
        kubeconfig = directory / "operator.kubeconfig"
        write_kubeconfig(kubeconfig, self._plane.url, self._plane.pki.ca, {"token": self._token()}, NAMESPACE)
        port = free_port()
        environment = {
            variable["name"]: variable["value"] for variable in self._container["env"] if "value" in variable
        }
        environment["KUBECONFIG"] = str(kubeconfig)
        program = str(Path(sys.executable).parent / self._container["command"][0])
        variables = (f"{name}={value}" for name, value in environment.items())
        command = ("env", *variables, program, *self._container["args"], f"--port={port}")
        address = f"127.0.0.1:{port}"
        operator = Program("operator", command, lambda: _leads(address))
        processes = Processes(directory, [operator], die_with_parent=True)
        processes.up()
        try:
            yield Operator(processes.pid("operator") or 0, address)
        finally:
            processes.down()

    def _token(self) -> str:
        path = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{_ACCOUNT}/token"
        with self._plane.client() as client:
            answer = client.post(path, json={"spec": {"expirationSeconds": _TOKEN_S}})
        return str(answer.raise_for_status().json()["status"]["token"])

    def _kubectl(self, *arguments: str, stdin: str = "") -> None:
        command = [tool("kubectl"), f"--kubeconfig={self._plane.kubeconfig}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchmarkError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")


def _leads(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/readyz", trust_env=False).text == "leads"
    except httpx.TransportError:
        return False


def until(condition: Callable[[], object], what: str, timeout_s: float, every_s: float = 0.1) -> None:
    """Wait for something; BenchmarkError if it takes too long."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise BenchmarkError(f"not within {timeout_s:g} s: {what}")
        time.sleep(every_s)


def calm_since(is_calm: Callable[[], bool], calm_s: float, timeout_s: float) -> float:
    """Wait until something has been calm for a while; return the monotonic time since which it has."""
    since = time.monotonic()

    def calm() -> bool:
        nonlocal since
        if not is_calm():
            since = time.monotonic()
        return time.monotonic() - since >= calm_s

    until(calm, "all is calm", timeout_s, every_s=0.5)
    return since
