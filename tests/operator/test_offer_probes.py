"""Workers whose jobs do not start, on a real control plane with simulated nodes.

A scheduler takes every offer, as fast as a node would make them. The node's part is simulated: it makes a job whenever
the worker may sell and no other job of it is starting.
"""

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest

from e2e.cluster.kwok import MISSING_IMAGE, kwok, pod_placement
from hypha_contracts.bridge_config import CONFIG_VARIABLE
from hypha_contracts.kinds import HYPHA_JOB, JOB, NODE, POD, WORKER
from hypha_contracts.names import JOB_LABEL
from hypha_contracts.object_status import TERMINAL, find_condition
from hypha_operator.machinery.kinds import Key
from hypha_operator.offers.trial import probe
from hypha_resources.job import Amounts
from support.api_server import ApiServer
from support.job_world import JobWorld, open_job_world
from support.operating import SETTINGS
from support.operator_objects import ROOM, worker_manifest, worker_spec
from support.operator_objects import WORKER as WORKER_NAME
from support.resources import install_definitions
from support.waiting import until
from support.webhooks import denied, webhook

pytestmark = pytest.mark.anyio
LEASE = {"cpu": 1.0, "memory": 1.0, "storage": 1.0, "gpu": 0.0}
PROBE = f"{WORKER_NAME}-probe"
DEVICES = "example.org/{owner}"
FLEXIBLE = {"strategy": "flexible", "minimum": {"cpu": "1", "memory": "1G", "storage": "1G"}}


