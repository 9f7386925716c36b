"""A hostile job gains nothing and disturbs no other job."""

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from e2e import installation, open_ports
from e2e.devnet import Devnet
from e2e.kube import Kube, eventually
from e2e.settings import Settings
from e2e.tasks import Task, Tasks
from e2e.workers import Worker, failed, job_of, pods_of, program_spec, restarts, results, runs
from hypha_messages.types import Resources

_PROGRAMS = Path(__file__).parents[1] / "programs"
_MARKER = f"neighbour-{uuid4()}"

NEIGHBOUR = """
import pathlib, time
pathlib.Path("/job/work/marker").write_text(args[0])
print("ready", flush=True)
time.sleep(3600)
"""
EATER = """
eaten = []
while True:
    eaten.append(b"x" * (16 << 20))
"""
FILLER = """
import time
with open("/job/work/fill", "wb") as file:
    for _ in range(300):
        file.write(b"x" * (1 << 20))
        file.flush()
time.sleep(600)
"""


@pytest.fixture(scope="module")
def neighbour(kube: Kube, worker: Worker, tasks: Tasks) -> Iterator[Task]:
    """A harmless job that runs beside all the others."""
    task = runs(kube, worker, tasks.run(worker.peer_id, NEIGHBOUR, _MARKER))
    yield task
    tasks.abandon(task)


@pytest.fixture(scope="module")
def attacker(kube: Kube, devnet: Devnet, worker: Worker, settings: Settings) -> Iterator[Worker]:
    """Another worker, whose jobs may send files to jobs of the first one."""
    spec = program_spec(devnet, "attacker", installation.image(kube, "HYPHA_PARAMETER_SERVER_IMAGE"))
    made = Worker(kube, devnet, worker.namespace, "attacker", spec).apply().ready()
    yield made
    if not settings.keep:
        made.delete()


@pytest.fixture(autouse=True)
def unharmed(kube: Kube, worker: Worker, neighbour: Task) -> Iterator[None]:
    """Assert after each case that the neighbour, the controller and the node are as they were."""
    (pod,) = pods_of(kube, worker, neighbour)
    controller = worker.controller()
    yield
    (after,) = pods_of(kube, worker, neighbour)
    assert after["metadata"]["uid"] == pod["metadata"]["uid"]
    assert restarts(after) == restarts(pod)
    assert job_of(kube, worker, neighbour)["status"]["phase"] == "Running"
    now = worker.controller()
    assert controller is not None
    assert now is not None
    assert (now["metadata"]["uid"], restarts(now)) == (controller["metadata"]["uid"], restarts(controller))
    for node in kube.items("nodes"):
        pressure = {c["type"]: c["status"] for c in node["status"]["conditions"]}
        assert pressure["Ready"] == "True"
        assert pressure["MemoryPressure"] == pressure["DiskPressure"] == "False"


def _program(name: str) -> str:
    return (_PROGRAMS / f"{name}.py").read_text()


def test_a_job_that_exhausts_its_memory_loses_only_its_executor(kube: Kube, worker: Worker, tasks: Tasks) -> None:
    task = tasks.run(worker.peer_id, EATER)
    failed(kube, worker, task, "OutOfMemory")
    (pod,) = pods_of(kube, worker, task)
    (executor,) = pod["status"]["containerStatuses"]
    assert executor["state"]["terminated"]["reason"] == "OOMKilled"
    assert all(c["state"]["terminated"]["reason"] != "OOMKilled" for c in pod["status"]["initContainerStatuses"])


def test_a_job_that_fills_its_disk_is_evicted_and_no_other_job(kube: Kube, worker: Worker, tasks: Tasks) -> None:
    task = tasks.run(worker.peer_id, FILLER)
    failed(kube, worker, task, "StorageExceeded")


def test_a_job_that_looks_for_secrets_finds_none(
    kube: Kube, devnet: Devnet, worker: Worker, tasks: Tasks, neighbour: Task
) -> None:
    key = (devnet.files.certificates / f"{worker.node}-key.pem").read_text().splitlines()[1]
    needles = {"the P2P key": key, "the neighbour's volume": _MARKER}
    program = _program("searcher")
    backwards = json.dumps({what: text[::-1] for what, text in needles.items()})
    task = tasks.run(worker.peer_id, program, backwards, resources=Resources(cpu=0.3, memory=0.3, storage=0.1))
    assert task.ended(180) == "Finished"
    found = results(kube, job_of(kube, worker, task))
    assert found["files"] > 100
    assert found["secrets"] == []
    assert found["processes"] == 1
    assert found["uid"] != 0
    own = ("/job/work", "/tmp", "/dev/shm", "/dev/mqueue")
    assert [path for path in found["writable"] if not path.startswith(own)] == []


