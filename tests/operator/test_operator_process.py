"""Faults of the operator's process, which has the chart's permissions and is restarted as by the kubelet."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from chart.operator_process import grant
from chart.rendering import Manifest, one, render
from e2e.cluster.tools import ROOT
from hypha_operator.machinery.kinds import CONFIG_MAP, WORKER
from support.api_server import ApiServer, PrivateApiServer
from support.people import User
from support.resources import install_definitions, worker_manifest


class Supervised:
    """An operator of one namespace that is restarted whenever it ends."""

    def __init__(self, api: ApiServer, namespace: str, directory: Path) -> None:
        self._home = api.namespace()
        self.manifests = render(values={"watchNamespace": namespace}, namespace=self._home)
        self._api, self._namespace, self._log = api, namespace, directory / "operator.log"
        grant(api, self.manifests)
        account = one(self.manifests, "ServiceAccount")["metadata"]["name"]
        (container,) = one(self.manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
        chosen = {variable["name"]: variable["value"] for variable in container["env"]}
        kubeconfig = api.service_account_kubeconfig(self._home, account)
        self._environment = os.environ | chosen | {"KUBECONFIG": str(kubeconfig)}
        self.starts = 0
        self._start()

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        program = Path(sys.executable).parent / "hypha-operator"
        command = [str(program), "run", f"--namespace={self._namespace}", f"--port={port}"]
        self.starts += 1
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def until(self, condition: Callable[[], object], timeout_s: float = 90) -> None:
        """Keep it running until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s:\n{self._log.read_text()[-4000:]}"
            if self._process.poll() is not None:
                self._start()
            time.sleep(0.1)

    def end(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            assert self._process.wait(30) == 0, self._log.read_text()[-4000:]
        finally:
            self._process.kill()
            self._process.wait()


@contextmanager
def supervised(api: ApiServer, namespace: str, directory: Path) -> Iterator[Supervised]:
    operator = Supervised(api, namespace, directory)
    try:
        yield operator
    except BaseException:
        operator.kill()
        raise
    operator.end()


def config(user: User, name: str = "gpu") -> str:
    manifest = user.get({"apiVersion": "v1", "kind": CONFIG_MAP.name, "metadata": {"name": f"{name}-controller"}})
    return str(manifest["data"]["worker.toml"]) if manifest else ""


def reason(user: User, worker: Manifest) -> str:
    seen = user.get(worker)
    conditions = ((seen or {}).get("status") or {}).get("conditions") or []
    return next((condition["reason"] for condition in conditions if condition["type"] == "Ready"), "")


def test_an_operator_without_permissions_loses_nothing_and_continues_once_it_has_them(
    served: ApiServer, namespace: str, user: User, tmp_path: Path
):
    with supervised(served, namespace, tmp_path) as operator:
        worker = user.apply(worker_manifest(namespace))
        operator.until(lambda: reason(user, worker) == "Starting")
        binding = one([m for m in operator.manifests if m["kind"] == "RoleBinding"], "RoleBinding")["metadata"]["name"]
        served.kubectl("delete", "rolebinding", binding, f"-n{namespace}")
        user.apply(worker_manifest(namespace, offer={"price": 7, "floor": 7}))
        user.apply(worker_manifest(namespace, "second"))
        time.sleep(3)  # in which it tries, and must not
        assert "price = 7" not in config(user)
        grant(served, operator.manifests)
        operator.until(lambda: "price = 7" in config(user))
        operator.until(lambda: "price = 100" in config(user, "second"))


def test_an_operator_killed_at_random_moments_completes_every_worker(
    served: ApiServer, namespace: str, user: User, tmp_path: Path
):
    names = [f"worker-{number}" for number in range(12)]
    moments = random.Random(11)
    with supervised(served, namespace, tmp_path) as operator:
        for name in names:
            user.apply(worker_manifest(namespace, name))
        for _ in range(4):
            known = sum(bool(config(user, name)) for name in names)
            operator.until(lambda known=known: sum(bool(config(user, n)) for n in names) > known or known == len(names))
            time.sleep(moments.uniform(0, 0.3))
            operator.kill()
        operator.until(lambda: all(reason(user, worker_manifest(namespace, name)) == "Starting" for name in names))
        for name in names:
            user.delete(worker_manifest(namespace, name))
        operator.until(lambda: not any(user.get(worker_manifest(namespace, name)) for name in names))
    bindings = served.kubectl("get", "clusterrolebindings", "-oname")
    assert f"hypha-{namespace}-worker-" not in bindings


def test_an_operator_waits_for_late_definitions_and_survives_their_upgrade(
    private_api_server: PrivateApiServer, tmp_path: Path
):
    api = private_api_server.api
    namespace = api.namespace()
    user = User(api, namespace)
    with supervised(api, namespace, tmp_path) as operator:  # which waits for them
        time.sleep(2)
        install_definitions(api)
        worker = user.apply(worker_manifest(namespace))
        operator.until(lambda: reason(user, worker) == "Starting")
        upgraded = yaml.safe_load((ROOT / "crds" / f"{WORKER.plural}.yaml").read_text())
        spec = upgraded["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        spec["properties"]["novelty"] = {"type": "string"}
        api.kubectl("apply", "--server-side", "--force-conflicts", "-f-", stdin=yaml.safe_dump(upgraded))
        user.apply(worker_manifest(namespace, offer={"price": 7, "floor": 7}))
        operator.until(lambda: "price = 7" in config(user))


@pytest.mark.parametrize("fault", ["stopped", "frozen"])
def test_an_operator_waits_for_an_unavailable_api_server(
    private_api_server: PrivateApiServer, tmp_path: Path, fault: str
):
    api, processes = private_api_server.api, private_api_server.processes
    install_definitions(api)
    namespace = api.namespace()
    user = User(api, namespace)
    with supervised(api, namespace, tmp_path) as operator:
        worker = user.apply(worker_manifest(namespace))
        operator.until(lambda: reason(user, worker) == "Starting")
        if fault == "stopped":
            processes.stop("kube-apiserver")
            time.sleep(10)
            processes.start("kube-apiserver")
        else:
            processes.signal("kube-apiserver", signal.SIGSTOP)
            time.sleep(20)
            processes.signal("kube-apiserver", signal.SIGCONT)
        user.apply(worker_manifest(namespace, offer={"price": 7, "floor": 7}))
        user.apply(worker_manifest(namespace, "second"))
        operator.until(lambda: "price = 7" in config(user) and config(user, "second"))
