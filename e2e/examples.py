"""The examples, fitted to a small cluster and to the devnet, so that each runs a job."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from e2e import installation
from e2e.cluster.cluster import Cluster
from e2e.devnet import Devnet
from e2e.kube import Kube, Object
from e2e.settings import ROOT
from e2e.tasks import RUNNER, WAITER, Task, Tasks
from e2e.workers import SMALL_CONTROLLER, Worker
from hypha_messages.types import Resources

NAMESPACE = "hypha"
_SIZES = {"cpu": "900m", "memory": "2G", "storage": "4G"}
_FLEXIBLE = {"strategy": "flexible", "minimum": {"cpu": "100m", "memory": "200M", "storage": "100M"}}


def objects(name: str) -> list[Object]:
    """Return the objects of an example."""
    text = (ROOT / "examples" / f"{name}.yaml").read_text()
    return [item for item in yaml.safe_load_all(text) if item]


@contextmanager
def started(kube: Kube, devnet: Devnet, name: str) -> Iterator[Worker]:
    """Apply an example for as long as the context lasts; yields its worker once it is ready.

    What differs from the file: addresses, sizes, and the executors' images and commands, which run the cases' programs.
    """
    *others, manifest = objects(name)
    spec = _fitted(manifest["spec"], devnet, installation.image(kube, "HYPHA_PARAMETER_SERVER_IMAGE"))
    worker = Worker(kube, devnet, NAMESPACE, manifest["metadata"]["name"], spec)
    kube.apply(*others)
    if "secretName" in spec["identity"]:
        worker.apply()
    else:
        kube.apply(worker.object)
    try:
        yield worker.ready()
    finally:
        worker.delete()


def run(worker: Worker, tasks: Tasks, seconds: str = "1") -> Task:
    """Start a job of the worker's first executor of class train, with a device if the worker has some."""
    name = next(executor["name"] for executor in worker.spec["executors"] if executor["class"] == "train")
    gpu = 1.0 if "gpu" in worker.spec["resources"] else 0.0
    resources = Resources(cpu=0.1, memory=0.2, storage=0.1, gpu=gpu)
    peer_id = worker.get()["status"]["peerId"]
    return tasks.run(peer_id, WAITER, seconds, executor=name, resources=resources)


def _fitted(spec: dict[str, Any], devnet: Devnet, image: str) -> dict[str, Any]:
    network = spec["network"] | {"gateways": [devnet.gateway], "excludeCidr": []}
    if "externalAddresses" in network:
        ports = [address.split("/", 3)[3] for address in network["externalAddresses"]]
        network["externalAddresses"] = [f"/ip4/{Cluster().network.node}/{port}" for port in ports]
    resources = spec["resources"] | _SIZES
    if gpu := resources.get("gpu"):
        gpu["memory"] = "1G"
    executors = [executor | {"image": image, "command": RUNNER} for executor in spec["executors"]]
    if all(executor["class"] != "train" for executor in executors):
        executors.append({"class": "train", "name": "program", "image": image, "command": RUNNER})
    return spec | {
        "network": network,
        "resources": resources,
        "offer": {"floor": 1} | spec.get("offer", {}) | _FLEXIBLE,
        "executors": executors,
        "controller": {"resources": SMALL_CONTROLLER},
    }
