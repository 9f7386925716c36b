"""Faults of the operator's process, which has the chart's permissions and is restarted as by the kubelet."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from chart.operator_process import Release
from chart.rendering import Manifest, one
from e2e.cluster.tools import ROOT
from hypha_contracts.kinds import CONFIG_MAP, WORKER
from support.api_server import ApiServer, PrivateApiServer
from support.collector import http_collector
from support.people import User
from support.resources import install_definitions, worker_manifest


class Supervised:
    """An operator of one namespace that is restarted whenever it ends."""

    def __init__(self, api: ApiServer, namespace: str, directory: Path) -> None:
        self.release = Release(api, {"watchNamespace": namespace})
        self._log = directory / "operator.log"
        self.starts = 0
        self._start()

    def _start(self) -> None:
        self.starts += 1
        self.process = self.release.start(self._log)

    def kill(self) -> None:
        self.process.kill()

    def until(self, condition: Callable[[], object], timeout_s: float = 90) -> None:
        """Keep it running until a condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout_s:g} s:\n{self._log.read_text()[-4000:]}"
            if self.process.process.poll() is not None:
                self._start()
            time.sleep(0.1)

    def end(self) -> None:
        assert self.process.end() == 0, self._log.read_text()[-4000:]


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
        binding = one([m for m in operator.release.manifests if m["kind"] == "RoleBinding"], "RoleBinding")["metadata"][
            "name"
        ]
        served.kubectl("delete", "rolebinding", binding, f"-n{namespace}")
        user.apply(worker_manifest(namespace, offer={"price": 7, "floor": 7}))
        user.apply(worker_manifest(namespace, "second"))
        time.sleep(3)  # in which it tries, and must not
        assert "price = 7" not in config(user)
        operator.release.grant()
        operator.until(lambda: "price = 7" in config(user))
        operator.until(lambda: "price = 100" in config(user, "second"))


def test_an_operator_sends_its_metrics_and_its_log_to_a_collector(
    served: ApiServer, namespace: str, user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with http_collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "500")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "unknown")
        with supervised(served, namespace, tmp_path) as operator:
            user.apply(worker_manifest(namespace))
            operator.until(lambda: collector.value("hypha.operator.objects", kind="HyphaWorker") == 1)
            operator.until(lambda: collector.value("hypha.operator.reconcile", outcome="done"))
            assert operator.starts == 1
        assert any(record.body.string_value.startswith("serving") for record in collector.logs)
        assert {resource["service.name"] for resource in collector.resources} == {"hypha-operator"}


def test_an_operator_killed_at_random_moments_completes_every_worker(
    served: ApiServer, namespace: str, user: User, tmp_path: Path
):
    names = [f"worker-{number}" for number in range(12)]
    moments = random.Random(11)
    with supervised(served, namespace, tmp_path) as operator:
        for first in range(0, len(names), 3):
            few = names[first : first + 3]
            for name in few:
                user.apply(worker_manifest(namespace, name))
            operator.until(lambda few=few: any(config(user, name) for name in few))
            time.sleep(moments.uniform(0, 0.3))
            operator.kill()
        operator.until(lambda: operator.process.is_ready)
        operator.until(lambda: all(reason(user, worker_manifest(namespace, name)) == "Starting" for name in names))
        for name in names:
            user.delete(worker_manifest(namespace, name))
        operator.until(lambda: not any(user.get(worker_manifest(namespace, name)) for name in names))


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