@pytest.mark.long
def test_a_job_that_scans_every_pod_service_and_node_finds_no_open_port_that_serves_it(
    kube: Kube, worker: Worker, tasks: Tasks, settings: Settings
) -> None:
    program = _program("scanner")
    targets = open_ports.targets(kube)
    resources = Resources(cpu=0.4, memory=0.3, storage=0.1)
    task = tasks.run(worker.peer_id, program, json.dumps(targets), resources=resources)
    assert task.ended(300) == "Finished"
    found = results(kube, job_of(kube, worker, task))
    image = installation.image(kube, "HYPHA_PARAMETER_SERVER_IMAGE")
    needed = open_ports.needed(kube, worker)
    assert needed <= set(found), f"the scan missed {needed - set(found)}"
    if settings.own_cluster or open_ports.policies_enforced(kube, worker, image):
        assert set(found) <= needed, set(found) - needed
    else:
        controller = worker.controller()
        assert controller is not None
        assert f"{controller['status']['podIP']}:4001" in found
    opened = {where: answers for where, answers in found.items() if not open_ports.refuses(kube, where, answers)}
    assert opened == {}


@pytest.mark.long
def test_a_job_that_floods_the_connector_delays_no_other_job(kube: Kube, worker: Worker, tasks: Tasks) -> None:
    service = kube.get("services", worker.namespace, f"{worker.name}-connector")
    assert service is not None
    where = service["spec"]["clusterIP"], str(service["spec"]["ports"][0]["port"])
    reporter = _program("reporter"), "100", "0.1"
    alone = tasks.run(worker.peer_id, *reporter)
    assert alone.ended(120) == "Finished"
    undisturbed = results(kube, job_of(kube, worker, alone))

    resources = Resources(cpu=0.3, memory=0.3, storage=0.1)
    flood = runs(kube, worker, tasks.run(worker.peer_id, _program("flooder"), *where, "60", resources=resources))
    beside = tasks.run(worker.peer_id, *reporter)
    assert beside.ended(110) == "Finished"
    assert job_of(kube, worker, flood)["status"]["phase"] == "Running"
    disturbed = results(kube, job_of(kube, worker, beside))
    assert disturbed["seconds"] < 1.5 * undisturbed["seconds"] + 5, (undisturbed, disturbed)
    assert flood.ended(180) == "Finished"
    found = results(kube, job_of(kube, worker, flood))
    assert found["opened"] > 200, found
    assert not any(" 200 " in answer or " 204 " in answer for answer in found["answers"]), found


@pytest.mark.long
def test_a_job_that_sends_a_header_bomb_harms_neither_the_receiving_job_nor_its_bridge(
    kube: Kube, worker: Worker, attacker: Worker, tasks: Tasks
) -> None:
    resources = Resources(cpu=0.2, memory=0.2, storage=0.6)
    reporter = _program("reporter"), "60", "1", attacker.peer_id
    receiver = runs(kube, worker, tasks.run(worker.peer_id, *reporter, resources=resources, peer=attacker.peer_id))
    bomber = tasks.run(
        attacker.peer_id, _program("bomber"), worker.peer_id, "300", resources=resources, peer=worker.peer_id
    )
    runs(kube, attacker, bomber)
    (pod,) = pods_of(kube, attacker, bomber)

    def sent() -> bool:
        log = kube.logs(attacker.namespace, pod["metadata"]["name"], "bridge")
        return log.count("bomb.safetensors to ") >= 2  # sent, or refused by the other node

    eventually("the worker has received or refused both bombs", sent, 100)
    assert receiver.ended(180) == "Finished"
    tasks.abandon(bomber)
    problems = results(kube, job_of(kube, worker, receiver))["problems"]
    assert len(problems) == 2
    assert all("a header of 95760001 bytes" in (problem or "") for problem in problems), problems
    (pod,) = pods_of(kube, worker, receiver)
    assert restarts(pod) == [0, 0]
    ends = [container["state"]["terminated"] for container in pod["status"]["initContainerStatuses"]]
    assert [(end["exitCode"], end["reason"]) for end in ends] == [(0, "Completed")]
