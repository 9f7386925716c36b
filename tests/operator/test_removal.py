"""Definitions, namespaces and the release are removed in random orders, on a real control plane. Nothing is left.

REMOVAL_ORDERS (1) says how many orders to try, and REMOVAL_SEED (1) with which one to begin.
"""

import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from chart.operator_process import OperatorProcess, Release
from chart.rendering import Manifest
from documentation.commands import as_written
from e2e.cluster.tools import ROOT, tool
from support.api_server import ApiServer, PrivateApiServer
from support.resources import install_definitions, job_manifest, worker_manifest
from support.waiting import until

ORDERS = int(os.environ.get("REMOVAL_ORDERS", "1"))
SEED = int(os.environ.get("REMOVAL_SEED", "1"))
MAX_S = 120
STUCK_S = 240
"""The namespace controller repeats the deletion of a namespace with pauses as long as the grace of its pods."""
DOCUMENTED = (
    "tests/operator/test_removal.py::test_where_the_operator_went_first_with_jobs_running_the_documented_line_clears_it"
)
GROUP = "/apis/hypha.space/v1alpha1"
DEFINITIONS = ("hyphaworkers.hypha.space", "hyphajobs.hypha.space")
KINDS = (
    "jobs,pods,deployments,configmaps,services,serviceaccounts,roles,rolebindings,networkpolicies,poddisruptionbudgets"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A control plane whose definitions these tests remove."""
    with PrivateApiServer(tmp_path_factory.mktemp("plane"), controllers=True) as private:
        yield private.api


class Installation:
    """A release with an operator, and namespaces with one worker whose job runs and one that is idle."""

    def __init__(self, api: ApiServer, directory: Path, *, cluster: bool) -> None:
        install_definitions(api)
        self.api, self.home = api, api.namespace()
        self.namespaces = [api.namespace() for _ in range(2 if cluster else 1)]
        self.release = Release(api, {} if cluster else {"watchNamespace": self.namespaces[0]}, self.home)
        self._await_collector()
        self._log, self._stopped = directory / f"{self.home}.log", threading.Event()
        self.operator = self._start()
        threading.Thread(target=self._keep_running, daemon=True).start()
        until(lambda: self.operator.probe("/readyz") == (200, "leads"), timeout_s=60)
        for namespace in self.namespaces:
            busy, _ = (self.create("hyphaworkers", worker_manifest(namespace, name)) for name in ("busy", "idle"))
            self.create("hyphajobs", job_manifest(namespace, busy))
            until(lambda namespace=namespace: "pod/" in api.kubectl("get", "pods", "-oname", f"-n{namespace}"))  # type: ignore[misc]
            until(lambda namespace=namespace: self.finalizers(namespace, "busy"))  # type: ignore[misc]
            assert self.finalizers(namespace, "idle") == ""

    def _await_collector(self) -> None:
        """Wait until the garbage collector knows the definitions, which it looks for every 30 s."""
        owner = self.create("hyphaworkers", worker_manifest(self.home, "owner"))
        reference = {"apiVersion": "hypha.space/v1alpha1", "kind": "HyphaWorker", "name": "owner"}
        metadata = {"name": "owned", "ownerReferences": [reference | {"uid": owner["metadata"]["uid"]}]}
        self.api.post(f"/api/v1/namespaces/{self.home}/configmaps", {"metadata": metadata})
        delete(self.api, "hyphaworker", "owner", f"-n{self.home}")
        until(lambda: "owned" not in self.api.kubectl("get", "configmaps", f"-n{self.home}", "-oname"), timeout_s=90)

    def _start(self) -> OperatorProcess:
        return self.release.start(self._log)

    def _keep_running(self) -> None:
        """Restart the operator when it ends, as the kubelet does."""
        while not self._stopped.wait(0.2):
            if self.operator.process.poll() is not None:
                self.operator = self._start()

    def create(self, plural: str, manifest: Manifest) -> Manifest:
        return self.api.post(f"{GROUP}/namespaces/{manifest['metadata']['namespace']}/{plural}", manifest)

    def finalizers(self, namespace: str, worker: str) -> str:
        return self.api.kubectl("get", "hyphaworker", worker, f"-n{namespace}", "-ojsonpath={.metadata.finalizers}")

    def stop(self, *, hook: bool) -> None:
        """Uninstall the release."""
        if hook:
            self.release.uninstall()
        self._stopped.set()
        time.sleep(0.3)
        self.operator.end() if hook else self.operator.kill()
        self.release.revoke()

    def left(self) -> list[str]:
        """Return what is left of everything."""
        named = ["namespaces", "crds", "clusterroles", "clusterrolebindings"]
        names = self.api.kubectl("get", ",".join(named), "-oname").split()
        ours = (*self.namespaces, *DEFINITIONS, self.home)
        found = [name for name in names if any(name.endswith(own) or f"/{own}" in name for own in ours)]
        leases = self.api.kubectl("get", "leases", "-A", "-oname").split()
        labelled = self.api.kubectl("get", KINDS, "-A", "-lhypha.space/worker", "-oname").split()
        return [*found, *(lease for lease in leases if "hypha" in lease), *labelled]


@contextmanager
def nodes(api: ApiServer) -> Iterator[None]:
    """Act as the nodes: report the ends of cancelled jobs."""
    stopped = threading.Event()
    reported = {"type": "Reported", "status": "True", "reason": "EndReported", "message": ""}
    conditions = [reported | {"lastTransitionTime": "2026-01-01T00:00:00Z"}]

    def report() -> None:
        with api.client() as client:
            while not stopped.wait(0.2):
                with suppress(httpx.HTTPError, KeyError, ValueError):
                    for job in client.get(f"{GROUP}/hyphajobs").json()["items"]:
                        if (job.get("status") or {}).get("phase") in ("Failed", "Succeeded"):
                            metadata = job["metadata"]
                            path = f"{GROUP}/namespaces/{metadata['namespace']}/hyphajobs/{metadata['name']}/status"
                            body = {"apiVersion": job["apiVersion"], "kind": job["kind"]}
                            body |= {"metadata": {"name": metadata["name"]}, "status": {"conditions": conditions}}
                            headers = {"Content-Type": "application/apply-patch+yaml"}
                            client.patch(path, params={"fieldManager": "hypha-worker"}, json=body, headers=headers)

    thread = threading.Thread(target=report)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def delete(api: ApiServer, *what: str) -> None:
    api.kubectl("delete", *what, "--wait=false", "--ignore-not-found")


@pytest.mark.timeout(120 + MAX_S)
@pytest.mark.parametrize("seed", range(SEED, SEED + ORDERS))
def test_nothing_is_left_whatever_is_removed_first(server: ApiServer, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    installation = Installation(server, tmp_path, cluster=chance.random() < 0.5)
    steps: list[tuple[str, Callable[[], None]]] = [
        ("release", lambda: installation.stop(hook=True)),
        *((name, lambda name=name: delete(server, "crd", name)) for name in DEFINITIONS),  # type: ignore[misc]
        *((name, lambda name=name: delete(server, "namespace", name)) for name in installation.namespaces),  # type: ignore[misc]
    ]
    chance.shuffle(steps)
    print(f"seed {seed}: {', '.join(name for name, _ in steps)}")
    with nodes(server):
        for _, step in steps:
            step()
            time.sleep(chance.choice([0, 0.5, 3]))
        delete(server, "namespace", installation.home)
        delete(server, "-f", str(ROOT / "crds" / "roles.yaml"))
        started = time.monotonic()
        try:
            until(lambda: not installation.left(), timeout_s=MAX_S)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: left after {MAX_S} s: {installation.left()}") from error
        print(f"seed {seed}: nothing is left after {time.monotonic() - started:.1f} s")


def test_an_uninstalled_release_releases_every_worker_but_those_that_another_release_serves(
    server: ApiServer,
) -> None:
    install_definitions(server)
    release, claimed = Release(server, {}), server.namespace()
    unclaimed = server.namespace()  # as one is whose deletion has begun
    lease = {"metadata": {"name": "hypha-operator"}, "spec": {"holderIdentity": "elsewhere/other/all"}}
    server.post(f"/apis/coordination.k8s.io/v1/namespaces/{claimed}/leases", lease)
    for namespace in (claimed, unclaimed):
        worker = worker_manifest(namespace)
        worker["metadata"]["finalizers"] = ["hypha.space/drain"]
        server.post(f"{GROUP}/namespaces/{namespace}/hyphaworkers", worker)
    release.uninstall()
    blocked = "-ojsonpath={.items[*].metadata.finalizers}"
    assert server.kubectl("get", "hyphaworkers", f"-n{unclaimed}", blocked) == ""
    assert "hypha.space/drain" in server.kubectl("get", "hyphaworkers", f"-n{claimed}", blocked)
    server.kubectl("patch", "hyphaworker", "gpu", f"-n{claimed}", "--type=merge", '-p={"metadata":{"finalizers":null}}')
    delete(server, "namespace", claimed, unclaimed)
    release.revoke()


@pytest.mark.timeout(120 + 3 * STUCK_S)
def test_where_the_operator_went_first_with_jobs_running_the_documented_line_clears_it(
    server: ApiServer, tmp_path: Path
) -> None:
    installation = Installation(server, tmp_path, cluster=True)
    installation.stop(hook=False)
    delete(server, "namespace", *installation.namespaces)
    stuck = installation.namespaces[0]
    until(lambda: "Terminating" in server.kubectl("get", "namespace", stuck))
    until(lambda: "deletionTimestamp" in server.kubectl("get", "hyphaworker", "busy", f"-n{stuck}", "-oyaml"), STUCK_S)
    until(lambda: "idle" not in server.kubectl("get", "hyphaworkers", "-A", "-oname"), STUCK_S)  # they go by themselves
    (block,) = as_written(DOCUMENTED)
    (programs := tmp_path / "bin").mkdir()
    (programs / "kubectl").symlink_to(tool("kubectl"))
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "KUBECONFIG": str(server.kubeconfig),
        "HOME": str(tmp_path),
    }
    subprocess.run(["bash", "-c", block.text], env=environment, check=True, timeout=60)
    until(lambda: stuck not in server.kubectl("get", "namespaces", "-oname"), STUCK_S)
    delete(server, "lease", "hypha-operator-cluster", "-ndefault")
    delete(server, "crd", *DEFINITIONS)
    delete(server, "namespace", installation.home)
    delete(server, "-f", str(ROOT / "crds" / "roles.yaml"))
    until(lambda: not installation.left(), STUCK_S)


def test_the_operator_survives_the_removal_of_its_definitions_and_serves_them_when_they_return(
    server: ApiServer, tmp_path: Path
) -> None:
    installation = Installation(server, tmp_path, cluster=False)
    with nodes(server):
        delete(server, "crd", *DEFINITIONS)
        until(lambda: "does not serve hyphaworkers, hyphajobs" in installation.operator.probe("/readyz")[1], 60)
        assert installation.operator.probe("/healthz") == (200, "ok")
        install_definitions(server)
        until(lambda: installation.operator.probe("/readyz") == (200, "leads"), 60)
        namespace = installation.namespaces[0]
        installation.create("hyphaworkers", worker_manifest(namespace, "new"))
        until(lambda: "type: Ready" in server.kubectl("get", "hyphaworker", "new", f"-n{namespace}", "-oyaml"))
    installation.stop(hook=True)
    delete(server, "namespace", *installation.namespaces, installation.home)
