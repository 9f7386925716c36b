"""A job of the reference implementation's scheduler, in pods."""

from collections.abc import Iterator
from functools import partial

import pytest

from e2e import reference, workers
from e2e.devnet import Devnet
from e2e.kube import Kube, eventually
from e2e.reference import Reference
from e2e.settings import Settings
from e2e.workers import Namespaces, Worker

_ROUNDS = 3
_JOB_S = 400


@pytest.fixture(scope="module")
def nodes(devnet: Devnet, settings: Settings) -> Iterator[Reference]:
    if settings.hypha_bin is None:
        pytest.skip("HYPHA_BIN is not set; it names the directory of hypha-gateway, hypha-data and hypha-scheduler")
    started = Reference(settings.hypha_bin, devnet)
    try:
        started.start()
        yield started
    finally:
        started.stop()


def succeeded(worker: Worker) -> bool:
    (job,) = worker.jobs()
    return bool(job["status"]["phase"] == "Succeeded")


def test_a_job_of_the_reference_scheduler_runs_in_pods(
    nodes: Reference, kube: Kube, devnet: Devnet, namespaces: Namespaces
) -> None:
    namespace = namespaces("hypha-e2e-reference")
    network = {"network": {"gateways": [nodes.gateway], "excludeCidr": []}}
    specs = {name: workers.trainer_spec(devnet, name) | network for name in ("trainer-1", "trainer-2")}
    for spec in specs.values():
        spec["resources"]["gpu"] = reference.GPU
        spec["executors"][0]["args"] = ["--allow-fewer-gpus"]  # the GPUs of this cluster exist only in its books
    specs["server"] = workers.server_spec(devnet, "server") | network
    farm = [Worker(kube, devnet, namespace, name, spec).apply() for name, spec in specs.items()]
    for worker in farm:
        worker.ready()
    scheduler = nodes.train(_ROUNDS)
    status = scheduler.ended(_JOB_S)
    assert (status, reference.DONE in scheduler.log.read_text()) == (0, True), scheduler.last_lines()
    # The scheduler leaves once the last trainer has reported. The pods may end later.
    for worker in farm:
        eventually(f"the job of {worker.name} has ended well", partial(succeeded, worker), 90)
        worker.free()
