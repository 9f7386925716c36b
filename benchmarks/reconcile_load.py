"""The load for an operator: HyphaWorkers, HyphaJobs, and the status that their nodes would report."""

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid5

import httpx

from benchmarks.connector import job
from e2e.cluster.control_plane import ControlPlane
from hypha_contracts.names import API_VERSION, WORKER_LABEL, job_name
from hypha_messages.types import peer_id_from_ed25519
from hypha_resources.job import redacted

Manifest = dict[str, Any]

WORKERS_PER_NAMESPACE = 100
GATEWAY = "/dns4/gateway.example.org/tcp/4001"
_EXECUTOR = {"class": "train", "name": "diloco"}
_IDS = UUID("5b3c8f6e-0000-4000-8000-000000000000")
_NEVER = "2099-01-01T00:00:00Z"
_AT_ONCE = 4
ROOT = f"/apis/{API_VERSION}"
_APPLY = {"Content-Type": "application/apply-patch+yaml"}


def peer_of(worker: str) -> str:
    """Return the peer id of a worker."""
    return peer_id_from_ed25519(sha256(worker.encode()).digest())


def worker_manifest(namespace: str, name: str, placement: Manifest, **executor: Any) -> Manifest:
    """Return a HyphaWorker whose pods have this placement."""
    template = {"spec": placement}
    return {
        "apiVersion": API_VERSION,
        "kind": "HyphaWorker",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "identity": {"secretName": "identity"},
            "network": {"gateways": [GATEWAY]},
            "resources": {"cpu": "64", "memory": "256Gi", "storage": "1Ti"},
            "executors": [{**_EXECUTOR, "template": template, **executor}],
            "controller": {"template": template},
        },
    }


def job_manifest(worker: Manifest, task_id: UUID) -> Manifest:
    """Return a HyphaJob as a worker's node creates it."""
    metadata, spec = worker["metadata"], job().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "apiVersion": API_VERSION,
        "kind": "HyphaJob",
        "metadata": {
            "name": job_name(task_id),
            "namespace": metadata["namespace"],
            "labels": {WORKER_LABEL: metadata["name"]},
        },
        "spec": {
            "workerRef": {"name": metadata["name"], "uid": metadata["uid"]},
            "workerPeerId": peer_of(metadata["name"]),
            "taskId": str(task_id),
            "jobId": str(uuid5(_IDS, metadata["name"])),
            "scheduler": peer_of("scheduler"),
            "lease": {"id": str(task_id), "deadline": _NEVER},
            "executor": _EXECUTOR,
            "config": redacted({"executor": spec["executor"]}),
            "resources": {"cpu": 0.1, "memory": 0.1, "storage": 1.0},
        },
    }


class Load:
    """Creates HyphaWorkers and their HyphaJobs.

    Attributes:
        plane: The control plane on which it creates them.
    """

    def __init__(self, plane: ControlPlane, placement: Manifest) -> None:
        self.plane, self._placement = plane, placement
        self._workers: list[Manifest] = []
        self._turn = 0

    def make_workers(self, count: int) -> list[str]:
        """Create this many workers, at most a hundred in each of their namespaces, which are new. Return these."""
        self._turn += 1
        namespaces = [f"benchmark-{self._turn}-{part}" for part in range(-(-count // WORKERS_PER_NAMESPACE))]
        with self.plane.client() as client, ThreadPoolExecutor(_AT_ONCE) as threads:
            for name in namespaces:
                client.post("/api/v1/namespaces", json={"metadata": {"name": name}}).raise_for_status()

            def make(number: int) -> Manifest:
                namespace, name = namespaces[number // WORKERS_PER_NAMESPACE], f"worker-{self._turn}-{number}"
                return create(client, "hyphaworkers", worker_manifest(namespace, name, self._placement))

            self._workers = list(threads.map(make, range(count)))
        return namespaces

    def make_jobs(self, count: int) -> None:
        """Create this many jobs, assigned to the newest workers in turn."""
        with self.plane.client() as client, ThreadPoolExecutor(_AT_ONCE) as threads:

            def make(number: int) -> Manifest:
                worker = self._workers[number % len(self._workers)]
                return create(client, "hyphajobs", job_manifest(worker, uuid5(_IDS, f"{self._turn}-{number}")))

            for _ in threads.map(make, range(count)):
                pass


def create(client: httpx.Client, plural: str, manifest: Manifest) -> Manifest:
    """Create a HyphaWorker or HyphaJob."""
    path = f"{ROOT}/namespaces/{manifest['metadata']['namespace']}/{plural}"
    answer: Manifest = client.post(path, json=manifest).raise_for_status().json()
    return answer


def watch(plane: ControlPlane, path: str, selector: str, on_event: Callable[[str, Manifest], None]) -> None:
    """Pass on the type (ADDED, MODIFIED, DELETED) and object of every watch event, until this process ends."""
    query = {"watch": "true", "labelSelector": selector}

    def run() -> None:
        while True:  # a new watch reports all existing objects again
            try:
                with plane.client() as client, client.stream("GET", path, params=query, timeout=None) as answer:
                    for line in answer.raise_for_status().iter_lines():
                        event = json.loads(line)
                        if event["type"] != "ERROR":
                            on_event(event["type"], event["object"])
            except httpx.HTTPError:
                time.sleep(0.5)

    threading.Thread(target=run, daemon=True).start()


class Board:
    """Watches the status of all objects, and reports each worker's status as its node would.

    Attributes:
        ready: Names of the HyphaWorkers that are Ready.
        running: Names of the HyphaJobs that run.
    """

    def __init__(self, plane: ControlPlane) -> None:
        self.ready: set[str] = set()
        self.running: set[str] = set()
        self._client = plane.client()
        watch(plane, f"{ROOT}/hyphaworkers", "", self._on_worker)
        watch(plane, f"{ROOT}/hyphajobs", "", self._on_job)
        watch(plane, "/api/v1/pods", "app.kubernetes.io/component=controller", self._report)

    def _on_worker(self, _type: str, worker: Manifest) -> None:
        conditions = (worker.get("status") or {}).get("conditions") or []
        _record(self.ready, worker, any(c["type"] == "Ready" and c["status"] == "True" for c in conditions))

    def _on_job(self, _type: str, hypha_job: Manifest) -> None:
        _record(self.running, hypha_job, (hypha_job.get("status") or {}).get("phase") == "Running")

    def _report(self, _type: str, pod: Manifest) -> None:
        """Report what the node in a controller's pod reports once it has started."""
        metadata = pod["metadata"]
        if (pod.get("status") or {}).get("phase") != "Running" or "deletionTimestamp" in metadata:
            return
        worker = metadata["labels"][WORKER_LABEL]
        node = {"peerId": peer_of(worker), "gateways": [GATEWAY], "connectedGateways": 1, "circuits": [GATEWAY]}
        status = {"node": {**node, "podName": metadata["name"]}}
        manifest = {"apiVersion": API_VERSION, "kind": "HyphaWorker", "metadata": {"name": worker}, "status": status}
        path = f"{ROOT}/namespaces/{metadata['namespace']}/hyphaworkers/{worker}/status"
        query = {"fieldManager": "hypha-worker", "force": "true"}
        self._client.patch(path, params=query, json=manifest, headers=_APPLY).raise_for_status()


def _record(names: set[str], manifest: Manifest, holds: bool) -> None:
    (names.add if holds else names.discard)(manifest["metadata"]["name"])