@pytest.fixture(scope="module")
def nodes(control_plane: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    install_definitions(control_plane)
    with kwok(control_plane, tmp_path_factory.mktemp("kwok"), nodes=2, gpus=2) as names:
        yield names


class Market:
    """A worker, and a scheduler that takes every offer."""

    def __init__(self, world: JobWorld, nodes: list[str]) -> None:
        self.world, self._nodes = world, nodes
        self.placement: dict[str, Any] = {"spec": pod_placement(nodes)}

    def set_executor(self, **changes: Any) -> None:
        """Replace the worker's only executor."""
        executor = {"class": "train", "name": "diloco-transformer", "template": self.placement, **changes}
        self.change(executors=[executor])

    def change(self, **spec: Any) -> None:
        self.world.call("PATCH", self.world.path(WORKER, WORKER_NAME), {"spec": spec})

    @property
    def worker(self) -> dict[str, Any]:
        return self.world.call("GET", self.world.path(WORKER, WORKER_NAME))

    @property
    def may_sell(self) -> bool:
        offering = (self.worker.get("status") or {}).get("offering") or {}
        return bool(offering.get("enabled"))

    @property
    def jobs(self) -> list[dict[str, Any]]:
        return self.world.items(HYPHA_JOB)

    def failed(self) -> int:
        return sum((job.get("status") or {}).get("phase") == "Failed" for job in self.jobs)

    def reason(self, type_: str) -> str:
        return str(find_condition(self.worker, type_).get("reason"))

    def message(self, type_: str) -> str:
        return str(find_condition(self.worker, type_).get("message"))

    def provide(self, resource: str) -> None:
        """Make the nodes have devices, as a device plugin does."""
        for name in self._nodes:
            has = {"capacity": {resource: "4"}, "allocatable": {resource: "4"}}
            self.world.call("PATCH", NODE.path(None, name, "status"), {"status": has})

    async def step(self, passes_s: float = 5) -> None:
        """Reconcile everything, let the scheduler take an offer, and let time pass."""
        await self.world.operating.observe()
        for job in self.jobs:
            await self.world.operating.reconcile(Key(HYPHA_JOB, self.world.namespace, job["metadata"]["name"]))
        await self.world.operating.reconcile(Key(WORKER, self.world.namespace, WORKER_NAME))
        phases = [(job.get("status") or {}).get("phase") for job in self.jobs]
        if self.may_sell and all(phase in (*TERMINAL, "Running") for phase in phases):
            self.world.make_job(resources=LEASE, lease_s=1_000_000)
        self.world.clock.ahead_s += passes_s
        await asyncio.sleep(0.05)

    async def until(self, condition: Callable[[], object], passes_s: float = 5, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, (self.worker["status"], [job.get("status") for job in self.jobs])
            await self.step(passes_s)

    async def until_it_sells(self) -> None:
        """Until a probe has shown that jobs start, and a job runs."""
        runs = [job for job in self.jobs if job["status"].get("phase") == "Running"]
        await self.until(lambda: self.may_sell and self.reason("JobsStart") == "JobsStart")
        await self.until(
            lambda: sum((job.get("status") or {}).get("phase") == "Running" for job in self.jobs) > len(runs)
        )


@pytest.fixture
async def market(control_plane: ApiServer, nodes: list[str]) -> AsyncIterator[Market]:
    """A worker without faults, and nobody who reconciles it yet."""
    settings = {"resources": ROOM, "offer": FLEXIBLE, "jobs": {"startTimeoutSeconds": 86400}}
    async with open_job_world(control_plane, **settings) as world:
        made = Market(world, nodes)
        made.set_executor()
        yield made


async def test_a_wrong_image_fails_two_jobs_and_none_afterwards(market: Market) -> None:
    market.set_executor(image=MISSING_IMAGE)
    await market.until(lambda: market.reason("JobsStart") == "ImagePull")
    assert market.failed() == 0, "it is named before the first job fails"
    assert MISSING_IMAGE in market.message("JobsStart")
    assert "Correct the image's name" in market.message("JobsStart")
    await market.until(lambda: find_condition(market.worker, "JobsStart")["status"] == "False")
    assert not market.may_sell
    assert market.reason("Ready") == "JobsDoNotStart"
    for _ in range(30):
        await market.step(30)
    assert market.failed() <= 2
    assert market.reason("JobsStart") == "ImagePull"
    market.set_executor()
    await market.until_it_sells()
    assert market.failed() <= 2
    await market.until(lambda: not [job for job in market.world.items(JOB) if job["metadata"]["name"] == PROBE])


async def test_a_probe_has_what_a_job_has_but_neither_its_task_nor_a_token(market: Market) -> None:
    market.set_executor(image=MISSING_IMAGE, env={"A": "b"})

    def pods(component: str) -> list[dict[str, Any]]:
        found = market.world.items(POD)
        return [pod for pod in found if pod["metadata"]["labels"]["app.kubernetes.io/component"] == component]

    await market.until(lambda: pods("probe") and pods("job"), passes_s=1)
    probe, job = pods("probe")[0], pods("job")[0]
    (ours,), (theirs,) = probe["spec"]["containers"], job["spec"]["containers"]
    for part in ("image", "resources", "env", "securityContext"):
        assert ours[part] == theirs[part]
    assert ours["command"] == ["python", "--help"]
    for part in ("nodeSelector", "serviceAccountName", "securityContext"):
        assert probe["spec"][part] == job["spec"][part]
    assert "hypha.space/job" not in probe["metadata"]["labels"]
    assert probe["metadata"]["labels"]["app.kubernetes.io/component"] == "probe"
    assert "serviceAccountToken" not in str(probe["spec"])
    assert "secret" not in str(probe["spec"]["volumes"])
    (owner,) = next(j for j in market.world.items(JOB) if j["metadata"]["name"] == PROBE)["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("HyphaWorker", WORKER_NAME)


async def test_the_room_of_a_probe_is_not_sold(market: Market) -> None:
    await market.step()
    whole = (market.worker["status"]["offering"].get("limit") or {}).get("cpu", float(ROOM["cpu"]))
    market.set_executor(image=MISSING_IMAGE)
    await market.until(lambda: [job for job in market.world.items(JOB) if job["metadata"]["name"] == PROBE])
    assert market.worker["status"]["offering"]["limit"]["cpu"] == whole - LEASE["cpu"]


async def test_a_probe_that_a_policy_refuses_is_a_failed_start(
    market: Market, control_plane: ApiServer, tmp_path: Path
) -> None:
    def no_probes(request: dict[str, Any]) -> dict[str, Any]:
        refused = request["object"]["metadata"]["name"] == PROBE
        return denied("a job needs an owner's number") if refused else {"allowed": True}

    namespace = market.world.namespace
    with webhook(control_plane, namespace, "validating", "batch/jobs", no_probes, tmp_path / "pki"):
        market.set_executor(image=MISSING_IMAGE)
        await market.until(lambda: find_condition(market.worker, "JobsStart").get("status") == "False")
        await market.until(lambda: "a job needs an owner's number" in market.message("JobsStart"), passes_s=30)
        for _ in range(10):
            await market.step(30)
        assert not market.may_sell
        assert market.failed() <= 2
    market.set_executor()
    await market.until_it_sells()
    assert market.failed() <= 2


async def test_network_policies_that_are_refused_later_fail_two_jobs_and_none_afterwards(
    market: Market, control_plane: ApiServer, tmp_path: Path
) -> None:
    def no_jobs(request: dict[str, Any]) -> dict[str, Any]:
        of_job = JOB_LABEL in request["object"]["spec"]["podSelector"].get("matchLabels", {})
        return denied("egress belongs to the network team") if of_job else {"allowed": True}

    def running() -> int:
        return sum((job.get("status") or {}).get("phase") == "Running" for job in market.jobs)

    await market.until(running)
    resource = "networking.k8s.io/networkpolicies"
    with webhook(control_plane, market.world.namespace, "validating", resource, no_jobs, tmp_path / "pki"):
        await market.until(lambda: find_condition(market.worker, "JobsStart").get("status") == "False")
        for _ in range(10):
            await market.step(30)
        assert market.reason("JobsStart") == "AdmissionRefused"
        assert "egress belongs to the network team" in market.message("JobsStart")
        assert not market.may_sell
        assert market.failed() <= 2
    await market.until(lambda: market.may_sell, passes_s=30)
    assert market.failed() <= 2


def test_the_claims_of_a_probe_are_named_by_what_they_claim() -> None:
    """What a ResourceClaimTemplate claims never changes, and the one of an earlier probe may still exist."""

    def named(count: float, **gpu: Any) -> str:
        dra = {"deviceClassName": "gpu.example.org", "count": 4, "memory": "1G", **gpu}
        spec = worker_spec(resources=ROOM | {"gpu": dra})
        worker = worker_manifest()
        worker["metadata"] |= {"creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1}
        made = probe(worker, spec, spec.executors[0], Amounts(**LEASE | {"gpu": count}), SETTINGS)
        ((claim,), (reference,)) = made.claims, made.pod["resourceClaims"]
        assert reference["resourceClaimTemplateName"] == claim["metadata"]["name"]
        return str(claim["metadata"]["name"])

    assert named(1) == named(1)
    selected = named(1, selectors=[{"cel": {"expression": "true"}}])
    assert len({named(1), named(2), named(1, deviceClassName="another.example.org"), selected}) == 4


def bridge_of_probe(directory: Path, authority: str) -> list[str]:
    """Lay out the files of the bridge of a probe in a directory, as a kubelet does. Return the bridge's command."""
    spec = worker_spec(jobs={"trustBundle": {"name": "authorities"}})
    worker = worker_manifest()
    worker["metadata"] |= {"creationTimestamp": "2026-01-01T00:00:00Z", "generation": 1}
    made = probe(worker, spec, spec.executors[0], Amounts(**LEASE), SETTINGS)
    (bridge,) = made.pod["initContainers"]
    ((_, mount),) = [(m["name"], m["mountPath"]) for m in bridge["volumeMounts"] if m["name"] == "spec"]
    (volume,) = [volume for volume in made.pod["volumes"] if volume["name"] == "spec"]
    ((path, field),) = [(item["path"], item["fieldRef"]["fieldPath"]) for item in volume["downwardAPI"]["items"]]
    annotations = made.job["spec"]["template"]["metadata"]["annotations"]
    (text,) = [text for key, text in annotations.items() if field == f"metadata.annotations['{key}']"]
    config = json.loads(next(v["value"] for v in bridge["env"] if v["name"] == CONFIG_VARIABLE))
    assert config["job_file"] == f"{mount}/{path}"
    (directory / "job.json").write_text(text)
    (directory / "ca.crt").write_text(authority)
    (directory / "job").mkdir()
    config = json.loads(json.dumps(config).replace('"/job/', f'"{directory}/job/'))
    config |= {"job_file": f"{directory}/job.json", "trust_pem": f"{directory}/ca.crt"}
    (directory / "bridge.json").write_text(json.dumps(config))
    assert not bridge.keys() & {"command", "args"}, "it runs the program of a job's bridge"
    assert bridge["startupProbe"]["exec"]["command"][-1].replace("/job/", f"{directory}/job/") == config["socket"]
    return [sys.executable, "-m", "hypha_bridge", "--config", str(directory / "bridge.json")]


def test_the_bridge_of_a_probe_serves_until_it_is_terminated(tmp_path: Path) -> None:
    command = bridge_of_probe(tmp_path, Path(certifi.where()).read_text("ascii", "ignore"))
    with subprocess.Popen(command) as bridge:
        until(lambda: (tmp_path / "job/work/bridge.sock").is_socket() or bridge.poll() is not None)
        bridge.send_signal(signal.SIGTERM)
        assert bridge.wait(20) == 0


def test_the_bridge_of_a_probe_fails_if_that_of_a_job_would(tmp_path: Path) -> None:
    command = bridge_of_probe(tmp_path, "no certificate")
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    assert ended.returncode == 2
    assert "holds no certificates" in ended.stderr


async def test_a_full_quota_fails_no_job(market: Market) -> None:
    quota = {"metadata": {"name": "full"}, "spec": {"hard": {"pods": "0"}}}
    path = f"/api/v1/namespaces/{market.world.namespace}/resourcequotas"
    market.world.call("POST", path, quota)
    await market.until(lambda: market.reason("ExecutorsValid") == "QuotaExceeded")
    assert "exceeded quota: full" in market.message("ExecutorsValid")
    assert not market.may_sell
    market.world.call("DELETE", f"{path}/full")
    await market.until(lambda: market.may_sell)
    assert market.failed() == 0


async def test_missing_devices_fail_no_job_and_are_noticed_once_they_are_there(market: Market) -> None:
    resource = DEVICES.format(owner=market.world.namespace)
    market.change(resources={"gpu": {"resourceName": resource, "count": 4, "memory": "1G"}})
    await market.until(lambda: market.reason("JobsStart") == "DevicesMissing")
    assert f"No node has {resource}: is its device plugin running?" in market.message("JobsStart")
    assert not market.may_sell
    market.provide(resource)
    await market.until_it_sells()
    assert market.failed() == 0


async def test_a_queue_that_never_admits_fails_two_jobs_and_none_afterwards(market: Market) -> None:
    """Nothing admits here, as if the queue had no quota."""
    market.set_executor(queueName="without-quota")
    market.change(jobs={"queueTimeoutSeconds": 60})
    await market.until(lambda: market.reason("JobsStart") == "Queued")
    await market.until(lambda: find_condition(market.worker, "JobsStart")["status"] == "False")
    assert market.reason("JobsStart") == "QueueTimeout"
    assert "Give the queue as much quota" in market.message("JobsStart")
    for _ in range(20):
        await market.step(30)
    assert market.failed() <= 2
    market.set_executor()
    await market.until_it_sells()
    assert market.failed() <= 2


async def test_with_all_faults_the_first_is_named_and_the_next_once_it_is_mended(market: Market) -> None:
    resource = DEVICES.format(owner=market.world.namespace)
    quotas = f"/api/v1/namespaces/{market.world.namespace}/resourcequotas"
    market.world.call("POST", quotas, {"metadata": {"name": "full"}, "spec": {"hard": {"pods": "0"}}})
    typo = {"spec": {**market.placement["spec"], "nodeSelecter": {}}}
    market.set_executor(template=typo, image=MISSING_IMAGE, queueName="without-quota")
    market.change(resources={"gpu": {"resourceName": resource, "count": 4, "memory": "1G"}})
    await market.until(lambda: "nodeSelecter" in market.message("Ready"))
    market.set_executor(image=MISSING_IMAGE, queueName="without-quota")
    await market.until(lambda: "exceeded quota: full" in market.message("Ready"))
    market.world.call("DELETE", f"{quotas}/full")
    await market.until(lambda: "is its device plugin running?" in market.message("Ready"))
    market.provide(resource)
    await market.until(lambda: "the queue has not admitted it" in market.message("Ready"))
    market.set_executor(image=MISSING_IMAGE)
    await market.until(lambda: MISSING_IMAGE in market.message("Ready"))
    assert market.jobs == [], "each fault is found without a job"
    market.set_executor()
    await market.until_it_sells()
    assert market.failed() == 0
