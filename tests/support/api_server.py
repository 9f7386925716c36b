"""A real API server (etcd and kube-apiserver on loopback, no root) for tests, shared by all workers of a test run.

Fixtures:

- `api_server` -> `ApiServer`: etcd and the API server alone. Nothing acts on objects: no garbage is collected, no Job
  gets pods, namespaces have no default ServiceAccount and are never emptied. RBAC is enforced, TokenRequest and
  TokenReview work.
- `namespace` -> `str`: a new namespace there.
- `control_plane` -> `ApiServer`: another one with the controller manager and the scheduler, also one per test run;
  `control_plane.namespace()` makes namespaces; `e2e.cluster.kwok` adds nodes that simulate their pods.
- `private_api_server` -> `PrivateApiServer`: one for a single test, which may stop, start, freeze and kill its parts:
  `private_api_server.processes.stop("kube-apiserver")`, `.start("kube-apiserver")`, `.signal("etcd", signal.SIGSTOP)`.

An `ApiServer` has `url`, `ca`, `kubeconfig` (administrator), `client()` (httpx), `kubectl(...)`, `namespace()`,
`user_kubeconfig(user, groups)`, `token(namespace, service_account, audiences)` and
`service_account_kubeconfig(namespace, name)`. The kubeconfigs are files that any client reads.
"""

import fcntl
import os
import select
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from e2e.cluster.control_plane import ControlPlane, reserved_ports
from e2e.cluster.pki import Authority, write_kubeconfig
from e2e.cluster.processes import Processes
from e2e.cluster.tools import ROOT, tool

READY_TIMEOUT_S = 90


@dataclass(frozen=True)
class ApiServer:
    """A running API server; `directory` is its control plane's."""

    directory: Path
    url: str

    @property
    def ca(self) -> Path:
        return self.directory / "pki" / "ca.crt"

    @property
    def kubeconfig(self) -> Path:
        return self.directory / "admin.kubeconfig"

    def client(self, token: str | None = None) -> httpx.Client:
        """Return a client with the rights of the administrator, or of the token's user."""
        context = ssl.create_default_context(cafile=str(self.ca))
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if not token:
            context.load_cert_chain(self.directory / "pki" / "admin.crt", self.directory / "pki" / "admin.key")
        return httpx.Client(base_url=self.url, verify=context, headers=headers, timeout=30, trust_env=False)

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        """Run kubectl as the administrator; return its output."""
        command = [tool("kubectl"), f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def wait_for_definitions(self) -> None:
        """Wait until the kinds of all definitions are served. A definition that is new has no conditions at first."""
        established = '--for=jsonpath={.status.conditions[?(@.type=="Established")].status}=True'
        self.kubectl("wait", established, "crd", "--all", "--timeout=30s")

    def namespace(self, **labels: str) -> str:
        """Make a namespace and return its name."""
        name = f"test-{uuid4().hex[:12]}"
        self.post("/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        return name

    def user_kubeconfig(self, user: str, groups: Sequence[str] = ()) -> Path:
        """Return a kubeconfig for a user, who has only the rights that RBAC grants."""
        path = self.directory / f"user-{uuid4().hex}.kubeconfig"
        return Authority(self.directory / "pki").kubeconfig(path, self.url, user, tuple(groups))

    def token(self, namespace: str, service_account: str, audiences: Sequence[str] = ()) -> str:
        """Return a token of a service account, and create the account if it does not exist."""
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        with self.client() as client:
            client.post(accounts, json={"metadata": {"name": service_account}})
        request = {"spec": {"audiences": list(audiences)}}
        return str(self.post(f"{accounts}/{service_account}/token", request)["status"]["token"])

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """Return a kubeconfig for a service account, and create the account if it does not exist."""
        path = self.directory / f"account-{uuid4().hex}.kubeconfig"
        return write_kubeconfig(path, self.url, self.ca, {"token": self.token(namespace, name)}, namespace)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Create an object as the administrator."""
        with self.client() as client:
            answer = client.post(path, json=body)
        assert answer.is_success, answer.text
        return dict(answer.json())


class PrivateApiServer:
    """An API server whose processes one test controls."""

    def __init__(self, directory: Path, *, controllers: bool = False, audit_policy: str = "") -> None:
        self._stack = ExitStack()
        plane = ControlPlane(directory, ports=self._stack.enter_context(reserved_ports()), controllers=controllers)
        self.audit_log = directory / "audit.log"
        programs = plane.programs()
        if audit_policy:
            (policy := directory / "audit-policy.yaml").write_text(audit_policy)
            flags = (f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}")
            programs = [
                replace(program, command=(*program.command, *flags)) if program.name == "kube-apiserver" else program
                for program in programs
            ]
        self.processes = Processes(directory / "run", programs, die_with_parent=True)
        self.api = ApiServer(directory, plane.url)
        assert plane.kubeconfig == self.api.kubeconfig

    def __enter__(self) -> "PrivateApiServer":
        self.processes.up()
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(self.processes.programs):
            self.processes.stop(name, grace_s=0)
        shutil.rmtree(self.api.directory / "etcd")
        self._stack.close()


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> ApiServer:
    """The API server of this test run. It has no controllers."""
    return _shared("api-server", tmp_path_factory)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> ApiServer:
    """The API server with controllers and scheduler of this test run."""
    return _shared("control-plane", tmp_path_factory)


@pytest.fixture
def namespace(api_server: ApiServer) -> str:
    """A new namespace."""
    return api_server.namespace()


@pytest.fixture
def private_api_server(tmp_path: Path) -> Iterator[PrivateApiServer]:
    """An API server that the test may kill and freeze."""
    with PrivateApiServer(tmp_path / "api-server") as server:
        yield server


def _shared(name: str, factory: pytest.TempPathFactory) -> ApiServer:
    """Return the API server of a name. The first worker that needs it starts it, and it ends with the test run."""
    worker = "PYTEST_XDIST_WORKER" in os.environ
    run = factory.getbasetemp().parent if worker else factory.getbasetemp()
    owner = os.getppid() if worker else os.getpid()
    directory = run / name
    with (run / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "url").exists():
            _start_keeper(directory, owner)
    return ApiServer(directory, (directory / "url").read_text())


def _start_keeper(directory: Path, owner: int) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    command = [sys.executable, "-m", "support.api_server", str(directory), str(owner)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    with (directory / "keeper.log").open("wb") as log:
        keeper = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not (directory / "url").exists():
        if keeper.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"no API server for the tests:\n{(directory / 'keeper.log').read_text()}", pytrace=False)
        time.sleep(0.02)


def keep(directory: Path, owner: int) -> None:
    """Run an API server until the process that owns it ends, however it ends."""
    ending = os.pidfd_open(owner)
    with PrivateApiServer(directory, controllers=directory.name == "control-plane") as server:
        (directory / ".url").write_text(server.api.url)
        (directory / ".url").rename(directory / "url")
        select.select([ending], [], [])


if __name__ == "__main__":
    keep(Path(sys.argv[1]), int(sys.argv[2]))
