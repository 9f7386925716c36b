"""Each example runs a job, beside what it needs: devices, a claim on devices, a sandbox."""

import pytest

from e2e import addons, examples
from e2e.devnet import Devnet
from e2e.kube import Kube, Object, eventually
from e2e.settings import Settings
from e2e.tasks import Tasks
from e2e.workers import Namespaces, pods_of

pytestmark = pytest.mark.long

_NODE = "node-1"
_PRODUCT = {"nvidia.com/gpu.product": "NVIDIA-RTX-A6000"}
_DRIVER = "gpu.nvidia.com"


@pytest.fixture(autouse=True)
def namespace(namespaces: Namespaces, settings: Settings) -> str:
    if not settings.own_cluster:
        pytest.skip("the examples need the devices and classes of the cluster of make cluster")
    return namespaces(examples.NAMESPACE)


@pytest.mark.parametrize("name", ["hyphaworker", "market", "nodeport"])
def test_an_example_runs_a_job(kube: Kube, devnet: Devnet, tasks: Tasks, name: str) -> None:
    with examples.started(kube, devnet, name) as worker:
        assert examples.run(worker, tasks).ended() == "Finished"


def test_the_example_with_gpus_runs_a_job_on_a_device_of_a_device_plugin(
    kube: Kube, devnet: Devnet, tasks: Tasks
) -> None:
    kube.patch("nodes", None, _NODE, {"metadata": {"labels": _PRODUCT}})
    with addons.devices(kube, "nvidia.com/gpu", 4), examples.started(kube, devnet, "gpu") as worker:
        task = examples.run(worker, tasks)
        assert task.ended() == "Finished"
        (pod,) = pods_of(kube, worker, task)
        assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_example_with_a_sandbox_runs_a_job_in_its_runtime_class(kube: Kube, devnet: Devnet, tasks: Tasks) -> None:
    metadata = {"name": "gvisor"}
    kube.apply({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": metadata, "handler": "runc"})
    with examples.started(kube, devnet, "gvisor") as worker:
        task = examples.run(worker, tasks)
        assert task.ended() == "Finished"
        (pod,) = pods_of(kube, worker, task)
        assert pod["spec"]["runtimeClassName"] == "gvisor"
    kube.delete("runtimeclasses", None, "gvisor")


def test_the_scheduler_allocates_a_device_to_the_claim_of_the_example_with_dynamic_resource_allocation(
    kube: Kube, devnet: Devnet, tasks: Tasks
) -> None:
    api = {"apiVersion": "resource.k8s.io/v1"}
    selector = {"cel": {"expression": f'device.driver == "{_DRIVER}"'}}
    pool = {"name": _NODE, "generation": 1, "resourceSliceCount": 1}
    node = {"driver": _DRIVER, "nodeName": _NODE, "pool": pool, "devices": [{"name": "gpu-0"}]}
    kube.apply(
        {**api, "kind": "DeviceClass", "metadata": {"name": _DRIVER}, "spec": {"selectors": [selector]}},
        {**api, "kind": "ResourceSlice", "metadata": {"name": f"{_NODE}-gpus"}, "spec": node},
    )
    try:
        with examples.started(kube, devnet, "dra") as worker:
            task = examples.run(worker, tasks)

            def allocated() -> list[Object]:
                claims = kube.items("resourceclaims", worker.namespace)
                return [claim["status"]["allocation"] for claim in claims if "allocation" in claim.get("status", {})]

            (allocation,) = eventually("the claim has a device", allocated, 30)
            (result,) = allocation["devices"]["results"]
            assert (result["driver"], result["device"]) == (_DRIVER, "gpu-0")
            tasks.abandon(task)
    finally:
        kube.delete("resourceslices", None, f"{_NODE}-gpus")
        kube.delete("deviceclasses", None, _DRIVER)
