"""A plain script that creates the objects that the operator created. It shows what the control plane itself takes."""

import json
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, product

import httpx

from benchmarks.nodes import BenchmarkError
from benchmarks.reconcile_load import Manifest, watch
from benchmarks.reconcile_operator import calm_since, until
from benchmarks.reconcile_plane import queued
from e2e.cluster.control_plane import ControlPlane
from hypha_contracts.kinds import HYPHA_JOB, POD, WORKER, Kind, kind_of
from hypha_contracts.names import JOB_LABEL, WORKER_LABEL
from hypha_operator.machinery.kinds import CHILDREN

_AT_ONCE = 16
"""As many as the operator reconciles at once."""
_PAGE = 500
_GENERATED = (
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "generation",
    "managedFields",
    "finalizers",
)
_CHOSEN_BY_SERVER = {"Service": ("clusterIP", "clusterIPs"), "Job": ("selector",)}

Objects = dict[str, list[Manifest]]
"""By the name of the owner: a HyphaWorker or a HyphaJob with all of its objects, in the order to create them."""


def recorded(plane: ControlPlane, namespaces: Iterable[str]) -> tuple[Objects, Objects]:
    """Return the objects of each worker and of each job in these namespaces, as they are to be created again."""
    workers, jobs = defaultdict[str, list[Manifest]](list), defaultdict[str, list[Manifest]](list)
    with plane.client() as client:
        kinds = (WORKER, HYPHA_JOB, *(kind for kind in CHILDREN if kind != POD))
        for kind, namespace in product(kinds, namespaces):
            selector = WORKER_LABEL if kind in CHILDREN else ""
            for manifest in _listed(client, kind, namespace, selector):
                metadata = manifest["metadata"]
                labels = metadata.get("labels") or {}
                if job := metadata["name"] if kind == HYPHA_JOB else labels.get(JOB_LABEL):
                    jobs[job].append(_bare(kind, manifest))
                else:
                    workers[metadata["name"] if kind == WORKER else labels[WORKER_LABEL]].append(_bare(kind, manifest))
    return dict(workers), dict(jobs)


def _listed(client: httpx.Client, kind: Kind, namespace: str, selector: str) -> Iterable[Manifest]:
    query = {"limit": str(_PAGE), "labelSelector": selector}
    while True:
        answer = client.get(kind.path(namespace), params=query).raise_for_status().json()
        yield from answer["items"]
        if not (token := answer["metadata"].get("continue")):
            return
        query["continue"] = token


def _bare(kind: Kind, manifest: Manifest) -> Manifest:
    """Return an object without what the API server or a controller added."""
    metadata = {key: value for key, value in manifest["metadata"].items() if key not in _GENERATED}
    bare = {key: value for key, value in manifest.items() if key not in ("status", "metadata")}
    bare |= {"apiVersion": kind.api_version, "kind": kind.name, "metadata": metadata}
    if kind.name in _CHOSEN_BY_SERVER:
        bare["spec"] = {key: value for key, value in bare["spec"].items() if key not in _CHOSEN_BY_SERVER[kind.name]}
    if kind.name == "Job":
        template = bare["spec"]["template"]
        kept = {
            k: v for k, v in template["metadata"]["labels"].items() if "controller-uid" not in k and "job-name" not in k
        }
        bare["spec"]["template"] = {**template, "metadata": {**template["metadata"], "labels": kept}}
    return bare


class PlainScript:
    """Creates recorded objects on another control plane.

    Args:
        plane: the control plane, which has the definitions.
        owners: what kwok's nodes are called where the objects are recorded, and what they are called here.
    """

    def __init__(self, plane: ControlPlane, owners: tuple[str, str]) -> None:
        self._plane, self._owners = plane, owners
        self._running: dict[str, set[str]] = {"controller": set(), "job": set()}
        for component in self._running:
            watch(self._plane, "/api/v1/pods", f"app.kubernetes.io/component={component}", self._on_pod)

    def run(self, workers: Objects, jobs: Objects, calm_s: float, timeout_s: float) -> float:
        """Create all objects of the workers, then those of the jobs, each time until all pods run.

        Return the seconds until the controllers have no work left either.
        """
        with self._plane.client() as client:
            namespaces = {manifest["metadata"]["namespace"] for manifest in chain(*workers.values())}
            for namespace in namespaces:
                client.post("/api/v1/namespaces", json={"metadata": {"name": namespace}}).raise_for_status()
            started = time.monotonic()
            for component, objects in (("controller", workers), ("job", jobs)):
                with ThreadPoolExecutor(_AT_ONCE) as threads:
                    for _ in threads.map(lambda group: self._create(client, group), objects.values()):
                        pass
                self._await(component, objects, timeout_s)
        return calm_since(lambda: not queued(self._plane), calm_s, timeout_s) - started

    def _await(self, component: str, objects: Objects, timeout_s: float) -> None:
        running = self._running[component]
        until(lambda: running >= objects.keys(), f"the pods of all {component}s run", timeout_s)

    def _create(self, client: httpx.Client, group: list[Manifest]) -> None:
        """Create an owner and then its objects, whose owner references get the uid of the new owner."""
        uid = ""
        for manifest in group:
            for reference in manifest["metadata"].get("ownerReferences", ()):
                reference["uid"] = uid
            content = json.dumps(manifest).replace(*self._owners)
            path = kind_of(manifest).path(manifest["metadata"]["namespace"])
            answer = client.post(path, content=content, headers={"Content-Type": "application/json"})
            if not answer.is_success:
                raise BenchmarkError(f"{manifest['kind']} {manifest['metadata']['name']}: {answer.text}")
            uid = uid or answer.json()["metadata"]["uid"]

    def _on_pod(self, _type: str, pod: Manifest) -> None:
        if (pod.get("status") or {}).get("phase") == "Running":
            labels = pod["metadata"]["labels"]
            self._running[labels["app.kubernetes.io/component"]].add(labels.get(JOB_LABEL) or labels[WORKER_LABEL])
